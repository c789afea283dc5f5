import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from clip_italian.config import ConfigError
from clip_italian.data import sources
from clip_italian.data.collections import open_records, open_tfds
from clip_italian.data.shards import write_shards
from tests.data.conftest import record, smooth_image


def test_records_in_their_order(data_dir):
    found = open_records(str(data_dir), "a")
    assert (found.name, found.protocol, found.language) == ("a", "records_validation", "it")
    assert found.image_keys == [f"a/{n}" for n in range(100, 105)]
    assert found.captions == [f"un {x} {n}" for n in range(100, 105) for x in ("gatto", "cane")]
    assert found.caption_image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert found.caption_image.dtype == np.int32
    assert found.labels is None and list(found.class_ids) == []
    assert found.read(np.array([4, 0])) == [record(104).image, record(100).image]


def test_another_split_and_the_first_images(data_dir):
    found = open_records(str(data_dir), "b", "train", limit=3)
    assert (found.name, found.protocol) == ("b", "records_train")
    assert found.image_keys == ["b/0", "b/1", "b/2"] and len(found.captions) == 6
    assert len(open_records(str(data_dir), "b", "train", limit=9)) == 4


def test_equal_records_have_equal_fingerprints(data_dir):
    wanted = [
        ("a", "validation", 0),
        ("a", "train", 5),
        ("a", "validation", 2),
        ("b", "validation"),
    ]
    prints = [open_records(str(data_dir), *one).fingerprint for one in wanted]
    assert len(set(prints)) == 4 and all(len(found) == 64 for found in prints)
    assert open_records(str(data_dir), "a", limit=5).fingerprint == prints[0]  # it has five


def test_an_unknown_source_is_refused(data_dir):
    with pytest.raises(ConfigError, match=r"no records of 'wit' .*a, b"):
        open_records(str(data_dir), "wit")


def test_remote_records_are_copied_first(data_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    bucket = lambda url: Path(str(url).replace("gs://bucket", str(data_dir)))  # noqa: E731
    monkeypatch.setattr(sources.epath, "Path", bucket)
    remote, local = open_records("gs://bucket", "a"), open_records(str(data_dir), "a")
    assert remote.fingerprint == local.fingerprint and remote.captions == local.captions
    assert list(tmp_path.glob(".cache/clip_italian/records/*/a/records.json"))
    open_records("gs://bucket", "b", data_cache=str(tmp_path / "mine"))
    assert list(tmp_path.glob("mine/*/b/records.json"))


def example(image, label):
    """Serialized example of an image classification set."""
    made = type(parse_example())()
    made.features.feature["image"].bytes_list.value.append(image)
    made.features.feature["label"].int64_list.value.append(label)
    return made.SerializeToString(deterministic=True)


def parse_example():
    from tensorflow_datasets.proto import tf_example_generated_pb2

    return tf_example_generated_pb2.Example()


def png(seed):
    file = io.BytesIO()
    Image.fromarray(smooth_image(seed)).save(file, "PNG")
    return file.getvalue()


LABELS = [2, 0, 0, 2]
NAMES = ["n02", "n03", "n01"]


def write_set(place, name, label, labels=LABELS, first=0):
    """A set of TFDS with one split: pictures first, first + 1, ... and their labels."""
    folder = place / name / "1.0.0"
    folder.mkdir(parents=True)
    records = [example(png(first + n), label) for n, label in enumerate(labels)]
    shards = write_shards(folder, f"{name}-test.array_record", iter(records), 1 << 20)
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder), dataset_name=name, filetype_suffix="array_record"
    )
    split = tfds.core.SplitInfo(
        name="test",
        shard_lengths=[shard["records"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
        filename_template=template,
    )
    image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=tfds.features.FeaturesDict({"image": image, "label": label}),
        split_infos=[split],
        filename_template=template,
        check_data=False,
    )


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=NAMES)
    write_set(place, "shapes", label)
    write_set(place, "painted", label, first=1)
    write_set(place, "labelled", label, labels=[2, 0, 0, 1])
    write_set(place, "named", tfds.features.ClassLabel(names=["n02", "n03", "n04"]))
    write_set(place, "numbers", tfds.features.Scalar(np.int64))
    return str(place)


def test_tfds_classification_sets(tfds_dir):
    found = open_tfds("shapes", "test", tfds_dir)
    assert (found.name, found.protocol, len(found)) == ("shapes_test", "tfds", 4)
    assert found.image_keys == ["0", "1", "2", "3"] and list(found.captions) == []
    assert found.labels.tolist() == LABELS and found.labels.dtype == np.int32
    assert found.class_ids == NAMES
    assert found.read(np.array([3, 0])) == [png(3), png(0)]


def test_tfds_fingerprints_tell_images_labels_and_names_apart(tfds_dir):
    names = ("shapes", "painted", "labelled", "named")
    assert len({open_tfds(name, "test", tfds_dir).fingerprint for name in names}) == 4


def test_tfds_parts_of_a_split(tfds_dir):
    part = open_tfds("shapes:1.0.0", "test[1:3]", tfds_dir)
    assert (part.name, part.labels.tolist()) == ("shapes_1_0_0_test_1_3", [0, 0])
    assert part.read(np.array([0])) == [png(1)]
    assert part.fingerprint != open_tfds("shapes", "test", tfds_dir).fingerprint
    assert part.fingerprint == open_tfds("shapes", "test[1:3]", tfds_dir).fingerprint


def test_tfds_sets_that_cannot_be_used_are_refused(tfds_dir):
    with pytest.raises(ConfigError, match=r"tfds 'none', split 'test': .*none not found"):
        open_tfds("none", "test", tfds_dir)
    with pytest.raises(ConfigError, match=r"split 'train': Unknown split .*tfds build shapes"):
        open_tfds("shapes", "train", tfds_dir)
    with pytest.raises(ConfigError, match=r"'cifar10', split 'test': .*--file_format array_record"):
        open_tfds("cifar10", "test", tfds_dir)
    with pytest.raises(
        ConfigError, match=r"'numbers' has \['image', 'label'\], no image with a class"
    ):
        open_tfds("numbers", "test", tfds_dir)
