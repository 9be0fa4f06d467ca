"""The native H1 environments as Gymnasium environments: contract, seeds, state, actions, rendering."""

from __future__ import annotations

import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs import EnvError, make_vec, rendering
from envs.humanoid import MAX_EPISODE_STEPS
from envs.humanoid.tasks import TASKS

# HumanoidBench's sizes: 51 for the robot alone, 13 more for each free body, 6 for the hand and its target.
OBSERVATION_SIZE = dict.fromkeys(TASKS, 51) | {
    "sit_hard": 64,
    "balance_simple": 64,
    "balance_hard": 77,
    "reach": 57,
    "push": 63,
    "package": 73,
    "door": 55,
    "truck": 116,
    "basketball": 64,
}


@pytest.mark.parametrize("task", TASKS)
def test_gymnasium_contract(task):
    env = gym.make(f"h1-{task}-v0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Unbounded observations are the original's; Gymnasium only recommends against them.
        warnings.filterwarnings(
            "ignore", message=".*A Box observation space m(in|ax)imum value is.*infinity.*"
        )
        check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE[task],), np.float64)
    assert env.action_space == gym.spaces.Box(-1, 1, (19,), np.float32)
    assert env.spec.max_episode_steps == TASKS[task].max_episode_steps


def test_reset_noise():
    env = gym.make("h1-walk-v0")
    obs = np.array([env.reset(seed=seed)[0] for seed in range(300)])
    noise = obs[:, :26] - env.unwrapped._scene.initial_qpos
    assert np.abs(noise).max() <= 0.01 and (np.abs(noise).max(axis=0) > 0.0095).all()
    # Uniform on +-0.01: standard deviation 0.01 / sqrt(3), five standard errors of 300 draws.
    assert np.abs(noise.mean(axis=0)).max() < 5 * 0.01 / np.sqrt(3 * 300)
    assert (obs[:, 26:] == 0).all()
    np.testing.assert_array_equal(env.reset(seed=7)[0], obs[7])


@pytest.mark.parametrize("task", TASKS)
def test_state_restores_bit_for_bit(task):
    env, other = (gym.make(f"h1-{task}-v0").unwrapped for _ in range(2))
    generator = np.random.default_rng(0)
    env.reset(seed=0)
    other.reset(seed=1)
    for _ in range(30):  # long enough for contacts, whose solver starts from the last step's forces
        env.step(generator.uniform(-1, 1, 19).astype(np.float32))
    state = env.get_state()
    other.set_state(state)
    np.testing.assert_array_equal(other.get_state(), state)
    for _ in range(20):
        action = generator.uniform(-1, 1, 19).astype(np.float32)
        first, second = env.step(action), other.step(action)
        np.testing.assert_array_equal(first[0], second[0])
        assert first[1:] == second[1:]
    with pytest.raises(ValueError, match="expected a state of"):
        env.set_state(state[:-1])


def test_vector_restores_bit_for_bit_with_its_time_limit():
    env = make_vec("h1-stand", num_envs=2, action_repeat=2)
    assert env.max_episode_steps == 500
    env.reset(seeds=0)
    actions = [np.clip(0.05 * env.random_action(), -1, 1) for _ in range(40)]
    for action in actions:
        env.step(action)
    state = env.state_dict()
    other = make_vec("h1-stand", num_envs=2, action_repeat=2)
    other.load_state_dict(state)
    for _ in range(60):
        action = env.random_action()
        np.testing.assert_array_equal(other.random_action(), action)
        first, second = env.step(action), other.step(action)
        for name in ("obs", "next_obs", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert first.episodes == second.episodes


def test_time_limit_truncates():
    env = make_vec("h1-walk", action_repeat=2)
    assert env.max_episode_steps == 500
    env.reset(seeds=0)
    env._backend._vector._elapsed[:] = 998
    step = env.step(np.zeros((1, 19), np.float32))
    assert step.truncated[0] and not step.terminated[0]


def test_actions_out_of_range_are_clipped_and_nan_is_refused():
    env = gym.make("h1-walk-v0").unwrapped
    observed = []
    for scale in (1.0, 9.0):
        env.reset(seed=0)
        observed.append(env.step(np.full(19, scale, np.float32))[0])
    np.testing.assert_array_equal(*observed)
    with pytest.raises(ValueError, match="NaN"):
        env.step(np.full(19, np.nan, np.float32))
    with pytest.raises(ValueError, match=r"shape \(19,\), got \(18,\)"):
        env.step(np.zeros(18, np.float32))
    with pytest.raises(ValueError, match="sub-environment 0"):
        vector = make_vec("h1-walk")
        vector.reset(seeds=0)
        vector.step(np.full((1, 19), np.nan))


def test_info_holds_the_parts_of_the_reward():
    env = gym.make("h1-walk-v0")
    env.reset(seed=0)
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert reward == pytest.approx(info["small_control"] * info["standing"] * info["upright"] * info["move"])
    assert info["per_timestep_reward"] == reward and type(info["per_timestep_reward"]) is float


def test_info_holds_the_reward_of_the_last_frame_not_of_all_repeated_ones():
    env, single = gym.make_vec("h1-walk-v0", num_envs=1, action_repeat=2), gym.make("h1-walk-v0")
    env.reset(seed=0)
    single.reset(seed=0)
    action = single.action_space.sample()
    rewards = [single.step(action)[1] for _ in range(2)]
    _, reward, _, _, infos = env.step(action[None])
    assert reward[0] == pytest.approx(sum(rewards), rel=1e-12)
    assert infos["per_timestep_reward"][0] == pytest.approx(rewards[1], rel=1e-12)


def test_what_is_registered_are_the_tasks():
    """The table stands apart from the tasks, which import MuJoCo."""
    assert list(MAX_EPISODE_STEPS.items()) == [(name, task.max_episode_steps) for name, task in TASKS.items()]
    assert all(name == task.name for name, task in TASKS.items())


def test_gym_make_works_after_importing_envs_only():
    code = "import envs, gymnasium; print(gymnasium.make('h1-walk-v0').reset(seed=0)[0].shape)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(51,)"


def can_render() -> bool:
    try:
        rendering.select_gl_backend()
    except EnvError:
        return False
    return True


def test_rendering_without_a_display():
    if not can_render():
        pytest.skip("neither EGL nor OSMesa on this machine")
    env = gym.make("h1-walk-v0", render_mode="rgb_array", width=320, height=240)
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (240, 320, 3) and first.dtype == np.uint8
    assert first.std() > 20, "a picture, not one colour"
    for _ in range(15):
        env.step(np.ones(19, np.float32))
    moved = env.render()
    assert np.abs(moved.astype(int) - first).max() > 100
    sky, floor = first[:30].mean(axis=(0, 1)), first[-30:].mean(axis=(0, 1))
    assert sky[2] > floor[2] + 30, "the sky is above"
    env.close()


def test_gymnasiums_mujoco_environments_render_without_a_display_too():
    if not can_render():
        pytest.skip("neither EGL nor OSMesa on this machine")
    env = make_vec("InvertedPendulum-v5", render_mode="rgb_array")
    env.reset(seeds=0)
    assert env.render().std() > 5
    env.close()


def test_vector_renders_the_first():
    if not can_render():
        pytest.skip("neither EGL nor OSMesa on this machine")
    env = make_vec("h1-walk", num_envs=2, action_repeat=2, render_mode="rgb_array")
    assert env.frames_per_second == 25
    env.reset(seeds=0)
    before = env.render()
    env.step(np.stack((np.ones(19), np.zeros(19))))
    assert before.shape == (480, 640, 3) and (env.render() != before).any()
    env.close()


def test_unknown_render_mode():
    with pytest.raises(ValueError, match="renders as 'rgb_array' only"):
        gym.make("h1-walk-v0").unwrapped.__class__("walk", render_mode="human")


def test_no_backend_names_the_packages(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_PROBE", "raise SystemExit(1)")
    with pytest.raises(EnvError, match=r"libegl1 .* libosmesa6") as caught:
        rendering.select_gl_backend.__wrapped__()
    assert "\n" not in str(caught.value)


def test_user_choice_of_backend_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert rendering.select_gl_backend.__wrapped__() == "osmesa"
