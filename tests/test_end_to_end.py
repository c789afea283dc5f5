"""Records → pipeline → loop → evaluation, through the commands that the README names."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

import run_hybrid_clip
from clip_italian.cli import main as clip_italian
from clip_italian.data.records import open_split
from clip_italian.training.faults import read_faults
from clip_italian.training.monitor import read_metrics

ROOT = Path(__file__).resolve().parent.parent


def train(config_file, workdir, *flags):
    words = ["--config", str(config_file), "--workdir", str(workdir), *flags]
    return run_hybrid_clip.main(words)


def test_a_run_leaves_a_table_pictures_and_a_config(config_file, tmp_path, capfd):
    assert train(config_file, tmp_path) == 0
    printed = capfd.readouterr().out
    assert "sample: 20 images" in printed and "text → image" in printed
    for name in ("curves.png", "gallery_sample.html", str(tmp_path)):
        assert name in printed
    for name in ("curves.png", "gallery_sample.html", "gallery_sample.png", "report.json"):
        assert tmp_path.joinpath(name).stat().st_size > 1000
    report = json.loads(tmp_path.joinpath("report.json").read_text())
    assert report["step"] == 8 and report["results"][0]["images"] == 20
    logged = [line for line in read_metrics(str(tmp_path)) if "text_to_image/R@1" in line]
    assert [line["step"] for line in logged] == [4, 8]
    assert logged[-1]["text_to_image/R@1"] == report["results"][0]["metrics"]["text_to_image/R@1"]
    assert all(0 < line["validation/loss"] < 20 for line in logged)
    # The written config is itself a --config: the same run, already done.
    assert train(tmp_path / "config.py", tmp_path) == 0
    again = capfd.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith(("text →", "image →"))]
    assert len(rows) == 2 and [line for line in again.splitlines() if line in rows] == rows
    assert "step 0: training" not in again


def test_named_sets_are_evaluated_in_training_and_give_the_same_numbers_later(
    config_file, tmp_path, capfd
):
    photos = tmp_path / "photos"
    for number in range(12):
        place = photos / ("n01440764" if number % 2 else "n01443537")  # tench and goldfish
        place.mkdir(parents=True, exist_ok=True)
        colour = (20 * number, 255 - 20 * number, 60)
        Image.new("RGB", (40, 36), colour).save(place / f"{number}.png")
    best = ["--best_metric", "photos/zero_shot/acc@1"]
    named = ["--eval_sets", f"folder:{photos}", *best]
    assert train(config_file, tmp_path / "run", "--steps", "2", "--decay_steps", "8", *named) == 0
    printed = capfd.readouterr().out
    assert "photos" in printed and "acc@1" in printed
    (logged,) = [x for x in read_metrics(str(tmp_path / "run")) if "photos/zero_shot/acc@1" in x]
    written = {one["set"]: one for one in read_report(tmp_path / "run")}
    data, out = str(config_file.parent / "data"), tmp_path / "out"
    words = ["--models", f"{tmp_path}/run@best", "--sets", f"folder:{photos}", "records:sample"]
    words += ["--data_dir", data, "--out_dir", str(out), "--cache_dir", "", "--resamples", "20"]
    words += ["--batch_size", "16"]
    assert clip_italian(["evaluate", *words]) == 0
    for one in read_report(out):
        assert one["data_fingerprint"] == written[one["set"]]["data_fingerprint"]
        if one["variant"] == "it, una foto di {indefinite}":
            continue  # in training all templates are used
        for name, value in one["metrics"].items():
            assert logged[f"{one['set']}/{name}"] == value, (one["set"], name)
            assert written[one["set"]]["metrics"][name] == value
    assert train(config_file, tmp_path / "other", *named[:-1], "photos/text_to_image/R@1") == 2
    assert "best_metric = 'photos/text_to_image/R@1' is not allowed" in capfd.readouterr().err


def read_report(folder):
    return json.loads((folder / "report.json").read_text())["results"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_sets", "mscoco"], "eval_sets: 'mscoco' is no evaluation set; give one of"),
        (["--eval_sets", "contrast"], "eval_sets: contrast pairs are for"),
        (["--sources", "wit"], "sources.*'wit'.*sample"),
        (["--batch_size", "12"], "batch_size = 12 does not split over 8 devices"),
        (["--eval_batch_size", "12"], "eval_batch_size = 12 does not split"),
        (["--tokenizer", "nowhere/at/all"], "tokenizer = 'nowhere/at/all' cannot be loaded"),
        (["--max_length", "64"], "max_length = 64 .* up to 48"),
        (["--best_metric", "accuracy"], "best_metric = 'accuracy'"),
        (["--weights", "1", "2"], "weights = .* one weight for each of the 1 sources"),
        (["--vision_tower", "no/such/folder"], "vision_tower"),
    ],
)
def test_bad_input_is_refused_by_name(config_file, tmp_path, flags, message, capfd):
    assert train(config_file, tmp_path / "run", *flags) == 2
    error = capfd.readouterr().err
    assert re.search(f"error: .*{message}", error, re.DOTALL), error
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_another_config_in_the_same_workdir_is_refused(config_file, tmp_path, capfd):
    assert train(config_file, tmp_path, "--steps", "3", "--decay_steps", "8") == 0
    again = ["--decay_steps", "8", "--learning_rate", "2e-3"]
    assert train(config_file, tmp_path, *again) == 2
    assert "learning_rate was 0.001, is 0.002" in capfd.readouterr().err
    assert train(config_file, tmp_path, "--decay_steps", "8", "--resume", "never") == 2
    assert "resume" in capfd.readouterr().err


def test_a_dry_run_needs_no_data(config_file, tmp_path, capfd):
    flags = ["--dry_run", "--data_dir", str(tmp_path / "none"), "--tokenizer", "nowhere"]
    assert train(config_file, tmp_path / "run", *flags) == 0
    printed = capfd.readouterr().out
    for part in ("8 steps × 16 pairs", "0–4", "4–8", "GF/pair", "learning rate at step"):
        assert part in printed
    assert not tmp_path.joinpath("run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_killed_at_a_random_step_and_resumed(config_file, tmp_path, attempt):
    """kill -9, then the same command again: every loss and every batch as if nothing happened."""
    assert run_process(config_file, tmp_path / "whole").wait() == 0
    process = run_process(config_file, tmp_path / "killed")
    target = random.Random(attempt).randint(1, 7)
    while len(read_lines(tmp_path / "killed")) < target and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert run_process(config_file, tmp_path / "killed").wait() == 0
    whole, killed = (
        [
            (line["step"], line["train/loss"], line["batch_digest"])
            for line in read_metrics(str(tmp_path / name))
            if "train/loss" in line
        ]
        for name in ("whole", "killed")
    )
    assert len(whole) == 8 and killed == whole


def read_lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def run_process(config_file, workdir):
    command = [sys.executable, "run_hybrid_clip.py", "--config", str(config_file)]
    return subprocess.Popen(
        [*command, "--workdir", str(workdir)], cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    )


@pytest.mark.slow
def test_broken_records_are_named_and_too_many_end_the_run(config_file, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(config_file.parent / "data", data)
    shutil.rmtree(data / "sample" / "derived", ignore_errors=True)
    flags = ["--data_dir", str(data), "--eval_every", "100"]
    assert train(config_file, tmp_path / "whole", *flags, "--steps", "1", "--decay_steps", "8") == 0
    damage(data, [7])
    run = tmp_path / "one"
    assert train(config_file, run, *flags) == 0
    assert [line["fault"] for line in read_faults(str(run))] == ["broken record"]
    assert read_faults(str(run))[0]["record"] == "record 7 of sample/train"
    damage(data, range(10, 30))
    capfd.readouterr()
    assert train(config_file, tmp_path / "many", *flags) == 2
    error = capfd.readouterr().err
    assert re.search(r"error: sources: \d+ of \d+ records read so far .* cannot be decoded", error)


def damage(data, numbers):
    """Changes one bit in each of these training records."""
    (shard,) = (data / "sample").glob("*train*array_record-*")
    content = bytearray(shard.read_bytes())
    records = open_split(data, "sample", "train")
    for number in numbers:
        (whole,) = records.read([number])
        content[content.index(whole) + len(whole) // 2] ^= 1
    shard.write_bytes(content)
