"""Files of a checkpoint, from a local folder or the Hugging Face hub; no torch, no transformers.

Arrays are kept in a flat dict, their names joined with dots as PyTorch does:
`encoder.layer.0.output.dense.weight` there, `encoder.layer.0.output.dense.kernel` in Flax.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from huggingface_hub import hf_hub_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open

from clip_italian.config import ConfigError
from clip_italian.model import open_clip_layout

_log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def find_file(name: str, filename: str, *, revision: str, field: str) -> Path | None:
    """A file of a local folder or of a hub repository, fetched if need be; None if it has none.

    Args:
      name: local folder or hub id.
      filename: for example "config.json".
      revision: branch, tag or commit on the hub; empty takes the default branch.
      field: config field that `name` comes from, for the error message.

    Raises:
      ConfigError: `name` is neither a folder nor a repository that can be reached.
    """
    if Path(name).is_dir():
        path = Path(name, filename)
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name, filename, revision=revision or None))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        cause = error
    except EntryNotFoundError:
        return None
    except OSError as error:  # no such repository or revision, no access, no network
        cause = error
    raise ConfigError(
        f"{field} = {name!r} is no folder here, and {filename} cannot be fetched from the hub "
        f"(revision {revision or 'default'}): {cause}"
    ) from cause


def read_description(name: str, revision: str, side: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """config.json of a tower ("vision" or "text") and, for images, preprocessor_config.json.

    The latter is empty where there is none. A vision tower may be of open_clip: its
    open_clip_config.json is translated. Raises `ConfigError` without either.
    """
    place = {"revision": revision, "field": f"{side}_tower"}
    open_clip = _read_open_clip(name, **place)
    if open_clip is not None:
        return open_clip_layout.describe(open_clip), {}
    config = _read_json(name, "config.json", **place)
    if config is None:
        raise ConfigError(f"{side}_tower = {name!r} holds no config.json")
    if side == "text":
        return config, {}
    return config, read_processor(name, **place)


def read_processor(name: str, *, revision: str, field: str) -> dict[str, Any]:
    """What a checkpoint says of its pictures; empty, with a warning, where it says nothing.

    transformers 5 writes processor_config.json alone for a model of pictures and texts.
    """
    place = {"revision": revision, "field": field}
    try:
        found = _read_json(name, "preprocessor_config.json", **place)
        if found is None:
            found = (_read_json(name, "processor_config.json", **place) or {}).get(
                "image_processor"
            )
    except ConfigError:
        if not HF_HUB_OFFLINE:
            raise
        found = None  # the cache does not know whether the hub has one
    if found is None:
        _log.warning("%s has no preprocessor_config.json: its kind's mean and std are taken", name)
    return found or {}


def _read_json(name: str, filename: str, *, revision: str, field: str) -> dict[str, Any] | None:
    path = find_file(name, filename, revision=revision, field=field)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def _read_open_clip(name: str, *, revision: str, field: str) -> dict[str, Any] | None:
    """open_clip_config.json of a vision tower that has no config.json of transformers'.

    timm's repositories hold a config.json, too, but of timm: it names no model_type.
    """
    if field != "vision_tower":
        return None
    config = _read_json(name, "config.json", revision=revision, field=field)
    if config is not None and "model_type" in config:
        return None
    return _read_json(name, "open_clip_config.json", revision=revision, field=field)


def read_arrays(name: str, *, revision: str, field: str) -> Arrays:
    """All arrays of a checkpoint (float32), in the layout in which they are stored.

    Looks for model.safetensors, then flax_model.msgpack, then pytorch_model.bin (needs torch).

    Raises:
      ConfigError: none of them is there, or torch is wanted and missing.
    """
    if _read_open_clip(name, revision=revision, field=field) is not None:
        arrays = _first(name, _OPEN_CLIP_READERS, revision, field)
        return open_clip_layout.vision_arrays(arrays)
    return _first(name, _READERS, revision, field)


def _first(
    name: str, readers: Mapping[str, Callable[[Path, str], Arrays]], revision: str, field: str
) -> Arrays:
    """The arrays of the first file that is there."""
    unreachable: ConfigError | None = None
    for filename, reader in readers.items():
        try:
            path = find_file(name, filename, revision=revision, field=field)
        except ConfigError as error:  # offline: another of the files may be in the cache
            unreachable = unreachable or error
            continue
        if path is not None:
            return {key: _float32(value) for key, value in reader(path, field).items()}
    raise unreachable or ConfigError(
        f"{field} = {name!r} holds no weights; looked for {', '.join(readers)} "
        "(checkpoints in several files are not read: save the model as one file)"
    )


def _float32(array: np.ndarray) -> np.ndarray:
    # Position buffers are integers; every weight is some kind of float, bfloat16 included.
    return array if np.issubdtype(array.dtype, np.integer) else np.asarray(array, np.float32)


def _read_safetensors(path: Path, field: str) -> Arrays:
    del field
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)


def _read_msgpack(path: Path, field: str) -> Arrays:
    del field
    tree: Any = msgpack_restore(path.read_bytes())
    flat: dict[str, Any] = flatten_dict(tree.get("params", tree), sep=".")
    return flat


def _read_torch(path: Path, field: str) -> Arrays:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"{field}: only {path.name} was found in {path.parent}, which needs PyTorch: install "
            "the extra (pip install 'clip-italian[torch]') or convert it to model.safetensors"
        ) from error
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value.float().numpy() for key, value in state.items()}


def select(arrays: Arrays, prefixes: Collection[str], heads: Collection[str], name: str) -> Arrays:
    """The arrays of one tower out of a checkpoint that may hold more; logs what is left out.

    Args:
      arrays: all arrays of the checkpoint.
      prefixes: names under which larger models hold the tower ("bert", "vit"), taken off.
      heads: first parts of the names to keep ("embeddings", "encoder", "pooler").
      name: the checkpoint's, for the log.
    """
    kept, left_out = {}, Counter()
    prefix = next((p for p in prefixes if any(key.startswith(p + ".") for key in arrays)), "")
    for key, value in arrays.items():
        inside = key.removeprefix(prefix + ".") if prefix else key
        belongs = not prefix or inside != key
        if belongs and inside.partition(".")[0] in heads:
            kept[inside] = value
        else:
            left_out[key.partition(".")[0]] += 1
    if left_out:
        parts = ", ".join(f"{part} ({count})" for part, count in sorted(left_out.items()))
        _log.info("%s: arrays not used, by first part of their name: %s", name, parts)
    return kept


def match(
    arrays: Arrays, shapes: Mapping[str, Any], may_lack: Collection[str], *, name: str, field: str
) -> Arrays:
    """The arrays that the tower wants, checked; those of `may_lack` may be missing.

    Args:
      arrays: the checkpoint's, with Flax names.
      shapes: name → object with the `shape` that the tower wants.
      may_lack: first parts of names that start random, with a warning, where they are missing.
      name: the checkpoint's.
      field: config field that `name` comes from.

    Raises:
      ConfigError: a needed array is missing or has another shape; the message names each.
    """
    missing = sorted(key for key in shapes if key not in arrays)
    needed = [key for key in missing if key.partition(".")[0] not in may_lack]
    if needed:
        raise ConfigError(f"{field} = {name!r} lacks the weights {', '.join(needed)}")
    wrong = [
        f"{key} is {arrays[key].shape}, not {shape.shape}"
        for key, shape in shapes.items()
        if key in arrays and arrays[key].shape != shape.shape
    ]
    if wrong:
        raise ConfigError(
            f"{field} = {name!r}: the weights do not fit the configuration: {'; '.join(wrong)}"
        )
    if missing:
        _log.warning(
            "%s = %r has NO WEIGHTS for %s. They start RANDOM and feed every embedding: "
            "the tower must be trained before it is of use.",
            field, name, ", ".join(missing),
        )  # fmt: skip
    extra = sorted(key for key in arrays if key not in shapes)
    if extra:
        _log.info("%s: arrays not used: %s", name, ", ".join(extra))
    return {key: arrays[key] for key in shapes if key in arrays}


_READERS = {
    "model.safetensors": _read_safetensors,
    "flax_model.msgpack": _read_msgpack,
    "pytorch_model.bin": _read_torch,
}
_OPEN_CLIP_READERS = {
    "open_clip_model.safetensors": _read_safetensors,
    "open_clip_pytorch_model.bin": _read_torch,
}
