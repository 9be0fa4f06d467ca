"""Learning, in minutes: the committed quick presets reach the scores that results/learning.md reports."""

import csv

import pytest

from configs import loader
from training import loop


def final_return(run_dir, *argv):
    config, _ = loader.load(argv)
    loop.train(config, run_dir)
    with (run_dir / "evaluations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return float(rows[0]["mean_return"]), float(rows[-1]["mean_return"])


@pytest.mark.slow
@pytest.mark.parametrize(("algo", "reset"), [("sac", "none"), ("sac", "fire"), ("td3", "none")])
def test_the_pendulum_is_swung_up(algo, reset, tmp_path):
    argv = (
        "--algo",
        algo,
        "--env",
        "Pendulum-v1",
        "--preset",
        "quick",
        "--reset",
        reset,
        "--eval.episodes",
        "50",
    )
    assert final_return(tmp_path, *argv)[1] >= -200


@pytest.mark.slow
@pytest.mark.parametrize("reset", ["none", "fire"])
def test_dqn_balances_the_pole(reset, tmp_path):
    argv = ("--algo", "dqn", "--env", "CartPole-v1", "--preset", "quick", "--reset", reset)
    assert final_return(tmp_path, *argv)[1] >= 475


@pytest.mark.slow
def test_sac_with_fire_keeps_the_h1_on_its_feet_longer_than_chance(tmp_path):
    argv = ("--algo", "sac", "--env", "h1-walk", "--preset", "quick", "--reset", "fire")
    random, trained = final_return(tmp_path, *argv)
    assert trained >= 2 * random
