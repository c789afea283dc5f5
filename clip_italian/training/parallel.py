"""One step function on many devices: a jit over a mesh (default), or pmap."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_italian.config import Config, ConfigError, EvalConfig, TrainConfig

AXIS = "data"
# XLA's default order for CPUs runs products beside one another, which costs them their caches.
ONE_BY_ONE = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
SMALL = 1024  # elements: leaves below it are not worth gathering


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How arrays are laid out and steps compiled.

    State never has a device axis, under either kind, so a checkpoint of one continues under the
    other. It is replicated, or (FSDP-style) split: then each device keeps a part of every large
    parameter, of its moments and its average, and gathers the parameters for the step. Batches
    are split along their rows.

    Attributes:
      kind: "mesh" or "pmap".
      mesh: all devices along the one axis `AXIS`.
      shard_params: whether state is split; mesh only.
    """

    kind: str
    mesh: Mesh
    shard_params: bool = False

    @property
    def devices(self) -> int:
        """Number of devices over all hosts."""
        return self.mesh.size

    @property
    def processes(self) -> int:
        """Number of processes whose devices these are, each with as many."""
        return self.devices // len(self.mesh.local_devices)

    @property
    def axis_name(self) -> str | None:
        """The axis that a step must reduce over itself: only under pmap."""
        return AXIS if self.kind == "pmap" else None

    @property
    def shards(self) -> int:
        """Device shards among the rows that a step sees."""
        return 1 if self.kind == "pmap" else self.devices

    @property
    def replicated(self) -> NamedSharding:
        """The layout of what every device has whole."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def by_row(self) -> NamedSharding:
        """The layout of a global batch: rows split over the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def replicate(self, tree: Any) -> Any:
        """Host or device arrays → arrays on all devices."""
        return jax.device_put(tree, self.replicated)

    def place_rows(self, batch: Any) -> Any:
        """This host's rows (numpy) → global arrays with rows split over all devices."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.by_row, x), batch)

    def place(self, batch: Any) -> Any:
        """This host's rows (numpy) → what a step compiled by `compile` takes."""
        if self.kind == "mesh":
            return self.place_rows(batch)
        local = len(self.mesh.local_devices)
        mapped = jax.tree.map(lambda x: np.reshape(x, (local, -1, *x.shape[1:])), batch)
        return mapped if self.processes == 1 else self.place_rows(mapped)

    def gather(self, tree: Any) -> Any:
        """Inside a step: parameters, or columns of a loss, whole on every device."""
        if self.kind == "pmap":
            return tree
        return jax.lax.with_sharding_constraint(tree, self.replicated)

    def scatter(self, tree: Any) -> Any:
        """Inside a step: gradients where their parameters lie."""
        if not self.shard_params:
            return tree
        return jax.lax.with_sharding_constraint(tree, jax.tree.map(self._layout_of, tree))

    def state_layout(self, state: Any) -> Any:
        """The layout of each leaf of a state (or of its shapes), as a tree."""
        if not self.shard_params:
            return jax.tree.map(lambda _: self.replicated, state)
        return jax.tree.map(self._layout_of, state)

    def _layout_of(self, leaf: Any) -> NamedSharding:
        """Split along its longest axis that the devices divide; small or odd leaves are whole."""
        axes = [i for i, size in enumerate(leaf.shape) if size and size % self.devices == 0]
        if leaf.size < SMALL or not axes:
            return self.replicated
        longest = max(axes, key=lambda i: leaf.shape[i])
        return NamedSharding(self.mesh, PartitionSpec(*[None] * longest, AXIS))

    def place_state(self, state: Any) -> Any:
        """Host or device arrays of a state, alike on all hosts → arrays where they belong."""
        if self.processes == 1:
            return jax.device_put(state, self.state_layout(state))
        return jax.tree.map(_place, state, self.state_layout(state))

    def compile(self, step: Callable) -> Callable:
        """Compiles `step(state, batch) -> (state, metrics)`; the given state's memory is reused."""
        if self.kind == "mesh":
            # A split state comes placed, and the step itself puts it there again.
            whole = None if self.shard_params else self.replicated
            on_cpu = self.mesh.devices.flat[0].platform == "cpu"
            return jax.jit(
                step,
                in_shardings=(whole, self.by_row),
                out_shardings=None if self.shard_params else whole,
                donate_argnums=0,
                compiler_options=ONE_BY_ONE if on_cpu else None,
            )
        return jax.pmap(
            step,
            axis_name=AXIS,
            in_axes=(None, 0),
            out_axes=None,
            devices=list(self.mesh.devices.flat),
            donate_argnums=0,
        )

    def compile_rows(self, function: Callable) -> Callable:
        """Compiles `function(params, rows)` for evaluation, over the mesh under either kind.

        `rows` is a tree of numpy arrays, the whole batch on every host, which places its own part.
        Results are replicated, since every host needs all of them.
        """
        compiled = jax.jit(function, out_shardings=self.replicated)

        def own(x: np.ndarray) -> np.ndarray:
            return np.split(x, self.processes)[jax.process_index()]

        return lambda params, rows: compiled(params, self.place_rows(jax.tree.map(own, rows)))


def _place(leaf: Any, where: NamedSharding) -> jax.Array:
    """One leaf, whole on this host or placed over all already → placed over all.

    Unlike `device_put`, it does not compare what the hosts have: that takes as long as a step.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.device_put(leaf, where)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])


def make_parallel(
    kind: str, devices: Sequence[Any] | None = None, *, shard_params: bool = False
) -> Parallel:
    """A layout over the given devices (default: all of all hosts)."""
    found = list(jax.devices() if devices is None else devices)
    # A host's rows lie side by side, so its devices must.
    found = np.asarray(sorted(found, key=lambda one: one.process_index))
    # Auto: Hugging Face's Flax modules fail under explicit axis types.
    mesh = Mesh(found, (AXIS,), axis_types=(AxisType.Auto,))
    return Parallel(kind, mesh, shard_params)


def start(train: TrainConfig, evaluation: EvalConfig) -> Parallel:
    """The layout of a run over all devices, with the compilation cache on.

    Raises:
      ConfigError: a batch size does not split evenly over the devices, or the devices are not as
        many on every host.
    """
    if jax.local_device_count() * jax.process_count() != jax.device_count():
        raise ConfigError(
            f"JAX_LOCAL_DEVICE_IDS: {jax.local_device_count()} devices in this process, "
            f"{jax.device_count()} in all {jax.process_count()}; give each as many"
        )
    if train.compile_cache:
        folder = str(epath.Path(train.compile_cache).expanduser())
        jax.config.update("jax_compilation_cache_dir", folder)
    layout = make_parallel(train.parallel, shard_params=train.shard_params)
    for name in ("batch_size", "micro_batch"):
        check_batch_size(name, getattr(train, name), layout.devices)
    check_batch_size("eval_batch_size", evaluation.eval_batch_size, layout.devices)
    return layout


def micro_batches_of(config: Config) -> int:
    """Parts of every shard that a step encodes one after another."""
    size = config.train.batch_size
    return size // (config.train.micro_batch or size)


def shares(config: Config, parallel: Parallel) -> int:
    """Parts in which the rows of a batch lie, each with the same number of rows of every group."""
    return parallel.devices * micro_batches_of(config)


def host_part(config: Config, parallel: Parallel) -> dict[str, int]:
    """Which part of every batch this host reads, as the data room's words for it."""
    return {
        "shares": shares(config, parallel),
        "process_index": jax.process_index(),
        "process_count": parallel.processes,
    }


def check_batch_size(name: str, size: int, devices: int) -> None:
    """Raises `ConfigError` unless the global batch splits evenly over the devices."""
    if size % devices:
        near = max(devices, size - size % devices)
        raise ConfigError(
            f"{name} = {size} does not split over {devices} devices; give a multiple of {devices}, "
            f"such as {near}"
        )
