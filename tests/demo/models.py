"""Tiny towers with random weights, their index over the drawn sample, and the demo of them.

    python -m tests.demo.models FOLDER PORT

serves two of them: in a process of its own, as gradio leaves event loops and sockets open.
"""

import sys
import tempfile
from pathlib import Path

from clip_italian.config import Config, DataConfig, LossConfig, ModelConfig, resolve
from clip_italian.data.collections import open_records
from clip_italian.data.tokens import load_tokenizer
from clip_italian.demo import building, serving, sources
from clip_italian.hub.load import LoadedModel, RunEncoder
from clip_italian.model.towers import build
from tests.tiny import TINY_BERT, TINY_VIT


def tiny_model(drawn, name, seed, loss="infonce"):
    """Random towers that read the words of the sample in a folder."""
    words = str(drawn / "sample" / "tokenizer")
    vocabulary = len((drawn / "sample/tokenizer/vocab.txt").read_text().splitlines())
    config = Config(
        model=ModelConfig(
            vision_config=TINY_VIT,
            text_config={**TINY_BERT, "vocab_size": vocabulary},
            projection_dim=16,
            tokenizer=words,
        ),
        data=DataConfig(data_dir=str(drawn), max_length=20, reader_threads=2),
        loss=LossConfig(loss=loss),
    )
    model = build(config.model, loss=loss)
    return LoadedModel(name, resolve(config), model, model.init(seed), load_tokenizer(words), 0)


def answers_of(loaded, drawn, folder):
    """A model with an index of the validation scenes, written to a new folder."""
    pictures = sources.record_pictures(open_records(str(drawn), "sample"))
    building.update_index(folder, pictures, RunEncoder(loaded, batch_size=8))
    return serving.answers_of(loaded, str(folder))


def one(drawn, folder):
    """The first model of the demo."""
    return answers_of(tiny_model(drawn, "tiny one", 0), drawn, folder)


def other(drawn, folder):
    """The second one, of the sigmoid loss."""
    return answers_of(tiny_model(drawn, "tiny two", 1, "sigmoid"), drawn, folder)


def main():
    drawn = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        pair = one(drawn, Path(name, "one")), other(drawn, Path(name, "two"))
        serving.serve(*pair, host="127.0.0.1", port=int(sys.argv[2]))


if __name__ == "__main__":
    main()
