"""VecEnv: counting, autoreset, final observations, seeds, exact save and restore, and its errors."""

from __future__ import annotations

import io

import gymnasium as gym
import numpy as np
import pytest
import torch

from envs import EnvError, make_vec


def rollout(env, steps):
    """Step with the random policy; return every array the environment gave, stacked over time."""
    taken = [env.step(env.random_action()) for _ in range(steps)]
    return {name: np.stack([getattr(step, name) for step in taken]) for name in taken[0]._fields[:-1]} | {
        "episodes": [episode for step in taken for episode in step.episodes]
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_counting_autoreset_and_final_observation():
    env = make_vec("Counting-v0", num_envs=2)
    obs = env.reset(seeds=0)
    assert obs.shape == (2, 3) and obs.dtype == np.float32
    assert (obs[:, 0] == 0).all()
    for total in range(1, 13):
        step = env.step(env.random_action())
        count = (total - 1) % 5 + 1
        assert (step.next_obs[:, 0] == count).all() and (step.reward == count).all()
        assert (step.next_obs[:, 1] == obs[:, 1]).all(), "next_obs belongs to the episode acted in"
        ended = count == 5
        assert (step.terminated == ended).all() and not step.truncated.any()
        assert (step.obs[:, 0] == (0 if ended else count)).all()
        assert step.episodes == ([(0, 15.0, 5), (1, 15.0, 5)] if ended else [])
        if ended:
            assert (step.obs[:, 1] != step.next_obs[:, 1]).all(), "a new episode has a new seed"
        obs = step.obs


@pytest.mark.parametrize(
    "env_id, ends",
    [("Counting-v0", "terminated"), ("CountingLimit-v0", "truncated"), ("CountingBoth-v0", "terminated")],
)
def test_action_repeat_sums_rewards_inside_the_time_limit(env_id, ends):
    env = make_vec(env_id, action_repeat=3)
    frames = 5 if env_id == "Counting-v0" else 7
    assert env.max_episode_steps == (None if env_id == "Counting-v0" else 3)
    env.reset(seeds=0)
    rewards = []
    while True:
        step = env.step(env.random_action())
        rewards.append(float(step.reward[0]))
        if step.episodes:
            break
    blocks = [range(1, frames + 1)[i : i + 3] for i in range(0, frames, 3)]
    assert rewards == [sum(block) for block in blocks]
    assert step.next_obs[0, 0] == frames
    assert step.episodes[0] == (0, sum(range(1, frames + 1)), len(blocks))
    assert (bool(step.terminated[0]), bool(step.truncated[0])) == (ends == "terminated", ends == "truncated")


def test_returned_arrays_are_the_callers():
    env = make_vec("Counting-v0")
    env.reset(seeds=0)
    step = env.step(env.random_action())
    step.obs[:] = -1
    kept = step.next_obs.copy()
    env.step(env.random_action())
    np.testing.assert_array_equal(step.next_obs, kept)
    assert env.state_dict()["obs"][0, 0] == 2


def test_box_actions_map_to_the_bounds_and_are_clipped():
    env = make_vec("Counting-v0", num_envs=3)
    env.reset(seeds=0)
    assert env.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    step = env.step(np.array([[-1, -1], [1, 1], [7, -7]], dtype=np.float32))
    np.testing.assert_allclose(step.next_obs[:, 2], [-2 + 0, 2 + 10, 2 + 0])


def test_discrete_actions_count_from_zero():
    env = make_vec("Shifted-v0", num_envs=3)
    env.reset(seeds=0)
    np.testing.assert_array_equal(env.step(np.arange(3)).next_obs[:, 2], [5, 6, 7])


def test_nested_observations_are_flattened():
    env = make_vec("Nested-v0", num_envs=2)
    np.testing.assert_array_equal(env.reset(seeds=0), [[7, 7, 7, 7, 0, 0, 1]] * 2)
    assert env.observation_space.shape == (7,)


def test_seeds_both_ways():
    first, again, other = (make_vec("CartPole-v1", num_envs=2) for _ in range(3))
    np.testing.assert_array_equal(first.reset(seeds=3), again.reset(seeds=3))
    assert (first.state_dict()["obs"] != other.reset(seeds=4)).all()
    assert_same(rollout(first, 60), rollout(again, 60))
    first.reset(seeds=3)
    assert (first.random_action() != [other.random_action() for _ in range(40)]).any()
    obs = first.reset(seeds=3)
    assert (obs[0] != obs[1]).any(), "sub-environments differ"


def test_random_actions_are_uniform_and_independent():
    env = make_vec("Counting-v0", num_envs=4)
    env.reset(seeds=0)
    drawn = np.stack([env.random_action() for _ in range(2000)])  # (2000, 4, 2)
    flat = drawn.reshape(-1, 8)
    # Uniform(-1, 1): mean 0 and variance 1/3; five standard errors of 2000 draws.
    assert np.abs(flat.mean(0)).max() < 5 * np.sqrt(1 / 3 / 2000)
    assert np.abs((flat**2).mean(0) - 1 / 3).max() < 5 * np.sqrt(4 / 45 / 2000)
    assert np.abs(np.corrcoef(flat.T) - np.eye(8)).max() < 5 / np.sqrt(2000)
    assert np.abs(np.corrcoef(flat[:-1, 0], flat[1:, 0])[0, 1]) < 5 / np.sqrt(2000)

    discrete = make_vec("Shifted-v0", num_envs=3)
    discrete.reset(seeds=0)
    counts = np.bincount(np.concatenate([discrete.random_action() for _ in range(2000)]), minlength=3)
    assert counts.sum() == 6000 and np.abs(counts - 2000).max() < 5 * np.sqrt(6000 * 2 / 9)


def test_random_actions_ignore_the_stepping():
    still, moving = make_vec("Counting-v0"), make_vec("Counting-v0")
    still.reset(seeds=1)
    moving.reset(seeds=1)
    for _ in range(9):
        np.testing.assert_array_equal(still.random_action(), action := moving.random_action())
        moving.step(action)


@pytest.mark.parametrize(
    "env_id", ["Counting-v0", "CountingLimit-v0", "CartPole-v1", "Pendulum-v1", "Hopper-v5"]
)
def test_restore_continues_bit_for_bit(env_id):
    env = make_vec(env_id, num_envs=2, action_repeat=2)
    env.reset(seeds=5)
    rollout(env, 31)
    file = io.BytesIO()
    tensors = torch.utils._pytree.tree_map(
        lambda leaf: torch.from_numpy(leaf) if isinstance(leaf, np.ndarray) else leaf, env.state_dict()
    )
    torch.save(tensors, file)
    file.seek(0)
    expected = rollout(env, 150)

    restored = make_vec(env_id, num_envs=2, action_repeat=2)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert_same(expected, rollout(restored, 150))
    env.load_state_dict(restored.state_dict())
    assert_same(rollout(env, 20), rollout(restored, 20))


def test_restore_refuses_what_it_cannot_repeat():
    env = make_vec("CountingForgetful-v0")
    env.reset(seeds=0)
    env.step(env.random_action())
    with pytest.raises(EnvError, match="not deterministic"):
        make_vec("CountingForgetful-v0").load_state_dict(env.state_dict())
    with pytest.raises(EnvError, match="env_id = 'CountingForgetful-v0'"):
        make_vec("Counting-v0").load_state_dict(env.state_dict())


def test_an_id_may_name_the_module_that_registers_it(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=9)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make_vec("my_tasks:Mine-v0").max_episode_steps == 9
    with pytest.raises(EnvError, match="cannot import the module 'no_tasks'"):
        make_vec("no_tasks:Mine-v0")


@pytest.mark.parametrize(
    "env_id, message",
    [
        ("Cartpole-v1", r"unknown environment 'Cartpole-v1'; nearest names: CartPole-v1"),
        ("h1-wlak", r"nearest names: h1-walk"),
        ("", r"unknown environment ''"),
        ("Image-v0", "supported for Atari games by name only"),
        ("Unbounded-v0", "no bounds"),
        ("Binary-v0", "only Discrete and real Box"),
    ],
)
def test_unusable_environments(env_id, message):
    with pytest.raises(EnvError, match=message) as caught:
        make_vec(env_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("counts", [{"num_envs": 0}, {"action_repeat": 0}])
def test_counts_below_one(counts):
    with pytest.raises(EnvError, match="must be at least 1, got 0"):
        make_vec("CartPole-v1", **counts)


@pytest.mark.parametrize(
    "env_id, action, message",
    [
        ("Counting-v0", [[0, 0], [0, np.nan]], "sub-environment 1: .* not finite"),
        ("Counting-v0", [0, 0], r"shape \(2, 2\), got \(2,\)"),
        ("CartPole-v1", [0, 2], "sub-environment 1: action 2 is not 0 to 1"),
        ("CartPole-v1", [-1, 0], "sub-environment 0"),
        ("CartPole-v1", [0.0, 1.0], "integer actions"),
    ],
)
def test_wrong_actions(env_id, action, message):
    env = make_vec(env_id, num_envs=2)
    env.reset(seeds=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.array(action))


def test_reset_must_come_first():
    env = make_vec("CartPole-v1")
    for call in (env.random_action, env.state_dict, lambda: env.step(np.array([0]))):
        with pytest.raises(RuntimeError, match="reset"):
            call()


def test_render_shows_the_first():
    env = make_vec("Counting-v0", num_envs=2, render_mode="rgb_array")
    env.reset(seeds=0)
    env.step(env.random_action())
    assert env.render().shape == (4, 6, 3) and (env.render() == 1).all()
    assert env.frames_per_second == 50
    blind = make_vec("Counting-v0")
    blind.reset(seeds=0)
    with pytest.raises(EnvError, match="was not built with render_mode='rgb_array'"):
        blind.render()
