"""How the layers of a tower run: what is recomputed, left out, or cheaper on CPU.

The towers stay Hugging Face's Flax modules, with their parameters: while one runs inside
`running`, Flax hands each call of a layer to an interceptor, which may run it otherwise.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from clip_italian.batch import Array

_POLICIES = {
    # Attention's products have batch dimensions: they are many bytes and few FLOPs.
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
_PATCHES = 0x466C6970  # sets the choice of patches apart from the layer's own dropout


@dataclasses.dataclass(frozen=True)
class Running:
    """How the layers of one tower run.

    Attributes:
      layer: class of the tower's layers, which are named "0", "1", ... inside one collection.
      depth: how many layers.
      attended: names of the products in a layer that need all tokens where only the first token's
        output is wanted: in the last layer every other product and norm then sees the first token
        alone. Empty where the tower pools other tokens too.
      remat: what the backward pass computes again in each layer: nothing, all but the products
        with weights, or everything but the layer's input.
      patch_dropout: share of patches left out of each image unless `deterministic`.
    """

    layer: type[nn.Module]
    depth: int
    attended: tuple[str, ...] = ()
    remat: Literal["none", "dots", "full"] = "none"
    patch_dropout: float = 0.0


@contextlib.contextmanager
def running(how: Running, *, deterministic: bool) -> Iterator[None]:
    """Towers called inside run their layers as `how` says; their initialisation is untouched.

    Args:
      how: for the tower that is called.
      deterministic: no patch is left out. Otherwise `patch_dropout` needs a "dropout" key.
    """
    patch_dropout = 0.0 if deterministic else how.patch_dropout
    intercept = _interceptor(dataclasses.replace(how, patch_dropout=patch_dropout))
    # Hugging Face's modules rest on promotion of ranks (DINOv2, BEiT) and types (all in bfloat16).
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        nn.intercept_methods(intercept),
    ):
        yield


def _interceptor(how: Running) -> Callable[..., Any]:
    inside = False  # a layer: what is lifted calls it again
    last = False  # inside the last layer, of which only the first token is wanted
    narrow = False  # after its first product that the other tokens are not needed for

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal inside, last, narrow
        module = context.module
        if context.method_name != "__call__" or module.is_initializing():
            return next_fun(*args, **kwargs)
        if type(module) is nn.Dense:
            if last and module.name not in how.attended:
                args, narrow = _first_token(*args), True
            return _dense(module, *args) if _on_cpu() else next_fun(*args, **kwargs)
        if type(module) is nn.LayerNorm and narrow:
            return next_fun(*_first_token(*args), **kwargs)
        if inside or type(module) is not how.layer:
            return next_fun(*args, **kwargs)
        inside, last = True, bool(how.attended) and module.name == str(how.depth - 1)
        try:
            hidden_states = _run(module, how, *args, **kwargs)
            return _first_token(hidden_states) if last else (hidden_states,)
        finally:
            inside = last = narrow = False

    return intercept


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _first_token(hidden_states: Array) -> tuple[Array]:
    """[n, length, width] → [n, 1, width], as the arguments or outputs of a module."""
    return (hidden_states[:, :1],)


def _run(layer: Any, how: Running, hidden_states: Array, *args: Any, **kwargs: Any) -> Array:
    """Hidden states [n, length, width] → those after one layer."""

    def call(layer: Any, hidden_states: Array) -> Array:
        return layer(hidden_states, *args, **kwargs)[0]

    if layer.name == "0" and how.patch_dropout:
        key = jax.random.fold_in(layer.make_rng("dropout"), _PATCHES)
        hidden_states = drop_patches(hidden_states, key, how.patch_dropout)
    if how.remat != "none":
        return nn.remat(call, policy=_POLICIES[how.remat])(layer, hidden_states)
    return call(layer, hidden_states)


def drop_patches(hidden_states: Array, key: Array, rate: float) -> Array:
    """Leaves a random share `rate` of the patches out, different ones in each image.

    Args:
      hidden_states: [n, 1 + patches, width], the class token first, positions already added.
      key: of `jax.random`.
      rate: in [0, 1); at least one patch stays.

    Returns:
      [n, 1 + kept, width] with kept = round((1 - rate) · patches): the class token, then patches
      in random order.
    """
    images, patches = hidden_states.shape[0], hidden_states.shape[1] - 1
    kept = max(1, round((1 - rate) * patches))
    _, chosen = jax.lax.top_k(jax.random.uniform(key, (images, patches)), kept)
    rest = jnp.take_along_axis(hidden_states[:, 1:], chosen[:, :, None], axis=1)
    return jnp.concatenate([hidden_states[:, :1], rest], axis=1)


def _dense(module: Any, inputs: Array) -> Array:
    """`nn.Dense` with a cheaper weight gradient on CPU."""
    bias = module.get_variable("params", "bias") if module.use_bias else None
    kernel = module.get_variable("params", "kernel")
    inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=module.dtype)
    outputs = _product(inputs.reshape(-1, inputs.shape[-1]), kernel)
    outputs = outputs if bias is None else outputs + bias
    return outputs.reshape(*inputs.shape[:-1], -1)


@jax.custom_vjp
def _product(inputs: Array, kernel: Array) -> Array:
    """[n, in] · [in, out]. XLA's CPU backend would copy inputs and gradient transposed."""
    return inputs @ kernel


def _product_forward(inputs: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return inputs @ kernel, (inputs, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    inputs, kernel = kept
    return (
        jax.lax.dot_general(gradient, kernel, (((1,), (1,)), ((), ()))),
        jax.lax.dot_general(inputs, gradient, (((0,), (0,)), ((), ()))),
    )


_product.defvjp(_product_forward, _product_backward)
