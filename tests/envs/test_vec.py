"""VecEnv: counting, autoreset, final observations, seeds, exact save and restore, and its errors."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleAction, TransformAction

from envs import EnvError, import_module_of, make_vec


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


def box_env(**kwargs):
    """Return a VecEnv of ``BoxEnv``, and that environment."""
    gym.register("BoxNow-v0", gym.spec("Box-v0").entry_point, kwargs=kwargs)
    try:
        env = make_vec("BoxNow-v0")
    finally:
        del gym.registry["BoxNow-v0"]
    env.reset(0)
    return env, env._backend._envs[0].unwrapped


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "low, high, shape",
    [
        ([-1, 0.5], [1, 0.5], None),  # one number has no room
        ([0.5, 3], [0.5, 3], None),
        ([-1, -0.3], [1, 0.7], None),
        ([-1e30, 1e-30], [1e30, 2e-30], None),
        (-1, 1, (2, 3)),
        (-0.1, 0.7, (2, 3)),
        ([[0, -5], [1, 2]], [[1, 5], [1, 2.5]], None),
    ],
)
def test_actions_reach_every_bounded_box_inside_it(low, high, shape, dtype):
    env, inner = box_env(low=low, high=high, shape=shape, dtype=dtype)
    space = inner.action_space
    assert env.action_space == gym.spaces.Box(-1, 1, (space.low.size,), dtype)
    for action in (-1.0, 1.0, 0.0):
        env.step(np.full((1, space.low.size), action))
        assert space.contains(inner.taken), inner.taken
        exact = space.low + (action + 1) / 2 * (space.high.astype(np.longdouble) - space.low)
        eps = np.finfo(dtype).eps
        assert (np.abs(inner.taken - exact) <= 2 * eps * np.maximum(abs(space.low), abs(space.high))).all()
    for _ in range(200):
        env.step(env.random_action())
        assert space.contains(inner.taken), inner.taken


def test_the_flattened_action_keeps_its_order():
    env, inner = box_env(low=-1, high=1, shape=(2, 3))
    env.step(np.arange(6)[None] / 10)
    np.testing.assert_array_equal(inner.taken, np.float32([[0, 0.1, 0.2], [0.3, 0.4, 0.5]]))


@pytest.mark.parametrize(
    "low, high, shape, message",
    [
        ([-1, 0], [1, np.inf], None, "no bounds"),
        ([-np.inf, 0], [1, 1], None, "no bounds"),
        (-np.finfo(np.float32).max, np.finfo(np.float32).max, (2,), "no bounds"),
        (-1, 1, (), "one axis or more"),
        (-1, 1, (0,), "one axis or more"),
        ([[-1] * 30] * 30, [[np.inf] * 30] * 30, None, "no bounds"),
    ],
)
def test_boxes_that_cannot_be_mapped_are_one_line(low, high, shape, message):
    with pytest.raises(EnvError, match=f"BoxNow-v0 has the action space Box.*{message}") as caught:
        box_env(low=low, high=high, shape=shape)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "InvertedPendulum-v5", "Humanoid-v5"])
def test_bounded_actions_are_mapped_as_by_gymnasium_to_the_last_digit(env_id):
    """Runs saved before play their actions back through this."""
    ours = make_vec(env_id)._backend._envs[0]
    theirs = RescaleAction(gym.make(env_id), np.float32(-1), np.float32(1))
    while not isinstance(ours, TransformAction):
        ours = ours.env
    for action in (
        np.random.default_rng(0).uniform(-1, 1, (200, *theirs.action_space.shape)).astype(np.float32)
    ):
        np.testing.assert_array_equal(ours.func(action), theirs.func(action))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "where, message",
    [
        ("observation", r"observation\[2\] is {} at env step 3 of episode 0"),
        ("reward", r"reward is {} at env step 3 of episode 0"),
        ("reset", r"observation\[1\] is {} at env step 0 of episode 1"),
    ],
)
def test_what_is_not_finite_is_refused_by_name(where, value, message):
    gym.register("BrokenNow-v0", gym.spec("Broken-v0").entry_point, kwargs={"where": where, "value": value})
    try:
        env = make_vec("BrokenNow-v0", 2)
    finally:
        del gym.registry["BrokenNow-v0"]
    env._backend._envs[0].unwrapped.where = None  # the other one breaks
    env.reset(0)
    with pytest.raises(EnvError, match="BrokenNow-v0, sub-environment 1: " + message.format(value)) as caught:
        rollout(env, 5)
    assert "\n" not in str(caught.value)


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
    with pytest.raises(EnvError, match="is not imported just because a file names it"):
        make_vec("my_tasks:Mine-v0")
    import_module_of("my_tasks:Mine-v0")
    assert make_vec("my_tasks:Mine-v0").max_episode_steps == 9
    with pytest.raises(EnvError, match="cannot import the module 'no_tasks'"):
        import_module_of("no_tasks:Mine-v0")


@pytest.mark.parametrize(
    "env_id, message",
    [
        ("Cartpole-v1", r"unknown environment 'Cartpole-v1'; nearest names: CartPole-v1"),
        ("h1-wlak", r"nearest names: h1-walk"),
        ("", r"unknown environment ''"),
        ("Image-v0", "supported for Atari games by name only"),
        ("Unbounded-v0", "no bounds"),
        ("Empty-v0", r"observation space Box\(.*\), which holds no number"),
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


@pytest.mark.parametrize(
    "env_id, actions, native",
    [
        ("CartPole-v1", ((3,), np.int64), ((0,), np.float64)),
        ("Pendulum-v1", ((3, 1), np.float32), ((0,), np.float64)),
        ("h1-walk", ((0, 19), np.float32), None),
        pytest.param("Pong", ((0,), np.int64), None, marks=pytest.mark.atari),
    ],
)
def test_the_form_of_a_saved_state_stays(env_id, actions, native):
    """Checkpoints of existing runs hold it."""
    env = make_vec(env_id, 2)
    env.reset(8)
    rollout(env, 3)
    state = env.state_dict()
    numbers = {name: state[name] for name in ("num_envs", "action_repeat", "seed", "random_draws")}
    assert numbers == {"num_envs": 2, "action_repeat": 1, "seed": 8, "random_draws": 3}
    assert all(type(number) is int for number in numbers.values()) and state["env_id"] == env.env_id
    kinds = {"episode": np.int64, "episode_return": np.float64, "episode_length": np.int64}
    assert {name: (state[name].shape, state[name].dtype) for name in kinds} == {
        name: ((2,), kind) for name, kind in kinds.items()
    }
    obs = (2, *env.observation_space.shape), env.observation_space.dtype
    assert (state["obs"].shape, state["obs"].dtype) == obs
    assert [(taken.shape, taken.dtype) for taken in state["actions"]] == [actions] * 2
    if native is not None:
        assert (state["native"].shape, state["native"].dtype) == native
    names = {*numbers, *kinds, "env_id", "obs", "actions", "native"}
    assert state.keys() == names


@pytest.mark.parametrize("env_id", ["CartPole-v1", pytest.param("Pong", marks=pytest.mark.atari)])
def test_what_needs_no_mujoco_does_not_import_it(env_id):
    """It fails at import where MUJOCO_GL names a library that is missing."""
    code = (
        f"import sys, envs; env = envs.make_vec({env_id!r}); env.reset(0); env.step(env.random_action()); "
        "print('mujoco' in sys.modules)"
    )
    for backend in ("osmesa", "egl"):
        environment = {**os.environ, "MUJOCO_GL": backend}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


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
