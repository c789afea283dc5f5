"""One training step: ours against the step of 2021 and against PyTorch, on the same batch.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --compare 2021 frozen --batch 32 --rounds 3

CLIP-ViT-B/32 and BERT-base (12 layers, 768 wide, 32,102 tokens), random pictures, random tokens in
captions as long as real Italian ones (`workload.LENGTHS`). Contestants start from the same weights,
see the same batch and do the same optimizer's work; before any timing the loss of the first batch
with dropout off must agree. They take turns on the same processors; ratios are of median seconds by
the clock. Batches lie on the device beforehand. Comparisons follow one another, so that only one
comparison's states are in memory (about 10 GB at most in the base size).

  2021    all moving, AGC + AdaBelief; 2021 has dropout 0.1 in its text tower, ours has none, and
          `ours dropout` has the same
  frozen  both towers frozen, AGC + AdaBelief, against the frozen mode of 2021; with cached outputs
  torch   all moving, AdamW, no dropout, against PyTorch float32 (needs the extra torch)

Ours is in length groups. A batch that does not fit them is padded: where both are timed, the time
of ours is the expected one, (1 - overflow) × groups + overflow × padded.
Prints a table and one line of JSON; exits with 1 if losses differ.
"""

import argparse
import gc
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import measure

# Comparison → contestant → what ours, in the named form, should be ahead of it: good, ambitious.
TARGETS: Mapping[tuple[str, str], tuple[str, float, float]] = {
    ("2021", "2021"): ("ours", 1.8, 2.2),
    ("frozen", "2021 frozen"): ("ours", 1.9, 1.9),
    ("frozen", "2021 frozen, cached"): ("ours cached", 100.0, 100.0),
    ("torch", "torch padded"): ("ours", 1.8, 2.2),
    ("torch", "torch same lengths"): ("ours", 1.0, 1.2),
}
AGC_ADABELIEF = {"optimizer": "adabelief", "agc_clip": 0.01}


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", default="base", help="base, middle or tiny (workload.SIZES)")
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=2, help="timed turns, after one of warm-up")
    parser.add_argument("--compare", nargs="+", choices=tuple(COMPARISONS), default=[*COMPARISONS])
    parser.add_argument("--only", nargs="+", default=[], help="contestants; default: all")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of the loss, relative")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    measure.hide_torchvision()
    results = {}
    for name in arguments.compare:
        results[name] = compare(name, arguments)
        gc.collect()
    report(results)
    measure.finish(arguments, {"results": results})


def compare(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds, checks and times the contestants of one comparison."""
    steps, losses, flops, overflow = COMPARISONS[name](arguments)
    wanted = {key: step for key, step in steps.items() if key in (arguments.only or steps)}
    difference = measure.check_equal(losses, arguments.tolerance)
    measure.in_turns(wanted, 1)
    turns = measure.in_turns(wanted, arguments.rounds)
    rows = {
        key: {
            "s": measure.median(own),
            "cpu_s": measure.median(own, "cpu_s"),
            "pairs": arguments.batch,
            "flops": flops[key],
            "losses": [turn.result for turn in own],
        }
        for key, own in turns.items()
    }
    if "ours" in rows and "ours padded" in rows:
        for clock in ("s", "cpu_s"):
            groups, padded = rows["ours"][clock], rows["ours padded"][clock]
            rows["ours"][f"groups_{clock}"] = groups
            rows["ours"][clock] = (1 - overflow) * groups + overflow * padded
    return {"steps": rows, "first_loss_difference": difference, "overflow": overflow}


def start(arguments: argparse.Namespace, **config: Any) -> tuple[Any, Any, Any]:
    """Our contestant with freshly made weights, the weights (numpy), and the batch."""
    from benchmarks import workload

    made = workload.make_config(arguments.size, arguments.batch, **config)
    model = workload.build(made)
    params = model.init(0)
    pairs = workload.make_pairs(model, arguments.batch)
    plan = pairs.plan
    measure.say(f"groups {plan.lengths} of {plan.rows} captions, overflow {plan.overflow:.2g}")
    return workload.Ours(made, params), params, pairs


def all_moving(arguments: argparse.Namespace) -> tuple[Any, ...]:
    """Against 2021: (contestants, losses to compare, FLOPs of each, chance of an overflow)."""
    from benchmarks import workload

    ours, params, pairs = start(arguments, **AGC_ADABELIEF)
    loss, peer = peer_2021(arguments, ours, params, pairs, frozen=False)
    dropping = workload.Ours(
        workload.make_config(
            arguments.size, arguments.batch, model={"dropout": 0.1}, **AGC_ADABELIEF
        ),
        params,
    )
    losses = {
        "ours": ours.loss(pairs.batch),
        "ours padded": ours.loss(pairs.padded),
        "2021": loss,
    }
    steps = {
        "2021": peer,
        "ours": ours.stepper(pairs.batch),
        "ours dropout": dropping.stepper(pairs.batch),
        "ours padded": ours.stepper(pairs.padded),
    }
    return steps, losses, dict.fromkeys(steps, ours.flops(pairs.batch)), pairs.plan.overflow


def peer_2021(
    arguments: argparse.Namespace, ours: Any, params: Any, pairs: Any, *, frozen: bool
) -> tuple[float, Callable[[], float]]:
    """The loss of the first batch with dropout off, and the step of 2021."""
    import jax

    from benchmarks import peers_2021, workload

    module = peers_2021.build(*workload.SIZES[arguments.size], frozen=frozen)
    (tokens,) = pairs.padded.text
    batch = peers_2021.place(
        pairs.padded.pixel_values,
        tokens.input_ids,
        tokens.attention_mask,
        ours.model.image_mean,
        ours.model.image_std,
    )
    first = peers_2021.first_loss(module, params, batch)
    batch = peers_2021.spread(batch)
    compiled, holder = peers_2021.make_step(module), [peers_2021.init_state(params)]

    def step() -> float:
        holder[0], loss = compiled(holder[0], batch)
        jax.block_until_ready(holder[0])
        return float(loss[0])

    return first, step


def both_frozen(arguments: argparse.Namespace) -> tuple[Any, ...]:
    """Against the frozen mode of 2021."""
    from benchmarks import workload

    ours, params, pairs = start(arguments, frozen=("vision", "text"), **AGC_ADABELIEF)
    loss, peer = peer_2021(arguments, ours, params, pairs, frozen=True)
    image, text = (ours.features(pairs.batch, side) for side in ("image", "text"))
    both = workload.cached(pairs.batch, image=image, text=text)
    pictures = workload.cached(pairs.batch, image=image)
    only_text = workload.Ours(
        workload.make_config(arguments.size, arguments.batch, frozen=("vision",), **AGC_ADABELIEF),
        params,
    )
    losses = {
        "ours": ours.loss(pairs.batch),
        "ours cached": ours.loss(both),
        "pictures cached": only_text.loss(pictures),
        "2021 frozen": loss,
    }
    steps = {
        "2021 frozen": peer,
        "ours": ours.stepper(pairs.batch),
        "ours padded": ours.stepper(pairs.padded),
        "ours cached": ours.stepper(both),
        "ours, image frozen and cached, text moving": only_text.stepper(pictures),
    }
    flops = dict.fromkeys(steps, ours.flops(pairs.batch))
    flops["ours cached"] = 0.0
    flops["ours, image frozen and cached, text moving"] = only_text.flops(pictures)
    return steps, losses, flops, pairs.plan.overflow


def against_torch(arguments: argparse.Namespace) -> tuple[Any, ...]:
    """Against PyTorch, padded and in the same length groups."""
    import torch

    from benchmarks import peers_torch, workload

    torch.set_num_threads(arguments.threads)
    ours, params, pairs = start(arguments, optimizer="adamw")
    peer = peers_torch.build(*workload.SIZES[arguments.size], params, "cpu")
    loss = peers_torch.make_loss(peer, ours.model.image_mean, ours.model.image_std, fast=False)
    step = peers_torch.make_step(peer, loss)
    padded, grouped = (peers_torch.place(b, "cpu") for b in (pairs.padded, pairs.batch))
    with torch.no_grad():
        losses = {
            "ours": ours.loss(pairs.batch),
            "torch padded": float(loss(padded)),
            "torch same lengths": float(loss(grouped)),
        }
    steps = {
        "torch padded": lambda: step(padded),
        "torch same lengths": lambda: step(grouped),
        "ours": ours.stepper(pairs.batch),
        "ours padded": ours.stepper(pairs.padded),
    }
    return steps, losses, dict.fromkeys(steps, ours.flops(pairs.batch)), pairs.plan.overflow


def report(results: Mapping[str, Any]) -> None:
    """The two tables: contestants, then ratios against targets."""
    rows = []
    for name, one in results.items():
        for key, row in one["steps"].items():
            speed = row["flops"] / row["s"] / 1e12 or None
            rows.append([name, key, row["s"], row["cpu_s"], row["pairs"] / row["s"], speed])
    headings = ("comparison", "step", "s", "CPU s", "pairs/s", "TFLOP/s on real tokens")
    measure.show(headings, rows)
    measure.show(
        ("ours against", "form of ours", "ratio", "by CPU s", "good", "ambitious"), ratios(results)
    )


def ratios(results: Mapping[str, Any]) -> list[list[Any]]:
    """One row for each target of which both sides were timed."""
    rows = []
    for (name, peer), (form, good, ambitious) in TARGETS.items():
        steps = results.get(name, {}).get("steps", {})
        own, other = steps.get(form), steps.get(peer.partition(",")[0])
        if own and other:
            by_clock = other["s"] / own["s"]
            rows.append([peer, form, by_clock, other["cpu_s"] / own["cpu_s"], good, ambitious])
    return rows


COMPARISONS: Mapping[str, Callable[[argparse.Namespace], tuple[Any, ...]]] = {
    "2021": all_moving,
    "frozen": both_frozen,
    "torch": against_torch,
}

if __name__ == "__main__":
    main()
