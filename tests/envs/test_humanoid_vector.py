"""``HumanoidVectorEnv`` against single environments, and against itself on another number of threads."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import RepeatAction

import envs  # noqa: F401  (registers the environments)
from envs.humanoid.tasks import TASKS
from envs.humanoid.vector import HumanoidVectorEnv


def actions(seed: int, count: int, num_envs: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (count, num_envs, 19)).astype(np.float32)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("num_envs, repeat", [(3, 1), (3, 3), (1, 2)])
def test_same_numbers_as_single_environments(task, num_envs, repeat):
    vector = HumanoidVectorEnv(task, num_envs, action_repeat=repeat, max_episode_steps=23)
    singles = [
        RepeatAction(gym.make(f"h1-{task}-v0", max_episode_steps=23), repeat) for _ in range(vector.num_envs)
    ]
    obs, _ = vector.reset(seed=5)
    np.testing.assert_array_equal(obs, [env.reset(seed=5 + i)[0] for i, env in enumerate(singles)])
    ends = 0
    for batch in actions(0, 30 if repeat == 1 else 12, num_envs):
        obs, reward, terminated, truncated, infos = vector.step(batch)
        for index, (env, action) in enumerate(zip(singles, batch, strict=True)):
            own_obs, own_reward, own_terminated, own_truncated, own_info = env.step(action)
            assert reward[index] == pytest.approx(own_reward, rel=1e-12, abs=1e-12)
            assert (terminated[index], truncated[index]) == (own_terminated, own_truncated)
            ended = own_terminated or own_truncated
            last = infos["final_info"] if ended else infos
            for name, value in own_info.items():
                assert last[name][index] == pytest.approx(value, rel=1e-12, abs=1e-12)
                assert last[f"_{name}"][index] and infos[f"_{name}"][index] != ended
            if ended:
                ends += 1
                np.testing.assert_array_equal(infos["final_obs"][index], own_obs)
                own_obs, _ = env.reset()
            else:
                assert "final_obs" not in infos or infos["final_obs"][index] is None
            np.testing.assert_array_equal(obs[index], own_obs)
    assert ends >= num_envs
    vector.close()


@pytest.mark.parametrize("task", ["walk", "maze", "truck"])
def test_threads_change_nothing(task):
    tracks = []
    for threads in (1, 2, 5):
        vector = HumanoidVectorEnv(task, 5, action_repeat=2, num_threads=threads)
        track = [vector.reset(seed=0)[0]]
        for batch in actions(1, 20, 5):
            track.extend(vector.step(batch)[:4])
        tracks.append(np.concatenate([part.ravel() for part in track]))
        vector.close()
    np.testing.assert_array_equal(tracks[0], tracks[1])
    np.testing.assert_array_equal(tracks[0], tracks[2])


@pytest.mark.parametrize("task", ["walk", "maze", "reach", "balance_hard"])
def test_state_restores_bit_for_bit(task):
    first, other = (HumanoidVectorEnv(task, 3, autoreset_mode=AutoresetMode.DISABLED) for _ in range(2))
    first.reset(seed=0)
    other.reset(seed=9)
    for batch in actions(2, 12, 3):
        first.step(batch)
    other.set_state(first.get_state())
    np.testing.assert_array_equal(other.get_state(), first.get_state())
    for batch in actions(3, 5, 3):
        before, after = first.step(batch), other.step(batch)
        for one, two in zip(before[:4], after[:4], strict=True):
            np.testing.assert_array_equal(one, two)
        if (before[2] | before[3]).any():
            break


def test_disabled_autoreset_waits_for_the_caller():
    vector = HumanoidVectorEnv("walk", 2, max_episode_steps=3, autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=0)
    for batch in actions(4, 3, 2):
        obs, _, _, truncated, infos = vector.step(batch)
    assert truncated.all() and "final_obs" not in infos
    with pytest.raises(RuntimeError, match=r"reset needed first by sub-environments \[0, 1\]"):
        vector.step(batch)
    mask = np.array([False, True])
    fresh, _ = vector.reset(seed=[None, 7], options={"reset_mask": mask})
    np.testing.assert_array_equal(fresh[0], obs[0])
    np.testing.assert_array_equal(fresh[1], gym.make("h1-walk-v0").reset(seed=7)[0])
    with pytest.raises(RuntimeError, match=r"\[0\]"):
        vector.step(batch)


def test_generators_go_on_without_a_seed():
    vector = HumanoidVectorEnv("walk", 2)
    first = vector.reset(seed=1)[0]
    second = vector.reset()[0]
    assert (first != second).any(axis=1).all()
    again = HumanoidVectorEnv("walk", 2)
    again.reset(seed=1)
    np.testing.assert_array_equal(again.reset()[0], second)


def test_gymnasium_builds_it():
    vector = gym.make_vec("h1-stand-v0", num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(vector, HumanoidVectorEnv)
    assert vector.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, _ = vector.reset(seed=0)
    assert vector.observation_space.contains(obs)
    assert vector.observation_space.shape == (2, 51) and vector.action_space.shape == (2, 19)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"num_envs": 0}, "at least 1"),
        ({"num_threads": -1}, "at least 1"),
        ({"action_repeat": 0}, "at least 1"),
        ({"autoreset_mode": "NextStep"}, "SameStep or Disabled, not NextStep"),
        ({"render_mode": "human"}, "rgb_array"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        HumanoidVectorEnv("walk", **wrong)


def test_wrong_calls():
    vector = HumanoidVectorEnv("walk", 2)
    with pytest.raises(RuntimeError, match="reset needed"):
        vector.step(np.zeros((2, 19)))
    vector.reset(seed=0)
    with pytest.raises(ValueError, match="shape"):
        vector.step(np.zeros((3, 19)))
    with pytest.raises(ValueError, match="NaN"):
        vector.step(np.full((2, 19), np.nan))
    with pytest.raises(ValueError, match="expected 2 seeds"):
        vector.reset(seed=[1])
    with pytest.raises(ValueError, match="reset_mask"):
        vector.reset(options={"reset_mask": [True]})
