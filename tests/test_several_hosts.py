"""run_hybrid_clip.py as several processes on the embedded sample, and its end on SIGTERM."""

import json
import signal
import time

import pytest

from clip_italian.training import distributed
from clip_italian.training.monitor import read_metrics
from tests.test_end_to_end import train
from tests.training.test_processes import assert_ok, finish, lines, start

NOTICE = 20  # seconds from SIGTERM to the end


def command(config, workdir, *flags):
    return ["run_hybrid_clip.py", "--config", str(config), "--workdir", str(workdir), *flags]


def run(config, workdir, count, devices, *flags):
    logs = workdir.with_name(f"{workdir.name}-logs")
    return finish(start(command(config, workdir, *flags), logs, count, devices), logs)


def test_a_plan_starts_no_processes(config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "start", lambda: pytest.fail("started"))
    assert train(config_file, tmp_path, "--dry_run") == 0
    with pytest.raises(SystemExit):
        train(config_file, tmp_path, "--help")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mesh", "pmap"])
def test_two_processes_equal_one(config_file, tmp_path, kind):
    flags = ["--parallel", kind]
    one, two = tmp_path / "one", tmp_path / "two"
    assert_ok(*run(config_file, one, 1, 4, *flags))
    statuses, logs = run(config_file, two, 2, 2, *flags)
    assert_ok(statuses, logs)
    assert lines(two) == lines(one)  # losses, batch digests and evaluations, to the last bit
    assert [line["step"] for line in lines(one) if "validation/loss" in line] == [4, 8]
    first, second = (json.loads((x / "report.json").read_text())["results"] for x in (one, two))
    assert first == second
    assert "text → image" in logs[0] and "text → image" not in logs[1]


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 2])
def test_sigterm_saves_in_time_and_another_number_of_processes_goes_on(
    config_file,
    tmp_path,
    count,
):
    devices = 4 if count else 1  # alone, several would add up in another order
    flags = ["--steps", "200", "--save_every", "200", "--eval_every", "100"]
    assert_ok(*run(config_file, tmp_path / "whole", 1, devices, *flags))
    cut, logs = tmp_path / "cut", tmp_path / "cut-logs"
    if count:  # begun by one process, to go on as two
        begin = ["--steps", "3", "--decay_steps", "200", *flags[2:]]
        assert_ok(*run(config_file, cut, 1, devices, *begin))
    processes = start(command(config_file, cut, *flags), logs, count, devices // max(count, 1))
    while len(read_metrics(str(cut))) < 8 and processes[0].poll() is None:
        time.sleep(0.05)
    processes[-1].send_signal(signal.SIGTERM)
    begun = time.monotonic()
    statuses, said = finish(processes, logs)
    seconds = time.monotonic() - begun
    print(count, "SIGTERM to the end:", seconds)
    assert statuses == [75] * len(processes), "\n".join(said)
    assert seconds < NOTICE
    step = lines(cut)[-1]["step"]
    assert f"preempted: step {step} is saved" in said[0] and 8 <= step < 200
    assert (cut / "checkpoints" / str(step)).is_dir()
    assert_ok(*run(config_file, cut, 1, devices, *flags))
    # The run of three steps has evaluated its last one.
    assert [x for x in lines(cut) if x["step"] > 3] == [
        x for x in lines(tmp_path / "whole") if x["step"] > 3
    ]
