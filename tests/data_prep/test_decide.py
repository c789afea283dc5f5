import json

import numpy as np
import pytest

from data_prep.decide import decide_rows, select_rows
from data_prep.pictures import digest, split_by_digest
from data_prep.store import IMAGES, ROWS, read_json, read_table, write_table


def row(key, captions=("a caption",), image=None, **fields):
    return {
        "key": key, "file": "in.tsv", "line": key + 1, "captions": list(captions),
        "original_captions": [], "image": f"{key}.jpg" if image is None else image,
        "image_id": str(key) if image is None else image, "split": "", "source": "", "url": "",
        "license": "", "translator": "", "entries": 1, "has_bytes": False,
    } | fields  # fmt: skip


@pytest.fixture
def select(tmp_path):
    def run(rows, guard_ids=None, max_repeats=0, rows_per_shard=100):
        half = len(rows) // 2
        files = [tmp_path / f"{n}.parquet" for n in range(2)]
        for file, part in zip(files, (rows[half:], rows[:half]), strict=True):  # in any order
            write_table(file, part, ROWS)
        folder = tmp_path / "selected"
        select_rows(
            files, folder, guard_ids=guard_ids or {}, max_repeats=max_repeats,
            rows_per_shard=rows_per_shard,
        )  # fmt: skip
        return outcome(folder)

    return run


def outcome(folder):
    kept = [one for file in sorted(folder.glob("rows-*")) for one in read_table(file)]
    lines = (folder / "rejects.jsonl").read_text().splitlines()
    counts = read_json(folder / "counts.json")
    lost = sum(counts["rejected_rows"].values()) + counts["merged_rows"]
    assert counts["rows_in"] == counts["rows_out"] + lost
    assert counts["rows_out"] == len(kept)
    lost = sum(counts["rejected_captions"].values())
    assert counts["captions_in"] == counts["captions_out"] + lost
    assert counts["captions_out"] == sum(len(one["captions"]) for one in kept)
    return kept, counts, [json.loads(line) for line in lines]


def test_rows_of_one_picture_become_one(select):
    rows = [
        row(0, ["b", "a"], "x.jpg", url="first"),
        row(1, ["z"], "y.jpg"),
        row(2, ["c", "a"], "x.jpg", url="second"),
        row(3, ["c"], "x.jpg", source="other"),  # another source: another picture
    ]
    kept, counts, rejects = select(rows)
    assert [(one["key"], one["captions"]) for one in kept] == [
        (0, ["b", "a", "c"]), (1, ["z"]), (3, ["c"])
    ]  # fmt: skip
    assert kept[0]["url"] == "first"
    assert counts["merged_rows"] == 1
    assert counts["rejected_captions"] == {"said twice of one picture": 1}
    assert rejects == [{
        "file": "in.tsv", "line": 3, "stage": "selection", "reason": "said twice of one picture",
        "detail": "", "image": "x.jpg", "captions": ["a"],
    }]  # fmt: skip


def test_pictures_carried_by_the_input_are_not_joined_by_their_empty_name(select):
    rows = [row(n, image="", image_id=f"t:{n}", has_bytes=True) for n in range(3)]
    kept, counts, _ = select(rows)
    assert [one["key"] for one in kept] == [0, 1, 2] and counts["merged_rows"] == 0


def test_an_image_id_names_one_picture(select):
    rows = [
        row(0, image_id="7"),
        row(1, ["x", "y"], image_id="7"),
        row(2, image_id="7", source="s"),
    ]
    kept, counts, rejects = select(rows)
    assert [one["key"] for one in kept] == [0, 2]
    assert counts["rejected_rows"] == {"image_id seen before": 1}
    assert counts["rejected_captions"] == {"image_id seen before": 2}
    assert [(one["line"], one["captions"]) for one in rejects] == [(2, ["x", "y"])]


def test_originals_stay_with_their_captions(select):
    rows = [
        row(0, ["uno", "due"], "x", original_captions=["one", "two"]),
        row(1, ["due", "tre"], "x", original_captions=["2", "three"]),
        row(2, ["quattro"], "x"),
    ]
    kept, *_ = select(rows)
    assert kept[0]["captions"] == ["uno", "due", "tre", "quattro"]
    assert kept[0]["original_captions"] == ["one", "two", "three", None]


def test_ids_of_evaluation_sets_go_with_all_that_joined_them(select):
    rows = [row(0, image_id="COCO_val2014_000000000359.jpg", image="a"), row(1), row(2, ["x"], "a")]
    kept, counts, rejects = select(rows, guard_ids={"dev": {"359", "5"}, "xtd": {"1"}})
    assert kept == []
    assert counts["rejected_rows"] == {"in evaluation set dev": 1, "in evaluation set xtd": 1}
    assert counts["rejected_captions"] == {"in evaluation set dev": 2, "in evaluation set xtd": 1}
    assert sorted(one["line"] for one in rejects) == [1, 2, 3]


def test_stock_captions_go_and_take_rows_with_them(select):
    rows = [row(n, ["Panorama"]) for n in range(3)] + [row(3, ["panorama", "un lago"])]
    assert len(select(rows, max_repeats=4)[0]) == 4


def test_stock_captions_above_the_limit(select):
    rows = [row(n, ["Panorama"]) for n in range(3)] + [row(3, ["panorama", "un lago"])]
    kept, counts, rejects = select(rows, max_repeats=3)
    assert [(one["key"], one["captions"]) for one in kept] == [(3, ["un lago"])]
    assert counts["rejected_rows"] == {"no caption left": 3}
    assert counts["rejected_captions"] == {"repeated caption": 4}
    assert [one["reason"] for one in rejects].count("repeated caption") == 4


def test_a_caption_twice_of_one_picture_is_no_repetition(select):
    kept, *_ = select([row(0, ["a"], "x"), row(1, ["a"], "x"), row(2, ["b"])], max_repeats=1)
    assert [one["captions"] for one in kept] == [["a"], ["b"]]


def test_shards_have_their_size(select, tmp_path):
    select([row(n) for n in range(7)], rows_per_shard=3)
    sizes = [len(read_table(file)) for file in sorted((tmp_path / "selected").glob("rows-*"))]
    assert sizes == [3, 3, 1]


def picture(key, image_hash=0, level=0, data=None):
    return {
        "key": key, "jpeg": b"", "image_hash": image_hash, "thumbnail": bytes([level]) * 192,
        "digest": digest(data or str(key).encode()),
    }  # fmt: skip


@pytest.fixture
def decide(tmp_path):
    def run(rows, pictures, guarded=(), near_duplicates=3, validation_share=0.05):
        write_table(tmp_path / "rows.parquet", rows, ROWS)
        write_table(tmp_path / "images.parquet", pictures, IMAGES)
        from data_prep.guard import HASHES

        write_table(tmp_path / "guard.parquet", list(guarded), HASHES)
        decide_rows(
            [tmp_path / "rows.parquet"], [tmp_path / "images.parquet"],
            [tmp_path / "guard.parquet"], tmp_path / "decided", near_duplicates=near_duplicates,
            validation_share=validation_share, rows_per_shard=100,
        )  # fmt: skip
        return outcome(tmp_path / "decided")

    return run


def test_equal_files_become_one_and_failed_pictures_are_not_counted_again(decide):
    rows = [row(0, ["a"]), row(1, ["b"]), row(2, ["c"]), row(3, ["d"])]
    pictures = [picture(0, 1, 1, b"x"), picture(2, 1, 1, b"x"), picture(3, -1, 200)]
    kept, counts, _ = decide(rows, pictures)
    assert [(one["key"], one["captions"]) for one in kept] == [(0, ["a", "c"]), (3, ["d"])]
    assert (counts["rows_in"], counts["merged_rows"], counts["captions_in"]) == (3, 1, 3)


def test_originals_stay_with_their_captions_when_pictures_join(decide):
    rows = [
        row(0, ["uno", "due"], original_captions=["one", None]),
        row(1, ["tre"], original_captions=["three"]),
        row(2, ["quattro"]),
    ]
    kept, *_ = decide(rows, [picture(0), picture(1, data=b"0"), picture(2, 99, 200)])
    assert kept[0]["captions"] == ["uno", "due", "tre"]
    assert kept[0]["original_captions"] == ["one", None, "three"]
    assert kept[1]["original_captions"] == []


def test_nothing_is_no_fault(select, decide, tmp_path):
    select_rows([], tmp_path / "none", guard_ids={}, max_repeats=0, rows_per_shard=9)
    assert outcome(tmp_path / "none")[0] == []
    assert decide([], [])[0] == []


def test_near_equal_pictures_go_but_chance_neighbours_stay(decide):
    rows = [row(n, [f"c{n}"]) for n in range(5)]
    pictures = [
        picture(0, 0b0000, 100),
        picture(1, 0b0111, 103),  # 3 bits away, nearly the same colours
        picture(2, 0b0001, 180),  # 1 bit away, other colours
        picture(3, 0b1111, 100),  # 4 bits away from the first; near the second, which is gone
        picture(4, -(2**63), 101),  # 1 bit away: the sign
    ]
    kept, counts, rejects = decide(rows, pictures)
    assert [one["key"] for one in kept] == [0, 2, 3]
    assert counts["rejected_rows"] == {"near-duplicate picture": 2}
    assert [one["captions"] for one in rejects] == [["c1"], ["c4"]]


@pytest.mark.parametrize(("bits", "left"), [(-1, 3), (0, 2), (1, 1)])
def test_how_near_is_a_flag(decide, bits, left):
    pictures = [picture(0, 0, 9), picture(1, 0, 9), picture(2, 1, 9)]
    kept, *_ = decide([row(n, [str(n)]) for n in range(3)], pictures, near_duplicates=bits)
    assert len(kept) == left


def test_evaluation_pictures_go_whatever_the_flag(decide):
    guarded = [{"name": "xtd", "image_hash": 7, "thumbnail": bytes([50]) * 192}]
    pictures = [picture(0, 6, 51), picture(1, 6, 90), picture(2, 6, 51, b"0")]
    kept, counts, _ = decide(
        [row(0), row(1, ["b"]), row(2, ["c"])], pictures, guarded, near_duplicates=-1
    )
    assert [one["key"] for one in kept] == [1]
    assert counts["rejected_rows"] == {"in evaluation set xtd": 1}
    assert counts["merged_rows"] == 1  # the third is the first one's file again
    assert counts["rejected_captions"] == {"in evaluation set xtd": 2}


def test_the_split_follows_the_row_or_else_the_picture(decide):
    named = {0: "validation", 1: "validation", 2: "validation", 3: "train", 4: "train", 5: "train"}
    rows = [row(n, [str(n)], split=named.get(n, "")) for n in range(60)]
    pictures = [picture(n, n * 2**40, n) for n in range(60)]
    kept, *_ = decide(rows, pictures, near_duplicates=-1, validation_share=0.5)
    expected = [split_by_digest(digest(str(n).encode()), 0.5) for n in range(60)]
    assert [one["split"] for one in kept] == [*named.values(), *expected[6:]]
    assert expected[:6] != list(named.values())
    assert 15 < expected.count("validation") < 45


def test_the_split_is_a_share_and_grows_with_it():
    digests = [digest(str(n).encode()) for n in range(20_000)]
    shares = [
        {name for name in digests if split_by_digest(name, share) == "validation"}
        for share in (0, 0.05, 0.1, 1)
    ]
    assert len(shares[0]) == 0 and len(shares[3]) == 20_000
    assert 900 < len(shares[1]) < 1100 and shares[1] < shares[2]


def test_many_pictures_are_compared_in_seconds(decide):
    rng = np.random.default_rng(0)
    hashes = rng.integers(-(2**63), 2**63, 20_000)
    hashes &= ~0xFFFF  # as flat margins do: a quarter of the bits says nothing
    hashes[10_000:] = hashes[:10_000] ^ (1 << rng.integers(0, 63, 10_000))
    pictures = [picture(n, int(value), 9) for n, value in enumerate(hashes)]
    kept, *_ = decide([row(n, ["c"]) for n in range(20_000)], pictures)
    assert len(kept) == 10_000
