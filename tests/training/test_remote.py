"""Checkpoints in a bucket, as far as it goes without one: all but TensorStore's own arrays.

epath's backend for gs:// is fsspec; here it finds a file system in memory where gcsfs would be.
"""

import random

import fsspec
import pytest
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem

from clip_italian import cli
from clip_italian.training import manifest, saved
from clip_italian.training.checkpoint import Checkpoints
from tests.training.test_loop import make_config
from tests.training.test_manifest import delete, flip, of_format_1, truncate


class Bucket(MemoryFileSystem):
    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(originals, monkeypatch):
    """The three checkpoints of `originals` in gs://bucket/run."""
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    gpath._PREFIX_TO_BACKEND["gs"]._get_filesystem.cache_clear()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    place = epath.Path("gs://bucket/run")
    for path in originals.rglob("*"):
        if path.is_file():
            target = place / str(path.relative_to(originals))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    yield place
    gpath._PREFIX_TO_BACKEND["gs"]._get_filesystem.cache_clear()


def payload(bucket, step):
    place = bucket / "checkpoints" / str(step)
    return max((place / n for n in manifest.read(place)), key=lambda path: path.stat().length)


def test_nothing_here_is_local(bucket):
    assert len(Bucket.store) > 30 and type(payload(bucket, 12)).__name__ == "PosixGPath"
    assert str(payload(bucket, 12)).startswith("gs://bucket/run/checkpoints/12/state/")


@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damage_is_found_and_set_aside(bucket, damage, caplog):
    folder = bucket / "checkpoints"
    assert saved.newest_whole(folder) == (12, []) and saved.best(folder, "score") == (4, 0.75)
    damage(payload(bucket, 12), random.Random(0))
    checkpoints = Checkpoints(make_config("gs://bucket/run"), "fingerprint")
    checkpoints.__dict__["_manager"] = None  # it would ask Google
    assert checkpoints.latest_step() == 8
    assert "is DAMAGED and is not used" in caplog.text
    assert saved.steps(folder) == [4, 8]
    (aside,) = (bucket / "damaged").iterdir()
    assert aside.name.startswith("12-") and len(manifest.problems(aside)) == 1


def test_a_checkpoint_is_sealed_under_its_final_name(bucket):
    """In a bucket nothing is renamed at the end."""
    place = bucket / "checkpoints" / "12"
    before = (place / manifest.NAME).read_text()
    (place / manifest.NAME).unlink()
    checkpoints = Checkpoints(make_config("gs://bucket/run"), "fingerprint")
    checkpoints._step = 12
    checkpoints._seal()
    assert (place / manifest.NAME).read_text() == before


def test_one_that_is_not_whole_yet_does_not_count(bucket):
    (bucket / "checkpoints" / "12" / "commit_success.txt").unlink()
    assert saved.steps(bucket / "checkpoints") == [4, 8]


def test_list_and_verify(bucket, capsys):
    of_format_1(bucket / "checkpoints" / "4")
    assert cli.main(["checkpoint", "list", "gs://bucket/run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["step", "4", "8", "12"]
    assert lines[1].endswith("best  no manifest (earlier version)")
    flip(payload(bucket, 8), random.Random(0))
    assert cli.main(["checkpoint", "verify", "gs://bucket/run"]) == 1
    found = capsys.readouterr().out
    assert "step 4: cannot" in found and "step 8: DAMAGED" in found and "step 12: ok" in found
