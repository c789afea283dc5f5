"""The processes of a run: how they start, meet, hear of a preemption, and end all together.

One process runs on each host. `run` starts them through `jax.distributed`, also where there is
one: only then is SIGTERM noticed, by JAX's own handler. A Python handler would take its place,
so there must be none.
"""

import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax._src import xla_bridge
from jax._src.distributed import global_state
from jax.experimental import multihost_utils

from clip_italian.config import ConfigError
from clip_italian.training import files
from clip_italian.training.fellows import (
    MissingProcessError,
    Preempted,
    absent,
    is_first,
    leave,
    named,
    several,
    watching,
)

SAVED = 75  # exit status: saved, the same command goes on (EX_TEMPFAIL of sysexits.h)
INTERRUPTED = 130  # what shells report after Ctrl-C
MEETING_SECONDS = 3600  # for set-up: one host may copy records that another has
_NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_NO_PROXY = "no_grpc_proxy"
logger = logging.getLogger(__name__)
_asked = itertools.count(1)


def run(work: Callable[[], None]) -> int:
    """Starts this process among its fellows, works, and ends in step with them.

    Args:
      work: what every process does.

    Returns:
      Exit status: 0, 75 after `Preempted`, 130 after Ctrl-C.

    Raises:
      ConfigError: as `work` and `start` do. This and any other exception only leaves here where
        there is one process; of several, each ends at once with a status other than 0.
    """
    start()
    status = 0
    try:
        with watching():
            try:
                work()
            except Preempted as stop:
                if is_first():
                    print(stop, flush=True)
                status = SAVED
            meet("the end of the work")  # one that still works may fail: hear of it until then
    except KeyboardInterrupt as error:
        if several():
            leave(error, INTERRUPTED)
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        status = INTERRUPTED
    except BaseException as error:
        if several():
            leave(error, 2 if isinstance(error, ConfigError) else 1)
        raise
    if several():
        jax.distributed.shutdown()  # waits for all: the first process serves the others
    return status


def start() -> None:
    """Joins the processes of this run; alone on this host if nothing names others.

    They are found by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID`, or by what JAX knows of Cloud TPUs, Slurm, Open MPI and Kubernetes. Must come
    before any JAX computation; where one has been, as in a notebook, it only says so.

    Raises:
      ConfigError: some of the three variables are set, but not all, or no numbers; or JAX finds
        only a part of what it must know.
    """
    if jax.distributed.is_initialized():
        return
    if xla_bridge.backends_are_initialized():
        logger.warning("JAX has computed before this run: SIGTERM will end it without a save")
        return
    given = {name: os.environ.get(name) for name in _NAMES}
    if given["JAX_NUM_PROCESSES"] or given["JAX_PROCESS_ID"]:
        numbers = [str(given[name]) for name in _NAMES[1:]]
        if not given["JAX_COORDINATOR_ADDRESS"] or not all(x.isdecimal() for x in numbers):
            raise ConfigError(
                f"{', '.join(_NAMES)}: set all three, the last two as numbers; found {given}"
            )
        count, index = map(int, numbers)
        if index >= count:
            raise ConfigError(
                f"JAX_PROCESS_ID = {index} is not allowed; give 0 to {count - 1} for "
                f"JAX_NUM_PROCESSES = {count}"
            )
        jax.distributed.initialize(
            num_processes=count, process_id=index, cluster_detection_method="deactivate"
        )
    elif not _found_cluster():
        _start_alone()
    if several():
        form = f"%(levelname)s process {jax.process_index()}: %(message)s"
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(form))


def _found_cluster() -> bool:
    """Starts as JAX's own detection says; False if it finds nothing."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if "coordinator_address should be defined" not in str(error):
            raise ConfigError(f"{', '.join(_NAMES)}: set all three; {error}") from error
        return False
    return True


def _start_alone() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jax.config.update("jax_check_proxy_envs", False)
    # Several devices of a CPU would otherwise speak through sockets.
    jax.config.update("jax_cpu_collectives_implementation", None)
    # gRPC asks a proxy even for this host.
    direct = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy", "")
    os.environ[_NO_PROXY] = f"{direct},127.0.0.1".lstrip(",")
    jax.distributed.initialize(
        address, 1, 0, cluster_detection_method="deactivate", coordinator_bind_address=address
    )


def write(path: str, text: str) -> None:
    """Writes a file whole, with its folder, on the first process. Raises `SaveError`."""
    if is_first():
        files.write(epath.Path(path), text)


def total(number: int) -> int:
    """Sum over all processes modulo 2³² of a number of each; all must call it together."""
    if not several():
        return number % 2**32
    parts = multihost_utils.process_allgather(np.uint32(number % 2**32))
    return int(np.sum(parts, dtype=np.uint64)) % 2**32


def preempted() -> bool:
    """Whether all processes should save and end now; all must ask equally often.

    Costs half a microsecond. JAX counts these questions to find one that all processes have yet
    to ask, about a second after any of them was sent SIGTERM: the answer is True to that one only.
    """
    if global_state.preemption_sync_manager is None:
        return False
    return multihost_utils.reached_preemption_sync_point(next(_asked))


def meet(name: str, seconds: float = MEETING_SECONDS) -> None:
    """Waits until all processes have come here; says each minute who has not.

    Args:
      name: of this place; each is met at once in a run.
      seconds: longest wait.

    Raises:
      MissingProcessError: names those that did not come.
    """
    missing = absent(name, seconds) if several() else []
    if missing:
        raise MissingProcessError(f"{named(missing)} did not reach {name} in {seconds:g} s")
