"""`clip-italian export --verify torch --onnx --open_clip`: run with `-m torch`."""

import json
import re

import pytest
from PIL import Image

from tests.data.conftest import WORDS
from tests.hub import hub_cache
from tests.hub.card_snippets import snippets
from tests.hub.test_commands import called, data_dir, make_run
from tests.model.checkpoints import write_folder
from tests.tiny import TINY_BERT, TINY_CLIP

pytestmark = pytest.mark.torch

__all__ = ["data_dir"]


def test_everything_at_once(data_dir, tmp_path, capsys, monkeypatch):
    text = {**TINY_BERT, "vocab_size": len(WORDS)}
    run = make_run(tmp_path / "run", data_dir, vision_config=TINY_CLIP, text_config=text)
    hub_cache.use(monkeypatch, tmp_path / "cache")
    tower = write_folder(tmp_path / "tower", text, processor=None)
    hub_cache.add(tmp_path / "cache", "ada/bert", tower)
    folder = tmp_path / "out"
    words = ["--verify", "torch", "--onnx", "--open_clip", "ada/bert"]
    words += ["--push_to_hub", "ada/clip", "--dry_run"]
    status, out, err = called(capsys, "--model", run, "--out_dir", folder, *words)
    assert status == 0, err
    for library in ("Flax", "PyTorch", "onnxruntime", "open_clip"):
        assert library in out
    assert out.count("best caption equal for 5 of 5 pictures of a") >= 5
    assert {path.name for path in (folder / "onnx").iterdir()} == {
        "vision_model.onnx",
        "text_model.onnx",
    }
    said = json.loads((folder / "open_clip_config.json").read_text())
    assert said["model_cfg"]["text_cfg"]["hf_model_name"] == "ada/bert"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.count("5 of 5") >= 5 and "tags:\n" in card
    # Its code for open_clip names the hub: what is to be pushed lies in the cache of it.
    hub_cache.add(tmp_path / "cache", "ada/clip", str(folder))
    (code,) = [code for title, code in snippets(card) if title == "open_clip"]
    Image.new("RGB", (50, 40), "red").save(tmp_path / "foto.jpg")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "open_clip", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sum(bool(re.fullmatch(r"-?[01]\.\d{4}  una foto di .+", line)) for line in lines) == 3
