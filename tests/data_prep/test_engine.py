from collections import Counter
from pathlib import Path

import pytest

from clip_italian.config import ConfigError
from data_prep.engine import Engine


def write(folder: Path, number: int, report=None):
    if report:
        report(Counter(good=number, bad=1))
    (folder / str(number)).write_text("")


def fail(number: int):
    if number == 3:
        raise ConfigError("shard 3 is broken")


@pytest.fixture
def engine(ray_session):
    with Engine() as engine:
        yield engine


def test_every_shard_is_done_once_and_counted(engine, tmp_path, capsys):
    calls = [(tmp_path, number) for number in range(20)]
    done = list(engine.run(write, calls, title="numbers", unit="shard", sizes=[5] * 20))
    assert sorted(done) == list(range(20))
    assert len(list(tmp_path.iterdir())) == 20
    assert "100/100" in capsys.readouterr().err


def test_live_counts_move_the_bar(engine, tmp_path, capsys):
    calls = [(tmp_path, number) for number in (30, 69)]
    assert (
        len(list(engine.run(write, calls, title="live", unit="picture", sizes=[31, 70], live=True)))
        == 2
    )
    shown = capsys.readouterr().err
    assert "101/101" in shown and "98.0% good, bad 2" in shown


def test_an_error_is_raised_as_it_was(engine):
    with pytest.raises(ConfigError, match="shard 3 is broken$"):
        list(engine.run(fail, [(n,) for n in range(6)], title="", unit=""))


def test_nothing_to_do(engine):
    assert list(engine.run(fail, [], title="", unit="")) == []


def test_no_cluster_there_names_the_flag():
    with pytest.raises(ConfigError, match="ray_address = '127.0.0.1:1': no Ray cluster answers"):
        Engine("127.0.0.1:1")
