"""A drawn sample, models on it, and the demo as a running server."""

import os
import socket
import subprocess
import sys
import time

import pytest
import requests

from data_prep.sample import make_sample
from tests.demo import models

SCENES = 40
SERVER_SECONDS = 240.0  # until it answers, on a busy machine


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder with records of `SCENES` validation scenes and a tokenizer."""
    folder = tmp_path_factory.mktemp("drawn")
    make_sample(folder, train_scenes=60, validation_scenes=SCENES, image_size=32)
    return folder


@pytest.fixture(scope="session")
def answers(drawn, tmp_path_factory):
    """A model with the index of the scenes."""
    return models.one(drawn, tmp_path_factory.mktemp("index") / "one")


@pytest.fixture(scope="session")
def other(drawn, tmp_path_factory):
    """Another model, of the sigmoid loss, with the index of the same scenes."""
    return models.other(drawn, tmp_path_factory.mktemp("index") / "two")


@pytest.fixture(scope="session")
def address(drawn, tmp_path_factory):
    """Address of the demo of both, served by a process of its own."""
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.demo.models", str(drawn), str(port)],
            env={**os.environ, "XLA_FLAGS": ""},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield waited_for(f"http://127.0.0.1:{port}", server, log)
        assert server.poll() is None, "the server is still there"
    finally:
        server.terminate()
        server.wait(60)
    # Gradio's own refusals leave a traceback; of ours none may have failed for want of care.
    assert "a question of the page failed" not in log.read_text(), log.read_text()


def free_port():
    """A port at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def waited_for(address, server, log):
    """The address, as soon as the server answers there."""
    end = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            requests.get(address, timeout=30)
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            return address
    server.kill()
    server.wait()
    raise AssertionError(log.read_text())
