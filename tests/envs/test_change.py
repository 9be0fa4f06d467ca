"""Tasks that change, against plain environments played beside them and against closed forms."""

import dataclasses
import itertools
import math

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

from common.seeding import stream_seed
from configs.schema import AtariConfig, ChangeConfig, PhysicsConfig
from envs import EnvError, make_vec
from envs.change import Series, Tasks, other_actions, random_isometry, random_rotation
from envs.humanoid.simulation import scene
from tests.envs.test_runs import assert_equal, step_all

SEEDS = (5, 7, 11)
PERIOD = 24  # env steps: a border every 12 steps of two environments
PHYSICS = PhysicsConfig(gravity=(0.5, 2.0), strength=(0.5, 2.0), mass=(0.5, 2.0))


def options(kind, **others):
    return ChangeConfig(**{"kind": kind, "every": PERIOD, "standardize_steps": 200, **others})


def make(env_id, num_envs, change, seeds=SEEDS[:1], go_on=True, atari=None, repeat=1):
    return make_vec(env_id, num_envs, repeat, None, atari, len(seeds), Tasks(change, tuple(seeds), go_on))


def affine(before, after):
    """The map ``after = before @ matrix + offset`` found by least squares, and its worst error."""
    columns = np.column_stack((before, np.ones(len(before))))
    found, *_ = np.linalg.lstsq(columns, after, rcond=None)
    return found[:-1], np.abs(columns @ found - after).max()


def play(env, plain, steps):
    """Play the same random actions in both; observations acted on, (steps, N, ...) each, and the steps taken."""
    seen, steps_taken = [], []
    for _ in range(steps):
        actions, task = env.random_action(), env.task
        one, other = env.step(actions), plain.step(actions)
        if env.task != task:  # the plain one knows of no border
            other = other._replace(obs=plain.cut_off(np.flatnonzero(~other.terminated))[0])
        seen.append((one.obs, other.obs))
        steps_taken.append((one, other))
    return [np.stack(each) for each in zip(*seen, strict=True)], steps_taken


# Maps of observations


def test_random_isometries_are_orthonormal_and_have_no_preferred_direction():
    generator = np.random.default_rng(0)
    drawn = np.stack([random_isometry(generator, 8, 4) for _ in range(2000)])
    np.testing.assert_allclose(
        drawn.transpose(0, 2, 1) @ drawn, np.broadcast_to(np.eye(4), (2000, 4, 4)), atol=1e-12
    )
    # Every entry has mean 0 and variance 1/8; the signs of a QR decomposition alone would not.
    assert np.abs(drawn.mean(0)).max() < 4.5 / math.sqrt(8 * 2000)
    np.testing.assert_allclose(drawn.var(0), 1 / 8, rtol=0.15)


def test_random_rotations_are_matrix_exponentials_that_turn_by_about_the_angle():
    for dims in (1, 2, 8, 51):
        turned = random_rotation(np.random.default_rng(dims), dims, 0.5)
        half = np.random.default_rng(dims).standard_normal((dims, dims)) * 0.5 / math.sqrt(2 * dims)
        np.testing.assert_allclose(turned, torch.matrix_exp(torch.tensor(half - half.T)), atol=1e-12)
    vector = np.eye(64)[0]
    cosines = [vector @ random_rotation(np.random.default_rng(i), 64, 0.1) @ vector for i in range(200)]
    assert math.sqrt(np.mean(np.arccos(cosines) ** 2)) == pytest.approx(0.1, rel=0.05)
    np.testing.assert_array_equal(random_rotation(np.random.default_rng(0), 8, 0.0).round(14), np.eye(8))


@pytest.mark.parametrize("kind", ["rotate", "drift"])
def test_observations_are_standardised_and_mapped_by_another_isometry_in_every_task(kind):
    env, plain = make("CartPole-v1", 2, options(kind, dims=8, angle=0.3)), make_vec("CartPole-v1", 2)
    assert env.observation_space.shape == (8,) and not np.isfinite(env.observation_space.low).any()
    env.reset(3), plain.reset(3)
    (shown, true), _ = play(env, plain, 5 * 12)
    standard = env._changing._standards[0]
    maps = []
    for task in range(1, 5):
        rows = slice(12 * task - 1, 12 * (task + 1) - 1)  # what was acted on in this task
        matrix, error = affine(true[rows].reshape(-1, 4), shown[rows].reshape(-1, 8))
        assert error < 1e-4
        maps.append(standard.scale[:, None] * matrix)
        np.testing.assert_allclose(maps[-1] @ maps[-1].T, np.eye(4), atol=1e-3)
    turns = [np.linalg.norm(one - other) / 2 for one, other in itertools.pairwise(maps)]
    # The columns of a fresh map are about at right angles to the old ones, a distance of sqrt 2 each.
    assert all(0.1 < turn < 0.6 for turn in turns) if kind == "drift" else all(turn > 1 for turn in turns)


def test_statistics_are_those_of_random_play():
    env = make("CartPole-v1", 1, options("rotate", standardize_steps=10_000))  # some 450 episodes
    mean, scale = env._changing._standards[0]
    plain = make_vec("CartPole-v1", 8)
    seen = [plain.reset(123)]
    for _ in range(1500):
        step = plain.step(plain.random_action())
        seen += [step.next_obs, step.obs[step.terminated]]  # all that is seen, last observations included
    other = np.concatenate(seen)
    assert np.abs((mean - other.mean(0)) / other.std(0)).max() < 0.25
    np.testing.assert_allclose(scale, other.std(0), rtol=0.1)
    raw = make("Pendulum-v1", 1, options("rotate", standardize_steps=0))
    np.testing.assert_allclose(  # as they are: lengths stay
        np.linalg.norm(raw.reset(1)), np.linalg.norm(make_vec("Pendulum-v1").reset(1)), rtol=1e-6
    )


# The border


def test_at_a_border_everything_is_cut_off_and_the_last_observation_is_still_of_the_old_task():
    env, plain = make("CartPole-v1", 2, options("rotate")), make_vec("CartPole-v1", 2)
    env.reset(3), plain.reset(3)
    tasks, cut = [], 0
    for index in range(1, 61):
        before = env.task
        matrix, offset = env._changing._matrix[0], env._changing._offset[0]
        actions = env.random_action()
        step, other = env.step(actions), plain.step(actions)
        np.testing.assert_allclose(step.next_obs, other.next_obs @ matrix + offset, atol=1e-4)
        np.testing.assert_array_equal(step.terminated, other.terminated)
        assert step.episodes == other.episodes  # one that was cut off has not ended
        obs = other.obs
        if index % 12 == 0:
            assert (step.truncated | step.terminated).all() and env.task == before + 1
            cut += np.count_nonzero(step.truncated)
            obs, _ = plain.cut_off(np.flatnonzero(~other.terminated))
            assert not env.running_episodes()
        else:
            np.testing.assert_array_equal(step.truncated, other.truncated)
            assert env.task == before
        np.testing.assert_allclose(
            step.obs, obs @ env._changing._matrix[0] + env._changing._offset[0], atol=1e-4
        )
        tasks.append(before)
    assert tasks == [step // 12 for step in range(60)] and cut >= 5


def test_the_tasks_of_a_run_follow_from_its_seed_alone_and_are_new_each_time():
    drawn = [Series(seed, lambda generator, _: generator.random())[3] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    series = Series(0, lambda generator, before: (before or 0) + generator.random())
    forwards = [series[number] for number in range(6)]
    assert [series[number] for number in (4, 2, 5, 0)] == [forwards[number] for number in (4, 2, 5, 0)]
    assert len(set(forwards)) == 6
    generator = np.random.default_rng(stream_seed(0, "change", 1, 0))
    assert forwards[0] == generator.random()


# Every run as it would be alone, saved and loaded

CASES = {
    "rotate": ("CartPole-v1", 2, options("rotate", dims=6)),
    "rotate, one environment": ("Pendulum-v1", 1, options("rotate", every=17)),
    "drift": ("CartPole-v1", 2, options("drift")),
    "actions, discrete": ("CartPole-v1", 2, options("actions")),
    "actions, continuous": ("h1-walk", 1, options("actions")),
    "physics, CartPole": ("CartPole-v1", 2, options("physics", physics=PHYSICS)),
    "physics, Hopper": ("Hopper-v5", 1, options("physics", physics=PHYSICS)),
    "physics, H1": ("h1-walk", 2, options("physics", physics=dataclasses.replace(PHYSICS, speed=(0.5, 2.0)))),
    "sequence": ("h1-walk", 1, options("sequence", ids=("h1-walk", "h1-stand", "h1-run"))),
}


@pytest.mark.parametrize("case", CASES)
def test_every_run_equals_its_own_environments_and_resumes_bit_for_bit(case):
    env_id, num_envs, change = CASES[case]
    joint = make(env_id, num_envs, change, SEEDS)
    alone = [make(env_id, num_envs, change, (seed,)) for seed in SEEDS]
    firsts = [env.reset(seed) for env, seed in zip(alone, SEEDS, strict=True)]
    np.testing.assert_array_equal(joint.reset(SEEDS), np.concatenate(firsts))
    step_all(joint, alone, 30)
    assert joint.task >= 1
    others = [make(env_id, num_envs, change, (seed,)) for seed in SEEDS]
    for run, env in enumerate(others):
        np.testing.assert_array_equal(
            env.load_state_dict(joint.state_dict(run)), alone[run].state_dict()["obs"]
        )
        assert env.task == joint.task
    step_all(joint, others, 20)
    again = make(env_id, num_envs, change, SEEDS)
    again.load_state_dict([env.state_dict() for env in others])
    step_all(again, others, 20)
    np.testing.assert_array_equal(again.reset(SEEDS), np.concatenate(firsts))
    assert_equal(again.state_dict(1), make_and_reset(env_id, num_envs, change).state_dict())


def make_and_reset(env_id, num_envs, change):
    env = make(env_id, num_envs, change, SEEDS[1:2])
    env.reset(SEEDS[1])
    return env


@pytest.mark.parametrize("kind", ["rotate", "actions", "physics"])
def test_environments_for_evaluation_go_where_they_are_sent_and_stay_there(kind):
    change = options(kind, physics=PHYSICS if kind == "physics" else PhysicsConfig())
    training = make("CartPole-v1", 1, change)
    training.reset(0)
    for _ in range(PERIOD * 2 + 1):
        training.step(training.random_action())
    assert training.task == 2
    sent = make("CartPole-v1", 3, change, go_on=False)
    sent.set_task(2, training, 0)
    sent.reset(9)
    for _ in range(PERIOD):
        sent.step(sent.random_action())
    assert sent.task == 2
    for name in {"rotate": ("_matrix", "_offset"), "actions": ("_actions",), "physics": ()}[kind]:
        np.testing.assert_array_equal(getattr(sent._changing, name), getattr(training._changing, name))
    if kind == "physics":
        ours, theirs = (env._changing._inner._envs[0].unwrapped for env in (sent, training))
        assert ours.gravity == theirs.gravity != gym.make("CartPole-v1").unwrapped.gravity
    first = sent.reset(9)
    sent.set_task(0)
    assert kind != "rotate" or not np.array_equal(sent.reset(9), first)
    sent.set_task(2)
    np.testing.assert_array_equal(sent.reset(9), first)


# Actions


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Hopper-v5"])
def test_actions_are_permuted_or_change_their_signs_and_never_stay_the_same(env_id):
    env, plain = make(env_id, 2, options("actions")), make_vec(env_id, 2)
    np.testing.assert_array_equal(env.reset(3), plain.reset(3))
    space, before = env.action_space, None
    for index in range(48):
        now = env._changing._actions[0]
        if index % 12 == 0:
            assert before is None or not np.array_equal(now, before)
            before = now
        actions = env.random_action()
        taken = now[actions] if env_id != "Hopper-v5" else actions * now
        step, other = env.step(actions), plain.step(taken)
        np.testing.assert_array_equal(step.next_obs, other.next_obs)
        np.testing.assert_array_equal(step.reward, other.reward)
        if (index + 1) % 12 == 0:
            plain.cut_off(np.flatnonzero(~other.terminated & ~other.truncated))
    drawn = np.array([other_actions(np.random.default_rng(i), before, space) for i in range(50)])
    if env_id == "Hopper-v5":
        assert set(drawn.ravel().tolist()) == {-1.0, 1.0}
    else:
        assert (np.sort(drawn) == np.arange(space.n)).all()
    assert not (drawn == before).all(1).any()


# Physics


def test_cart_pole_with_other_physics_moves_as_gymnasium_says():
    change = options("physics", physics=dataclasses.replace(PHYSICS, length=(0.5, 2.0)))
    env = make("CartPole-v1", 1, change)
    obs = env.reset(3)
    inner = env._changing._inner._envs[0].unwrapped
    x, v, angle, rate = obs[0].astype(np.float64)
    # Barto, Sutton & Anderson 1983 with the force to the right, Euler steps of 20 ms.
    force, pole, cart, half = inner.force_mag, inner.masspole, inner.masscart, inner.length
    assert (force, pole, half) != (10.0, 0.1, 0.5) and inner.gravity != 9.8
    assert pole / cart == pytest.approx(0.1)
    push = (force + pole * half * rate**2 * math.sin(angle)) / (pole + cart)
    lever = half * (4 / 3 - pole * math.cos(angle) ** 2 / (pole + cart))
    turn = (inner.gravity * math.sin(angle) - math.cos(angle) * push) / lever
    along = push - pole * half * turn * math.cos(angle) / (pole + cart)
    expected = (x + 0.02 * v, v + 0.02 * along, angle + 0.02 * rate, rate + 0.02 * turn)
    np.testing.assert_allclose(env.step(np.array([1])).next_obs[0], expected, rtol=1e-5)


def test_factors_lie_in_their_ranges_uniformly_in_the_logarithm():
    env = make("CartPole-v1", 1, options("physics", physics=PhysicsConfig(gravity=(0.25, 4.0))), go_on=False)
    inner = env._changing._inner._envs[0].unwrapped
    seen = []
    for task in range(300):
        env.set_task(task)
        seen.append(math.log(inner.gravity / 9.8))
        assert (inner.force_mag, inner.masspole, inner.length) == (10.0, 0.1, 0.5)
    assert -math.log(4) <= min(seen) < -1.2 and 1.2 < max(seen) <= math.log(4)
    assert abs(np.mean(seen)) < 0.2 and np.std(seen) == pytest.approx(math.log(16) / math.sqrt(12), rel=0.1)


ONES = dict.fromkeys(("gravity", "friction", "strength", "mass", "length", "speed"), 1.0)


def test_factors_of_one_leave_the_h1_as_it_is_bit_for_bit():
    from envs.humanoid.vector import HumanoidVectorEnv

    plain, varied = (HumanoidVectorEnv("walk", 1, action_repeat=2) for _ in range(2))
    varied.vary([ONES])
    np.testing.assert_array_equal(plain.reset(seed=1)[0], varied.reset(seed=1)[0])
    generator = np.random.default_rng(0)
    for _ in range(60):
        action = generator.uniform(-1, 1, (1, 19))
        for one, other in zip(plain.step(action)[:4], varied.step(action)[:4], strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_h1s_gravity_strength_masses_and_friction_are_multiplied_in_the_compiled_model():
    nominal = scene("walk")
    varied = nominal.varied({**ONES, "gravity": 0.5, "strength": 2.0, "mass": 1.5, "friction": 0.25})
    assert nominal.model is not varied.model and nominal.model.opt.gravity[2] == pytest.approx(-9.81)

    def falls(model):
        """Acceleration of the pelvis in the air, vertical, without control."""
        data = mujoco.MjData(model)
        data.qpos[:] = nominal.initial_qpos
        data.qpos[2] = 5.0
        data.ctrl[:] = data.qpos[7:]
        mujoco.mj_forward(model, data)
        return data.qacc[2]

    assert falls(nominal.model) == pytest.approx(-9.81, rel=1e-6)
    assert falls(varied.model) == pytest.approx(-9.81 / 2, rel=1e-6)

    def torques(model):
        data = mujoco.MjData(model)
        data.qpos[:] = nominal.initial_qpos
        data.ctrl[:] = 0.3
        mujoco.mj_forward(model, data)
        return data.actuator_force.copy()

    np.testing.assert_allclose(torques(varied.model), 2 * torques(nominal.model), rtol=1e-12)
    assert varied.model.body_subtreemass[0] == pytest.approx(1.5 * nominal.model.body_subtreemass[0])

    def contact_friction(model):
        data = mujoco.MjData(model)
        data.qpos[:] = nominal.initial_qpos
        data.qpos[2] = 0.9
        mujoco.mj_forward(model, data)
        assert data.ncon
        return data.contact.friction

    np.testing.assert_allclose(contact_friction(varied.model), contact_friction(nominal.model) / 4)
    silent = varied.silent_model
    assert silent.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_SENSOR and silent.opt.gravity[2] > -5


def test_the_speed_that_the_h1_is_asked_for_is_multiplied_in_its_reward():
    change = options("physics", physics=PhysicsConfig(speed=(0.5, 2.0)))
    env, plain = make("h1-walk", 2, change, SEEDS[:2]), make_vec("h1-walk", 2, num_runs=2)
    env.reset(SEEDS[:2]), plain.reset(SEEDS[:2])
    simulations = env._changing._inner._vector._simulations
    speeds = [simulation.scene.task.speed for simulation in simulations]
    assert speeds[0] == speeds[1] != speeds[2] == speeds[3]
    assert all(0.5 <= speed <= 2.0 for speed in speeds)
    for _ in range(11):
        actions = plain.random_action()
        step, other = env.step(actions), plain.step(actions)
        np.testing.assert_array_equal(step.next_obs, other.next_obs)
        for row, speed in enumerate(speeds):
            along = simulations[row].readings.com_velocity[0]
            factor = [(5 * max(1 - max(s - along, 0) / s, 0) + 1) / 6 for s in (speed, 1.0)]
            assert step.reward[row] == pytest.approx(other.reward[row] * factor[0] / factor[1], rel=1e-5)


# Sequences


def test_a_sequence_plays_one_environment_after_the_other():
    ids = ("h1-walk", "h1-stand")
    env = make("h1-walk", 1, options("sequence", ids=ids))
    plain = [make_vec(each, 1) for each in ids]
    env.reset(3), [each.reset(3) for each in plain]
    rewards = []
    for index in range(2 * PERIOD + 6):
        task = index // PERIOD
        assert env.task == task
        actions = env.random_action()
        step = env.step(actions)
        # Both plain ones move alike, but are rewarded differently.
        taken = [each.step(actions) for each in plain]
        np.testing.assert_array_equal(step.next_obs, taken[0].next_obs)
        assert step.reward == taken[task % 2].reward
        rewards.append([float(each.reward[0]) for each in taken])
        if (index + 1) % PERIOD == 0:
            [each.cut_off(np.arange(1)) for each in plain if not taken[0].terminated.any()]
    assert len({one == other for one, other in rewards}) >= 1 and any(one != other for one, other in rewards)


@pytest.mark.slow
@pytest.mark.atari
def test_games_take_turns_on_the_full_action_set():
    atari = AtariConfig(full_action_set=True, max_frames=200)
    change = options("sequence", ids=("Pong", "Breakout"), every=20)
    env = make("Pong", 1, change, atari=atari, repeat=4)
    env.reset(1)
    games = []
    for _ in range(45):
        games.append(env.state_dict()["native"]["protocol"]["game"])
        env.step(env.random_action())
    assert games == ["pong"] * 20 + ["breakout"] * 20 + ["pong"] * 5 and env.action_space.n == 18
    again = make("Pong", 1, change, atari=atari, repeat=4)
    again.load_state_dict(env.state_dict())
    for _ in range(20):
        actions = env.random_action()
        np.testing.assert_array_equal(env.step(actions).obs, again.step(actions).obs)
    assert env.task == 3
    with pytest.raises(EnvError, match=r"Pong-v5 and ALE/Breakout-v5 have different action spaces.*6.*4"):
        make("Pong", 1, change, atari=AtariConfig(), repeat=4)


# Refusals


@pytest.mark.parametrize(
    "env_id, change, message",
    [
        (
            "CartPole-v1",
            options("rotate", dims=3),
            "env.change.dims 3 is less than the 4 numbers that CartPole-v1",
        ),
        (
            "Pendulum-v1",
            options("physics", physics=PhysicsConfig(friction=(0.5, 2.0))),
            "env.change.physics.friction: Pendulum-v1 cannot change it; it can change: gravity, mass, length",
        ),
        (
            "h1-stand",
            options("physics", physics=PhysicsConfig(speed=(0.5, 2.0))),
            "it can change: gravity, friction, strength, mass$",
        ),
        (
            "CartPole-v1",
            options("sequence", ids=("CartPole-v1", "Acrobot-v1")),
            r"CartPole-v1 and Acrobot-v1 have different observation spaces, Box\(4,\) and Box\(6,\)",
        ),
    ],
)
def test_what_is_impossible_is_refused_in_one_line(env_id, change, message):
    with pytest.raises(EnvError, match=message) as caught:
        make(env_id, 1, change)
    assert "\n" not in str(caught.value)


@pytest.mark.atari
@pytest.mark.parametrize("kind", ["rotate", "drift", "physics"])
def test_games_are_neither_turned_nor_given_other_physics(kind):
    physics = PHYSICS if kind == "physics" else PhysicsConfig()
    with pytest.raises(EnvError, match=r"flat observations, but ALE/Pong-v5|it can change: nothing"):
        make("Pong", 1, options(kind, physics=physics), repeat=4)
