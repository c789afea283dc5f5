import pytest

from tests.launch.cloud import Cloud


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    return Cloud(tmp_path / "cloud", monkeypatch)
