"""A model with an index → the demo, served."""

import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import uvicorn

from clip_italian.demo import queries
from clip_italian.demo.answers import Answers
from clip_italian.demo.app import make_app
from clip_italian.demo.index import open_index
from clip_italian.demo.words import ITALIAN
from clip_italian.hub.load import LoadedModel, RunEncoder, load_model

KEPT, _SWEEP = 3600.0, 300.0  # seconds that a visitor's file is kept; between looks for old ones
_PATIENCE = 5  # seconds that open pages may delay the end of the server


def open_answers(model: str, index_dir: str, *, name: str) -> Answers:
    """Loads a model (see `hub.load.load_model`) and the index that was made with it.

    Args:
      model: folder or hub id.
      index_dir: the index.
      name: of the model, for people.

    Raises:
      ConfigError: one of them cannot be read, or the index was made with another model.
    """
    return answers_of(dataclasses.replace(load_model(model), name=name), index_dir)


def answers_of(loaded: LoadedModel, index_dir: str, *, exact: bool = True) -> Answers:
    """As `open_answers`, of a model in memory. Compiles it for single pictures and texts."""
    on_device = dataclasses.replace(loaded, params=jax.device_put(loaded.params))
    encoder = RunEncoder(on_device, batch_size=1)
    index = open_index(index_dir, encoder.fingerprint)
    answers = Answers(on_device, encoder, index, exact)
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
    # uvicorn hands SIGTERM on when it is done, which by default ends the process on the spot.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with _visitors_files():
        uvicorn.run(
            make_app(answers, other),
            host=host,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=_PATIENCE,
        )


@contextlib.contextmanager
def _visitors_files() -> Iterator[None]:
    """A folder for all that visitors leave on the disk, which is emptied of what is old."""
    with tempfile.TemporaryDirectory(prefix="clip_italian_demo_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # its own is shared with other programs
        # Gradio keeps files of a form here that it has no use for, and forgets them.
        tempfile.tempdir = folder
        done = threading.Event()

        def sweep() -> None:
            while not done.wait(_SWEEP):
                remove_old(Path(folder), KEPT)

        sweeper = threading.Thread(target=sweep)
        sweeper.start()
        try:
            yield
        finally:
            done.set()
            sweeper.join()
            tempfile.tempdir = None


def remove_old(folder: Path, seconds: float) -> None:
    """Deletes files below a folder that have not changed for so long, and empty folders likewise.

    Gradio's own `delete_cache` knows the files of its form fields only, and stops for good at the
    first that it cannot delete, which a visitor can bring about by the name "." of a file.
    """
    before = time.time() - seconds
    for place, folders, files in os.walk(folder, topdown=False):
        for name, remove in [*((f, os.unlink) for f in files), *((f, os.rmdir) for f in folders)]:
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):  # gone, or a folder that holds newer files
                if os.lstat(path).st_ctime < before:
                    remove(path)
