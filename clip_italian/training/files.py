"""Files of a run folder beside its checkpoints, and what is said where one cannot be written."""

import contextlib
import errno
import re
import shutil
from collections.abc import Callable, Iterator

from etils import epath

from clip_italian.config import ConfigError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class SaveError(ConfigError):
    """Something of a run could not be written; the message names the place and what it needs."""


@contextlib.contextmanager
def explaining(place: epath.Path, what: Callable[[], str]) -> Iterator[None]:
    """Errors of the file system, late ones of asynchronous saves too, say what could be done.

    TensorStore's are `ValueError`s that carry the system's number in their text.

    Args:
      place: where something is written to.
      what: → what it is and needs; asked when that is known to have failed.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        number = re.search(r"os_error_code='(\d+)'", str(error))
        code = int(number[1]) if number else getattr(error, "errno", None)
        if code is None:
            raise
        hint = "make room" if code in _FULL else "mend that"
        raise SaveError(
            f"workdir: {place} does not take {what()}: {error}; "
            f"{hint} and start again: earlier checkpoints are whole"
        ) from error


def room(folder: epath.Path, size: int) -> str:
    """Bytes that are needed and, where that can be said, bytes that a folder's disk has free."""
    with contextlib.suppress(OSError):  # a bucket has no end
        return f"about {size:,} bytes ({shutil.disk_usage(folder).free:,} were free)"
    return f"about {size:,} bytes"


def append(path: epath.Path, text: str) -> None:
    """Writes text at the end of a file whose folder is there. Raises `SaveError`."""
    what = "a line, which needs"
    # The file is closed first: that is when most errors come.
    with explaining(path, lambda: f"{what} {room(path.parent, len(text))}"), path.open("a") as file:
        file.write(text)


def write(path: epath.Path, text: str) -> None:
    """Writes a file, with its folder, whole or not at all. Raises `SaveError`.

    No kill, and no full disk, costs what was there before.
    """
    with explaining(path, lambda: f"its contents, which need {room(path.parent, len(text))}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_name(f"{path.name}.tmp")
        whole.write_text(text)
        whole.replace(path)
