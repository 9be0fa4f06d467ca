"""What tasks say about contacts, against a scan of MuJoCo's list of contacts as HumanoidBench does it."""

from __future__ import annotations

import gymnasium as gym
import mujoco
import numpy as np
import pytest

import envs  # noqa: F401  (registers the environments)
from envs.humanoid.simulation import Simulation, scene


def touching_bodies(simulation: Simulation) -> list[set[str]]:
    """Return the pairs of bodies in contact; the robot's links are all called "robot"."""
    model = simulation.scene.model
    robot = model.body("pelvis").id
    names = [
        "robot" if model.body_rootid[body] == robot else model.body(body).name for body in range(model.nbody)
    ]
    return [{names[model.geom_bodyid[geom]] for geom in contact.geom} for contact in simulation.data.contact]


def fall(task: str, start: tuple[float, float] | None, seed: int, steps: int = 60):
    """Yield the simulation after each step of a random policy, until the task ends or ``steps`` are over."""
    simulation = Simulation(scene(task))
    generator = np.random.default_rng(seed)
    simulation.reset(generator)
    if start is not None:
        simulation.data.qpos[:2] = start
        mujoco.mj_forward(simulation.scene.model, simulation.data)
    for _ in range(steps):
        simulation.step(simulation.scene.control(generator.uniform(-1, 1, 19)))
        yield simulation
        if simulation.scene.task.terminated(simulation.readings, simulation.memory):
            return


@pytest.mark.parametrize(
    "task, obstacle, part, starts",
    [
        ("hurdle", "barriers", "wall_collision_discount", [(0, 0), (3, 4.3), (0, -4.3)]),
        ("maze", "maze", "wall_collision_discount", [(0, 0), (3, 0.4)]),
        ("pole", "poles", "collision_discount", [(0, 0), (3.5, 0)]),
    ],
)
def test_touching_an_obstacle_costs_nine_tenths(task, obstacle, part, starts):
    seen = set()
    for seed, start in enumerate(starts):
        for simulation in fall(task, start, seed):
            touched = any(obstacle in pair for pair in touching_bodies(simulation))
            _, parts = simulation.scene.task.reward(simulation.readings, simulation.memory)
            assert parts[part] == (0.1 if touched else 1.0)
            seen.add(touched)
    assert seen == {False, True}


@pytest.mark.parametrize("task", ["balance_simple", "balance_hard"])
def test_balance_ends_at_contacts(task):
    reasons = set()
    for seed in range(12):
        for simulation in fall(task, None, seed):
            pairs = touching_bodies(simulation)
            low = bool(simulation.readings.base_height < 0.8)
            on_sphere = {"robot", "sphere"} in pairs
            on_floor = any("world" in pair and "sphere" not in pair for pair in pairs)
            ended = bool(simulation.scene.task.terminated(simulation.readings, simulation.memory))
            assert ended == (low or on_sphere or on_floor)
            reasons |= {name for name, true in (("sphere", on_sphere), ("floor", on_floor)) if true}
            reasons |= set() if ended else {"alive"}
    assert {"alive", "floor"} <= reasons


def test_maze_counts_checkpoints():
    simulation = Simulation(scene("maze"))
    simulation.reset(np.random.default_rng(0))
    task, data, model = simulation.scene.task, simulation.data, simulation.scene.model
    stages = []
    for x, y in ((0, 0), (1.5, 0), (3, 0), (3, 6), (6, 6), (6, 6)):
        data.qpos[:2] = x, y
        mujoco.mj_forward(model, data)
        _, parts = task.reward(simulation.readings, simulation.memory)
        stages.append((int(parts["success_subtasks"]), float(parts["stage_convert_reward"])))
    assert stages == [(1, 100), (1, 0), (2, 200), (3, 300), (4, 400), (4, 0)]
    assert parts["move"] == 1.0 and parts["checkpoint_proximity_reward"] > 0.99
    simulation.reset(np.random.default_rng(0))
    assert simulation.memory[0] == 0


def test_randomised_starts():
    simulation = Simulation(scene("sit_hard"))
    starts = []
    for seed in range(200):
        simulation.reset(np.random.default_rng(seed))
        starts.append(simulation.data.qpos[:7].copy())
    starts = np.array(starts)
    yaw = 2 * np.arctan2(starts[:, 6], starts[:, 3])
    for values, low, high in ((starts[:, 0], 0.2, 0.4), (starts[:, 1], -0.15, 0.15), (yaw, -1.8, 1.8)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
    np.testing.assert_array_equal(starts[:, 4:6], 0)

    simulation = Simulation(scene("reach"))
    targets = []
    for seed in range(200):
        simulation.reset(np.random.default_rng(seed))
        targets.append(simulation.memory.copy())
        np.testing.assert_array_equal(simulation.data.mocap_pos[0], targets[-1])
    targets = np.array(targets)
    assert (targets.min(axis=0) >= (-2, -2, 0.2)).all() and (targets.max(axis=0) <= (2, 2, 2)).all()
    assert (np.ptp(targets, axis=0) > (3.8, 3.8, 1.7)).all()


def test_basketball_flies_at_the_robot_from_a_direction_of_the_seed():
    env = gym.make("h1-basketball-v0").unwrapped
    angles = []
    for seed in range(40):
        obs, _ = env.reset(seed=seed)
        ball, velocity = obs[26:29], obs[33 + 25 : 33 + 28]
        angles.append(np.arctan2(ball[1], ball[0]))
        np.testing.assert_allclose(np.linalg.norm(ball[:2]), 1.5)
        np.testing.assert_allclose(velocity, [*(-5 * ball[:2]), 0], atol=1e-12)  # 7.5 m/s over 1.5 m
    assert -1.45 < min(angles) < -0.9 and 0.9 < max(angles) < 1.45
    step = env.step(np.zeros(19, np.float32))
    assert step[4]["success_subtasks"] == 0
    while not step[4]["success_subtasks"]:  # it reaches the robot in 0.2 s
        step = env.step(np.zeros(19, np.float32))
    env.reset(seed=0)
    assert env.step(np.zeros(19, np.float32))[4]["success_subtasks"] == 0


def test_truck_forgets_the_last_episode():
    env = gym.make("h1-truck-v0").unwrapped
    first = env.reset(seed=0)[0]
    env.step(np.zeros(19, np.float32))
    env._simulation.data.joint("free_package_c").qpos[:3] = 2, -1.7, 2.0
    reward, info = (env.step(np.zeros(19, np.float32))[i] for i in (1, 4))
    assert 200 < reward < 205 and info["packages_on_table"] == 1  # lifted, and at once above the table
    np.testing.assert_array_equal(env.reset(seed=0)[0], first)
    info = env.step(np.zeros(19, np.float32))[4]
    assert (info["packages_on_truck"], info["packages_on_table"]) == (5, 0)
