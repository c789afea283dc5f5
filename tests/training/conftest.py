"""A run folder with three small checkpoints, to be damaged."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from clip_italian.training.checkpoint import Checkpoints
from clip_italian.training.step import TrainState
from tests.training.test_loop import make_config

STEPS = {4: 0.75, 8: 0.5, 12: None}  # step → metric; kept as the best one, and as the latest two


def state_of(step, width=150):
    values = np.random.default_rng(step).normal(size=(width, width))
    return TrainState(jnp.int32(step), {"w": jnp.asarray(values)}, {}, jnp.zeros(2, jnp.uint32))


@pytest.fixture(scope="session")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    checkpoints = Checkpoints(make_config(folder), "fingerprint")
    for step, score in STEPS.items():
        checkpoints.save(state_of(step), None if score is None else {"score": score})
    checkpoints.close()
    return folder


@pytest.fixture
def workdir(originals, tmp_path):
    shutil.copytree(originals / "checkpoints", tmp_path / "checkpoints")
    return tmp_path
