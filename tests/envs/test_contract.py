"""Environments of other ages and habits: one line that names them and what is missing."""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

import train
from envs import EnvError, make_vec
from tests.training.test_train import SMALL


class Good(gym.Env):
    """Keeps the contract; each class below breaks it at one place."""

    def __init__(self):
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, False, {}


class ResetWithoutSeed(Good):
    def reset(self):
        return np.zeros(3, np.float32), {}


class ResetWithoutOptions(Good):
    def reset(self, seed=None):
        return np.zeros(3, np.float32), {}


class ResetWithoutInfo(Good):
    def reset(self, *, seed=None, options=None):
        return np.zeros(3, np.float32)


class ResetOfNothing(Good):
    def reset(self, *, seed=None, options=None):
        pass


class StepOfFour(Good):
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, {}


class StepThatFails(Good):
    def step(self, action):
        return [0.0, 1.0][action + 5]


class StepMissing(Good):
    step = gym.Env.step


class RewardAsArray(Good):
    def step(self, action):
        return np.zeros(3, np.float32), np.array([1.0]), False, False, {}


class RewardOfNothing(Good):
    def step(self, action):
        return np.zeros(3, np.float32), None, False, False, {}


class EndAsText(Good):
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, "no", False, {}


class EndAsArray(Good):
    def step(self, action):
        return np.zeros(3, np.float32), 1.0, False, np.array([False]), {}


class ObservationTooShort(Good):
    """NumPy would spread the one number over all three."""

    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}


class ObservationOfText(Good):
    def reset(self, *, seed=None, options=None):
        return np.array(["a", "b", "c"]), {}


class ObservationRagged(Good):
    def reset(self, *, seed=None, options=None):
        return [[0.0], [1.0, 2.0], 3.0], {}


class ObservationNotAKey(Good):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict({"place": spaces.Discrete(3)})

    def reset(self, *, seed=None, options=None):
        return {"position": 2}, {}


class MissingArgument(Good):
    def __init__(self, size):
        super().__init__()


class ConstructorThatFails(Good):
    def __init__(self):
        self.table = {}["size"]


class NoObservationSpace(Good):
    def __init__(self):
        self.action_space = spaces.Discrete(2)


class SpaceOfAnotherKind(Good):
    def __init__(self):
        super().__init__()
        self.action_space = 2


class NoEnvironment:
    observation_space = spaces.Box(-1, 1, (3,), np.float32)
    action_space = spaces.Discrete(2)


class NoneAsMetadata(Good):
    metadata = None


BROKEN = {
    ResetWithoutSeed: r"reset failed: TypeError: .*'seed'.*; reset\(seed=..., options=...\) must return",
    ResetWithoutOptions: r"reset failed: TypeError: .*'options'",
    ResetWithoutInfo: r"reset failed: ValueError: .*; reset\(.*\) must return \(observation, info\)",
    ResetOfNothing: r"reset failed: TypeError: ",
    StepOfFour: r"step failed: ValueError: .*got 4.*must return \(observation, reward, terminated, truncated, info",
    StepThatFails: r"step failed: IndexError: list index out of range \(.*test_contract.py, line \d+\)",
    StepMissing: r"step failed: NotImplementedError",
    RewardAsArray: r"the reward must be one number, step returned an array of shape \(1,\)",
    RewardOfNothing: r"the reward must be one number, step returned NoneType",
    EndAsText: r"terminated must be true or false, step returned str 'no'",
    EndAsArray: r"truncated must be true or false, step returned an array of shape \(1,\)",
    ObservationTooShort: r"as its space Box\(.*\(3,\).*declares; step returned an array of shape \(1,\)",
    ObservationOfText: r"reset returned an array of shape \(3,\) and dtype <U1",
    ObservationRagged: r"reset returned list \[\[0.0\], \[1.0, 2.0\], 3.0\]",
    ObservationNotAKey: r"as its space Dict\(.*place.*declares; reset returned dict \{'position': 2\}",
    MissingArgument: r"cannot build .*: TypeError: .*'size'",
    ConstructorThatFails: r"cannot build .*: KeyError: 'size' \(.*test_contract.py, line \d+\)",
    NoObservationSpace: r"has no observation_space",
    SpaceOfAnotherKind: r"action_space must be a space of gymnasium, got int",
    NoneAsMetadata: r"cannot build .*: .*metadata",
    NoEnvironment: r"cannot build .*: TypeError: .*gymnasium.Env",
}


@pytest.fixture
def registered(request):
    gym.register("Odd-v0", request.param)
    yield request.param
    del gym.registry["Odd-v0"]


@pytest.mark.parametrize("registered", BROKEN, indirect=True)
@pytest.mark.parametrize("action_repeat", [1, 2])
def test_what_breaks_the_contract_is_one_line(registered, action_repeat):
    with pytest.raises(EnvError, match=BROKEN[registered]) as caught:
        env = make_vec("Odd-v0", 2, action_repeat)
        env.reset(0)
        env.step(env.random_action())
    assert "\n" not in str(caught.value) and "Odd-v0" in str(caught.value)


@pytest.mark.parametrize("registered", [StepOfFour, MissingArgument], indirect=True)
def test_the_command_line_says_so(registered, tmp_path, capsys):
    argv = SMALL["dqn"].replace("CartPole-v1", "Odd-v0").split()
    assert train.main([*argv, "--run-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "Odd-v0" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("registered", [Good], indirect=True)
def test_what_keeps_it_plays(registered):
    env = make_vec("Odd-v0", 2)
    env.reset(0)
    assert env.step(env.random_action()).reward.tolist() == [1.0, 1.0]
    assert env.frames_per_second == 30


@pytest.mark.parametrize("registered", [Good], indirect=True)
def test_an_environment_without_render_mode_is_one_line(registered):
    with (
        pytest.warns(UserWarning, match="render_mode"),
        pytest.raises(EnvError, match=r"cannot build Odd-v0: .*render_mode") as caught,
    ):
        make_vec("Odd-v0", render_mode="rgb_array")
    assert "\n" not in str(caught.value)


class DrawsNothing(Good):
    metadata = {"render_modes": ["rgb_array"], "render_fps": "many"}  # noqa: RUF012

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        pass


class DrawsTheOldWay(DrawsNothing):
    def render(self, mode):
        return np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize("registered", [DrawsNothing, DrawsTheOldWay], indirect=True)
def test_a_picture_that_is_none_is_one_line(registered):
    env = make_vec("Odd-v0", render_mode="rgb_array")
    env.reset(0)
    with pytest.raises(EnvError, match=r"Odd-v0: render.*\(height, width, 3\) uint8") as caught:
        env.render()
    assert "\n" not in str(caught.value) and env.frames_per_second == 30


@pytest.mark.parametrize("registered", [Good], indirect=True)
def test_the_checks_cost_little(registered):
    """A step beside that of a bare environment of Gymnasium, which does next to nothing."""
    env = make_vec("Odd-v0")
    env.reset(0)
    checked = env._backend._envs[0]

    def seconds(played):
        started = time.perf_counter()
        for _ in range(2000):
            played.step(0)
        return time.perf_counter() - started

    checked.reset(seed=0)
    assert (
        min(seconds(checked) for _ in range(5)) < min(seconds(checked.env) for _ in range(5)) + 2000 * 20e-6
    )
