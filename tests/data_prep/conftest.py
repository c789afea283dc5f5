"""One Ray session for all tests of this folder: it takes seconds to start."""

import warnings

import pytest


@pytest.fixture(scope="session")
def ray_session():
    from data_prep.engine import Engine

    with warnings.catch_warnings():
        # Other tests have started JAX in this process, which warns of every fork; Ray's processes
        # do nothing between fork and exec. The program itself starts Ray first.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        engine = Engine(workers=2)
    with engine:
        yield engine
