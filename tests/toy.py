"""A toy dual encoder with the model's parameter names, for tests of the training room."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from clip_italian.batch import Batch, TokenGroup, batch_number
from clip_italian.config import Config, ModelConfig, OptimConfig, TrainConfig, resolve
from clip_italian.training.losses import HIGHEST

PIXELS, VOCABULARY, WIDTH, DIM = (4, 4, 3), 17, 12, 8


def init_params(seed=0, bias=False):
    rng = np.random.default_rng(seed)

    def weights(*shape):
        return jnp.asarray(rng.normal(0, 0.3, shape), jnp.float32)

    params = {
        "vision_model": {"layer": {"kernel": weights(48, WIDTH), "bias": weights(WIDTH)}},
        "text_model": {"embeddings": {"embedding": weights(VOCABULARY, WIDTH)}},
        "visual_projection": {"kernel": weights(WIDTH, DIM)},
        "text_projection": {"kernel": weights(WIDTH, DIM)},
        "logit_scale": jnp.asarray(np.log(10.0), jnp.float32),
    }
    if bias:
        params["logit_bias"] = jnp.asarray(-2.0, jnp.float32)
    return params


def apply_fn(params, batch, key, moving, shards):
    del key, moving
    pixels = batch.pixel_values.astype(jnp.float32).reshape(batch.pixel_values.shape[0], -1) / 255
    layer = params["vision_model"]["layer"]
    hidden = jnp.tanh(jnp.matmul(pixels, layer["kernel"], precision=HIGHEST) + layer["bias"][None])
    table = params["text_model"]["embeddings"]["embedding"]
    pooled = []
    for group in batch.text:
        mask = group.attention_mask[..., None].astype(jnp.float32)
        mean = (table[group.input_ids] * mask).sum(1) / mask.sum(1)
        pooled.append(jnp.tanh(mean).reshape(shards, -1, WIDTH))
    texts = jnp.concatenate(pooled, axis=1).reshape(-1, WIDTH)

    def project(x, name):
        x = jnp.matmul(x, params[name]["kernel"], precision=HIGHEST)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    return SimpleNamespace(
        image_embeds=project(hidden, "visual_projection"),
        text_embeds=project(texts, "text_projection"),
        logit_scale=params["logit_scale"],
        logit_bias=params.get("logit_bias"),
    )


def batch(seed, pairs=16, length=5):
    rng = np.random.default_rng([7, seed])
    ids = rng.integers(1, VOCABULARY, (pairs, length)).astype(np.int32)
    mask = (np.arange(length)[None] < rng.integers(1, length + 1, (pairs, 1))).astype(np.int32)
    return Batch(
        pixel_values=rng.integers(0, 256, (pairs, *PIXELS)).astype(np.uint8),
        text=(TokenGroup(ids, mask),),
        image_id=np.stack([np.arange(pairs), np.full(pairs, seed)], 1).astype(np.int32),
        caption_id=rng.integers(0, 2**31, (pairs, 2)).astype(np.int32),
    )


def batches_from(step, skipped=()):
    while True:
        yield batch(batch_number(step, skipped))
        step += 1


def config(*, steps=20, loss=None, train=None, **optim):
    tower = {"model_type": "toy"}
    base = Config(
        model=ModelConfig(vision_config=tower, text_config=tower),
        train=TrainConfig(**{"steps": steps, "batch_size": 16, **(train or {})}),
        optim=OptimConfig(**{"learning_rate": 1e-2, **optim}),
        **({"loss": loss} if loss else {}),
    )
    return resolve(base)


def learned(cfg):
    """The same config with a learned similarity scale."""
    import dataclasses

    return dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, learn_logit_scale=True))
