"""What `benchmarks.soak` disturbs: a small run of the drawn sample, as processes of its own."""

import contextlib
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SCENES, DAMAGED = 600, 3
CONFIG = """
from clip_italian.config import *

SMALL = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
config = Config(
    model=ModelConfig(
        vision_config=dict(model_type="vit", image_size=32, patch_size=8, **SMALL),
        text_config=dict(
            model_type="bert", vocab_size={vocab_size}, max_position_embeddings=64, **SMALL
        ),
        tokenizer="{data}/sample/tokenizer",
        projection_dim=16,
        learn_logit_scale=True,
        dropout=0.1,
    ),
    data=DataConfig(data_dir="{data}", max_length=40, augment="light", reader_threads=2),
    optim=OptimConfig(
        learning_rate=1e-3, warmup_steps=100, vision_thaw_step={steps} // 3, ema_decay=0.99
    ),
    train=TrainConfig(
        steps={steps}, batch_size=16, log_every=1, save_every={save_every},
        compile_cache="{data}/jax",
    ),
    eval=EvalConfig(eval_every={steps} // 10, eval_batch_size=16),
)
"""


def prepare(folder: Path, steps: int, save_every: int) -> Path:
    """The sample with `DAMAGED` cut pictures; returns the config file of its runs."""
    from clip_italian.data.records import open_split, parse_record, write_records
    from data_prep.sample import make_sample

    make_sample(folder / "drawn", train_scenes=SCENES, validation_scenes=40, image_size=32)
    splits = {}
    for split in ("train", "validation"):
        file = open_split(folder / "drawn", "sample", split)
        splits[split] = [parse_record(data) for data in file.read(range(len(file)))]
    for number in range(0, 100 * DAMAGED, 100):
        record = splits["train"][number]
        splits["train"][number] = dataclasses.replace(record, image=record.image[: 40 + number])

    def keep_tokenizer(staged: Path, _: Any) -> None:
        shutil.copytree(folder / "drawn" / "sample" / "tokenizer", staged / "tokenizer")

    write_records(folder / "sample", splits, name="sample", also=keep_tokenizer)
    words = len((folder / "sample" / "tokenizer" / "vocab.txt").read_text().splitlines())
    config = folder / "config.py"
    config.write_text(
        CONFIG.format(data=folder, vocab_size=words, steps=steps, save_every=save_every)
    )
    return config


class Training:
    """One process of a run; what it prints goes into a file beside its config."""

    def __init__(self, config: Path, workdir: Path) -> None:
        self.workdir, self.began = workdir, time.monotonic()
        self._log = config.with_name(f"{time.monotonic_ns()}.log")
        words = ["run_hybrid_clip.py", "--config", str(config), "--workdir", str(workdir)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=ROOT,
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        """Everything it has printed so far."""
        return self._log.read_text(errors="replace")

    def until(self, what: Callable[[], bool], seconds: float = 300.0) -> bool:
        """Waits until `what()`; False if the process ends before, or after so many seconds."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            if what():
                return True
            time.sleep(0.002)
        return False

    def until_it_trains(self) -> bool:
        """Waits for its first line of metrics."""
        if not self.until(lambda: ": training " in self.said):
            return False
        path = self.workdir / "metrics.jsonl"
        written = time.time()
        return self.until(lambda: path.exists() and path.stat().st_mtime > written)


class Watched(NamedTuple):
    """A process at a step: resident bytes, open file descriptors, threads."""

    step: int
    memory: int
    descriptors: int
    threads: int


def undisturbed(config: Path, workdir: Path, steps: int) -> dict[str, float]:
    """Trains to the end in peace; how memory, descriptors and threads grew meanwhile.

    Watched from the thaw on, at a third of the steps: gradients of a further tower are no growth.
    The tenth of the steps after it, with its first saves and evaluation, is left out as well.
    """
    training = Training(config, workdir)
    watched: list[Watched] = []
    while training.process.poll() is None:
        with contextlib.suppress(OSError, KeyError):
            watched.append(_watch(training.process.pid, last_step(workdir)))
        time.sleep(0.5)
    seconds = time.monotonic() - training.began
    if training.process.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{training.said}")
    began_at = steps // 3 + steps // 10
    early = [w for w in watched if began_at < w.step <= began_at + steps // 10]
    late = [w for w in watched if steps - steps // 10 <= w.step < steps]
    if not early or not late:
        raise SystemExit("the undisturbed run was too short to be watched; give more --steps")
    found: dict[str, float] = {"seconds": seconds, "times looked at": len(watched)}
    for name in Watched._fields[1:]:
        for when, some in (("early", early), ("late", late)):
            found[f"{name}, {when}"] = statistics.median(getattr(w, name) for w in some)
    span = statistics.mean(w.step for w in late) - statistics.mean(w.step for w in early)
    growth = found["memory, late"] / found["memory, early"] - 1
    return found | {"memory growth in 10,000 steps, %": 100 * growth * 10_000 / span}


def _watch(pid: int, step: int) -> Watched:
    place = Path("/proc", str(pid))
    lines = (place / "status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    memory = int(fields["VmRSS"].split()[0]) * 1024
    return Watched(step, memory, len(list((place / "fd").iterdir())), int(fields["Threads"]))


def committed(workdir: Path) -> list[int]:
    """Steps of the checkpoints that have their final name, in order."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def metrics(workdir: Path) -> list[dict[str, Any]]:
    """Lines of metrics but one that was cut short."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                lines.append(json.loads(line))
    return lines


def last_step(workdir: Path) -> int:
    """Steps done, as far as they are written down."""
    with contextlib.suppress(FileNotFoundError), (workdir / "metrics.jsonl").open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        for line in reversed(file.read().splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                return json.loads(line)["step"]
    return 0


def differences(whole: Path, disturbed: Path, steps: int) -> list[str]:
    """In what a disturbed run differs from the undisturbed one; empty where nothing does."""
    ours, theirs = (_numbers(metrics(folder)) for folder in (disturbed, whole))
    found = [f"metrics of step {a[0]}" for a, b in zip(ours, theirs, strict=False) if a != b][:3]
    if len(ours) != len(theirs):
        found.append(f"{len(ours)} lines of metrics, not {len(theirs)}")
    states = [_leaves(folder / "checkpoints" / str(steps)) for folder in (disturbed, whole)]
    if states[0].keys() != states[1].keys():
        return [*found, "the leaves of the state"]
    return found + [
        name for name, leaf in states[0].items() if not np.array_equal(leaf, states[1][name])
    ]


def _numbers(lines: list[dict[str, Any]]) -> list[tuple[int, dict[str, Any]]]:
    """Metrics without those of time and memory, and without where a process began."""
    return [
        (line["step"], {k: v for k, v in line.items() if not k.startswith(("rate/", "memory/"))})
        for line in ({k: v for k, v in one.items() if k != "start"} for one in lines)
    ]


def _leaves(folder: Path) -> dict[str, np.ndarray]:
    """All arrays of a saved state by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder.resolve() / "state")
    found = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}
