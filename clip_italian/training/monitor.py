"""What a run says of itself: progress bar, JSON lines, TensorBoard, rates and MFU."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from clip_italian.config import TrainConfig

METRICS_FILE = "metrics.jsonl"

# Peak dense bf16 FLOP/s of one device, by `jax.Device.device_kind` (vendors' data sheets).
PEAK_FLOPS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Summed peak of the devices in FLOP/s, or None where a kind is not in the table."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    return None if None in peaks else sum(p for p in peaks if p is not None)


class Monitor:
    """Collects one run's metrics, in `<workdir>/metrics.jsonl`, TensorBoard and on the terminal.

    Rates are over the steps since the last line and leave compilation out.
    """

    def __init__(self, config: TrainConfig, *, first_step: int, peak: float | None = None):
        """Goes on from `first_step` steps done.

        Args:
          config: names the workdir, the length of the run and the batch size.
          first_step: later lines of an earlier process are dropped, since they come again.
          peak: FLOP/s of all devices; None looks them up.
        """
        workdir = config.workdir
        self._path = epath.Path(workdir) / METRICS_FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        _drop_lines_after(self._path, first_step)
        self._tensorboard = SummaryWriter(
            str(epath.Path(workdir) / "tensorboard"), purge_step=first_step + 1
        )
        self._bar = tqdm(initial=first_step, total=config.steps, unit="step", dynamic_ncols=True)
        self._batch_size, self._peak = config.batch_size, peak or peak_flops(jax.devices())
        self.flops_per_step: float | None = None
        self.restart_clock()

    def restart_clock(self) -> None:
        """Starts a new window, so that compilation and evaluation do not count in the rates."""
        self._start, self._waited, self._steps = time.perf_counter(), 0.0, 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count_step(self) -> None:
        """One more step is dispatched."""
        self._steps += 1
        self._bar.update()

    def rates(self) -> dict[str, float]:
        """pairs/s, share of time waiting for data, and MFU where the devices' peak is known."""
        elapsed = time.perf_counter() - self._start
        if not self._steps or elapsed <= 0:
            return {}
        rates = {
            "rate/pairs_per_second": self._steps * self._batch_size / elapsed,
            "rate/data_wait": self._waited / elapsed,
        }
        if self._peak and self.flops_per_step:
            rates["rate/mfu"] = self._steps * self.flops_per_step / elapsed / self._peak
        return rates

    def log(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Writes one line of metrics; `step` is the number of steps done."""
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._tensorboard.add_scalar(name, value, step)
        self._show(metrics)

    def _show(self, metrics: Mapping[str, float | str]) -> None:
        names = {
            "train/loss": ("loss", "{:.3f}"),
            "rate/pairs_per_second": ("pairs/s", "{:.0f}"),
            "rate/data_wait": ("data wait", "{:.0%}"),
            "rate/mfu": ("MFU", "{:.1%}"),
        }
        shown = {
            label: form.format(metrics[name])
            for name, (label, form) in names.items()
            if name in metrics
        }
        if shown:
            self._bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        self._bar.write(text)

    def close(self) -> None:
        """Flushes everything."""
        self._bar.close()
        self._tensorboard.close()


def read_metrics(workdir: str) -> list[dict[str, float | str]]:
    """All lines of a run's metrics, oldest first; empty if there are none."""
    path = epath.Path(workdir) / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _drop_lines_after(path: epath.Path, step: int) -> None:
    """A resumed run writes these steps again; a line cut short by a kill goes as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    path.write_text("".join(kept))
