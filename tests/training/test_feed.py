"""Batches made ahead of the step."""

import threading

import pytest

from clip_italian.training.feed import prefetch


def test_prefetch_runs_ahead_by_its_size_and_hands_on_errors():
    made = []
    waiting = threading.Event()

    def items():
        for number in range(5):
            made.append(number)
            if number == 4:
                waiting.set()
            yield number
        raise OSError("disk gone")

    ahead = prefetch(items(), 3)
    assert next(ahead) == 0
    assert waiting.wait(5)  # 0 was taken, 1 to 3 wait in the queue, 4 is made
    assert [next(ahead) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(OSError, match="disk gone"):
        next(ahead)
