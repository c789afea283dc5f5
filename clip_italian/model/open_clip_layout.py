"""open_clip's names and fields ↔ those of transformers' CLIP vision tower.

OpenAI's original weights have open_clip's names. Everything here is exact: what transformers' CLIP
computes in another way, or not at all, is refused.
"""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from clip_italian.config import ConfigError
from clip_italian.model.architectures import CLIP_MEAN, CLIP_STD

_WHERE = "vision_tower: open_clip_config.json"
_EPS = 1e-5  # of every layer norm there


def describe(open_clip_config: Mapping[str, Any]) -> dict[str, Any]:
    """The vision tower of an open_clip model as a configuration of a full CLIP in transformers.

    Args:
      open_clip_config: content of open_clip_config.json: `model_cfg` and, perhaps,
        `preprocess_cfg`.

    Returns:
      `model_type` "clip", `projection_dim`, `vision_config`, `image_mean` and `image_std`.

    Raises:
      ConfigError: the tower, or the way its images are prepared, is none of CLIP's.
    """
    model = open_clip_config.get("model_cfg")
    if not isinstance(model, Mapping) or not isinstance(model.get("vision_cfg"), Mapping):
        raise ConfigError(f"{_WHERE} has no model_cfg with a vision_cfg: it describes no model")
    tower, image = {**_DEFAULTS, **model["vision_cfg"]}, open_clip_config.get("preprocess_cfg")
    _check(tower)
    width, layers = _whole("width", tower), _whole("layers", tower)
    heads = width // _whole("head_width", tower)
    if heads == 0 or width % heads:
        _refuse("head_width", tower["head_width"], f"it makes {heads} heads of width = {width}")
    if not isinstance(tower["mlp_ratio"], int | float):
        _refuse("mlp_ratio", tower["mlp_ratio"], "it must be a number")
    return {
        "model_type": "clip",
        "projection_dim": _whole("embed_dim", model),
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": int(width * tower["mlp_ratio"]),
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_channels": 3,
            "image_size": _side("image_size", tower),
            "patch_size": _side("patch_size", tower),
            "hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu",
            "layer_norm_eps": _EPS,
        },
        **_pixels(image or {}),
    }


def vision_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The vision half of open_clip's weights with the names of transformers' `CLIPModel`.

    Args:
      arrays: state dict of an open_clip model; its text half is left out.

    Returns:
      Names `vision_model.*` (PyTorch's, layouts included) and `visual_projection.weight`.

    Raises:
      ConfigError: there is no vision transformer in it, or one that holds more than CLIP's.
    """
    own = {key[7:]: value for key, value in arrays.items() if key.startswith("visual.")}
    if "conv1.weight" not in own or "class_embedding" not in own:
        raise ConfigError(
            "vision_tower: these weights hold no vision transformer of open_clip: they lack "
            "visual.conv1.weight or visual.class_embedding"
        )
    found: dict[str, np.ndarray] = {}
    for name, value in own.items():
        block = _BLOCK.fullmatch(name)
        if block and block[2] in _IN_BLOCK:
            found[f"{_LAYERS}.{block[1]}.{_IN_BLOCK[block[2]]}"] = value
        elif block and block[2] in _JOINED:
            leaf = _JOINED[block[2]]
            for letter, part in zip("qkv", np.split(value, 3), strict=True):
                found[f"{_LAYERS}.{block[1]}.self_attn.{letter}_proj.{leaf}"] = part
        elif name in _OUTSIDE:
            found[f"vision_model.{_OUTSIDE[name]}"] = value
        elif name == "proj":  # [width, embed_dim], multiplied from the right
            found["visual_projection.weight"] = np.ascontiguousarray(value.T)
        else:
            raise ConfigError(f"vision_tower: visual.{name} has no counterpart in a CLIP tower")
    return found


def open_clip_vision(config: Any) -> tuple[dict[str, Any], bool]:
    """The inverse of `describe`: open_clip's `vision_cfg` and `quick_gelu`.

    Args:
      config: transformers' `CLIPVisionConfig`.

    Raises:
      ConfigError: its activation or its layer norms are none of open_clip's.
    """
    width, inner = config.hidden_size, config.intermediate_size
    if config.hidden_act not in _ACTIVATIONS or config.layer_norm_eps != _EPS:
        raise ConfigError(
            f"--open_clip: hidden_act {config.hidden_act!r} with layer_norm_eps "
            f"{config.layer_norm_eps!r} is not allowed: open_clip cannot carry the model exactly, "
            f"as its CLIP has gelu or quick_gelu, and {_EPS}"
        )
    ratio = inner / width
    if int(width * ratio) != inner:  # open_clip rounds down; half a unit survives that
        ratio = (inner + 0.5) / width
    fields = {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layers": config.num_hidden_layers,
        "width": width,
        "head_width": width // config.num_attention_heads,
        "mlp_ratio": ratio,
    }
    return fields, _ACTIVATIONS[config.hidden_act]


def open_clip_arrays(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `vision_arrays`: open_clip's names, `visual.` before each."""
    found: dict[str, np.ndarray] = {}
    layers = range(sum(key.endswith(".self_attn.q_proj.weight") for key in arrays))
    for theirs, ours in _OUTSIDE.items():
        found[theirs] = arrays[f"vision_model.{ours}"]
    for layer in layers:
        own, other = f"transformer.resblocks.{layer}", f"{_LAYERS}.{layer}"
        for theirs, ours in _IN_BLOCK.items():
            found[f"{own}.{theirs}"] = arrays[f"{other}.{ours}"]
        for theirs, leaf in _JOINED.items():
            parts = [arrays[f"{other}.self_attn.{letter}_proj.{leaf}"] for letter in "qkv"]
            found[f"{own}.{theirs}"] = np.concatenate(parts)
    found["proj"] = np.ascontiguousarray(arrays["visual_projection.weight"].T)
    return {f"visual.{name}": value for name, value in found.items()}


def _check(tower: Mapping[str, Any]) -> None:
    """Refuses whatever a CLIP tower does not compute, and fields that nobody knows."""
    if tower.get("timm_model_name"):
        _refuse("timm_model_name", tower["timm_model_name"], "towers of timm are not read")
    if isinstance(tower["layers"], list | tuple):
        _refuse("layers", tower["layers"], "ResNets are not read")
    for name, value in tower.items():
        if name in _ONLY:
            if value not in _ONLY[name]:
                _refuse(name, value, f"a CLIP tower in transformers knows only {_ONLY[name][0]!r}")
        elif name not in _DEFAULTS and name not in _WITHOUT_EFFECT:
            _refuse(name, value, "the field is unknown, and so is what it changes")


def _pixels(image: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation, once it is sure that images are resized and cropped as here."""
    for name, allowed in _IMAGE_ONLY.items():
        if image.get(name) not in (None, *allowed):
            _refuse(name, image[name], f"images are prepared with {allowed[0]!r} here")
    constants = (("image_mean", "mean", CLIP_MEAN), ("image_std", "std", CLIP_STD))
    stated = {field: image.get(name) or default for field, name, default in constants}
    return {
        field: tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        for field, value in stated.items()
    }


def _side(name: str, tower: Mapping[str, Any]) -> int:
    """A size that may be given as height and width."""
    value = tower[name]
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            _refuse(name, value, "images and patches must be square")
        value = value[0]
    return _whole(name, {name: value})


def _whole(name: str, fields: Mapping[str, Any]) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value <= 0:
        _refuse(name, value, "it must be a whole number above 0")
    return value


def _refuse(name: str, value: Any, reason: str) -> NoReturn:
    raise ConfigError(
        f"{_WHERE}: {name} = {value!r} cannot be read: {reason}. Take a checkpoint with a ViT of "
        "open_clip's own, for example ViT-B-32 or ViT-L-14"
    )


_ACTIVATIONS = {"gelu": False, "quick_gelu": True}
# vision_cfg, by field: what open_clip takes when it is absent; the only values that can be carried
# over; and those that change nothing here.
_DEFAULTS = {
    "layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16,
    "image_size": 224,
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs"), (None, {})),
    **dict.fromkeys(
        (
            "attentional_pool", "no_ln_pre", "final_ln_after_pool", "output_tokens", "qk_norm",
            "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc",
            "global_average_pool", "input_patchnorm",  # of older versions
        ),
        (False, None),
    ),
    "pool_type": ("tok",),
    "pos_embed_type": ("learnable",),
    "block_type": ("default", None),
    "timm_model_name": (None, ""),
}  # fmt: skip
_WITHOUT_EFFECT = {
    "patch_dropout",  # of training alone
    "attn_pooler_queries", "attn_pooler_heads", "n_queries",  # of an attentional pool
    "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop",
    "timm_drop_path",
}  # fmt: skip
# preprocess_cfg; "random" is of training alone, where evaluation takes bicubic
_IMAGE_ONLY = {
    "mode": ("RGB",),
    "interpolation": ("bicubic", "random"),
    "resize_mode": ("shortest",),
}

# Names within `visual.` → within `vision_model.`, and within a block of each.
_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.+)")
_LAYERS = "vision_model.encoder.layers"
_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # transformers' spelling
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_IN_BLOCK = {
    f"{theirs}.{leaf}": f"{ours}.{leaf}"
    for theirs, ours in (
        ("ln_1", "layer_norm1"),
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    )
    for leaf in ("weight", "bias")
}
_JOINED = {"attn.in_proj_weight": "weight", "attn.in_proj_bias": "bias"}
