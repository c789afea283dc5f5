"""A small tokenizer and small sources of records, made anew for each test session."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clip_italian.config import Config, DataConfig, EvalConfig, TrainConfig
from clip_italian.data.caption_index import open_or_build
from clip_italian.data.length_groups import one_group
from clip_italian.data.pipeline import Training, make_order
from clip_italian.data.records import Record, write_records
from clip_italian.data.selection import Selection
from clip_italian.data.sources import open_sources

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "gatto", "nero", "cane", "dorme"]


def jpeg(pixels, quality=95):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def smooth_image(seed, height=40, width=48):
    """Random but smooth, so that JPEG and resizing change little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def record(number, source="a", captions=None, **kwargs):
    captions = captions or [f"un gatto {number}", f"un cane {number}"]
    return Record(jpeg(smooth_image(number)), captions, source, str(number), **kwargs)


def make_tokenizer(pad_token="[PAD]"):
    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad_token, unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip


def change(config, **fields):
    """The config with fields of any section changed."""
    for section in dataclasses.fields(config):
        part = getattr(config, section.name)
        own = {name: value for name, value in fields.items() if hasattr(part, name)}
        config = dataclasses.replace(config, **{section.name: dataclasses.replace(part, **own)})
    return config


def open_training(config, tokenizer, *, size=24, plan=None, shares=1, **process):
    """The training split of a config; one length group unless `plan` says otherwise."""
    data, sources = config.data, open_sources(config.data, "train")
    captions = [open_or_build(f, tokenizer, data.max_length, data.data_cache) for f in sources]
    plan = plan or one_group(data.max_length, config.train.batch_size)
    order = make_order(config, sources)
    selection = Selection(config, order, captions, plan, shares=shares, **process)
    return Training(config, sources, selection, size)


NUMBERED = 48


def numbered_record(number):
    """A record that tells its number in pixels, id and tokens; captions of 5 to 14 tokens."""
    digits = [WORDS[5 + number // 4**k % 4] for k in (2, 1, 0)]
    caption = " ".join(["un"] * (number % 10) + digits)
    pixels = np.full((24, 24, 3), 5 * number + 5)
    return Record(jpeg(pixels, 100), [caption], "n", str(number))


def numbers_in_tokens(group):
    """What `numbered_record` wrote into the captions of a token group, int [rows]."""
    ends = group.attention_mask.sum(1) - 1
    digits = group.input_ids[np.arange(len(ends))[:, None], ends[:, None] + [-3, -2, -1]] - 5
    return digits @ [16, 4, 1]


@pytest.fixture(scope="session")
def numbered_dir(tmp_path_factory):
    """Source n: 48 numbered train records."""
    folder = tmp_path_factory.mktemp("numbered")
    write_records(folder / "n", {"train": map(numbered_record, range(NUMBERED))}, name="n")
    return folder


@pytest.fixture
def numbered(config, numbered_dir):
    return change(
        config, data_dir=str(numbered_dir), sources=("n",), weights=(1.0,), max_length=20,
        augment="none", batch_size=16,
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Source a: 10 train and 5 validation records; source b: 4 and 2."""
    folder = tmp_path_factory.mktemp("data")
    for source, train, validation in (("a", 10, 5), ("b", 4, 2)):
        write_records(
            folder / source,
            {
                "train": [record(i, source) for i in range(train)],
                "validation": [record(100 + i, source) for i in range(validation)],
            },
            name=source,
        )
    return folder


@pytest.fixture
def config(data_dir):
    return Config(
        data=DataConfig(
            data_dir=str(data_dir), sources=("a", "b"), weights=(1.0, 2.5), max_length=6,
            augment="paper", reader_threads=2,
        ),
        train=TrainConfig(batch_size=8, seed=3),
        eval=EvalConfig(eval_batch_size=4),
    )  # fmt: skip
