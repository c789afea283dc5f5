"""Towers: with `kinds`, the only file that knows transformers' Flax models.

`build` turns a `ModelConfig` into a `Model`: a `HybridClip` over two Flax modules, with its
initial parameters. `kinds.KINDS` says for each `model_type` whose module it is.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

from clip_italian.config import LOGIT_BIAS, LOGIT_SCALE, Config, ConfigError, ModelConfig
from clip_italian.model import dual_encoder, weights
from clip_italian.model.architectures import (
    ARCHITECTURES,
    check_agreement,
    check_projection,
    pixel_constants,
    tower_config,
)
from clip_italian.model.dual_encoder import DualEncoder
from clip_italian.model.hybrid_clip import HybridClip
from clip_italian.model.kinds import KINDS, Kind
from clip_italian.model.layers import Running
from clip_italian.model.model import Model
from clip_italian.model.positions import resize_positions


@dataclasses.dataclass(frozen=True)
class Tower:
    """One tower as it will be built.

    Attributes:
      kind: its row of `KINDS`.
      config: configuration object of transformers, with `image_mean`, `image_std` beside.
      name: local folder or hub id of its weights; empty for random weights.
      revision: on the hub; empty takes the default branch.
      keeps_projection: its weights hold a visual projection, `config.projection_dim` wide.
      stored_size: vision: the image size that its weights are for, in pixels.
    """

    kind: Kind
    config: Any
    name: str
    revision: str
    keeps_projection: bool
    stored_size: int = 0

    @property
    def field(self) -> str:
        return f"{self.kind.side}_tower"


def build(config: ModelConfig, *, loss: str) -> Model:
    """Makes the model of a config; reads configurations, but no weights yet.

    The hub is asked only about towers that are neither in `ARCHITECTURES` nor described by
    `vision_config` or `text_config`.

    Args:
      config: towers, projections and scale.
      loss: "infonce", or "sigmoid" for a model with a learned bias.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    whole = dual_encoder.describe(config.init_from) if config.init_from else None
    vision, text = _tower("vision", config, whole), _tower("text", config, whole)
    dim = config.projection_dim
    if whole is not None and whole.projection_dim != dim:
        raise ConfigError(
            f"projection_dim = {dim} is not allowed; give {whole.projection_dim}, the width of "
            f"init_from = {whole.name!r}"
        )
    if vision.keeps_projection:
        check_projection(vision.name, vision.config.projection_dim, dim)
    for tower in (vision, text):
        for field in tower.kind.dropout:
            setattr(tower.config, field, config.dropout)
    scale = LOGIT_SCALE if config.logit_scale is None else config.logit_scale
    bias = LOGIT_BIAS if config.logit_bias is None else config.logit_bias
    dtype = jnp.dtype(config.dtype)
    assert text.kind.inputs is not None and vision.kind.anatomy is not None
    _check_patch_dropout(vision, config.patch_dropout)
    module = HybridClip(
        vision_model=vision.kind.module(config=vision.config, dtype=dtype),  # pyright: ignore
        text_model=text.kind.module(config=text.config, dtype=dtype),  # pyright: ignore
        vision_pool=vision.kind.pool,
        text_pool=text.kind.pool,
        vision_anatomy=vision.kind.anatomy,
        text_inputs=functools.partial(text.kind.inputs, text.config),
        vision_running=_running(vision, config.remat, config.patch_dropout),
        text_running=_running(text, config.remat),
        projection_dim=dim,
        image_size=vision.config.image_size,
        image_mean=vision.config.image_mean,
        image_std=vision.config.image_std,
        max_positions=text.config.max_position_embeddings - text.kind.offset(text.config),
        initial_logit_scale=scale,
        initial_logit_bias=None if loss != "sigmoid" else bias,
    )

    def load(shapes: Mapping[str, Any]) -> weights.Arrays:
        if whole is None:
            return _load(vision, shapes, dim) | _load(text, shapes, dim)
        loaded = _load_whole(whole, (vision, text), shapes)
        # What the run states goes before what the model had.
        stated = {"logit_scale": config.logit_scale, "logit_bias": config.logit_bias}
        return {key: value for key, value in loaded.items() if stated.get(key) is None}

    return Model(module, vision.config, text.config, load)


def describe(config: Config) -> Config:
    """States the towers that `init_from` brings, so that the run can be read without it."""
    if not config.model.init_from:
        return config
    whole = dual_encoder.describe(config.model.init_from)
    vision, text = _tower("vision", config.model, whole), _tower("text", config.model, whole)
    model = dataclasses.replace(
        config.model,
        vision_config={**tower_config(vision.config), "image_size": vision.stored_size},
        text_config=tower_config(text.config),
    )
    return dataclasses.replace(config, model=model)


def _tower(
    side: Literal["vision", "text"], config: ModelConfig, whole: DualEncoder | None
) -> Tower:
    name, revision, stated = (
        getattr(config, f"{side}_{part}") for part in ("tower", "revision", "config")
    )
    known = ARCHITECTURES.get(name) or stated
    if whole is not None:
        raw, processor = getattr(whole, side), whole.processor
    elif known is None or (name and Path(name).is_dir()):
        raw, processor = weights.read_description(name, revision, side)
    else:
        raw, processor = known, {}
    kind, own = _parse(raw, processor, side)
    if stated is not None:
        _check_fields(stated, f"{side}_config")
        described = _parse(stated, {}, side)[1]
        named = name if whole is None else whole.name
        check_agreement(described, own, field=f"{side}_config", name=named)
    stored = _set_image_size(kind, own, config.image_size) if side == "vision" else 0
    full = raw["model_type"] == "clip" or any(
        architecture.endswith("WithProjection") for architecture in raw.get("architectures") or ()
    )
    return Tower(kind, own, name, revision, bool(name) and full, stored)


def _set_image_size(kind: Kind, config: Any, image_size: int | None) -> int:
    """Puts another image size into a configuration; returns the one that was there."""
    stored = config.image_size
    if image_size is None or image_size == stored:
        return stored
    allowed = f"a multiple of its patch_size ({config.patch_size})"
    if not kind.positions or getattr(config, "use_relative_position_bias", False):
        allowed = f"{stored}: the positions of a {config.model_type} cannot be resized"
    elif image_size % config.patch_size == 0:
        config.image_size = image_size
        return stored
    raise ConfigError(f"image_size = {image_size} is not allowed; give {allowed}")


def _running(tower: Tower, *how: Any) -> Running:
    return Running(tower.kind.layer, tower.config.num_hidden_layers, tower.kind.attended, *how)


def _check_patch_dropout(tower: Tower, rate: float) -> None:
    if rate and (
        not tower.kind.positions or getattr(tower.config, "use_relative_position_bias", False)
    ):
        raise ConfigError(
            f"patch_dropout = {rate} is not allowed; give 0: a {tower.config.model_type} knows the "
            "places of its patches only by all the others"
        )


def _check_fields(stated: dict[str, Any], field: str) -> None:
    """Refuses names that the configuration class does not know: it would take them silently."""
    kind = KINDS[stated["model_type"]]
    known = {*kind.config({}).to_dict(), "image_mean", "image_std", "vision_config", "text_config"}
    unknown = sorted(set(stated) - known)
    if unknown:
        raise ConfigError(f"{field}: {', '.join(unknown)}: no such field of its model_type")


def _parse(raw: dict[str, Any], processor: dict[str, Any], side: str) -> tuple[Kind, Any]:
    model_type = raw.get("model_type")
    kind = KINDS.get(model_type or "")
    if kind is None or kind.side != side:
        allowed = ", ".join(key for key, row in KINDS.items() if row.side == side)
        raise ConfigError(f"{side}_tower: model_type {model_type!r} is not allowed; give {allowed}")
    config = kind.config(dict(raw))
    if getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ConfigError(f"{side}_tower: position_embedding_type must be 'absolute'")
    if side == "vision":
        default = (kind.image_mean, kind.image_std)
        config.image_mean, config.image_std = pixel_constants(raw, processor, default)
    return kind, config


def _load(tower: Tower, shapes: Mapping[str, Any], projection_dim: int) -> weights.Arrays:
    """Pretrained parameters of one side by their full names; none for random weights."""
    if not tower.name:
        return {}
    place = {"revision": tower.revision, "field": tower.field}
    if not Path(tower.name).is_dir():
        raw, processor = weights.read_description(tower.name, tower.revision, tower.kind.side)
        raw.setdefault("model_type", tower.config.model_type)  # old checkpoints name none
        real = _parse(raw, processor, tower.kind.side)[1]
        if tower.stored_size and real.image_size == tower.stored_size:
            real.image_size = tower.config.image_size  # what the run has made of it
        check_agreement(tower.config, real, field=tower.field, name=tower.name)
    own = f"{tower.kind.side}_model."
    wanted = _inside(shapes, own)
    heads = {key.partition(".")[0] for key in wanted} | {"visual_projection"}
    arrays = weights.read_arrays(tower.name, **place)
    arrays = weights.select(arrays, tower.kind.prefixes, heads, tower.name)
    arrays = _flax_names(arrays, wanted, tower)
    projection = arrays.pop("visual_projection.kernel", None)
    matched = weights.match(arrays, wanted, tower.kind.may_lack, name=tower.name, field=tower.field)
    loaded = {own + key: value for key, value in matched.items()}
    if projection is not None:
        check_projection(tower.name, projection.shape[1], projection_dim)
        loaded["visual_projection.kernel"] = projection
    elif tower.keeps_projection:
        raise ConfigError(f"{tower.field} = {tower.name!r} lacks the weights visual_projection")
    return loaded


def _load_whole(
    whole: DualEncoder, towers: tuple[Tower, ...], shapes: Mapping[str, Any]
) -> weights.Arrays:
    """All parameters of a whole model by their full names."""
    arrays = dual_encoder.arrays_of(whole)
    numbers = {"logit_scale", "logit_bias"} & set(shapes) & set(arrays)
    loaded = {name: arrays[name] for name in numbers}
    for tower in towers:
        own = f"{tower.kind.side}_model."
        wanted = _inside(shapes, own)
        part = _flax_names(_inside(arrays, own), wanted, tower)
        matched = weights.match(part, wanted, (), name=whole.name, field=dual_encoder.FIELD)
        loaded |= {own + key: value for key, value in matched.items()}
    for side in ("visual", "text"):
        own = f"{side}_projection."
        part = _inside(arrays, own)
        part = {"kernel": part["weight"].T} if "weight" in part else part
        wanted = _inside(shapes, own)
        matched = weights.match(part, wanted, (), name=whole.name, field=dual_encoder.FIELD)
        loaded |= {own + key: value for key, value in matched.items()}
    return loaded


def _inside(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}


def _flax_names(arrays: weights.Arrays, wanted: Mapping[str, Any], tower: Tower) -> weights.Arrays:
    """A tower's arrays with Flax's names and layouts, positions as many as the tower wants."""
    if any(key.endswith(".weight") for key in arrays):
        arrays = _from_pytorch(arrays, wanted, tower)
    table = arrays.get(tower.kind.positions)
    if table is not None and tower.stored_size != tower.config.image_size:
        patches = tower.config.image_size // tower.config.patch_size
        arrays = {**arrays, tower.kind.positions: resize_positions(table, patches)}
    return arrays


def _from_pytorch(
    arrays: weights.Arrays, wanted: Mapping[str, Any], tower: Tower
) -> weights.Arrays:
    """PyTorch's names and layouts → Flax's, by transformers' own conversion."""
    if tower.kind.positions in wanted:  # the conversion refuses any other shape than it is told
        *most, _, width = wanted[tower.kind.positions].shape
        rows = (tower.stored_size // tower.config.patch_size) ** 2 + 1
        stored = jax.ShapeDtypeStruct((*most, rows, width), np.float32)
        wanted = {**wanted, tower.kind.positions: stored}
    target = SimpleNamespace(base_model_prefix="", params=unflatten_dict(wanted, sep="."))
    try:
        tree = convert_pytorch_state_dict_to_flax(arrays, target)
    except ValueError as error:  # a shape
        raise ConfigError(f"{tower.field} = {tower.name!r}: {error}") from error
    flat: dict[str, Any] = flatten_dict(tree, sep=".")
    return {key: np.asarray(value) for key, value in flat.items()}
