"""benchmarks/small_loops.py: its arithmetic, and its measurement of our loop; the others need Stable-Baselines3."""

import pytest

from benchmarks import small_loops
from benchmarks.small_loops import CASES, arithmetic, our_config, work


def test_arithmetic_of_a_dqn_update_is_that_of_its_products():
    layers = [4 * 128, 128 * 128, 128 * 2]
    forward = 2 * 64 * sum(layers)
    backward = forward + 2 * 64 * sum(layers[1:])  # weights, and inputs but the first layer's
    assert (
        arithmetic(CASES["dqn-128"]) == (2 * forward + backward) / 2
    )  # the target's too; an update each other step


@pytest.mark.parametrize("name", CASES)
def test_settings_are_those_of_the_case(name):
    case, config = CASES[name], our_config(CASES[name])
    assert config.env.id == case.env_id and config.replay.n_step == case.n_step
    assert config.replay.batch_size == case.batch and config.replay.replay_ratio * case.steps_per_update == 1
    assert config.reset.strategy == "none"


def test_our_loop_is_timed(monkeypatch):
    monkeypatch.setattr(small_loops, "WARM_UP", 50)
    assert 0 < work("ours", CASES["dqn-128"]._replace(widths=(8, 8), before=60, during=40)) < 1
