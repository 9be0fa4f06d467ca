"""Several runs in one ``VecEnv``: each gets what a ``VecEnv`` of its own would give it, bit for bit."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

import envs.atari
from configs.schema import AtariConfig
from envs import EnvError, make_vec
from envs.humanoid.locomotion import Walk
from envs.humanoid.rewards import tolerance
from envs.humanoid.tasks import TASKS
from envs.humanoid.vector import HumanoidVectorEnv

SEEDS = (5, 7, 11)
CLASSIC = AtariConfig(noop_max=30, fire_reset=True, episodic_life=True, max_frames=80)
STICKY_FRAMES = AtariConfig(sticky_unit="frame", full_action_set=True, max_frames=80)
# Pendulum is cut by the clock after 200 steps, CartPole falls, walk falls, maze remembers, basketball draws a throw.
CASES = {
    "CartPole": ("CartPole-v1", 2, 1, None, None),
    "Pendulum": ("Pendulum-v1", 1, 3, None, None),
    "walk, one environment": ("h1-walk", 1, 2, None, None),
    "walk, two": ("h1-walk", 2, 1, None, None),
    "maze, one": ("h1-maze", 1, 1, None, None),
    "basketball, two": ("h1-basketball", 2, 2, None, None),
}
GAMES = {
    "Breakout by lives": ("Breakout", 1, 4, None, CLASSIC),
    "DemonAttack, sticky steps": ("DemonAttack", 1, 4, None, AtariConfig(max_frames=80)),
    "Breakout, sticky frames": ("Breakout", 2, 4, None, STICKY_FRAMES),
}


def assert_equal(ours, theirs, path=""):
    """Compare nested states, types and dtypes included."""
    assert type(ours) is type(theirs), path
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        for key in ours:
            assert_equal(ours[key], theirs[key], f"{path}/{key}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), path
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, path
        np.testing.assert_array_equal(ours, theirs, err_msg=path)
    else:
        assert ours == theirs, path


def step_all(joint, alone, steps):
    """Play ``steps`` in both, comparing everything; return the number of episodes that ended."""
    count = 0
    for _ in range(steps):
        actions = joint.random_action()
        np.testing.assert_array_equal(actions, np.concatenate([env.random_action() for env in alone]))
        step = joint.step(actions)
        taken = [env.step(own) for env, own in zip(alone, np.split(actions, len(alone)), strict=True)]
        for name in step._fields[:-1]:
            expected = np.concatenate([getattr(each, name) for each in taken])
            assert_equal(getattr(step, name), expected, name)
        for episodes, of_alone in (
            (step.episodes, [each.episodes for each in taken]),
            (joint.running_episodes(), [env.running_episodes() for env in alone]),
        ):
            assert episodes == [
                episode._replace(env_index=run * joint.num_envs + episode.env_index)
                for run, own in enumerate(of_alone)
                for episode in own
            ]
        count += len(step.episodes)
    for run, env in enumerate(alone):
        assert_equal(joint.state_dict(run), env.state_dict(), f"run {run}")
    return count


def check_case(arguments, steps, seeds):
    joint = make_vec(*arguments, num_runs=len(seeds))
    alone = [make_vec(*arguments) for _ in seeds]
    num_envs, num_runs = arguments[1], len(seeds)
    assert (joint.num_runs, joint.num_envs, joint.num_rows) == (num_runs, num_envs, num_runs * num_envs)
    firsts = [env.reset(seed) for env, seed in zip(alone, seeds, strict=True)]
    np.testing.assert_array_equal(joint.reset(seeds), np.concatenate(firsts))
    ended = step_all(joint, alone, steps)

    # Saved jointly, loaded alone; then saved alone, at different times, and loaded jointly.
    others = [make_vec(*arguments) for _ in seeds]
    for run, env in enumerate(others):
        np.testing.assert_array_equal(
            env.load_state_dict(joint.state_dict(run)), alone[run].state_dict()["obs"]
        )
    ended += step_all(joint, others, steps // 2)
    for _ in range(13):
        others[1].step(others[1].random_action())
    states = [env.state_dict() for env in others]
    obs = joint.load_state_dict(states)
    np.testing.assert_array_equal(obs, np.concatenate([state["obs"] for state in states]))
    ended += step_all(joint, others, steps // 2)
    assert ended >= 3, "no episode ended: nothing was tested of what follows one"

    # A new beginning forgets everything.
    np.testing.assert_array_equal(joint.reset(seeds), np.concatenate(firsts))
    for env in (joint, *alone, *others):
        env.close()


@pytest.mark.parametrize("case", CASES)
def test_every_run_equals_its_own_environments(case):
    check_case(CASES[case], 90, SEEDS)


@pytest.mark.atari
@pytest.mark.parametrize(
    "game", [pytest.param(name, marks=[pytest.mark.slow] * ("frames" in name)) for name in GAMES]
)
def test_every_run_equals_its_own_games(game, monkeypatch):
    # So that some games' consoles are seeded anew, some not. Loading a cartridge is what takes the time.
    monkeypatch.setattr(envs.atari, "SEED_PERIOD", 30)
    check_case(GAMES[game], 45, SEEDS[:2])


@pytest.mark.parametrize("num_envs", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_rewards_of_every_task_do_not_depend_on_who_plays_beside(task, num_envs):
    """To the last digit of float64; one environment alone computes on plain numbers."""
    joint = HumanoidVectorEnv(task, 3 * num_envs, 2, 12, scalar_rewards=num_envs == 1)
    alone = [HumanoidVectorEnv(task, num_envs, 2, 12) for _ in range(3)]
    obs, _ = joint.reset(seed=0)
    firsts = [env.reset(seed=run * num_envs)[0] for run, env in enumerate(alone)]
    np.testing.assert_array_equal(obs, np.concatenate(firsts))
    generator = np.random.default_rng(1)
    for _ in range(8):  # an end after the sixth
        actions = generator.uniform(-1, 1, (3 * num_envs, 19)).astype(np.float32)
        *ours, infos = joint.step(actions)
        taken = [env.step(own) for env, own in zip(alone, np.split(actions, 3), strict=True)]
        for index, array in enumerate(ours):
            np.testing.assert_array_equal(array, np.concatenate([each[index] for each in taken]))
        for name in joint._task.reward(joint._readings, joint._memory.copy())[1]:
            np.testing.assert_array_equal(infos[name], np.concatenate([each[4][name] for each in taken]))


@pytest.mark.parametrize("num_envs", [1, 2])
def test_rewards_are_computed_on_plain_numbers_for_a_run_of_one(num_envs, monkeypatch):
    """Exaggerated: a last digit shows once in thousands of steps."""
    goal = Walk.goal
    monkeypatch.setattr(Walk, "goal", lambda self, readings: goal(self, readings) * readings.qpos.ndim)
    joint, alone = make_vec("h1-walk", num_envs, num_runs=3), [make_vec("h1-walk", num_envs) for _ in SEEDS]
    joint.reset(SEEDS)
    for env, seed in zip(alone, SEEDS, strict=True):
        env.reset(seed)
    step_all(joint, alone, 5)


def test_plain_numbers_and_arrays_differ_in_the_last_digit():
    """Why ``scalar_rewards`` exists; where they agree everywhere it can go."""
    x = np.random.default_rng(0).uniform(0, 3, 100_000)
    of_array, of_numbers = tolerance(x, margin=0.7), np.array([tolerance(number, margin=0.7) for number in x])
    np.testing.assert_allclose(of_array, of_numbers, rtol=1e-13)
    assert (of_array != of_numbers).any()


def test_wrong_numbers_of_runs():
    env = make_vec("CartPole-v1", 2, num_runs=2)
    with pytest.raises(EnvError, match="1 seeds for 2 runs; give one per run"):
        env.reset(0)
    env.reset([0, 1])
    with pytest.raises(EnvError, match="1 states for 2 runs"):
        env.load_state_dict(env.state_dict(1))
    with pytest.raises(EnvError, match="num_runs must be at least 1, got 0"):
        make_vec("CartPole-v1", num_runs=0)
    with pytest.raises(IndexError):
        env.state_dict(2)


def test_errors_name_the_run():
    env = make_vec("CartPole-v1", 2, num_runs=3)
    env.reset(SEEDS)
    with pytest.raises(ValueError, match="run 2, sub-environment 1: action 2 is not 0 to 1"):
        env.step(np.array([0, 1, 0, 1, 0, 2]))
    forgetful = make_vec("CountingForgetful-v0", num_runs=2)
    forgetful.reset([0, 1])
    states = [forgetful.state_dict(run) for run in range(2)]
    states[0]["obs"] = make_vec("CountingForgetful-v0", num_runs=2).reset([0, 1])[:1]
    with pytest.raises(EnvError, match=r"not deterministic.*: run 0, sub-environment 0 did not repeat"):
        forgetful.load_state_dict(states)


def test_render_shows_row_0():
    env = make_vec("Counting-v0", render_mode="rgb_array", num_runs=2)
    env.reset([0, 1])
    env.step(env.random_action())
    assert (env.render() == 1).all()


def test_gymnasium_actions_are_forgotten_with_their_episodes():
    """Long runs must not collect what no state needs."""
    env = make_vec("CartPole-v1", num_runs=3)
    env.reset(SEEDS)
    longest = 0
    for _ in range(400):
        env.step(env.random_action())
        longest = max(longest, *(episode.length for episode in env.running_episodes()), 0)
    assert len(env._backend._actions) <= longest + 1 < 200
    assert gym.spec("CartPole-v1").max_episode_steps == 500
