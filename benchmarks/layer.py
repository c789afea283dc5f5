"""One layer of the base vision tower, forward and backward: what its form costs.

    python -m benchmarks.layer
    python -m benchmarks.layer --batch 512 --dtype bfloat16

The layer is FlaxCLIPEncoderLayer, 768 wide, on 50 tokens of each image: as Hugging Face wrote it,
as `model.layers.running` runs it, and written plainly here on the same parameters, with one change
at a time: queries, keys and values in one product of joined kernels;
`jax.nn.dot_product_attention`; layer norms that compute their statistics in the layer's type.
Contestants take turns; outputs and gradients must agree first. Prints a table and one line of JSON.
"""

import functools
from collections.abc import Callable
from typing import Any

from benchmarks import measure

WIDTH, HEADS, TOKENS = 768, 12, 50


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--batch", type=int, default=32, help="images")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--rounds", type=int, default=20, help="timed turns")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of output and gradient")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    steps, sums = contestants(arguments.batch, arguments.dtype)
    worst = max(measure.check_equal(part, arguments.tolerance) for part in _parts(sums))
    measure.in_turns(steps, 2)
    turns = measure.in_turns(steps, arguments.rounds)
    rows = [
        [name, *(1e3 * measure.median(own, clock) for clock in ("wall_s", "cpu_s"))]
        for name, own in turns.items()
    ]
    headings = ("layer", "ms", "ms of CPU", "against the first")
    measure.show(headings, [[*row, rows[0][1] / row[1]] for row in rows])
    measure.finish(arguments, {"rows": rows, "difference": worst})


def _parts(sums: dict[str, tuple[float, float]]) -> list[dict[str, float]]:
    return [{name: value[part] for name, value in sums.items()} for part in (0, 1)]


def contestants(
    batch: int, dtype: str
) -> tuple[dict[str, Callable[[], Any]], dict[str, tuple[float, float]]]:
    """Steps by name; and of each the sum of squares of its output and of its gradients."""
    import jax
    import jax.numpy as jnp
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_flax_clip import FlaxCLIPEncoderLayer

    from clip_italian.model.layers import Running, running

    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_attention_heads=HEADS
    )
    module = FlaxCLIPEncoderLayer(config, dtype=jnp.dtype(dtype))
    x = jax.random.normal(jax.random.key(0), (batch, TOKENS, WIDTH), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(1), x, None)["params"]

    def theirs(params: Any, x: Any) -> Any:
        return module.apply({"params": params}, x, None)[0]

    def ours(params: Any, x: Any) -> Any:
        with running(Running(FlaxCLIPEncoderLayer, depth=2), deterministic=True):
            return theirs(params, x)

    written = functools.partial(plain, dtype=dtype)
    layers = {
        "Hugging Face": theirs,
        "ours": ours,
        "plain": written,
        "plain, joined queries, keys and values": functools.partial(written, joined=True),
        "plain, dot_product_attention": functools.partial(written, fused=True),
    }
    if dtype != "float32":
        layers["plain, norms in its type"] = functools.partial(written, norm_dtype=dtype)

    def objective(layer: Callable, params: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(layer(params, x).astype(jnp.float32)))

    steps, sums = {}, {}
    for name, layer in layers.items():
        step = jax.jit(jax.value_and_grad(functools.partial(objective, layer), argnums=(0, 1)))
        value, gradients = step(params, x)
        squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradients))
        sums[name] = float(value), float(squares)
        steps[name] = functools.partial(lambda step: jax.block_until_ready(step(params, x)), step)
    return steps, sums


def plain(
    params: Any,
    x: Any,
    *,
    dtype: str,
    joined: bool = False,
    fused: bool = False,
    norm_dtype: str = "float32",
) -> Any:
    """The layer in a few lines: pre-norm attention, then a feed-forward layer with quick GELU."""
    import jax
    import jax.numpy as jnp

    def norm(x: Any, own: Any) -> Any:
        x = x.astype(norm_dtype)
        centred = x - jnp.mean(x, -1, keepdims=True)
        spread = jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + 1e-5)
        scale, bias = (own[name].astype(norm_dtype) for name in ("scale", "bias"))
        return (centred * spread * scale + bias).astype(dtype)

    def dense(x: Any, *parts: Any) -> Any:
        kernel, bias = (
            jnp.concatenate([part[name] for part in parts], -1).astype(dtype)
            for name in ("kernel", "bias")
        )
        return x @ kernel + bias

    own = params["self_attn"]
    names = ("q_proj", "k_proj", "v_proj")
    hidden = norm(x.astype(dtype), params["layer_norm1"])
    if joined:
        parts = jnp.split(dense(hidden, *(own[name] for name in names)), 3, -1)
    else:
        parts = [dense(hidden, own[name]) for name in names]
    queries, keys, values = (part.reshape(*part.shape[:2], HEADS, -1) for part in parts)
    if fused:
        attended = jax.nn.dot_product_attention(queries, keys, values)
    else:
        scores = jnp.einsum("bqhd,bkhd->bhqk", queries / (WIDTH // HEADS) ** 0.5, keys)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)
    x = x.astype(dtype) + dense(attended.reshape(x.shape), own["out_proj"])
    hidden = dense(norm(x, params["layer_norm2"]), params["mlp"]["fc1"])
    return x + dense(hidden * jax.nn.sigmoid(1.702 * hidden), params["mlp"]["fc2"])


if __name__ == "__main__":
    main()
