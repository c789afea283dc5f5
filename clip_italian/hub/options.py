"""Flags of `clip-italian export`."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Export:
    """Export a model as a folder that others can load, check it, and push it to the hub."""

    model: str
    """What to export: run folder (newest checkpoint), RUN@best, RUN@STEP, or folder or hub id of a
    VisionTextDualEncoder (clip-italian/clip-italian, ...). Without `out_dir`: the exported folder
    to push."""
    out_dir: str = ""
    """New folder to write: a complete hub repository. Empty writes nothing, to push `model` as it
    is."""
    report: str = ""
    """Evaluation report for the card: folder, or FOLDER#MODEL where it has several models; empty
    takes the run's own, where it is of the same step."""
    verify: Literal["flax", "torch", "none"] = "flax"
    """Load the folder again and compare it with the model: in JAX, in PyTorch as well (extra
    torch), or not at all."""
    verify_set: str = ""
    """Pictures with captions to compare on, as `--sets` of evaluate names them; empty takes the
    validation pictures of the run's first source."""
    verify_pictures: int = 64
    """How many pictures of it, each with its first caption."""
    data_dir: str = ""
    """Folder of the records of `verify_set`; empty takes the run's."""
    eval_dir: str = "eval"
    """Folder with the files of protocols, for `verify_set`."""
    sentence_transformers: bool = False
    """Add what sentence-transformers 6 needs to encode pictures and texts."""
    onnx: bool = False
    """Add two ONNX graphs, checked with onnxruntime (extras torch and onnx)."""
    open_clip: str = ""
    """Add open_clip's format, where it can carry the model exactly (CLIP vision tower; BERT,
    RoBERTa or XLM-R): hub id that the text tower's configuration comes from."""
    language: str = "it"
    """Language of the captions, for the card (BCP 47)."""
    license: str = ""
    """Licence of the weights, as the hub names it (cc-by-4.0, ...); empty says that it is not
    known."""
    datasets: tuple[str, ...] = ()
    """Training data sets, for the card; empty takes the run's sources."""
    hardware: str = ""
    """Hardware the model was trained on, for the card."""
    tokenizer: str = ""
    """Tokenizer of a run whose config names one that is not there; empty takes the config's."""
    push_to_hub: str = ""
    """Hub repository OWNER/NAME to push the folder to, made if there is none. The token comes from
    `hf auth login` or HF_TOKEN."""
    public: bool = False
    """Make the repository public; it is private otherwise."""
    tag: str = ""
    """Tag to set on the commit."""
    dry_run: bool = False
    """List the files and sizes that a push would send, and push nothing."""
