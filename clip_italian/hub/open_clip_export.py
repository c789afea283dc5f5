"""A hybrid CLIP in open_clip's format, without torch and without open_clip.

open_clip builds the text tower from the configuration of another repository on the hub
(`hf_model_name`), never from this folder's. So the format carries a model exactly when its vision
tower is a CLIP and its text tower a BERT, RoBERTa or XLM-R that the hub describes as it is.

Two things are the reader's: open_clip returns models in training mode (call `eval()`), and its
tokenizer repairs text before reading it (’ becomes ', HTML entities, runs of spaces).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors.numpy import save_file
from transformers import AutoConfig

from clip_italian.config import ConfigError
from clip_italian.data.tokens import Tokenizer
from clip_italian.model.architectures import check_agreement
from clip_italian.model.model import Model
from clip_italian.model.open_clip_layout import open_clip_arrays, open_clip_vision

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_TEXT = ("bert", "roberta", "xlm-roberta")


def open_clip_config(
    model: Model, tokenizer: Tokenizer, *, text_tower: str, tokenizer_name: str, max_length: int
) -> dict[str, Any]:
    """Content of open_clip_config.json; says before anything is written whether it can be.

    Args:
      model: its towers.
      tokenizer: of the text tower.
      text_tower: hub id whose configuration describes the text tower; its default branch counts.
      tokenizer_name: hub id of the tokenizer: the one that this folder will have, or the one that
        the tokenizer came from. Read from the hub alone: `local-dir:` takes the folder's own.
      max_length: tokens of a caption, special tokens included.

    Raises:
      ConfigError: the format cannot carry this model exactly; the message says why.
    """
    if model.vision_config.model_type != "clip_vision_model":
        _refuse(
            f"vision tower {model.vision_config.model_type!r}",
            "its vision transformer projects the first token as it is, which only CLIP towers do",
        )
    if model.text_config.model_type not in _TEXT:
        _refuse(
            f"text tower {model.text_config.model_type!r}",
            f"it reads only towers with a pooled output ({', '.join(_TEXT)})",
        )
    if tokenizer.pad_token_id != model.text_config.pad_token_id:
        _refuse(
            f"padding token {tokenizer.pad_token_id}",
            f"it masks the text tower's pad_token_id, {model.text_config.pad_token_id}",
        )
    _check_hub_ids(text_tower, tokenizer_name)
    _check_description(model.text_config, text_tower)
    vision_cfg, quick_gelu = open_clip_vision(model.vision_config)
    bias = model.module.initial_logit_bias
    return {
        "model_cfg": {
            "embed_dim": model.module.projection_dim,
            "quick_gelu": quick_gelu,
            "custom_text": True,
            **({} if bias is None else {"init_logit_bias": bias}),
            "vision_cfg": vision_cfg,
            "text_cfg": {
                "hf_model_name": text_tower,
                "hf_tokenizer_name": tokenizer_name,
                "hf_pooler_type": "cls_pooler",
                "hf_proj_type": "linear",
                "context_length": max_length,
            },
        },
        "preprocess_cfg": {
            "mean": list(model.image_mean),
            "std": list(model.image_std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def write_open_clip(
    folder: str | Path, config: Mapping[str, Any], state: Mapping[str, np.ndarray]
) -> None:
    """Writes open_clip_config.json and open_clip_model.safetensors.

    `open_clip.create_model_from_pretrained("local-dir:FOLDER")` reads them; for `get_tokenizer` the
    folder must hold the tokenizer, too.

    Args:
      folder: an existing folder.
      config: from `open_clip_config`.
      state: weights by PyTorch's names in `VisionTextDualEncoderModel`, the scale a log.
    """
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    Path(folder, CONFIG).write_text(text, encoding="utf-8")
    save_file(_arrays(state), Path(folder, WEIGHTS), metadata={"format": "pt"})


def _arrays(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """PyTorch's names in `VisionTextDualEncoderModel` → those in open_clip's `CustomTextCLIP`."""
    vision = {
        name.removeprefix("vision_model."): value
        for name, value in state.items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    text = {
        name.replace("text_model.", "text.transformer.", 1): value
        for name, value in state.items()
        if name.startswith("text_model.")
    }
    found = open_clip_arrays(vision) | text
    found["text.proj.weight"] = state["text_projection.weight"]
    found |= {name: state[name] for name in ("logit_scale", "logit_bias") if name in state}
    return {name: np.asarray(value, np.float32, order="C") for name, value in found.items()}


def _check_hub_ids(text_tower: str, tokenizer_name: str) -> None:
    for role, name in (("text tower", text_tower), ("tokenizer", tokenizer_name)):
        if not name:
            _refuse(f"a {role} of unknown origin", "it looks it up on the hub by its id")
        if not _HUB_ID.fullmatch(name) or Path(name).is_dir():
            _refuse(f"{role} {name!r}", "it looks it up on the hub: that takes a plain hub id")


def _check_description(used: Any, text_tower: str) -> None:
    """Whether open_clip, which makes the same call, will build the tower that we have."""
    try:
        real = AutoConfig.from_pretrained(text_tower, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"--open_clip: the configuration of text tower {text_tower!r}, which open_clip reads "
            f"from the hub, cannot be fetched to compare it: {error}"
        ) from error
    if real.model_type != used.model_type:
        _refuse(
            f"text tower {text_tower!r}",
            f"there it finds a {real.model_type!r} where this model has a {used.model_type!r}",
        )
    check_agreement(used, real, field="--open_clip: the text tower", name=text_tower)


def _refuse(what: str, reason: str) -> NoReturn:
    raise ConfigError(
        f"--open_clip: {what} is not allowed: open_clip cannot carry the model exactly, as {reason}"
    )
