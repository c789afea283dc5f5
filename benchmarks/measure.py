"""What the benchmarks share: fixed processors, turns, medians, a table, JSON with its origin."""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "torch", "tensorflow-cpu",
    "tensorflow-datasets", "array-record",
)  # fmt: skip


class Turn(NamedTuple):
    """One timed call: seconds by the clock and of the process's processors, and its result."""

    wall_s: float
    cpu_s: float
    result: Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the flags that all benchmarks have."""
    found = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    found.add_argument("--threads", type=int, default=2, help="processors for all contestants")
    found.add_argument("--out", default="", help="file for the JSON, which is printed as well")
    return found


def pin(threads: int) -> None:
    """Leaves this process some processors; to be called before jax, torch or NumPy look."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("USE_TF", "0")
    # oneDNN logs and warnings would stand between the lines of the table.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def hide_torchvision() -> None:
    """To be called before transformers is imported, which tries torchvision for its PyTorch models.

    None of ours needs it, and a torchvision of another build than torch's cannot be imported.
    """
    sys.modules.setdefault("torchvision", cast(Any, None))


def in_turns(contestants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Turn]]:
    """Times each contestant once per round, one after another: A, B, A, B, ...

    What else the machine does then slows all of them alike. Contestants return only when their
    work is done; warm-up is the caller's.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            turns[name].append(timed(contestant))
            say(f"round {number}: {name} {turns[name][-1].wall_s:.3f} s")
    return turns


def timed(function: Callable[[], Any]) -> Turn:
    """One call by both clocks."""
    cpu, start = time.process_time(), time.perf_counter()
    result = function()
    return Turn(time.perf_counter() - start, time.process_time() - cpu, result)


def median(turns: Sequence[Turn], clock: str = "wall_s") -> float:
    """Median seconds of `clock`: "wall_s" or "cpu_s"."""
    return statistics.median(getattr(turn, clock) for turn in turns)


def check_equal(losses: Mapping[str, float], tolerance: float) -> float:
    """The largest relative difference to the first; exits where it is over `tolerance`."""
    first, *_ = losses.values()
    gaps = [abs(loss - first) / abs(first) for loss in losses.values()]
    worst = max(gaps) if all(map(math.isfinite, gaps)) else math.inf
    say("loss of the first batch: " + ", ".join(f"{k} {v:.6f}" for k, v in losses.items()))
    if worst > tolerance:
        raise SystemExit(f"the losses differ by {worst:.1e}, more than {tolerance:g}: not timed")
    return worst


def origin() -> dict[str, Any]:
    """Versions, hardware and commit, for the JSON."""
    found: dict[str, Any] = {"python": platform.python_version(), "processor": processor()}
    found["processors"] = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found["memory_gib"] = round(memory / 2**30, 1)
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if "jax" in sys.modules:
        import jax

        found["device"] = jax.devices()[0].device_kind
    return found | {"commit": commit()}


def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def commit() -> str:
    """The commit of the checkout, with "+" where files differ from it; empty outside of git."""
    root = Path(__file__).parent
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def show(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a Markdown table; floats with three significant digits, None empty."""
    print("| " + " | ".join(headings) + " |")
    print("|" + "---|" * len(headings))
    for row in rows:
        print("| " + " | ".join(map(_cell, row)) + " |", flush=True)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def finish(arguments: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Prints one line of JSON, and writes it where `--out` says."""
    found = {"arguments": vars(arguments), "origin": origin(), **results}
    text = json.dumps(found)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")


def say(line: str) -> None:
    """Progress, beside the table."""
    print(line, file=sys.stderr, flush=True)


def resident(field: str) -> int:
    """A size of this process in bytes: "VmRSS" now, "VmHWM" at its highest. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
