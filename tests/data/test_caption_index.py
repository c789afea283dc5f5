import numpy as np
import pytest

from clip_italian.config import ConfigError
from clip_italian.data import caption_index, records
from clip_italian.data.caption_index import open_index, open_or_build
from clip_italian.data.records import hash_words, open_split, write_records
from clip_italian.data.tokens import encode
from tests.data.conftest import make_tokenizer, record

CAPTIONS = [["un gatto"], ["un cane nero dorme", "un gatto nero dorme un gatto", "dorme"], ["nero"]]
FLAT = [caption for captions in CAPTIONS for caption in captions]


@pytest.fixture
def source(tmp_path):
    """Three records with one, three and one caption."""
    made = (record(n, captions=captions) for n, captions in enumerate(CAPTIONS))
    write_records(tmp_path / "data" / "a", {"train": made}, name="a")
    return open_split(tmp_path / "data", "a", "train")


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


def find(source, tokenizer, cache, length=6):
    return open_index(
        source.folder, source.split, source.fingerprint, tokenizer, length, cache
    )  # fmt: skip


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("length", [4, 6, 12])
def test_tokens_are_those_of_encode(source, cache, length, side):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    index = open_or_build(source, tokenizer, length, cache)
    expected = encode(tokenizer, FLAT, length)
    found = index.tokens(np.arange(5), length)
    np.testing.assert_array_equal(found.input_ids, expected.input_ids)
    np.testing.assert_array_equal(found.attention_mask, expected.attention_mask)
    assert found.input_ids.dtype == found.attention_mask.dtype == np.int32
    assert index.lengths(np.arange(5)).tolist() == expected.attention_mask.sum(1).tolist()
    few = index.tokens(np.array([4, 0, 4]), 4)
    cut = expected.input_ids[:, :4] if side == "right" else expected.input_ids[:, -4:]
    np.testing.assert_array_equal(few.input_ids, cut[[4, 0, 4]])


def test_records_captions_and_hashes(source, tokenizer, cache):
    index = open_or_build(source, tokenizer, 6, cache)
    assert len(index) == 5
    assert index.image_id.tolist() == [list(hash_words(f"a/{n}")) for n in range(3)]
    assert index.caption_id.tolist() == [list(hash_words(caption)) for caption in FLAT]
    words = np.array([7, 0, 1, 2, 3, 2**63 - 1])
    assert index.choose(np.array([0, 1, 1, 1, 1, 2]), words).tolist() == [0, 1, 2, 3, 1, 4]
    # Lengths 4; 6, 6 (cut from 8), 3, each shown a third of the time; 3.
    assert index.histogram.tolist() == pytest.approx([0, 0, 0, 4 / 3, 1, 0, 2 / 3])


def test_an_index_is_built_once(source, tokenizer, cache, monkeypatch):
    assert find(source, tokenizer, cache) is None
    built = open_or_build(source, tokenizer, 6, cache)
    tokenizer(["un"], padding="max_length", truncation=True, max_length=9)  # which it remembers
    monkeypatch.setattr(caption_index, "_build", lambda *_: pytest.fail("built again"))
    again = open_or_build(open_split(source.folder.parent, "a", "train"), tokenizer, 6, cache)
    assert again.fingerprint == built.fingerprint and len(again) == 5
    assert not (source.folder / "derived").with_name("cache").exists()


def test_other_facts_make_another_index(source, tokenizer, cache, tmp_path):
    first = open_or_build(source, tokenizer, 6, cache).fingerprint
    assert find(source, tokenizer, cache, 7) is None
    other = make_tokenizer()
    other.truncation_side = "left"
    assert find(source, other, cache) is None
    write_records(tmp_path / "data" / "a", {"train": [record(9)]}, name="a")
    assert open_or_build(open_split(tmp_path / "data", "a", "train"), tokenizer, 6, cache)
    assert open_or_build(source, tokenizer, 7, cache).fingerprint != first


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone", "no json"])
def test_damage_is_noticed(source, tokenizer, cache, damage):
    open_or_build(source, tokenizer, 6, cache)
    (tokens,) = source.folder.glob("derived/*/tokens.bin")
    if damage == "gone":
        tokens.unlink()
    elif damage == "no json":
        tokens.with_name("index.json").write_text('{"arrays": ')
    else:
        data = tokens.read_bytes()
        tokens.write_bytes(data[:-1] if damage == "shorter" else data + b"0")
    assert find(source, tokenizer, cache) is None
    assert open_or_build(source, tokenizer, 6, cache).tokens(np.array([0]), 4)[0].sum() == 14


def test_an_index_that_another_process_has_made_meanwhile_stays(source, tokenizer, cache):
    open_or_build(source, tokenizer, 6, cache)
    (tokens,) = source.folder.glob("derived/*/tokens.bin")
    before = tokens.stat().st_ino
    caption_index._build(source, tokenizer, 6, "", tokens.parent)
    assert tokens.stat().st_ino == before
    assert [path.name for path in tokens.parent.parent.iterdir()] == [tokens.parent.name]


def test_a_build_that_breaks_off_leaves_nothing(source, tokenizer, cache, monkeypatch):
    monkeypatch.setattr(caption_index, "_BLOCK", 1)
    hashes = caption_index._hashes

    def broken(values):
        if b"nero" in values:
            raise KeyboardInterrupt
        return hashes(values)

    monkeypatch.setattr(caption_index, "_hashes", broken)
    with pytest.raises(KeyboardInterrupt):
        open_or_build(source, tokenizer, 6, cache)
    assert not [path for path in source.folder.glob("derived/**/*") if path.is_file()]
    assert find(source, tokenizer, cache) is None
    monkeypatch.setattr(caption_index, "_hashes", hashes)
    index = open_or_build(source, tokenizer, 6, cache)  # in blocks of one record
    np.testing.assert_array_equal(
        index.tokens(np.arange(5), 6).input_ids, encode(tokenizer, FLAT, 6).input_ids
    )


def edited(change):
    """Serializes records, and then changes that of number 1."""
    serialize = records.serialize_record

    def changed(one):
        data = serialize(one)
        return change(data) if one.image_id == "1" else data

    return changed


def without_captions(data):
    example = records._Example.FromString(data)
    del example.features.feature["captions"].bytes_list.value[:]
    return example.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"<html>404</html>", "Error parsing message"),
        (lambda data: b"\n\0", "index out of range"),
        (lambda data: data.replace(b"nero", b"ner\xff"), "can't decode byte 0xff"),
        (without_captions, "it has no caption"),
    ],
    ids=["no protocol buffer", "an empty one", "no UTF-8", "no caption"],
)
def test_a_record_that_is_none_is_named(tmp_path, tokenizer, cache, monkeypatch, change, reason):
    monkeypatch.setattr(records, "serialize_record", edited(change))
    made = [record(n, captions=captions) for n, captions in enumerate(CAPTIONS)]
    write_records(tmp_path / "a", {"train": made}, name="a", shard_bytes=1)
    source = open_split(tmp_path, "a", "train")
    shard = tmp_path / "a" / "a-train.array_record-00001-of-00003"
    said = f"sources: record 1 of a/train, in {shard}, cannot be read.*{reason}.*copy the source"
    with pytest.raises(ConfigError, match=said):
        open_or_build(source, tokenizer, 6, cache)
    assert find(source, tokenizer, cache) is None


def test_a_record_whose_bytes_changed_before_is_named(source, tokenizer, cache):
    (shard,) = source.folder.glob("*array_record-*")
    (whole,) = source.read([2])
    data = bytearray(shard.read_bytes())
    data[data.index(whole) + len(whole) // 2] ^= 4
    shard.write_bytes(data)
    source = open_split(source.folder.parent, "a", "train")
    with pytest.raises(ConfigError, match="record 2 of a/train.*hash mismatch"):
        open_or_build(source, tokenizer, 6, cache)


def test_an_error_that_is_no_record_s_stays_what_it_is(source, tokenizer, cache, monkeypatch):
    read, asked = type(source).read, []

    def once(self, numbers):
        asked.append(numbers)
        if len(asked) == 1:
            raise OSError(5, "the network was gone for a moment")
        return read(self, numbers)

    monkeypatch.setattr(type(source), "read", once)
    with pytest.raises(OSError, match="for a moment"):
        open_or_build(source, tokenizer, 6, cache)


def test_a_folder_that_cannot_be_written(source, tokenizer, tmp_path):
    (source.folder / "derived").write_text("a file where the folder would be")
    index = open_or_build(source, tokenizer, 6, str(tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "derived" / "a").glob("*/index.json"))) == 1
    assert open_or_build(source, tokenizer, 6, str(tmp_path / "cache")).fingerprint
    assert index.tokens(np.array([0]), 4)[0].tolist() == [[2, 4, 5, 3]]
    (tmp_path / "full").write_text("")
    with pytest.raises(ConfigError, match=r"data_cache: neither .* can be written"):
        open_or_build(source, tokenizer, 6, str(tmp_path / "full"))


def test_ids_beyond_16_bits(source, tokenizer, cache, monkeypatch):
    open_or_build(source, tokenizer, 6, cache)
    (tokens,) = source.folder.glob("derived/*/tokens.bin")
    assert tokens.stat().st_size == 2 * (4 + 6 + 6 + 3 + 3)
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: {"a": 2**16})
    index = open_or_build(source, tokenizer, 7, cache)
    assert index.tokens(np.array([0]), 4)[0].tolist() == [[2, 4, 5, 3]]
    assert sorted(p.stat().st_size for p in source.folder.glob("derived/*/tokens.bin")) == [44, 92]
