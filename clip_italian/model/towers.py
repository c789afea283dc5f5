"""Towers: the only file that knows transformers' Flax models.

`build` turns a `ModelConfig` into a `Model`: a `HybridClip` over two Flax modules, with its
initial parameters. `KINDS`, at the foot, says for each `model_type` whose module it is, how it
is called and how it pools; a further kind is one more row.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPVisionConfig,
    RobertaConfig,
    ViTConfig,
    XLMRobertaConfig,
)
from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax
from transformers.models.bert.modeling_flax_bert import FlaxBertModule
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionModule
from transformers.models.roberta.modeling_flax_roberta import FlaxRobertaModule
from transformers.models.vit.modeling_flax_vit import FlaxViTModule
from transformers.models.xlm_roberta.modeling_flax_xlm_roberta import FlaxXLMRobertaModule

from clip_italian.batch import Array, TokenGroup
from clip_italian.config import ConfigError, ModelConfig
from clip_italian.model import weights
from clip_italian.model.architectures import (
    ARCHITECTURES,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    check_agreement,
    check_projection,
    pixel_constants,
)
from clip_italian.model.hybrid_clip import HybridClip
from clip_italian.model.model import Model


@dataclasses.dataclass(frozen=True)
class Kind:
    """One row of `KINDS`: what is special about a `model_type`.

    Attributes:
      side: which tower it can be.
      module: Flax module class, taking `config` and `dtype`.
      config: configuration dict → configuration object of this tower.
      pool: the module's outputs → [n, width].
      prefixes: names under which larger checkpoints hold the tower.
      dropout: fields of the configuration that hold dropout rates.
      may_lack: first parts of weights that a checkpoint may lack (they start random).
      inputs: text: configuration and token group → the module's keyword arguments.
      offset: text: configuration → rows of the position table before the first position.
      image_mean: vision: what the kind's processor takes by default.
      image_std: vision: likewise.
    """

    side: Literal["vision", "text"]
    module: type[nn.Module]
    config: Callable[[dict[str, Any]], Any]
    pool: Callable[[Any], Array]
    prefixes: tuple[str, ...] = ()
    dropout: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    may_lack: tuple[str, ...] = ("pooler",)
    inputs: Callable[[Any, TokenGroup], dict[str, Array]] | None = None
    offset: Callable[[Any], int] = lambda config: 0
    image_mean: tuple[float, ...] = HALF
    image_std: tuple[float, ...] = HALF


@dataclasses.dataclass(frozen=True)
class Tower:
    """One tower as it will be built.

    Attributes:
      kind: its row of `KINDS`.
      config: configuration object of transformers, with `image_mean`, `image_std` beside.
      name: local folder or hub id of its weights; empty for random weights.
      revision: on the hub; empty takes the default branch.
      keeps_projection: its weights hold a visual projection, `config.projection_dim` wide.
    """

    kind: Kind
    config: Any
    name: str
    revision: str
    keeps_projection: bool

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
    vision, text, dim = _tower("vision", config), _tower("text", config), config.projection_dim
    if vision.keeps_projection:
        check_projection(vision.name, vision.config.projection_dim, dim)
    for tower in (vision, text):
        for field in tower.kind.dropout:
            setattr(tower.config, field, config.dropout)
    dtype = jnp.dtype(config.dtype)
    assert text.kind.inputs is not None
    module = HybridClip(
        vision_model=vision.kind.module(config=vision.config, dtype=dtype),  # pyright: ignore
        text_model=text.kind.module(config=text.config, dtype=dtype),  # pyright: ignore
        vision_pool=vision.kind.pool,
        text_pool=text.kind.pool,
        text_inputs=functools.partial(text.kind.inputs, text.config),
        projection_dim=dim,
        image_size=vision.config.image_size,
        image_mean=vision.config.image_mean,
        image_std=vision.config.image_std,
        max_positions=text.config.max_position_embeddings - text.kind.offset(text.config),
        initial_logit_scale=config.logit_scale,
        initial_logit_bias=config.logit_bias if loss == "sigmoid" else None,
    )

    def load(shapes: Mapping[str, Any]) -> weights.Arrays:
        return _load(vision, shapes, dim) | _load(text, shapes, dim)

    return Model(module, vision.config, text.config, load)


def _tower(side: Literal["vision", "text"], config: ModelConfig) -> Tower:
    name, revision, stated = (
        getattr(config, f"{side}_{part}") for part in ("tower", "revision", "config")
    )
    known = ARCHITECTURES.get(name) or stated
    if known is None or (name and Path(name).is_dir()):
        raw, processor = weights.read_description(name, revision, side)
    else:
        raw, processor = known, {}
    kind, own = _parse(raw, processor, side)
    if stated is not None:
        _check_fields(stated, f"{side}_config")
        described = _parse(stated, {}, side)[1]
        check_agreement(described, own, field=f"{side}_config", name=name)
    full = raw["model_type"] == "clip" or any(
        architecture.endswith("WithProjection") for architecture in raw.get("architectures") or ()
    )
    return Tower(kind, own, name, revision, keeps_projection=bool(name) and full)


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
        check_agreement(tower.config, real, field=tower.field, name=tower.name)
    own = f"{tower.kind.side}_model."
    wanted = {key.removeprefix(own): shapes[key] for key in shapes if key.startswith(own)}
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


def _flax_names(arrays: weights.Arrays, wanted: Mapping[str, Any], tower: Tower) -> weights.Arrays:
    """PyTorch's names and layouts → Flax's, by transformers' own conversion."""
    if not any(key.endswith(".weight") for key in arrays):
        return arrays
    target = SimpleNamespace(base_model_prefix="", params=unflatten_dict(wanted, sep="."))
    try:
        tree = convert_pytorch_state_dict_to_flax(arrays, target)
    except ValueError as error:  # a shape
        raise ConfigError(f"{tower.field} = {tower.name!r}: {error}") from error
    flat: dict[str, Any] = flatten_dict(tree, sep=".")
    return {key: np.asarray(value) for key, value in flat.items()}


def _clip_vision_config(raw: dict[str, Any]) -> CLIPVisionConfig:
    """The vision half of a full CLIP, with the projection width of the whole."""
    config = CLIPConfig.from_dict(raw)
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def _pooler_output(outputs: Any) -> Array:
    return outputs.pooler_output


def _bert_inputs(config: Any, tokens: TokenGroup) -> dict[str, Array]:
    del config
    ids = tokens.input_ids
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    return {**tokens._asdict(), "position_ids": positions, "token_type_ids": jnp.zeros_like(ids)}


def _roberta_inputs(config: Any, tokens: TokenGroup) -> dict[str, Array]:
    """RoBERTa counts real tokens from `pad_token_id` + 1; padding stays at `pad_token_id`."""
    mask = tokens.attention_mask
    positions = jnp.cumsum(mask, axis=1) * mask + jnp.int32(config.pad_token_id)
    types = jnp.zeros_like(tokens.input_ids)
    return {**tokens._asdict(), "position_ids": positions, "token_type_ids": types}


_CLIP = {
    "side": "vision",
    "module": FlaxCLIPVisionModule,
    "pool": _pooler_output,
    "dropout": ("attention_dropout",),
    "may_lack": (),
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}
_ROBERTA = {
    "side": "text",
    "pool": _pooler_output,
    "prefixes": ("roberta",),
    "inputs": _roberta_inputs,
    "offset": lambda config: config.pad_token_id + 1,
}
KINDS: dict[str, Kind] = {
    "vit": Kind("vision", FlaxViTModule, ViTConfig.from_dict, _pooler_output, ("vit",)),
    "clip_vision_model": Kind(config=CLIPVisionConfig.from_dict, **_CLIP),
    "clip": Kind(config=_clip_vision_config, **_CLIP),
    "bert": Kind(
        "text", FlaxBertModule, BertConfig.from_dict, _pooler_output, ("bert",), inputs=_bert_inputs
    ),
    "roberta": Kind(module=FlaxRobertaModule, config=RobertaConfig.from_dict, **_ROBERTA),
    "xlm-roberta": Kind(module=FlaxXLMRobertaModule, config=XLMRobertaConfig.from_dict, **_ROBERTA),
}
