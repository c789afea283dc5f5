"""Writes checkpoints of tiny towers as other programs lay them out, without torch."""

import json

import jax
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from clip_italian.batch import TokenGroup
from clip_italian.config import ModelConfig
from clip_italian.model.towers import build
from tests.tiny import TINY_BERT, TINY_VIT

PROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 1 / 255}
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def tiny_model(loss="infonce", **fields):
    tiny = {"vision_config": TINY_VIT, "text_config": TINY_BERT, "projection_dim": 16}
    return build(ModelConfig(**{**tiny, **fields}), loss=loss)


def run(model, params, *inputs, method=None, rngs=None, **flags):
    """The module applied under jit (op by op takes longer), compiled without optimisation."""

    def forward(params, inputs):
        return model.module.apply({"params": params}, *inputs, method=method, rngs=rngs, **flags)

    return jax.jit(forward, compiler_options=UNOPTIMISED)(params, inputs)


def random_like(shapes, seed=0):
    """Weights that are nowhere 0 or 1, so that a lost or misplaced one is seen."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(0.02, 0.2, s.shape).astype(np.float32), shapes)


def tower_weights(side, config, seed=3):
    """Random weights of one tower, as its own checkpoint names them in Flax."""
    model = tiny_model(**{f"{side}_config": config})
    return random_like(model.shapes()[f"{side}_model"], seed)


def assert_equal_trees(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def pytorch_names(params, prefix=""):
    """Flax parameters → PyTorch's state dict: Dense transposed, convolutions HWIO → OIHW."""
    state = {}
    for name, value in flatten_dict(params, sep=".").items():
        stem, _, leaf = name.rpartition(".")
        if leaf == "kernel":
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        if leaf in ("kernel", "scale", "embedding"):
            name = f"{stem}.weight"
        state[prefix + name] = np.ascontiguousarray(value)
    return state


def write_folder(path, config, *, flax=None, pytorch=None, processor=PROCESSOR):
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    if flax is not None:
        (path / "flax_model.msgpack").write_bytes(msgpack_serialize(flax))
    if pytorch is not None:
        save_file(pytorch, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def pixels(rows, size=32, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3)).astype(np.uint8)


def tokens(rows, length=10, seed=2, pad=0):
    """Captions of different lengths; real ids start at 5, above every special token."""
    rng = np.random.default_rng(seed)
    mask = (np.arange(length) < rng.integers(2, length + 1, rows)[:, None]).astype(np.int32)
    ids = np.where(mask == 1, rng.integers(5, 99, (rows, length)), pad).astype(np.int32)
    return TokenGroup(ids, mask)
