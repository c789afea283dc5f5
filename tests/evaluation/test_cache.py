import dataclasses
import logging

import numpy as np
import pytest

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.evaluation import cache

ANGLES = np.linspace(0, 3, 10)


def circle(angles):
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


class Circle:
    """Images are the number of their angle, texts an angle; keeps what it was asked for."""

    name, fingerprint = "circle", "f" * 64

    def __init__(self, stop_after=None):
        self.images, self.texts = [], []
        self.stop_after = stop_after

    def encode_images(self, read, names):
        if self.stop_after == len(self.images):
            raise KeyboardInterrupt
        data = read(np.arange(len(names)))
        self.images.append(list(names))
        return circle(ANGLES[[int(one) for one in data]])

    def encode_texts(self, texts):
        self.texts.append(list(texts))
        return circle(np.array([float(text) for text in texts]))


def collection(images=10, **fields):
    return Collection(
        **{
            "name": "angles",
            "protocol": "test",
            "image_keys": [f"image {i}" for i in range(images)],
            "read": lambda numbers: [str(number).encode() for number in numbers],
            "fingerprint": "0" * 64,
            **fields,
        }
    )


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)


@pytest.mark.parametrize("images", [1, 4, 5, 10])
def test_every_image_in_order_with_and_without_a_cache(tmp_path, images):
    expected = circle(ANGLES[:images])
    for folder in ("", str(tmp_path / "new"), str(tmp_path / "new")):
        embeds = cache.image_embeds(Circle(), collection(images), folder)
        assert embeds.dtype == np.float32
        np.testing.assert_array_equal(embeds, expected)


def test_images_are_encoded_once(tmp_path):
    first, second = Circle(), Circle()
    cache.image_embeds(first, collection(), str(tmp_path))
    assert first.images == [
        [f"image {i}" for i in numbers] for numbers in (range(4), range(4, 8), range(8, 10))
    ]
    cache.image_embeds(second, collection(), str(tmp_path))
    assert second.images == []


def test_a_stopped_run_goes_on_with_the_next_chunk(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cache.image_embeds(Circle(stop_after=2), collection(), str(tmp_path))
    second = Circle()
    embeds = cache.image_embeds(second, collection(), str(tmp_path))
    assert second.images == [["image 8", "image 9"]]
    np.testing.assert_array_equal(embeds, circle(ANGLES))


def test_other_models_and_data_are_kept_apart(tmp_path):
    cache.image_embeds(Circle(), collection(), str(tmp_path))
    other_model = Circle()
    other_model.fingerprint = "1" * 64
    cache.image_embeds(other_model, collection(), str(tmp_path))
    other_data = Circle()
    cache.image_embeds(other_data, collection(fingerprint="2" * 64), str(tmp_path))
    assert len(other_model.images) == len(other_data.images) == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_other_captions_of_the_same_images_share_their_embeddings(tmp_path):
    sums = {"checksums": ("a", "b", "c")}
    cache.image_embeds(Circle(), collection(**sums), str(tmp_path))
    second = Circle()
    other = dataclasses.replace(collection(fingerprint="2" * 64, **sums), name="other")
    cache.image_embeds(second, other, str(tmp_path))
    assert not second.images
    cache.image_embeds(second, collection(checksums=("a", "b", "d")), str(tmp_path))
    assert len(second.images) == 3


def test_another_format_is_not_read(tmp_path, monkeypatch):
    cache.text_embeds(Circle(), ["1"], str(tmp_path))
    monkeypatch.setattr(cache, "FORMAT_VERSION", cache.FORMAT_VERSION + 1)
    second = Circle()
    cache.text_embeds(second, ["1"], str(tmp_path))
    assert second.texts == [["1"]]


def test_equal_texts_are_encoded_once_and_come_back_in_order(tmp_path):
    encoder = Circle()
    texts = ["2", "1", "2", "0", "3", "1", "0.5"]
    embeds = cache.text_embeds(encoder, texts, str(tmp_path))
    assert encoder.texts == [["2", "1", "0", "3"], ["0.5"]]
    np.testing.assert_array_equal(embeds, circle(np.array([float(text) for text in texts])))
    cache.text_embeds(encoder, ["2", "1", "0", "3", "0.5", "3"], str(tmp_path))
    assert len(encoder.texts) == 2, "the same distinct texts in the same order"
    cache.text_embeds(encoder, ["1", "2", "0", "3", "0.5"], str(tmp_path))
    assert len(encoder.texts) == 4


def spoil_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_header(path):
    path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': (((" + path.read_bytes()[20:])


def spoil_pickle(path):
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def spoil_length(path):
    rows = np.load(path)
    rows[1] *= 1.01
    np.save(path, rows)


def spoil_nan(path):
    rows = np.load(path)
    rows[1, 0] = np.nan
    np.save(path, rows)


SPOILERS = [
    spoil_half,
    spoil_header,
    spoil_pickle,
    spoil_length,
    spoil_nan,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PK\x03\x04" * 50),
    lambda path: np.save(path, np.load(path)[:-1]),
    lambda path: np.save(path, np.load(path).astype(np.float64)),
    lambda path: np.save(path, circle(ANGLES[:4])[:, :1] / np.abs(circle(ANGLES[:4])[:, :1])),
    lambda path: np.save(path, np.ones(4, np.float32)),
]


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_damaged_chunk_is_encoded_again_with_a_warning(tmp_path, caplog, spoil):
    cache.image_embeds(Circle(), collection(), str(tmp_path))
    (chunk,) = tmp_path.glob("*/000001.npy")
    whole = chunk.read_bytes()
    spoil(chunk)
    encoder = Circle()
    with caplog.at_level(logging.WARNING):
        embeds = cache.image_embeds(encoder, collection(), str(tmp_path))
    assert encoder.images == [[f"image {i}" for i in range(4, 8)]]
    np.testing.assert_array_equal(embeds, circle(ANGLES))
    assert f"{chunk} is damaged" in caplog.text
    assert chunk.read_bytes() == whole


def test_a_whole_cache_warns_of_nothing(tmp_path, caplog):
    for _ in range(2):
        cache.image_embeds(Circle(), collection(), str(tmp_path))
    assert not caplog.records
    assert sorted(path.name for path in tmp_path.glob("*/*")) == [
        "000000.npy",
        "000001.npy",
        "000002.npy",
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((4, 2)), "row 0 has length 0.0, not 1"),
        (np.array([[1, 0], [1, 1], [1, 0], [1, 0]]), "row 1 has length 1.41"),
        (np.array([[1, 0], [1, 0], [1, 0], [np.nan, 1]]), "row 3 has length nan"),
        (np.array([[1, 0], [np.inf, 0], [1, 0], [1, 0]]), "row 1 has length inf"),
        (np.eye(3), r"\(3, 3\), not float32 \(4, dim\)"),
        (np.ones(4), r"\(4,\), not float32"),
    ],
)
def test_what_an_encoder_gives_is_checked_and_not_kept(tmp_path, rows, message):
    encoder = Circle()
    encoder.encode_images = lambda read, names: rows
    with pytest.raises(ValueError, match=f"embeddings 0 to 4: .*{message}"):
        cache.image_embeds(encoder, collection(), str(tmp_path))
    assert list(tmp_path.rglob("*")) == []


def test_all_chunks_have_one_width():
    encoder = Circle()
    encoder.encode_texts = lambda texts: np.eye(len(texts), dtype=np.float32)
    with pytest.raises(ValueError, match="embeddings 4 to 6: 2 dimensions, 4 before"):
        cache.text_embeds(encoder, list("abcdef"), "")


def test_nothing_to_encode_is_an_error():
    with pytest.raises(ValueError, match="nothing to encode"):
        cache.image_embeds(Circle(), collection(0), "")
    with pytest.raises(ValueError, match="nothing to encode"):
        cache.text_embeds(Circle(), [], "")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cache_dir: .*file.* cannot be written"):
        cache.text_embeds(Circle(), ["1"], str(tmp_path / "file"))


def test_a_write_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    def save(file, rows, **kwargs):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "save", save)
    with pytest.raises(ConfigError, match="No space left"):
        cache.text_embeds(Circle(), ["1"], str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_bar_counts_every_row(tmp_path, monkeypatch):
    seen = []

    class Bar:
        def __init__(self, **kwargs):
            assert kwargs["total"] == 10

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def update(self, number):
            seen.append(number)

    monkeypatch.setattr(cache, "tqdm", Bar)
    for _ in range(2):  # encoded, then from disk
        cache.image_embeds(Circle(), collection(), str(tmp_path))
    cache.text_embeds(Circle(), list("0123456789"), "")
    assert seen == [4, 4, 2] * 3
