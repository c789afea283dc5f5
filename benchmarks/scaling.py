"""Growth with devices: measured on 1 to 8 fake CPU devices, then by arithmetic to 256 chips.

    python -m benchmarks.scaling

First table, measured, one process for each number of devices: seconds per pair at an equal number
of pairs per device (the fake devices share the same processors, so this stays flat unless work
grows faster than the batch), and the collectives in the compiled step, their number and bytes,
beside what arithmetic expects of a replicated state: gradients of all moving parameters summed
over the devices, the embeddings and ids of all pairs brought to each, and the gradients of the
embeddings summed likewise. "bytes" are the sizes of the results on one device.

Second table, arithmetic only: B/32 + BERT-base at real caption lengths, float32 gradients. A ring
sends 2 (n - 1) / n of what it sums through each chip. Compute at `--mfu` of the dense bf16 peak;
nothing overlapped, so the share of communication is an upper bound; latency is left out.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from benchmarks import measure

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
_IDS = 2 * 2 * 4  # bytes of a pair's image and caption id


class Chip(NamedTuple):
    """Vendors' numbers of one chip.

    Attributes:
      peak: dense bf16 FLOP/s.
      near: bytes/s that it can send in a sum over `group` chips.
      group: chips that are joined by `near`; beyond them it is `far`.
      far: bytes/s of one chip between groups.
      source: where the numbers are from.
    """

    peak: float
    near: float
    group: int
    far: float
    source: str


CHIPS = {
    "TPU v4": Chip(
        275e12, 1.1e15 / 4096, 4096, math.inf,
        "cloud.google.com/tpu/docs/v4: 275 TFLOP/s, all-reduce 1.1 PB/s per pod of 4,096",
    ),
    "TPU v5e": Chip(
        197e12, 51.2e12 / 256, 256, math.inf,
        "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, all-reduce 51.2 TB/s per pod of 256",
    ),
    "H200": Chip(
        989e12, 450e9, 8, 50e9,
        "NVIDIA H200 and DGX H200 data sheets: 989 TFLOP/s dense, NVLink 900 GB/s both ways among "
        "8, 400 Gb/s per GPU between machines",
    ),
}  # fmt: skip


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--size", default="middle", help="of the measured part (workload.SIZES)")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--pairs", type=int, default=32, help="pairs per device, measured")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each")
    parser.add_argument("--shard_params", action="store_true", help="measure split parameters")
    parser.add_argument("--chip_pairs", type=int, default=128, help="pairs per chip, arithmetic")
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed, arithmetic")
    parser.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    if arguments.worker:
        print(json.dumps(measured(arguments)))
        return
    rows = [in_process(arguments, count) for count in arguments.devices]
    show_measured(rows)
    growth = arithmetic(arguments)
    measure.finish(arguments, {"measured": rows, "arithmetic": growth})


def in_process(arguments: argparse.Namespace, devices: int) -> dict[str, Any]:
    """`measured` in a process of its own with so many fake devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-m", "benchmarks.scaling", "--worker", str(devices)]
    for name in ("threads", "size", "pairs", "rounds"):
        command += [f"--{name}", str(getattr(arguments, name))]
    command += ["--shard_params"] * arguments.shard_params
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measure.say(f"{devices} devices done")
    return json.loads(done.stdout.splitlines()[-1])


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time per pair and collectives of the step on all devices of this process."""
    import jax

    from benchmarks import workload

    devices, pairs = arguments.worker, arguments.worker * arguments.pairs
    assert jax.device_count() == devices
    made = workload.make_config(
        arguments.size, pairs, train={"shard_params": arguments.shard_params}
    )
    params = workload.build(made).init(0)
    ours = workload.Ours(made, params, jax.devices())
    batch = workload.make_pairs(ours.model, pairs, shares=devices).batch
    compiled = ours.lower(batch).compile()
    step = ours.stepper(batch, compiled)
    step()
    turns = measure.in_turns({"step": step}, arguments.rounds)["step"]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    return {
        "devices": devices,
        "ms_per_pair": 1e3 * measure.median(turns) / pairs,
        "cpu_ms_per_pair": 1e3 * measure.median(turns, "cpu_s") / pairs,
        "collectives": collectives(compiled.as_text()),
        "expected": expected(sum(sizes) - 1, pairs, workload.SIZES[arguments.size][2], devices),
    }


def collectives(program: str) -> dict[str, dict[str, int]]:
    """Kind → number and bytes (results, on one device) of the collectives of a compiled program."""
    found: dict[str, dict[str, int]] = {}
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    for shape, kind, start in pattern.findall(program):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        # An asynchronous start gives back its operands, too.
        arrays = arrays[len(arrays) // 2 :] if start and len(arrays) > 1 else arrays
        size = sum(
            _BYTES.get(dtype, 4) * math.prod(int(n) for n in dims.split(",") if n)
            for dtype, dims in arrays
        )
        row = found.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += size
    return found


def expected(parameters: int, pairs: int, dim: int, devices: int) -> dict[str, int]:
    """Bytes of results that arithmetic expects on one device, of a replicated state."""
    if devices == 1:
        return {"gradients": 0, "columns": 0, "column gradients": 0}
    embeds = 2 * 4 * pairs * dim
    return {
        "gradients": 4 * parameters,
        "columns": embeds + _IDS * pairs,
        "column gradients": embeds,
    }


def show_measured(rows: list[dict[str, Any]]) -> None:
    """The first table."""
    cells = []
    for row in rows:
        kinds = ", ".join(
            f"{one['count']} {kind} {one['bytes'] / 1e6:.3g} MB"
            for kind, one in sorted(row["collectives"].items())
        )
        total = sum(one["bytes"] for one in row["collectives"].values())
        cells.append([
            row["devices"], row["ms_per_pair"], row["cpu_ms_per_pair"], kinds or "none",
            total / 1e6, sum(row["expected"].values()) / 1e6,
        ])  # fmt: skip
    headings = ("devices", "ms/pair", "CPU ms/pair", "collectives", "MB", "MB by arithmetic")
    measure.show(headings, cells)


def arithmetic(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The second table: share of communication, by data sheets."""
    import jax
    import numpy as np

    from benchmarks import workload

    model = workload.build(workload.make_config("base", 8))
    shares = workload.caption_lengths()
    text = float(shares @ model.text_flops(np.arange(len(shares))))
    flops = 3 * (model.image_flops + text) * arguments.chip_pairs
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.shapes())) - 1
    rows = []
    for name, chip in CHIPS.items():
        compute = flops / (chip.peak * arguments.mfu)
        for chips in (1, 8, 16, 32, 64, 128, 256):
            sums = expected(parameters, chips * arguments.chip_pairs, 512, chips)
            seconds = communication(chip, chips, sums)
            share = seconds / (seconds + compute)
            rows.append({
                "what": "arithmetic", "chip": name, "chips": chips, "compute_ms": 1e3 * compute,
                "communication_ms": 1e3 * seconds, "share": share,
                "pairs/s": chips * arguments.chip_pairs / (seconds + compute),
            })  # fmt: skip
    measure.show(list(rows[0]), (row.values() for row in rows))
    for chip in CHIPS.values():
        print(f"- {chip.source}")
    return rows


def communication(chip: Chip, chips: int, sums: Mapping[str, float]) -> float:
    """Seconds of a step's collectives: sums twice around the ring, what is gathered once.

    Beyond one group a sum is taken within groups, over their first parts, and spread again.
    """
    reduced = sums["gradients"] + sums["column gradients"]
    near = min(chips, chip.group)
    seconds = (2 * reduced + sums["columns"]) * (near - 1) / near / chip.near
    groups = math.ceil(chips / chip.group)
    if groups > 1:
        # Each chip of a group sums its own part of the gradients with the other groups'; the
        # columns of other groups come over the same links, also in parts.
        part = (2 * reduced + sums["columns"]) / near
        seconds += part * (groups - 1) / groups / chip.far
    return seconds


if __name__ == "__main__":
    main()
