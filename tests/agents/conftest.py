"""What the tests of agents share."""

from functools import partial

import pytest


@pytest.fixture
def untraced(monkeypatch):
    """Updates run under ``vmap``, as those do that cannot be traced: tracing takes most of a short test."""
    monkeypatch.setattr("agents.stack.trace", lambda function, fixed, inputs: partial(function, *fixed))
