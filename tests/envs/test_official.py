"""The adapter to the official package: what it says without it, and what it does with it."""

from __future__ import annotations

import importlib.util

import gymnasium as gym
import numpy as np
import pytest

from envs import EnvError, make_vec

installed = importlib.util.find_spec("humanoid_bench") is not None


@pytest.mark.skipif(installed, reason="needs a machine without the package")
def test_says_what_is_missing_and_names_the_native_id():
    with pytest.raises(
        EnvError, match=r"not installed; the native id is 'h1-walk-v0'; to install it: git clone"
    ):
        make_vec("humanoid_bench:h1-walk-v0")
    with pytest.raises(EnvError, match=r"not installed; to install it"):
        make_vec("humanoid_bench:h1hand-walk-v0")


@pytest.mark.humanoid
@pytest.mark.skipif(not installed, reason="needs the official humanoid_bench package")
class TestWithThePackage:
    @pytest.mark.parametrize("task", ["walk", "stand", "run", "hurdle", "stair", "maze", "pole"])
    def test_same_numbers_while_on_the_feet(self, task):
        """Reset noise included. Later, links touch each other, and their simplified hulls make a difference."""
        official = make_vec(f"humanoid_bench:h1-{task}-v0", 4)
        native = make_vec(f"h1-{task}-v0", 4)
        assert official.max_episode_steps == native.max_episode_steps
        np.testing.assert_array_equal(official.reset(seed=0), native.reset(seed=0))
        for _ in range(4):
            action = native.random_action()
            expected, got = official.step(action), native.step(action)
            np.testing.assert_allclose(got.next_obs, expected.next_obs, rtol=0, atol=1e-4)
            np.testing.assert_allclose(got.reward, expected.reward, rtol=0, atol=1e-5)

    def test_native_ids_stay_native(self):
        make_vec("humanoid_bench:h1-walk-v0")
        assert gym.spec("h1-walk-v0").entry_point == "envs.humanoid.env:HumanoidEnv"

    @pytest.mark.parametrize("task", ["reach", "sit_hard"])
    def test_seeds_decide_randomised_tasks(self, task):
        first, again, other = (make_vec(f"humanoid_bench:h1-{task}-v0") for _ in range(3))
        np.testing.assert_array_equal(first.reset(seed=1), again.reset(seed=1))
        assert (first.reset(seed=1) != other.reset(seed=2)).any()

    def test_restores(self):
        env, other = (make_vec("humanoid_bench:h1-walk-v0") for _ in range(2))
        env.reset(seed=0)
        for _ in range(20):
            env.step(env.random_action())
        other.load_state_dict(env.state_dict())
        for _ in range(10):
            action = env.random_action()
            np.testing.assert_array_equal(env.step(action).obs, other.step(action).obs)

    def test_unknown_task(self):
        with pytest.raises(EnvError, match="has no environment 'h1-wlak-v0'"):
            make_vec("humanoid_bench:h1-wlak-v0")
