"""An exported folder → a repository of the Hugging Face hub: one commit, and a tag.

Files that the hub stores apart from git go up one by one before the commit, and it keeps what has
arrived: a push that was stopped goes on when the same command is run again. Each step first looks
at what is there, so that a second run does only what is missing.

In that commit a file is deleted only when an earlier push wrote it (the last commit that touched
it bears our mark) and the folder no longer has it. Everything else on the hub is left as it is.

The token is read by huggingface_hub alone, from HF_TOKEN or from where `hf auth login` keeps it.
"""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session
from huggingface_hub.hf_api import RepoFile

from clip_italian.config import ConfigError
from clip_italian.hub.access import ask, check_token, user_of

_log = logging.getLogger(__name__)
_BRANCH = "main"
_MARK = "Written by `clip-italian export`."  # last line of our commits: what we may delete later
_NEEDED = ("config.json", "model.safetensors")  # no export is without them
# Hidden files, caches and halves of files; what no export writes.
_LEFTOVER = re.compile(
    r"(^|/)(\.|__pycache__/)"
    r"|(~|\.(tmp|temp|part|partial|incomplete|lock|swp|bak|orig|pyc))$"
    r"|\.(tmp|part)[-._/]",
    re.IGNORECASE,
)


def plan(folder: str | os.PathLike[str]) -> list[tuple[str, int]]:
    """All files of an exported folder, as (path in the repository, bytes), sorted by path.

    Every file is in the list: one that should not be pushed is refused, not left out.

    Raises:
      ConfigError: this is no exported folder, or it holds hidden or half-written files, links to
        folders, or what is neither file nor folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{folder} is no folder; name one that `clip-italian export` has written")
    files, refused = [], []
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        # A link to a folder would be passed over: Python does not walk into it.
        if _LEFTOVER.search(name) or not path.is_file():
            refused.append(name)
        else:
            files.append((name, path.stat().st_size))
    missing = sorted(set(_NEEDED) - {name for name, _ in files})
    if missing:
        raise ConfigError(
            f"{folder} holds no {' and no '.join(missing)}; "
            "name a folder that `clip-italian export` has written"
        )
    if refused:
        raise ConfigError(
            f"{folder} holds what no export writes: {_some(sorted(refused))}. "
            "Remove it, or export into a new folder"
        )
    return sorted(files)


def table(files: Sequence[tuple[str, int]]) -> str:
    """The files of `plan` with their sizes and the total, as aligned text."""
    count = f"{len(files)} files" if len(files) > 1 else "1 file"
    rows = [*files, (f"total, {count}", sum(size for _, size in files))]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {_size(size):>9}" for name, size in rows)


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    tag: str = "",
    message: str = "Export with clip-italian",
) -> str:
    """Pushes an exported folder to the main branch of a model repository, as one commit.

    The hub is the one that HF_ENDPOINT names when Python starts; huggingface.co by default.

    Args:
      folder: as for `plan`.
      repo_id: NAME or OWNER/NAME; made if there is none.
      private: whether a repository that is made is private; one that exists stays as it is, and a
        warning is logged where that is not what was asked.
      tag: set on the commit; empty sets none.
      message: title of the commit.

    Returns:
      The address of the commit: of the one that is there when nothing has changed.

    Raises:
      ConfigError: see the message; after an interruption the same call goes on where it was.
    """
    files = plan(folder)
    check_words(repo_id, tag)
    api = HfApi(token=True)  # True: huggingface_hub finds the token itself
    check_token(api)
    try:
        user = user_of(api)
        repo = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        where = f"--push_to_hub {repo} (signed in as {user} at {api.endpoint})"
        ask(where, _open, api, repo, private)
        additions = [CommitOperationAdd(name, Path(folder, name)) for name, _ in files]
        oid = _bring(api, where, repo, additions, message, tag)
        if tag:
            ask(where, _set_tag, api, repo, tag, oid)
        return f"{api.endpoint}/{repo}/commit/{oid}"
    finally:
        get_session().close()  # huggingface_hub keeps its connections open


@dataclasses.dataclass(frozen=True)
class _Difference:
    """What makes the repository at commit `head` differ from the folder."""

    head: str
    changed: list[CommitOperationAdd]  # absent there, or other content
    stale: list[str]  # written by an earlier push, not in the folder
    others: list[str]  # written by somebody else, not in the folder


def _bring(
    api: HfApi,
    where: str,
    repo: str,
    additions: list[CommitOperationAdd],
    message: str,
    tag: str,
) -> str:
    """Makes the main branch hold the files; returns the commit that does."""
    seen = ask(where, _look, api, repo, additions)
    if tag:  # told before anything is sent
        at = ask(where, _tagged, api, repo, tag)
        if at and (at != seen.head or seen.changed or seen.stale):
            raise _taken(repo, tag, at)
    if seen.others:
        _log.warning(
            "%s also holds files that are not of this export: %s", repo, _some(seen.others)
        )
    for addition in seen.changed:
        ask(where, api.preupload_lfs_files, repo, additions=[addition], free_memory=False)
    oid = ask(where, _commit, api, repo, additions, message)
    left_out = ask(where, _look, api, repo, additions, oid).changed
    if left_out:
        raise ConfigError(
            f"{where}: the commit {oid} lacks {_some([one.path_in_repo for one in left_out])}; "
            "does a .gitignore in the repository exclude it? Delete that, and run this again"
        )
    return oid


def _look(
    api: HfApi, repo: str, additions: list[CommitOperationAdd], revision: str = _BRANCH
) -> _Difference:
    head = str(api.repo_info(repo, revision=revision).sha)
    tree = api.list_repo_tree(repo, recursive=True, revision=head)
    there = {item.path: item for item in tree if isinstance(item, RepoFile)}
    changed = [one for one in additions if not _same(one, there.get(one.path_in_repo))]
    # The hub makes .gitattributes; it says which files are stored apart from git.
    extra = set(there) - {one.path_in_repo for one in additions} - {".gitattributes"}
    ours = _ours(api, repo, head) if extra else set()
    return _Difference(head, changed, sorted(extra & ours), sorted(extra - ours))


def _same(addition: CommitOperationAdd, there: RepoFile | None) -> bool:
    if there is None or there.size != addition.upload_info.size:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == addition.upload_info.sha256.hex()
    data = Path(str(addition.path_or_fileobj)).read_bytes()
    return there.blob_id == hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


def _ours(api: HfApi, repo: str, head: str) -> set[str]:
    """Paths whose last commit is of an earlier push."""
    commits = api.list_repo_commits(repo, revision=head)
    pushes = {commit.commit_id for commit in commits if _MARK in commit.message}
    return {
        item.path
        for item in api.list_repo_tree(repo, recursive=True, expand=True, revision=head)
        if item.last_commit is not None and item.last_commit.oid in pushes
    }


def _commit(api: HfApi, repo: str, additions: list[CommitOperationAdd], message: str) -> str:
    """Commits what differs, if anything does; safe to repeat when its answer was lost."""
    seen = _look(api, repo, additions)
    operations = [*seen.changed, *(CommitOperationDelete(path) for path in seen.stale)]
    if not operations:
        return seen.head
    return api.create_commit(
        repo,
        operations,
        commit_message=message,
        commit_description=_MARK,
        parent_commit=seen.head,  # refused when somebody else has committed in between
    ).oid


def _set_tag(api: HfApi, repo: str, tag: str, oid: str) -> None:
    at = _tagged(api, repo, tag)
    if at is None:
        api.create_tag(repo, tag=tag, revision=oid)
    elif at != oid:
        raise _taken(repo, tag, at)


def _tagged(api: HfApi, repo: str, tag: str) -> str | None:
    """The commit that a tag names; None when there is no such tag."""
    if tag not in [ref.name for ref in api.list_repo_refs(repo).tags]:
        return None
    return api.repo_info(repo, revision=tag).sha


def _taken(repo: str, tag: str, at: str) -> ConfigError:
    return ConfigError(
        f"--tag {tag}: {repo} has that tag, at commit {at[:10]}, which is not this export. "
        f"Give another tag, or delete it first: hf repo tag delete {repo} {tag}"
    )


def check_words(repo_id: str, tag: str) -> None:
    if not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", repo_id, re.ASCII):
        raise ConfigError(f"--push_to_hub {repo_id!r} is no repository; give NAME or OWNER/NAME")
    # A part of what git allows; no more is needed, and the hub would refuse it after the upload.
    allowed = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9])?", tag)
    if tag and (not allowed or ".." in tag or tag.endswith(".lock") or tag == _BRANCH):
        raise ConfigError(f"--tag {tag!r} is no name for a tag; give one like v1.0")


def _open(api: HfApi, repo: str, private: bool) -> None:
    """Makes the repository unless there is one; warns when that one is not as was asked."""
    api.create_repo(repo, private=private, exist_ok=True)
    if bool(api.repo_info(repo).private) != private:
        have, want = ("public", "private") if private else ("private", "public")
        _log.warning(
            "%s exists and is %s, not %s: that is left as it is; change it in its settings at %s",
            repo, have, want, f"{api.endpoint}/{repo}/settings",
        )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join([*names[:5], *([f"and {len(names) - 5} more"] if len(names) > 5 else [])])


def _size(count: int) -> str:
    """Bytes for people, as the hub shows them: 1 kB is 1000 bytes."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:  # else three digits would round to 1e+03
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"
