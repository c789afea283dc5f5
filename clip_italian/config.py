"""Every knob of a training run, as frozen dataclasses; `flags` reads, checks and writes them.

In code a knob is nested (`config.optim.learning_rate`); at the shell it is flat
(`--learning_rate 1e-4`). Durations are in optimizer steps unless a name says otherwise, batch
sizes are global (all devices of all hosts). Fields marked *config file only* have no flag.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro

LOGIT_SCALE, LOGIT_BIAS = 20.0, -10.0  # the paper's; SigLIP's
FileOnly = tyro.conf.Suppress
GROUPS = ("vision", "text", "projection", "logit")


class ConfigError(ValueError):
    """A field has a value that cannot work; the message names field, value and what is allowed."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Towers, projections and the similarity scale."""

    init_from: str = ""
    """Whole model to start from: exported folder or hub id (id@revision); it replaces
    `vision_tower` and `text_tower`."""
    vision_tower: str = ""
    """Vision tower: hub id or local folder; empty builds `vision_config` with random weights."""
    text_tower: str = ""
    """Text tower: hub id or local folder; empty builds `text_config` with random weights."""
    vision_revision: Annotated[str, FileOnly] = ""
    """Config file only: hub revision (branch, tag or commit) of the vision tower; empty takes the
    default branch."""
    text_revision: Annotated[str, FileOnly] = ""
    """Config file only: hub revision of the text tower, likewise."""
    vision_config: Annotated[dict[str, Any] | None, FileOnly] = None
    """Config file only: Hugging Face configuration of the vision tower, with its `model_type`."""
    text_config: Annotated[dict[str, Any] | None, FileOnly] = None
    """Config file only: Hugging Face configuration of the text tower, with its `model_type`."""
    tokenizer: str = ""
    """Tokenizer: hub id or local folder; empty takes the text tower's own."""
    image_size: Annotated[int | None, FileOnly] = None
    """Config file only: height and width of images (pixels); None takes the tower's own."""
    projection_dim: int = 512
    """Width of the shared space in which images and captions are compared."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute type of the towers; parameters, embeddings, logits and loss stay float32."""
    dropout: float = 0.0
    """Dropout rate in towers that train (probability); frozen towers never drop."""
    patch_dropout: Annotated[float, FileOnly] = 0.0
    """Config file only: share of patches left out of each training image (FLIP, arXiv 2212.00794),
    while the vision tower trains; vit, clip and dinov2."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass computes again, layer by layer, to save memory: nothing, all but the
    matrix products, or everything (a third more compute)."""
    logit_scale: float | None = None
    """Similarity scale at the start (a plain factor, not a log); None takes `init_from`'s, else the
    paper's, 20."""
    learn_logit_scale: bool = False
    """Learn the similarity scale instead of fixing it."""
    logit_scale_max: Annotated[float, FileOnly] = 100.0
    """Config file only: upper clamp of a learned scale (plain factor), applied after an update."""
    logit_bias: Annotated[float | None, FileOnly] = None
    """Config file only: learned bias of the sigmoid loss at the start (logit units); None takes
    `init_from`'s, else -10."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Records, their mixture and how they become batches."""

    data_dir: str = "data"
    """Folder with one folder of records per source; may be remote (gs://...)."""
    sources: tuple[str, ...] = ("sample",)
    """Sources to train and validate on: names of folders in `data_dir`."""
    weights: tuple[float, ...] = ()
    """How often each source is seen per epoch, in the order of `sources`; empty means once."""
    data_cache: str = "~/.cache/clip_italian/records"
    """Local folder of each host to which remote records are copied before the first step."""
    max_length: int = 96
    """Longest caption in tokens, special tokens included; longer ones are cut."""
    augment: Literal["paper", "light", "none"] = "none"
    """Image augmentation: the paper's list, a random resized crop, or a plain centre crop."""
    flip: bool = False
    """Flip half of the training images left to right (captions that say left/right go wrong)."""
    reader_threads: int = 8
    """Threads that read and decode images on each host; the order does not depend on it."""
    prefetch: Annotated[int, FileOnly] = 2
    """Config file only: batches kept ready on the device ahead of the step."""
    length_groups: Annotated[int, FileOnly] = 4
    """Config file only: into how many groups of one length the captions of a batch are sorted at
    most, so that little is padded; 1 pads all to `max_length`. Loss and gradients are the same."""
    cached_views: int = 0
    """While a tower is frozen, read its outputs from files made once: with this many augmented
    views of each picture (1 where nothing is augmented); 0 computes them in every step."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The contrastive loss over the global batch."""

    loss: Literal["infonce", "sigmoid"] = "infonce"
    """Symmetric InfoNCE (CLIP) or pairwise sigmoid (SigLIP, with a learned bias)."""
    mask_duplicates: bool = True
    """Do not count pairs that share an image or a caption as each other's negatives."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """One stretch of a parameter group's learning rate: warm-up from 0, then decay to 0.

    From `start_step` on it replaces the group's earlier segment; before its first segment a
    group is frozen.

    Attributes:
      group: one of `GROUPS`.
      start_step: global step at which it begins.
      learning_rate: peak value, reached after `warmup_steps`.
      warmup_steps: steps of linear warm-up.
      decay_steps: steps from `start_step` to the end of the decay, warm-up included.
    """

    group: str
    start_step: int
    learning_rate: float
    warmup_steps: int
    decay_steps: int


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer, learning rates and when each tower starts to move."""

    optimizer: Literal["adabelief", "adamw"] = "adamw"
    """AdaBelief (the paper's, without decay) or AdamW."""
    learning_rate: float = 1e-4
    """Peak learning rate of every group that has none of its own."""
    vision_learning_rate: float | None = None
    """Peak learning rate of the vision tower; None takes `learning_rate`."""
    text_learning_rate: float | None = None
    """Peak learning rate of the text tower; None takes `learning_rate`."""
    projection_learning_rate: float | None = None
    """Peak learning rate of projections, scale and bias; None takes `learning_rate`."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after warm-up: cosine or linear to 0, or none."""
    warmup_steps: int = 0
    """Linear warm-up of each group, in steps from its thaw step."""
    decay_steps: int | None = None
    """Step at which all decays end; None takes `steps`. Set it if you may lengthen the run."""
    vision_thaw_step: int | None = 0
    """Step at which the vision tower starts to train; None keeps it frozen."""
    text_thaw_step: int | None = 0
    """Step at which the text tower starts to train; None keeps it frozen."""
    segments: Annotated[tuple[Segment, ...], FileOnly] = ()
    """Config file only: learning-rate segments that replace all rates and thaw steps above."""
    b1: Annotated[float, FileOnly] = 0.9
    """Config file only: decay of the first moment, per step."""
    b2: Annotated[float, FileOnly] = 0.999
    """Config file only: decay of the second moment, per step."""
    weight_decay: float = 0.0
    """Decoupled weight decay of kernels and embeddings (adamw only), times the learning rate."""
    agc_clip: float = 0.0
    """Adaptive gradient clipping: largest gradient norm over weight norm, per unit; 0 is off."""
    clip_norm: float = 0.0
    """Largest global norm of the moving groups' gradient; 0 is off."""
    layer_decay: Annotated[float, FileOnly] = 1.0
    """Config file only: factor on a tower's learning rate for each layer further from its top
    (ELECTRA, BEiT); 1 is off."""
    ema_decay: float = 0.0
    """Moving average of the parameters, per step; what is evaluated and exported then. 0 is off."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run: length, batch, devices, checkpoints and logs."""

    workdir: str = "runs/default"
    """Run folder: config, checkpoints, logs and pictures; may be remote (gs://...)."""
    steps: int = 1000
    """Optimizer steps of the whole run."""
    batch_size: int = 256
    """Pairs per step over all devices of all hosts."""
    micro_batch: int = 0
    """Pairs encoded at once over all devices, to save memory: the gradient is still that of the
    whole batch. 0 encodes all at once."""
    shard_params: bool = False
    """Keep each parameter and its moments on one device only, gathered for the step (mesh only)."""
    seed: int = 42
    """Seed of weights, data order, captions, augmentation and dropout."""
    parallel: Literal["mesh", "pmap"] = "mesh"
    """How a step runs on many devices: one jit over a device mesh, or pmap."""
    resume: Literal["auto", "never"] = "auto"
    """auto continues the run in `workdir` exactly; never refuses a workdir that has one."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    save_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Latest checkpoints to keep; the best one by `best_metric` is kept besides."""
    rewind: Annotated[bool, FileOnly] = False
    """Config file only: after a bad step or a spike go back and leave its examples out."""
    wandb: str = ""
    """Weights & Biases project to log to as well (extra wandb); empty is off."""
    compile_cache: str = "~/.cache/clip_italian/jax"
    """Folder of XLA's persistent compilation cache; empty turns it off."""


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation inside training: the validation split of every source, and named sets."""

    eval_every: int = 500
    """Steps between two evaluations; the last step is always evaluated."""
    eval_batch_size: int = 256
    """Rows per evaluation batch over all devices; the tail is padded and masked, never dropped."""
    eval_images: int = 0
    """Validation images per source, the first ones in record order; 0 takes all."""
    best_metric: str = "text_to_image/R@1"
    """Metric (higher is better) by which the best checkpoint is kept."""
    zero_shot: bool = False
    """Also classify validation images among all distinct captions (captions must be labels)."""
    eval_sets: tuple[str, ...] = ()
    """Further sets to evaluate on: mscoco_it_dev, imagenet, ... (docs/evaluation.md lists them)."""
    eval_dir: str = "eval"
    """Folder with the files of those sets, laid out as docs/evaluation.md says."""
    eval_language: Annotated[str, FileOnly] = "it"
    """Config file only: language of the captions of those sets, where a set has several."""
    class_names: Annotated[str, FileOnly] = "it"
    """Config file only: names and prompts of labelled sets: it, or a language pack's folder."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a CLIP for your language."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()


# Fields that may change when a run is resumed; all others are the run's identity.
FREE_FIELDS = frozenset({
    "workdir", "steps", "parallel", "resume", "log_every", "save_every", "keep_checkpoints",
    "compile_cache", "remat", "micro_batch", "shard_params", "wandb", "length_groups", "data_dir",
    "data_cache", "reader_threads", "prefetch", "eval_every", "eval_batch_size", "eval_images",
    "best_metric", "zero_shot", "eval_sets", "eval_dir", "eval_language", "class_names", "rewind",
})  # fmt: skip


def resolve(config: Config) -> Config:
    """Fills the fields whose default rests on another field, so that the run's file says all."""
    optim, data, rate = config.optim, config.data, config.optim.learning_rate
    if not optim.segments:
        own = (optim.vision_learning_rate, optim.text_learning_rate, optim.projection_learning_rate)
        vision, text, projection = (rate if value is None else value for value in own)
        optim = dataclasses.replace(
            optim,
            vision_learning_rate=vision,
            text_learning_rate=text,
            projection_learning_rate=projection,
            decay_steps=config.train.steps if optim.decay_steps is None else optim.decay_steps,
        )
    data = dataclasses.replace(data, weights=data.weights or (1.0,) * len(data.sources))
    model = config.model
    if model.init_from:
        model = dataclasses.replace(
            model,
            tokenizer=model.tokenizer or model.init_from,
            vision_tower="",
            text_tower="",
            vision_revision="",
            text_revision="",
        )
    scale, bias = (None, None) if model.init_from else (LOGIT_SCALE, LOGIT_BIAS)
    model = dataclasses.replace(
        model,
        tokenizer=model.tokenizer or model.text_tower,
        logit_scale=scale if model.logit_scale is None else model.logit_scale,
        logit_bias=bias if model.logit_bias is None else model.logit_bias,
    )
    return dataclasses.replace(config, optim=optim, data=data, model=model)


def leaves(config: Config) -> Iterator[tuple[str, Any]]:
    """All knobs as (name, value), in order of declaration; names are unique."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        for field in dataclasses.fields(part):
            yield field.name, getattr(part, field.name)


def identity(config: Config) -> dict[str, Any]:
    """The fields that must be equal for one run to continue another (model, data, order, optim)."""
    return {name: value for name, value in leaves(config) if name not in FREE_FIELDS}
