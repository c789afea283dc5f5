"""What a run says of itself: rates by hand, lines, the progress bar, and wandb."""

import json
import struct
import sys
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from tensorboardX.proto import event_pb2

from clip_italian.config import ConfigError, TrainConfig
from clip_italian.training import monitor, tracking
from clip_italian.training.cost import Work
from clip_italian.training.monitor import Monitor, read_metrics

messages: Any = event_pb2  # whose names are made when it is imported
WORK = Work(flops=2e9, tokens=30, slots=40)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns, and 3 GB of peak memory."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: now.seconds)
    monkeypatch.setattr(monitor, "peak_memory", lambda: 3_000_000_000)
    return now


@pytest.fixture
def started(tmp_path):
    def start(first_step=0, **fields):
        config = TrainConfig(workdir=str(tmp_path), steps=50, batch_size=32, **fields)
        made.append(Monitor(config, first_step=first_step, peak=1e10))
        return made[-1]

    made = []
    yield start
    for one in made:
        one.close()


def test_rates_by_hand(started, clock):
    one = started()
    with one.waiting_for_data():
        clock.seconds = 0.5
    one.count_step(WORK)
    one.count_step(Work(6e9, 30, 80))
    clock.seconds = 4.0
    # Two steps of 32 pairs in 4 s, 0.5 s of them waiting; 8 GFLOP at a peak of 10 a second.
    assert one.rates() == {
        "rate/pairs_per_second": 16.0,
        "rate/data_wait": 0.125,
        "rate/padding": 0.5,
        "rate/model_tflops": 0.002,
        "rate/mfu": 0.2,
        "memory/peak_gb": 3.0,
    }


def test_rates_of_nothing(started, clock):
    one = started()
    clock.seconds = 4.0
    assert one.rates() == {}


@pytest.mark.parametrize("work", [None, Work(0, 0, 0)], ids=["unknown", "both towers cached"])
def test_work_that_is_not_known_gives_no_mfu(started, clock, work):
    one = started()
    one.count_step(work)
    clock.seconds = 4.0
    assert set(one.rates()) == {"rate/pairs_per_second", "rate/data_wait", "memory/peak_gb"}


def test_a_step_in_flight_counts_in_the_window_in_which_it_ends(started, clock):
    one = started(first_step=7)
    for _ in range(3):
        one.count_step(WORK)
    clock.seconds = 4.0
    assert one.rates(9)["rate/pairs_per_second"] == 2 * 32 / 4  # the tenth is still being computed
    one.restart_clock(9)
    one.count_step(WORK)
    clock.seconds = 6.0
    assert one.rates(10)["rate/pairs_per_second"] == 32 / 2
    assert one.rates(10)["rate/mfu"] == 2e9 / 2 / 1e10
    assert one.rates(11)["rate/pairs_per_second"] == 2 * 32 / 2


def test_a_compilation_does_not_count(started, clock):
    one = started()
    one.count_step(WORK)
    with one.waiting_for_data():
        clock.seconds = 100.0
    one.restart_clock()  # a compilation: what was in flight is long done
    one.count_step(WORK)
    clock.seconds = 101.0
    assert one.rates()["rate/pairs_per_second"] == 32
    assert one.rates()["rate/data_wait"] == 0


def test_lines_and_the_first_one_with_rates(started, tmp_path):
    one = started(first_step=4)
    one.log(5, {"train/loss": 2.0, "batch_digest": "0f"})
    for step in (6, 7):
        one.log(step, {"train/loss": 1.0, "rate/pairs_per_second": 16.0})
    lines = read_metrics(str(tmp_path))
    assert lines[0] == {"step": 5, "train/loss": 2.0, "batch_digest": "0f"}
    assert lines[1]["start"] == 4 and "start" not in lines[2]


def test_a_line_cut_by_a_kill_and_later_steps_are_dropped(started, tmp_path):
    lines = [json.dumps({"step": s, "train/loss": 1.0}) for s in (1, 2, 3)]
    tmp_path.joinpath("metrics.jsonl").write_text("\n".join([*lines, '{"step": 4, "tra']))
    started(first_step=2)
    assert [line["step"] for line in read_metrics(str(tmp_path))] == [1, 2]


def test_the_progress_bar_shows_the_rates(started, clock, capsys):
    one = started()
    one.count_step(WORK)
    clock.seconds = 0.5
    one.log(1, {"train/loss": 2.0, **one.rates()})
    shown = "loss=2.000, pairs/s=64, MFU=40.0%, data wait=0%, padding=25%, peak GB=3.0"
    assert shown in capsys.readouterr().err


def test_memory_is_the_fullest_devices_or_the_process(monkeypatch):
    assert 1e7 < monitor.peak_memory() < 1e12  # a CPU says nothing; Python and JAX take this much
    stats = [{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 8}, {}]
    devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert monitor.peak_memory() == 8


class FakeWandb(SimpleNamespace):
    """Takes down what it is told, as the module and as its run."""

    Error = RuntimeError

    def __init__(self):
        super().__init__(begun=[], lines=[], axes={}, finished=0, Settings=SimpleNamespace)

    def init(self, **fields):
        self.begun.append(fields)
        return self

    def define_metric(self, name, **fields):
        self.axes[name] = fields

    def log(self, line):
        self.lines.append(line)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_as_the_same_run_with_steps_of_its_own(started, wandb, tmp_path):
    one = started(wandb="clip")
    one.log(6, {"train/loss": 2.0, "batch_digest": "0f"})
    one.close()
    again = started(first_step=4, wandb="clip")  # the checkpoint was older than the last line
    again.log(5, {"train/loss": 3.0})
    assert wandb.lines == [{"step": 6, "train/loss": 2.0}, {"step": 5, "train/loss": 3.0}]
    assert wandb.axes["*"] == {"step_metric": "step"} and wandb.finished == 1
    first, second = wandb.begun
    assert first["id"] == second["id"] == (tmp_path / tracking.RUN_ID_FILE).read_text().strip()
    assert (first["project"], first["resume"], first["dir"]) == ("clip", "allow", str(tmp_path))
    assert first["name"] == tmp_path.name


def test_wandb_gets_the_config_and_neither_code_nor_command_line(wandb, tmp_path):
    config = TrainConfig(workdir=str(tmp_path), wandb="clip")
    tracking.start(config, {"optim": {"learning_rate": 0.1}})
    (begun,) = wandb.begun
    assert begun["config"] == {"optim": {"learning_rate": 0.1}}
    kept_back = {"console": "off", "disable_git": True, "save_code": False, "x_disable_meta": True}
    assert vars(begun["settings"]) == kept_back


def test_a_remote_workdir_keeps_the_id_and_wandbs_files_stay_here(wandb, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking.epath, "Path", lambda place: tmp_path)
    monkeypatch.setattr(tracking.tempfile, "mkdtemp", lambda prefix: f"/local/{prefix}")
    tracking.start(TrainConfig(workdir="gs://bucket/run7", wandb="clip"), {})
    assert wandb.begun[0]["dir"] == "/local/wandb_"
    assert (tmp_path / tracking.RUN_ID_FILE).read_text().strip() == wandb.begun[0]["id"]


def test_no_wandb_is_asked_for_by_its_extra(started, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"wandb = 'clip' needs .*clip-italian\[wandb\]"):
        started(wandb="clip")


def test_what_wandb_refuses_is_said(started, wandb, monkeypatch):
    def init(**fields):
        raise RuntimeError("No API key configured")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ConfigError, match=r"wandb = 'clip': No API key.*WANDB_MODE=offline"):
        started(wandb="clip")


def test_wandb_is_not_touched_unless_asked_for(started, wandb):
    started().log(1, {"train/loss": 1.0})
    assert wandb.begun == []


def test_the_real_wandb_offline(started, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "5ec" * 14)
    monkeypatch.setenv("HF_TOKEN", "hf_5ecret")
    for first_step in (0, 4):
        one = started(first_step=first_step, wandb="clip")
        one.log(first_step + 1, {"train/loss": 2.5, "batch_digest": "0f"})
        one.close()
    own = (tmp_path / tracking.RUN_ID_FILE).read_text().strip()
    written = sorted(tmp_path.glob(f"wandb/offline-run-*/run-{own}.wandb"))
    assert written
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert b"5ec5ec" not in content and b"hf_5ecret" not in content, path
    assert b"train/loss" in written[0].read_bytes()


def test_curves_are_what_tensorboard_reads_and_later_ones_of_before_are_hidden(tmp_path):
    for first, steps in ((0, (1, 2, 3)), (2, (3,))):
        one = Monitor(TrainConfig(workdir=str(tmp_path), steps=5), first_step=first)
        for step in steps:
            one.log(step, {"train/loss": step + first / 4, "batch_digest": "ff"})
        one.close()
    before, after = sorted((tmp_path / "tensorboard").iterdir(), key=lambda p: p.name[-1])
    begins = messages.SessionLog.START
    assert [
        [(e.step, e.session_log.status, [(v.tag, v.simple_value) for v in e.summary.value])
         for e in events(path)] for path in (before, after)
    ] == [
        [(0, 0, []), (1, begins, []), *[(n, 0, [("train/loss", n)]) for n in (1, 2, 3)]],
        [(0, 0, []), (3, begins, []), (3, 0, [("train/loss", 3.5)])],
    ]  # fmt: skip


def events(path):
    """Records of a file: length and checksum, event, checksum."""
    data, at = path.read_bytes(), 0
    while at < len(data):
        (size,) = struct.unpack_from("Q", data, at)
        yield messages.Event.FromString(data[at + 12 : at + 12 + size])
        at += 12 + size + 4
