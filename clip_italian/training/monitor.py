"""What a run says of itself: progress bar, JSON lines, TensorBoard, wandb, rates and MFU."""

import collections
import contextlib
import itertools
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from clip_italian.config import Config, TrainConfig, leaves
from clip_italian.training import fellows, files, tracking
from clip_italian.training.checkpoint import as_json
from clip_italian.training.cost import Work
from clip_italian.training.tensorboard import Scalars

METRICS_FILE = "metrics.jsonl"
PAIRS_PER_SECOND = "rate/pairs_per_second"
# Metric → label and format in the progress bar.
_SHOWN = {
    "train/loss": ("loss", "{:.3f}"),
    PAIRS_PER_SECOND: ("pairs/s", "{:,.0f}"),
    "rate/mfu": ("MFU", "{:.1%}"),
    "rate/data_wait": ("data wait", "{:.0%}"),
    "rate/padding": ("padding", "{:.0%}"),
    "memory/peak_gb": ("peak GB", "{:.1f}"),
}

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


def peak_memory() -> int:
    """Most bytes in use so far: of the fullest local device, else (on a CPU) of this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    found = [one["peak_bytes_in_use"] for one in stats if "peak_bytes_in_use" in one]
    if found:
        return max(found)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Monitor:
    """Collects one run's metrics: `<workdir>/metrics.jsonl`, TensorBoard, terminal and wandb.

    Of several processes the first one writes; the others only count.
    Rates are over the steps since the last line and leave compilation and evaluation out.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        first_step: int,
        peak: float | None = None,
        run: Config | None = None,
    ):
        """Goes on from `first_step` steps done.

        Args:
          config: names the workdir, the length of the run, the batch size and wandb's project.
          first_step: later lines of an earlier process are dropped, since they come again.
          peak: FLOP/s of all devices; None looks them up.
          run: the whole config, for wandb.

        Raises:
          ConfigError: wandb is asked for and cannot be had.
        """
        self._writes = fellows.is_first()
        self._path = epath.Path(config.workdir) / METRICS_FILE
        self._wandb = self._tensorboard = None
        if self._writes:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if config.wandb:
                self._wandb = tracking.start(config, as_json(dict(leaves(run or Config()))))
        self._bar = tqdm(
            initial=first_step,
            total=config.steps,
            unit="step",
            dynamic_ncols=True,
            disable=not self._writes,
        )
        self._batch_size, self._peak = config.batch_size, peak or peak_flops(jax.devices())
        self._begin(first_step)

    def _begin(self, first_step: int) -> None:
        if self._writes:
            drop_lines(self._path, lambda line: line["step"] > first_step)
            self._tensorboard = Scalars(self._path.parent / "tensorboard", first_step)
        self._dispatched, self._works = first_step, collections.deque[Work | None]()
        self._start: int | None = first_step  # until the first line with rates has said so
        self.restart_clock()

    def go_back(self, step: int) -> None:
        """Forgets what came after `step` steps: it is done again."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._bar.n = step
        self._begin(step)

    def restart_clock(self, done: int | None = None) -> None:
        """Starts a new window.

        Args:
          done: number of steps whose results are there; the work of later ones, which the devices
            still have before them, counts in the new window. None: the devices are idle, as after
            a compilation or an evaluation.
        """
        for _ in range(self._finished(done)):
            self._works.popleft()
        self._since, self._waited = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    def count_step(self, work: Work | None = None) -> None:
        """One more step is dispatched; `work` is what it costs, None where nobody knows."""
        self._works.append(work)
        self._dispatched += 1
        self._bar.update()

    def _finished(self, done: int | None) -> int:
        """Steps of this window that are done: all, or those up to a number of steps."""
        behind = 0 if done is None else max(self._dispatched - done, 0)
        return max(len(self._works) - behind, 0)

    def rates(self, done: int | None = None) -> dict[str, float]:
        """What the window so far says, of the run's steps up to `done` (None: all dispatched).

        `rate/pairs_per_second`; `rate/data_wait`, share of time; `rate/padding`, share of the
        text tower's tokens, absent where its outputs are cached; `rate/model_tflops`, model FLOPs
        on real tokens in 10¹² a second over all devices; `rate/mfu`, the share of the devices' peak
        that this is, where the peak is known; `memory/peak_gb` (10⁹ bytes) since the start.
        """
        elapsed = time.perf_counter() - self._since
        works = list(itertools.islice(self._works, self._finished(done)))
        if not works or elapsed <= 0:
            return {}
        rates = {
            PAIRS_PER_SECOND: len(works) * self._batch_size / elapsed,
            "rate/data_wait": self._waited / elapsed,
        }
        known = [work for work in works if work is not None]
        slots = sum(work.slots for work in known)
        if slots:
            rates["rate/padding"] = 1 - sum(work.tokens for work in known) / slots
        flops = sum(work.flops for work in known) / elapsed
        if flops and len(known) == len(works):
            rates["rate/model_tflops"] = flops / 1e12
            if self._peak:
                rates["rate/mfu"] = flops / self._peak
        return {**rates, "memory/peak_gb": peak_memory() / 1e9}

    def log(self, step: int, metrics: Mapping[str, float | str]) -> None:
        """Writes one line of metrics; `step` is the number of steps done.

        The first line with rates says at which step its process began: `start`.

        Raises:
          SaveError: there is no room for it, or no permission, ...
        """
        if not self._writes:
            return
        line = {"step": step, **metrics}
        if self._start is not None and PAIRS_PER_SECOND in metrics:
            line["start"], self._start = self._start, None
        files.append(self._path, json.dumps(line) + "\n")
        numbers = {name: value for name, value in metrics.items() if not isinstance(value, str)}
        if self._tensorboard is not None:
            self._tensorboard.log(step, numbers)
        if self._wandb is not None:
            self._wandb.log({tracking.STEP: step, **numbers})
        self._show(metrics)

    def _show(self, metrics: Mapping[str, float | str]) -> None:
        shown = {
            label: form.format(metrics[name])
            for name, (label, form) in _SHOWN.items()
            if name in metrics
        }
        if shown:
            self._bar.set_postfix(shown)

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self._writes:
            self._bar.write(text)

    def close(self) -> None:
        """Flushes everything."""
        self._bar.close()
        if self._wandb is not None:
            self._wandb.finish()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(workdir: str) -> list[dict[str, float | str]]:
    """All lines of a run's metrics, oldest first; empty if there are none."""
    path = epath.Path(workdir) / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def drop_lines(path: epath.Path, dropped: Callable[[dict[str, Any]], bool]) -> None:
    """Takes JSON lines out of a file, and one that was cut short by a kill as well."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            if not dropped(json.loads(line)):
                kept.append(line + "\n")
    files.write(path, "".join(kept))
