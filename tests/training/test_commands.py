"""`clip-italian checkpoint`: the table, the verification, and their exit status."""

import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clip_italian import cli
from clip_italian.training import saved
from tests.training.test_manifest import (
    delete,
    flip,
    newest,
    of_format_1,
    payload,
    step_folder,
    truncate,
)


def test_list(workdir, capsys):
    truncate(payload(workdir, 8), random.Random(0))
    of_format_1(step_folder(workdir, 4))
    (workdir / "checkpoints" / "16.orbax-checkpoint-tmp").mkdir()
    assert cli.main(["checkpoint", "list", str(workdir)]) == 0
    head, four, eight, twelve, unfinished = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "saved", "(UTC)", "MB", "score", "files"]
    date = r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(rf" +4  {date}  0\.\d  0\.7500  best  no manifest \(.*\)", four)
    assert re.fullmatch(rf" +8  {date}  0\.\d  0\.5000 +DAMAGED: state/.* bytes, not .*", eight)
    assert re.fullmatch(rf" +12  {date}  0\.\d +not verified", twelve)
    assert unfinished == "left over, deleted at the next start: 16.orbax-checkpoint-tmp"
    assert step_folder(workdir, 8).is_dir() and newest(workdir) == 12
    cli.main(["checkpoint", "list", str(workdir)])
    assert "set aside as damaged" in capsys.readouterr().out.splitlines()[-1]


def test_verify(workdir, capsys):
    words = ["checkpoint", "verify", str(workdir)]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[\d,]+ bytes", "N bytes", line) for line in lines] == [
        "step 4: ok, N bytes",
        "step 8: ok, N bytes",
        "step 12: ok, N bytes",
    ]
    of_format_1(step_folder(workdir, 4))
    assert payload(workdir, 8).stat().st_size > 2**16, "too large for a quick look"
    flip(payload(workdir, 8), random.Random(0))
    delete(step_folder(workdir, 12) / "run" / "metadata", None)
    assert cli.main(words) == 1
    found = capsys.readouterr().out
    assert "step 4: cannot be verified" in found
    assert re.search(r"step 8: DAMAGED\n  state/\S+ has other contents than were saved\n", found)
    assert found.endswith("step 12: DAMAGED\n  run/metadata is missing\n")
    assert cli.main([*words, "--step", "4"]) == 0
    assert cli.main([*words, "--step", "8"]) == 1
    assert "step 12" not in capsys.readouterr().out.replace("step 12: ok", "")
    assert sorted(os.listdir(workdir / "checkpoints")) == ["12", "4", "8"], "nothing was moved"


def test_what_a_run_deletes_meanwhile_is_no_damage(workdir, capsys, monkeypatch):
    problems = saved.problems

    def slow(folder, step, **options):
        if step == 4:
            shutil.rmtree(step_folder(workdir, 4))
        return problems(folder, step, **options)

    monkeypatch.setattr(saved, "problems", slow)
    assert cli.main(["checkpoint", "verify", str(workdir)]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "step 4: deleted meanwhile by the run, which keeps newer ones"
    assert second.startswith("step 8: ok")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["list", "nowhere"], "nowhere holds no folder `checkpoints`"),
        (["verify", "nowhere"], "nowhere holds no folder `checkpoints`"),
    ],
)
def test_what_is_no_run_is_refused(words, said, capsys):
    assert cli.main(["checkpoint", *words]) == 2
    assert f"error: {said}" in capsys.readouterr().err


def test_an_unknown_step_is_refused(workdir, capsys):
    assert cli.main(["checkpoint", "verify", str(workdir), "--step", "5"]) == 2
    assert "step = 5 is no checkpoint of" in capsys.readouterr().err


def test_a_run_without_checkpoints(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    assert cli.main(["checkpoint", "list", str(tmp_path)]) == 0
    assert cli.main(["checkpoint", "verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == ["step", "saved", "(UTC)", "MB", "metric", "files"]


def test_no_accelerator_is_touched(workdir):
    """The platform does not exist: whoever asks for a device fails."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "clip_italian.cli", "checkpoint", "verify", str(workdir)]
    env = {**os.environ, "JAX_PLATFORMS": "nowhere", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": ok, ") == 3, done.stderr


@pytest.mark.parametrize("words", [["--help"], ["list", "--help"], ["verify", "--help"], []])
def test_help(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["checkpoint", *words])
    assert ended.value.code == 0
    assert "usage: clip-italian checkpoint" in capsys.readouterr().out
