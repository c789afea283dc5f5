import csv
import io
import json
from pathlib import Path

import pytest
import tyro
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data.records import Record, write_records
from data_prep.rate import draw, report
from data_prep.rate_report import SCALE
from tests.data_prep.browser import dump_dom

HOSTILE = "</script><script>alert(1)</script> \"x\", 'y' & {{ 7 * 7 }} ; fine"


def jpeg(shade):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 128, 255 - shade)).save(data, "JPEG")
    return data.getvalue()


def record(number, **fields):
    known = {"captions": (f"un gatto {number}",), "original_captions": (f"a cat {number}",)}
    return Record(
        **{"image": jpeg(number), "source": "cc", "image_id": str(number), **known, **fields}
    )


@pytest.fixture
def data_dir(tmp_path):
    train = [record(number) for number in range(20)]
    train[3] = record(3, captions=("=A1 gatto",), original_captions=("@cat",))
    train[5] = record(5, captions=(HOSTILE,), original_captions=(HOSTILE,))
    train[7] = record(7, original_captions=())  # native
    train[8] = record(8, captions=("uno", "due"), original_captions=("three",))  # not aligned
    train[9] = record(
        9, captions=("nove", "dieci", "undici"), original_captions=("nine", "ten", "eleven")
    )
    validation = [record(number) for number in range(20, 24)]
    splits = {"train": train, "validation": validation}
    write_records(tmp_path / "data" / "cc", splits, name="cc")
    return str(tmp_path / "data")


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline="")))


def page_data(path):
    text = path.read_text(encoding="utf-8")
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def test_all_translated_records_can_be_drawn_and_stay_aligned(data_dir, tmp_path):
    drawing = draw(data_dir=data_dir, source="cc", out=tmp_path / "rating", pairs=22)
    assert {pair.image_id for pair in drawing.pairs} == {str(n) for n in range(24)} - {"7", "8"}
    assert len({pair.pair for pair in drawing.pairs}) == 22
    texts = {pair.image_id: (pair.original, pair.translation) for pair in drawing.pairs}
    assert texts["9"] in [("nine", "nove"), ("ten", "dieci"), ("eleven", "undici")]
    assert texts["21"] == ("a cat 21", "un gatto 21")


def test_annotators_get_the_same_pairs_in_other_orders(data_dir, tmp_path):
    out = tmp_path / "rating"
    drawing = draw(data_dir=data_dir, source="cc", out=out, pairs=12, annotators=3)
    names = [pair.pair for pair in drawing.pairs]
    orders = [[row["pair"] for row in rows_of(out / f"annotator-{n}.csv")] for n in (1, 2, 3)]
    assert all(sorted(order) == sorted(names) for order in orders)
    assert len({tuple(order) for order in [names, *orders]}) == 4
    for number, order in enumerate(orders, 1):
        shown = page_data(out / f"annotator-{number}.html")["pairs"]
        assert [pair["pair"] for pair in shown] == order
        assert all(pair["picture"].startswith("data:image/jpeg;base64,/9j/") for pair in shown)
    assert [one["pair"] for one in json.loads((out / "pairs.json").read_text())["pairs"]] == names
    readme = (out / "README.md").read_text()
    assert all(meaning in readme for meaning in SCALE.values())


def test_the_seed_decides(data_dir, tmp_path):
    files = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        draw(data_dir=data_dir, source="cc", out=tmp_path / name, pairs=12, seed=seed)
        files[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert files["a"] == files["b"]
    assert files["a"]["pairs.json"] != files["c"]["pairs.json"]


def test_texts_can_neither_leave_their_place_nor_be_run(data_dir, tmp_path):
    out = tmp_path / "rating"
    draw(data_dir=data_dir, source="cc", out=out, pairs=22, annotators=1)
    text = (out / "annotator-1.html").read_text(encoding="utf-8")
    assert text.count("<script") == 2 and "alert(1)" in text
    assert HOSTILE in [pair["original"] for pair in page_data(out / "annotator-1.html")["pairs"]]
    table = rows_of(out / "annotator-1.csv")
    assert ("'@cat", "'=A1 gatto") in [(row["original"], row["translation"]) for row in table]
    assert (HOSTILE, HOSTILE) in [(row["original"], row["translation"]) for row in table]


def test_filled_folders_and_too_many_pairs_are_refused(data_dir, tmp_path):
    with pytest.raises(ConfigError, match=r"pairs = 23 .* has 22 records with translated"):
        draw(data_dir=data_dir, source="cc", out=tmp_path / "rating", pairs=23)
    assert not (tmp_path / "rating").exists()
    draw(data_dir=data_dir, source="cc", out=tmp_path / "rating", pairs=3)
    with pytest.raises(ConfigError, match="out = .* may hold ratings"):
        draw(data_dir=data_dir, source="cc", out=tmp_path / "rating", pairs=3)
    with pytest.raises(ConfigError, match="no records of 'wit'"):
        draw(data_dir=data_dir, source="wit", out=tmp_path / "other")
    with pytest.raises(ConfigError, match="annotators = 0"):
        draw(data_dir=data_dir, source="cc", out=tmp_path / "other", annotators=0)


def table(path, grades, names=None, head="pair,original,translation,grade", encoding="utf-8-sig"):
    names = names or [f"p{number}" for number in range(len(grades))]
    comma = ";" if ";" in head else ","
    lines = [head] + [
        comma.join((name, "a cat", "un gatto è qui", str(grade)))
        for name, grade in zip(names, grades, strict=True)
    ]
    path.write_bytes("\r\n".join([*lines, ""]).encode(encoding))
    return path


def test_report(tmp_path):
    # Eleven ratings: 4 seven times, 3 twice, 2 and 1: sum 37, sum of squares 135.
    first = table(tmp_path / "anna.csv", [4, 4, 3, 1])
    second = table(tmp_path / "bruno.csv", [4, 4, 3, ""], head="pair;original;translation;grade")
    third = table(tmp_path / "carla.csv", [2, 4, 4, 4], names=["p2", "p1", "p0", "p3"])
    made = report((first, second, third))
    facts = json.loads((tmp_path / "rating.json").read_text())
    assert facts == made.facts and made.file == tmp_path / "rating.json"
    assert (facts["pairs"], facts["ratings"], facts["missing"]) == (4, 11, 1)
    assert facts["mean"] == pytest.approx(37 / 11)
    assert facts["standard_deviation"] == pytest.approx((10.545454545 / 10) ** 0.5)
    assert facts["shares"] == pytest.approx({"1": 1 / 11, "2": 1 / 11, "3": 2 / 11, "4": 7 / 11})
    means = [(one["name"], one["ratings"], one["mean"]) for one in facts["annotators"]]
    assert means == [("anna", 4, 3.0), ("bruno", 3, pytest.approx(11 / 3)), ("carla", 4, 3.5)]
    # Pairs: (4 4 4) (4 4 4) (3 3 2) (1 - 4): observed agreement (1 + 1 + 1/3 + 0) / 4.
    assert facts["ac1"]["observed"] == pytest.approx(7 / 12)
    # Ordinal: 3 and 2 still count 5/6, 1 and 4 nothing: (1 + 1 + 8/9 + 0) / 4.
    assert facts["ac1_ordinal"]["observed"] == pytest.approx(26 / 36)
    assert facts["lowest"][0]["grades"] == [1, None, 4]
    assert facts["lowest"][0]["translation"] == "un gatto è qui"
    text = str(made)
    assert "11 ratings of 4 pairs by 3 annotators, 1 missing" in text
    assert "grade 4                        63.6%" in text and "mean of bruno" in text


def test_flags(tmp_path):
    files = [str(table(tmp_path / name, [4, 3])) for name in ("a.csv", "b.csv")]
    out = str(tmp_path / "numbers.json")
    made = tyro.cli(report, args=[*files, "--out", out], use_underscores=True)
    assert made.file == Path(out) and made.facts["mean"] == 3.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"pair,grade\np0,5\n", "line 2: grade '5'; use 1, 2, 3, 4"),
        (b"pair,grade\np0,4\np1,good\n", "line 3: grade 'good'"),
        (b"pair,grade\np0,4\np0,4\n", "line 3: pair p0 is there twice"),
        (b"pair,grade\n,4\n", "line 2: no name of a pair"),
        (b"pair,grade\np0,4,9\n", "line 2: not as many columns"),
        (b"pair,grade\np0\n", "line 2: not as many columns"),
        (b"pair,rating\np0,4\n", "line 1: needs the columns"),
        (b"", "line 1: needs the columns"),
        (b"pair,grade\np0,4\np1,\xe8\n", "line 3: not UTF-8"),
        (b'pair,grade\np0,4\np1,"4\np2,4\n', "line 3: unexpected end of data"),
        (b"pair,grade\nq0,4\n", "rates other pairs than"),
        (b"pair,grade\np0,\n\n,\n", "no pair has two grades"),
    ],
)
def test_bad_tables_are_named_with_their_line(tmp_path, text, message):
    good = table(tmp_path / "good.csv", [4, 4])
    bad = tmp_path / "bad.csv"
    bad.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as caught:
        report((good, bad))
    assert str(caught.value).startswith("files: ")
    assert not (tmp_path / "rating.json").exists()


def test_files_that_are_no_two_tables(tmp_path):
    good = table(tmp_path / "good.csv", [4, 4])
    for files, message in (
        ((good,), "1 given"),
        ((good, good), "twice"),
        ((good, tmp_path / "gone.csv"), "gone.csv is no file"),
    ):
        with pytest.raises(ConfigError, match=message):
            report(files)


# Presses keys, then hands the table that the page would download to --dump-dom.
DRIVER = """<script>
const press = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
const kept = Object.keys(localStorage).length;
let table;
URL.createObjectURL = (blob) => { table = blob; return "#"; };
["4", "3", "9", "ArrowRight", "1", "ArrowLeft", "0", "2", "4"].forEach(press);
document.getElementById("download").click();
table.arrayBuffer().then((data) => {
  const bytes = String.fromCharCode(...new Uint8Array(data));
  document.body.innerHTML = `<pre>${btoa(bytes)}</pre>`;
});
</script></body>"""


@pytest.mark.browser
def test_page_in_a_browser(data_dir, tmp_path):
    import base64
    import re

    draw(data_dir=data_dir, source="cc", out=tmp_path / "rating", pairs=6, annotators=1)
    page = tmp_path / "rating" / "annotator-1.html"
    drawn = page_data(page)["pairs"]
    page.write_text(page.read_text(encoding="utf-8").replace("</body>", DRIVER), encoding="utf-8")
    done = dump_dom(page, tmp_path / "profile", 3000)
    found = re.search(r"<pre>(.+)</pre>", done.stdout)
    assert found, done.stderr
    result = tmp_path / "annotator-1.csv"
    result.write_bytes(base64.b64decode(found[1]))
    rows = rows_of(result)
    assert [row["pair"] for row in rows] == [pair["pair"] for pair in drawn]
    # 4, 3, skip one, then 1 on the fourth: moved on to the fifth, back, cleared, 2, and 4.
    assert [row["grade"] for row in rows] == ["4", "3", "", "2", "4", ""]
