"""A Space: a folder that starts by itself, with nothing of the place where it was made."""

import os
import re
import socket
import subprocess
import sys
import time

import pytest
import requests
import yaml

from clip_italian.config import ConfigError
from clip_italian.data.collections import open_records
from clip_italian.demo import commands, space
from clip_italian.demo.index import open_index
from clip_italian.hub import export
from tests.demo import models
from tests.demo.colours import write
from tests.demo.conftest import SCENES

TITLE = 'Provo: un "modello" #1'


@pytest.fixture(scope="module")
def exported(drawn, tmp_path_factory):
    """An exported folder of the tiny model."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    folder.mkdir()
    export.write(folder, export.exact(models.tiny_model(drawn, "tiny", 0)))
    return folder


@pytest.fixture(scope="module")
def made(drawn, exported, tmp_path_factory):
    """A Space of it, and what the command said."""
    folder, said = tmp_path_factory.mktemp("spaces") / "tiny-space", []
    words = ["--model", exported, "--images", drawn / "sample", "--space", folder]
    words += ["--title", TITLE]
    assert commands.run([*map(str, words)], open_records, no_export, said.append) == 0
    return folder, "\n".join(said)


def no_export(run, folder, tokenizer):
    raise AssertionError("an exported folder needs no export")


def test_a_space_has_what_the_hub_wants(made):
    folder, said = made
    assert f"{SCENES} added" in said and str(folder) in said
    head = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert head["sdk"] == "gradio" and head["app_file"] == "app.py"
    assert head["title"] == TITLE and f"# {TITLE}" in (folder / "README.md").read_text()
    assert head["python_version"] == ".".join(map(str, sys.version_info[:2]))
    assert len(head["short_description"]) <= 60, "the hub refuses longer ones"
    names = {path.name for path in folder.iterdir()}
    expected = {"README.md", "app.py", "requirements.txt", ".gitattributes", "clip_italian"}
    assert names == expected | {"model", "index"}
    assert not (folder / "model" / "flax_model.msgpack").exists()
    assert len(open_index(folder / "index").keys) == SCENES


def test_requirements_are_pinned_and_complete(made):
    lines = (made[0] / "requirements.txt").read_text().splitlines()
    assert lines == sorted(set(lines), key=str.lower)
    assert all(re.fullmatch(r"[\w.\[\],-]+==[\w.+]+", line) for line in lines)
    names = {re.split(r"[\[=]", line)[0].lower() for line in lines}
    assert {"jax", "gradio", "faiss-cpu", "tensorflow-cpu", "transformers", "uvicorn"} <= names
    assert not names & {"pytest", "ray", "torch", "ruff", "playwright"}


def test_nothing_of_this_machine_is_in_it(made, exported, drawn):
    folder, _ = made
    places = [str(p).encode() for p in (exported, drawn, folder.parent)]
    for path in folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not [place for place in places if place in data], path
            assert path.suffix not in (".pyc", ".pkl", ".pickle", ".partial")


def test_it_starts_from_that_folder_alone(made, exported, tmp_path):
    folder = made[0].rename(tmp_path / "elsewhere")
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # The checkout is found by nobody: neither by PYTHONPATH nor by the current folder.
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
        where = "import clip_italian.demo.serving as s; print(s.__file__)"
        seen = subprocess.run(
            [sys.executable, "-c", where], cwd=folder, env=env, capture_output=True, check=True
        )
        assert str(folder) in seen.stdout.decode()
        process = subprocess.Popen(
            [sys.executable, str(folder / "app.py")],
            cwd=tmp_path,
            env={**env, "PORT": str(port)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            found = page(f"http://127.0.0.1:{port}", process)
            assert "CLIP-Italian" in found and exported.name in found
        finally:
            process.terminate()
            process.wait(60)
    finally:
        folder.rename(made[0])


def page(address, process):
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            return requests.get(address, timeout=60).text
        except requests.ConnectionError:
            time.sleep(0.2)
    raise AssertionError("the Space did not start")


def test_a_folder_that_is_there_is_refused(made, drawn, exported):
    words = ["--model", exported, "--images", drawn / "sample", "--space", made[0]]
    with pytest.raises(ConfigError, match="is there already"):
        commands.run([*map(str, words)], open_records, no_export)


def test_a_run_is_exported_first(drawn, exported, tmp_path, monkeypatch):
    asked = []

    def export_model(run, folder, tokenizer):
        asked.append((run, tokenizer))
        commands.shutil.copytree(exported, folder)

    run = tmp_path / "runs" / "mine"
    (run / "checkpoints").mkdir(parents=True)
    words = ["--model", run, "--images", drawn / "sample", "--space", tmp_path / "out"]
    words += ["--tokenizer", "words"]
    assert commands.run([*map(str, words)], open_records, export_model, lambda _: None) == 0
    assert asked == [(str(run), "words")]
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_hub_model_is_named_and_not_copied(tmp_path):
    space.write_files(tmp_path, model="you/clip@abc", name="you/clip", title="T", count=3)
    head = yaml.safe_load((tmp_path / "README.md").read_text().split("---")[1])
    assert head["models"] == ["you/clip"]
    assert "'you/clip@abc'" in (tmp_path / "app.py").read_text()


def test_the_sample_that_is_not_there_is_explained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="clip-italian prepare sample"):
        commands.run([], open_records, no_export)


def test_pictures_of_a_folder_do_not_tell_where_it_lay(exported, tmp_path):
    write(tmp_path / "alice" / "holiday", 1, 2)
    place = tmp_path / "alice" / "holiday"
    words = ["--model", exported, "--images", place, "--space", tmp_path / "s"]
    assert commands.run([*map(str, words)], open_records, no_export, lambda _: None) == 0
    manifest = (tmp_path / "s" / "index" / "manifest.json").read_text()
    assert "alice" not in manifest and "holiday" in manifest


def test_a_tokenizer_that_would_be_forgotten_is_refused(drawn, exported, tmp_path):
    words = ["--model", exported, "--images", drawn / "sample", "--space", tmp_path / "s"]
    with pytest.raises(ConfigError, match="tokenizer is not for a Space of an exported model"):
        commands.run([*map(str, words), "--tokenizer", "x"], open_records, no_export)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port", ["0", "65536", "99999"])
def test_a_port_that_there_is_not_is_refused(port):
    """Before anything is indexed; the system would take it for another one."""
    with pytest.raises(ConfigError, match=f"port = {port} is not allowed"):
        commands.run(["--port", port, "--images", "none"], open_records, no_export)


def test_neither_two_models_nor_an_approximate_index_make_a_space(drawn, exported, tmp_path):
    words = ["--model", exported, "--images", drawn / "sample", "--space", tmp_path / "s"]
    with pytest.raises(ConfigError, match="compare"):
        commands.run([*map(str, words), "--compare", "x"], open_records, no_export)
    with pytest.raises(ConfigError, match="approximate is not for a Space"):
        commands.run([*map(str, words), "--approximate"], open_records, no_export)
    assert not (tmp_path / "s").exists()
