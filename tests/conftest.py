"""What all tests share: one thread, no GPU unless it is asked for, and a pretended one for the tests that need one.

One thread for PyTorch: the tests' tensors are small, and threads that wait for each other cost more than they do.
``pytest -m gpu`` runs the tests marked ``gpu`` on the card, where there is one. All other calls hide the card, so that
what is promised for the CPU is tested there, and run these tests on a pretended device (tests/pretend_cuda.py).
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when PyTorch is loaded, by the runs that tests start too

import pytest


def _asks_for_the_card(config):
    return config.option.markexpr.startswith("gpu")


def pytest_configure(config):
    if not _asks_for_the_card(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for


def pytest_report_header(config):
    import torch

    if torch.cuda.is_available():
        return f"tests marked gpu: on {torch.cuda.get_device_name()}"
    return "tests marked gpu: on a pretended device"


@pytest.fixture(autouse=True)
def gpu(request, monkeypatch):
    """The pretended device of a test marked ``gpu``; None on a card and for other tests."""
    if request.node.get_closest_marker("gpu") is None:
        yield None
        return
    import torch

    def refuse(message):
        raise AssertionError(message)

    # Else a test of graphs might pass without any.
    monkeypatch.setattr("agents.graphs.warn_once", refuse)
    if torch.cuda.is_available():
        yield None
        return
    from tests.pretend_cuda import Pretended

    with Pretended() as pretended:
        yield pretended
