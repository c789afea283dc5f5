"""The commands of how-to pages as they stand, with small stand-ins for what they name."""

import functools
import http.server
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_italian.data.records import open_split, parse_record, write_records
from data_prep.sample import tokenizer_files, train_tokenizer
from tests.data.conftest import record
from tests.data_prep.tiny_marian import sentences, write_checkpoint
from tests.demo.test_space import page
from tests.hub.test_commands import CAPTIONS, make_run
from tests.model.checkpoints import tower_weights, write_folder
from tests.tiny import TINY_BERT, TINY_VIT

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {
    "clip-italian": f"{sys.executable} -m clip_italian.cli",
    "python run_hybrid_clip.py": f"{sys.executable} {ROOT / 'run_hybrid_clip.py'}",
}
# What a test changes: a local server is no public address, and there is no time for 20,000 steps.
EXTRA = {
    "prepare parquet": " --allow_networks 127.0.0.0/8 --translation_cache cache.sqlite"
    " --validation_share 0.4",
    "prepare jsonl": " --validation_share 0.4",
    "evaluate": " --cache_dir '' --resamples 50",
    "init_from": " --sources wit --augment none",
    "warmup_steps": " --warmup_steps 1 --vision_thaw_step 1 --text_thaw_step 2",
    "run_hybrid_clip.py": " --steps 4 --batch_size 8 --eval_every 2 --save_every 2"
    " --eval_batch_size 8 --max_length 16 --projection_dim 16 --reader_threads 1"
    " --compile_cache ''",
}


def commands(page):
    """The fenced bash blocks of a page, as this machine runs them."""
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for start, extra in EXTRA.items():
            if start in block:
                block = block.rstrip() + extra
        for name, program in PROGRAMS.items():
            block = re.sub(rf"^{name}(?= )", program, block, flags=re.MULTILINE)
        yield block


def picture(number):
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((48, 40), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def folder(tmp_path):
    """Everything the page names: raw files, and checkpoints under their hub names."""
    web, raw = tmp_path / "web", tmp_path / "raw"
    for place in (web, raw / "kepek"):
        place.mkdir(parents=True)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(web))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    english = sentences(40)
    for number in range(40):
        (web / f"{number}.jpg").write_bytes(picture(number))
        (raw / "kepek" / f"{number}.jpg").write_bytes(picture(100 + number))
    urls = [f"http://127.0.0.1:{server.server_port}/{number}.jpg" for number in range(40)]
    rows = {"URL": [*urls, f"{urls[0]}.gone"], "TEXT": [*english, "a cat"], "key": [*range(41)]}
    pq.write_table(pa.table(rows), raw / "english.parquet")
    hungarian = [f"egy macska alszik a {number}. kanapén" for number in range(40)]
    (raw / "magyar.jsonl").write_text("".join(
        json.dumps({"image": f"kepek/{number}.jpg", "captions": [text]}) + "\n"
        for number, text in enumerate(hungarian)
    ))  # fmt: skip
    write_checkpoint(tmp_path / "Helsinki-NLP" / "opus-mt-en-hu")
    tokenizer = train_tokenizer(hungarian, vocab_size=300)
    vit = {**TINY_VIT, "architectures": ["ViTModel"]}
    bert = {**TINY_BERT, "vocab_size": tokenizer.get_vocab_size()}
    write_folder(
        tmp_path / "google" / "vit-base-patch16-224-in21k", vit, flax=tower_weights("vision", vit)
    )
    text_tower = tmp_path / "SZTAKI-HLT" / "hubert-base-cc"
    write_folder(text_tower, bert, flax=tower_weights("text", bert), processor=None)
    for name, contents in tokenizer_files(tokenizer).items():
        (text_tower / name).write_bytes(contents)
    yield tmp_path
    server.shutdown()
    server.server_close()


def records(folder, source):
    for split in ("train", "validation"):
        file = open_split(folder / "data", source, split)
        yield [parse_record(data) for data in file.read(range(len(file)))]


@pytest.mark.slow
def test_new_language(folder):
    for command in commands((ROOT / "docs" / "new_language.md").read_text(encoding="utf-8")):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], cwd=folder, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    train, validation = records(folder, "web_hu")
    assert 20 < len(train) < 35 and len(train) + len(validation) > 35  # some translate to nothing
    english = set(sentences(40))
    assert all(set(one.original_captions) <= english for one in train)
    assert all(one.translator.startswith("marian:") for one in train)
    train, validation = records(folder, "magyar")
    assert len(train) + len(validation) == 40 and validation[0].translator == ""
    assert (folder / "data" / "magyar" / "card" / "card.html").exists()
    run = folder / "runs" / "clip_hungarian"
    report = json.loads((run / "report.json").read_text())
    assert [one["set"] for one in report["results"]] == ["web_hu", "magyar"]
    assert "magyar/text_to_image/R@1" in (run / "config.py").read_text()
    evaluated = json.loads((folder / "reports" / "clip_hungarian" / "report.json").read_text())
    assert [one["set"] for one in evaluated["results"]] == ["magyar", "web_hu"]


@pytest.mark.slow
def test_export(tmp_path):
    """What needs PyTorch is in tests/hub/test_commands_torch.py."""
    records = [record(n, "wit", captions=[text]) for n, text in enumerate(CAPTIONS * 4)]
    write_records(
        tmp_path / "data" / "wit", {"train": records, "validation": records[:5]}, name="wit"
    )
    make_run(tmp_path / "runs" / "clip_italian", "data", source="wit")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    evaluate = "clip-italian evaluate --models runs/clip_italian --sets records:wit"
    blocks = list(commands((ROOT / "docs" / "export.md").read_text(encoding="utf-8")))
    assert len(blocks) == 4
    report = f"```bash\n{evaluate} --out_dir reports/clip_italian\n```"
    for command in [*commands(report), *(one for one in blocks if "--onnx" not in one)]:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    card = (tmp_path / "exports" / "to_push" / "README.md").read_text(encoding="utf-8")
    assert '"you/clip-italian"' in card
    assert (tmp_path / "exports" / "clip_italian" / "evaluation.json").exists()
    assert (tmp_path / "runs" / "second_stage" / "report.json").exists()


@pytest.mark.slow
def test_demo(tmp_path):
    records = [record(n, "sample", captions=[text]) for n, text in enumerate(CAPTIONS * 4)]
    write_records(
        tmp_path / "data" / "sample", {"train": records, "validation": records[:5]}, name="sample"
    )
    make_run(tmp_path / "runs" / "sample", "data", source="sample")
    blocks = list(commands((ROOT / "docs" / "demo.md").read_text(encoding="utf-8")))
    serve, *others = blocks
    assert len(others) == 2
    for command in others:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "spaces" / "sample" / "model" / "model.safetensors").exists()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*shlex.split(serve), "--port", str(port)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        assert "CLIP-Italian" in page(f"http://127.0.0.1:{port}/", process)
        assert "CLIP-Italian" in page(f"http://127.0.0.1:{port}/en", process)
    finally:
        process.terminate()
        process.wait(60)
