"""What checkpoints cost a run: how long a save holds it up, and slows it down from behind.

    python -m benchmarks.checkpoints --parameters 200_000_000

The state is one of AdamW: parameters and two moments, random float32, so that they compress as
little as trained ones. Each round saves it once into an empty folder, which is deleted afterwards
(the folder must hold one checkpoint), while steps of a product of matrices on all processors go on:
the worst case, since the steps of an accelerator share fewer of them with the writing. Lost time is
what `save` takes until it returns, and the processor time that is spent behind the steps until the
checkpoint is whole, over the number of processors: other work on the machine does not change that
as it does the clock.
"""

import argparse
import statistics
import tempfile
import time
from typing import Any

from benchmarks import measure

STEPS = (0.1, 0.3, 1.0)  # seconds of the steps that shares are given for


def main() -> None:
    """The command line."""
    parser = measure.parser(__doc__)
    parser.add_argument("--parameters", type=int, default=200_000_000)
    parser.add_argument("--every", type=int, default=500, help="steps between two saves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=2048, help="of the matrices of a step")
    parser.add_argument("--folder", default=None, help="where to write; default: for temporaries")
    arguments = parser.parse_args()
    measure.pin(arguments.threads)
    rounds = run(arguments)
    rows = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    lost = rows["save returns, s"] + rows["CPU s behind the steps"] / arguments.threads
    for step in STEPS:
        rows[f"lost at steps of {step} s, %"] = 100 * lost / (arguments.every * step)
    measure.show(("what", f"median of {len(rounds)}"), rows.items())
    measure.finish(arguments, {"rows": rows, "rounds": rounds})


def run(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """One row of numbers for each round."""
    import jax.numpy as jnp
    import numpy as np

    from clip_italian.training.step import TrainState

    rng, rows = np.random.default_rng(0), 64
    shape = (rows, -(-arguments.parameters // rows))
    part = {name: jnp.asarray(rng.random(shape, np.float32)) for name in ("w", "mu", "nu")}
    state = TrainState(
        jnp.int32(1), {"w": part["w"]}, {"mu": part["mu"], "nu": part["nu"]}, jnp.zeros(2, "uint32")
    )
    step = stand_in(arguments.width)
    found = []
    for number in range(arguments.rounds):
        quiet = [measure.timed(step) for _ in range(8)][1:]
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            found.append(one_save(folder, state, step, quiet))
        measure.say(f"round {number}: {found[-1]}")
    return found


def stand_in(width: int) -> Any:
    """A function that is as long as a step of training."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones((width, width))
    product = jax.jit(lambda x: (x @ x) / width)
    return lambda: product(product(x)).block_until_ready()


def one_save(folder: str, state: Any, step: Any, quiet: list[Any]) -> dict[str, float]:
    """The numbers of one save, and of the verification that a restart begins with."""
    from clip_italian.config import Config, TrainConfig, resolve
    from clip_italian.training import manifest, saved
    from clip_italian.training.checkpoint import Checkpoints

    config = resolve(Config(train=TrainConfig(workdir=folder, steps=2, batch_size=8)))
    checkpoints = Checkpoints(config, "benchmark")
    checkpoints.latest_step()
    write, hashing = manifest.write, []
    manifest.write = lambda place: hashing.append(measure.timed(lambda: write(place)).wall_s)
    try:
        begin, cpu = time.perf_counter(), time.process_time()
        returns = measure.timed(lambda: checkpoints.save(state, None)).wall_s
        steps = []
        while not saved.steps(checkpoints.folder):
            steps.append(measure.timed(step).wall_s)
        whole, cpu = time.perf_counter() - begin, time.process_time() - cpu
        checkpoints.close()
    finally:
        manifest.write = write
    verified = measure.timed(lambda: saved.problems(checkpoints.folder, 1))
    assert verified.result == []
    return {
        "save returns, s": returns,
        "checkpoint is whole after, s": whole,
        "of it SHA-256, s": sum(hashing),
        "steps meanwhile": len(steps),
        "a step before, s": measure.median(quiet),
        "a step meanwhile, s": statistics.median(steps),
        "CPU s behind the steps": cpu - measure.median(quiet, "cpu_s") * len(steps),
        "verification at a restart, s": verified.wall_s,
        "checkpoint, GB": sum(
            seal["bytes"] for seal in manifest.read(checkpoints.folder / "1").values()
        )
        / 1e9,
    }


if __name__ == "__main__":
    main()
