"""Kinds of towers: whose Flax module each `model_type` is, how it is called, how it pools.

Together with `towers` the only file that knows transformers' Flax models. `KINDS`, at the foot,
has one row for each kind; a further kind is one more row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from transformers import (
    BeitConfig,
    BertConfig,
    CLIPConfig,
    CLIPVisionConfig,
    Dinov2Config,
    DistilBertConfig,
    ElectraConfig,
    RobertaConfig,
    ViTConfig,
    XLMRobertaConfig,
)
from transformers.models.beit.modeling_flax_beit import (
    FlaxBeitAttention,
    FlaxBeitLayer,
    FlaxBeitModule,
)
from transformers.models.bert.modeling_flax_bert import FlaxBertLayer, FlaxBertModule
from transformers.models.clip.modeling_flax_clip import (
    FlaxCLIPAttention,
    FlaxCLIPEncoderLayer,
    FlaxCLIPVisionModule,
)
from transformers.models.dinov2.modeling_flax_dinov2 import (
    FlaxDinov2Attention,
    FlaxDinov2Layer,
    FlaxDinov2Module,
)
from transformers.models.distilbert.modeling_flax_distilbert import (
    FlaxDistilBertModule,
    FlaxTransformerBlock,
)
from transformers.models.electra.modeling_flax_electra import FlaxElectraLayer, FlaxElectraModule
from transformers.models.roberta.modeling_flax_roberta import FlaxRobertaLayer, FlaxRobertaModule
from transformers.models.vit.modeling_flax_vit import FlaxViTAttention, FlaxViTLayer, FlaxViTModule
from transformers.models.xlm_roberta.modeling_flax_xlm_roberta import (
    FlaxXLMRobertaLayer,
    FlaxXLMRobertaModule,
)

from clip_italian.batch import Array, TokenGroup
from clip_italian.model.architectures import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD
from clip_italian.model.contributions import Anatomy


@dataclasses.dataclass(frozen=True)
class Kind:
    """One row of `KINDS`: what is special about a `model_type`.

    Attributes:
      side: which tower it can be.
      module: Flax module class, taking `config` and `dtype`.
      layer: class of its layers, as `layers.Running` takes it.
      config: configuration dict → configuration object of this tower.
      pool: the module's outputs → [n, width].
      attended: as `layers.Running` takes it: keys and values, where `pool` reads the first token;
        queries too where the module shapes them like these.
      prefixes: names under which larger checkpoints hold the tower.
      dropout: fields of the configuration that hold dropout rates.
      may_lack: first parts of weights that a checkpoint may lack (they start random).
      inputs: text: configuration and token group → the module's keyword arguments.
      offset: text: configuration → rows of the position table before the first position.
      anatomy: vision: where its patches' parts in what it pools are found.
      positions: vision: name of the table that `image_size` resizes; empty where there is none.
      pooled: the module has a pooled output of its own, which `VisionTextDualEncoder` needs.
      image_mean: vision: what the kind's processor takes by default.
      image_std: vision: likewise.
    """

    side: Literal["vision", "text"]
    module: type[nn.Module]
    layer: type[nn.Module]
    config: Callable[[dict[str, Any]], Any]
    pool: Callable[[Any], Array]
    prefixes: tuple[str, ...] = ()
    attended: tuple[str, ...] = ("key", "value")
    dropout: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    may_lack: tuple[str, ...] = ("pooler",)
    inputs: Callable[[Any, TokenGroup], dict[str, Array]] | None = None
    offset: Callable[[Any], int] = lambda config: 0
    anatomy: Anatomy | None = None
    positions: str = "embeddings.position_embeddings"
    pooled: bool = True
    image_mean: tuple[float, ...] = HALF
    image_std: tuple[float, ...] = HALF


def _clip_vision_config(raw: dict[str, Any]) -> CLIPVisionConfig:
    """The vision half of a full CLIP, with the projection width of the whole."""
    config = CLIPConfig.from_dict(raw)
    config.vision_config.projection_dim = config.projection_dim
    return config.vision_config


def _without_drop_path(config: type, raw: dict[str, Any]) -> Any:
    """Drops whole layers never: `dropout` is the one rate that a run sets."""
    found = config.from_dict(raw)
    found.drop_path_rate = 0.0
    return found


def _beit_config(raw: dict[str, Any]) -> BeitConfig:
    return _without_drop_path(BeitConfig, raw)


def _dinov2_config(raw: dict[str, Any]) -> Dinov2Config:
    return _without_drop_path(Dinov2Config, raw)


def _pooler_output(outputs: Any) -> Array:
    return outputs.pooler_output


def _first_token(outputs: Any) -> Array:
    """[CLS] of the last layer: what these towers' own classifiers read, as they have no pooler."""
    return outputs.last_hidden_state[:, 0]


def _vit_head(tower: Any, pooled: Array) -> Array:
    return _pool_alone(tower, tower.layernorm(pooled))


def _clip_head(tower: Any, pooled: Array) -> Array:
    return tower.vision_model.post_layernorm(pooled)


def _dinov2_head(tower: Any, pooled: Array) -> Array:
    return tower.layernorm(pooled)


def _beit_head(tower: Any, pooled: Array) -> Array:
    return _pool_alone(tower, pooled if _means(tower.config) else tower.layernorm(pooled))


def _pool_alone(tower: Any, hidden: Array) -> Array:
    """By the tower's own pooler, as if a token were [CLS] and the only patch of its picture.

    So it holds for poolers of [CLS], ViT's and BEiT's, and for BEiT's mean over patches.
    """
    alone = hidden.reshape(-1, 1, hidden.shape[-1])
    return tower.pooler(jnp.concatenate([alone, alone], axis=1)).reshape(*hidden.shape[:2], -1)


def _means(config: Any) -> bool:
    return config.use_mean_pooling


def _dinov2_scaled(layer: Any, added: Array) -> Array:
    return layer.layer_scale1(added)


def _beit_scaled(layer: Any, added: Array) -> Array:
    return added if layer.lambda_1 is None else layer.lambda_1 * added


def _bert_inputs(config: Any, tokens: TokenGroup) -> dict[str, Array]:
    del config
    ids = tokens.input_ids
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    return {**tokens._asdict(), "position_ids": positions, "token_type_ids": jnp.zeros_like(ids)}


def _distilbert_inputs(config: Any, tokens: TokenGroup) -> dict[str, Array]:
    del config
    return tokens._asdict()


def _roberta_inputs(config: Any, tokens: TokenGroup) -> dict[str, Array]:
    """RoBERTa counts real tokens from `pad_token_id` + 1; padding stays at `pad_token_id`."""
    mask = tokens.attention_mask
    positions = jnp.cumsum(mask, axis=1) * mask + jnp.int32(config.pad_token_id)
    types = jnp.zeros_like(tokens.input_ids)
    return {**tokens._asdict(), "position_ids": positions, "token_type_ids": types}


_CLIP = {
    "side": "vision",
    "module": FlaxCLIPVisionModule,
    "layer": FlaxCLIPEncoderLayer,
    "pool": _pooler_output,
    "anatomy": Anatomy(FlaxCLIPAttention, "v_proj", _clip_head),
    "dropout": ("attention_dropout",),
    "attended": ("k_proj", "v_proj"),
    "may_lack": (),
    "positions": "vision_model.embeddings.position_embedding.embedding",
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
    "vit": Kind(
        "vision", FlaxViTModule, FlaxViTLayer, ViTConfig.from_dict, _pooler_output, ("vit",),
        attended=("query", "key", "value"),
        anatomy=Anatomy(FlaxViTAttention, "value", _vit_head),
    ),
    "clip_vision_model": Kind(config=CLIPVisionConfig.from_dict, **_CLIP),
    "clip": Kind(config=_clip_vision_config, **_CLIP),
    "dinov2": Kind(
        "vision", FlaxDinov2Module, FlaxDinov2Layer, _dinov2_config, _pooler_output, ("dinov2",),
        attended=("query", "key", "value"), may_lack=(), image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        anatomy=Anatomy(FlaxDinov2Attention, "value", _dinov2_head, _dinov2_scaled),
    ),
    "beit": Kind(
        "vision", FlaxBeitModule, FlaxBeitLayer, _beit_config, _pooler_output, ("beit",),
        attended=(), may_lack=(), positions="",
        anatomy=Anatomy(FlaxBeitAttention, "value", _beit_head, _beit_scaled, _means),
    ),
    "bert": Kind(
        "text", FlaxBertModule, FlaxBertLayer, BertConfig.from_dict, _pooler_output, ("bert",),
        inputs=_bert_inputs,
    ),
    "roberta": Kind(
        module=FlaxRobertaModule, layer=FlaxRobertaLayer, config=RobertaConfig.from_dict, **_ROBERTA
    ),
    "xlm-roberta": Kind(
        module=FlaxXLMRobertaModule, layer=FlaxXLMRobertaLayer, config=XLMRobertaConfig.from_dict,
        **_ROBERTA,
    ),
    "distilbert": Kind(
        "text", FlaxDistilBertModule, FlaxTransformerBlock, DistilBertConfig.from_dict,
        _first_token, ("distilbert",), ("k_lin", "v_lin"),
        dropout=("dropout", "attention_dropout"), may_lack=(), inputs=_distilbert_inputs,
        pooled=False,
    ),
    "electra": Kind(
        "text", FlaxElectraModule, FlaxElectraLayer, ElectraConfig.from_dict, _first_token,
        ("electra",), may_lack=(), inputs=_bert_inputs, pooled=False,
    ),
}  # fmt: skip
