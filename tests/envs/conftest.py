"""Environments whose every observation says where it is: the step count and the seed of its episode."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CountingEnv(gym.Env):
    """Observation (steps since the reset, a number drawn from the episode's seed, the last action's sum).

    The reward is the step count. The episode terminates after ``length`` steps, if that is given.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, length=None, forgetful=False, render_mode=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.action_space = spaces.Box(np.float32([-2, 0]), np.float32([2, 10]))
        self.length, self.forgetful, self.render_mode = length, forgetful, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        source = np.random.default_rng() if self.forgetful else self.np_random
        self.drawn = source.uniform()
        return np.array([0.0, self.drawn, 0.0]), {}

    def step(self, action):
        self.count += 1
        obs = np.array([float(self.count), self.drawn, float(np.sum(action))])
        return obs, float(self.count), self.count == self.length, False, {}

    def render(self):
        return np.full((4, 6, 3), self.count, dtype=np.uint8)


class ImageEnv(CountingEnv):
    """Declares pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (8, 8, 3), np.uint8)


class UnboundedEnv(CountingEnv):
    """Declares actions without bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)


class BoxEnv(gym.Env):
    """Takes a Box of actions and remembers the last in ``taken``; observes nothing but zeros."""

    def __init__(self, low, high, shape=None, dtype=np.float32):
        if shape is None:
            low, high = np.array(low, dtype), np.array(high, dtype)
        self.action_space = spaces.Box(low, high, shape, dtype)
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.taken = action
        return np.zeros(2, np.float32), 0.0, False, False, {}


class BrokenEnv(CountingEnv):
    """Counts until something in it becomes ``value``: the observation or the reward of step 3, or a later first one."""

    def __init__(self, where, value):
        super().__init__(length=5)
        self.where, self.value, self.resets = where, value, 0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self.resets += 1
        if self.where == "reset" and self.resets == 2:
            obs[1] = self.value
        return obs, info

    def step(self, action):
        obs, reward, *ends = super().step(action)
        if self.count == 3 and self.where == "observation":
            obs[2] = self.value
        if self.count == 3 and self.where == "reward":
            reward = self.value
        return obs, reward, *ends


class EmptyEnv(CountingEnv):
    """Observes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (0,), np.float32)


class ShiftedEnv(CountingEnv):
    """Numbers its three discrete actions from 5 and shows the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3, start=5)


class BinaryEnv(CountingEnv):
    """Takes a kind of action that no agent of ours produces."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.MultiBinary(2)


class NestedEnv(CountingEnv):
    """Observes a Dict."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"count": spaces.Box(0, 9, (2, 2)), "kind": spaces.Discrete(3)})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"count": np.full((2, 2), 7, np.float32), "kind": 2}, {}


gym.register("Counting-v0", CountingEnv, kwargs={"length": 5})
gym.register("CountingLimit-v0", CountingEnv, max_episode_steps=7)
gym.register("CountingBoth-v0", CountingEnv, kwargs={"length": 7}, max_episode_steps=7)
gym.register("CountingForgetful-v0", CountingEnv, kwargs={"forgetful": True})
gym.register("Image-v0", ImageEnv)
gym.register("Unbounded-v0", UnboundedEnv)
gym.register("Box-v0", BoxEnv)
gym.register("Broken-v0", BrokenEnv)
gym.register("Empty-v0", EmptyEnv)
gym.register("Shifted-v0", ShiftedEnv)
gym.register("Binary-v0", BinaryEnv)
gym.register("Nested-v0", NestedEnv)
