"""Ray runs the shards: on this machine by default, on a cluster by its address."""

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from clip_italian.config import ConfigError

IN_FLIGHT_PER_CORE = 4
CONNECT_SECONDS = 10
STORE_BYTES = 100 << 20  # results are files; next to nothing goes through Ray's own store
RETRIES = 10  # of a shard whose worker or node died; a bug in our code is not tried again


class Engine:
    """A Ray session, ended with its `with` block; one that is open already is used and stays."""

    def __init__(self, address: str = "", workers: int = 0) -> None:
        """Joins or starts Ray.

        Args:
          address: of a cluster (`auto`, host:port); empty starts one on this machine.
          workers: processes on this machine; 0 takes one per core.

        Raises:
          ConfigError: naming `ray_address`: nobody answers there.
        """
        _check_address(address)
        self._own = not ray.is_initialized()
        if not self._own:
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default
        options: dict[str, Any] = {"address": address}
        if not address:
            options = {
                "address": "local",
                "num_cpus": workers or os.cpu_count(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
            }
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"ray_address = {address!r}: {error}") from error

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        if self._own:
            ray.shutdown()

    def run(
        self,
        function: Callable[..., None],
        calls: Sequence[tuple[Any, ...]],
        *,
        title: str,
        unit: str,
        sizes: Sequence[int] | None = None,
        live: bool = False,
    ) -> Iterator[int]:
        """Calls the function once per shard, in any order and place.

        Args:
          function: importable by the workers; writes files, returns nothing.
          calls: its arguments, a tuple a shard.
          title: what the progress bar says.
          unit: what is counted.
          sizes: units of each shard; one each if not given.
          live: give the function a `report` to be told counts in between, shown with the bar.

        Yields:
          The index of each call that is done.

        Raises:
          Exception: whatever the function raised.
        """
        if not calls:
            return
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        tally = _here(ray.remote(num_cpus=0)(_Tally)).remote() if live else None
        waiting = iter(range(len(calls)))
        running: dict[Any, int] = {}
        limit = IN_FLIGHT_PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        sizes = sizes or [1] * len(calls)
        with tqdm(total=sum(sizes), desc=title, unit=unit, mininterval=0.5) as progress:
            while True:
                while len(running) < limit and (index := next(waiting, None)) is not None:
                    running[remote.remote(function, calls[index], tally)] = index
                if not running:
                    break
                done, _ = ray.wait(list(running), timeout=0.5)
                for task in done:
                    index = running.pop(task)
                    _finish(task)
                    progress.update(0 if tally else sizes[index])
                    yield index
                if tally:
                    _show(progress, ray.get(tally.counts.remote()))


def _check_address(address: str) -> None:
    """Ray itself would try for minutes before it says that nobody is there."""
    host, _, port = address.rpartition(":")
    if not host or "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"ray_address = {address!r}: no Ray cluster answers there ({error}); start one with "
            "`ray start --head`, or leave the address out to work on this machine"
        ) from error


def _call(function: Callable[..., None], arguments: tuple[Any, ...], tally: Any) -> None:
    if tally is None:
        function(*arguments)
    else:
        function(*arguments, report=lambda counts: tally.add.remote(counts))


def _here(actor: Any) -> Any:
    """The actor on this node, which lives as long as the run does; other nodes may die."""
    node = ray.get_runtime_context().get_node_id()
    return actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))


def _finish(task: Any) -> None:
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


class _Tally:
    """Counts from all workers; an actor, so that the bar moves within a shard."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, counts: Counter[str]) -> None:
        self._counts.update(counts)

    def counts(self) -> Counter[str]:
        return self._counts


def _show(progress: Any, counts: Counter[str]) -> None:
    progress.update(counts.total() - progress.n)
    if counts:
        worst = [f"{reason} {n:,}" for reason, n in counts.most_common(4) if reason != "good"]
        good = counts["good"] / counts.total()
        progress.set_postfix_str(", ".join([f"{good:.1%} good", *worst]), refresh=False)
