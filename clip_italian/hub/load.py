"""A run, an exported folder or a hub id → a model with its parameters, and that as an encoder."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from clip_italian import flags
from clip_italian.batch import ImageBatch
from clip_italian.collection import Collection, ReadImages
from clip_italian.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    resolve,
)
from clip_italian.data.tokens import (
    Tokenizer,
    check_vocabulary,
    load_tokenizer,
    ragged_encoder,
)
from clip_italian.evaluation import encode
from clip_italian.evaluation.encoders import (
    config_facts,
    digest,
    is_run,
    split_run,
    tokenizer_facts,
)
from clip_italian.hub import checkpoints
from clip_italian.model import dual_encoder
from clip_italian.model.model import Model
from clip_italian.model.towers import build
from clip_italian.training.parallel import make_parallel

_NO_LIMIT = 2**31 - 1  # tokens
_VERSION = 2  # of fingerprints; raise it when pixels, tokens or pooling of a run come out changed


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """One checkpoint of a run, or a whole model as `clip-italian export` and transformers save it.

    Attributes:
      name: the run folder's name and the step, e.g. "sample@900"; or folder or hub id.
      config: of the run; of another model what its files say, and else defaults.
      model: its towers.
      params: parameter tree, numpy.
      tokenizer: of the text tower.
      step: optimizer steps that the parameters have seen; None when that is not known.
    """

    name: str
    config: Config
    model: Model
    params: dict[str, Any]
    tokenizer: Tokenizer
    step: int | None


def load_model(spec: str, *, tokenizer: str = "") -> LoadedModel:
    """Loads a run (see `load_run`), or an exported folder or hub id (see `load_pretrained`).

    Raises:
      ConfigError: it is neither, something is missing, or it does not belong together.
    """
    if is_run(spec):
        return load_run(spec, tokenizer=tokenizer)
    return load_pretrained(spec, tokenizer=tokenizer)


def load_pretrained(name: str, *, tokenizer: str = "") -> LoadedModel:
    """Loads a VisionTextDualEncoder, or a HybridCLIP of 2021, with its tokenizer.

    Args:
      name: local folder, hub id, or hub id@revision.
      tokenizer: hub id or folder to take in place of the model's own.

    Raises:
      ConfigError: it cannot be reached, is no such model, or lacks weights.
    """
    whole = dual_encoder.describe(name, field="model (no run folder either)")
    described = ModelConfig(
        init_from=name, projection_dim=whole.projection_dim, tokenizer=tokenizer or name
    )
    loss = "infonce" if whole.logit_bias is None else "sigmoid"
    model = build(described, loss=loss)
    words = load_tokenizer(described.tokenizer)
    check_vocabulary(words, model.vocab_size)
    length = min(words.model_max_length, model.max_positions)
    config = Config(described, DataConfig(max_length=length), LossConfig(loss=loss))
    title = Path(name).resolve().name if Path(name).is_dir() else name
    return LoadedModel(title, resolve(config), model, model.init(0), words, None)


def own_description(model: ModelConfig) -> ModelConfig:
    """A run's model without what it started from, which may be gone or changed by now."""
    if not (model.init_from and model.vision_config and model.text_config):
        return model
    return dataclasses.replace(model, init_from="")


def load_run(path: str, *, tokenizer: str = "") -> LoadedModel:
    """Loads a checkpoint of a run, without its optimizer state.

    The run's `config.py` is Python and is executed: load a run only if you trust who made it.

    Args:
      path: run folder, for its newest whole checkpoint; `FOLDER@best` for the best one by its
        `best_metric`; `FOLDER@STEP` or `FOLDER/checkpoints/STEP` for that one.
      tokenizer: hub id or folder to take in place of the one that the config names.

    Raises:
      ConfigError: something is missing, damaged, of a newer version, or does not belong together.
    """
    folder, choice = split_run(path)
    config = flags.load(str(Path(folder, "config.py")))
    model = build(own_description(config.model), loss=config.loss.loss)
    step, params = checkpoints.restore(folder, choice, config, model.shapes())
    words = load_tokenizer(tokenizer) if tokenizer else _own_tokenizer(config.model, folder)
    check_vocabulary(words, model.vocab_size)
    name = f"{Path(folder).resolve().name}@{step}"
    return LoadedModel(name, config, model, params, words, step)


def _own_tokenizer(model: ModelConfig, folder: str) -> Tokenizer:
    try:
        return load_tokenizer(model.tokenizer, revision=model.text_revision)
    except ConfigError as error:
        raise ConfigError(
            f"{folder}: {error}. A relative folder counts from where training was started: "
            "start from there, or name the tokenizer"
        ) from error


class RunEncoder:
    """A loaded model as an `evaluation.encoders.Encoder`, on all devices of this host.

    Attributes:
      name: of the model.
      fingerprint: sha256 (hex) over all that decides its vectors.
      image_size: height and width of the pictures it takes, in pixels.
      max_length: tokens of a text that it reads, special ones included.
      logit_scale: factor on cosine similarities, as a plain number.
      logit_bias: added to them then by a model of the sigmoid loss; None for any other.
    """

    def __init__(self, run: LoadedModel, *, batch_size: int = 0) -> None:
        """Puts the parameters on the devices.

        Args:
          run: from `load_model`. Parameters that lie on the only device already are not copied.
          batch_size: rows over all devices, rounded up to a multiple of their number; 0 takes the
            run's `eval_batch_size`.
        """
        layout = make_parallel("mesh")
        rows = batch_size or run.config.eval.eval_batch_size
        rows = -(-rows // layout.devices) * layout.devices
        evaluation = dataclasses.replace(run.config.eval, eval_batch_size=rows)
        self._config = dataclasses.replace(run.config, eval=evaluation)
        self._run = run
        self._params = layout.replicate(run.params)
        self._image = layout.compile_rows(run.model.encode_image)
        self._patches = layout.compile_rows(run.model.encode_patches)
        self._text = layout.compile_rows(run.model.encode_text)
        self._lengths = ragged_encoder(run.tokenizer, _NO_LIMIT)
        self.name = run.name
        self.fingerprint = fingerprint(run)
        self.image_size = run.model.image_size
        self.max_length = run.config.data.max_length
        self.logit_scale = math.exp(run.params["logit_scale"])
        bias = run.params.get("logit_bias")
        self.logit_bias = None if bias is None else float(bias)

    def encode_images(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        batches = self._set(read, names).image_batches()
        return encode.encode_images(lambda pixels: self._image(self._params, pixels), batches)

    def pixels(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """What `encode_images` gives the model: uint8 [images, height, width, 3]."""
        batches = self._set(read, names).image_batches()
        return np.concatenate([batch.pixel_values[batch.mask] for batch in batches])

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embeds pictures that are cut and resized already, as `pixels` gives them.

        Args:
          pixels: uint8 [n, image_size, image_size, 3], n at least 1.

        Returns:
          float32 [n, dim], L2-normalised.

        Raises:
          ConfigError: they have another size or type.
          ValueError: there are none.
        """
        return self._encode_pixels(self._image, pixels)

    def patch_embeds(self, pixels: np.ndarray) -> np.ndarray:
        """What pictures' embeddings owe to each patch, see `HybridClip.encode_patches`.

        Args:
          pixels: as `encode_pixels` takes them.

        Returns:
          float32 [n, rows, columns, dim], differences of embeddings, patches from top left.

        Raises:
          ConfigError: they have another size or type.
          ValueError: there are none.
        """
        shape: tuple[int, ...] = ()

        def flat(params: Any, pixels: np.ndarray) -> Any:
            nonlocal shape
            embeds = self._patches(params, pixels)
            shape = embeds.shape[1:]
            return embeds.reshape(len(embeds), -1)

        return self._encode_pixels(flat, pixels).reshape(-1, *shape)

    def _encode_pixels(self, encode_batch: Callable, pixels: np.ndarray) -> np.ndarray:
        rows, last = self._config.eval.eval_batch_size, len(pixels) - 1
        starts = range(0, len(pixels), rows)
        numbers = (np.arange(start, start + rows) for start in starts)
        batches = (ImageBatch(pixels[np.minimum(some, last)], some <= last) for some in numbers)
        return encode.encode_images(lambda batch: encode_batch(self._params, batch), batches)

    def token_counts(self, texts: Sequence[str]) -> np.ndarray:
        """int64 [texts]: tokens each would need whole; beyond `max_length` they are cut off."""
        return self._lengths(texts)[1]

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        batches = self._set(lambda numbers: [], ()).batches_of(texts)
        return encode.encode_texts(lambda tokens: self._text(self._params, tokens), batches)

    def _set(self, read: ReadImages, names: Sequence[str]) -> Any:
        # TensorFlow reads pictures; writing and pushing a model does without.
        from clip_italian.data.evaluation_set import EvaluationSet

        images = Collection(self.name, "", names, read, fingerprint="")
        size = self._run.model.image_size
        return EvaluationSet(self._config, images, self._run.tokenizer, size)


def fingerprint(run: LoadedModel) -> str:
    """sha256 (hex) over all that decides the vectors, see `Encoder`."""
    model, arrays = run.model, flatten_dict(run.params, sep=".")
    return digest(
        {str(name): np.asarray(value) for name, value in arrays.items()},
        [
            "clip_italian",
            _VERSION,
            config_facts(model.vision_config),
            config_facts(model.text_config),
            [model.image_size, model.image_mean, model.image_std],
            run.config.model.dtype,
            run.config.data.max_length,
            tokenizer_facts(run.tokenizer),
        ],
    )
