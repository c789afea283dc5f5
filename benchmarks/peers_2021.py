"""The training step of 2021, written plainly after its description, as a peer to be timed.

Hugging Face's Flax modules as they are, all captions padded to one length, float32 throughout;
pmap over a state with a device axis; loss over each device's own pairs; dropout on in both modes;
adaptive gradient clipping and AdaBelief over every parameter. Its frozen mode stops the gradient
behind the towers, and still holds both moments of all parameters, drops in the frozen towers, and
averages and applies gradients that are zero.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from transformers import BertConfig, CLIPVisionConfig
from transformers.models.bert.modeling_flax_bert import FlaxBertModule
from transformers.models.clip.modeling_flax_clip import FlaxCLIPVisionModule

SCALE = 20.0
DROPOUT = 0.1  # of BERT; the vision tower's own rate is 0


class State(NamedTuple):
    """Each leaf has a leading axis of devices."""

    params: Any
    opt_state: Any
    rng: jax.Array


class HybridClip2021(nn.Module):
    """Two towers and two projections."""

    vision_config: CLIPVisionConfig
    text_config: BertConfig
    projection_dim: int
    frozen: bool

    def setup(self) -> None:
        self.vision_model = FlaxCLIPVisionModule(self.vision_config)
        self.text_model = FlaxBertModule(self.text_config)
        self.visual_projection = nn.Dense(self.projection_dim, use_bias=False)
        self.text_projection = nn.Dense(self.projection_dim, use_bias=False)

    def __call__(self, pixel_values: Any, input_ids: Any, attention_mask: Any, train: bool) -> Any:
        """Float pixels [n, height, width, 3], int32 [n, length] twice → logits [n, n]."""
        positions = jnp.broadcast_to(jnp.arange(input_ids.shape[1]), input_ids.shape)
        types = jnp.zeros_like(input_ids)
        seen: Any = self.vision_model(pixel_values, deterministic=not train)
        read: Any = self.text_model(
            input_ids, attention_mask, types, positions, deterministic=not train
        )
        image, text = seen.pooler_output, read.pooler_output
        if self.frozen:
            image, text = jax.lax.stop_gradient((image, text))
        image, text = self.visual_projection(image), self.text_projection(text)
        image /= jnp.linalg.norm(image, axis=-1, keepdims=True)
        text /= jnp.linalg.norm(text, axis=-1, keepdims=True)
        return SCALE * text @ image.T


def build(vision: Mapping[str, Any], text: Mapping[str, Any], dim: int, *, frozen: bool) -> Any:
    """The module, from the configurations of its towers."""
    rates = {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": DROPOUT}
    vision_config = CLIPVisionConfig.from_dict(dict(vision))
    text_config = BertConfig.from_dict({**text, **rates})
    return HybridClip2021(vision_config, text_config, dim, frozen)


def optimizer() -> optax.GradientTransformation:
    """Adaptive gradient clipping, then AdaBelief with the eps that optax had in 2021."""
    return optax.chain(
        optax.adaptive_grad_clip(0.01, eps=1e-3),
        optax.adabelief(1e-5, eps=0.0, eps_root=1e-16),
    )


def init_state(params: Mapping[str, Any]) -> State:
    """The state on one device, from a parameter tree of ours (float32)."""
    params = {name: part for name, part in params.items() if name != "logit_scale"}
    state = State(params, optimizer().init(params), jax.random.PRNGKey(42))
    return spread(state)


def spread(tree: Any) -> Any:
    """Arrays → with a leading axis for the one device, laid out as pmap gives them back.

    Otherwise the second step would be compiled anew for the layout that the first one returns.
    """
    leading = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)
    return jax.pmap(lambda leaves: leaves, axis_name="batch")(leading)


def contrastive_loss(logits: jax.Array) -> jax.Array:
    """Both cross-entropies over one device's logits [n, n]: float32 []."""

    def cross_entropy(rows: jax.Array) -> jax.Array:
        return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(rows, axis=-1)))

    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def make_step(module: Any) -> Any:
    """The compiled step: (state, batch) → (state, loss [devices]); the state's memory is reused."""

    def step(state: State, batch: Mapping[str, jax.Array]) -> tuple[State, jax.Array]:
        key, rng = jax.random.split(state.rng)
        key = jax.random.fold_in(key, jax.lax.axis_index("batch"))

        def objective(params: Any) -> jax.Array:
            rngs = {"dropout": key}
            return contrastive_loss(
                module.apply({"params": params}, **batch, train=True, rngs=rngs)
            )

        loss, grads = jax.value_and_grad(objective)(state.params)
        grads = jax.lax.pmean(grads, "batch")
        updates, opt_state = optimizer().update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, opt_state, rng), jax.lax.pmean(loss, "batch")

    return jax.pmap(step, axis_name="batch", donate_argnums=(0,))


def place(pixel_values: Any, ids: Any, mask: Any, mean: Any, std: Any) -> dict[str, jax.Array]:
    """A batch as 2021 made it: pixels uint8 [n, h, w, 3] normalised on the host, in float32."""
    pixels = (pixel_values.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    batch = {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask}
    return {name: jnp.asarray(value) for name, value in batch.items()}


def first_loss(module: Any, params: Any, batch: Mapping[str, jax.Array]) -> float:
    """The loss with dropout off, for the check before timing; arrays without an axis of devices."""

    def loss(params: Any, rows: Mapping[str, jax.Array]) -> jax.Array:
        return contrastive_loss(module.apply({"params": params}, **rows, train=False))

    return float(jax.jit(loss)(params, batch))
