"""The command line, and the page that shows it."""

import re
import shlex
from pathlib import Path

import pytest

from clip_italian import cli
from clip_italian.launch import gcloud
from tests.launch.cloud import CANARY

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tpu.md"
SHOWN = re.findall(r"^```bash\n(.*?)^```\n```text\n(.*?)^```", PAGE.read_text(), re.M | re.S)


@pytest.mark.parametrize(("command", "printed"), SHOWN)
def test_the_page_shows_what_a_dry_run_prints(cloud, command, printed, monkeypatch, capsys):
    for folder in ("data", "dist"):
        (cloud.folder / folder).mkdir()
    (cloud.folder / "dist/clip_italian-0.1.0-py3-none-any.whl").touch()
    (cloud.folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(cloud.folder)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    program, *words = shlex.split(command)
    assert program == "clip-italian" and cli.main(words) == 0
    output = capsys.readouterr().out
    assert output.replace(f"{ROOT}/", "").replace(f"{cloud.folder}/", "") == printed
    assert not (cloud.folder / "calls.jsonl").exists()


def test_the_page_shows_both_machines_and_how_to_delete():
    assert [re.findall(r"--accelerator_type (\S+)", command) for command, _ in SHOWN] == [
        ["v4-8"],
        ["v5litepod-16"],
    ]
    deleted = [line for line in SHOWN[0][1].splitlines() if " delete " in line]
    assert f"\n{deleted[0]}\n" in PAGE.read_text().partition("## Delete by hand")[2]


def test_launch_from_the_command_line(cloud, capsys, monkeypatch):
    job = cloud.job()
    flags = ["name", "zone", "accelerator_type", "config", "workdir", "data", "package"]
    words = [word for flag in flags for word in (f"--{flag}", getattr(job, flag))]
    monkeypatch.setenv("HF_TOKEN", CANARY)
    assert cli.main(["launch", "tpu", *words, "--delete", "--", "--steps", "10"]) == 0
    output = capsys.readouterr()
    assert "| run 1, step 5\n" in output.out and "hf_canary" not in output.out + output.err
    assert cloud.runs()[0].endswith("--steps 10")
    assert cloud.steps()[-1] == "queued-resources delete"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["gpu"], "only tpu is known"),
        (["tpu", "--data", "gs://b/r", "--", "--workdir=gs://b/x"], "--workdir after --"),
        (["tpu", "--data", "gs://b/r", "--workdir", "runs/7"], "give gs://"),
    ],
)
def test_wrong_words(cloud, words, said, capsys):
    job = cloud.job()
    flags = ["name", "zone", "accelerator_type", "config", "workdir", "package"]
    given = [word for flag in flags for word in (f"--{flag}", getattr(job, flag))]
    assert cli.main(["launch", words[0], *given, *words[1:]]) == 2
    assert said in capsys.readouterr().err
    assert not (cloud.folder / "calls.jsonl").exists()


def test_forwarded_tokens_are_those_the_page_names():
    assert all(f"`{name}`" in PAGE.read_text() for name in gcloud.TOKENS)
