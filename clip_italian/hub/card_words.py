"""What a model card says in words: recipe, phases, protocols, licences."""

from clip_italian.config import GROUPS, Config, ModelConfig
from clip_italian.training.optim import phases, segments

LANGUAGES = {"it": "Italian"}
# What the hub takes as `license` (hub-docs, "Licenses"); any other is "other" with a name.
LICENSES = frozenset({
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0",
    "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0",
    "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1",
    "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0",
    "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "lgpl-lr",
    "deepfloyd-if-license", "llama2", "gemma", "unknown", "other",
})  # fmt: skip
_LOSSES = {
    "infonce": "InfoNCE, both directions (CLIP)",
    "sigmoid": "pairwise sigmoid with a learned bias (SigLIP)",
}
_OPTIMIZERS = {"adamw": "AdamW", "adabelief": "AdaBelief"}
_SCHEDULES = {
    "cosine": "cosine decay to 0 after linear warm-up",
    "linear": "linear decay to 0 after linear warm-up",
    "constant": "constant after linear warm-up",
}
_AUGMENTATIONS = {
    "paper": "random crop, rotation, shift, scale, shear, perspective, hue, autocontrast, equalize",
    "light": "random resized crop",
    "none": "none, a centre crop",
}
_GROUP_NAMES = {"vision": "vision tower", "text": "text tower", "projection": "projections"}
_MSCOCO_IT = "of MSCOCO-IT (Scaiella, Croce and Basili 2019)"
_OWN = "a set of whoever made this report; equal data fingerprints mean equal sets"
# Protocol → split, and what it is.
_PROTOCOLS = {
    "mscoco_it_dev_unvalidated": (
        "validation",
        f"the unvalidated part of the development set {_MSCOCO_IT}: 1,696 COCO photos with 8,486 "
        "machine-translated captions, the query set of the CLIP-Italian paper",
    ),
    "mscoco_it_dev": (
        "validation",
        f"the validated part of the development set {_MSCOCO_IT}: 308 COCO photos with 1,541 "
        "translated captions that people corrected",
    ),
    "mscoco_it_test": (
        "test",
        f"the validated test set {_MSCOCO_IT}: 596 COCO photos with 2,982 translated captions that "
        "people corrected",
    ),
    "xtd10": (
        "test",
        "XTD10 (Aggarwal and Kale 2020): 1,000 COCO photos with a caption each. 800 of them are of "
        "COCO's training set: a model trained on MSCOCO-IT has seen most of these photos",
    ),
    "xtd10_clean": ("test", "the 200 photos of XTD10 that are of COCO's validation set"),
    "xm3600_p1": (
        "test",
        "Crossmodal-3600 (Thapliyal et al. 2022), 3,600 photos, of each the first caption; not to "
        "be compared with xm3600_p2",
    ),
    "xm3600_p2": (
        "test",
        "Crossmodal-3600 (Thapliyal et al. 2022), 3,600 photos with all captions; not to be "
        "compared with xm3600_p1",
    ),
    "imagenet": ("validation", "the 50,000 validation images of ILSVRC 2012, in 1,000 classes"),
    "contrast": (
        "",
        "pictures and captions in pairs that differ in one thing, on drawings of plain shapes: few "
        "items, probes and no measure of quality",
    ),
    "folder": ("", f"a labelled folder of images, {_OWN}"),
    "jsonl": ("", f"captioned pictures listed in a file, {_OWN}"),
    "tfds": ("", f"a labelled set of TensorFlow Datasets, {_OWN}"),
}


def describe_protocol(protocol: str) -> tuple[str, str]:
    """(split, what it is in words) of a report's protocol; the split is empty where unknown."""
    if protocol.startswith("records_"):
        split = protocol.removeprefix("records_")
        return split, (
            f"the {split} split of prepared records. Where the set is a source that the model was "
            "trained on, these pictures are of the same kind as those it has seen"
        )
    return _PROTOCOLS.get(protocol, ("", "not described here; ask whoever made this report"))


def from_scratch(config: Config) -> bool:
    """Whether both towers started from random weights."""
    model = config.model
    return not (model.init_from or model.vision_tower or model.text_tower)


def recipe(config: Config) -> list[tuple[str, str]]:
    """(what, how) of a resolved config."""
    model, data, optim, train = config.model, config.data, config.optim, config.train
    sources = zip(data.sources, data.weights, strict=True)
    known = model.logit_scale is not None
    scale = f"{model.logit_scale:g}" if known else "that of the model it starts from"
    learned = f"learned, from {scale}, at most {model.logit_scale_max:g}"
    clipping = [
        *([f"adaptive gradient clipping {optim.agc_clip:g}"] if optim.agc_clip else []),
        *([f"gradient norm at most {optim.clip_norm:g}"] if optim.clip_norm else []),
    ]
    decay = f"weight decay {optim.weight_decay:g}" if optim.weight_decay else "no weight decay"
    moments = f"b1 {optim.b1:g}, b2 {optim.b2:g}"
    duplicates = (
        "pairs that share an image or a caption are not each other's negatives"
        if config.loss.mask_duplicates
        else "pairs that share an image or a caption count as negatives too"
    )
    return [
        ("vision tower starts from", _start(model, "vision")),
        ("text tower starts from", _start(model, "text")),
        ("sources, and how often each is seen in an epoch",
         ", ".join(f"{name} × {weight:g}" for name, weight in sources)),
        ("loss", f"{_LOSSES[config.loss.loss]}; {duplicates}"),
        ("batch", f"{train.batch_size:,} pairs, all compared with all"),
        ("planned length", f"{train.steps:,} steps = {train.steps * train.batch_size:,} pairs"),
        ("optimizer", "; ".join([_OPTIMIZERS[optim.optimizer], moments, decay, *clipping])),
        ("learning rate", _SCHEDULES[optim.schedule]),
        ("similarity scale", learned if model.learn_logit_scale else f"fixed at {scale}"),
        ("image augmentation",
         _AUGMENTATIONS[data.augment] + ("; half of the images flipped" if data.flip else "")),
        ("longest caption", f"{data.max_length} tokens; longer ones are cut"),
        ("dropout", f"{model.dropout:g}"),
        ("compute type of the towers", model.dtype),
        ("seed", f"{train.seed}"),
    ]  # fmt: skip


def _start(model: ModelConfig, side: str) -> str:
    """What a tower starts from, in words."""
    if model.init_from:
        return model.init_from
    tower, shape = getattr(model, f"{side}_tower"), getattr(model, f"{side}_config") or {}
    revision = getattr(model, f"{side}_revision")
    if not tower:
        return f"random weights ({shape.get('model_type', 'unknown kind')})"
    return f"{tower}, revision {revision}" if revision else tower


def _groups(config: Config) -> dict[str, str]:
    """Parameter groups that can train → what they are called."""
    logit = [
        *(["similarity scale"] if config.model.learn_logit_scale else []),
        *(["bias"] if config.loss.loss == "sigmoid" else []),
    ]
    return {**_GROUP_NAMES, **({"logit": " and ".join(logit)} if logit else {})}


def phase_rows(config: Config) -> list[tuple[str, str, str]]:
    """(steps, what trains, what is frozen) of each phase."""
    names, steps, rows = _groups(config), config.train.steps, []
    for phase in phases(config.optim):
        if phase.start < steps:
            last = min(phase.stop or steps, steps) - 1
            moving = [names[group] for group in GROUPS if group in names and group in phase.moving]
            frozen = [names[g] for g in GROUPS if g in names and g not in phase.moving]
            joined = [", ".join(part) or "nothing" for part in (moving, frozen)]
            rows.append((f"{phase.start:,} to {last:,}", *joined))
    return rows


def rate_rows(config: Config) -> list[tuple[str, str, str, str, str]]:
    """(group, first step, peak rate, warm-up, end of the decay) of each learning-rate segment."""
    names, rows = _groups(config), []
    for one in segments(config.optim):
        if one.group in names and one.start_step < config.train.steps:
            end = f"{one.start_step + one.decay_steps:,}"
            rows.append((
                names[one.group], f"{one.start_step:,}", f"{one.learning_rate:g}",
                f"{one.warmup_steps:,}", "never" if config.optim.schedule == "constant" else end,
            ))  # fmt: skip
    return rows
