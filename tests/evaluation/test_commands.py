"""`clip-italian evaluate` and `compare` with encoders that read colours: no model at all."""

import contextlib
import io
import json
import os
import re
import shlex
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_italian import cli
from clip_italian.config import ConfigError
from clip_italian.evaluation import report
from clip_italian.evaluation.commands import Rooms, compare, evaluate, parse
from clip_italian.evaluation.options import Compare, Evaluate
from clip_italian.evaluation.protocols import PROTOCOLS
from tests.data_prep.tiny_marian import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"rosso": (230, 20, 20), "verde": (20, 200, 20), "blu": (20, 20, 230)}


class ColourEncoder:
    """Mean colours of pictures, colour words of texts; `shift` of 1 takes each for the next."""

    def __init__(self, name, shift=0):
        self.name, self.fingerprint, self._shift = name, f"{name} {shift}", shift

    def encode_images(self, read, names):
        images = [Image.open(io.BytesIO(data)) for data in read(np.arange(len(names)))]
        colours = [np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) for image in images]
        return _unit(np.roll(colours, self._shift, axis=1))

    def encode_texts(self, texts):
        return _unit([self._text(text) for text in texts])

    @staticmethod
    def _text(text):
        found = [COLOURS[word] for word in COLOURS if word in text]
        return np.array(found[0] if found else (90, 100, 110), np.float32)


def _unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rooms():
    def translator(model, language):
        table = {"red": "rosso", "green": "verde", "blue": "blu"}
        return (lambda texts: [table.get(text, text) for text in texts]), f"{model} {language}"

    def open_run(path, tokenizer, batch_size):
        return ColourEncoder("wrong", 1) if "wrong" in path else ColourEncoder("right")

    def refuse(*names):
        raise ConfigError(f"nothing called {names}")

    return Rooms(open_run, refuse, refuse, translator)


@pytest.fixture
def place(tmp_path):
    """Two runs, a set of captions, a labelled folder with training pictures, a pack."""
    for name in ("right", "wrong"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
    rows = []
    for split, spread in (("train", 12), ("test", 8)):
        for index, (name, colour) in enumerate(COLOURS.items()):
            for number in range(4):
                folder = tmp_path / split / f"n{index}"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{name}{number}.png"
                size = (9, 6) if split == "test" else (10, 6)  # no image is in both
                Image.new("RGB", size, tuple(c + number * spread // 8 for c in colour)).save(path)
                if split == "test" and number == 0:
                    rows.append({"image": f"test/n{index}/{path.name}", "captions": [name]})
    lines = [json.dumps(row) + "\n" for row in rows]
    (tmp_path / "captions.jsonl").write_text("".join(lines))
    names = [f"n{index}\t\tquadro {name}\n" for index, name in enumerate(COLOURS)]
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "classes.tsv").write_text("class_id\tsynonyms\tbare\n" + "".join(names))
    (tmp_path / "pack" / "templates.txt").write_text("{bare}\nun {bare}\n")
    (tmp_path / "legacy.txt").write_text("rosso\nblu\nverde\n")
    return tmp_path


def flags(place, *models, sets=("captions", "folder"), **more):
    known = {"captions": f"jsonl:{place}/captions.jsonl", "folder": f"folder:{place}/test"}
    words = ["--models", *(f"{place}/runs/{name}" for name in models)]
    words += ["--sets", *(known.get(name, name) for name in sets)]
    words += ["--class_names", f"{place}/pack", "--cache_dir", "", "--resamples", "50"]
    for name, value in {"out_dir": f"{place}/out", **more}.items():
        words += [f"--{name}", *([value] if isinstance(value, str) else value)]
    return words


def run(place, *models, **more):
    printed = evaluate(flags(place, *models, **more), rooms())
    made, items = report.read(place / "out")
    return printed, made, items


def by_task(made, model):
    return {(r["task"], r["variant"]): r for r in made["results"] if r["model"] == model}


def test_every_task_of_two_models_in_one_report(place):
    more = {"legacy_names": f"{place}/legacy.txt", "probe_train": f"folder:{place}/train"}
    printed, made, items = run(place, "right", "wrong", **more)
    right, wrong = by_task(made, "right"), by_task(made, "wrong")
    assert list(right) == list(wrong)
    assert list(right) == [
        ("retrieval", ""),
        ("zero_shot", "pack, {bare}"),
        ("zero_shot", "pack, 2 templates"),
        ("zero_shot", "legacy, {}"),
        ("linear_probe", ""),
        ("knn", ""),
    ]
    assert right["retrieval", ""]["metrics"]["text_to_image/R@1"] == 1
    assert wrong["retrieval", ""]["metrics"]["text_to_image/R@1"] == 0
    assert right["zero_shot", "pack, 2 templates"]["metrics"]["zero_shot/acc@1"] == 1
    # The file of published names swaps green and blue.
    assert right["zero_shot", "legacy, {}"]["metrics"]["zero_shot/acc@1"] == pytest.approx(1 / 3)
    assert wrong["zero_shot", "pack, {bare}"]["metrics"]["zero_shot/acc@1"] == 0
    # Both see colours, so a classifier of their features works for both.
    for model in (right, wrong):
        assert model["linear_probe", ""]["metrics"]["linear_probe/acc@1"] == 1
        assert model["knn", ""]["metrics"]["knn/acc@1"] == 1
    tests = {(one["set"], one["variant"], one["metric"]): one for one in made["comparisons"]}
    gain = tests["captions", "", "text_to_image/R@1"]
    assert (gain["a"], gain["b"], gain["difference"]) == ("right", "wrong", -1)
    np.testing.assert_array_equal(items[0]["text_to_image"], [1, 1, 1])
    for name in ("report.json", "report.md", "report.html", "items.npz"):
        assert (place / "out" / name).stat().st_size > 500
    assert "R@1" in printed and str(place / "out" / "report.html") in printed
    assert made["command"].startswith("clip-italian evaluate --models")
    page = (place / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 3  # the gallery has its pictures inside


def test_contrast_pairs_and_caption_labels(place):
    sets = ("pairs=contrast", f"colours=jsonl:{place}/captions.jsonl")
    _, made, items = run(place, "right", sets=sets, caption_labels=())
    right = by_task(made, "right")
    assert {one["set"] for one in made["results"]} == {"pairs", "colours"}
    assert right["zero_shot", "captions, {}"]["metrics"]["zero_shot/acc@1"] == 1
    contrast = right["contrast", ""]
    assert 0 <= contrast["metrics"]["contrast/accuracy"] < 1 and contrast["set"] == "pairs"
    assert not items[0]


def test_translate_test_reads_translations(place):
    rows = [{"image": "test/n0/rosso0.png", "captions": ["red"]}]
    rows += [{"image": "test/n2/blu0.png", "captions": ["blue"]}]
    (place / "english.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = flags(place, sets=(f"jsonl:{place}/english.jsonl",))
    words[1:1] = [f"translate:{place}/runs/right", f"{place}/runs/right"]
    evaluate(words, rooms())
    found = report.results(report.read(place / "out")[0])
    # English words mean nothing to the model itself: both captions find the same picture.
    assert [one.metrics["text_to_image/R@1"] for one in found] == [1, 0.5]
    assert found[0].model == "translate-test, right"


def test_the_translator_is_a_marian_model_with_its_cache(tmp_path, monkeypatch):
    """On a small checkpoint in the true format; its words mean nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write_checkpoint(tmp_path / "marian")
    english, identity = cli._translator(str(tmp_path / "marian"), "it")
    texts = ["a cat sleeps", "two dogs run", "a cat sleeps"]
    found = english(texts)
    assert found[0] == found[2] and found[0] != texts[0] and "marian" in identity
    cache = tmp_path / ".cache" / "clip_italian" / "translations.sqlite"
    with contextlib.closing(sqlite3.connect(cache)) as kept:
        assert dict(kept.execute("SELECT text, translation FROM translations")) == dict(
            zip(texts, found, strict=True)
        )
    assert english(texts) == found


@pytest.mark.parametrize(
    ("sets", "more", "message"),
    [
        (("nothing",), {}, "'nothing' is no evaluation set; give one of: mscoco_it_dev"),
        (("captions", "captions"), {}, "sets: two of them are called .* write LABEL="),
        (("captions",), {"examples": "-1"}, "examples = -1 is not allowed; give 0 or more"),
        (("captions",), {"legacy_key": "x"}, "legacy_key = 'x' would be ignored"),
        (("captions",), {"translator": "x"}, "translator = 'x' would be ignored"),
        ((), {}, "sets is empty"),
        (("captions",), {"resamples": "0"}, "resamples = 0 is not allowed"),
        (("captions",), {"probe_train": "folder:{place}/train"}, "no set has the classes of"),
        (
            ("folder",),
            {"probe_train": "folder:{place}/test"},
            "12 of the 12 images of test are also",
        ),
        (
            ("folder",),
            {"class_names": "it"},
            "no pack of .*'it'.* knows the classes of test .n0, n1",
        ),
        (("folder",), {"class_names": "{place}/none"}, "class_names .*none': no language"),
        (("folder",), {"legacy_names": "{place}/none.txt"}, "none.txt"),
        (("records:none",), {}, "nothing called"),
    ],
)
def test_wrong_flags_are_refused_before_any_work(place, sets, more, message):
    more = {name: value.format(place=place) for name, value in more.items()}
    with pytest.raises(ConfigError, match=message):
        run(place, "right", sets=sets, **more)
    assert not (place / "out").exists()


def test_two_models_of_one_name_need_a_label(place):
    with pytest.raises(ConfigError, match="models: two of them are called"):
        run(place, "right", "right")
    words = flags(place, "right", sets=("captions",))
    words[1:1] = [f"other={place}/runs/right"]
    evaluate(words, rooms())
    found = report.results(report.read(place / "out")[0])
    assert [one.model for one in found] == ["other", "right"]


def test_equal_legacy_names_count_as_wrong_and_as_one_class(place):
    (place / "legacy.txt").write_text("rosso\nverde\nverde\n")
    _, made, _ = run(place, "right", sets=("folder",), legacy_names=f"{place}/legacy.txt")
    right = by_task(made, "right")
    assert right["zero_shot", "legacy, {}"]["metrics"]["zero_shot/acc@1"] == pytest.approx(1 / 3)
    merged = right["zero_shot", "legacy, {}, equal names as one class"]
    assert merged["metrics"]["zero_shot/acc@1"] == 1  # blue is nearer to green than to red


def test_a_set_takes_the_first_pack_that_knows_its_classes(place, caplog):
    _, made, _ = run(place, "right", sets=("folder",), class_names=("it", f"{place}/pack"))
    assert ("zero_shot", "pack, {bare}") in by_task(made, "right")
    # Without one, a set that is trained on is still probed.
    more = {"class_names": "it", "probe_train": f"folder:{place}/train"}
    _, made, _ = run(place, "right", sets=("folder",), **more)
    assert [task for task, _ in by_task(made, "right")] == ["linear_probe", "knn"]
    assert "class_names ['it'] has not all of its classes" in caplog.text


def test_training_images_among_the_test_images_are_refused(place):
    for path in sorted((place / "test").rglob("*.png"))[:2]:
        path.rename(place / "train" / path.parent.name / f"copy_{path.name}")
        image = (place / "train" / path.parent.name / f"copy_{path.name}").read_bytes()
        path.write_bytes(image)
    with pytest.raises(ConfigError, match="2 of the 12 images of test are also in train"):
        run(place, "right", sets=("folder",), probe_train=f"folder:{place}/train")


def test_compare_reports_and_seeds(place):
    for name in ("right", "wrong"):
        evaluate(flags(place, name, out_dir=str(place / name)), rooms())
    right, wrong = str(place / "right"), str(place / "wrong")
    out = str(place / "both")
    printed = compare(["--a", wrong, "--b", right, "--out_dir", out, "--resamples", "50"])
    made, _ = report.read(out)
    gain = next(one for one in made["comparisons"] if one["metric"] == "text_to_image/R@1")
    assert (gain["a"], gain["b"], gain["difference"]) == ("wrong", "right", 1)
    (place / "right" / "items.npz").rename(place / "ranks.npz")
    with pytest.raises(ConfigError, match="lacks the ranks of captions retrieval"):
        compare(["--a", wrong, "--b", right])
    (place / "ranks.npz").rename(place / "right" / "items.npz")
    assert "report.html" in printed and (place / "both" / "report.html").exists()
    # Two seeds of a model: their mean and deviation; nothing is written without out_dir.
    printed = compare(["--a", right, right])
    assert "±" in printed
    with pytest.raises(ConfigError, match="give the other model's reports as b, or several seeds"):
        compare(["--a", right])


def test_baselines_are_not_kept_from_loading_by_tensorflow(monkeypatch, capfd):
    """Transformers looks at USE_TF when it is imported: the command line must have set it."""
    monkeypatch.delenv("USE_TF", raising=False)
    assert cli.main(["compare", "--a", "nowhere", "nowhere"]) == 2
    assert os.environ["USE_TF"] == "0" and "nowhere" in capfd.readouterr().err


def test_compare_wants_one_model_of_a_report(place):
    run(place, "right", "wrong")
    out = str(place / "out")
    with pytest.raises(ConfigError, match="holds .*right.*wrong.*FOLDER#MODEL"):
        compare(["--a", out, "--b", out])
    compare(["--a", f"{out}#right", "--b", f"{out}#wrong", "--resamples", "50"])
    with pytest.raises(ConfigError, match="name one of them"):
        compare(["--a", f"{out}#other", "--b", f"{out}#wrong"])


def documented():
    """Every evaluate and compare command of the documents, as words."""
    for page in ("README.md", "docs/evaluation.md", "docs/new_language.md"):
        text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"^clip-italian ((?:evaluate|compare) .*)", text, re.MULTILINE):
            yield pytest.param(shlex.split(command), id=command[:60])


@pytest.mark.parametrize("words", list(documented()))
def test_commands_of_the_documents_are_understood(words):
    flags = parse({"evaluate": Evaluate, "compare": Compare}[words[0]], words[1:], words[0])
    for name in getattr(flags, "sets", ()):
        kind = name.partition(":")[0]
        assert kind in PROTOCOLS or kind in ("records", "folder", "jsonl", "tfds", "contrast")


def test_the_documents_show_both_commands():
    assert {param.values[0][0] for param in documented()} == {"evaluate", "compare"}
