"""The validation data of one source: fixed order, every image, every caption, nothing dropped."""

from collections.abc import Iterator, Sequence

import numpy as np

from clip_italian.batch import Batch, ImageBatch, TextBatch, TokenGroup
from clip_italian.config import Config
from clip_italian.data.pipeline import centre_crops
from clip_italian.data.records import hash_words, parse_record
from clip_italian.data.shards import RecordFile
from clip_italian.data.tokens import Tokenizer, encode

_READ = 256  # records read at once while collecting captions


class EvaluationSet:
    """Validation images and captions of one source, in record order.

    Attributes:
      name: of the source.
      captions: all captions, those of one image side by side.
      caption_image: int32 [captions], index of each caption's image.
      image_keys: "source/image_id" of each image.
      num_images: number of images.
    """

    def __init__(
        self,
        config: Config,
        source: RecordFile,
        tokenizer: Tokenizer,
        image_size: int,
    ) -> None:
        """Reads all captions once.

        Args:
          config: resolved; `eval_images` limits the images.
          source: a validation split.
          tokenizer: the text tower's.
          image_size: side of `pixel_values`, pixels.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._source = source
        self.name = source.source
        self.num_images = min(len(source), config.eval.eval_images or len(source))
        self.captions: list[str] = []
        self.image_keys: list[str] = []
        caption_image: list[int] = []
        for start in range(0, self.num_images, _READ):
            for data in source.read(np.arange(start, min(start + _READ, self.num_images))):
                record = parse_record(data)
                caption_image += [len(self.image_keys)] * len(record.captions)
                self.captions += record.captions
                self.image_keys.append(f"{record.source}/{record.image_id}")
        self.caption_image = np.array(caption_image, np.int32)

    def image_batches(self) -> Iterator[ImageBatch]:
        """Every image once, in order, `eval_batch_size` rows a batch; padding rows are zero."""
        rows = self._config.eval.eval_batch_size
        for pixels in self._pixels(np.arange(self.num_images), self._image_size, rows):
            yield ImageBatch(pad_rows(pixels, rows), np.arange(rows) < len(pixels))

    def text_batches(self) -> Iterator[TextBatch]:
        """Every caption once, in order, `eval_batch_size` rows a batch; padding repeats row 0."""
        rows = self._config.eval.eval_batch_size
        for start in range(0, len(self.captions), rows):
            texts = self.captions[start : start + rows]
            yield TextBatch(self._encode(texts, rows), np.arange(rows) < len(texts))

    def loss_batches(self) -> Iterator[tuple[Batch, np.ndarray]]:
        """Every image once with its first caption: batches of `eval_batch_size` rows and masks.

        The mask (bool [rows]) is False on padding rows, which count neither as pairs nor as
        negatives.
        """
        rows = self._config.eval.eval_batch_size
        first = np.searchsorted(self.caption_image, np.arange(self.num_images))
        for number, images in enumerate(self.image_batches()):
            chosen = range(number * rows, min((number + 1) * rows, self.num_images))
            texts = [self.captions[first[image]] for image in chosen]
            keys = [hash_words(self.image_keys[image]) for image in chosen]
            batch = Batch(
                text=(self._encode(texts, rows),),
                image_id=pad_rows(np.array(keys, np.int32), rows),
                caption_id=pad_rows(np.array([hash_words(t) for t in texts], np.int32), rows),
                pixel_values=images.pixel_values,
            )
            yield batch, images.mask

    def thumbnails(self, indices: Sequence[int] | np.ndarray, size: int = 128) -> np.ndarray:
        """uint8 [n, size, size, 3]: these images, for pictures; repeats are welcome."""
        numbers = np.asarray(indices, np.int64)
        batches = list(self._pixels(numbers, size, max(len(numbers), 1)))
        return batches[0] if batches else np.zeros((0, size, size, 3), np.uint8)

    def _pixels(self, images: np.ndarray, size: int, rows: int) -> Iterator[np.ndarray]:
        threads = self._config.data.reader_threads
        return centre_crops(
            lambda n: self._source.read(images[n]), len(images), size, rows, threads
        )

    def _encode(self, texts: Sequence[str], rows: int) -> TokenGroup:
        # A repeated row keeps padding finite: a row without any token has no softmax.
        padded = [*texts, *[texts[0]] * (rows - len(texts))]
        return encode(self._tokenizer, padded, self._config.data.max_length)


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Appends zero rows up to `rows`."""
    missing = rows - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
