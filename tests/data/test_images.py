import gc
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data import augment, images
from clip_italian.data.pixels import ImageError
from clip_italian.data.records import Record, record_image, serialize_record
from tests.data.conftest import jpeg, record, smooth_image

SIZE = 24


def encoded(number, kind):
    file = io.BytesIO()
    Image.fromarray(smooth_image(number)).save(file, kind)
    return file.getvalue()


def serialized(*numbers):
    data = np.empty(len(numbers), object)
    data[:] = [serialize_record(record(number)) for number in numbers]
    return data


def broken(number="0"):
    return serialize_record(Record(b"\xff\xd8\xff" + b"no jpeg at all", ("rotto",), "a", number))


def reader(rows, asked=None):
    """Step s shows records s·rows, s·rows + 1, ... with draws of their own."""

    def read(step):
        if asked is not None:
            asked.append(step)
        uniforms = np.random.default_rng(step).random((rows, augment.NUM_UNIFORMS))
        return serialized(*range(step * rows, (step + 1) * rows)), augment.draw(uniforms, True)

    return read


def take(steps, rows, read=None, first=0, policy="paper", threads=2):
    pixels = images.training_images(
        read or reader(rows), first, rows, augment=policy, image_size=SIZE, threads=threads
    )
    return list(itertools.islice(pixels, steps))


@pytest.mark.parametrize("rows", [3, 16, 37])  # of tasks of 16 pictures
@pytest.mark.parametrize("policy", ["paper", "light", "none"])
def test_every_row_is_its_record_augmented_by_its_draws(rows, policy):
    batches = take(2, rows, first=3, policy=policy)
    for step, batch in enumerate(batches, 3):
        records, draws = reader(rows)(step)
        assert batch.dtype == np.uint8 and batch.shape == (rows, SIZE, SIZE, 3)
        for row in range(rows):
            one = augment.Draws(*(values[row] for values in draws))
            expected = augment.POLICIES[policy](record_image(records[row]), one, SIZE)
            np.testing.assert_array_equal(batch[row], expected)


def test_pixels_do_not_depend_on_threads_or_first_step():
    one = take(4, 20, threads=1)
    np.testing.assert_array_equal(one, take(4, 20, threads=5))
    np.testing.assert_array_equal(one[2:], take(2, 20, first=2))


def test_batches_are_read_in_order_and_only_a_little_ahead():
    asked = []
    take(2, 4, reader(4, asked))
    assert asked == list(range(len(asked))) and 2 <= len(asked) <= 8


def test_batches_taken_are_not_written_to_again():
    batches = take(3, 20)
    kept = [batch.copy() for batch in batches]
    take(3, 20, first=7)
    np.testing.assert_array_equal(batches, kept)


def test_a_broken_record_is_an_error_of_its_own_step():
    def read(step):
        records, draws = reader(20)(step)
        if step == 2:
            records[17] = broken()
        return records, draws

    pixels = images.training_images(read, 0, 20, augment="none", image_size=SIZE, threads=3)
    assert len(list(itertools.islice(pixels, 2))) == 2
    with pytest.raises(ImageError, match="no whole picture"):
        next(pixels)


def test_batches_read_ahead_are_let_go_when_a_pipeline_ends():
    def living():
        gc.collect()
        return sum(isinstance(one, images._Step) for one in gc.get_objects())

    before, asked = living(), []
    pixels = images.training_images(
        reader(4, asked), 0, 4, augment="none", image_size=SIZE, threads=2
    )
    next(pixels)
    pixels.close()
    assert len(asked) > 1 and living() == before


def test_what_reading_raises_is_an_error_of_its_own_step():
    def read(step):
        if step == 1:
            raise OSError("disk gone")
        return reader(4)(step)

    pixels = images.training_images(read, 0, 4, augment="none", image_size=SIZE, threads=2)
    next(pixels)
    with pytest.raises(ImageError, match="disk gone") as raised:
        next(pixels)
    assert isinstance(raised.value.__cause__, OSError)


def test_views_end():
    views = images.image_views(reader(5), 3, 5, augment="light", image_size=SIZE, threads=2)
    np.testing.assert_array_equal(list(views), take(3, 5, policy="light"))


def test_decode_error_says_why():
    whole = serialized(1)[0]
    assert images.decode_error(whole) is None
    assert "no whole picture" in str(images.decode_error(broken()))
    cut = record(1)
    cut = Record(cut.image[:-40], cut.captions, cut.source, cut.image_id)
    assert "no whole picture" in str(images.decode_error(serialize_record(cut)))
    assert images.decode_error(whole[:50])
    assert images.decode_error(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_centre_crops_are_all_images_in_order(kind):
    data = [encoded(number, kind) for number in range(21)]
    names = [str(number) for number in range(21)]
    batches = list(images.centre_crops(lambda n: [data[i] for i in n], names, 32, 9, 2))
    assert [len(batch) for batch in batches] == [9, 9, 3]
    for number, image in enumerate(np.concatenate(batches)):
        square = Image.open(io.BytesIO(data[number])).crop((4, 0, 44, 40))
        expected = np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(image, expected)


def test_no_images_give_no_batches():
    assert list(images.centre_crops(lambda n: [], [], 32, 9, 2)) == []


@pytest.mark.parametrize("bad", [b"", b"no image", jpeg(smooth_image(1))[:-50]])
def test_an_image_that_cannot_be_decoded_is_named(bad):
    data = [encoded(number, "PNG") for number in range(8)]
    data[6] = bad
    crops = images.centre_crops(lambda n: [data[i] for i in n], list("abcdefgh"), 32, 3, 2)
    assert len(next(crops)) == len(next(crops)) == 3
    with pytest.raises(ConfigError, match="image 'g' cannot be decoded"):
        next(crops)
