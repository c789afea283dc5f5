"""The whole preparation, on Ray, from JSON lines to records."""

import dataclasses
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data.records import Record, open_split, parse_record, write_records
from data_prep import flags
from data_prep.filters import TextFilters
from data_prep.images import prepare_image
from data_prep.jsonl import Jsonl
from data_prep.options import DecideOptions, Options, Steps
from data_prep.pipeline import prepare
from data_prep.tables import Parquet
from data_prep.translate import TranslateOptions
from tests.pictures import png_bomb

pytestmark = pytest.mark.usefixtures("ray_session")


def picture(number):
    """Pictures that are far apart for the perceptual hash."""
    pixels = np.random.default_rng(number).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    for number in range(12):
        (tmp_path / "root" / f"{number}.png").write_bytes(picture(number))
    return tmp_path / "root"


def line(number, *captions, **fields):
    return {
        "image": f"{number}.png",
        "captions": captions or [f"un gatto numero {number}"],
    } | fields


@pytest.fixture
def run(tmp_path, root):
    def run(lines, **changes):
        path = tmp_path / "rows.jsonl"
        text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
        if not path.exists() or path.read_text() != text + "\n":
            path.write_text(text + "\n")
        options = {
            "out_dir": str(tmp_path / "out"), "root": str(root), "rows_per_shard": 4,
            "source": "gatti",
        }  # fmt: skip
        steps = Steps(run=Options(**options))
        for part, values in changes.items():
            steps = dataclasses.replace(
                steps, **{part: dataclasses.replace(getattr(steps, part), **values)}
            )
        return prepare(Jsonl(path=(str(path),)), steps, command="clip-italian prepare jsonl")

    return run


def records(tmp_path, split="train"):
    file = open_split(tmp_path / "out", "gatti", split)
    return [parse_record(data) for data in file.read(range(len(file)))]


def funnel(summary):
    """Every count adds up; returns name of step → its counts."""
    entries = summary.facts["entries"]
    lost = sum(entries["skipped"].values()) + sum(entries["rejected"].values())
    assert entries["read"] == lost + entries["entries_of_rows"]
    rows = entries["rows"]
    for step in summary.facts["steps"]:
        assert step["rows_in"] == rows
        rows = step["rows_out"]
        assert step["rows_in"] == rows + step["merged_rows"] + sum(step["rejected_rows"].values())
        assert step["captions_in"] == step["captions_out"] + sum(step["rejected_captions"].values())
    assert rows == sum(summary.facts["records"].values())
    return {step["name"]: step for step in summary.facts["steps"]}


def test_rows_become_records_with_card_and_rejects(run, tmp_path, root):
    (root / "half.png").write_bytes(picture(1)[:60])
    lines = [
        line(0, "  un\tgatto &amp; un cane ", "e\u0300 nero qui", source="wit", image_id=17,
             url="https://example.org", license="CC0", split="train"),
        "{not json",
        line(1, split="validation"),
        line(2, "un gatto rosso", split="train"),
        line(2, "un gatto rosso", "un gatto fulvo"),
        line(99, split="train"),
        {"image": "half.png", "captions": ["un gatto a metà"]},
        line(3, "x", split="train"),
        line(4, split="train"),
    ]  # fmt: skip
    (root / "again.png").write_bytes(picture(4))
    lines.append(line("again", "lo stesso gatto", split="validation"))
    summary = run(lines)
    steps = funnel(summary)
    assert summary.facts["records"] == {"train": 3, "validation": 1}
    first, second, third = records(tmp_path)
    [held_out] = records(tmp_path, "validation")
    for one, number in ((first, 0), (second, 2), (third, 4), (held_out, 1)):  # not another's
        assert one.image_hash == prepare_image(picture(number)).image_hash
    assert first.captions == ("un gatto & un cane", "è nero qui")
    assert (first.source, first.image_id, first.url, first.license) == (
        "wit", "17", "https://example.org", "CC0",
    )  # fmt: skip
    assert second.captions == ("un gatto rosso", "un gatto fulvo")
    assert (second.source, second.image_id, second.url) == ("gatti", "2.png", "")
    assert third.captions == ("un gatto numero 4", "lo stesso gatto")
    assert summary.facts["entries"]["rejected"] == {"bad JSON": 1}
    assert steps["captions"]["rejected_rows"] == {"no caption left": 1}
    assert steps["selection"]["merged_rows"] == 1
    assert steps["pictures"]["rejected_rows"] == {"image missing": 1, "broken image": 1}
    assert steps["duplicates"]["merged_rows"] == 1
    folder = tmp_path / "out" / "gatti"
    rejects = [
        json.loads(text) for path in sorted((folder / "rejects").iterdir())
        for text in path.read_text().splitlines()
    ]  # fmt: skip
    assert [(one["line"], one["reason"]) for one in rejects] == [
        (2, "bad JSON"), (8, "too short"), (8, "no caption left"),
        (5, "said twice of one picture"), (6, "image missing"), (7, "broken image"),
    ]  # fmt: skip
    assert {path.name for path in (folder / "card").iterdir()} >= {
        "README.md", "card.html", "funnel.png", "summary.json",
    }  # fmt: skip
    text = str(summary)
    assert "10 entries read" in text and "rows set aside: broken image" in text


def test_a_second_run_does_nothing_and_a_stopped_one_does_the_rest(run, tmp_path, monkeypatch):
    lines = [line(number) for number in range(12)]
    first = run(lines, decide={"validation_share": 0.5})
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}
    again = run(lines, decide={"validation_share": 0.5})
    assert again.facts == first.facts
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")} == before

    work = tmp_path / "out" / ".gatti.work"
    shards = sorted(work.glob("4-*/[0-9]*"))
    assert len(shards) == 3
    for path in [
        shards[1],
        *work.glob("5-*"),
        *work.glob("2-*/000002"),
        tmp_path / "out" / "gatti",
    ]:
        path.rename(tmp_path / f"gone-{path.name}")
    rest = run(lines, decide={"validation_share": 0.5})
    assert rest.facts["fingerprint"] == first.facts["fingerprint"]
    assert (shards[0] / "images.parquet").stat().st_mtime_ns == before[shards[0] / "images.parquet"]


def test_a_flag_repeats_only_the_steps_that_it_touches(run, tmp_path):
    lines = [line(number) for number in range(6)]
    run(lines)
    run(lines, decide={"validation_share": 1.0})
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "out/.gatti.work").iterdir())
    assert [name for name in names if name.isdigit()] == ["1", "2", "3", "4", "5", "5"]
    assert len(records(tmp_path, "validation")) == 6


def test_evaluation_pictures_are_kept_out_by_id_and_by_looks(run, tmp_path, root):
    guard = tmp_path / "xtd"
    guard.mkdir()
    Image.open(root / "3.png").resize((64, 64)).save(guard / "other_name.jpg", quality=80)
    (tmp_path / "dev.txt").write_text("COCO_val2014_000000000005.jpg\n")
    lines = [line(number, image_id=number) for number in range(6)]
    decide = {"guard_pictures": (str(guard),), "guard_ids": (str(tmp_path / "dev.txt"),)}
    steps = funnel(run(lines, decide=decide | {"validation_share": 0.0}))
    assert steps["selection"]["rejected_rows"] == {"in evaluation set dev": 1}
    assert steps["duplicates"]["rejected_rows"] == {"in evaluation set xtd": 1}
    assert [one.image_id for one in records(tmp_path)] == ["0", "1", "2", "4"]


def test_bad_pictures_stop_the_work_and_the_flag_allows_them(run, tmp_path, root):
    for number in range(100, 110):
        (root / f"{number}.png").write_text("<html>")
    lines = [line(number) for number in [*range(12), *range(100, 110)]]
    for _ in range(3):  # however often it is tried
        with pytest.raises(ConfigError, match=r"max_bad_pictures = 0.05, but 10 of 22 local"):
            run(lines)
    summary = run(lines, run={"max_bad_pictures": 0.5}, decide={"validation_share": 0.0})
    assert funnel(summary)["pictures"]["rejected_rows"] == {"not an image": 10}
    for number in range(100, 110):
        (root / f"{number}.png").write_bytes(picture(number))
    summary = run(lines, run={"retry_failed": True}, decide={"validation_share": 0.0})
    assert summary.facts["records"]["train"] == 22


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_one_picture_in_a_hundred_of_every_bad_kind(run, tmp_path, root):
    whole = Image.open(io.BytesIO(picture(900)))
    frames = [Image.open(io.BytesIO(picture(number))) for number in (901, 902)]
    odd = {
        "cut.jpg": (encoded(whole, "JPEG")[:-200], "broken image"),
        "page.jpg": (b"<html>404</html>", "not an image"),
        "empty.jpg": (b"", "not an image"),
        "bomb.png": (png_bomb(), "too many pixels"),
        "one.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), None),
        "moves.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "ink.jpg": (encoded(Image.open(io.BytesIO(picture(903))).convert("CMYK"), "JPEG"), None),
        "deep.png": (encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 999),
                             "PNG"), None),
    }  # fmt: skip
    lines = []
    for number in range(800):
        name = f"{number}.png"
        if number % 100 == 50:
            name, (data, _) = list(odd.items())[number // 100]
            (root / name).write_bytes(data)
        else:
            (root / name).write_bytes(picture(number))
        lines.append({"image": name, "captions": [f"un gatto numero {number}"]})
    options = {"run": {"rows_per_shard": 400}, "decide": {"near_duplicates": 0}}
    summary = run(lines, **options)
    expected = {"broken image": 1, "not an image": 2, "too many pixels": 1}
    assert funnel(summary)["pictures"]["rejected_rows"] == expected
    assert sum(summary.facts["records"].values()) == 796
    folder = tmp_path / "out" / "gatti" / "rejects"
    rejects = [json.loads(text) for p in folder.iterdir() for text in p.read_text().splitlines()]
    assert sorted((one["line"], one["reason"]) for one in rejects) == [
        (51 + 100 * place, reason)
        for place, (_, reason) in enumerate(odd.values()) if reason is not None
    ]  # fmt: skip


@pytest.mark.parametrize("lines", [["{"], [{"image": "0.png", "captions": ["x"]}]])
def test_nothing_at_all_is_the_same_error(run, lines):
    with pytest.raises(ConfigError, match="nothing is left"):
        run(lines)


def test_files_of_one_name_in_two_folders_do_not_collide(tmp_path, root):
    for number, folder in enumerate(("train", "val")):
        (tmp_path / "raw" / folder).mkdir(parents=True)
        rows = {"image": [picture(number)], "caption": [f"un gatto numero {number}"]}
        pq.write_table(pa.table(rows), tmp_path / "raw" / folder / "0000.parquet")
    steps = Steps(
        run=Options(out_dir=str(tmp_path / "out"), source="gatti", root=str(root)),
        decide=DecideOptions(validation_share=0.0),
    )
    summary = prepare(Parquet(path=(str(tmp_path / "raw" / "*" / "*.parquet"),)), steps)
    assert summary.facts["records"]["train"] == 2
    assert [one.image_id for one in records(tmp_path)] == ["0/0000.parquet:1", "1/0000.parquet:1"]


def test_guards_of_one_name_are_one_guard(run, tmp_path):
    paths = []
    for number, folder in enumerate(("dev", "test")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "ids.txt").write_text(f"{number}\n")
        paths.append(str(tmp_path / folder / "ids.txt"))
    lines = [line(number, image_id=number) for number in range(3)]
    summary = run(lines, decide={"guard_ids": tuple(paths), "validation_share": 0.0})
    assert [one.image_id for one in records(tmp_path)] == ["2"]
    assert summary.facts["leakage"] == {"ids": {"by id": 2, "by picture": 0}}


def test_a_guard_that_cannot_be_read_is_refused(run, tmp_path):
    (tmp_path / "xtd").mkdir()
    (tmp_path / "xtd" / "a.jpg").write_text("<html>")
    with pytest.raises(ConfigError, match="guard_pictures: 1 pictures of .* cannot be compared"):
        run([line(0)], decide={"guard_pictures": (str(tmp_path / "xtd"),)})
    assert not list((tmp_path / "out" / ".gatti.work").glob("[0-9]-*"))  # before any work


def test_a_guard_of_records_is_read_again_when_it_changes(run, tmp_path, root):
    decide = {"guard_pictures": (str(tmp_path / "dev"),), "validation_share": 0.0}
    lines = [line(number) for number in range(3)]
    for guarded in (0, 1):
        made = Record(to_jpeg(root / f"{guarded}.png"), ["un gatto"], "dev", "0")
        write_records(tmp_path / "dev", {"train": [made]}, name="dev")
        run(lines, decide=decide)
        left = [one.image_id for one in records(tmp_path)]
        assert left == [f"{n}.png" for n in range(3) if n != guarded]


def to_jpeg(path):
    file = io.BytesIO()
    Image.open(path).save(file, "JPEG", quality=95)
    return file.getvalue()


def test_what_is_no_source_of_records_is_not_replaced(run, tmp_path):
    (tmp_path / "out" / "gatti").mkdir(parents=True)
    (tmp_path / "out" / "gatti" / "raw.tsv").write_text("")
    with pytest.raises(ConfigError, match="out_dir: .*gatti exists and holds no records"):
        run([line(0)])


def test_nothing_left_is_an_error_that_says_why(run, tmp_path):
    with pytest.raises(ConfigError, match="nothing is left") as error:
        run([line(50), "{"])
    assert "image missing" in str(error.value) and "bad JSON" in str(error.value)
    assert not (tmp_path / "out" / "gatti").exists()
    assert len(list((tmp_path / "out/.gatti.work/rejects").iterdir())) == 5


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("run", {"source": "Foto"}, "source = 'Foto' is not allowed"),
        ("run", {"rows_per_shard": 0}, "rows_per_shard = 0"),
        ("run", {"work_dir": "gs://bucket/work"}, "work_dir = 'gs://bucket/work'"),
        ("run", {"root": "nowhere"}, "root = 'nowhere' is no folder"),
        ("run", {"out_dir": "gs://bucket/data"}, "work_dir = '' with out_dir = 'gs://"),
        ("decide", {"near_duplicates": 4}, "near_duplicates = 4 is not allowed"),
        ("decide", {"validation_share": 5.0}, "validation_share = 5.0 is not allowed"),
        ("decide", {"guard_ids": ("nowhere.json",)}, "guard_ids: nowhere.json"),
        ("text", {"pos_model": "no_such_model"}, "pos_model = 'no_such_model'"),
        ("text", {"caption_language": "xx"}, "caption_language = 'xx'"),
        ("run", {"tokenizer": "nowhere"}, "tokenizer = 'nowhere'"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_the_work(run, tmp_path, part, values, message):
    with pytest.raises(ConfigError, match=message):
        run([line(0)], **{part: values})
    assert not (tmp_path / "out" / "gatti").exists()


class Shouting:
    """Stands in for a model: upper case, nothing for a fish, and a list of what it was asked."""

    name, identity = "stub:loud", "stub"

    def __init__(self):
        self.asked = []

    def translate(self, texts):
        self.asked += texts
        for text in texts:
            yield {text: "" if "fish" in text else text.upper().replace("BIG", "LARGE")}


def test_captions_are_translated_once_and_keep_their_originals(run, tmp_path, monkeypatch):
    stub = Shouting()
    monkeypatch.setattr("data_prep.translation.translate.open_translator", lambda options: stub)
    lines = [
        line(0, "a cat on a mat", "a fish", "no.jpg", "a big cat", "a large cat"),
        line(1, "a cat on a mat", split="validation"),
        line(2, "a fish"),
        line(50, "never seen"),  # its picture is missing: not to be paid for
    ]
    changes = {
        "translate": {"translate": "en:it", "translation_cache": str(tmp_path / "cache.sqlite")},
        "decide": {"validation_share": 0.0},
    }
    steps = funnel(run(lines, **changes))
    assert stub.asked == ["a cat on a mat", "a fish", "a big cat", "a large cat"]
    [one] = records(tmp_path)
    assert one.captions == ("A CAT ON A MAT", "A LARGE CAT")
    assert one.original_captions == ("a cat on a mat", "a big cat")
    assert one.translator == "stub:loud"
    assert steps["captions"]["rejected_captions"] == {"boilerplate": 1}
    lost = {"no text": 2, "said twice of one picture": 1}
    assert steps["translation"]["rejected_captions"] == lost
    assert steps["translation"]["rejected_rows"] == {"no caption left": 1}

    stub.asked.clear()
    summary = run(lines, **changes, run={"work_dir": str(tmp_path / "elsewhere")})
    assert stub.asked == [] and summary.facts["languages"] == {"it": 3}


def test_captions_are_filtered_in_the_language_they_are_in():
    text = TextFilters(caption_language="it", pos_model="it_core_news_lg", max_characters=99)
    asked = flags.first_filters(Steps(text=text, translate=TranslateOptions(translate="en-US:it")))
    assert (asked.caption_language, asked.pos_model, asked.max_characters) == ("en", "", 99)
    silent = dataclasses.replace(text, caption_language="")
    asked = flags.first_filters(Steps(text=silent, translate=TranslateOptions(translate="en:it")))
    assert asked.caption_language == ""
    assert flags.first_filters(Steps(text=text)) == text


def test_out_dir_may_be_remote(run, tmp_path, monkeypatch):
    bucket = tmp_path / "bucket"
    from pathlib import Path

    from data_prep import finish

    monkeypatch.setattr(
        finish.epath, "Path", lambda url: Path(str(url).replace("gs://bucket", str(bucket)))
    )
    monkeypatch.setattr(
        Path, "copy", lambda self, to, overwrite: to.write_bytes(self.read_bytes()), raising=False
    )
    options = {"out_dir": "gs://bucket/data", "work_dir": str(tmp_path / "work")}
    for lines in ([line(n, split="train") for n in range(3)], [line(4, split="train")]):
        summary = run(lines, run=options)
        assert summary.folder == "gs://bucket/data/gatti"
        file = open_split(bucket / "data", "gatti", "train")
        assert len(file) == len(lines)
        assert (bucket / "data" / "gatti" / "card" / "card.html").exists()
        (bucket / "data" / "gatti" / "rejects" / "9-older.jsonl").write_text("{}")
    run([line(5, split="train")], run=options)
    assert not (bucket / "data" / "gatti" / "rejects" / "9-older.jsonl").exists()

    def fail(self, to, overwrite):
        raise OSError("connection lost")

    monkeypatch.setattr(Path, "copy", fail, raising=False)
    with pytest.raises(OSError, match="connection lost"):
        run([line(6, split="train")], run=options)
    assert not (bucket / "data" / "gatti" / "records.json").exists()  # half a source is none
