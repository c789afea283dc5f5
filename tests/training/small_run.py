"""A training of the toy encoder in a process of its own, to be killed: see `kills`.

    python -m tests.training.small_run WORKDIR [--pause 0.02] [--cache FOLDER]

Prints `from STEP` when it begins to train, and at the end `done DIGEST`, of all leaves of its last
state.
"""

import argparse
import dataclasses
import hashlib
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import numpy as np

from clip_italian.config import ConfigError
from tests import toy
from tests.training.test_loop import make_config, run

STEPS, SAVE_EVERY, THAW = 60, 5, 23


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds before each batch")
    parser.add_argument("--cache", default="", help="folder of compiled programs")
    given = parser.parse_args()
    if given.cache:
        jax.config.update("jax_compilation_cache_dir", given.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def batches_from(step, skipped):
        print("from", step, flush=True)
        for batch in toy.batches_from(step, skipped):
            time.sleep(given.pause)
            yield batch

    config = make_config(
        given.workdir, vision_thaw_step=THAW, decay_steps=STEPS, ema_decay=0.9, warmup_steps=4
    )
    train = dataclasses.replace(config.train, steps=STEPS, save_every=SAVE_EVERY)
    evaluation = dataclasses.replace(config.eval, eval_every=4 * SAVE_EVERY)
    config = dataclasses.replace(config, train=train, eval=evaluation)
    try:
        state = run(config, until=STEPS, batches_from=batches_from)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    print("done", digest.hexdigest(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
