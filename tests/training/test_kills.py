"""Trainings that are killed lose no checkpoint, and come out as if they had not been."""

import pytest

from tests.training.kills import torture


def test_killed_and_started_again(tmp_path):
    counts = torture(tmp_path, kills=2, aimed=1)
    assert counts.kills >= 2 and counts.inside >= 1 and counts.runs >= 1
    assert counts.resumed >= 1


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    counts = torture(tmp_path, kills=100, aimed=30, seed=1)
    assert counts.kills >= 100 and counts.inside >= 30 and counts.runs >= 5
    assert counts.resumed >= 50
