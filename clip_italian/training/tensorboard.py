"""TensorBoard's file of a run, written by the thread that logs.

tensorboardX's `SummaryWriter` has a thread of its own: a disk that is full for a moment ends that
one alone, and ten numbers later the training waits for it for ever.
"""

import contextlib
import io
import socket
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter, directory_check
from tensorboardX.summary import scalar

from clip_italian.training import files

_messages: Any = event_pb2  # whose names are made when it is imported
_Event, _SessionLog = _messages.Event, _messages.SessionLog
FLUSH_SECONDS = 120  # in a bucket, each flush sends the whole file again


class Scalars:
    """Curves by step, in a file of their own below a folder."""

    def __init__(self, folder: epath.Path, first_step: int) -> None:
        """Hides what earlier files of the folder say of steps after `first_step`."""
        self._folder = folder
        # A run may go back within the second in which it began, hence the step.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{first_step}"
        with self._explaining():
            directory_check(str(folder))
            self._file = RecordWriter(str(folder / name))
            self._write(_Event(file_version="brain.Event:2"))
            start = _SessionLog(status=_SessionLog.START)
            self._write(_Event(step=first_step + 1, session_log=start))
            self._flush()

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes one number for each curve. Raises `SaveError` where that cannot be."""
        with self._explaining():
            for name, value in numbers.items():
                self._write(_Event(step=step, summary=scalar(name, value)))
            if time.monotonic() >= self._flushed + FLUSH_SECONDS:
                self._flush()

    def close(self) -> None:
        """Writes what is still held back. Raises `SaveError` where that cannot be."""
        with self._explaining():
            self._file.close()

    def _write(self, event: Any) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())

    def _flush(self) -> None:
        self._file.flush()
        self._flushed = time.monotonic()

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        held = io.DEFAULT_BUFFER_SIZE
        what = "TensorBoard's curves, which need"
        return files.explaining(self._folder, lambda: f"{what} {files.room(self._folder, held)}")
