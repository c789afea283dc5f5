import gzip
import os
from collections import Counter
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from data_prep.conceptual_captions import ConceptualCaptions
from data_prep.rows import Reject, Row, Skip
from tests.data_prep.hostile import KINDS, entries, hostile_lines, outcomes


def read(tmp_path, data, **flags):
    path = tmp_path / "cc.tsv"
    path.write_bytes(data)
    source = ConceptualCaptions((str(path),), **flags)
    return list(source.read(*source.inputs()))


def test_rows(tmp_path):
    data = b'\xef\xbb\xbfa "dog , 2\thttp://a.org/1.jpg\r\n\na cat\thttps://b.org/2'
    rows = [
        Row(1, ('a "dog , 2',), "http://a.org/1.jpg", image_id="http://a.org/1.jpg"),
        Row(3, ("a cat",), "https://b.org/2", image_id="https://b.org/2"),
    ]
    assert read(tmp_path, data) == [*rows, Skip("blank line", 1)]
    turned = b"http://a.org/1.jpg\ta dog\n"
    assert read(tmp_path, turned, columns="url_caption")[0].captions == ("a dog",)


def test_bad_rows_are_rejected_with_line_and_reason(tmp_path):
    data = (
        b"a dog\thttp://a.org/1\n \thttp://a.org/2\na dog\t\na dog\tftp://a.org\na dog\na\tb\tc\n"
        b"a d\xfcg\thttp://a.org/3\na\0dog\thttp://a.org/4\n"
    )
    found = [item for item in read(tmp_path, data) if isinstance(item, Reject)]
    assert [(item.line, item.reason) for item in found] == [
        (2, "no caption"),
        (3, "no image URL"),
        (4, "no image URL"),
        (5, "wrong number of columns"),
        (6, "wrong number of columns"),
        (7, "bad UTF-8"),
        (8, "NUL character"),
    ]
    assert found[2] == Reject(4, "no image URL", "ftp://a.org")


def test_the_other_order_of_columns_is_told(tmp_path):
    with pytest.raises(
        ConfigError, match="columns = 'caption_url', but .*cc.tsv has 'url_caption'"
    ):
        read(tmp_path, b"http://a.org/1.jpg\ta dog\nno\n")
    with pytest.raises(
        ConfigError, match="columns = 'url_caption', but .*cc.tsv has 'caption_url'"
    ):
        read(tmp_path, b"a dog\thttp://a.org/1.jpg\n", columns="url_caption")
    with pytest.raises(ConfigError, match="path"):
        ConceptualCaptions((str(tmp_path / "none.tsv"),)).inputs()


def test_hostile_lines_are_all_accounted_for(tmp_path):
    lines = hostile_lines(lambda n, text: f"a dog, {n} {text}\thttp://a.org/è/{n}{text}", "\t")
    data = gzip.compress(b"\n".join(line for _, line in lines), 1)
    items = read(tmp_path, data)
    assert entries(items) == 10_000 == sum(KINDS.values())
    of_line, skipped = outcomes(items)
    same = ("bad UTF-8", "NUL character", "line too long")
    expected = {"ragged": "wrong number of columns"} | {kind: kind for kind in same}
    assert of_line == {
        number: expected.get(kind, "row")
        for number, (kind, _) in enumerate(lines, 1)
        if kind != "blank"
    }
    assert skipped == {"blank line": KINDS["blank"]}
    some = {4: "bad UTF-8", 32: "wrong number of columns", 64: "NUL character", 3673: "row"}
    assert some.items() <= of_line.items()


@pytest.mark.real_data
@pytest.mark.skipif("CLIP_ITALIAN_REAL_DATA" not in os.environ, reason="no real data at hand")
def test_real_rows():
    folder = Path(os.environ["CLIP_ITALIAN_REAL_DATA"]) / "raw"
    source = ConceptualCaptions((str(folder / "*GCC*.tsv"),))
    items = list(source.read(*source.inputs()))
    assert Counter(map(type, items)) == {Row: 8000}
    assert items[1].captions == ("an angler fishes river on a snowy day .",)
    assert items[-1].line == 8000
