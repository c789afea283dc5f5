"""What a picture's pooled vector owes to each of its patches, from one forward pass.

Layers add to what came before them, so what a tower pools is a sum: what each layer's attention
carried into it from each token, and what it and the feed-forward layers made of it themselves.
The former are the direct effects of image tokens (Gandelsman, Efros and Steinhardt 2024,
arXiv:2310.05916). There they go through the last norm as through a fixed scale; here each patch's
part is taken out of the sum, and what is left is pooled.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from clip_italian.batch import Array
from clip_italian.model.layers import Running, running


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """Where in a vision tower its patches' parts are found.

    Attributes:
      attention: class of the layers' attention. It takes `output_attentions`, and the last product
        inside it is its output's.
      values: name of the product inside it that makes the values.
      head: the tower and what it pools before any norm, [n, tokens, width] → [n, tokens, pooled
        width]: what it makes of each.
      scaled: a layer and what its attention gives, [n, tokens, width] → what is added of that.
      pools_patches: the tower's configuration → whether it pools the mean over patches, not the
        first token.
    """

    attention: type[nn.Module]
    values: str
    head: Callable[[Any, Array], Array]
    scaled: Callable[[Any, Array], Array] = lambda layer, added: added
    pools_patches: Callable[[Any], bool] = lambda config: False


def without_each_patch(
    tower: Any, anatomy: Anatomy, how: Running, pixels: Array
) -> tuple[Array, Array]:
    """Pools pictures, as they are and with the direct part of each patch taken out.

    Args:
      tower: vision tower, a bound module.
      anatomy: of that tower.
      how: its layers run; here they do so whole and once.
      pixels: float [n, height, width, 3], normalised.

    Returns:
      [n, 1, pooled width], and [n, patches, pooled width], patches from top left.
    """
    pools_patches = anatomy.pools_patches(tower.config)
    whole = dataclasses.replace(how, attended=(), remat="none")
    recording = _recording(anatomy, pools_patches)
    # In this order: `running` may replace a product, and then asks none that comes after it.
    with recording as carried, running(whole, deterministic=True):
        outputs = tower(pixels, deterministic=True, output_hidden_states=True)
        first, last = (outputs.hidden_states[i].astype(jnp.float32) for i in (0, -1))
        read = _readout(last.shape[1], pools_patches)
        pooled = jnp.einsum("k,nkw->nw", read, last)[:, None]
        parts = read[:, None] * first + sum(carried)
        return anatomy.head(tower, pooled), anatomy.head(tower, pooled - parts[:, 1:])


def _readout(length: int, pools_patches: bool) -> Array:
    """Weight of each token in what is pooled, float32 [length]."""
    patch = jnp.arange(length) > 0
    return patch / (length - 1) if pools_patches else 1.0 - patch


@contextlib.contextmanager
def _recording(anatomy: Anatomy, pools_patches: bool) -> Iterator[list[Array]]:
    """Yields a list, to which each layer adds what it carries: float32 [n, tokens, width]."""
    carried: list[Array] = []
    values = kernel = jnp.zeros(())

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        nonlocal values, kernel
        module = context.module
        if context.method_name == "__call__" and type(module) is nn.Dense:
            product = next_fun(*args, **kwargs)
            values = product if module.name == anatomy.values else values
            kernel = module.get_variable("params", "kernel")
            return product
        if context.method_name != "__call__" or type(module) is not anatomy.attention:
            return next_fun(*args, **kwargs)
        output, weights = next_fun(*args, **{**kwargs, "output_attentions": True})
        parts = _carried(weights, values, pools_patches) @ kernel
        carried.append(anatomy.scaled(module.parent, parts))
        return (output,)

    with nn.intercept_methods(intercept):
        yield carried


def _carried(weights: Array, values: Array, pools_patches: bool) -> Array:
    """What the tokens that are pooled take from each token, before the output's product.

    Args:
      weights: of attention, [n, heads, tokens, tokens]; each row of the last axis sums to 1.
      values: [n, tokens, width].
      pools_patches: see `Anatomy`.

    Returns:
      float32 [n, tokens, width].
    """
    images, heads, length, _ = weights.shape
    read = _readout(length, pools_patches)
    taken = jnp.einsum("q,nhqk->nkh", read, weights.astype(jnp.float32))
    by_head = values.astype(jnp.float32).reshape(images, length, heads, -1)
    return (taken[..., None] * by_head).reshape(values.shape)
