"""Flags of `clip-italian evaluate` and `clip-italian compare`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluate models on sets, side by side: retrieval, zero-shot, probes, with intervals."""

    models: tuple[str, ...]
    """Models (LABEL= before one is what the report calls it), the first being what others are
    compared with: a run folder (newest checkpoint), RUN@STEP, RUN@best, mclip,
    hf:NAME_OR_FOLDER (CLIP, SigLIP, VisionTextDualEncoder), st:IMAGES+TEXTS
    (sentence-transformers), open_clip:ARCH/PRETRAINED, or translate:MODEL, whose texts go through
    `translator` first."""
    sets: tuple[str, ...]
    """Sets: mscoco_it_dev_unvalidated, mscoco_it_dev, mscoco_it_test, xtd10, xtd10_clean,
    xm3600_p1, xm3600_p2, imagenet, contrast, records:SOURCE[:SPLIT], folder:PATH, jsonl:FILE,
    tfds:NAME[:SPLIT]; LABEL= before one is what the report calls it (docs/evaluation.md)."""
    out_dir: str = "reports/latest"
    """Folder for report.json, report.md, report.html and items.npz."""
    eval_dir: str = "eval"
    """Folder with the files of the protocols, laid out as docs/evaluation.md says."""
    data_dir: str = "data"
    """Folder of the records that `records:SOURCE` names."""
    language: str = "it"
    """Language of the captions, where a set has several (xm3600)."""
    class_names: tuple[str, ...] = ("it",)
    """Class names and prompts: it, or folders of language packs; each labelled set takes the
    first that knows all of its classes."""
    legacy_names: str = ""
    """File with published class names, evaluated beside `class_names` with the template {}."""
    legacy_key: str = ""
    """Field of the names where that file holds JSON objects."""
    caption_labels: bool = False
    """Captions of the sets are class labels: classify among the distinct ones as well."""
    probe_train: tuple[str, ...] = ()
    """Labelled sets whose images train a linear probe and a k-NN for the labelled sets with the
    same classes (extra eval)."""
    translator: str = ""
    """Marian model of `translate:MODEL`: hub id or local folder; empty takes
    Helsinki-NLP/opus-mt-LANGUAGE-en."""
    tokenizer: str = ""
    """Tokenizer of a run whose config names one that is not there; empty takes the config's."""
    batch_size: int = 64
    """Rows of an encoding batch, over all devices."""
    resamples: int = 2000
    """Bootstrap samples of the 95% intervals and of the paired tests."""
    examples: int = 6
    """Best and worst queries of each retrieval set shown on the page; 0 shows none."""
    cache_dir: str = "~/.cache/clip_italian/embeddings"
    """Folder that keeps embeddings by model and data; empty keeps none."""


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare reports of two models on the same data, or seeds of one model."""

    a: tuple[str, ...]
    """Report folders of one model, one for each seed; FOLDER#MODEL where a report has several."""
    b: tuple[str, ...] = ()
    """Report folders of the other model; empty only sums up the seeds of a."""
    out_dir: str = ""
    """Folder for a report of both, with a page; empty only prints."""
    resamples: int = 2000
    """Bootstrap samples and permutations."""
