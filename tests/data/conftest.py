"""A small tokenizer and small sources of records, made anew for each test session."""

import io

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clip_italian.config import Config, DataConfig, EvalConfig, TrainConfig
from clip_italian.data.records import Record, write_records

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
