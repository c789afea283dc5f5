"""Several real processes on this host, each with fake devices of its own; and their signals."""

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from clip_italian.config import ConfigError
from clip_italian.training import distributed, loop
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.fellows import Preempted
from clip_italian.training.monitor import read_metrics
from clip_italian.training.parallel import make_parallel
from tests import toy
from tests.training.test_loop import STEPS, make_config, run

ROOT = Path(__file__).resolve().parent.parent.parent
LONGEST = 240  # seconds until a process must have ended, on a busy machine


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment(devices):
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])
    flags = f"{flags} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}


def start(command, logs, count, devices):
    """Starts the same command as so many processes of one run, each with its own log file.

    With 0, as one process that is told nothing of others.
    """
    address = f"127.0.0.1:{free_port()}"
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for index in range(max(count, 1)):
        with (logs / f"log{index}").open("w") as log:
            variables = environment(devices)
            if count:
                variables["JAX_COORDINATOR_ADDRESS"] = address
                variables["JAX_NUM_PROCESSES"] = str(count)
                variables["JAX_PROCESS_ID"] = str(index)
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=variables, stdout=log, stderr=log
                )
            )
    return processes


def finish(processes, logs):
    """Their exit statuses and what they said; ends those that hang."""
    end = time.monotonic() + LONGEST
    try:
        for process in processes:
            process.wait(max(end - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process in processes:
            process.kill()
    return [p.wait() for p in processes], [
        (logs / f"log{i}").read_text() for i in range(len(processes))
    ]


def toy_run(workdir, count=1, devices=4, **asked):
    """A run of the toy worker to its end: exit statuses, logs."""
    words = ["-m", "tests.training.worker", json.dumps({"workdir": str(workdir), **asked})]
    logs = workdir.with_name(f"{workdir.name}-logs")
    return finish(start(words, logs, count, devices), logs)


def lines(workdir):
    """What must not depend on processes: of each line of metrics all but rates."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("rate/", "memory/", "start"))}
        for line in read_metrics(str(workdir))
    ]


def saved(workdir, step=STEPS):
    """The state at a step, read by this process."""
    config = make_config(workdir)
    checkpoints = Checkpoints(config, "fingerprint")
    assert checkpoints.latest_step() == step
    parallel = make_parallel("mesh", jax.devices()[:1])
    state = loop.start_state(config, parallel, toy.init_params, toy.init_params, checkpoints)
    checkpoints.close()
    return state


def assert_ok(statuses, logs):
    assert statuses == [0] * len(statuses), "\n".join(logs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process with four devices."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert_ok(*toy_run(workdir))
    return workdir


def test_two_processes_equal_one(whole, tmp_path):
    statuses, logs = toy_run(tmp_path / "run", 2, 2)
    assert_ok(statuses, logs)
    assert lines(tmp_path / "run") == lines(whole)  # to the last bit
    assert len(lines(whole)) == STEPS + 3  # three evaluations
    jax.tree.map(np.testing.assert_array_equal, saved(tmp_path / "run"), saved(whole))
    assert "step/s" in logs[0] and "step/s" not in logs[1]


def test_sigterm_saves_the_current_step_and_another_number_of_processes_goes_on(whole, tmp_path):
    run = tmp_path / "run"
    statuses, logs = toy_run(run, 2, 2, fault="storm", who=1, at=5)
    assert statuses == [75, 75], "\n".join(logs)
    step = int(re.search(r"preempted: step (\d+) is saved", logs[0])[1])
    assert 3 <= step < STEPS and "preempted: step" not in logs[1]
    done = lines(run)
    assert done[-1]["step"] == step == max(int(p.name) for p in (run / "checkpoints").iterdir())
    assert done == lines(whole)[: len(done)]
    statuses, logs = toy_run(run)
    assert_ok(statuses, logs)
    assert lines(run) == lines(whole)
    jax.tree.map(np.testing.assert_array_equal, saved(run), saved(whole))
    # JAX's own handler is no Python handler, and one of ours would disable it.
    assert f"handler {int(signal.SIG_DFL)}" in logs[0]


def test_one_process_alone_notices_sigterm(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which must not be asked
    (status,), (log,) = toy_run(tmp_path / "run", 0, 1, fault="term", at=5)
    assert status == 75 and "the same command goes on" in log, log
    step = lines(tmp_path / "run")[-1]["step"]
    assert 3 <= step < STEPS and int(saved(tmp_path / "run", step).step) == step


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("layout", ["mesh", "pmap", "shard_params"])
def test_many_processes_equal_one(tmp_path, count, layout):
    asked = {"shard_params": True} if layout == "shard_params" else {"kind": layout}
    assert_ok(*toy_run(tmp_path / "one", 1, 2 * count, **asked))
    assert_ok(*toy_run(tmp_path / "many", count, 2, **asked))
    assert lines(tmp_path / "many") == lines(tmp_path / "one")
    states = saved(tmp_path / "many"), saved(tmp_path / "one")
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_one_then_two_then_one_process_equal_one(tmp_path, kind):
    assert_ok(*toy_run(tmp_path / "one", kind=kind))
    for steps, count in ((4, 1), (8, 2), (STEPS, 1)):
        assert_ok(*toy_run(tmp_path / "many", count, 4 // count, steps=steps, kind=kind))
    assert lines(tmp_path / "many") == lines(tmp_path / "one")
    states = saved(tmp_path / "many"), saved(tmp_path / "one")
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.slow
def test_sigterm_in_an_evaluation_does_not_wait_for_its_end(whole, tmp_path):
    statuses, logs = toy_run(tmp_path / "run", 2, 2, fault="evaluation", who=1, at=3)
    assert statuses == [75, 75], "\n".join(logs)
    assert "preempted: step 4 is saved" in logs[0]
    assert [line for line in lines(tmp_path / "run") if "score" in line] == []
    assert_ok(*toy_run(tmp_path / "run", 2, 2))
    assert lines(tmp_path / "run") == lines(whole)
    jax.tree.map(np.testing.assert_array_equal, saved(tmp_path / "run"), saved(whole))


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_in_one_process_ends_all_and_is_named(tmp_path, who):
    statuses, logs = toy_run(tmp_path / "run", 2, 2, fault="error", who=who, at=5)
    assert statuses == [1, 1], "\n".join(logs)
    for log in logs:
        assert f"error: process {who}: ValueError: no such picture" in log


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_an_error_after_the_others_have_ended_is_named_and_they_are_not_blamed(tmp_path, who):
    """Process 0 writes the report while the others have nothing left to do."""
    statuses, logs = toy_run(tmp_path / "run", 2, 2, fault="report", who=who)
    assert statuses == [1, 1], "\n".join(logs)
    for log in logs:
        assert f"error: process {who}: ValueError: no room for the report" in log
        assert "died or hangs" not in log


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_does_not_come_is_named(tmp_path, who):
    statuses, logs = toy_run(tmp_path / "run", 2, 2, fault="late", who=who)
    assert statuses == [1, 1], "\n".join(logs)
    for log in logs:
        assert f"MissingProcessError: process {who} of 2 did not reach the start in 3 s" in log


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_a_dead_host_ends_the_others_and_is_named(tmp_path, fault):
    """Its sockets close when it is killed; when it only stops, nothing tells but heartbeats."""
    words = {"workdir": str(tmp_path / "run"), "fault": fault, "who": 1, "at": 6}
    command = ["-m", "tests.training.worker", json.dumps(words)]
    processes = start(command, tmp_path, 4, 1)
    try:
        while len(read_metrics(words["workdir"])) < 4 and processes[0].poll() is None:
            time.sleep(0.1)
        begun = time.monotonic()
        statuses = [processes[i].wait(LONGEST) for i in (0, 2, 3)]
        seconds = time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = [(tmp_path / f"log{i}").read_text() for i in (0, 2, 3)]
    print(fault, statuses, seconds)
    assert 0 not in statuses and seconds < 180
    own = r"process 1 of 4 died or hangs"
    jax_own = r"stopped sending heartbeats\):\s+1\b|Task 1 heartbeat timeout"
    assert re.search(f"{own}|{jax_own}", logs[0]), logs[0]


@pytest.mark.slow
def test_an_interrupted_run_says_so_in_one_line(tmp_path):
    (status,), (log,) = toy_run(tmp_path / "run", fault="interrupt", at=5)
    assert status == 130 and "interrupted: the same command goes on" in log
    assert "Traceback" not in log


def test_no_code_of_ours_handles_sigterm():
    installs = re.compile(r"signal\.(signal|set_wakeup_fd|sigwait)|add_signal_handler")
    sources, demo = [ROOT / "run_hybrid_clip.py"], ROOT / "clip_italian" / "demo"
    for package in ("clip_italian", "data_prep"):
        sources += (ROOT / package).rglob("*.py")
    found = [path for path in sources if installs.search(path.read_text())]
    assert [path for path in found if demo not in path.parents] == []  # which does not train


def test_all_questions_about_preemption_are_counted(tmp_path, monkeypatch):
    """One that Orbax asked with a number of its own would make JAX miss the next."""
    asked = []
    monkeypatch.setattr(distributed.global_state, "preemption_sync_manager", object())
    monkeypatch.setattr(distributed, "_asked", itertools.count(1))
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda number: asked.append(number)
    )
    run(make_config(tmp_path))
    assert asked == list(range(1, STEPS + 3 + 1))  # every step, and every value of an evaluation


def test_what_is_preempted_between_saves_is_logged_and_saved(tmp_path, monkeypatch):
    answers = iter([False] * 6 + [True])
    monkeypatch.setattr(distributed, "preempted", lambda: next(answers))
    with pytest.raises(Preempted, match="step 5 is saved"):
        run(make_config(tmp_path))  # the evaluation after step 4 asks as well
    monkeypatch.setattr(distributed, "preempted", lambda: False)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 4, 5]
    assert int(saved(tmp_path, 5).step) == 5


@pytest.mark.parametrize(("nth", "logged"), [(1, []), (3, [1, 2])])
def test_a_preemption_before_the_first_save(tmp_path, monkeypatch, nth, logged):
    asked = itertools.count(1)
    monkeypatch.setattr(distributed, "preempted", lambda: next(asked) == nth)
    with pytest.raises(Preempted, match="step 2 is saved" if logged else "no step was done"):
        run(make_config(tmp_path))
    assert [line["step"] for line in lines(tmp_path)] == logged
    assert len(list(tmp_path.glob("checkpoints/*"))) == len(logged[:1])


def test_where_jax_has_computed_it_says_that_sigterm_is_not_noticed(caplog):
    jax.devices()
    distributed.start()
    (said,) = caplog.messages
    assert "SIGTERM" in said
    assert not distributed.preempted()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "set all three"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "set all three"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID = 2 is not allowed; give 0 to 1"),
        ({"JAX_PROCESS_ID": "-1"}, "the last two as numbers"),
        ({"JAX_NUM_PROCESSES": "two"}, "the last two as numbers"),
    ],
)
def test_wrong_variables_are_refused_by_name(monkeypatch, variables, message):
    monkeypatch.setattr(distributed.xla_bridge, "backends_are_initialized", lambda: False)
    if len(variables) == 1 and "set all" not in message:
        given = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        variables = {**given, **variables}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        distributed.start()
