"""A whole model to start from: transformers' VisionTextDualEncoder, or the HybridCLIP of 2021.

Both name their parts alike (`vision_model`, `text_model`, the two projections, `logit_scale`); they
differ in what the scale means.
"""

import dataclasses
import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.model import weights

_log = logging.getLogger(__name__)

FIELD = "init_from"
_HYBRID_SCALE = 20.0  # of the paper, multiplied raw; the published weights do not hold it
# A log above CLIP's clamp (log 100 = 4.6) is none: 2021's code multiplied by it raw.
_LARGEST_LOG = 5.0


@dataclasses.dataclass(frozen=True)
class DualEncoder:
    """What the files of a whole model say, weights aside.

    Attributes:
      name: local folder, hub id, or hub id@revision.
      vision: configuration of the vision tower, with its `model_type`.
      text: configuration of the text tower, likewise.
      processor: preprocessor_config.json; may be empty.
      projection_dim: width of the shared space.
      logit_bias: of a model trained with the sigmoid loss, else None.
      default_scale: log of the similarity scale, for weights that lack it.
    """

    name: str
    vision: dict[str, Any]
    text: dict[str, Any]
    processor: dict[str, Any]
    projection_dim: int
    logit_bias: float | None
    default_scale: float


def describe(name: str, *, field: str = FIELD) -> DualEncoder:
    """Reads the description of a whole model in a local folder or on the hub.

    Args:
      name: local folder, hub id, or hub id@revision.
      field: what `name` comes from, for messages.

    Raises:
      ConfigError: it cannot be reached, or is no such model.
    """
    config = _read_json(name, "config.json", field)
    if config is None:
        raise ConfigError(f"{field} = {name!r} holds no config.json: name an exported folder")
    kind = config.get("model_type")
    if kind not in _KINDS or not {"vision_config", "text_config"} <= set(config):
        raise ConfigError(
            f"{field} = {name!r} is a {kind!r}; give one of {', '.join(_KINDS)}, for example a "
            "folder that `clip-italian export` wrote"
        )
    vision, text = dict(config["vision_config"]), dict(config["text_config"])
    if kind == _HYBRID and "roberta" in str(text.get("model_type")):
        raise ConfigError(
            f"{field} = {name!r}: a HybridCLIP of 2021 with a RoBERTa counted positions from 0, "
            "which no class of today does; its text embeddings would be others"
        )
    place, revision = _place(name)
    processor = weights.read_processor(place, revision=revision, field=field)
    _warn_of_other_pictures(name, processor)
    vision.setdefault("model_type", "clip_vision_model")  # what HybridCLIP took when none was named
    default = math.log(_HYBRID_SCALE) if kind == _HYBRID else config.get("logit_scale_init_value")
    bias = config.get("logit_bias")
    return DualEncoder(
        name,
        vision,
        text,
        processor,
        int(config.get("projection_dim", 512)),
        None if bias is None else float(bias),
        2.6592 if default is None else float(default),
    )


def _warn_of_other_pictures(name: str, processor: dict[str, Any]) -> None:
    """Here every picture's shorter side is resized, bicubic, and its centre cut out."""
    size = processor.get("size", {})
    other = {
        "size": isinstance(size, dict) and "height" in size,  # squashes
        "size and crop_size": isinstance(size, dict)
        and isinstance(processor.get("crop_size"), dict)
        and size.get("shortest_edge") not in (None, processor["crop_size"].get("height")),
        "resample": processor.get("resample", 3) != 3,
        "do_center_crop": not processor.get("do_center_crop", True),
    }
    fields = [field for field, differs in other.items() if differs]
    if fields:
        _log.warning(
            "%s reads pictures in another way (%s of its image processor): here the shorter side "
            "is resized, bicubic, and the centre cut out, so that embeddings differ a little",
            name, ", ".join(fields),
        )  # fmt: skip


def arrays_of(whole: DualEncoder) -> weights.Arrays:
    """All arrays of a whole model as they are stored, the scale as a log of shape ().

    Raises:
      ConfigError: there are none, or the scale is no scale.
    """
    name, revision = _place(whole.name)
    arrays = weights.read_arrays(name, revision=revision, field=FIELD)
    scale = arrays.pop("logit_scale", None)
    if scale is None:
        value = whole.default_scale
        _log.warning(
            "%s has no weights for logit_scale: %.4g is taken, a factor of %.4g",
            whole.name, value, math.exp(value),
        )  # fmt: skip
    elif scale.size != 1 or not np.isfinite(scale).all():
        raise ConfigError(f"{FIELD} = {whole.name!r}: logit_scale is {scale!r}, not one number")
    else:
        value = float(scale.reshape(()))
        if value > _LARGEST_LOG:
            _log.warning(
                "%s: logit_scale = %.4g is taken as a plain factor, not a log", whole.name, value
            )
            value = math.log(value)
    arrays["logit_scale"] = np.asarray(value, np.float32)
    if whole.logit_bias is not None:
        arrays["logit_bias"] = np.asarray(whole.logit_bias, np.float32)
    return arrays


def _place(name: str) -> tuple[str, str]:
    """Folder or hub id, and the revision on the hub."""
    if Path(name).is_dir():
        return name, ""
    place, _, revision = name.partition("@")
    return place, revision


def _read_json(name: str, filename: str, field: str) -> dict[str, Any] | None:
    place, revision = _place(name)
    path = weights.find_file(place, filename, revision=revision, field=field)
    if path is None:
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{field} = {name!r}: {filename} is no JSON ({error})") from error


_HYBRID = "hybrid-clip"
_KINDS = ("vision-text-dual-encoder", _HYBRID)
