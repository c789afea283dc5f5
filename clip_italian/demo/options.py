"""Flags of `clip-italian index`."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """Embed pictures for the demo, or bring their index up to date.

    Only new and changed pictures are embedded, and what is gone is taken out. Stopped, it goes on
    when the same command is run again.
    """

    model: str
    """Run folder (newest checkpoint), RUN@STEP, RUN@best, exported folder or hub id."""
    images: str
    """Folder of JPEG, PNG and WebP files, or records as DATA_DIR/SOURCE[:SPLIT] (validation)."""
    index_dir: str = ""
    """Folder of the index; empty takes indexes/MODEL-IMAGES-FINGERPRINT."""
    approximate: bool = False
    """Add an approximate index if there are so many pictures that exact search is slow."""
    least_recall: float = 0.95
    """recall@10 against exact search that it must reach, of pictures and of texts as queries."""
    verify: bool = False
    """Only check the files of the index against their sums; nothing is written."""
    tokenizer: str = ""
    """Tokenizer of a run whose config names one that is not there; empty takes the config's."""
    batch_size: int = 64
    """Rows of an encoding batch, over all devices."""
