import datetime
import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from data_prep.rows import Reject, Row, Skip
from data_prep.tables import Csv, HuggingFace, Parquet
from tests.data_prep.hostile import KINDS, entries, hostile_lines, outcomes


def read_csv(tmp_path, data, **flags):
    path = tmp_path / "table.csv"
    path.write_bytes(data)
    source = Csv((str(path),), **flags)
    return list(source.read(*source.inputs()))


def test_csv_rows(tmp_path):
    data = (
        b"\xef\xbb\xbfimage,caption,image_id,split,license,source,url,original_captions,notes\r\n"
        b'1.jpg,"un gatto, ""nero""",7,test,CC0,Ansa,http://a.org,a cat,x\r\n'
        b"\r\n"
        b'2.jpg,"un\ncane",,,,,,,\r\n'
        b"3.jpg,  un asino ,,,,,,,"
    )
    assert read_csv(tmp_path, data) == [
        Row(
            2,
            ('un gatto, "nero"',),
            "1.jpg",
            image_id="7",
            split="validation",
            url="http://a.org",
            license="CC0",
            original_captions=("a cat",),
        ),
        Row(4, ("un\ncane",), "2.jpg"),
        Row(6, ("  un asino ",), "3.jpg"),
        Skip("blank line", 1),
    ]


def test_csv_flags(tmp_path):
    data = b"n;file;a;b\n4;1.jpg;uno;due\n5;2.jpg;;tre\n"
    flags = {"caption_column": ("b", "a"), "image_column": "file", "id_column": "n"}
    rows = [
        Row(2, ("due", "uno"), "1.jpg", image_id="4"),
        Row(3, ("tre",), "2.jpg", image_id="5"),
    ]
    assert read_csv(tmp_path, data, delimiter=";", **flags) == rows
    tabs = data.replace(b";", b"\t")
    assert read_csv(tmp_path, tabs, delimiter="\t", **flags) == rows
    assert read_csv(tmp_path, tabs, delimiter=r"\t", **flags) == rows
    bare = b"1.jpg,un gatto\n"
    assert read_csv(tmp_path, bare, columns=("image", "caption")) == [
        Row(1, ("un gatto",), "1.jpg")
    ]


def test_csv_flags_that_cannot_work(tmp_path):
    data = b"image,caption\n"
    for flags, message in [
        (
            {"caption_column": ("caption", "title")},
            "caption_column: no column 'title' in .*: 'image'",
        ),
        ({"caption_column": ("",)}, "caption_column: no column ''"),
        ({"image_column": "file"}, "image_column: no column 'file'"),
        ({"id_column": "id"}, "id_column: no column 'id'"),
        ({"delimiter": ""}, "delimiter = '' is not allowed"),
        ({"delimiter": '"'}, "delimiter = '\"' is not allowed"),
        ({"delimiter": ";"}, "its columns are: 'image,caption'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            read_csv(tmp_path, data, **flags)
    for data in [b"", b"\xff\n"]:
        with pytest.raises(ConfigError, match="its columns are: none"):
            read_csv(tmp_path, data)


def test_bad_records_of_csv_are_rejected_with_line_and_reason(tmp_path):
    data = (
        b"image,caption\n"
        b'"1.jpg,un gatto\n'
        b"2.jpg,un cane\n"
        b"3.jpg\n"
        b"4.jpg,un asino,x\n"
        b'"5.jpg\n6.jpg"x,un bue\n'
        b"7.jpg,\n"
        b",un pesce\n"
        b"8.jpg,un \xe8\n"
        b'9.jpg,"un'
    )
    assert [(i.line, getattr(i, "reason", "row")) for i in read_csv(tmp_path, data)] == [
        (2, "bad CSV"),
        (3, "row"),
        (4, "wrong number of columns"),
        (5, "wrong number of columns"),
        (6, "bad CSV"),
        (7, "row"),  # 6.jpg"x: a quote inside a field is a plain character
        (8, "no caption"),
        (9, "no image"),
        (10, "bad UTF-8"),
        (11, "bad CSV"),
    ]


def test_hostile_lines_are_all_accounted_for(tmp_path):
    def make(number, text):
        quote = '"' if '"' in text else ""  # opens, and what follows it is never closed
        return f"{number}.jpg,http://a.org/{number},{quote}il gatto {number} è {text}"

    lines = hostile_lines(make, ",")
    data = b"image,url,caption\n" + b"\n".join(line for _, line in lines)
    items = read_csv(tmp_path, gzip.compress(data, 1))
    assert entries(items) == 10_000 == sum(KINDS.values())
    of_line, skipped = outcomes(items)
    same = ("bad UTF-8", "NUL character", "line too long")
    expected = {"ragged": "wrong number of columns", "quotes": "bad CSV"}
    expected |= {kind: kind for kind in same}
    assert of_line == {
        number: expected.get(kind, "row")
        for number, (kind, _) in enumerate(lines, 2)
        if kind != "blank"
    }
    assert skipped == {"blank line": KINDS["blank"]}
    some = {3: "bad CSV", 5: "bad UTF-8", 33: "wrong number of columns", 1968: "line too long"}
    assert some.items() <= of_line.items()


def parquet(tmp_path, table, **flags):
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=100)
    source = Parquet((str(tmp_path / "table.parquet"),), **flags)
    return list(source.read(*source.inputs()))


def test_parquet_rows_of_every_kind_of_picture_and_caption(tmp_path):
    pictures = {
        "1.jpg": ("1.jpg", b""),
        b"JPEG": ("", b"JPEG"),
    }
    for value, (image, data) in pictures.items():
        table = pa.table({"image": [value], "caption": ["un gatto"], "notes": [3]})
        assert parquet(tmp_path, table) == [Row(1, ("un gatto",), image, image_bytes=data)]
    structs = [{"bytes": b"JPEG", "path": "1.jpg"}, {"bytes": None, "path": "2.jpg"}, None, {}]
    table = pa.table({
        "image": pa.array(structs, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        "caption": [["un gatto", None, "un felino"], ["un cane"], ["un asino"], ["un bue"]],
        "image_id": [5, 6, 7, 8],
        "split": ["test", "train", None, None],
        "source": ["x"] * 4,
    })  # fmt: skip
    captions = ("un gatto", "un felino")
    assert parquet(tmp_path, table) == [
        Row(1, captions, image_bytes=b"JPEG", image_id="5", split="validation"),
        Row(2, ("un cane",), "2.jpg", image_id="6", split="train"),
        Reject(3, "no image"),
        Reject(4, "no image"),
    ]


def test_parquet_flags(tmp_path):
    table = pa.table({"file": ["1.jpg"], "a": ["uno"], "n": [1.5]})
    flags = {"caption_column": ("a",), "image_column": "file", "id_column": "n"}
    assert parquet(tmp_path, table, **flags) == [Row(1, ("uno",), "1.jpg", image_id="1.5")]
    with pytest.raises(ConfigError, match="id_column: no column 'm' in .*: 'file', 'a', 'n'"):
        parquet(tmp_path, table, **flags | {"id_column": "m"})
    (tmp_path / "table.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match="path: .*table.parquet is no Parquet file"):
        Parquet((str(tmp_path),)).inputs()


def test_bad_values_of_parquet_are_rejected_row_by_row(tmp_path):
    raw = pa.array([b"un gatto", b"\xff\xfe", b"un cane", b"un asino", None, b"a\0b"])
    buffers = raw.buffers()
    captions = pa.Array.from_buffers(pa.string(), 6, buffers)  # unchecked, as files are
    years = pa.array([0, 0, 0, 2**62, 0, 0], pa.timestamp("us"))  # the calendar ends at 9999
    table = pa.table({"image": ["1.jpg"] * 6, "caption": captions, "license": years})
    found = parquet(tmp_path, table)
    assert [(item.line, getattr(item, "reason", "row")) for item in found] == [
        (1, "row"), (2, "bad UTF-8"), (3, "row"), (4, "bad value"), (5, "no caption"),
        (6, "NUL character"),
    ]  # fmt: skip
    assert found[0].license == str(datetime.datetime(1970, 1, 1))


def test_a_broken_parquet_file_accounts_for_all_its_rows(tmp_path):
    captions = [f"il gatto {number} è nero" for number in range(1000)]
    table = pa.table({"image": [f"{n}.jpg" for n in range(1000)], "caption": captions})
    assert len(parquet(tmp_path, table)) == 1000
    path = tmp_path / "table.parquet"
    data = path.read_bytes()
    place = pq.read_metadata(path).row_group(5).column(1).data_page_offset
    path.write_bytes(data[:place] + b"\xa5" * 200 + data[place + 200 :])
    *rows, last = Parquet((str(path),)).read(str(path))
    assert entries([*rows, last]) == 1000 and last.reason == "broken file"
    assert last.line == len(rows) + 1 >= 401
    path.write_bytes(data[:-20])
    assert [(i.line, i.reason) for i in Parquet((str(path),)).read(str(path))] == [
        (1, "broken file")
    ]


@pytest.fixture(scope="module")
def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 30, 30)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def test_hugging_face_folder_of_files(tmp_path, jpeg, datasets):
    table = pa.table(
        {"image": [jpeg, b"no picture"], "caption": ["un gatto", "un cane"], "n": [1, 2]}
    )
    pq.write_table(table, tmp_path / "train-0.parquet")
    pq.write_table(table.slice(1), tmp_path / "test-0.parquet")
    source = HuggingFace(str(tmp_path), id_column="n")
    assert source.inputs() == [f"{tmp_path}#train", f"{tmp_path}#test"]
    rows = [item for path in source.inputs() for item in source.read(path)]
    assert rows == [
        Row(1, ("un gatto",), image_bytes=jpeg, image_id="1", split="train"),
        Row(2, ("un cane",), image_bytes=b"no picture", image_id="2", split="train"),
        Row(1, ("un cane",), image_bytes=b"no picture", image_id="2", split="validation"),
    ]
    assert HuggingFace(str(tmp_path), split=("test",)).inputs() == [f"{tmp_path}#test"]


def test_hugging_face_saved_to_disk(tmp_path, jpeg, datasets):
    features = datasets.Features({
        "image": datasets.Image(), "texts": datasets.List(datasets.Value("string")),
    })  # fmt: skip
    broken = {"bytes": b"no picture", "path": None}
    rows = {"image": [{"bytes": jpeg, "path": "1.jpg"}, broken], "texts": [["uno", "due"], []]}
    data = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict({"train": data, "validation": data.select([0])})
    both.save_to_disk(str(tmp_path / "both"))
    data.save_to_disk(str(tmp_path / "one"))
    first = Row(1, ("uno", "due"), image_bytes=jpeg, split="train")
    source = HuggingFace(str(tmp_path / "both"), caption_column=("texts",))
    train, validation = source.inputs()
    assert list(source.read(train)) == [first, Reject(2, "no caption")]
    assert [row.split for row in source.read(validation)] == ["validation"]
    source = HuggingFace(str(tmp_path / "one"), caption_column=("texts",))
    assert source.inputs() == [f"{tmp_path / 'one'}#train"]
    assert next(source.read(f"{tmp_path / 'one'}#train")) == first


def test_hugging_face_flags_that_cannot_work(tmp_path, datasets):
    for name, text in [("good", '{"image": "1.jpg", "caption": "a"}\n'), ("bad", "{broken")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text(text)
    folder = str(tmp_path / "good")
    for flags, message in [
        ({"dataset": str(tmp_path / "bad")}, "dataset = .*bad' cannot be opened"),
        ({"dataset": str(tmp_path / "none")}, "dataset = .*none' cannot be opened"),
        ({"dataset": folder, "split": ("dev",)}, "split: no 'dev' in .*; its splits are train"),
        ({"dataset": folder, "image_column": "file"}, "image_column: .* are: 'image', 'caption'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            HuggingFace(**flags).inputs()


def test_broken_files_of_hugging_face_end_the_split(tmp_path, datasets):
    lines = ['{"image": "1.jpg", "caption": "un gatto"}'] * 200
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, "{broken"]))
    source = HuggingFace(str(tmp_path))
    *rows, last = source.read(f"{tmp_path}#train")
    assert isinstance(last, Reject) and last.reason == "broken file"
    assert last.line == len(rows) + 1
