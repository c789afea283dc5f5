"""A Hugging Face hub on this machine: as much of its API as huggingface_hub needs for a push.

Written after what huggingface_hub sends and reads. It checks what it is sent: hashes of uploads,
large files that a commit names but nobody has sent, the commit that a commit is made on.
"""

import base64
import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

USER = "mario"
PAGE = 3  # files in one page of a listing: real ones hold 1000
SIGNATURE = "X-Amz-Signature=secret0signature"


class Refused(Exception):
    """An answer with an error."""

    def __init__(self, status: int, message: str, **more: object) -> None:
        super().__init__(message)
        self.status, self.said = status, {"error": message, **more}


@dataclasses.dataclass
class File:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git(self) -> str:
        """Of the content, or for a large file of the pointer that git holds."""
        data = self.data
        if self.lfs:
            data = f"version 1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclasses.dataclass
class Commit:
    oid: str
    title: str
    message: str
    files: dict[str, File]
    last: dict[str, "Commit"]  # path → the last commit that touched it


class Repo:
    def __init__(self, private: bool) -> None:
        self.private = private
        self.commits: list[Commit] = []
        self.tags: dict[str, str] = {}
        self.commit("initial commit", "", {".gitattributes": File(b"*.bin filter=lfs", False)}, [])

    @property
    def head(self) -> Commit:
        return self.commits[-1]

    @property
    def data(self) -> dict[str, bytes]:
        return {path: file.data for path, file in self.head.files.items()}

    def commit(self, title: str, message: str, added: dict[str, File], deleted: list[str]) -> str:
        oid = hashlib.sha1(f"{id(self)} {len(self.commits)} {title}".encode()).hexdigest()
        old = self.head if self.commits else Commit("", "", "", {}, {})
        files = {path: file for path, file in old.files.items() if path not in deleted} | added
        made = Commit(oid, title, message, files, dict(old.last))
        made.last |= dict.fromkeys(added, made)
        self.commits.append(made)
        return oid

    def at(self, revision: str) -> Commit:
        oid = {"main": self.head.oid, **self.tags}.get(revision, revision)
        found = [commit for commit in self.commits if commit.oid == oid]
        if not found:
            raise Refused(404, f"Invalid rev id: {revision}")
        return found[0]


class Hub(ThreadingHTTPServer):
    """The server; its address is `endpoint`.

    Attributes:
      token: the one that it knows.
      role: what that token may: read, write or fineGrained.
      refuse: owners whose repositories the token may not write to.
      fault: (method, path) → None, a status to answer with, "drop" to close the connection
        in the middle of the request, or "lose" to do what is asked and close it without a word.
      part: bytes of one part of a large upload; 0 takes uploads whole.
      ignored: paths that a .gitignore in the repositories names.
      xet: whether large files go to xet's own store, when that is offered.
      large: bytes from which a file is stored apart from git.
      seen: all requests, as (method, path, authorization header or "").
      asked: bodies of requests in JSON, as (path, body).
      stored: SHA-256 → content of large files.
      open: connections open now.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.token, self.role = "hf_known", "write"
        self.refuse: set[str] = set()
        self.fault: Callable[[str, str], int | str | None] = lambda method, path: None
        self.part, self.large = 0, 1000
        self.ignored: set[str] = set()
        self.xet = False
        self.repos: dict[str, Repo] = {}
        self.seen: list[tuple[str, str, str]] = []
        self.asked: list[tuple[str, dict]] = []
        self.stored: dict[str, bytes] = {}
        self.parts: dict[str, bytes] = {}
        self.open = 0
        self.lock = threading.Lock()

    def requests(self, method: str, path: str) -> list[str]:
        """Paths of the requests that match."""
        return [seen for verb, seen, _ in self.seen if verb == method and re.search(path, seen)]

    def uploads(self) -> list[str]:
        """SHA-256 of each file (or part) sent, in order, those that failed included."""
        return [path.split("/")[2] for path in self.requests("PUT", "^/lfs/")]

    def bodies(self, path: str) -> list[dict]:
        return [body for seen, body in self.asked if re.search(path, seen)]


@contextlib.contextmanager
def running() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open, as the hub's do
    disable_nagle_algorithm = True
    server: Hub

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open += 1

    def finish(self) -> None:
        super().finish()
        with self.server.lock:
            self.server.open -= 1

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        path, authorization = urlsplit(self.path).path, self.headers.get("Authorization", "")
        self.server.seen.append((self.command, path, authorization))
        fault = self.server.fault(self.command, path)
        body = self.rfile.read(length // 2 if fault == "drop" else length)
        if fault == "drop":
            self.close_connection = True
            return
        headers: dict[str, str] = {}
        try:
            if isinstance(fault, int):
                raise Refused(fault, "out of order")
            # An upload goes by its signed address: the token is not for where files are stored.
            if not path.startswith("/lfs/") and authorization != f"Bearer {self.server.token}":
                raise Refused(401, "Invalid credentials in Authorization header")
            with self.server.lock:
                status, said = 200, self.route(path, body, headers)
        except Refused as error:
            status, said = error.status, error.said
            said["error"] += f" (you sent {authorization})"  # the worst that a server can do
        except AssertionError as error:
            status, said = 400, {"error": f"the test's server expects other: {error!r}"}
        if fault == "lose":
            self.close_connection = True
            return
        data = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = answer

    def route(self, path: str, body: bytes, headers: dict[str, str]) -> object:
        """The answer to a request, as JSON."""
        for method, pattern, function in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                parts = [unquote(part) for part in found.groups()]
                if function in (_put, _commit):
                    return function(self, headers, body, *parts)
                sent = json.loads(body) if body else {}
                self.server.asked.append((path, sent))
                return function(self, headers, sent, *parts)
        raise Refused(404, f"no such address: {self.command} {path}")

    def repo(self, name: str, *, write: bool = False) -> Repo:
        if name not in self.server.repos:
            raise Refused(404, "Repository not found")
        if write and (name.split("/")[0] in self.server.refuse or self.server.role == "read"):
            raise Refused(403, "Forbidden: you need write access to this repository")
        return self.server.repos[name]


def _whoami(at, headers, sent):
    auth = {"type": "access_token", "accessToken": {"displayName": "x", "role": at.server.role}}
    return {"type": "user", "name": USER, "orgs": [{"name": "squadra"}], "auth": auth}


def _create(at, headers, sent):
    owner = sent["organization"] or USER
    name = f"{owner}/{sent['name']}"
    if owner in at.server.refuse:
        raise Refused(403, f"You don't have the rights to create a model under {owner}")
    url = {"url": f"{at.server.endpoint}/{name}"}
    if name in at.server.repos:
        raise Refused(409, "You already created this model repo", **url)
    at.server.repos[name] = Repo(sent.get("private", False))
    return url


def _validate(at, headers, sent):
    if "wrong: metadata" in sent["content"]:
        errors = [{"message": '"license" must be one of apache-2.0, mit'}]
        raise Refused(400, "Invalid metadata", errors=errors)
    return {"errors": [], "warnings": []}


def _info(at, headers, sent, name, revision="main"):
    repo = at.repo(name)
    return {"id": name, "sha": repo.at(revision).oid, "private": repo.private}


def _refs(at, headers, sent, name):
    repo = at.repo(name)
    branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.head.oid}
    tags = [
        {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid}
        for tag, oid in repo.tags.items()
    ]
    return {"branches": [branch], "converts": [], "tags": tags}


def _tree(at, headers, sent, name, revision):
    """One page; folders are listed as well as files."""
    query = {key: values[0] for key, values in parse_qs(urlsplit(at.path).query).items()}
    assert query["recursive"] == "True", "else files in folders are not listed"
    commit = at.repo(name).at(revision)
    items: list[dict] = [
        {"type": "directory", "path": folder, "oid": "0" * 40}
        for folder in sorted({path.rpartition("/")[0] for path in commit.files} - {""})
    ]
    for path, file in sorted(commit.files.items()):
        item = {"type": "file", "path": path, "size": len(file.data), "oid": file.git}
        if file.lfs:
            item["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
        if query["expand"] == "True":
            last = commit.last[path]
            date = "2026-01-01T00:00:00.000Z"
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": date}
        items.append(item)
    first = int(query.get("cursor", 0))
    if first + PAGE < len(items):
        place = f"{at.server.endpoint}{urlsplit(at.path).path}"
        more = f"recursive=True&expand={query['expand']}&cursor={first + PAGE}"
        headers["Link"] = f'<{place}?{more}>; rel="next"'
    return items[first : first + PAGE]


def _commits(at, headers, sent, name, revision):
    date = "2026-01-01T00:00:00.000Z"
    return [
        {"id": one.oid, "authors": [{"user": USER}], "date": date}
        | {"title": one.title, "message": one.message}
        for one in reversed(at.repo(name).commits)
    ]


def _preupload(at, headers, sent, name, revision):
    repo = at.repo(name, write=True)
    answers = []
    for file in sent["files"]:
        mode = "lfs" if file["size"] >= at.server.large else "regular"
        answer = {"path": file["path"], "uploadMode": mode}
        answer["shouldIgnore"] = file["path"] in at.server.ignored
        old = repo.head.files.get(file["path"])
        if old:
            answer["oid"] = old.sha256 if old.lfs else old.git
        answers.append(answer)
    return {"files": answers}


def _batch(at, headers, sent, name):
    at.repo(name, write=True)
    objects = []
    for one in sent["objects"]:
        answer = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in at.server.stored:
            place = f"{at.server.endpoint}/lfs/{one['oid']}"
            upload: dict = {"href": f"{place}?{SIGNATURE}"}
            if at.server.part:
                count = -(-one["size"] // at.server.part)
                upload["header"] = {str(n): f"{place}/{n}?{SIGNATURE}" for n in range(1, count + 1)}
                upload["header"]["chunk_size"] = str(at.server.part)
            verify = {"href": f"{at.server.endpoint}/api/verify"}
            answer["actions"] = {"upload": upload, "verify": verify}
        objects.append(answer)
    chosen = "multipart" if at.server.part else "basic"
    if at.server.xet and "xet" in sent["transfers"]:
        chosen = "xet"
    assert chosen in sent["transfers"]
    return {"transfer": chosen, "objects": objects}


def _xet(at, headers, sent, name, revision):
    headers |= {"X-Xet-Cas-Url": at.server.endpoint, "X-Xet-Access-Token": "xet_known"}
    headers |= {"X-Xet-Token-Expiration": "4000000000"}
    return {}


def _put(at, headers, body, oid, part=""):
    assert SIGNATURE in at.path
    if part:
        at.server.parts[f"{oid}/{part}"] = body
        headers["ETag"] = f"part-{part}"
    else:
        _store(at, oid, body)
    return {}


def _complete(at, headers, sent, oid):
    numbers = [one["partNumber"] for one in sent["parts"]]
    assert [one["etag"] for one in sent["parts"]] == [f"part-{n}" for n in numbers]
    _store(at, oid, b"".join(at.server.parts[f"{oid}/{n}"] for n in numbers))
    return {}


def _store(at, oid, data):
    if hashlib.sha256(data).hexdigest() != oid:
        raise Refused(400, "the content has another SHA-256")
    at.server.stored[oid] = data


def _verify(at, headers, sent):
    if len(at.server.stored.get(sent["oid"], b"")) != sent["size"]:
        raise Refused(404, "Object does not exist")
    return {}


def _commit(at, headers, body, name, revision):
    repo = at.repo(name, write=True)
    assert revision == "main"
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[0]["key"] == "header"
    head = lines[0]["value"]
    if head.get("parentCommit", repo.head.oid) != repo.head.oid:
        raise Refused(412, "A commit has happened since. Please refresh and try again.")
    added, deleted = {}, []
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            added[value["path"]] = File(base64.b64decode(value["content"]), lfs=False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in at.server.stored:
                raise Refused(400, f"{value['path']} has not been uploaded")
            added[value["path"]] = File(at.server.stored[value["oid"]], lfs=True)
        else:
            assert line["key"] == "deletedFile"
            deleted.append(value["path"])
    oid = repo.commit(head["summary"], head["description"], added, deleted)
    return {"commitOid": oid, "commitUrl": f"{at.server.endpoint}/{name}/commit/{oid}"}


def _tag(at, headers, sent, name, revision):
    repo = at.repo(name, write=True)
    if sent["tag"] in repo.tags:
        raise Refused(409, "Tag reference exists already")
    repo.tags[sent["tag"]] = repo.at(revision).oid
    return {}


_MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", _whoami),
    ("POST", r"/api/repos/create", _create),
    ("POST", r"/api/validate-yaml", _validate),
    ("GET", _MODEL, _info),
    ("GET", _MODEL + r"/revision/([^/]+)", _info),
    ("GET", _MODEL + r"/refs", _refs),
    ("GET", _MODEL + r"/tree/([^/]+)", _tree),
    ("GET", _MODEL + r"/commits/([^/]+)", _commits),
    ("POST", _MODEL + r"/preupload/([^/]+)", _preupload),
    ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _batch),
    ("GET", _MODEL + r"/xet-write-token/([^/]+)", _xet),
    ("PUT", r"/lfs/([0-9a-f]+)", _put),
    ("PUT", r"/lfs/([0-9a-f]+)/(\d+)", _put),
    ("POST", r"/lfs/([0-9a-f]+)", _complete),
    ("POST", r"/api/verify", _verify),
    ("POST", _MODEL + r"/commit/([^/]+)", _commit),
    ("POST", _MODEL + r"/tag/([^/]+)", _tag),
)
