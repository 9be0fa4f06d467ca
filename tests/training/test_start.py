"""What is found before training starts: environments that do not repeat themselves, metrics that do not exist."""

import gymnasium as gym
import numpy as np
import pytest

import train
from tests.training.test_train import SMALL, run, table
from training.checks import metric_names


class Forgetful(gym.Wrapper):
    """CartPole with a disturbance of its own, unseeded: at its reset, at a step, or in its reward."""

    def __init__(self, what):
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.what, self.chance = what, np.random.default_rng()

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        return obs + (self.chance.normal() if self.what == "reset" else 0.0), info

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        obs = obs + (self.chance.normal() if self.what == "step" else 0.0)
        return (
            obs,
            reward + (self.chance.normal() if self.what == "reward" else 0.0),
            terminated,
            truncated,
            info,
        )


class CountsEpisodes(gym.Wrapper):
    """CartPole whose first observation says how many episodes there were."""

    def __init__(self):
        super().__init__(gym.make("CartPole-v1").unwrapped)
        self.count = 0

    def reset(self, **options):
        self.count += 1
        obs, info = self.env.reset(**options)
        return obs + 0.01 * self.count, info


for what in ("reset", "step", "reward"):
    gym.register(
        f"Forgetful{what.title()}-v0", entry_point=Forgetful, kwargs={"what": what}, max_episode_steps=50
    )
gym.register("CountsEpisodes-v0", entry_point=CountsEpisodes, max_episode_steps=50)


@pytest.mark.parametrize(
    "env_id", ["ForgetfulReset-v0", "ForgetfulStep-v0", "ForgetfulReward-v0", "CountsEpisodes-v0"]
)
def test_an_environment_that_does_not_repeat_itself_is_found_at_the_start(env_id, tmp_path, capsys):
    argv = SMALL["dqn"].replace("CartPole-v1", env_id).split()
    assert train.main([*argv, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert env_id in error and "does not repeat itself" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("metric", ["plasticity/q/srnk", "plasticity/critic/srank", "plasticity/*/dormant",
                                    "plasticity_layers/q/dfi/no.such.layer", "reset/q/sfe",
                                    "plasticity/q/stable_rank"])  # fmt: skip
def test_a_metric_that_is_not_measured_is_found_at_the_start(metric, tmp_path, capsys):
    argv = [*SMALL["dqn"].split(), "--reset.trigger.metric", metric, "--run-dir", str(tmp_path / "run")]
    assert train.main(argv) == 2
    error = capsys.readouterr().err
    assert f"reset.trigger.metric {metric}" in error and "did you mean" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algo", SMALL)
def test_every_metric_that_is_measured_can_be_waited_for(algo, tmp_path):
    trainer = run(tmp_path, algo, "--total-steps", "93", "--reset.every", "0", "--log.metrics-every", "30",
                  "--log.expensive-metrics", "true")  # fmt: skip
    known = metric_names(trainer.agent, trainer.config)
    logged = {row[1] for row in table(tmp_path / "scalars.csv") if row[1].startswith("plasticity")}
    assert logged and logged <= known
    of_networks = {key for key in known if key.startswith("plasticity/")}
    # Not measured where there is no double Q-target, or where the loss is not positive.
    absent = {"actor/coadaptation", "q/coadaptation", "actor/optimization_readiness"}
    assert of_networks - logged <= {f"plasticity/{name}" for name in absent}
