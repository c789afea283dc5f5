import gzip
import random
import tracemalloc
import zlib

import pytest

from clip_italian.config import ConfigError
from data_prep.lines import MAX_LINE_BYTES, csv_records, find_files, read_lines, text_lines
from data_prep.rows import Reject


def gzip_fast(data: bytes) -> bytes:
    return gzip.compress(data, 1)


@pytest.fixture
def write(tmp_path):
    def write(data: bytes) -> str:
        (tmp_path / "file").write_bytes(data)
        return str(tmp_path / "file")

    return write


def reasons(items):
    return [item.reason if isinstance(item, Reject) else item for item in items]


def test_find_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep" / "er").mkdir(parents=True)
    names = ["b.tsv", "a.TSV.gz", "c.txt", "x[1].tsv", "deep/d.tsv", "deep/er/e.tsv"]
    for name in names:
        (tmp_path / name).touch()
    assert find_files(["b.tsv", "*.tsv"], [".tsv"]) == ["b.tsv", "x[1].tsv"]
    assert find_files(["."], [".tsv"]) == ["a.TSV.gz", "b.tsv", "x[1].tsv"]
    assert find_files(["x[1].tsv", "c.txt"], [".tsv"]) == ["x[1].tsv", "c.txt"]
    assert find_files(["deep/**/*.tsv"], [".tsv"]) == ["deep/d.tsv", "deep/er/e.tsv"]
    with pytest.raises(ConfigError, match=r"path: no file at 'none\*'; .*\.tsv, \.tsv\.gz"):
        find_files(["b.tsv", "none*"], [".tsv"])
    with pytest.raises(ConfigError, match="path: no file at 'deep'"):
        find_files(["deep"], [".txt"])
    with pytest.raises(ConfigError, match="path is empty"):
        find_files([], [".tsv"])


@pytest.mark.parametrize("pack", [bytes, gzip_fast])
def test_read_lines(write, pack):
    def lines(data):
        return list(read_lines(write(pack(data))))

    assert lines(b"") == []
    assert lines(b"\n") == [b""]
    assert lines(b"a\nb") == lines(b"a\nb\n") == lines(b"a\r\nb\r\n") == [b"a", b"b"]
    assert lines(b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n") == [b"a", b"\xef\xbb\xbfb"]
    assert lines(b"\xef\xbb\xbf") == [b""]
    assert lines(b"a\rb\r\r\n\n\xff\0") == [b"a\rb\r", b"", b"\xff\0"]
    rng = random.Random(3)
    data = b"".join(bytes(rng.choices(b"ab\n", k=60_000)) + b"x" * n for n in range(40))
    assert lines(data) == data.split(b"\n")  # over the borders of blocks


@pytest.mark.parametrize("pack", [bytes, gzip_fast])
def test_lines_too_long_are_read_past_in_little_memory(write, pack):
    most = MAX_LINE_BYTES
    data = [b"a", b"x" * most, b"b", b"x" * (most + 1), b"c", b"x" * (10 * most), b"d"]
    path = write(pack(b"\n".join(data)))
    tracemalloc.start()
    found = [line if isinstance(line, Reject) else len(line) for line in read_lines(path)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    too_long = [Reject(4, "line too long"), Reject(6, "line too long")]
    assert found == [1, most, 1, too_long[0], 1, too_long[1], 1]
    assert peak < 20e6
    assert list(read_lines(write(pack(b"a\n" + b"x" * 2 * most)))) == [
        b"a", Reject(2, "line too long"),
    ]  # fmt: skip


def test_members_of_an_archive_follow_each_other(write):
    packed = gzip.compress(b"a\nb") + gzip.compress(b"") + gzip.compress(b"c\nd\n")
    assert list(read_lines(write(packed))) == [b"a", b"bc", b"d"]
    assert list(read_lines(write(packed + b"\0" * 600))) == [b"a", b"bc", b"d"]


def test_a_broken_archive_keeps_what_can_be_read(write):
    rng = random.Random(5)
    lines = [bytes(rng.choices(b"abcdefgh ", k=500)) for _ in range(5000)]
    packed = gzip_fast(b"\n".join(lines) + b"\n")
    for size in [1, 5, 11, 17, 1000, 70_000, len(packed) // 2, len(packed) - 9, len(packed) - 1]:
        *found, last = read_lines(write(packed[:size]))
        readable = zlib.decompressobj(31).decompress(packed[:size]).count(b"\n") if size > 1 else 0
        if size == 1:
            assert last == b"\x1f"  # no archive yet
            continue
        # The decoder looks a few bytes ahead, which may be the end of a line.
        assert len(found) in (readable, readable - 1) and found == lines[: len(found)]
        assert last == Reject(len(found) + 1, "broken archive", "ends too early")
    for place in [len(packed) // 2, len(packed) - 6]:  # in the data; in the checksum
        flipped = packed[:place] + bytes([packed[place] ^ 16]) + packed[place + 1 :]
        *found, last = read_lines(write(flipped))
        assert last.reason == "broken archive" and last.line == len(found) + 1
        before = min(place, len(packed) - 65536) * 5000 // len(packed) - 400
        assert found[:before] == lines[:before]
    *found, last = read_lines(write(packed + b"junk"))
    assert found == lines and last.reason == "broken archive"
    assert reasons(read_lines(write(b"\x1f\x8bxyz" * 100))) == ["broken archive"]


def test_text_lines_tell_what_is_no_text(write):
    items = list(text_lines(write("a è\n".encode() + b"b\xe8\n\0c\nd")))
    assert [(n, *reasons([line])) for n, line in items] == [
        (1, "a è"), (2, "bad UTF-8"), (3, "NUL character"), (4, "d"),
    ]  # fmt: skip
    assert items[1][1].detail == r"b'b\xe8'"


def records(write, data, delimiter=","):
    return [(n, *reasons([record])) for n, record in csv_records(write(data), delimiter)]


def test_csv_records(write):
    data = b'\xef\xbb\xbfa,b\n"x, ""y""",2\n\n"one\r\ntwo\n\nthree",4\nlast,5" by 6"'
    assert records(write, data) == [
        (1, ["a", "b"]),
        (2, ['x, "y"', "2"]),
        (3, []),
        (4, ["one\ntwo\n\nthree", "4"]),
        (8, ["last", '5" by 6"']),
    ]
    assert records(write, b"a;b\tc\n", "\t") == [(1, ["a;b", "c"])]
    assert records(write, b"") == []
    big = b"x" * (1 << 20)
    assert records(write, b"a," + big + b"\n") == [(1, ["a", big.decode()])]


def test_an_open_quote_costs_one_line(write):
    lines = [b'un "gatto",1', b'"open,2'] + [b"x,%d" % n for n in range(3, 3000)]
    found = records(write, b"\n".join(lines))
    assert found[:3] == [(1, ['un "gatto"', "1"]), (2, "bad CSV"), (3, ["x", "3"])]
    assert len(found) == 2999 and found[-1] == (2999, ["x", "2999"])
    assert records(write, b'"a" b,1\nc,2\n') == [(1, "bad CSV"), (2, ["c", "2"])]
    assert records(write, b'a,1\n"b,2') == [(1, ["a", "1"]), (2, "bad CSV")]
    assert records(write, b"a\rb,1\nc,2") == [(1, "bad CSV"), (2, ["c", "2"])]
    # What is no text ends a record, and is told for itself.
    assert records(write, b'"a\n\xff\nb",1\nc,2') == [
        (1, "bad CSV"), (2, "bad UTF-8"), (3, ['b"', "1"]), (4, ["c", "2"]),
    ]  # fmt: skip


def test_an_open_quote_holds_little_memory(write):
    path = write(b'"open\n' + (b"x" * 100_000 + b"\n") * 300)
    tracemalloc.start()
    count = sum(1 for _ in csv_records(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 301 and peak < 60e6
