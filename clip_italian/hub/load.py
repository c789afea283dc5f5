"""A run, an exported folder or a hub id → a model with its parameters, and that as an encoder."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict

from clip_italian import flags
from clip_italian.collection import Collection, ReadImages
from clip_italian.config import (
    Config,
    ConfigError,
    DataConfig,
    LossConfig,
    ModelConfig,
    resolve,
)
from clip_italian.data.tokens import Tokenizer, check_vocabulary, load_tokenizer
from clip_italian.evaluation import encode
from clip_italian.evaluation.encoders import (
    config_facts,
    digest,
    is_run,
    split_run,
    tokenizer_facts,
)
from clip_italian.model import dual_encoder
from clip_italian.model.model import Model
from clip_italian.model.towers import build
from clip_italian.training import saved
from clip_italian.training.checkpoint import FORMAT_VERSION, describe
from clip_italian.training.parallel import make_parallel

_VERSION = 2  # of fingerprints; raise it when pixels, tokens or pooling of a run come out changed
# Fields that decide what the parameters mean.
_MEANING = (*(field.name for field in dataclasses.fields(ModelConfig)), "loss", "max_length")


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
    step, params = _restore(folder, choice, config, model.shapes())
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


def _restore(
    folder: str, choice: str, config: Config, shapes: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """The chosen step and its parameters (their average, where it keeps one) as numpy arrays."""
    place = epath.Path(folder).resolve() / "checkpoints"
    if not place.is_dir():
        raise ConfigError(f"{folder} holds no folder `checkpoints`; name the folder of a run")
    step = _choose(place, folder, choice, config.eval.best_metric)
    # Neither makes nor cleans up anything: the run may still be training and writing here. Nor
    # does it read the metrics of other steps, which may be damaged.
    options = ocp.CheckpointManagerOptions(
        create=False, cleanup_tmp_directories=False, lightweight_initialize=True
    )
    with ocp.CheckpointManager(place, options=options) as manager:
        run = manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]
        _check(run, config, f"{folder}, step {step}")
        leaf = ocp.RestoreArgs(restore_type=np.ndarray)
        part = "ema" if config.optim.ema_decay else "params"
        wanted = ocp.args.PyTreeRestore(
            item={part: shapes},
            restore_args={part: jax.tree.map(lambda _: leaf, shapes)},
            partial_restore=True,
        )
        state = manager.restore(step, args=ocp.args.Composite(state=wanted))["state"]
    return step, state[part]


def _choose(place: epath.Path, folder: str, choice: str, metric: str) -> int:
    """The step, whose files are as they were saved: asked for none, the newest of which that holds.

    A damaged one that was asked for is an error: another one would pass for it.
    """
    steps = saved.steps(place)
    if choice == "best":
        for step in steps:
            saved.check(place, step, quick=True)  # whose metrics decide
        found = saved.best(place, metric)
        if found is None:
            raise ConfigError(f"{folder}: no checkpoint has been evaluated by {metric!r}")
        choice = str(found[0])
    if not steps:
        raise ConfigError(f"{folder} holds no whole checkpoint yet")
    if not choice:
        newest, damaged = saved.newest_whole(place)
        if newest is None:
            raise ConfigError(f"all checkpoints of {folder} are DAMAGED: steps {sorted(damaged)}")
        return newest
    step = int(choice)
    if step not in steps:
        raise ConfigError(f"{folder} holds no checkpoint of step {step}; it has {steps}")
    saved.check(place, step)
    return step


def _check(saved: dict[str, Any], config: Config, where: str) -> None:
    """Refuses a newer format, and a `config.py` that is not the checkpoint's."""
    if saved["format_version"] > FORMAT_VERSION:
        raise ConfigError(
            f"{where} was written by a newer version (checkpoint format "
            f"{saved['format_version']}, this one reads up to {FORMAT_VERSION}); upgrade to read it"
        )
    then, now = saved["config"], describe(config, "")["config"]
    # A field that did not exist then has its default now.
    changed = [name for name in _MEANING if name in then and then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"{where} does not belong to the config.py beside it: {', '.join(changed)} differ"
        )


class RunEncoder:
    """A loaded model as an `evaluation.encoders.Encoder`, on all devices of this host."""

    def __init__(self, run: LoadedModel, *, batch_size: int = 0) -> None:
        """Puts the parameters on the devices.

        Args:
          run: from `load_model`.
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
        self._text = layout.compile_rows(run.model.encode_text)
        self.name = run.name
        self.fingerprint = fingerprint(run)

    def encode_images(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """See `Encoder`."""
        batches = self._set(read, names).image_batches()
        return encode.encode_images(lambda pixels: self._image(self._params, pixels), batches)

    def pixels(self, read: ReadImages, names: Sequence[str]) -> np.ndarray:
        """What `encode_images` gives the model: uint8 [images, height, width, 3]."""
        batches = self._set(read, names).image_batches()
        return np.concatenate([batch.pixel_values[batch.mask] for batch in batches])

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
