"""What the processes of a run tell each other: where they are, and that one has failed.

Through the key-value store of `jax.distributed`, which process 0 keeps.
"""

import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from jax._src.distributed import global_state

from clip_italian.config import ConfigError

HANGING_SECONDS = 20  # for a process to fail of itself after another has
SAVING_SECONDS = 40  # and then to close what it has open
ENDING_SECONDS = 30  # for all to come to the end
logger = logging.getLogger(__name__)
_failed = threading.Event()


class Preempted(Exception):
    """The run was asked to end, and all that it needs to go on is saved.

    Attributes:
      step: steps done and saved.
    """

    def __init__(self, step: int) -> None:
        """After `step` steps."""
        done = f"step {step} is saved; the same command goes on from there"
        super().__init__(f"preempted: {done if step else 'no step was done; start it again'}")
        self.step = step


class MissingProcessError(RuntimeError):
    """Another process did not come in time; the message names it."""


def several() -> bool:
    """Whether this run has more than one process."""
    return global_state.num_processes > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return global_state.process_id == 0


def absent(name: str, seconds: float) -> list[int]:
    """Says that this process has come to a place, and waits; who has not come by then."""
    client = _client()
    client.key_value_set(f"clip_italian/{name}/{global_state.process_id}", "here", True)
    begun = said = time.monotonic()
    while True:
        came = {int(key.rpartition("/")[2]) for key, _ in client.key_value_dir_get(_folder(name))}
        missing = sorted(set(range(global_state.num_processes)) - came)
        now = time.monotonic()
        if not missing or now - begun >= seconds:
            return missing
        if now - said >= 60:
            said = now
            logger.warning("waiting for %s at %s", named(missing), name)
        time.sleep(0.1)


def named(numbers: list[int]) -> str:
    listed = ", ".join(map(str, numbers))
    return f"process{'es' if len(numbers) > 1 else ''} {listed} of {global_state.num_processes}"


def _folder(name: str) -> str:
    return f"clip_italian/{name}/"


def _client() -> Any:
    assert global_state.client is not None
    return global_state.client


@contextlib.contextmanager
def telling() -> Iterator[None]:
    """Tells the other processes at once of an exception inside, before what is open is closed."""
    try:
        yield
    except BaseException as error:
        if several() and not isinstance(error, Preempted):
            _tell(error)
        raise


def _tell(error: BaseException) -> None:
    _failed.set()
    reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    # This fails only if process 0 has died; JAX is about to end this one then.
    with contextlib.suppress(Exception):
        _client().key_value_set(f"{_folder('failed')}{global_state.process_id}", reason, True)


def leave(error: BaseException, status: int) -> NoReturn:
    """Ends this process, of several, on an exception.

    Never waits in JAX's own shutdown, which would hang for those that are in a collective.
    """
    if not isinstance(error, ConfigError | KeyboardInterrupt | MissingProcessError):
        traceback.print_exception(error)
    _tell(error)
    _exit(status)


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Ends this process soon after another has failed: it may be waiting for that one for ever.

    Where all have failed, none is waited for.
    """
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            with contextlib.suppress(Exception):
                if not 0 < len(_failures()) < global_state.num_processes:
                    continue
                # One that has failed as well may still be saving.
                if done.wait(SAVING_SECONDS) if _failed.wait(HANGING_SECONDS) else done.is_set():
                    return
                _exit(1)

    if several():
        threading.Thread(target=watch, name="fellows", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _failures() -> list[tuple[int, str]]:
    """Processes that have failed, each with its reason."""
    found = _client().key_value_dir_get(_folder("failed"))
    return sorted((int(key.rpartition("/")[2]), reason) for key, reason in found)


def _exit(status: int) -> NoReturn:
    """Says which processes failed, waits for their fellows, and ends this one."""
    with contextlib.suppress(Exception):
        missing = absent("the end", ENDING_SECONDS)
        for process, reason in _failures():
            print(f"error: process {process}: {reason}", file=sys.stderr)
        if missing:
            print(f"error: {named(missing)} died or hangs: no answer", file=sys.stderr)
    if is_first():
        time.sleep(1)  # JAX ends the others with this one, which serves them
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
