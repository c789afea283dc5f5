"""One process of a toy run, for test_processes: `python -m tests.training.worker JSON`."""

import dataclasses
import json
import os
import signal
import sys
import threading
import time

import jax
import numpy as np

from clip_italian.training import distributed, loop
from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.monitor import Monitor
from clip_italian.training.parallel import make_parallel
from tests import toy
from tests.training.test_loop import make_config

SLOW = 0.2  # seconds a step, where a signal must have time to arrive


def main():
    asked = {"steps": 12, "kind": "mesh", "shard_params": False, "at": 0, "who": 0, "fault": ""}
    asked |= json.loads(sys.argv[1])
    return distributed.run(lambda: work(**asked))


def work(workdir, steps, kind, shard_params, at, who, fault):
    jax.config.update("jax_numpy_rank_promotion", "raise")
    config = make_config(workdir)
    train = dataclasses.replace(config.train, steps=steps, shard_params=shard_params)
    config = dataclasses.replace(config, train=train)
    parallel = make_parallel(kind, shard_params=shard_params)
    here = fault if jax.process_index() == who else ""
    if here == "late":
        time.sleep(600)
    distributed.meet("the start", 3)

    def batches_from(step, skipped):
        for number, batch in enumerate(toy.batches_from(step, skipped), start=step):
            time.sleep(SLOW if fault else 0)
            if number == at:
                strike(here)
            yield jax.tree.map(
                lambda x: np.split(x, parallel.processes)[jax.process_index()], batch
            )

    def evaluate(params):
        rows = toy.batch(0).pixel_values.reshape(16, -1).astype(np.float32)
        encode = parallel.compile_rows(lambda p, x: x @ p["vision_model"]["layer"]["kernel"])
        for name in ("first", "score"):
            if here == "evaluation" and len(read(workdir)) > at:
                strike("term")
                time.sleep(3)
            yield name, float(np.asarray(encode(params, rows)).sum())

    checkpoints = Checkpoints(config, "fingerprint")
    state = loop.start_state(config, parallel, toy.init_params, toy.init_params, checkpoints)
    loop.train(
        config,
        state,
        parallel=parallel,
        apply_fn=toy.apply_fn,
        batches_from=batches_from,
        evaluate=evaluate,
        checkpoints=checkpoints,
        monitor=Monitor(config.train, first_step=int(state.step)),
    )
    if here == "report":
        time.sleep(2)
        raise ValueError("no room for the report")
    print("handler", signal.getsignal(signal.SIGTERM))


def read(workdir):
    path = os.path.join(workdir, "metrics.jsonl")
    if not os.path.exists(path):
        return []
    with open(path) as file:
        return file.read().splitlines()


def strike(fault):
    signals = {
        "term": signal.SIGTERM,
        "kill": signal.SIGKILL,
        "stop": signal.SIGSTOP,
        "interrupt": signal.SIGINT,
    }
    if fault in signals:
        os.kill(os.getpid(), signals[fault])
    if fault == "storm":
        threading.Thread(target=storm, daemon=True).start()
    if fault == "error":
        raise ValueError("no such picture")


def storm():
    """SIGTERM again and again, while the state is being saved as well."""
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
