import json

import pytest

from clip_italian.config import ConfigError
from data_prep.store import (
    batched,
    fingerprint,
    locked,
    read_json,
    reject_log,
    remove_leftovers,
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


def test_what_a_killed_run_left_is_removed(tmp_path):
    for name in (".000003.77-ab", ".duckdb", ".old-000001", "000002"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".old-000001", "000002"]


def test_a_work_folder_has_one_run_at_a_time(tmp_path):
    refused = pytest.raises(ConfigError, match="work_dir = .* is in use")
    with locked(tmp_path), refused, locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


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
