"""What a finished run leaves: numbers with intervals, ranks, curves, galleries."""

import io

import numpy as np
import pytest
from PIL import Image

from clip_italian.collection import Collection
from clip_italian.evaluation import outcome, report, report_tables
from clip_italian.evaluation.languages import naming
from clip_italian.evaluation.retrieval import LabelledSet

LINES = [{"step": 10, "train/loss": 2.0}, {"step": 20, "train/loss": 1.0}]


def speed(step, pairs, memory=1.0, **more):
    rates = {"rate/pairs_per_second": pairs, "rate/data_wait": 0.25, "memory/peak_gb": memory}
    return {"step": step, "train/loss": 1.0, **rates, **more}


def read(images):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "JPEG")
    return [buffer.getvalue() for _ in images]


class PictureSet:
    """Four pictures; the last has two captions."""

    def __init__(self, captions=("uno", "due", "tre", "quattro", "4")):
        self.collection = Collection(
            name="magyar", protocol="records_validation", image_keys=["a", "b", "c", "d"],
            read=read, fingerprint="0f" * 32, captions=captions,
            caption_image=np.array([0, 1, 2, 3, 3], np.int32), labels=np.array([0, 1, 1, 1]),
            class_ids=("n1", "n2"), language="hu",
        )  # fmt: skip
        self.name, self.captions = self.collection.name, self.collection.captions
        self.caption_image, self.labels = self.collection.caption_image, self.collection.labels
        self.class_ids = self.collection.class_ids

    def image_batches(self):
        raise NotImplementedError

    def text_batches(self):
        raise NotImplementedError

    def batches_of(self, texts):
        raise NotImplementedError

    def thumbnails(self, indices):
        return np.zeros((len(indices), 6, 8, 3), np.uint8)


IMAGES = np.eye(4, dtype=np.float32)
TEXTS = IMAGES[[0, 1, 3, 3, 0]]  # the third and the last caption miss


def write(folder, encoded, classify=False, lines=LINES):
    return outcome.write_outcome(
        str(folder), encoded, metrics_lines=lines, phases=[(0, "all")], data_fingerprint="da7a",
        command="python run_hybrid_clip.py", step=20, classify=classify,
    )  # fmt: skip


def test_retrieval_with_intervals_ranks_and_pictures(tmp_path):
    said = write(tmp_path, [(PictureSet(), IMAGES, TEXTS)])
    made, items = report.read(tmp_path)
    (one,) = report.results(made)
    assert (one.model, one.set, one.task) == ("this run", "magyar", "retrieval")
    assert (one.images, one.captions, one.language) == (4, 5, "hu")
    assert (one.data_fingerprint, made["training_data"]) == ("0f" * 32, "da7a")
    assert (one.protocol, made["step"]) == ("records_validation", 20)
    assert one.metrics["text_to_image/R@1"] == pytest.approx(3 / 5)
    low, high = one.intervals["text_to_image/R@1"]
    assert 0 <= low < 3 / 5 < high <= 1
    assert items[0]["text_to_image"].tolist() == [1, 1, 4, 1, 4]
    assert items[0]["text_to_image/cluster"].tolist() == [0, 1, 2, 3, 3]
    assert items[0]["image_to_text/cluster"].tolist() == [0, 1, 2, 3]
    assert one.details["recall_curves"]["text_to_image"][0] == [1, pytest.approx(3 / 5)]
    page = (tmp_path / "gallery_magyar.html").read_text(encoding="utf-8")
    assert "magyar, step 20" in page and '<h2 lang="hu">' in page
    for name in ("gallery_magyar.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    for place in ("curves.png", "gallery_magyar.html", f"run folder: {tmp_path}"):
        assert place in said
    assert "text → image" in said and "60.0 ±" in said


def test_captions_that_are_labels_are_classified_too(tmp_path):
    labels = PictureSet(("gatto", "cane", "cane", "topo", "topo"))
    labels.labels = None  # its captions are all that tells the classes
    texts = IMAGES[[0, 1, 1, 3, 3]]
    write(tmp_path, [(labels, IMAGES, texts)], classify=True)
    made, items = report.read(tmp_path)
    found = report.results(made)
    assert [(one.task, one.variant) for one in found] == [
        ("retrieval", ""), ("zero_shot", "captions, {}"),
    ]  # fmt: skip
    # The third picture, a dog, is like no text: three tied scores put it last of three.
    assert found[1].metrics["zero_shot/acc@1"] == 0.75
    assert items[1]["ranks"].tolist() == [1, 1, 3, 1]
    assert found[1].details["per_class"] == [
        ["gatto", "gatto", 1.0, 1], ["cane", "cane", 0.5, 2], ["topo", "topo", 1.0, 1],
    ]  # fmt: skip


def test_labelled_sets_have_no_gallery(tmp_path):
    pack = naming.plain_pack(["n1", "n2"], ["egy", "kettő"])
    labelled = LabelledSet(PictureSet(), np.array([0, 1, 1, 1]), pack, "hu, {bare}")
    write(tmp_path, [(PictureSet(), IMAGES, TEXTS), (labelled, IMAGES, IMAGES[[0, 1]])])
    made, _ = report.read(tmp_path)
    second = report.results(made)[1]
    assert (second.task, second.variant, second.set) == ("zero_shot", "hu, {bare}", "magyar")
    assert second.metrics["zero_shot/acc@1"] == 0.5
    assert len(list(tmp_path.glob("gallery_*.html"))) == 1


def test_the_speed_of_the_training_is_printed_and_reported(tmp_path):
    lines = [
        *LINES, speed(10, 9000.0, start=0), speed(20, 90.0), speed(30, 110.5, **{"rate/mfu": 0.5}),
        speed(40, 9500.0, start=30), speed(50, 5000.0, memory=3.0), speed(60, 100.0),
    ]  # fmt: skip
    said = write(tmp_path, [(PictureSet(), IMAGES, TEXTS)], lines=lines)
    line = "training:   pairs/s 105.2 · MFU 50.0% · data wait 25.0% · peak memory 3.0 GB"
    assert line in said.splitlines()
    made, _ = report.read(tmp_path)
    # The median of 90, 100, 110.5 and 5000: the first line after each start does not count.
    assert made["speed"]["rate/pairs_per_second"] == 105.25
    rows = dict(report_tables.made_by(made))
    assert rows["training, pairs/s"] == "105.2" and rows["training, peak memory"] == "3.0 GB"


def test_the_speed_of_a_short_run_is_that_of_its_only_line():
    assert outcome.training_speed([speed(1, 7.0, start=0)])["rate/pairs_per_second"] == 7.0
    assert outcome.training_speed(LINES) == {}


def test_without_rates_nothing_is_said_of_speed(tmp_path):
    assert "training:" not in write(tmp_path, [(PictureSet(), IMAGES, TEXTS)])
    assert "speed" not in report.read(tmp_path)[0]
