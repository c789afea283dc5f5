"""The training step on one GPU: speed, utilisation, largest batch and compilation.

    python -m benchmarks.gpu                          # under 8 minutes on one H200
    python -m benchmarks.gpu --size tiny --batch 16   # the whole script on a CPU, to try it

CLIP-ViT-B/32 and BERT-base in bf16, AdamW, synthetic batches; no TensorFlow. Checks that losses
agree before it times, takes turns with PyTorch (torch.compile, bf16 autocast, scaled dot-product
attention) where PyTorch is there, skips what no longer fits into `--seconds`, and says so. MFU is
on real tokens, against the vendor's dense bf16 peak; `of_product` is against a plain bf16 product
of 8192 × 8192 matrices on the same GPU. Each time is the median over turns of `--steps` steps.

A machine without network wants these wheels beside jax[cuda13] (or cuda12) and, for the peer,
torch. Where a network is (same Python version and platform as there):

    pip download --only-binary=:all: --no-deps -d wheels transformers==4.57.6 \
        'huggingface_hub>=0.34,<1' 'tokenizers>=0.22,<0.23' 'flax>=0.12,<0.13' \
        'optax>=0.2.5,<0.3' 'orbax-checkpoint>=0.12,<0.13' tyro typeguard docstring_parser \
        shtab tensorboardX safetensors regex hf-xet

and there, away from packages that need a newer transformers or huggingface_hub:

    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site:. python -m benchmarks.gpu --out gpu.json
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import measure

BF16 = {"dtype": "bfloat16"}
# Row, what is measured of it, good, ambitious.
TARGETS = (
    ("real lengths", "mfu", 0.35, 0.45),
    ("24 tokens", "pairs/s", 8_900, 11_500),
    ("24 tokens, pictures cached", "pairs/s", 24_000, 36_000),
    ("real lengths", "compile_s", 60, 20),
    ("real lengths, warm cache", "compile_s", 10, 3),
)
AGAINST = {"torch padded": (1.9, 2.5), "torch same lengths": (1.0, 1.2)}


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.set_defaults(threads=16)
    parser.add_argument("--size", default="base", help="base, middle or tiny (workload.SIZES)")
    parser.add_argument("--batch", type=int, default=512, help="pairs of the compared steps")
    parser.add_argument("--large", type=int, nargs="+", help="batches with micro-batches")
    parser.add_argument("--micro_batch", type=int, help="pairs encoded at once in those")
    parser.add_argument("--rounds", type=int, default=5, help="turns")
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn")
    parser.add_argument("--seconds", type=float, default=460, help="budget of the whole script")
    parser.add_argument("--no_torch", action="store_true", help="leave PyTorch out")
    flags = parser.parse_args()
    base = flags.size == "base"
    flags.large = flags.large or ([8_192, 32_768] if base else [64])
    flags.micro_batch = flags.micro_batch or (1_024 if base else 16)
    measure.pin(flags.threads)
    measure.hide_torchvision()
    # JAX would take three quarters of the memory at once, and PyTorch needs its part.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from benchmarks.sections import Run

    run = Run(flags)
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        scale = 1.0 if base else 0.2
        run.section("bf16 product", 5, bf16_product)
        run.section("compared", 150 * scale, compared)
        run.section("short captions", 60 * scale, short_captions)
        for pairs in flags.large:
            run.section(f"batch of {pairs}", 60 * scale, lambda run, n=pairs: large(run, n))
        run.section("warm cache", 30 * scale, warm_cache)
    report(run)
    measure.finish(flags, {"rows": run.rows, "notes": run.notes})
    if any(": failed: " in note for note in run.notes):
        raise SystemExit(1)


def devices() -> list[Any]:
    """The one device."""
    import jax

    return jax.devices()[:1]


def bf16_product(run: Any) -> None:
    """What this GPU reaches on a plain product of random matrices."""
    import jax
    import jax.numpy as jnp

    side = 8192 if devices()[0].platform == "gpu" else 512
    one, two = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in (0, 1))
    product = jax.jit(jnp.matmul)
    product(one, two).block_until_ready()

    def ten() -> None:
        jax.block_until_ready([product(one, two) for _ in range(10)])

    turns = measure.in_turns({"bf16 product": ten}, 3)["bf16 product"]
    seconds = measure.median(turns) / 10
    run.rows["bf16 product"] = {"ms": 1e3 * seconds, "tflops": 2 * side**3 / seconds / 1e12}


def started(run: Any, **config: Any) -> Any:
    """Our step in bf16 with freshly made weights."""
    from benchmarks import workload

    made = workload.make_config(run.flags.size, run.flags.batch, **{"model": BF16, **config})
    return workload.Ours(made, workload.build(made).init(0))


def compiled(run: Any, name: str, ours: Any, batch: Any) -> Any:
    """The compiled step; notes seconds of compilation and the memory that the program needs."""
    start = time.perf_counter()
    program = ours.lower(batch).compile()
    row = {"compile_s": time.perf_counter() - start}
    memory = program.memory_analysis()
    if memory is not None:
        used = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
        row["memory_gb"] = (used + kept) / 1e9
    run.rows.setdefault(name, {}).update(row)
    return program


def compared(run: Any) -> None:
    """All moving, real caption lengths: ours, ours padded, and PyTorch both ways."""
    from benchmarks import workload

    flags = run.flags
    ours = started(run)
    pairs = workload.make_pairs(ours.model, flags.batch)
    run.note(
        f"groups {pairs.plan.lengths} of {pairs.plan.rows} captions, "
        f"overflow {pairs.plan.overflow:.2g}"
    )
    steps: dict[str, Callable[[], float]] = {}
    losses = {"ours": ours.loss(pairs.batch), "ours padded": ours.loss(pairs.padded)}
    measure.check_equal(losses, 0.02)
    if not flags.no_torch:
        try:
            steps |= torch_steps(run, ours, pairs, losses)
        except ImportError as error:
            run.note(f"no PyTorch here: {error}")
    for name, batch in (("real lengths", pairs.batch), ("padded to 96", pairs.padded)):
        program = compiled(run, name, ours, batch)
        steps[name] = ours.stepper(batch, program, flags.steps)
    measure.in_turns(steps, 1)
    turns = measure.in_turns(steps, flags.rounds)
    for name, own in turns.items():
        run.timed(name, own, flags.batch, ours.flops(pairs.batch))


def torch_steps(
    run: Any, ours: Any, pairs: Any, losses: Mapping[str, float]
) -> dict[str, Callable[[], float]]:
    """The steps of PyTorch, once losses agree: in float32 and in bf16, as they will be timed."""
    import jax
    import torch

    from benchmarks import peers_torch, workload

    flags = run.flags
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mean, std = ours.model.image_mean, ours.model.image_std
    exact = started(run, model={})
    few = workload.make_pairs(exact.model, 16)
    params = exact.model.init(0)
    peer = peers_torch.build(*workload.SIZES[flags.size], params, device)
    plain = peers_torch.make_loss(peer, mean, std, fast=False)
    fast = peers_torch.make_loss(peer, mean, std, fast=device == "cuda")
    padded, grouped = (peers_torch.place(b, device) for b in (pairs.padded, pairs.batch))
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        few_losses = {
            "ours, float32": exact.loss(few.batch),
            "torch, float32": plain(peers_torch.place(few.padded, device)).item(),
        }
        measure.check_equal(few_losses, 1e-4)
        theirs = {"torch padded": fast(padded).item(), "torch same lengths": fast(grouped).item()}
    run.rows["first loss"] = {"difference": measure.check_equal({**losses, **theirs}, 0.02)}
    step = peers_torch.make_step(peer, fast, flags.steps)
    return {"torch padded": lambda: step(padded), "torch same lengths": lambda: step(grouped)}


def short_captions(run: Any) -> None:
    """Captions of 24 tokens, all moving; and with cached pictures, the vision tower frozen."""
    from benchmarks import workload

    flags = run.flags
    moving, frozen = started(run), started(run, frozen=("vision",))
    short = workload.make_pairs(moving.model, 2 * flags.batch, length=24).batch
    real = workload.make_pairs(moving.model, 2 * flags.batch).batch
    width = moving.model.vision_config.hidden_size
    features = np.random.default_rng(0).standard_normal((2 * flags.batch, width), np.float32)
    cases = {
        "24 tokens": (moving, short),
        "24 tokens, pictures cached": (frozen, workload.cached(short, image=features)),
        "real lengths, pictures cached": (frozen, workload.cached(real, image=features)),
    }
    steps = {}
    for name, (ours, batch) in cases.items():
        steps[name] = ours.stepper(batch, compiled(run, name, ours, batch), flags.steps)
    measure.in_turns(steps, 1)
    for name, own in measure.in_turns(steps, flags.rounds).items():
        run.timed(name, own, 2 * flags.batch, cases[name][0].flops(cases[name][1]))


def large(run: Any, pairs: int) -> None:
    """An exact batch of `pairs`, encoded `--micro_batch` at a time."""
    from benchmarks import workload

    size = run.flags.micro_batch
    made = workload.make_config(run.flags.size, pairs, model=BF16, train={"micro_batch": size})
    ours = workload.Ours(made, workload.build(made).init(0))
    batch = workload.make_pairs(ours.model, pairs, shares=pairs // size).batch
    name = f"batch of {pairs}"
    step = ours.stepper(batch, compiled(run, name, ours, batch), 1)
    step()
    turns = [measure.timed(step)]
    turns = [turn._replace(wall_s=turn.wall_s * run.flags.steps) for turn in turns]
    run.timed(name, turns, pairs, ours.flops(batch))


def warm_cache(run: Any) -> None:
    """The same program again, from the persistent compilation cache."""
    import jax

    from benchmarks import workload

    jax.clear_caches()
    ours = started(run)
    batch = workload.make_pairs(ours.model, run.flags.batch).batch
    compiled(run, "real lengths, warm cache", ours, batch)


def report(run: Any) -> None:
    """Tables and notes."""
    columns = ("pairs", "ms", "pairs/s", "tflops", "mfu", "of_product", "memory_gb", "compile_s")
    measure.show(
        ("step", *columns),
        ([name, *(row.get(column) for column in columns)] for name, row in run.rows.items()),
    )
    measure.show(("target", "measured", "good", "ambitious"), targets(run.rows))
    for note in run.notes:
        print(f"- {note}")


def targets(rows: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    """Rows of the table of targets, of what was measured."""
    found: list[list[Any]] = []
    for name, what, good, ambitious in TARGETS:
        if rows.get(name, {}).get(what):
            found.append([f"{name}: {what}", rows[name][what], good, ambitious])
    ours = rows.get("real lengths", {}).get("ms")
    for name, (good, ambitious) in AGAINST.items():
        if ours and name in rows:
            found.append([f"ours against {name}", rows[name]["ms"] / ours, good, ambitious])
    return found


if __name__ == "__main__":
    main()
