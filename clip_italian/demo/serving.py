"""A model with an index → the demo, served."""

import dataclasses
import os
import tempfile

import jax
import uvicorn

from clip_italian.demo import queries
from clip_italian.demo.answers import Answers
from clip_italian.demo.app import make_app
from clip_italian.demo.index import open_index
from clip_italian.demo.words import ITALIAN
from clip_italian.hub.load import LoadedModel, RunEncoder, load_model


def open_answers(model: str, index_dir: str, *, tokenizer: str = "") -> Answers:
    """Loads a model (see `hub.load.load_model`) and the index that was made with it.

    Raises:
      ConfigError: one of them cannot be read, or the index was made with another model.
    """
    return answers_of(load_model(model, tokenizer=tokenizer), index_dir)


def answers_of(loaded: LoadedModel, index_dir: str) -> Answers:
    """As `open_answers`, of a model in memory. Compiles it for single pictures and texts."""
    on_device = dataclasses.replace(loaded, params=jax.device_put(loaded.params))
    encoder = RunEncoder(on_device, batch_size=1)
    index = open_index(index_dir, encoder.fingerprint)
    answers = Answers(on_device, encoder, index)
    answers.warm_up()
    queries.check("una stella blu", on_device, ITALIAN, "")  # loads what tells languages apart
    return answers


def serve(answers: Answers, other: Answers | None = None, *, host: str, port: int) -> None:
    """Serves the demo until it is stopped by SIGINT or SIGTERM.

    Args:
      answers: the model and its index.
      other: a second model to compare.
      host: address to listen at; "127.0.0.1" lets only this machine in.
      port: likewise.
    """
    # A folder of its own for uploads: gradio's is shared with other programs.
    with tempfile.TemporaryDirectory(prefix="clip_italian_demo_") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        uvicorn.run(make_app(answers, other), host=host, port=port, log_level="warning")
