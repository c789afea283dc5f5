"""Command line and config files → a valid config, and back to a file."""

import dataclasses
import math
import pprint
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from clip_italian.config import (
    GROUPS,
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    leaves,
    resolve,
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Train a CLIP for your language. Flags override the values of the config file."""

    config: str = ""
    """Python file with `config = Config(...)` to start from; empty takes the defaults shown."""
    dry_run: bool = False
    """Print the plan of the run (phases, parameters, schedules, cost) and stop."""
    run: tyro.conf.OmitArgPrefixes[Config] = dataclasses.field(default_factory=Config)


def parse(argv: Sequence[str]) -> Arguments:
    """Command line (without the program's name) → arguments with a resolved, valid config.

    Exits with status 2 and a message on a wrong flag; raises `ConfigError` on a wrong value.
    """
    path = _config_path(argv)
    default = Arguments(config=path, run=load(path) if path else Config())
    parsed = tyro.cli(
        Arguments,
        args=list(argv),
        default=default,
        prog="run_hybrid_clip.py",
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    _check_replaced(parsed.run.model, default.run.model)
    run = resolve(parsed.run)
    validate(run)
    return dataclasses.replace(parsed, run=run)


def _check_replaced(model: ModelConfig, before: ModelConfig) -> None:
    """Refuses towers at the shell beside `init_from`, which replaces those of a config file."""
    for name in ("vision_tower", "text_tower", "vision_revision", "text_revision"):
        value = getattr(model, name)
        if model.init_from and value != getattr(before, name):
            raise ConfigError(
                f"{name} = {value!r} is not allowed beside init_from, which brings both towers; "
                "leave one of them out"
            )


def _config_path(argv: Sequence[str]) -> str:
    path = ""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == "--config":
            path = following
        elif word.startswith("--config="):
            path = word.removeprefix("--config=")
    return path


def load(path: str) -> Config:
    """Reads `config = Config(...)` from a Python file. Raises `ConfigError` if there is none."""
    if not Path(path).is_file():
        raise ConfigError(f"config: no such file: {path}")
    config = runpy.run_path(path).get("config")
    if not isinstance(config, Config):
        raise ConfigError(f"config: {path} must define `config = Config(...)`, found {config!r}")
    return config


def dump(config: Config) -> str:
    """The config as the text of a Python file that `load` reads back to an equal config."""
    body = pprint.pformat(config, width=100, sort_dicts=False)
    names = sorted(
        {type(getattr(config, f.name)).__name__ for f in dataclasses.fields(config)}
        | {"Config", "Segment"}
    )
    imports = "".join(f"    {name},\n" for name in names)
    return (
        '"""Resolved configuration of this run; itself a valid --config."""\n\n'
        f"from clip_italian.config import (  # noqa: F401\n{imports})\n\nconfig = {body}\n"
    )


def validate(config: Config) -> None:
    """Checks every field of a resolved config that can be checked without devices or data.

    Raises:
      ConfigError: names the field, its value and what is allowed.
    """
    values = dict(leaves(config))
    for name in _POSITIVE:
        value = values[name]
        _require(value is None or value > 0, name, value, "a number above 0")
    for name in _NOT_NEGATIVE:
        value = values[name]
        _require(value is None or value >= 0, name, value, "0 or more")
    for name in ("b1", "b2", "dropout", "patch_dropout", "ema_decay"):
        _require(0 <= values[name] < 1, name, values[name], "0 ≤ value < 1")
    for name, value in values.items():
        if isinstance(value, float):
            _require(math.isfinite(value), name, value, "a finite number")
    for side in ("vision", "text"):
        _check_tower(values, side)
    _check_sources(config.data)
    _check_schedule(config)
    _check_no_effect(config)


_POSITIVE = (
    "image_size", "projection_dim", "logit_scale", "logit_scale_max", "max_length",
    "reader_threads", "prefetch", "steps", "batch_size", "log_every", "save_every",
    "keep_checkpoints", "eval_every", "eval_batch_size", "learning_rate", "length_groups",
    "layer_decay",
)  # fmt: skip
_NOT_NEGATIVE = (
    "vision_learning_rate", "text_learning_rate", "projection_learning_rate", "warmup_steps",
    "decay_steps", "vision_thaw_step", "text_thaw_step", "weight_decay", "agc_clip", "clip_norm",
    "eval_images", "seed", "cached_views", "micro_batch",
)  # fmt: skip


def _require(condition: bool, name: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{name} = {value!r} is not allowed; give {allowed}")


def _check_tower(values: dict[str, Any], side: str) -> None:
    tower, shape = values[f"{side}_tower"], values[f"{side}_config"]
    if not (values["init_from"] or tower or shape):
        raise ConfigError(
            f"{side}_tower is empty and {side}_config is not set: name a hub id or a local folder, "
            f"or start from a config file (--config) that states {side}_config"
        )
    _require(
        shape is None or "model_type" in shape,
        f"{side}_config",
        shape,
        "a Hugging Face configuration with its model_type",
    )


def _check_sources(data: DataConfig) -> None:
    _require(len(data.sources) > 0, "sources", data.sources, "at least one source")
    unique = len(set(data.sources)) == len(data.sources)
    _require(unique, "sources", data.sources, "each source once; use weights to repeat one")
    _require(
        len(data.weights) == len(data.sources),
        "weights",
        data.weights,
        f"one weight for each of the {len(data.sources)} sources {data.sources}",
    )
    for weight in data.weights:
        _require(weight > 0, "weights", data.weights, "weights above 0; leave a source out instead")


def _check_no_effect(config: Config) -> None:
    """Refuses what would be ignored: a flag without effect is worse than an error."""
    optim, model = config.optim, config.model
    if optim.optimizer == "adabelief":
        allowed = "0 with adabelief, which has no weight decay, or optimizer adamw"
        _require(optim.weight_decay == 0, "weight_decay", optim.weight_decay, allowed)
    if model.learn_logit_scale and model.logit_scale is not None:
        scale, most = model.logit_scale, model.logit_scale_max
        _require(scale <= most, "logit_scale", scale, f"at most logit_scale_max ({most:g})")
    _require(optim.layer_decay <= 1, "layer_decay", optim.layer_decay, "0 < value ≤ 1")
    data, train = config.data, config.train
    drawn = data.cached_views < 2 or data.augment != "none" or data.flip
    allowed = "1: without augmentation or flip all views are equal"
    _require(drawn, "cached_views", data.cached_views, allowed)
    frozen = not data.cached_views or not all(_moves_at_once(optim, s) for s in ("vision", "text"))
    allowed = "0, or freeze a tower: both move from the first step"
    _require(frozen, "cached_views", data.cached_views, allowed)
    fits = not train.micro_batch or train.batch_size % train.micro_batch == 0
    allowed = f"0 or a divisor of batch_size ({train.batch_size})"
    _require(fits, "micro_batch", train.micro_batch, allowed)
    mesh = train.parallel == "mesh" or not train.shard_params
    _require(mesh, "shard_params", True, "it with --parallel mesh only, or leave it out")
    if optim.segments:
        for name in _REPLACED_BY_SEGMENTS:
            value, default = getattr(optim, name), getattr(OptimConfig(), name)
            allowed = "it in the config file's segments, which replace it"
            _require(value == default, name, value, allowed)


def _moves_at_once(optim: OptimConfig, side: str) -> bool:
    if optim.segments:
        starts = (s.start_step for s in optim.segments if s.group == side and s.learning_rate > 0)
        return 0 in starts
    return getattr(optim, f"{side}_thaw_step") == 0


_REPLACED_BY_SEGMENTS = (
    "learning_rate", "vision_learning_rate", "text_learning_rate", "projection_learning_rate",
    "warmup_steps", "decay_steps", "vision_thaw_step", "text_thaw_step",
)  # fmt: skip


def _check_schedule(config: Config) -> None:
    optim, steps = config.optim, config.train.steps
    for segment in optim.segments:
        _require(segment.group in GROUPS, "segments", segment, f"a group out of {GROUPS}")
        _require(
            segment.start_step >= 0
            and 0 <= segment.warmup_steps <= segment.decay_steps
            and segment.learning_rate >= 0,
            "segments",
            segment,
            "start_step ≥ 0, learning_rate ≥ 0 and 0 ≤ warmup_steps ≤ decay_steps",
        )
    if not optim.segments:
        for name in ("vision_thaw_step", "text_thaw_step"):
            thaw = getattr(optim, name)
            decay_steps = optim.decay_steps or steps
            fits = thaw is None or thaw + optim.warmup_steps <= max(decay_steps, 1)
            allowed = f"a step for which thaw + warmup_steps ≤ decay_steps ({decay_steps}), or None"
            _require(fits, name, thaw, allowed)
