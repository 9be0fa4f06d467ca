import pytest

from tests.sweeps.sweep_cases import LONG, STARTED, InProcess, plan
from training import loop


@pytest.fixture(autouse=True)
def ended():
    """A test that fails leaves no sweep behind."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.terminate()
            process.communicate()
    STARTED.clear()


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """The runs of ``LONG``, never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    for run in plan(folder, LONG).runs:
        loop.train(run.config, folder / "out" / run.folder)
    return folder


@pytest.fixture
def started(monkeypatch):
    """Programs train in this process; a list of their command lines."""
    monkeypatch.setattr("sweeps.queue.Process", InProcess)
    monkeypatch.setattr("sweeps.queue.POLL_SECONDS", 0.0)
    monkeypatch.setattr("train._draw", lambda trainer: None)  # half of the time of so short a run
    InProcess.started = []
    return InProcess.started
