"""The script that runs on each worker, run here."""

import shutil
import subprocess
import time

import pytest

from clip_italian.launch.gcloud import WORKER


@pytest.fixture
def worker(tmp_path):
    """Calls a step; standard output, or an error."""
    shutil.copy(WORKER, tmp_path)

    def call(*words: str, stdin: str = "") -> str:
        done = subprocess.run(
            ["bash", "worker.sh", *words],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    return call


def wait_for(path):
    deadline = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.02)


def test_tokens_arrive_whole_or_not_at_all(worker, tmp_path):
    worker("secrets", stdin="HF_TOKEN=one\n# end\n")
    for cut in (
        "",
        "HF_TOKEN=tw",
    ):  # gcloud calls again after a broken ssh: nothing is left to read
        with pytest.raises(subprocess.CalledProcessError):
            worker("secrets", stdin=cut)
    assert (tmp_path / "secrets").read_text() == "HF_TOKEN=one\n# end\n"
    assert [path.name for path in tmp_path.glob("secrets*")] == ["secrets"]


def test_a_repeated_start_starts_nothing(worker, tmp_path):
    words = ("start", "1", "bash", "-c", "echo once >> runs; exit 75")
    worker(*words)
    wait_for(tmp_path / "attempts/1/status")
    assert worker(*words) == "started already\n"
    assert (tmp_path / "runs").read_text() == "once\n"
    assert worker("status", "1", "5") == "exit status 75\n"
    assert worker("probe") == "attempt 1 ended\n"


def test_the_newest_attempt_is_found_by_number(worker, tmp_path):
    assert worker("probe") == "attempt 0 ended\n"
    for number in range(1, 12):
        (tmp_path / "attempts" / str(number)).mkdir(parents=True)
    assert worker("probe") == "attempt 11 ended\n"
    assert worker("status", "11", "0") == "exit status lost\n"


def test_a_shutdown_lets_the_training_save_and_keeps_its_status(worker, tmp_path):
    saves = "trap 'touch saved; exit 75' TERM; touch up; while :; do sleep 0.05; done"
    worker("start", "1", "bash", "-c", saves)
    wait_for(tmp_path / "up")
    assert worker("probe") == "attempt 1 running\n"
    assert worker("status", "1", "0") == "exit status running\n"
    worker("stop", "1")
    assert (tmp_path / "saved").exists()
    assert worker("status", "1", "0") == "exit status 75\n"


def test_the_log_is_followed_from_a_line_on_with_its_last_line_whole(worker, tmp_path):
    worker(
        "start", "1", "bash", "-c", "echo a; touch up; printf 'b\\tc\\n\\n'; sleep 0.2; printf end"
    )
    wait_for(tmp_path / "up")
    assert worker("follow", "1", "2") == "2\tb\tc\n3\t\n4\tend\n"
