"""One Ray session for all tests of this folder: it takes seconds to start."""

import pytest


@pytest.fixture(scope="session")
def ray_session():
    from data_prep.engine import Engine

    with Engine(workers=2) as engine:
        yield engine
