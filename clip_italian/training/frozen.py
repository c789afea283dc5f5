"""Outputs of frozen towers, computed once: what that takes of a run."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
from flax import traverse_util

from clip_italian.config import Config
from clip_italian.training.loop import plan
from clip_italian.training.parallel import Parallel
from clip_italian.training.step import TrainState

Data = TypeVar("Data")


class Pools(Protocol):
    """A model whose towers can be asked for their pooled outputs."""

    @property
    def vision_config(self) -> Any:
        """Hugging Face configuration of the vision tower."""
        ...

    @property
    def text_config(self) -> Any:
        """Hugging Face configuration of the text tower."""
        ...

    def pool_image(self, params: Any, pixel_values: Any) -> Any:
        """Parameters and uint8 [n, height, width, 3] → [n, width]."""
        ...

    def pool_text(self, params: Any, tokens: Any) -> Any:
        """Parameters and one token group → [n, width]."""
        ...


def with_features(
    config: Config,
    data: Data,
    cache_features: Callable[..., Data],
    model: Pools,
    parallel: Parallel,
    state: TrainState,
) -> Data:
    """The data of a run with the outputs of its frozen towers, where it wants them cached.

    Args:
      config: a resolved config.
      data: what the run reads.
      cache_features: how the data room stores them, `clip_italian.data.opening.cache_features`.
      model: whose towers.
      parallel: the layout.
      state: at which the run starts or goes on; until a tower's thaw its parameters stay these.
    """
    if not config.data.cached_views:
        return data

    def pooled(function: Callable) -> Callable:
        compiled = parallel.compile_rows(function)
        return lambda rows: np.asarray(compiled(state.params, rows))

    towers = {"vision": state.params["vision_model"], "text": state.params["text_model"]}
    return cache_features(
        config,
        data,
        pool_image=pooled(model.pool_image),
        pool_text=pooled(model.pool_text),
        frozen_until={name: frozen_until(config, name) for name in towers},
        fingerprints={
            name: fingerprint(tower, getattr(model, f"{name}_config").to_dict())
            for name, tower in towers.items()
        },
        first_step=int(state.step),
    )


def frozen_until(config: Config, group: str) -> int | None:
    """First step at which a group moves; None: never."""
    return next((phase.start for phase in plan(config)[1] if group in phase.moving), None)


def fingerprint(params: Any, description: Mapping[str, Any]) -> str:
    """sha256 (hex) of a frozen tower: names, shapes and bytes of its parameters, and what it is.

    Activation, heads or epsilons are not in the parameters. Of the description everything counts
    but dropout, which a frozen tower has none of, and where and by which version it was saved.
    """
    digest = hashlib.sha256()
    said = {
        name: value
        for name, value in description.items()
        if "drop" not in name and not name.startswith("_") and name != "transformers_version"
    }
    digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    for name, value in sorted(traverse_util.flatten_dict(dict(params), sep="/").items()):
        array = np.ascontiguousarray(jax.device_get(value))
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
