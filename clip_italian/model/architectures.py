"""Configurations of named checkpoints, so that a run can be planned without the hub.

Each row holds what differs from the defaults of transformers' configuration class. When the
weights are fetched, the hub's own configuration must agree (`towers.Model.init`).
"""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from clip_italian.config import ConfigError

Pixel = tuple[float, ...]  # one number per channel: red, green, blue

# Fields that change parameters or outputs; the rest (dropout, labels, versions) may differ.
FIELDS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act",
    "layer_norm_eps", "image_size", "patch_size", "num_channels", "qkv_bias", "pooler_act",
    "pooler_output_size", "projection_dim", "vocab_size", "type_vocab_size",
    "max_position_embeddings", "position_embedding_type", "pad_token_id", "hidden_dim",
    "activation", "sinusoidal_pos_embds", "embedding_size", "mlp_ratio", "use_swiglu_ffn",
    "layerscale_value", "layer_scale_init_value", "use_mean_pooling",
    "use_absolute_position_embeddings", "use_relative_position_bias",
    "use_shared_relative_position_bias", "image_mean", "image_std",
)  # fmt: skip


def pixel_constants(
    raw: Mapping[str, Any], processor: Mapping[str, Any], default: tuple[Pixel, Pixel]
) -> tuple[Pixel, Pixel]:
    """Mean and standard deviation by which pixels, scaled to [0, 1], are normalised.

    Args:
      raw: the tower's configuration, which may state `image_mean` and `image_std`.
      processor: the checkpoint's preprocessor_config.json, which goes before; may be empty.
      default: what the kind's processor takes when neither says.

    Raises:
      ConfigError: the processor scales pixels in another way.
    """
    scale = processor.get("rescale_factor", 1 / 255)
    if abs(scale * 255 - 1) > 1e-3:
        raise ConfigError(f"vision_tower: rescale_factor {scale!r} is not allowed; give 1/255")
    if not processor.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean = processor.get("image_mean") or raw.get("image_mean") or default[0]
    std = processor.get("image_std") or raw.get("image_std") or default[1]
    return tuple(map(float, mean)), tuple(map(float, std))


def check_agreement(used: Any, real: Any, *, field: str, name: str) -> None:
    """Compares two configuration objects; `ConfigError` lists the `FIELDS` that differ."""
    pairs = ((key, getattr(used, key, None), getattr(real, key, None)) for key in FIELDS)
    wrong = [f"{key} is {theirs!r}, not {mine!r}" for key, mine, theirs in pairs if mine != theirs]
    if wrong:
        raise ConfigError(f"{field} does not describe {name!r}: there {'; '.join(wrong)}")


def check_projection(name: str, width: int, projection_dim: int) -> None:
    """`ConfigError` if a pretrained visual projection has another width than the model wants."""
    if width != projection_dim:
        raise ConfigError(
            f"projection_dim = {projection_dim} is not allowed; give {width}, the width of the "
            f"pretrained visual projection of vision_tower = {name!r}"
        )


def tower_config(config: Any) -> dict[str, Any]:
    """A tower's configuration as a dict that its own class reads, with its `model_type`.

    What every configuration holds and this one leaves alone (how to generate text, ...) is left
    out; the tower's own fields are all there, lest another version's defaults differ.
    """
    common, kind = PretrainedConfig().to_dict(), type(config)().to_dict()
    found = {
        key: value
        for key, value in config.to_dict().items()
        if key not in _ASIDE
        and not (key in common and common[key] == value and kind.get(key) == value)
    }
    return {**found, "model_type": config.model_type}


_ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "openai/clip-vit-base-patch32": {
        "model_type": "clip",
        "projection_dim": 512,
        "vision_config": {"patch_size": 32},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "openai/clip-vit-base-patch16": {
        "model_type": "clip",
        "projection_dim": 512,
        "vision_config": {"patch_size": 16},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "openai/clip-vit-large-patch14": {
        "model_type": "clip",
        "projection_dim": 768,
        "vision_config": {
            "patch_size": 14,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
        },
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "google/vit-base-patch16-224-in21k": {
        "model_type": "vit",
        "image_mean": HALF,
        "image_std": HALF,
    },
    "facebook/dinov2-base": {
        "model_type": "dinov2",
        "image_size": 518,  # trained at; `image_size` of a run chooses another
        "patch_size": 14,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    },
    # The checkpoint has 1,000 more rows than its tokenizer's 31,102 (github.com/dbmdz/berts,
    # issue 7).
    "dbmdz/bert-base-italian-xxl-uncased": {"model_type": "bert", "vocab_size": 32102},
    "bert-base-multilingual-cased": {"model_type": "bert", "vocab_size": 119547},
    "FacebookAI/roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "FacebookAI/xlm-roberta-base": {
        "model_type": "xlm-roberta",
        "vocab_size": 250002,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
        "layer_norm_eps": 1e-5,
    },
    "distilbert-base-multilingual-cased": {"model_type": "distilbert", "vocab_size": 119547},
}
