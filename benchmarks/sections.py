"""Parts of a long benchmark under one budget of time, and what they found."""

import argparse
import gc
import time
import traceback
from collections.abc import Callable

import jax

from benchmarks import measure
from clip_italian.training.monitor import peak_flops


class Run:
    """One run of the script: its flags, its end, and what it found.

    Attributes:
      flags: the command line.
      rows: name → what was measured.
      notes: what was skipped or failed, and why.
    """

    def __init__(self, flags: argparse.Namespace):
        self.flags, self.rows, self.notes = flags, dict[str, dict](), list[str]()
        self._end = time.monotonic() + flags.seconds

    def section(self, name: str, needs: float, function: Callable[["Run"], None]) -> None:
        """Runs a part that takes about `needs` seconds, unless time is up; notes failures."""
        left = self._end - time.monotonic()
        if left < needs:
            self.note(f"{name}: skipped, needs about {needs:.0f} s of {left:.0f} s left")
            return
        measure.say(f"--- {name} ({left:.0f} s left)")
        try:
            function(self)
        except Exception as error:  # a failure must not cost the other parts
            traceback.print_exc()
            first = (str(error).splitlines() or [""])[0]
            self.note(f"{name}: failed: {type(error).__name__}: {first[:200]}")
        gc.collect()

    def note(self, line: str) -> None:
        """A line that stands under the table."""
        measure.say(line)
        self.notes.append(line)

    def timed(self, name: str, turns: list[measure.Turn], pairs: int, flops: float) -> None:
        """A row from turns of `--steps` steps."""
        seconds = measure.median(turns) / self.flags.steps
        peak = peak_flops(jax.devices()[:1])
        row = {"ms": 1e3 * seconds, "pairs/s": pairs / seconds, "pairs": pairs}
        row |= {"tflops": flops / seconds / 1e12, "mfu": flops / seconds / peak if peak else None}
        product = self.rows.get("bf16 product", {}).get("tflops")
        row["of_product"] = row["tflops"] / product if product else None
        self.rows.setdefault(name, {}).update(row)
