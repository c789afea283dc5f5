"""SkyPilot itself reads its task; run by .ci/slow in an environment of its own."""

from pathlib import Path

import pytest

sky = pytest.importorskip("sky", reason="SkyPilot is no dependency; pip install skypilot")
TASK = Path(__file__).parents[2] / "clip_italian" / "launch" / "sky.yaml"


def test_sky_reads_the_task():
    task = sky.Task.from_yaml(str(TASK))
    assert task.num_nodes == 2
    (resources,) = task.resources
    assert resources.use_spot
    assert resources.job_recovery["recover_on_exit_codes"] == [75]
