"""Where pictures come from, and how each is looked at."""

import io
import os
import time

import numpy as np
import pytest
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.config import ConfigError
from clip_italian.demo import thumbnails
from clip_italian.demo.sources import folder_pictures, open_pictures, record_pictures
from clip_italian.demo.thumbnails import MAX_BYTES, Picture, check
from tests.demo.colours import colour, encoded, write
from tests.pictures import png_bomb


def opened(data):
    return Image.open(io.BytesIO(data))


def saved(image, kind, **more):
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def test_a_folder_is_read_by_name(tmp_path):
    write(tmp_path / "deep" / "er", 3)
    write(tmp_path / ".hidden", 4)
    write(tmp_path, 1)
    (tmp_path / ".also.png").write_bytes(encoded(5))
    (tmp_path / "B.JPEG").write_bytes(encoded(2, kind="JPEG"))
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "deep" / "a.svg").write_text("<svg/>")
    found = folder_pictures(tmp_path)
    assert found.keys == ["001.png", "B.JPEG", "deep/er/003.png"]
    assert found.passed_over == {"not .jpg, .jpeg, .png, .webp": 2}
    assert [found.read(number) for number in (0, 2)] == [encoded(1), encoded(3)]
    assert found.captions == [(), (), ()]


def test_links_must_not_lead_out(tmp_path):
    write(tmp_path / "inside", 1)
    write(tmp_path / "outside", 2)
    inside = tmp_path / "inside"
    (inside / "own.png").symlink_to(inside / "001.png")
    (inside / "secret.png").symlink_to(tmp_path / "outside" / "002.png")
    (inside / "nowhere.png").symlink_to(inside / "none.png")
    (inside / "circle.png").symlink_to(inside / "circle.png")
    (inside / "folder").symlink_to(tmp_path / "outside")
    (inside / "again").symlink_to(inside)
    found = folder_pictures(inside)
    assert found.keys == ["001.png", "own.png"]
    assert found.passed_over == {
        "not .jpg, .jpeg, .png, .webp": 2, "links out of the folder, or no files": 3,
    }  # fmt: skip
    # The folder itself may be a link.
    assert folder_pictures(inside / "folder").keys == ["002.png"]


def test_what_is_no_file_is_never_opened(tmp_path):
    write(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.jpg").mkdir()
    assert folder_pictures(tmp_path).keys == ["001.png"]


def test_a_stamp_changes_with_size_and_time(tmp_path):
    write(tmp_path, 1, 2)
    path = tmp_path / "001.png"
    first = folder_pictures(tmp_path).stamps
    assert folder_pictures(tmp_path).stamps == first
    os.utime(path, ns=(1, 2))
    second = folder_pictures(tmp_path).stamps
    assert second[0] != first[0] and second[1] == first[1]
    path.write_bytes(encoded(1) + b"x")
    os.utime(path, ns=(1, 2))
    assert folder_pictures(tmp_path).stamps[0] != second[0]


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no pictures \(\.jpg"):
        folder_pictures(tmp_path)
    with pytest.raises(ConfigError, match=r"no folder of pictures at .*DATA_DIR/SOURCE"):
        folder_pictures(tmp_path / "none")


def test_of_a_huge_file_no_more_is_read_than_shows_it(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_BYTES * 50)
    data = folder_pictures(tmp_path).read(0)
    assert len(data) == MAX_BYTES + 1 and check(data) == "over 20 MB"


COLLECTION = Collection(
    "sample",
    "records_train",
    ["s/1", "s/2", "s/3"],
    lambda numbers: [encoded(int(number)) for number in numbers],
    "abc",
    captions=["uno", "due", "tre"],
    caption_image=np.array([0, 0, 2], np.int32),
)


def test_records_bring_their_captions():
    found = record_pictures(COLLECTION)
    assert found.keys == ["s/1", "s/2", "s/3"] and found.stamps == ["abc"] * 3
    assert [list(texts) for texts in found.captions] == [["uno", "due"], [], ["tre"]]
    assert found.read(2) == encoded(2)


def test_records_and_folders_are_told_apart(tmp_path, monkeypatch):
    records = tmp_path / "data" / "sample"
    records.mkdir(parents=True)
    (records / "records.json").write_text("{}")
    write(tmp_path / "a:b", 1)
    asked = []

    def opener(*words):
        asked.append(words)
        return COLLECTION

    data = str(tmp_path / "data")
    assert len(open_pictures(str(records), opener).keys) == 3
    open_pictures(f"{records}:train", opener)
    monkeypatch.chdir(records)
    open_pictures(".", opener)
    assert asked == [
        (data, "sample", "validation"), (data, "sample", "train"), (data, "sample", "validation"),
    ]  # fmt: skip
    assert open_pictures(str(tmp_path / "a:b"), opener).keys == ["001.png"]
    with pytest.raises(ConfigError, match="no folder of pictures"):
        open_pictures(f"{tmp_path}/none:train", opener)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"<html><img src=a.jpg></html>", "not a JPEG, PNG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG or WebP"),
        (saved(Image.new("RGB", (9, 9)), "GIF"), "not a JPEG, PNG or WebP"),
        (saved(Image.new("RGB", (9, 9)), "BMP"), "not a JPEG, PNG or WebP"),
        (b"\xff\xd8\xff" + bytes(99), "damaged picture"),
        (encoded(1, (300, 300), "JPEG")[:-200], "damaged picture"),
        (encoded(1, (300, 300), "PNG")[:-40], "damaged picture"),
        (encoded(1, (300, 300), "WEBP")[:-40], "damaged picture"),
        (b"x" * (MAX_BYTES + 1), "over 20 MB"),
    ],
)  # fmt: skip
def test_what_is_no_whole_picture_has_its_reason(data, reason):
    assert check(data) == reason


def test_bombs_are_refused_from_the_header():
    for width, height in ((20_000, 20_000), (10_000, 5_001)):
        bomb = png_bomb(width, height)
        start = time.perf_counter()
        assert check(bomb) == "over 50 megapixels"
        assert time.perf_counter() - start < 0.5  # decoding the larger one takes seconds


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("size", "small"),
    [
        ((900, 600), (384, 256)),
        ((100, 30), (100, 30)),
        ((4000, 500), (1024, 128)),
        ((1, 3000), (1, 1024)),
    ],
)
def test_thumbnails_are_small_and_never_larger_than_the_picture(kind, size, small):
    data = encoded(7, size, kind)
    found = check(data)
    assert isinstance(found, Picture) and found.data == data
    image = opened(found.thumbnail)
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", small)
    np.testing.assert_allclose(np.asarray(image).mean((0, 1)), colour(7), atol=6)


def test_transparent_parts_become_white_for_model_and_people():
    image = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    found = check(saved(image, "PNG"))
    assert isinstance(found, Picture)
    for data in (found.data, found.thumbnail):
        assert np.asarray(opened(data).convert("RGB")).min() > 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_photo_that_lies_on_its_side_is_turned(kind):
    image = Image.new("RGB", (40, 20), (250, 0, 0))
    image.paste((0, 0, 250), (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # its top is at the right
    found = check(saved(image, kind, exif=exif))
    assert isinstance(found, Picture)
    for data in (found.data, found.thumbnail):
        shown = opened(data)
        assert shown.size == (20, 40) and shown.getexif().get(0x0112, 1) == 1
        pixels = np.asarray(shown.convert("RGB"), np.int16)
        assert pixels[5, 10, 0] > 200 and pixels[35, 10, 2] > 200


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (16, 16), (240, 10, 10)), Image.new("RGB", (16, 16), (10, 10, 240))]
    for kind in ("WEBP", "PNG"):
        found = check(saved(frames[0], kind, save_all=True, append_images=frames[1:]))
        assert isinstance(found, Picture)
        assert np.asarray(opened(found.thumbnail))[8, 8, 0] > 200


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "I;16"])
def test_odd_modes_have_thumbnails(mode):
    if mode == "I;16":
        image = Image.fromarray(np.full((9, 9), 40_000, np.uint16))
    else:
        image = Image.new("RGB", (9, 9), (200, 200, 200)).convert(mode)
    found = check(saved(image, "JPEG" if mode == "CMYK" else "PNG"))
    assert isinstance(found, Picture)
    pixels = np.asarray(opened(found.thumbnail))
    assert pixels.shape == (9, 9, 3) and 140 < pixels[4, 4, 0] <= 255


def test_limits_are_those_of_records():
    from clip_italian.data import records

    assert (thumbnails.MAX_BYTES, thumbnails.MAX_PIXELS) == (
        records.MAX_IMAGE_BYTES, records.MAX_IMAGE_PIXELS,
    )  # fmt: skip
