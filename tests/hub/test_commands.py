"""`clip-italian export` from a run folder to the hub, through the command line."""

import dataclasses
import json
import re

import numpy as np
import pytest

import run_hybrid_clip
from clip_italian import cli, flags
from clip_italian.config import Config, DataConfig, ModelConfig, TrainConfig, resolve
from clip_italian.data.records import write_records
from clip_italian.evaluation import report as reports
from clip_italian.hub import access, commands, push
from clip_italian.hub.load import load_model
from clip_italian.model.towers import build
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.step import TrainState
from tests.data.conftest import make_tokenizer, record
from tests.model.checkpoints import assert_equal_trees, random_like
from tests.tiny import TINY_BERT, TINY_DISTILBERT, TINY_VIT

CAPTIONS = ["un gatto", "un cane nero", "un gatto nero dorme", "un cane", "un gatto dorme"]


def make_run(folder, data_dir, *, source="a", **model):
    """A run folder with one checkpoint, which has been evaluated, and random weights."""
    words = folder.parent / "tokenizer"
    make_tokenizer().save_pretrained(words)
    tiny = {"vision_config": TINY_VIT, "text_config": {**TINY_BERT, "vocab_size": 9}}
    config = resolve(
        Config(
            model=ModelConfig(**{**tiny, **model}, projection_dim=16, tokenizer=str(words)),
            data=DataConfig(str(data_dir), (source,), max_length=8, reader_threads=2),
            train=TrainConfig(workdir=str(folder), steps=6),
        )
    )
    checkpoints = Checkpoints(config, "data")
    params = random_like(build(config.model, loss="infonce").shapes(), seed=1)
    params["logit_scale"] = np.float32(np.log(20))
    scores = {config.eval.best_metric: 0.5}
    checkpoints.save(TrainState(np.int32(6), params, {}, np.zeros(2, np.uint32)), scores)
    checkpoints.close()
    (folder / "config.py").write_text(flags.dump(config))
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    records = [record(number, captions=[text]) for number, text in enumerate(CAPTIONS)]
    write_records(folder / "a", {"train": records, "validation": records}, name="a")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", data_dir)


def called(capsys, *words):
    """(exit status, what was printed, what was complained about) of `clip-italian export`."""
    status = cli.main(["export", *map(str, words)])
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_run_becomes_a_folder_that_is_proven(run, tmp_path, capsys):
    folder = tmp_path / "exports" / "tiny"
    words = ["--sentence_transformers", "--license", "cc-by-4.0", "--hardware", "due core"]
    status, out, err = called(capsys, "--model", run, "--out_dir", folder, *words, "--dry_run")
    assert (status, err) == (0, "")
    assert "Flax (flax_model.msgpack): embeddings differ by up to" in out
    assert "best caption equal for 5 of 5 pictures of a (5 when it reads" in out
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "flax_model.msgpack", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json",
        "training_config.py", "README.md", "modules.json", "sentence_bert_config.json",
        "config_sentence_transformers.json",
    }  # fmt: skip
    assert all(re.search(rf"^{re.escape(name)} +\d", out, re.MULTILINE) for name in names)
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]  # nothing half-written
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "license: cc-by-4.0" in card and "due core" in card and "5 of 5" in card
    original = load_model(str(run))
    assert_equal_trees(load_model(str(folder)).params, original.params)


def test_metrics_of_the_exported_folder_equal_those_in_its_card(run, data_dir, tmp_path, capsys):
    """The run is evaluated, exported with that report, and the folder evaluated again."""

    def evaluate(model, out_dir):
        words = ["--sets", "records:a", "--data_dir", data_dir, "--out_dir", out_dir]
        words += ["--cache_dir", "", "--resamples", "20", "--examples", "0"]
        assert cli.main(["evaluate", "--models", f"m={model}", *map(str, words)]) == 0
        return reports.read(out_dir)[0]

    evaluate(run, tmp_path / "report")
    folder = tmp_path / "export"
    words = ["--model", run, "--out_dir", folder, "--report", tmp_path / "report"]
    assert called(capsys, *words)[0] == 0
    inside = reports.parse((folder / commands.EVALUATION).read_text(encoding="utf-8"))
    again = evaluate(folder, tmp_path / "again")
    (before,), (after,) = inside["results"], again["results"]
    assert before["metrics"] == after["metrics"] and len(before["metrics"]) > 5
    assert before["intervals"] == after["intervals"]
    card = (folder / "README.md").read_text(encoding="utf-8")
    first = f"{100 * before['metrics']['text_to_image/R@1']:.1f}"
    assert re.search(rf"\| text → image \| m \| {re.escape(first)}", card)


def test_a_report_of_other_weights_is_refused(run, tmp_path, capsys):
    made = reports.make_report(
        [
            reports.Result(
                model=name, model_fingerprint=mark, set="a", protocol="x", data_fingerprint="d",
                task="retrieval", images=5, captions=5, metrics={"text_to_image/R@1": 0.5},
            )
            for name, mark in (("other", "0" * 64), ("unknown", ""))
        ],
        command="x",
    )  # fmt: skip
    reports.write(tmp_path / "report", made, [{}, {}])
    base = ["--model", run, "--out_dir", tmp_path / "out", "--report"]
    for report, message in (
        (tmp_path / "report", "holds ['other', 'unknown']; name one of them as FOLDER#MODEL"),
        (f"{tmp_path}/report#third", "holds ['other', 'unknown']"),
        (f"{tmp_path}/report#other", "its weights are others"),
        (f"{tmp_path}/report#unknown", "does not say which weights it is of"),
    ):
        status, _, err = called(capsys, *base, report)
        assert status == 2 and message in err
        assert not (tmp_path / "out").exists()


def test_the_runs_own_report_is_taken_when_it_is_of_the_same_step(run, tmp_path, capsys, caplog):
    for step, there in ((6, True), (5, False)):
        result = reports.Result(
            model="this run", set="a", protocol="x", data_fingerprint="d", task="retrieval",
            images=5, captions=5, metrics={"text_to_image/R@1": 0.5},
        )  # fmt: skip
        (run / "report.json").write_text(
            reports.dump(reports.make_report([result], command="x", step=step))
        )
        folder = tmp_path / str(step)
        assert called(capsys, "--model", run, "--out_dir", folder, "--verify", "none")[0] == 0
        assert (folder / "evaluation.json").exists() == there
        assert ("is of step 5, not 6: the card has no results" in caplog.text) == (not there)
    (run / "report.json").unlink()


def test_a_folder_that_is_there_is_not_touched(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    status, _, err = called(capsys, "--model", run, "--out_dir", tmp_path / "out")
    assert status == 2 and "is there already; name a new folder" in err
    assert called(capsys, "--model", run, "--out_dir", tmp_path)[0] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_nothing_is_left_under_its_name_when_it_is_not_the_model(
    run, tmp_path, capsys, monkeypatch
):
    write = commands.export.write

    def spoil(folder, loaded):
        params = {**loaded.params, "visual_projection": {"kernel": np.eye(32, 16, dtype="f4")}}
        write(folder, dataclasses.replace(loaded, params=params))

    monkeypatch.setattr(commands.export, "write", spoil)
    status, _, err = called(capsys, "--model", run, "--out_dir", tmp_path / "out")
    assert status == 2 and "is not the model it was made of" in err
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())


def test_what_cannot_be_used_is_said_before_anything_is_written(run, data_dir, tmp_path, capsys):
    out = ["--out_dir", tmp_path / "out"]
    distil = make_run(
        tmp_path / "distil", data_dir, text_config={**TINY_DISTILBERT, "vocab_size": 9}
    )
    for words, message in (
        (["--model", run], "out_dir is empty"),
        (["--model", run, "--dry_run"], "config.json"),
        (["--model", run, *out, "--tag", "v1"], "tag would be ignored: name push_to_hub too"),
        (["--model", run, *out, "--public"], "public would be ignored"),
        (
            ["--model", run, *out, "--verify", "none", "--verify_set", "contrast"],
            "verify_set would be ignored: verify is none",
        ),
        (["--model", run, *out, "--push_to_hub", "name"], "names no owner; give OWNER/NAME"),
        (["--model", run, *out, "--push_to_hub", "a/b!"], "a/b!"),
        (["--model", run, *out, "--push_to_hub", "a/b"], "HF_HUB_OFFLINE"),  # before any work
        (["--model", run, *out, "--verify_pictures", "1"], "verify_pictures = 1 is not allowed"),
        (["--model", run, *out, "--verify_set", "records:none"], "or give --verify none"),
        (["--model", run, *out, "--data_dir", tmp_path], "verify_set: "),
        (["--model", tmp_path / "none", *out], "is no folder here"),
        (["--model", distil, *out], "a distilbert text tower cannot be exported"),
        (["--model", run, *out, "--open_clip", "a/b"], "vision tower 'vit'"),
    ):
        status, _, err = called(capsys, *words)
        assert status == 2 and message in err, (words, err)
        assert not (tmp_path / "out").exists()


def test_an_export_is_exported_like_a_run(run, data_dir, tmp_path, capsys, caplog):
    """The way of every model that is not a run of ours: of the hub, and of 2021."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert called(capsys, "--model", run, "--out_dir", first, "--verify", "none")[0] == 0
    status, _, err = called(capsys, "--model", first, "--out_dir", second)
    assert status == 2 and "names no pictures of its own" in err
    assert "are not taken over" not in caplog.text
    words = ["--verify_set", "records:a", "--data_dir", data_dir]
    status, out, _ = called(capsys, "--model", first, "--out_dir", second, *words)
    assert status == 0 and "5 of 5 pictures" in out
    assert "its card, report and training config are not taken over" in caplog.text
    for name in ("model.safetensors", "flax_model.msgpack", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert not (second / "training_config.py").exists()


def test_training_starts_from_an_export(run, data_dir, tmp_path, capsys):
    folder, again = tmp_path / "export", tmp_path / "again"
    assert called(capsys, "--model", run, "--out_dir", folder, "--verify", "none")[0] == 0
    named = Config(model=ModelConfig(vision_tower="a/b", text_tower="c/d"))
    (tmp_path / "named.py").write_text(flags.dump(named))
    # The towers that a config names are replaced.
    words = ["--config", tmp_path / "named.py", "--init_from", folder]
    words += ["--projection_dim", 16, "--data_dir", data_dir, "--sources", "a", "--max_length", 8]
    words += ["--steps", 2, "--batch_size", 8, "--vision_thaw_step", "None", "--workdir", again]
    words += ["--eval_batch_size", 8, "--reader_threads", 2, "--compile_cache", ""]
    assert run_hybrid_clip.main(list(map(str, [*words, "--vision_tower", "x/y"]))) == 2
    assert "vision_tower = 'x/y' is not allowed beside init_from" in capsys.readouterr().err
    assert run_hybrid_clip.main(list(map(str, words))) == 0
    assert run_hybrid_clip.main(list(map(str, words))) == 0  # the same command goes on
    folder.rename(tmp_path / "moved")  # the run says itself what its towers are
    with pytest.raises(commands.ConfigError, match="give a hub id that can be reached"):
        load_model(str(again))
    (tmp_path / "moved").rename(folder)
    (folder / "config.json").write_text("{}")
    start, end = load_model(str(run)), load_model(str(again))
    assert (end.step, end.config.model.init_from) == (2, str(folder))
    assert_equal_trees(end.params["vision_model"], start.params["vision_model"])  # frozen
    moved = end.params["text_projection"]["kernel"] - start.params["text_projection"]["kernel"]
    assert 0 < np.abs(moved).max() < 1e-2
    assert end.params["logit_scale"] == start.params["logit_scale"]
    assert end.tokenizer("un gatto")["input_ids"] == [2, 4, 5, 3]
    second = tmp_path / "second"
    assert called(capsys, "--model", again, "--out_dir", second)[0] == 0
    assert_equal_trees(load_model(str(second)).params, end.params)


def test_an_exported_folder_is_pushed_as_it_is(run, tmp_path, capsys, monkeypatch, caplog):
    pushed = []

    def fake(folder, repo_id, *, private, tag):
        pushed.append((str(folder), repo_id, private, tag))
        return "https://hub/commit/1"

    monkeypatch.setattr(push, "push", fake)
    monkeypatch.setattr(access, "check_token", lambda api: None)
    folder = tmp_path / "out"
    words = ["--push_to_hub", "ada/tiny", "--tag", "v1"]
    status, out, _ = called(
        capsys, "--model", run, "--out_dir", folder, "--verify", "none", *words, "--public"
    )
    assert status == 0 and "pushed: https://hub/commit/1" in out
    assert '"ada/tiny"' in (folder / "README.md").read_text(encoding="utf-8")
    assert called(capsys, "--model", folder, *words)[0] == 0
    assert pushed == [(str(folder), "ada/tiny", False, "v1"), (str(folder), "ada/tiny", True, "v1")]
    assert not caplog.records
    assert called(capsys, "--model", folder, "--push_to_hub", "ada/other")[0] == 0
    assert "does not name ada/other" in caplog.text
    status, _, err = called(capsys, "--model", folder, *words, "--license", "mit")
    assert status == 2 and "license would be ignored: without out_dir" in err

    def refuse(*_, **__):
        raise commands.ConfigError("no token")

    monkeypatch.setattr(push, "push", refuse)
    status, _, err = called(capsys, "--model", folder, *words, "--public")
    again = f"--model {folder} --push_to_hub ada/tiny --tag v1 --public"
    assert status == 2 and f"to push it: clip-italian export {again}" in err


def test_the_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--help"])
    assert stop.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for flag in ("--verify {flax,torch,none} Load the folder again", "--push_to_hub STR Hub repo"):
        assert flag in words
    assert json.dumps("") not in words
