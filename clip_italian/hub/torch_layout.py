"""Flax parameters → PyTorch's names and layouts, without PyTorch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

# Last part of a Flax name → of PyTorch's: layer norms, tables and matrices are all `weight` there.
_WEIGHTS = ("kernel", "scale", "embedding")


def to_pytorch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A Flax parameter tree → a PyTorch state dict.

    Args:
      params: tree of a model or a tower; Dense kernels [in, out], convolutions
        [height, width, in, out].

    Returns:
      Arrays by name, parts joined with dots: Linear weights [out, in], convolutions
      [out, in, height, width]; all else as it was.
    """
    state = {}
    flat: dict[str, Any] = flatten_dict(dict(params), sep=".")
    for name, value in flat.items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[f"{stem}.weight" if leaf in _WEIGHTS else name] = np.ascontiguousarray(value)
    # `ascontiguousarray` gives a number a dimension, which exp(logit_scale) must not have.
    return {name: a.reshape(()) if name.startswith("logit_") else a for name, a in state.items()}
