"""A collection as batches for a model: fixed order, every image, every caption, nothing dropped."""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from clip_italian.batch import Batch, ImageBatch, TextBatch, TokenGroup
from clip_italian.collection import Collection
from clip_italian.config import Config
from clip_italian.data.images import centre_crops
from clip_italian.data.records import hash_words
from clip_italian.data.tokens import Tokenizer, pad_ragged, ragged_encoder

_MULTIPLE = 8  # to which lengths are rounded up, so that few programs are compiled


class EvaluationSet:
    """Images, captions and labels of one collection, in its order.

    Attributes:
      collection: what it is made of; the attributes below are its own.
      name: of the collection.
      captions: all captions, those of one image side by side.
      caption_image: int32 [captions], index of each caption's image.
      image_keys: what the source calls each image.
      num_images: number of images.
      labels: int32 [images], index into `class_ids`, or None.
      class_ids: what the source calls the classes.
    """

    def __init__(
        self,
        config: Config,
        collection: Collection,
        tokenizer: Tokenizer,
        image_size: int,
    ) -> None:
        """Reads nothing yet.

        Args:
          config: resolved; its `eval_batch_size`, `max_length` and `reader_threads` are used.
          collection: what to encode.
          tokenizer: the text tower's.
          image_size: side of `pixel_values`, pixels.
        """
        self._config = config
        self._tokenizer = tokenizer
        self._image_size = image_size
        self.collection = collection
        self.name = collection.name
        self.captions = collection.captions
        self.caption_image = collection.caption_image
        self.image_keys = collection.image_keys
        self.num_images = len(collection)
        self.labels = collection.labels
        self.class_ids = collection.class_ids

    def image_batches(self) -> Iterator[ImageBatch]:
        """Every image once, in order, `eval_batch_size` rows a batch; padding rows are zero."""
        rows = self._config.eval.eval_batch_size
        for pixels in self._pixels(np.arange(self.num_images), self._image_size, rows):
            yield ImageBatch(pad_rows(pixels, rows), np.arange(rows) < len(pixels))

    def text_batches(self) -> Iterator[TextBatch]:
        """Every caption once, in order, `eval_batch_size` rows a batch; padding repeats row 0.

        All batches are as long as the longest caption needs, rounded up.
        """
        return self._text_batches(self._tokens)

    def batches_of(self, texts: Sequence[str]) -> Iterator[TextBatch]:
        """Any texts, e.g. prompts, likewise; they are as long as these texts need."""
        return self._text_batches(_Tokens(self._tokenizer, texts, self._config.data.max_length))

    @functools.cached_property
    def _tokens(self) -> "_Tokens":
        return _Tokens(self._tokenizer, self.captions, self._config.data.max_length)

    def _text_batches(self, tokens: "_Tokens") -> Iterator[TextBatch]:
        rows = self._config.eval.eval_batch_size
        for start in range(0, len(tokens), rows):
            some = np.arange(start, min(start + rows, len(tokens)))
            yield TextBatch(tokens.group(some, rows), np.arange(rows) < len(some))

    def loss_batches(self) -> Iterator[tuple[Batch, np.ndarray]]:
        """Every image once with its first caption: batches of `eval_batch_size` rows and masks.

        The mask (bool [rows]) is False on padding rows, which count neither as pairs nor as
        negatives. Raises `ValueError` if an image has no caption.
        """
        rows = self._config.eval.eval_batch_size
        captioned, first = np.unique(self.caption_image, return_index=True)
        if len(captioned) != self.num_images:
            raise ValueError(
                f"{self.name}: {len(captioned)} of {self.num_images} images have captions; "
                "a loss needs one for each"
            )
        for number, images in enumerate(self.image_batches()):
            chosen = range(number * rows, min((number + 1) * rows, self.num_images))
            texts = [self.captions[int(first[image])] for image in chosen]
            keys = [hash_words(self.image_keys[image]) for image in chosen]
            batch = Batch(
                text=(self._tokens.group(first[list(chosen)], rows),),
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
        names = [self.image_keys[image] for image in map(int, images)]
        threads = self._config.data.reader_threads
        return centre_crops(lambda n: self.collection.read(images[n]), names, size, rows, threads)


class _Tokens:
    """Texts as token ids, each padded to what the longest of them needs."""

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> None:
        self._tokenizer = tokenizer
        self._ids, self._lengths = ragged_encoder(tokenizer, max_length)(texts)
        longest = int(self._lengths.max(initial=1))
        self._width = min(max_length, -(-longest // _MULTIPLE) * _MULTIPLE)
        self._starts = np.cumsum(self._lengths) - self._lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def group(self, texts: np.ndarray, rows: int) -> TokenGroup:
        """These texts and, up to `rows`, the first of them again."""
        # A repeated row keeps padding finite: a row without any token has no softmax.
        some = np.append(texts, np.full(rows - len(texts), texts[0]))
        starts, lengths = self._starts[some], self._lengths[some]
        return pad_ragged(self._ids, starts, lengths, self._width, self._tokenizer)


def pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Appends zero rows up to `rows`."""
    missing = rows - len(array)
    return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) if missing else array
