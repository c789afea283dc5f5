"""The embedded sample: drawn scenes with Italian captions, as a source of records called `sample`.

A *combination* is the unordered set of a scene's (kind, colour) pairs, whatever their sizes,
textures, counts, relation and place. Each validation scene has a combination of its own, and none
of them occurs in training, though every single pair and every word does. As every caption names
kinds and colours of all groups, no validation caption is true of another validation scene.
"""

import io
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm

from clip_italian.data.records import SPLITS, Record, write_records
from data_prep.grammar import captions, noun_phrase
from data_prep.images import difference_hash
from data_prep.scenes import COLORS, PLACES, RELATIONS, SIZES, TEXTURES, Group, Scene, draw_scene
from data_prep.shapes import SHAPES

Combination = frozenset[tuple[str, str]]
SINGLE_EVERY = 3  # one training scene in three has a single group: they are learned first
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = "abcdefghijklmnopqrstuvwxyzàèéìòù0123456789',.;:!?-()"


def make_sample(
    data_dir: str | Path,
    *,
    train_scenes: int = 10_000,
    validation_scenes: int = 500,
    seed: int = 0,
    image_size: int = 64,
) -> None:
    """Writes `<data_dir>/sample/`: records, a tokenizer of its own and the boxes of the objects.

    `boxes.jsonl` has a line for each group of each validation scene: `image_id`, `phrase` (the
    noun phrase that names it) and `boxes`, [left, top, right, bottom] in pixels of each object.
    The result depends on the arguments alone.

    Args:
      data_dir: folder of the sources.
      train_scenes: scenes of the train split.
      validation_scenes: scenes of the validation split, each with a combination of its own.
      seed: of everything drawn at random.
      image_size: side of the pictures in pixels.

    Raises:
      ValueError: more validation scenes than can be held out.
    """
    scenes = plan_scenes(train_scenes, validation_scenes, seed)
    texts = {
        split: [captions(scene, _rng(seed, split, i, "text")) for i, scene in enumerate(planned)]
        for split, planned in scenes.items()
    }
    boxes: list[str] = []

    def draw(split: str) -> Iterator[Record]:
        for i, scene in enumerate(scenes[split]):
            picture, found = draw_scene(scene, image_size, _rng(seed, split, i, "image"))
            record = _record(f"{split}-{i:06d}", picture, texts[split][i])
            if split == "validation":
                boxes.extend(_box_lines(record.image_id, scene, found))
            progress.update()
            yield record

    def add_files(folder: Path, _: Any) -> None:
        tokenizer = train_tokenizer(list(itertools.chain(*texts["train"])))
        (folder / "tokenizer").mkdir()
        for name, contents in tokenizer_files(tokenizer).items():
            (folder / "tokenizer" / name).write_bytes(contents)
        (folder / "boxes.jsonl").write_text("".join(boxes), encoding="utf-8")

    with tqdm(total=train_scenes + validation_scenes, desc="sample", unit="scene") as progress:
        write_records(
            Path(data_dir) / "sample",
            {split: draw(split) for split in SPLITS},
            name="sample",
            also=add_files,
        )


def _record(image_id: str, picture: Image.Image, texts: list[str]) -> Record:
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=90, subsampling=0)
    return Record(
        image=jpeg.getvalue(),
        captions=texts,
        source="sample",
        image_id=image_id,
        license="CC0-1.0",
        image_hash=difference_hash(picture),
    )


def _box_lines(image_id: str, scene: Scene, boxes: list) -> Iterator[str]:
    for group, found in zip(scene.groups, boxes, strict=True):
        line = {"image_id": image_id, "phrase": noun_phrase(group).some(), "boxes": found}
        yield json.dumps(line, ensure_ascii=False) + "\n"


def plan_scenes(train_scenes: int, validation_scenes: int, seed: int) -> dict[str, list[Scene]]:
    """The scenes of both splits, which share no combination.

    Raises:
      ValueError: more validation scenes than half of all combinations of two groups.
    """
    pairs = list(itertools.product(SHAPES, COLORS))
    doubles = list(itertools.combinations(pairs, 2))
    if validation_scenes > len(doubles) // 2:
        raise ValueError(
            f"validation_scenes = {validation_scenes} is not allowed; give at most "
            f"{len(doubles) // 2}, so that training keeps half of the combinations"
        )
    rng = np.random.default_rng([seed, 0])
    doubles = [doubles[i] for i in rng.permutation(len(doubles))]
    held_out, rest = doubles[:validation_scenes], itertools.cycle(doubles[validation_scenes:])
    singles = itertools.cycle([(pairs[i],) for i in rng.permutation(len(pairs))])
    train = (next(rest if i % SINGLE_EVERY else singles) for i in range(train_scenes))
    return {
        "train": [_scene(combination, rng) for combination in train],
        "validation": [_scene(combination, rng) for combination in held_out],
    }


def combination(scene: Scene) -> Combination:
    """What the two splits may not share."""
    return frozenset((group.kind, group.color) for group in scene.groups)


def _scene(pairs: tuple[tuple[str, str], ...], rng: np.random.Generator) -> Scene:
    """A scene with these (kind, colour) pairs; all the rest is random."""
    groups = tuple(
        Group(
            *pairs[i],
            size=str(rng.choice(list(SIZES))),
            texture=str(rng.choice(TEXTURES, p=(0.6, 0.2, 0.2))),
            count=int(rng.choice((1, 2, 3), p=(0.6, 0.25, 0.15))),
        )
        for i in rng.permutation(len(pairs))
    )
    relation = str(rng.choice(RELATIONS)) if len(groups) == 2 else ""
    return Scene(groups, str(rng.choice(list(PLACES))), relation)


def _rng(seed: int, split: str, index: int, use: str) -> np.random.Generator:
    """Randomness of one scene's picture or captions, whatever was drawn before it."""
    return np.random.default_rng([seed, 1, split == "train", index, use == "text"])


def train_tokenizer(texts: list[str], vocab_size: int = 1000) -> Tokenizer:
    """Trains a lower-casing WordPiece tokenizer; the same texts give the same vocabulary.

    Accents stay: è is not e.
    """
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers letters, and so breaks ties, in the random order of a hash table, unless
    # they are there from the start as special tokens.
    letters = [*ALPHABET, *(f"##{letter}" for letter in ALPHABET)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*SPECIAL_TOKENS, *letters], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained = Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token="[UNK]"))
    trained.normalizer, trained.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trained.add_special_tokens(list(SPECIAL_TOKENS))
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return trained


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The tokenizer as the files from which `transformers.AutoTokenizer` loads it."""
    vocabulary = tokenizer.get_vocab()
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": True,
        "strip_accents": False,
        "model_max_length": 512,
        **{f"{name[1:-1].lower()}_token": name for name in SPECIAL_TOKENS},
    }
    words = "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.__getitem__))
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": json.dumps(config, indent=1).encode(),
        "vocab.txt": words.encode(),
    }
