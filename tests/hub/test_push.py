"""Pushing an exported folder, against a server on this machine that speaks the hub's API."""

import gc
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from clip_italian.config import ConfigError
from clip_italian.hub import access
from clip_italian.hub.push import plan, push, table
from tests.hub.hub_server import SIGNATURE, File, Repo, running

ROOT = Path(__file__).resolve().parents[2]
LARGE = ("flax_model.msgpack", "model.safetensors", "onnx/text_model.onnx")  # in order of upload
CANARY = "hf_canaryQxvRtWzKpLmNbJhG"


@pytest.fixture
def waits():
    """Seconds that were waited before trying again, by us and by huggingface_hub."""
    return {"ours": [], "theirs": []}


def all_closed(server):
    """Whatever happened, no connection is left open (the server hears of it a little later)."""
    for wait in (0, 0.01, 0.05, 0.2, 1, 4):
        time.sleep(wait)
        if not server.open:
            break
        if wait >= 0.05:  # an error that was raised and forgotten may still hold one
            gc.collect()
    return server.open == 0 or not collects()


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self):
        self.itself = self


def collects():
    """Whether garbage is collected at all in this process.

    Other tests start Ray, whose own thread may stay for ever in `gc.collect`: then it does nothing
    when anybody else calls it, and a connection that hangs in a cycle stays open.
    """
    seen = weakref.ref(Cycle())
    gc.collect()
    return seen() is None


def test_garbage_is_collected_in_a_process_of_its_own():
    """So that the check of connections is one, where this file is run alone."""
    code = "from tests.hub.test_push import collects; assert collects()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.fixture
def hub(monkeypatch, tmp_path, waits):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(constants, "HF_HOME", str(home))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for module, kept in ((access, waits["ours"]), (_http, waits["theirs"])):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(sleep=kept.append))
    _http.reset_sessions()  # those made before are offline
    with running() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        yield server
        assert all_closed(server)
    _http.reset_sessions()


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "export"
    (root / "onnx").mkdir(parents=True)
    random = np.random.default_rng(0)
    for size, name in zip((150_000, 300_001, 200_000), LARGE, strict=True):
        (root / name).write_bytes(random.bytes(size))
    (root / "config.json").write_text('{"model_type": "vision-text-dual-encoder"}')
    (root / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Perché no?\n")
    (root / "evaluation.json").write_text("{}")
    return root


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pushed(repo):
    """The repository's files, less the one that the hub makes."""
    return {path: data for path, data in repo.data.items() if path != ".gitattributes"}


def times(count, what, method, path):
    """A fault at the first `count` matching requests."""
    left = [count]

    def fault(verb, at):
        if verb == method and path in at and left[0]:
            left[0] -= 1
            return what
        return None

    return fault


@pytest.mark.parametrize("part", [0, 65_536])
@pytest.mark.parametrize("xet", [True, False])
def test_files_arrive_whole_in_one_private_commit_with_a_tag(
    hub, folder, monkeypatch, capfd, part, xet
):
    if xet:
        pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    hub.part = part
    url = push(folder, "squadra/clip", tag="v1.0", message="Primo")
    repo = hub.repos["squadra/clip"]
    assert pushed(repo) == contents(folder)
    assert {path for path, file in repo.head.files.items() if file.lfs} == set(LARGE)
    assert [commit.title for commit in repo.commits] == ["initial commit", "Primo"]
    assert repo.tags == {"v1.0": repo.head.oid}
    assert url == f"{hub.endpoint}/squadra/clip/commit/{repo.head.oid}"
    assert [body["private"] for body in hub.bodies("/repos/create")] == [True]
    # Where xet is installed it is offered, and this hub declines.
    offered = [body["transfers"] for body in hub.bodies("/objects/batch")]
    assert offered == [["basic", "multipart", *(["xet"] if xet else [])]] * 3
    assert len(hub.uploads()) == (3 if not part else 3 + 5 + 4)
    # The token goes to the hub, and not to where it stores large files.
    assert {seen for _, path, seen in hub.seen if not path.startswith("/lfs/")} == {
        "Bearer hf_known"
    }
    assert {seen for _, path, seen in hub.seen if path.startswith("/lfs/")} == {""}
    assert "model.safetensors: 100%" in capfd.readouterr().err


def test_a_new_public_repository_of_ones_own(hub, folder):
    push(folder, "clip", private=False)
    assert list(hub.repos) == ["mario/clip"]
    assert not hub.repos["mario/clip"].private
    assert hub.repos["mario/clip"].tags == {}


def test_a_second_push_sends_nothing(hub, folder, caplog):
    first = push(folder, "clip", tag="v1")
    hub.seen.clear()
    assert push(folder, "clip", tag="v1") == first
    assert len(hub.repos["mario/clip"].commits) == 2
    assert hub.requests("PUT", "") == hub.requests("POST", "/(commit|tag|preupload)/") == []
    assert caplog.messages == []


def test_a_changed_folder_makes_one_commit_more_and_sends_what_changed(hub, folder):
    push(folder, "clip")
    # As long as before: content counts, not size.
    (folder / "config.json").write_text('{"model_type": "vision-text-dual-encoded"}')
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[::-1])
    hub.seen.clear()
    push(folder, "clip")
    repo = hub.repos["mario/clip"]
    assert hub.uploads() == [sha256(path)]
    assert pushed(repo) == contents(folder)
    assert len(repo.commits) == 3
    changed = {name for name, last in repo.head.last.items() if last is repo.head}
    assert changed == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(("what", "tries"), [("drop", 6), (500, 6), (503, 6), (403, 1)])
def test_a_push_that_stops_at_the_second_of_three_large_files_goes_on(
    hub, folder, waits, what, tries
):
    one, two, three = (sha256(folder / name) for name in LARGE)
    hub.fault = lambda method, path: what if method == "PUT" and two in path else None
    with pytest.raises(ConfigError, match="Run the same command again.* has arrived is kept") as e:
        push(folder, "clip", tag="v1")
    assert "Signature" not in "".join(traceback.format_exception(e.value))
    # huggingface_hub tries an upload again itself; what it gives up is not tried by us as well.
    assert hub.uploads() == [one, *[two] * tries]
    assert waits == {"ours": [], "theirs": [1, 2, 4, 8, 8][: tries - 1]}
    repo = hub.repos["mario/clip"]
    assert (len(repo.commits), repo.tags) == (1, {})
    hub.fault = lambda method, path: None
    hub.seen.clear()
    push(folder, "clip", tag="v1")
    assert hub.uploads() == [two, three]
    assert pushed(repo) == contents(folder)
    assert (len(repo.commits), repo.tags) == (2, {"v1": repo.head.oid})


def test_a_push_that_stops_before_the_tag_makes_only_the_tag(hub, folder, waits):
    hub.fault = lambda method, path: 502 if "/tag/" in path else None
    with pytest.raises(ConfigError, match="Run the same command again"):
        push(folder, "clip", tag="v1")
    assert waits["ours"] == [1, 2, 4, 8]
    assert len(hub.requests("POST", "/tag/")) == 5
    repo = hub.repos["mario/clip"]
    assert (len(repo.commits), repo.tags) == (2, {})
    hub.fault = lambda method, path: None
    hub.seen.clear()
    push(folder, "clip", tag="v1")
    assert (len(repo.commits), repo.tags) == (2, {"v1": repo.head.oid})
    assert hub.requests("POST", "/(commit|preupload)/") == hub.uploads() == []


@pytest.mark.parametrize("what", ["lose", 503])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/whoami"),
        ("POST", "/create"),
        ("GET", "/models/mario/clip"),
        ("GET", "/tree/"),
        ("GET", "/refs"),
        ("POST", "/preupload"),
        ("POST", "/batch"),
        ("POST", "/verify"),
        ("POST", "/commit/"),
        ("POST", "/tag/"),
    ],
)
def test_what_fails_once_is_tried_again(hub, folder, waits, what, method, path):
    hub.fault = times(1, what, method, path)
    push(folder, "clip", tag="v1")
    repo = hub.repos["mario/clip"]
    assert pushed(repo) == contents(folder)
    # Also when the answer was lost after the work was done.
    assert (len(repo.commits), repo.tags) == (2, {"v1": repo.head.oid})
    assert repo.private
    assert sorted(hub.uploads()) == sorted(sha256(folder / name) for name in LARGE)
    assert waits == {"ours": [1], "theirs": []}


@pytest.mark.parametrize("what", ["drop", 408, 409, 429, 500, 502, 504])
def test_what_may_be_well_at_the_next_try(hub, folder, waits, what):
    hub.fault = times(3, what, "POST", "/commit/")
    push(folder, "clip")
    repo = hub.repos["mario/clip"]
    assert pushed(repo) == contents(folder)
    assert len(repo.commits) == 2
    assert waits["ours"] == [1, 2, 4]


def test_a_process_that_is_killed(hub, folder, tmp_path):
    """As a person runs it: the hub's address and the token come from the environment."""
    reached, free = threading.Event(), threading.Event()
    one, two, three = (sha256(folder / name) for name in LARGE)

    def fault(method, path):
        if method == "PUT" and two in path and not free.is_set():
            reached.set()
            free.wait(20)
            return "drop"
        return None

    hub.fault, hub.token = fault, CANARY
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": CANARY}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code = f"from clip_italian.hub.push import push; print(push({str(folder)!r}, 'clip', tag='v1'))"
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", code]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
    try:
        assert reached.wait(20)
    finally:
        process.kill()
        said = process.communicate()[1]
    free.set()
    assert hub.uploads() == [one, two]
    hub.seen.clear()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    repo = hub.repos["mario/clip"]
    assert hub.uploads() == [two, three]
    assert pushed(repo) == contents(folder)
    assert (len(repo.commits), repo.tags) == (2, {"v1": repo.head.oid})
    assert done.stdout.decode() == f"{hub.endpoint}/mario/clip/commit/{repo.head.oid}\n"
    assert b"Warning" not in done.stderr
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert CANARY.encode() not in said + done.stderr + kept


def test_a_commit_of_somebody_else_in_between(hub, folder):
    push(folder, "clip")
    repo = hub.repos["mario/clip"]
    theirs = {"notes.md": File(b"mine", False), "config.json": File(b"other", False)}

    def fault(method, path):
        if "/commit/" in path and len(repo.commits) == 2:
            repo.commit("by hand", "", theirs, [])

    hub.fault = fault
    (folder / "README.md").write_text("# Due\n")
    push(folder, "clip", tag="v1", message="Due")
    # Also config.json, which was as in the folder when the push began.
    assert [commit.title for commit in repo.commits[2:]] == ["by hand", "Due"]
    assert pushed(repo) == {**contents(folder), "notes.md": b"mine"}
    assert repo.tags == {"v1": repo.head.oid}


def test_only_what_an_earlier_push_wrote_is_deleted(hub, folder, caplog):
    push(folder, "clip")
    repo = hub.repos["mario/clip"]
    own = {"notes.md": File(b"mine", False), "evaluation.json": File(b"edited", False)}
    repo.commit("by hand", "", own, [])
    for name in ("onnx/text_model.onnx", "flax_model.msgpack", "evaluation.json"):
        (folder / name).unlink()
    push(folder, "clip")
    left = {"notes.md": b"mine", "evaluation.json": b"edited"}
    assert pushed(repo) == {**contents(folder), **left}
    assert ".gitattributes" in repo.data
    assert len(repo.commits) == 4
    warning = "mario/clip also holds files that are not of this export: evaluation.json, notes.md"
    assert warning in caplog.messages


@pytest.mark.parametrize("private", [True, False])
def test_a_repository_that_exists_stays_as_it_is(hub, folder, caplog, private):
    hub.repos["mario/clip"] = Repo(private=not private)
    push(folder, "clip", private=private)
    have, want = ("public", "private") if private else ("private", "public")
    assert f"mario/clip exists and is {have}, not {want}" in caplog.text
    assert f"{hub.endpoint}/mario/clip/settings" in caplog.text
    assert hub.repos["mario/clip"].private is not private
    assert pushed(hub.repos["mario/clip"]) == contents(folder)


@pytest.mark.parametrize("changed", [True, False])
def test_a_tag_that_exists_elsewhere_is_told_before_anything_is_sent(hub, folder, changed):
    push(folder, "clip")
    repo = hub.repos["mario/clip"]
    # At this very commit, which the folder has since left; or at an older one.
    repo.tags["v1"] = repo.commits[-1 if changed else 0].oid
    if changed:
        (folder / "model.safetensors").write_bytes(b"new" * 1000)
    hub.seen.clear()
    with pytest.raises(ConfigError, match=r"--tag v1: .*hf repo tag delete mario/clip v1"):
        push(folder, "clip", tag="v1")
    assert hub.requests("PUT", "") == hub.requests("POST", "/(commit|tag|preupload)/") == []


def test_a_tag_that_somebody_else_sets_in_between(hub, folder):
    def fault(method, path):
        if "/commit/" in path:
            repo = hub.repos["mario/clip"]
            repo.tags["v1"] = repo.commits[0].oid

    hub.fault = fault
    with pytest.raises(ConfigError, match="--tag v1: mario/clip has that tag, at commit"):
        push(folder, "clip", tag="v1")


def test_a_file_that_the_hub_leaves_out_is_told(hub, folder):
    hub.ignored = {"onnx/text_model.onnx"}
    with pytest.raises(ConfigError, match=r"lacks onnx/text_model.onnx; does a .gitignore"):
        push(folder, "clip", tag="v1")
    assert hub.repos["mario/clip"].tags == {}


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="there is none: .*/settings/tokens.*hf auth login.*HF_"):
        push(folder, "clip")
    assert hub.seen == []


def test_the_token_of_hf_auth_login(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)  # push asks for it
    (tmp_path / "home" / "token").write_text("hf_known\n")
    push(folder, "clip")
    assert pushed(hub.repos["mario/clip"]) == contents(folder)


@pytest.mark.parametrize("token", ["hf_kno wn", "hf_knoẁn", "hf_kno\twn"])
def test_a_token_that_no_header_can_carry_is_not_shown(hub, folder, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match="token holds blanks or letters") as error:
        push(folder, "clip")
    assert "hf_kno" not in "".join(traceback.format_exception(error.value))


def test_a_token_that_may_only_read_is_told_before_anything_is_made(hub, folder):
    hub.role = "read"
    with pytest.raises(ConfigError, match="token of mario may only read: make one with write"):
        push(folder, "clip")
    assert [path for _, path, _ in hub.seen] == ["/api/whoami-v2"]
    assert hub.repos == {}


def test_a_fine_grained_token_may_write(hub, folder):
    hub.role = "fineGrained"
    push(folder, "clip")
    assert pushed(hub.repos["mario/clip"]) == contents(folder)


def test_a_token_that_is_not_known(hub, folder, waits):
    hub.token = "hf_other"
    with pytest.raises(ConfigError, match="does not accept the token.*hf auth login.*HF_TOKEN"):
        push(folder, "clip")
    assert waits["ours"] == []


@pytest.mark.parametrize("exists", [True, False])
def test_an_owner_to_whom_the_token_may_not_write(hub, folder, waits, exists):
    hub.refuse = {"anna"}
    if exists:
        hub.repos["anna/clip"] = Repo(private=True)
    with pytest.raises(ConfigError, match=r"anna/clip \(signed in as mario .* may not write there"):
        push(folder, "anna/clip")
    assert hub.requests("PUT", "") == hub.requests("POST", "/commit/") == waits["ours"] == []


@pytest.mark.parametrize("repo", ["a/b/c", "https://huggingface.co/a/b", "a b", "", "/a", "più"])
def test_a_wrong_repository(hub, folder, repo):
    with pytest.raises(ConfigError, match="--push_to_hub .* is no repository; give NAME or OWNER"):
        push(folder, repo)
    assert hub.seen == []


@pytest.mark.parametrize("repo", ["mario/a--b", "mario/a..b", "mario/a.git", "mario/" + "a" * 97])
def test_a_repository_that_only_huggingface_hub_knows_to_be_wrong(hub, folder, repo):
    with pytest.raises(ConfigError, match=f"--push_to_hub {repo} .*refuses: .*[Rr]epo"):
        push(folder, repo)
    assert hub.repos == {}


@pytest.mark.parametrize("tag", ["v 1", "v1/", "-v", "v1..2", "v1.", "x.lock", "v~1", "main"])
def test_a_wrong_tag(hub, folder, tag):
    with pytest.raises(ConfigError, match="--tag .* is no name for a tag"):
        push(folder, "clip", tag=tag)
    assert hub.seen == []


def test_offline(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE .* is set"):
        push(folder, "clip")
    assert hub.seen == []


def test_a_hub_that_cannot_be_reached(hub, folder, waits, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"the hub at http://127.0.0.1:1 cannot be reached"):
        push(folder, "clip")
    assert waits["ours"] == [1, 2, 4, 8]


def test_a_card_that_the_hub_refuses(hub, folder, waits):
    (folder / "README.md").write_text("---\nwrong: metadata\n---\n")
    with pytest.raises(ConfigError, match='refuses: Invalid metadata in README.md. - "license"'):
        push(folder, "clip")
    assert waits["ours"] == []
    assert len(hub.repos["mario/clip"].commits) == 1


def test_xet_carries_large_files_where_the_hub_wants_it(hub, folder, monkeypatch):
    hf_xet = pytest.importorskip("hf_xet")
    hub.xet = True
    broken = [True]

    def upload_files(paths, endpoint, token, refresh, progress, kind):
        assert token == ("xet_known", 4_000_000_000)
        if broken[0]:
            raise RuntimeError("Data processing error: CAS service error")
        for path in paths:
            with open(path, "rb") as file:
                data = file.read()
            hub.stored[hashlib.sha256(data).hexdigest()] = data

    monkeypatch.setattr(hf_xet, "upload_files", upload_files)
    with pytest.raises(ConfigError, match=r"CAS service error.*Run the same command again"):
        push(folder, "clip")
    broken[0] = False
    push(folder, "clip")
    assert pushed(hub.repos["mario/clip"]) == contents(folder)
    assert hub.uploads() == []


def test_the_plan_needs_no_token_and_no_network(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    (folder / "config.json").write_bytes(b"x" * 999)
    (folder / "README.md").write_bytes(b"x" * 1000)
    (folder / "evaluation.json").write_bytes(b"x" * 12_345)
    files = plan(str(folder))
    assert files == [
        ("README.md", 1000),
        ("config.json", 999),
        ("evaluation.json", 12_345),
        ("flax_model.msgpack", 150_000),
        ("model.safetensors", 300_001),
        ("onnx/text_model.onnx", 200_000),
    ]
    assert table(files).splitlines() == [
        "README.md                  1 kB",
        "config.json               999 B",
        "evaluation.json         12.3 kB",
        "flax_model.msgpack       150 kB",
        "model.safetensors        300 kB",
        "onnx/text_model.onnx     200 kB",
        "total, 6 files           664 kB",
    ]
    sizes = {0: "0 B", 999_400: "999 kB", 999_600: "1 MB", 792_680_452: "793 MB", 10**13: "10 TB"}
    for size, text in sizes.items():
        assert " ".join(table([("a", size)]).splitlines()[0].split()[1:]) == text
    assert hub.seen == []


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        ".cache/huggingface/x.json",
        "onnx/.hidden",
        "model.safetensors.tmp",
        "model.safetensors.tmp-1234",
        "model.safetensors.incomplete",
        "README.md~",
        "__pycache__/training_config.pyc",
    ],
)
def test_what_no_export_writes_is_refused(hub, folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(ConfigError, match=f"holds what no export writes: {name}. Remove it"):
        push(folder, "clip")
    assert hub.seen == []


def test_links(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.json").write_text("abc")
    (folder / "vocab.json").symlink_to(tmp_path / "elsewhere" / "a.json")
    assert ("vocab.json", 3) in plan(folder)  # as in the folders of huggingface_hub's cache
    (folder / "more").symlink_to(tmp_path / "elsewhere")
    (folder / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="holds what no export writes: gone, more"):
        plan(folder)


def test_what_is_no_exported_folder(folder, tmp_path):
    with pytest.raises(ConfigError, match="nothing is no folder; name one"):
        plan(tmp_path / "nothing")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"export holds no model.safetensors; name"):
        plan(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"export holds no config.json and no model.safetensors"):
        plan(folder)


def failures(hub, folder, two):
    """Pushes that go wrong in each way; the error of each, as a person would see it."""

    hub.fault = lambda method, path: 500 if method == "PUT" and two in path else None
    yield
    hub.fault = lambda method, path: "drop" if "/commit/" in path else None
    yield
    hub.fault = times(1, "lose", "POST", "/commit/")
    hub.refuse = {"mario"}
    yield
    hub.refuse, hub.role = set(), "read"
    yield
    hub.role, hub.token = "write", "hf_other"
    yield
    hub.token = CANARY


def test_a_canary_token_is_in_no_log_and_no_file(hub, folder, monkeypatch, caplog, capfd, tmp_path):
    monkeypatch.setenv("HF_TOKEN", CANARY)
    monkeypatch.setattr(constants, "HF_DEBUG", True)  # all requests are logged as curl commands
    hub.token = CANARY
    library = logging.getLogger("huggingface_hub")
    monkeypatch.setattr(library, "level", logging.DEBUG)
    library.addHandler(caplog.handler)
    caplog.set_level(logging.DEBUG)
    errors = []
    try:
        for _ in failures(hub, folder, sha256(folder / "model.safetensors")):
            with pytest.raises(ConfigError) as error:
                push(folder, "clip", tag="v1")
            errors.append("".join(traceback.format_exception(error.value)))
        hub.fault = times(1, "lose", "POST", "/commit/")
        push(folder, "clip", tag="v1")
    finally:
        library.removeHandler(caplog.handler)
    assert pushed(hub.repos["mario/clip"]) == contents(folder)
    assert any(seen == f"Bearer {CANARY}" for _, _, seen in hub.seen), "there is one to hide"
    assert "curl" in caplog.text and "api/whoami-v2" in caplog.text, "the logs are caught"
    assert "you sent Bearer ***" in errors[2], "the hub repeats it"
    captured = capfd.readouterr()
    for text in (*errors, caplog.text, captured.out, captured.err):
        assert CANARY[3:] not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    for path in files:
        assert CANARY[3:].encode() not in path.read_bytes(), path
    assert SIGNATURE not in "".join(errors)
