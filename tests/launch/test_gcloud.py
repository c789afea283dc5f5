"""The commands themselves, and how answers are read; nothing is run."""

import dataclasses

import pytest

from clip_italian.config import ConfigError
from clip_italian.launch import gcloud, options

JOB = options.Tpu(
    name="run7",
    zone="us-west4-a",
    accelerator_type="v5litepod-16",
    config="configs/clip_italian.py",
    workdir="gs://bucket/run7",
    data="gs://bucket/records/",
    package="git+https://github.com/clip-italian/clip-italian@main",
    project="mine",
    spot=True,
)


def test_create_asks_for_a_queued_resource_and_for_spot_machines_when_told():
    plain = gcloud.create(dataclasses.replace(JOB, spot=False))
    assert "--spot" not in plain.words
    assert str(gcloud.create(JOB)) == (
        "gcloud compute tpus queued-resources create run7 --node-id=run7 "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
        "--zone=us-west4-a --project=mine --quiet"
    )


def test_the_training_gets_its_places_and_further_flags():
    assert gcloud.training(JOB, ["--dtype", "bfloat16"]) == [
        *("venv/bin/clip-italian", "train", "--config", "clip_italian.py"),
        *("--data_dir", "data/records", "--workdir", "gs://bucket/run7", "--dtype", "bfloat16"),
    ]


def test_records_are_looked_for_where_they_are_copied_to(tmp_path, monkeypatch):
    (tmp_path / "disk/records").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "disk/records")
    for here, data in ((tmp_path, "data"), (tmp_path, "disk/records/"), (tmp_path / "data", ".")):
        monkeypatch.chdir(here)
        job = dataclasses.replace(JOB, data=data)
        (copy,) = (one for one in gcloud.prepare(job, 1, {}) if "--recurse" in one.words)
        assert f"{tmp_path}/disk/records" in copy.words
        words = gcloud.training(job, [])
        assert words[words.index("--data_dir") + 1] == "data/records"


def test_tokens_go_to_one_worker_at_a_time_and_are_in_no_word():
    commands = gcloud.prepare(JOB, 4, {"HF_TOKEN": "canary's"})
    with_tokens = [command for command in commands if command.stdin]
    assert [word for one in with_tokens for word in one.words if "worker=" in word] == [
        f"--worker={number}" for number in range(4)
    ]
    assert with_tokens[0].stdin == "HF_TOKEN='canary'\"'\"'s'\n# end\n"
    assert "canary" not in "".join(map(str, commands)) + repr(commands)
    assert not any(command.stdin for command in gcloud.prepare(JOB, 4, {}))


@pytest.mark.parametrize(
    ("exits", "verdict"),
    [
        (["0", "0"], "done"),
        (["0", "1"], "failed"),
        (["0", "running"], "failed"),
        (["75", "1"], "preempted"),  # the others fail once one has gone
        (["0", "lost"], "preempted"),
        (["2", "1"], "config"),
        (["0"], "preempted"),  # the second worker did not answer
    ],
)
def test_verdict(exits, verdict):
    assert gcloud.verdict(exits, 2) == verdict


def test_states():
    failed = '{"state": {"state": "FAILED", "failedData": {"error": {"message": "no room"}}}}'
    assert gcloud.request_state(failed) == ("FAILED", "no room")
    assert gcloud.machine_state('{"state": "READY", "networkEndpoints": [{}, {}]}') == ("READY", 2)
    request, machine = gcloud.request_standing, gcloud.machine_standing
    assert {request(one) for one in ("SUSPENDING", "SUSPENDED", "FAILED")} == {"gone"}
    assert request("DELETING") == "leaving"
    assert {request(one) for one in ("ACCEPTED", "CREATING", "PROVISIONING")} == {"waiting"}
    assert {machine(one) for one in ("PREEMPTED", "TERMINATED", "STOPPED")} == {"gone"}
    assert {machine(one) for one in ("RESTARTING", "REPAIRING", "CREATING")} == {"waiting"}
    assert request("ACTIVE") == machine("READY") == "ready"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"workdir": "runs/7"}, "workdir = 'runs/7'; give gs://"),
        ({"config": "nowhere.py"}, "config = 'nowhere.py'"),
        ({"data": "nowhere"}, "data = 'nowhere'"),
        ({"package": "nowhere.whl"}, "package = 'nowhere.whl'"),
        ({"name": "Run_7"}, "name = 'Run_7'"),
        ({"accelerator_type": "v9-8"}, "give runtime_version too"),
        ({"failures": -1}, "failures = -1"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_created(cloud, fields, named):
    with pytest.raises(ConfigError, match=named):
        options.check(cloud.job(**fields))
    options.check(cloud.job())
