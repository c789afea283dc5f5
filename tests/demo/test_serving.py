"""What visitors leave on the disk, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import requests

from clip_italian.demo import serving
from tests.demo.conftest import free_port, waited_for


@pytest.fixture
def folder(tmp_path):
    """Files in folders of their own, as gradio keeps uploads."""
    for name in ("a", "b", "c"):
        (tmp_path / "uploads" / name).mkdir(parents=True)
    (tmp_path / "uploads" / "a" / "a.png").write_bytes(b"a")
    (tmp_path / "uploads" / "b" / "b.png").write_bytes(b"b")
    (tmp_path / "uploads" / "left over").write_bytes(b"c")
    return tmp_path / "uploads"


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_old_is_deleted_and_what_is_new_stays(folder, monkeypatch):
    everything = below(folder)
    serving.remove_old(folder, 60)
    assert below(folder) == everything
    now = serving.time.time()
    monkeypatch.setattr(serving.time, "time", lambda: now + 100)
    serving.remove_old(folder, 200)
    assert below(folder) == everything
    kept = folder / "b" / "b.png"
    stat = os.lstat

    def fresh(path):
        found = stat(path)
        return os.stat_result([*found[:9], now + 90]) if str(path) == str(kept) else found

    monkeypatch.setattr(serving.os, "lstat", fresh)
    serving.remove_old(folder, 50)
    assert below(folder) == ["b", "b/b.png"]


def test_what_cannot_be_deleted_does_not_keep_the_rest(folder, monkeypatch):
    unlink = os.unlink

    def refuse(path, **more):
        if str(path).endswith("a.png"):
            raise IsADirectoryError(path)
        unlink(path, **more)

    monkeypatch.setattr(serving.os, "unlink", refuse)
    serving.remove_old(folder, -60)
    assert below(folder) == ["a", "a/a.png"]


def test_a_server_that_is_told_to_end_leaves_nothing(drawn, tmp_path):
    """SIGTERM, as systemd and the hub's Spaces send it, while a page is open."""
    port = free_port()
    log = tmp_path / "log"
    places = tmp_path / "tmp"
    places.mkdir()
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.demo.models", str(drawn), str(port)],
            env={**os.environ, "XLA_FLAGS": "", "TMPDIR": str(places)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    address = waited_for(f"http://127.0.0.1:{port}", server, log)
    for field in ("files", "other"):  # gradio has no use for the second
        sent = requests.post(
            f"{address}/gradio_api/upload", files={field: (".", b"photo of a visitor")}, timeout=60
        )
        assert sent.status_code == 200
    opened = threading.Event()

    def page():
        with requests.get(f"{address}/gradio_api/heartbeat/a", stream=True, timeout=60) as stream:
            opened.set()
            stream.content  # noqa: B018 as long as the server says something

    threading.Thread(target=page, daemon=True).start()
    assert opened.wait(30)
    own = [path for path in places.iterdir() if path.name.startswith("clip_italian_demo_")]
    assert len(own) == 1
    kept = [path for path in places.rglob("*") if path.is_file()]
    assert [path for path in kept if path.read_bytes() == b"photo of a visitor"]
    assert all(path.is_relative_to(own[0]) for path in kept if b"photo" in path.read_bytes())
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 128 + signal.SIGTERM, log.read_text()
    left = [path for path in places.rglob("*") if path.is_file()]
    assert not own[0].exists()
    assert not [path for path in left if b"photo of a visitor" in path.read_bytes()]
