"""A model → a folder that is a complete hub repository, written without PyTorch.

Its class is transformers' `VisionTextDualEncoderModel`, in PyTorch (`model.safetensors`, version 4
and 5) and in Flax (`flax_model.msgpack`, version 4).
"""

import copy
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file
from transformers import CLIPImageProcessor

from clip_italian import flags
from clip_italian.config import ConfigError
from clip_italian.data.tokens import Tokenizer
from clip_italian.hub.load import LoadedModel, own_description
from clip_italian.hub.torch_layout import to_pytorch
from clip_italian.model.architectures import tower_config
from clip_italian.model.kinds import KINDS
from clip_italian.model.model import Model
from clip_italian.model.towers import build

WEIGHTS, FLAX_WEIGHTS = "model.safetensors", "flax_model.msgpack"
TRAINING_CONFIG = "training_config.py"
# Of a configuration: what only this program or this machine knows by it.
_ASIDE = (
    "image_mean",
    "image_std",
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
)


def exact(loaded: LoadedModel) -> LoadedModel:
    """The model with its towers in float32, which is how its weights are stored and compared."""
    described = dataclasses.replace(own_description(loaded.config.model), dtype="float32")
    return dataclasses.replace(loaded, model=build(described, loss=loaded.config.loss.loss))


def check(model: Model) -> None:
    """Raises `ConfigError` for a model that transformers' class cannot hold."""
    for side, config in (("vision", model.vision_config), ("text", model.text_config)):
        if not KINDS[config.model_type].pooled:
            raise ConfigError(
                f"a {config.model_type} {side} tower cannot be exported: transformers' "
                "VisionTextDualEncoder reads a tower's pooled output, which this kind lacks"
            )


def padding_idx(model: Model) -> int | None:
    """The padding id behind which a RoBERTa counts its positions; None for other text towers."""
    config = model.text_config
    offset = KINDS[config.model_type].offset(config)
    return offset - 1 if offset else None


def write(folder: Path, loaded: LoadedModel) -> None:
    """Writes configuration, weights in both layouts, tokenizer, image processor, training config.

    Args:
      folder: an empty folder.
      loaded: from `load_model`.

    Raises:
      ConfigError: transformers' class cannot hold this model.
    """
    check(loaded.model)
    params = {name: part for name, part in loaded.params.items() if name != "logit_bias"}
    config = model_config(loaded.model, loaded.params)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    save_file(to_pytorch(params), folder / WEIGHTS, metadata={"format": "pt"})
    # Other than all else here, this file is made for its owner's eyes only.
    (folder / WEIGHTS).chmod((folder / "config.json").stat().st_mode)
    (folder / FLAX_WEIGHTS).write_bytes(msgpack_serialize(params))
    _tokenizer(loaded.tokenizer, loaded.config.data.max_length).save_pretrained(folder)
    _image_processor(loaded.model).save_pretrained(folder)
    if loaded.step is not None:  # a run of ours
        (folder / TRAINING_CONFIG).write_text(flags.dump(loaded.config))


def model_config(model: Model, params: Mapping[str, Any]) -> dict[str, Any]:
    """config.json: the two towers' configurations and what joins them.

    `logit_bias` is there for a model of the sigmoid loss only. transformers keeps the field but
    does not use it: probabilities are sigmoid(logits_per_image + logit_bias).
    """
    vision = tower_config(model.vision_config)
    for name in ("image_mean", "image_std"):  # which the image processor has
        del vision[name]
    config = {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "projection_dim": model.module.projection_dim,
        "logit_scale_init_value": float(params["logit_scale"]),
        "vision_config": vision,
        "text_config": tower_config(model.text_config),
        "dtype": "float32",
        "transformers_version": importlib.metadata.version("transformers"),
    }
    if "logit_bias" in params:
        config["logit_bias"] = float(params["logit_bias"])
    return config


def _tokenizer(tokenizer: Tokenizer, max_length: int) -> Tokenizer:
    """A copy that cuts texts where training did."""
    found = copy.deepcopy(tokenizer)
    found.model_max_length = max_length
    # How it was last called would be saved with it.
    found.backend_tokenizer.no_truncation()
    found.backend_tokenizer.no_padding()
    return found


def _image_processor(model: Model) -> CLIPImageProcessor:
    """What evaluation does to a picture: shorter side to size, centre crop, mean and deviation."""
    size = model.image_size
    processor = CLIPImageProcessor(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        image_mean=list(model.image_mean),
        image_std=list(model.image_std),
    )
    processor._set_processor_class("VisionTextDualEncoderProcessor")
    return processor


def write_sentence_transformers(folder: Path) -> None:
    """Adds what makes `SentenceTransformer(folder)` encode pictures and texts into one space.

    It needs sentence-transformers 6 and transformers 5, whose `get_image_features` gives an object.
    """
    kinds = ("Transformer", ""), ("Normalize", "1_Normalize")
    modules = [
        {
            "idx": number,
            "name": str(number),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for number, (kind, path) in enumerate(kinds)
    ]
    features = {
        modality: {"method": f"get_{modality}_features", "method_output_name": "pooler_output"}
        for modality in ("text", "image")
    }
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": features,
        "module_output_name": "sentence_embedding",
    }
    for name, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", transformer),
        ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
