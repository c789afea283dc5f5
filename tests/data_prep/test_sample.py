import collections
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from clip_italian.data.records import open_split, parse_record
from data_prep import sample
from data_prep.scenes import COLORS, PLACES, RELATIONS, Group, Scene, draw_scene
from data_prep.shapes import SHAPES, draw_object

RED = (200, 40, 40)
SMALL = {"train_scenes": 60, "validation_scenes": 20, "seed": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sample.make_sample(folder, **SMALL)
    return folder


def read(data_dir, split):
    records = open_split(data_dir, "sample", split)
    return [parse_record(data) for data in records.read(range(len(records)))]


def test_splits_share_no_combination_and_training_has_every_pair():
    scenes = sample.plan_scenes(2000, 500, seed=0)
    train, validation = (
        [sample.combination(scene) for scene in scenes[split]] for split in ("train", "validation")
    )
    assert (len(train), len(validation), len(set(validation))) == (2000, 500, 500)
    assert not set(train) & set(validation)
    assert {pair for combination in train for pair in combination} == {
        (kind, color) for kind in SHAPES for color in COLORS
    }
    assert all(len(combination) == 2 for combination in validation)
    assert collections.Counter(map(len, train)) == {1: 667, 2: 1333}
    places = collections.Counter(scene.place for scene in scenes["train"])
    assert set(places) == set(PLACES) and min(places.values()) > 250
    assert {scene.relation for scene in scenes["validation"]} == set(RELATIONS)


def test_validation_captions_are_distinct_and_all_their_words_occur_in_training():
    scenes = sample.plan_scenes(2000, 500, seed=0)
    texts = {
        split: [
            sample.captions(scene, np.random.default_rng(i))
            for i, scene in enumerate(scenes[split])
        ]
        for split in scenes
    }
    first = [captions[0] for captions in texts["validation"]]
    assert len(set(first)) == 500
    owners = collections.defaultdict(set)
    for i, captions in enumerate(texts["validation"]):
        for caption in captions:
            owners[caption].add(i)
    assert max(map(len, owners.values())) == 1
    words = {split: set(re.findall(r"\w+", str(texts[split]).lower())) for split in texts}
    assert words["validation"] <= words["train"]


def test_too_many_validation_scenes_are_refused():
    with pytest.raises(ValueError, match=r"validation_scenes = 2281 .* at most 2280"):
        sample.plan_scenes(10, 2281, seed=0)


def test_records_are_whole(data_dir):
    train, validation = read(data_dir, "train"), read(data_dir, "validation")
    assert (len(train), len(validation)) == (60, 20)
    assert len({record.image_id for record in train + validation}) == 80
    for record in train + validation:
        assert record.source == "sample" and record.license == "CC0-1.0"
        assert 3 <= len(record.captions) <= 5
        picture = Image.open(io.BytesIO(record.image))
        assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (64, 64))


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(data_dir, tmp_path):
    def contents(folder):
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in (folder / "sample").rglob("*")
            if path.is_file() and path.name not in ("dataset_info.json", "features.json")
        }

    sample.make_sample(tmp_path / "again", **SMALL)
    assert contents(tmp_path / "again") == contents(data_dir)
    sample.make_sample(tmp_path / "other", **{**SMALL, "seed": 4})
    other = contents(tmp_path / "other")
    records = [name for name in other if "array_record" in name]
    assert len(records) == 2
    assert not any(other[name] == contents(data_dir)[name] for name in records)


def test_boxes_frame_the_objects(data_dir):
    lines = (data_dir / "sample" / "boxes.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 40  # two groups in each validation scene
    assert {row["image_id"] for row in rows} == {f"validation-{i:06d}" for i in range(20)}
    numbers = {"due": 2, "tre": 3}
    for row in rows:
        assert len(row["boxes"]) == numbers.get(row["phrase"].split()[0], 1)
        for left, top, right, bottom in row["boxes"]:
            assert -1 <= left < right <= 65 and -1 <= top < bottom <= 65


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_scene_is_drawn_as_its_relation_says(relation):
    groups = (
        Group("stella", "rosso", "grande", "tinta unita", 2),
        Group("uovo", "blu", "piccolo", "tinta unita", 3),
    )
    for seed in range(5):
        rng = np.random.default_rng(seed)
        picture, boxes = draw_scene(Scene(groups, "cielo", relation), 64, rng)
        assert [len(found) for found in boxes] == [2, 3]
        first, second = (np.mean(found, axis=0) for found in boxes)
        axis = 0 if relation in ("sinistra", "destra") else 1
        before = first[axis + 2] <= second[axis]
        after = second[axis + 2] <= first[axis]
        assert (before, after) == (
            relation in ("sinistra", "sopra"),
            relation in ("destra", "sotto"),
        )
        # The middle of a star is painted in its own colour, red above all.
        left, top, right, bottom = boxes[0][0]
        red, green, blue = picture.getpixel((int(left + right) // 2, int(top + bottom) // 2))
        assert red > 2 * max(green, blue)


@pytest.mark.parametrize("kind", sorted(SHAPES))
def test_every_kind_fills_its_box_and_looks_unlike_the_others(kind):
    tiles = {
        other: np.asarray(draw_object(other, RED, "tinta unita", 60).getchannel("A")) > 0
        for other in sorted(SHAPES)
    }
    assert tiles[kind].mean() > 0.25
    for other, mask in tiles.items():
        common = (mask & tiles[kind]).sum() / (mask | tiles[kind]).sum()
        # The broad outline grows silhouettes alike; lines and shade inside them differ besides.
        assert common < 0.9 or other == kind, (other, common)


def test_tokenizer_loads_with_transformers_and_keeps_accents(data_dir):
    from transformers import AutoTokenizer, BertTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(data_dir / "sample" / "tokenizer")
    assert isinstance(tokenizer, BertTokenizerFast)
    assert tokenizer.pad_token_id == 0
    tokens = tokenizer.tokenize("La casa rossa è SOPRA l'albero, perché no?")
    assert tokens[:7] == ["la", "casa", "rossa", "è", "sopra", "l", "'"]
    assert tokenizer.unk_token not in tokenizer.tokenize("Perché così? Più giù, 12 (virtù).")
    ids = tokenizer("una casa").input_ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "una casa"


def test_the_vocabulary_does_not_depend_on_the_process(data_dir):
    # The trainer numbers letters in the order of a randomly seeded hash table: three tries differ.
    texts = ["una casa rossa a sinistra degli alberi", "due specchi gialli sopra l'uovo"]
    vocabularies = [sample.train_tokenizer(texts, 180).get_vocab() for _ in range(3)]
    assert vocabularies[0] == vocabularies[1] == vocabularies[2]
