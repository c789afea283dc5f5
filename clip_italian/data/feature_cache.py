"""Encodes what frozen towers will see, once, and stores it beside the records."""

import contextlib
import io
import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from clip_italian.batch import TokenGroup
from clip_italian.config import ConfigError
from clip_italian.data import augment, derived, features
from clip_italian.data.features import Cached
from clip_italian.data.images import ImageError, image_views
from clip_italian.data.pipeline import Training, broken_reason, name_of

PoolImage = Callable[[np.ndarray], np.ndarray]  # uint8 [n, h, w, 3] → float [n, width]
PoolText = Callable[[TokenGroup], np.ndarray]  # int32 [n, length] → float [n, width]
_TEXT_AT_ONCE = 4 * features.BLOCK  # captions sorted by length together


def cached_images(training: Training, pool: PoolImage, tower: str) -> list[list[np.ndarray]]:
    """Features of every picture of every source, [source][view] → [records, width].

    Records that cannot be decoded are noted as broken in the selection of `training`.

    Args:
      training: what is encoded.
      pool: the vision tower, called with `eval_batch_size` pictures.
      tower: sha256 of its parameters.

    Raises:
      ConfigError: naming `cached_views`, `data_cache`; or `sources`: too many are broken.
    """
    config = training.config
    views = config.data.cached_views
    random = config.data.augment != "none" or config.data.flip
    if views > 1 and not random:
        raise ConfigError(
            f"cached_views = {views} is not allowed with augment = 'none' and no flip: all views "
            "of a picture would be equal; give 1, or an augmentation"
        )
    result = []
    for number, file in enumerate(training.sources):
        stored = []
        for view in range(views):
            facts = {
                "features": "image",
                "data": [file.fingerprint, file.split],
                "tower": [tower, config.model.vision_config, config.model.dtype],
                "pixels": [training.image_size, training.image_mean, training.image_std],
                "augment": [config.data.augment, config.data.flip],
                "view": [config.train.seed, view] if random else [],
            }
            name = f"{file.source}/{file.split}, view {view + 1} of {views}"

            def encode(
                first: int, folder: Path, bar: tqdm, number: int = number, view: int = view
            ) -> Iterator[np.ndarray]:
                return _pooled_images(training, number, view, pool, first, folder, bar)

            rows, broken = _stored(training, number, "image", facts, len(file), name, encode)
            _replace(training, number, broken)
            stored.append(rows)
        result.append(stored)
    training.found.check(sum(len(file) for file in training.sources))
    return result


def _replace(training: Training, number: int, broken: Sequence[int]) -> None:
    """Notes broken records of a source of which every record was read."""
    file = training.sources[number]
    sound = np.setdiff1d(np.arange(len(file)), broken)
    training.found.note_read(np.full(len(sound), number), sound)
    for record in broken:
        if training.selection.note_broken(number, record):
            reason = broken_reason(file, record) or "its features were not computed"
            training.found.note_broken(name_of(file, record), reason)


def cached_text(training: Training, pool: PoolText, tower: str) -> list[np.ndarray]:
    """Features of every caption of every source, [source] → [captions, width].

    Args:
      training: what is encoded.
      pool: the text tower, called with `eval_batch_size` captions.
      tower: sha256 of its parameters.
    """
    config, result = training.config, []
    for number, file in enumerate(training.sources):
        captions = training.selection.captions[number]
        facts = {
            "features": "text",
            "captions": captions.fingerprint,
            "tower": [tower, config.model.text_config, config.model.dtype],
        }

        def encode(
            first: int, folder: Path, bar: tqdm, number: int = number
        ) -> Iterator[np.ndarray]:
            return _pooled_text(training, number, pool, first, bar)

        name = f"{file.source}/{file.split}"
        rows, _ = _stored(training, number, "text", facts, len(captions), name, encode)
        result.append(rows)
    return result


def _stored(
    training: Training,
    number: int,
    kind: str,
    facts: dict[str, Any],
    rows: int,
    name: str,
    encode: Callable[[int, Path, tqdm], Iterator[np.ndarray]],
) -> tuple[np.ndarray, list[int]]:
    """Opens features, made first where they are missing; with the rows that are broken."""
    file, data = training.sources[number], training.config.data
    print_ = derived.fingerprint([features.FORMAT_VERSION, facts])
    folder_name = f"{kind}-{file.split}-{print_[:16]}"
    for place in derived.places(file.folder, data.data_cache, folder_name):
        if (found := features.open_features(place)) is not None:
            return found
    place = derived.writable_place(file.folder, data.data_cache, folder_name)
    with tqdm(total=rows, unit=f" {kind}s", desc=f"{kind} features of {name}") as bar:

        def rest(first: int) -> Iterator[np.ndarray]:
            bar.update(first)
            return encode(first, place, bar)

        facts = {"fingerprint": print_, **facts}
        features.write_features(place, facts, rows, training.config.model.dtype, rest)
    found = features.open_features(place)
    assert found is not None
    return found


def _pooled_images(
    training: Training,
    number: int,
    view: int,
    pool: PoolImage,
    first: int,
    folder: Path,
    bar: tqdm,
) -> Iterator[np.ndarray]:
    """Features of one view of the pictures from `first` on, a batch at a time."""
    file, data = training.sources[number], training.config.data
    count, rows = len(file), training.config.eval.eval_batch_size
    broken: set[int] = set()
    start = first
    while start < count:

        def read(step: int, start: int = start) -> tuple[np.ndarray, augment.Draws]:
            records = np.minimum(start + step * rows + np.arange(rows), count - 1)
            sound = np.array([record not in broken for record in records.tolist()])
            pictures = np.empty(rows, object)
            pictures[~sound] = _blank_record()
            pictures[sound] = file.read(records[sound])
            order = training.selection.order
            uniforms = order.view_uniforms(file.source, records, view, augment.NUM_UNIFORMS)
            return pictures, augment.draw(uniforms, data.flip)

        images = image_views(
            read,
            -(-(count - start) // rows),
            rows,
            augment=data.augment,
            image_size=training.image_size,
            threads=data.reader_threads,
        )
        try:
            with contextlib.closing(cast(Generator, images)):
                for pixels in images:
                    some = pool(pixels)[: count - start]
                    bar.update(len(some))
                    start += len(some)
                    yield some
        except ImageError:
            new = [
                (record, reason)
                for record in range(start, min(start + rows, count))
                if record not in broken and (reason := broken_reason(file, record)) is not None
            ]
            if not new:
                raise
            for record, reason in new:
                logging.warning("record %d of %s is left out: %s", record, file.source, reason)
                features.note_broken(folder, record)
                broken.add(record)


def _blank_record() -> bytes:
    """A record with a black picture, in place of one that cannot be decoded."""
    from clip_italian.data.records import Record, serialize_record

    jpeg = io.BytesIO()
    Image.new("RGB", (8, 8)).save(jpeg, "JPEG")
    return serialize_record(Record(jpeg.getvalue(), ("-",), "-", "-"))


def _pooled_text(
    training: Training, number: int, pool: PoolText, first: int, bar: tqdm
) -> Iterator[np.ndarray]:
    """Features of the captions from `first` on; similar lengths are encoded together."""
    captions, rows = training.selection.captions[number], training.config.eval.eval_batch_size
    widths = np.unique([*training.selection.plan.lengths, training.config.data.max_length])
    for start in range(first, len(captions), _TEXT_AT_ONCE):
        numbers = np.arange(start, min(start + _TEXT_AT_ONCE, len(captions)))
        lengths = captions.lengths(numbers)
        order = np.argsort(lengths, kind="stable")
        parts = []
        for part in np.split(order, range(rows, len(order), rows)):
            width = int(widths[np.searchsorted(widths, lengths[part[-1]])])
            full = np.resize(part, rows)  # repeats captions in a last batch
            pooled = pool(captions.tokens(numbers[full], width))
            parts.append(pooled[: len(part)])
            bar.update(len(part))
        result = np.empty((len(order), parts[0].shape[1]), parts[0].dtype)
        result[order] = np.concatenate(parts)
        yield result


def make_cached(
    training: Training,
    *,
    pool_image: PoolImage,
    pool_text: PoolText,
    frozen_until: Mapping[str, int | None],
    fingerprints: Mapping[str, str],
    first_step: int,
) -> Cached:
    """Features of every tower that has steps from `first_step` on in which it does not move."""
    images_until, text_until = frozen_until["vision"], frozen_until["text"]
    images: list[list[np.ndarray]] = []
    text: list[np.ndarray] = []
    if images_until is None or first_step < images_until:
        images = cached_images(training, pool_image, fingerprints["vision"])
    if text_until is None or first_step < text_until:
        text = cached_text(training, pool_text, fingerprints["text"])
    return Cached(images, images_until, text, text_until, training.selection.order)
