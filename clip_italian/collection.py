"""The Collection contract: what is evaluated, before any model has seen it.

The data room makes collections from records and TFDS, the evaluation room from the files of a
protocol; every encoder reads them.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

ReadImages = Callable[[np.ndarray], list[bytes]]  # int64 [n] → encoded images (JPEG, PNG, WebP)


@dataclasses.dataclass(frozen=True)
class Collection:
    """Images with captions, with class labels, or with both.

    Attributes:
      name: short and fit for a file name, e.g. "xm3600_it_p1".
      protocol: how it was made, e.g. "xm3600_p1", "records_validation", "folder".
      image_keys: one for each image, all different: what the source calls the image.
      read: gives encoded images; may be called from several threads.
      fingerprint: sha256 (hex) over images, keys, captions and labels: equal means equal data.
      captions: those of one image side by side, in the order of the images; may be empty.
      caption_image: int32 [captions], index of each caption's image, never falling.
      labels: int32 [images], index into `class_ids`, or None without classes.
      class_ids: what the source calls the classes (a WordNet id, a folder's name).
      checksums: sha256 (hex) of each encoded image, or () where nobody has read them all.
      language: of the captions, as a BCP 47 tag.
    """

    name: str
    protocol: str
    image_keys: Sequence[str]
    read: ReadImages
    fingerprint: str
    captions: Sequence[str] = ()
    caption_image: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    labels: np.ndarray | None = None
    class_ids: Sequence[str] = ()
    checksums: Sequence[str] = ()
    language: str = "it"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_keys)
