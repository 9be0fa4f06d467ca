import pytest

from tests.sweeps.sweep_cases import InProcess


@pytest.fixture
def started(monkeypatch):
    """Programs train in this process; a list of their command lines."""
    monkeypatch.setattr("sweeps.queue.Process", InProcess)
    monkeypatch.setattr("sweeps.queue.POLL_SECONDS", 0.0)
    monkeypatch.setattr("train._draw", lambda trainer: None)  # half of the time of so short a run
    InProcess.started = []
    return InProcess.started
