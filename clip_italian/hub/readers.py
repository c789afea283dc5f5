"""Libraries that read an exported folder, each held against the model it was made of."""

import importlib.metadata
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from transformers import CLIPImageProcessor, FlaxVisionTextDualEncoderModel

from clip_italian.batch import TokenGroup
from clip_italian.config import ConfigError
from clip_italian.hub import export
from clip_italian.hub.load import LoadedModel, load_pretrained
from clip_italian.hub.onnx_graphs import open_onnx, read_scale
from clip_italian.hub.verify import Check, Reference, compare

_log = logging.getLogger(__name__)


class _WithoutRandomStart(FlaxVisionTextDualEncoderModel):
    """Weights to be replaced at once are not drawn first, which takes a minute."""

    def init_weights(self, rng: Any, input_shape: Any, params: Any = None) -> Any:
        draw = super().init_weights
        return jax.eval_shape(lambda: draw(rng, input_shape, params))


def check_flax(folder: Path, reference: Reference) -> list[Check]:
    """Reads `flax_model.msgpack` by transformers' Flax class, and `model.safetensors` by ours."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model: Any = _WithoutRandomStart.from_pretrained(str(folder))
    params = jax.device_put(model.params)
    again = load_pretrained(str(folder))
    padding = export.padding_idx(again.model)

    @jax.jit
    def images(params: Any, pixels: np.ndarray) -> Any:
        # Other than its `__call__`, this method takes channels last.
        last = pixels.transpose(0, 2, 3, 1)
        return _normalised(model.get_image_features(last, params=params))

    @jax.jit
    def texts(params: Any, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> Any:
        found = model.get_text_features(ids, mask, positions, params=params)
        return _normalised(found)

    def embed_texts(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        # This class counts positions from 0 for every tower; RoBERTa's start behind the padding.
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        if padding is not None:
            positions = np.cumsum(mask, axis=1) * mask + padding
        return np.asarray(texts(params, ids, mask, positions.astype(np.int32)))

    processor = CLIPImageProcessor.from_pretrained(folder)
    version = importlib.metadata.version("transformers")
    with (
        jax.default_matmul_precision("highest"),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
    ):
        flax = compare(
            reference,
            f"transformers {version}, Flax ({export.FLAX_WEIGHTS})",
            lambda pixels: np.asarray(images(params, pixels)),
            embed_texts,
            float(np.exp(model.params["logit_scale"])),
            processor,
        )
    return [flax, _check_ours(again, reference)]


def _check_ours(again: LoadedModel, reference: Reference) -> Check:
    model, params = again.model, jax.device_put(again.params)
    images, texts = jax.jit(model.encode_image), jax.jit(model.encode_text)
    mean, std = (np.asarray(c, np.float32) for c in (model.image_mean, model.image_std))

    def embed_images(pixels: np.ndarray) -> np.ndarray:
        plain = pixels.transpose(0, 2, 3, 1) * std[None, None, None] + mean[None, None, None]
        whole = np.round(plain * 255).astype(np.uint8)
        return np.asarray(images(params, whole))

    def embed_texts(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.asarray(texts(params, TokenGroup(ids, mask)))

    with jax.default_matmul_precision("highest"):
        version = importlib.metadata.version("clip_italian")
        library = f"clip_italian {version} ({export.WEIGHTS})"
        factor = float(np.exp(again.params["logit_scale"]))
        return compare(reference, library, embed_images, embed_texts, factor)


def check_torch(folder: Path, reference: Reference) -> Check:
    """Reads `model.safetensors` by transformers' PyTorch class.

    Raises:
      ConfigError: PyTorch is missing, or keys are missing or unexpected.
    """
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ConfigError(
            "verify = 'torch' needs PyTorch: pip install 'clip-italian[torch]'"
        ) from error
    from transformers import AutoProcessor, VisionTextDualEncoderModel

    model, report = VisionTextDualEncoderModel.from_pretrained(folder, output_loading_info=True)
    wrong = [f"{kind}: {', '.join(sorted(report[kind]))}" for kind in _KEYS if report[kind]]
    if wrong:
        raise ConfigError(f"{folder}: {'; '.join(wrong)}")
    model.eval()

    @torch.inference_mode()
    def embed_images(pixels: np.ndarray) -> np.ndarray:
        return _normalised(model.get_image_features(torch.tensor(pixels)).numpy())

    @torch.inference_mode()
    def embed_texts(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        inputs = torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)
        return _normalised(model.get_text_features(*inputs).numpy())

    version = importlib.metadata.version("transformers")
    library = f"transformers {version}, PyTorch {torch.__version__} ({export.WEIGHTS})"
    processor: Any = AutoProcessor.from_pretrained(folder, use_fast=False)
    factor = model.logit_scale.exp().item()
    own = processor.image_processor
    return compare(reference, library, embed_images, embed_texts, factor, own)


def check_onnx(folder: Path, reference: Reference) -> Check:
    """Reads the two graphs by onnxruntime."""
    embed_images, embed_texts = open_onnx(str(folder))
    version = importlib.metadata.version("onnxruntime")
    processor = CLIPImageProcessor.from_pretrained(folder)
    library, factor = f"onnxruntime {version} (onnx/)", read_scale(str(folder))[0]
    return compare(reference, library, embed_images, embed_texts, factor, processor)


def check_open_clip(folder: Path, reference: Reference) -> Check | None:
    """Reads open_clip's two files by open_clip; None, with a warning, where it is not installed."""
    try:
        import open_clip
        import torch
    except ModuleNotFoundError:
        _log.warning(
            "the files for open_clip were not checked: pip install 'clip-italian[torch,openclip]'"
        )
        return None
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    model.eval()

    @torch.inference_mode()
    def embed_images(pixels: np.ndarray) -> np.ndarray:
        return model.encode_image(torch.tensor(pixels), normalize=True).numpy()

    @torch.inference_mode()
    def embed_texts(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        del mask  # which it makes of the padding id
        return model.encode_text(torch.tensor(ids, dtype=torch.long), normalize=True).numpy()

    library = f"open_clip {open_clip.__version__} (open_clip_model.safetensors)"
    factor = model.logit_scale.exp().item()
    return compare(reference, library, embed_images, embed_texts, factor)


_KEYS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def _normalised(vectors: Any) -> Any:
    return vectors / (vectors * vectors).sum(-1, keepdims=True) ** 0.5
