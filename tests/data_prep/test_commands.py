import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clip_italian import cli
from data_prep import commands
from data_prep.conceptual_captions import ConceptualCaptions
from data_prep.jsonl import Jsonl

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def calls(monkeypatch):
    """What would be prepared, without doing it."""
    made = []
    monkeypatch.setattr(commands, "prepare", lambda *args, **flags: made.append((*args, flags)))
    for name in ("draw", "report"):
        monkeypatch.setattr(commands.rate, name, _note(getattr(commands.rate, name), made))
    return made


def _note(function, made):
    def noting(*args, **flags):
        made.append((function.__name__, args, flags))

    noting.__annotations__, noting.__doc__ = function.__annotations__, function.__doc__
    noting.__wrapped__ = function  # its signature
    return noting


def test_flags_reach_the_source_and_the_steps(calls):
    words = (
        "jsonl --path a.jsonl b.jsonl --caption_column it --source mine --caption_language it "
        "--no_boilerplate --translate en:hu --allow_networks 10.0.0.0/8 --retry_failed --size 128"
    )
    assert cli.main(["prepare", *words.split()]) == 0
    [(source, steps, flags)] = calls
    assert source == Jsonl(path=("a.jsonl", "b.jsonl"), caption_column=("it",))
    assert (steps.run.source, steps.run.retry_failed, steps.images.size) == ("mine", True, 128)
    assert (steps.text.caption_language, steps.text.boilerplate) == ("it", False)
    assert steps.translate.translate == "en:hu"
    assert steps.download.allow_networks == ("10.0.0.0/8",)
    assert flags == {"command": f"clip-italian prepare {words}"}


@pytest.mark.parametrize("name", list(commands.SOURCES))
def test_every_source_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", name, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in ("--near_duplicates", "--connections", "--ray_address", "--translate"):
        assert flag in shown, flag
    undocumented = re.findall(r"(?m)^│ (--\w+)[^│]{0,60}\s{2}\(default", shown)
    assert undocumented == []


def test_a_wrong_field_is_named_without_a_traceback(tmp_path, capsys):
    words = ["jsonl", "--path", str(tmp_path / "none.jsonl"), "--root", str(tmp_path)]
    assert cli.main(["prepare", *words]) == 2
    assert "error: path" in capsys.readouterr().err


def test_an_extra_that_is_missing_is_named():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from clip_italian import cli; sys.exit(cli.main(['prepare', 'jsonl', '--path', 'a']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "needs the package ray; install the extras: pip install 'clip-italian[data,prep]'" in (
        done.stderr
    )


def test_the_sample_needs_no_extra_of_preparation():
    code = (
        "import sys\n"
        "for name in ('ray', 'duckdb', 'pyarrow', 'aiohttp', 'jinja2'): sys.modules[name] = None\n"
        "from clip_italian import cli; cli.main(['prepare', 'sample', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--train_scenes" in done.stdout, done.stderr


PAGES = ("README.md", "docs/data.md", "docs/new_language.md")


def documented():
    """Every `clip-italian prepare` command of the documents, as words."""
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(
            r"^(?:\.venv/bin/)?clip-italian prepare (.*)", text, re.MULTILINE
        ):
            if "..." not in command and not command.startswith(("SOURCE", "sample")):
                yield pytest.param(shlex.split(command), id=command[:60])


@pytest.mark.parametrize("words", list(documented()))
def test_commands_of_the_documents_are_understood(words, calls):
    assert cli.main(["prepare", *words]) == 0
    assert len(calls) == 1


def test_the_documents_have_commands_of_all_four_sources():
    names = {param.values[0][0] for param in documented()}
    assert {"wit", "mscoco_it", "conceptual_captions", "il_post", "jsonl", "parquet"} <= names


def test_names_of_sources_are_those_of_the_papers_config():
    text = (ROOT / "configs" / "clip_italian.py").read_text(encoding="utf-8")
    for name in ("wit", "mscoco_it", "conceptual_captions", "il_post"):
        assert f'"{commands.SOURCES[name].name}"' in text
    assert ConceptualCaptions.name == "cc"
