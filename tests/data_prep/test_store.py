import json

import pytest

from data_prep.store import (
    batched,
    fingerprint,
    read_json,
    reject_log,
    shard_folders,
    total,
    whole,
    write_json,
)


def test_a_shard_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), whole(tmp_path / "000000") as staged:
        (staged / "a").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole(tmp_path / "000000") as staged:
        (staged / "a").write_text("all")
        assert shard_folders(tmp_path) == []
    assert shard_folders(tmp_path) == [tmp_path / "000000"]
    assert (tmp_path / "000000" / "a").read_text() == "all"


def test_of_two_writers_the_first_to_finish_wins(tmp_path):
    with whole(tmp_path / "0") as late:
        (late / "a").write_text("late")
        with whole(tmp_path / "0") as early:
            (early / "a").write_text("early")
    assert (tmp_path / "0" / "a").read_text() == "early"
    assert [path.name for path in tmp_path.iterdir()] == ["0"]


def test_rejects_say_where_why_and_what(tmp_path):
    row = {"file": "a.tsv", "line": 7, "image": "x.jpg", "captions": ["uno", "d" * 600]}
    with reject_log(tmp_path, "pictures") as log:
        log.row(row, "not an image", "text/html")
        log.caption(row, "half \ud800 a pair", "too short")
        log.entry("b.tsv", 9, "bad UTF-8", "y" * 600, entries=3)
    assert log.rows == {"not an image": 1, "bad UTF-8": 3}
    assert log.captions == {"not an image": 2, "too short": 1}
    lines = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "file": "a.tsv", "line": 7, "stage": "pictures", "reason": "not an image",
        "detail": "text/html", "image": "x.jpg", "captions": ["uno", "d" * 500],
    }  # fmt: skip
    assert (lines[1]["captions"], lines[1]["line"]) == (["half \ud800 a pair"], 7)
    assert lines[2]["file"] == "b.tsv" and len(lines[2]["detail"]) == 500


def test_counts_add_up_at_any_depth():
    assert total([{"a": 1, "b": {"x": 1}}, {"a": 2, "b": {"x": 3, "y": 4}}, {}]) == {
        "a": 3, "b": {"x": 4, "y": 4}
    }  # fmt: skip


def test_batches_keep_the_tail():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batched([], 2)) == []


def test_fingerprints_follow_their_parts():
    assert fingerprint("a", {"b": 1, "c": 2}) == fingerprint("a", {"c": 2, "b": 1})
    assert (
        len({fingerprint("a"), fingerprint("b"), fingerprint("a", 1), fingerprint("a", "1")}) == 4
    )


def test_small_files_are_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"è": 1})
    write_json(tmp_path / "a.json", {"è": 2})
    assert read_json(tmp_path / "a.json") == {"è": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
