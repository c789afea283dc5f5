"""The flags that all sources share; `wit.py` and its neighbours hold those of one source."""

import dataclasses
from typing import Literal

from data_prep.download import DownloadOptions
from data_prep.filters import TextFilters
from data_prep.images import ImageFilters
from data_prep.translate import TranslateOptions


@dataclasses.dataclass(frozen=True)
class DecideOptions:
    """What is decided over the whole set: repetitions, evaluation pictures, the split."""

    max_repeats: int = 0
    """Drop a caption that belongs to more than this many pictures ("Panorama"); 0 keeps all."""
    near_duplicates: int = 3
    """Bits (0 to 3 of 64) in which hashes of near-equal pictures may differ; -1 keeps them all."""
    guard_pictures: tuple[str, ...] = ()
    """Evaluation pictures that must not be in training: folders of pictures, or of records."""
    guard_ids: tuple[str, ...] = ()
    """Files of image ids that must not be in training: COCO JSON, JSON lines, or an id a line."""
    validation_share: float = 0.05
    """Share of pictures for validation, by a hash of the picture, where a row names no split."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Where records go and how the work is done."""

    out_dir: str = "data"
    """Folder of all sources; this one is written to `<out_dir>/<source>`; may be remote (gs://)."""
    source: str = ""
    """Name of the source: lower-case letters, digits, underscores; empty takes the usual one."""
    root: str = "."
    """Folder that image paths are relative to and must stay within."""
    work_dir: str = ""
    """Folder of finished shards, from which a stopped run goes on; shared by all nodes of a
    cluster; empty takes `<out_dir>/.<source>.work`."""
    final_stop: Literal["keep", "drop"] = "keep"
    """Whether the full stop that ends a caption stays (the paper's captions have none)."""
    tokenizer: str = ""
    """Tokenizer (hub id or folder) for the card's caption lengths; empty counts words."""
    title: str = ""
    """Title of the data card; empty takes the name of the source."""
    max_bad_pictures: float = 0.05
    """Stop when more than this share of the local pictures (at least ten) are no usable files;
    on the web such files are daily bread."""
    retry_failed: bool = False
    """Try again what failed in a way that may pass (time-outs, 429, 5xx, all local files that were
    missing or broken); all else is kept."""
    rows_per_shard: int = 1000
    """Rows of one unit of work: what at most is done again after a stop."""
    workers: int = 0
    """Processes on this machine; 0 takes one per core. The records do not depend on it."""
    ray_address: str = ""
    """Address of a Ray cluster (`auto`, host:port); empty starts Ray on this machine."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """All flags that every source shares, by step.

    Attributes:
      text: filters of captions.
      images: filters of pictures.
      download: how URLs are fetched.
      decide: decisions over the whole set.
      translate: translation of captions.
      run: where and how.
    """

    text: TextFilters = dataclasses.field(default_factory=TextFilters)
    images: ImageFilters = dataclasses.field(default_factory=ImageFilters)
    download: DownloadOptions = dataclasses.field(default_factory=DownloadOptions)
    decide: DecideOptions = dataclasses.field(default_factory=DecideOptions)
    translate: TranslateOptions = dataclasses.field(default_factory=TranslateOptions)
    run: Options = dataclasses.field(default_factory=Options)
