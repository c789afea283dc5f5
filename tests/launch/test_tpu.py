"""Launches on a fake cloud: what is asked of gcloud, and what is made of its faults."""

import os
import stat

import pytest

from clip_italian.launch import gcloud, tpu
from tests.launch.cloud import CANARY

CREATED = ["queued-resources describe", "queued-resources create"]
READY = ["queued-resources describe", "tpu-vm describe"]
SET_UP = ["mkdir", "scp", "secrets", "setup", "data"]
TRAINED = ["start", "follow", "status"]
BROKEN = "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) exited with return code [255]."


def test_an_undisturbed_launch(cloud):
    assert cloud.launch("--steps", "10", delete=True, project="mine") == 0
    assert cloud.steps() == [*CREATED, *READY, *SET_UP, *TRAINED, "queued-resources delete"]
    asked = [["gcloud", *call["argv"]] for call in cloud.calls() if call["argv"][0] != "storage"]
    job = cloud.job(delete=True, project="mine")
    planned = gcloud.plan(job, ["--steps", "10"], {"HF_TOKEN": CANARY})
    assert asked == [list(command.words) for command in planned]
    assert cloud.log[:5] == [f"run 1, step {step}" for step in range(1, 6)]
    assert cloud.runs() == [
        f"{cloud.folder}/worker-0/clip_italian train --config mine.py --data_dir data/records "
        "--workdir gs://bucket/run7 --steps 10"
    ]
    # Each command is said before it runs.
    assert [line for line in cloud.said if line.startswith("+ ")] == [f"+ {one}" for one in planned]


def test_every_worker_is_set_up_and_trains(cloud):
    cloud.arrange(workers=4)
    records = cloud.folder / "shards"
    records.mkdir()
    (records / "one.array_record").write_text("pictures")
    assert cloud.launch(data=str(records)) == 0
    assert cloud.steps().count("secrets") == 4
    for worker in range(4):
        home = cloud.folder / f"worker-{worker}"
        assert len(cloud.runs(worker)) == 1
        assert (home / "token_seen").read_text() == CANARY
        assert (home / "clip_italian/data/shards/one.array_record").read_text() == "pictures"
        assert stat.S_IMODE(os.stat(home / "clip_italian/secrets").st_mode) == 0o600


def test_a_token_is_in_no_command_and_in_nothing_said(cloud):
    cloud.arrange(faults=[{"match": "setup", "stderr": f"with {CANARY}: NOT_FOUND", "exit": 1}])
    assert cloud.launch() == 1
    assert cloud.launch() == 0
    assert all(CANARY not in word for call in cloud.calls() for word in call["argv"])
    assert "the token is <HF_TOKEN>" in cloud.log
    assert "hf_canary" not in cloud.text
    # It did go there, through standard input and nowhere else.
    stdins = {"secrets" in " ".join(call["argv"]) for call in cloud.calls() if call["stdin"]}
    assert stdins == {True}


def test_it_waits_for_machines_says_so_and_in_the_end_how_to_delete_them(cloud):
    cloud.arrange(
        states=["WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    )
    assert cloud.launch() == 0
    assert cloud.slept == [30, 60, 120]
    assert "run7: WAITING_FOR_RESOURCES; 0 minutes so far" in cloud.said
    assert "run7: PROVISIONING; 2 minutes so far" in cloud.said
    assert cloud.said[-1] == (
        "To delete the machines by hand: gcloud compute tpus queued-resources delete run7 --force "
        "--zone=us-central2-b --quiet"
    )


def test_no_capacity_gives_up_and_deletes_the_request(cloud):
    cloud.arrange(states=["WAITING_FOR_RESOURCES"])
    assert cloud.launch(wait_hours=0.5) == 1
    assert cloud.clock() >= 1800
    assert cloud.steps()[-1] == "queued-resources delete"
    assert "no v4-8 in us-central2-b within 0.5 hours (WAITING_FOR_RESOURCES)" in cloud.text
    assert not cloud.runs()


def test_a_failed_request_is_made_again(cloud):
    cloud.arrange(states=["FAILED"])
    assert cloud.launch(wait_hours=0.05) == 1
    assert cloud.steps().count("queued-resources create") == 3
    assert "FAILED (no capacity in this zone)" in cloud.text


def test_a_request_that_is_still_being_deleted_is_waited_for(cloud):
    cloud.arrange(exits="2 0")
    assert cloud.launch() == 2
    cloud.change(states=["DELETING"])
    assert cloud.launch(wait_hours=0.01) == 1
    assert cloud.slept == [30, 60] and "DELETING; 0 minutes so far" in cloud.text
    assert cloud.steps().count("queued-resources create") == 1


def test_after_a_preemption_it_goes_on_elsewhere(cloud):
    cloud.arrange(exits="hang 0", faults=[{"match": "follow 1", "then": {"machine": "PREEMPTED"}}])
    assert cloud.launch() == 0
    assert cloud.steps() == [
        *(CREATED + READY + SET_UP + ["start", "follow"]),
        *(READY + READY + ["queued-resources delete"]),
        *(CREATED + READY + SET_UP + TRAINED),
    ]
    assert "preempted, 1 of at most 20 times" in cloud.text
    first, second = cloud.runs()
    assert first == second and "--workdir gs://bucket/run7" in second


def test_preemption_during_set_up(cloud):
    gone = {"states": ["SUSPENDED"], "next_states": ["ACTIVE"]}
    cloud.arrange(faults=[{"match": "scp", "then": gone}])
    assert cloud.launch() == 0
    assert cloud.steps().count("queued-resources create") == 2
    assert "run7: SUSPENDED; 0 minutes so far" in cloud.said


def test_exit_status_75_starts_again_without_a_new_set_up_but_not_for_ever(cloud):
    cloud.arrange(exits="75 75")
    assert cloud.launch(preemptions=1) == 1
    assert cloud.steps() == [*CREATED, *READY, *SET_UP, *TRAINED, *READY, *TRAINED]
    assert cloud.slept == [60] and len(cloud.runs()) == 2
    assert "run 2, step 1" in cloud.log and "preempted 2 times" in cloud.text


def test_exit_status_2_is_not_tried_again(cloud):
    cloud.arrange(exits="2 0")
    assert cloud.launch() == 2
    assert len(cloud.runs()) == 1
    assert "the training refuses its flags or its config" in cloud.text


def test_another_error_is_tried_again_and_then_given_up_with_the_last_lines(cloud):
    cloud.arrange(exits="1 1 1 1")
    assert cloud.launch(failures=1) == 1
    assert len(cloud.runs()) == 2
    assert "failed, 1 of at most 1 times" in cloud.text
    assert cloud.log[-6:] == [*(f"run 2, step {n}" for n in range(1, 6)), "the token is <HF_TOKEN>"]
    assert cloud.log.count("run 2, step 5") == 2  # as it came, and at the end


def test_one_failed_worker_is_a_failure(cloud):
    cloud.arrange(workers=2, exits="0 0")
    script = cloud.folder / "training.sh"
    script.write_text(
        script.read_text().replace('exit "$status"', "case $HOME in *-1) exit 1; esac")
    )
    assert cloud.launch(failures=0) == 1


def test_workers_that_still_run_after_the_first_has_failed_are_stopped(cloud, monkeypatch):
    monkeypatch.setattr(gcloud, "STATUS_SECONDS", 0)
    cloud.arrange(workers=2, exits="1")
    script = cloud.folder / "training.sh"
    script.write_text(script.read_text().replace("exit ", "[[ $HOME == *-1 ]] && sleep 60; exit "))
    assert cloud.launch(failures=0) == 1
    assert cloud.steps()[-2:] == ["status", "stop"]
    assert "exit status running" in cloud.text
    assert (cloud.folder / "worker-1/clip_italian/attempts/1/status").exists()


@pytest.mark.parametrize("world", [{"deleted": True}, {"states": ["DELETING"]}])
def test_a_request_that_somebody_deletes_is_not_made_again(cloud, world):
    cloud.arrange(exits="hang", faults=[{"match": "follow", "then": world}])
    assert cloud.launch() == 1
    assert cloud.steps().count("queued-resources create") == 1
    assert "was deleted; it is not made again" in cloud.text


def test_control_c_leaves_the_training_alone_and_says_what_it_costs(cloud):
    def interrupt(line):
        cloud.said.append(line)
        if line == "| run 1, step 2":
            raise KeyboardInterrupt

    cloud.say = interrupt
    assert cloud.launch(delete=True) == 130
    assert cloud.steps()[-1] == "follow"
    assert "goes on, and costs money" in cloud.text
    assert "queued-resources delete run7" in cloud.said[-1]


@pytest.mark.parametrize("repeat", [False, True])
def test_a_dropped_connection_loses_and_repeats_no_line(cloud, repeat):
    drop = {"match": "follow 1 1", "lines": 2, "repeat": repeat, "exit": 1, "stderr": BROKEN}
    cloud.arrange(faults=[drop])
    assert cloud.launch() == 0
    assert cloud.log == [*(f"run 1, step {n}" for n in range(1, 6)), "the token is <HF_TOKEN>"]
    assert len(cloud.runs()) == 1
    again = [call for call in cloud.calls() if "follow" in " ".join(call["argv"])][1]
    assert f"follow 1 {7 if repeat else 3}" in " ".join(again["argv"])


def test_without_a_connection_it_gives_up_and_the_same_command_again_follows(cloud, monkeypatch):
    monkeypatch.setattr(tpu, "RECONNECTS", 2)
    drop = {"match": "follow", "exit": 1, "stderr": BROKEN}
    cloud.arrange(exits="hang", faults=[drop] * 3)
    assert cloud.launch() == 1
    assert cloud.steps().count("follow") == 3 and cloud.slept == [5, 10]
    assert "give the same command again to follow it" in cloud.text
    before = len(cloud.steps())
    cloud.change(faults=[{"match": "follow", "then": {"machine": "PREEMPTED"}}])
    (cloud.folder / "exits").write_text("hang 0\n")
    assert cloud.launch() == 0
    assert cloud.steps()[before : before + 4] == [*READY, "probe", "follow"]
    assert "attempt 1 still runs; following it" in cloud.said


def test_a_machine_that_was_there_is_set_up_again(cloud):
    cloud.arrange(exits="2 0")
    assert cloud.launch() == 2
    assert cloud.launch() == 0
    assert cloud.steps()[-11:] == [*READY, "probe", *SET_UP, *TRAINED]
    assert (cloud.folder / "worker-0/clip_italian/attempts/2").is_dir()


def test_passing_errors_of_gcloud_are_tried_again_with_backoff(cloud):
    flaky = {"match": "scp", "stderr": "UNAVAILABLE: try later", "exit": 1}
    lost = {"match": "create", "after": True, "stderr": "connection reset", "exit": 1}
    cloud.arrange(faults=[lost, flaky, flaky])
    assert cloud.launch() == 0
    assert cloud.slept == [5, 5, 10]
    assert "UNAVAILABLE: try later\nfailed; trying again in 5 s" in cloud.text
    # The first create did work, only its answer was lost: nothing is made twice.
    assert cloud.steps().count("queued-resources create") == 2 and len(cloud.runs()) == 1


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("ERROR: PERMISSION_DENIED: no", "roles/tpu.admin"),
        ("Cloud TPU API has not been used in project 1: PERMISSION_DENIED", "services enable"),
        ("ERROR: Quota limit 'TPUV4' exceeded", "quota is too small"),
        ("ERROR: INVALID_ARGUMENT: bad type", "accelerator-types list"),
    ],
)
def test_a_lasting_error_says_what_to_do(cloud, stderr, advice):
    cloud.arrange(faults=[{"match": "queued-resources create", "stderr": stderr, "exit": 1}])
    assert cloud.launch() == 1
    assert cloud.steps() == CREATED and cloud.slept == []
    assert "exit status 1:\n  gcloud compute tpus queued-resources create" in cloud.text
    assert stderr in cloud.text and advice in cloud.text


def test_without_gcloud(cloud, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert cloud.launch() == 1
    assert "install the Google Cloud CLI" in cloud.text
