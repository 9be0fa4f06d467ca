"""The native H1 tasks against figures recorded from the official HumanoidBench package."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs import make_vec
from envs.humanoid.simulation import Simulation, scene
from envs.humanoid.task import Readings, Task
from envs.humanoid.tasks import TASKS

DATA = Path(__file__).parents[1] / "data"
# Tasks whose rewards depend on earlier steps.
REMEMBERING = ("maze", "truck", "basketball")
RECORDED = sorted(path.stem.removeprefix("h1-") for path in DATA.glob("h1-*.npz"))


# What the traces call it, which sensor of ours it is, and which of the sensor's numbers.
SENSORS = (
    ("head_height", "head_position", 2),
    ("torso_upright", "torso_up", 2),
    ("left_foot_height", "left_foot_position", 2),
    ("right_foot_height", "right_foot_position", 2),
    ("com_velocity", "com_velocity", slice(None)),
    ("actuator_force", "actuator_force", slice(None)),
    ("imu_xpos", "imu_position", slice(None)),
    ("pelvis_xquat", "pelvis_quaternion", slice(None)),
)


def readings_of(trace: dict[str, np.ndarray], task: str) -> Readings:
    """Return what the official simulator held after each step, (T, ...); NaN where nothing was recorded."""
    compiled = scene(task)
    nq, nv = compiled.model.nq, compiled.model.nv
    sensordata = np.full((len(trace["reward"]), compiled.model.nsensordata), np.nan)
    obs = trace["obs"]
    qpos, qvel = trace.get("qpos", obs[:, :nq]), trace.get("qvel", obs[:, nq : nq + nv])
    readings = Readings(compiled.layout, qpos.copy(), qvel.copy(), sensordata)
    ours = [name for name in trace if name.startswith("sensor/")]
    for name in ours:  # recorded by benchmarks/record_traces.py
        readings.sensor(name.removeprefix("sensor/"))[:] = trace[name]
    if ours:
        return readings
    for recorded, sensor, part in SENSORS:
        if recorded in trace:
            readings.sensor(sensor)[:, part] = trace[recorded]
    if task == "sit_simple":
        readings.sensor("chair_position")[:] = (-0.25, 0, 0)
    elif task == "reach":
        readings.sensor("left_hand_position")[:] = obs[:, nq + nv : nq + nv + 3]
        x, y = trace["pelvis_xquat"][:, 1], trace["pelvis_xquat"][:, 2]
        readings.sensor("pelvis_up")[:, 2] = 1 - 2 * (x**2 + y**2)
    elif (
        task == "maze"
    ):  # 2 ms newer than what the original compares with 0.4 m: no step of the trace is that close
        readings.sensor("pelvis_position")[:] = readings.qpos[:, :3]
    elif task == "balance_simple":  # contacts were not recorded: see test_balance_ends_at_contacts
        for name in ("robot_on_floor", "board_on_floor", "robot_on_sphere"):
            readings.sensor(name)[:, 0] = trace["terminated"] & (name == "robot_on_floor")
    for name, part in (("hurdle", "barrier_contact"), ("maze", "wall_contact")):
        if task == name:
            readings.sensor(part)[:, 0] = trace["info/wall_collision_discount"] < 1
    return readings


def evaluate(task: Task, readings: Readings, trace: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return reward, components, terminated and observation, all (T, ...)."""
    memory = np.zeros((len(trace["reward"]), task.memory_size))
    if "memory" in trace and task.name not in REMEMBERING:
        memory[:] = trace["memory"]
    elif task.name == "reach":
        memory[:] = trace["obs"][:, -3:]
    if task.name not in REMEMBERING:
        reward, parts = task.reward(readings, memory)
        return reward, parts, task.terminated(readings, memory), task.observation(readings, memory)
    rows, running, fresh = [], np.zeros(task.memory_size), True  # what is remembered passes from step to step
    for time in range(len(trace["reward"])):
        if fresh:
            running[:] = 0
        now = readings._replace(
            qpos=readings.qpos[time], qvel=readings.qvel[time], sensordata=readings.sensordata[time]
        )
        reward, parts = task.reward(now, running)
        rows.append((reward, parts, task.terminated(now, running), task.observation(now, running)))
        fresh = trace["terminated"][time]
    rewards, parts, ends, observations = zip(*rows, strict=True)
    joined = {name: np.array([part[name] for part in parts]) for name in parts[0]}
    return np.array(rewards), joined, np.array(ends), np.array(observations)


@pytest.mark.parametrize("name", RECORDED)
def test_rewards_terminations_and_observations_on_official_states(name):
    trace = dict(np.load(DATA / f"h1-{name}.npz"))
    reward, components, terminated, observation = evaluate(TASKS[name](), readings_of(trace, name), trace)
    np.testing.assert_allclose(reward, trace["reward"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(terminated, trace["terminated"])
    np.testing.assert_array_equal(observation, trace["obs"])
    official = {key.removeprefix("info/") for key in trace if key.startswith("info/")}
    assert official <= components.keys()
    for key in official:
        np.testing.assert_allclose(components[key], trace[f"info/{key}"], rtol=0, atol=1e-9, err_msg=key)


def test_recorded_traces_can_fail():
    trace = dict(np.load(DATA / "h1-walk.npz"))
    readings = readings_of(trace, "run")
    reward, _ = TASKS["run"]().reward(readings, np.zeros((len(trace["reward"]), 0)))
    assert np.abs(reward - trace["reward"]).max() > 1e-3
    assert trace["terminated"].any() and not trace["terminated"].all()


def test_contact_free_motion():
    trace = np.load(DATA / "free-fall.npz")
    simulation = Simulation(scene("walk"))
    simulation.data.qpos[:], simulation.data.qvel[:] = trace["qpos0"], trace["qvel0"]
    mujoco.mj_forward(simulation.scene.model, simulation.data)
    for action, qpos, qvel, force in zip(
        trace["action"], trace["qpos"], trace["qvel"], trace["actuator_force"], strict=True
    ):
        simulation.step(simulation.scene.control(action))
        np.testing.assert_allclose(simulation.data.qpos, qpos, rtol=0, atol=1e-6)
        np.testing.assert_allclose(simulation.data.qvel, qvel, rtol=0, atol=1e-4)
        # The recorded torques lag by one physics step, as the sensors do.
        np.testing.assert_allclose(simulation.readings.actuator_force, force, rtol=0, atol=1e-3)


def test_sensors_say_what_mujoco_derives():
    simulation = Simulation(scene("walk"))
    simulation.reset(np.random.default_rng(0))
    data, readings = simulation.data, simulation.readings
    for _ in range(5):
        simulation.step(np.zeros(19))
        # Derived quantities and sensors both belong to the state before the last physics step.
        assert readings.head_height == data.site("head").xpos[2]
        assert readings.torso_upright == data.body("torso").xmat[8]
        np.testing.assert_array_equal(readings.sensor("imu_position"), data.site("imu").xpos)
        np.testing.assert_array_equal(readings.sensor("left_foot_position"), data.site("left_foot").xpos)
        np.testing.assert_array_equal(readings.sensor("pelvis_quaternion"), data.body("pelvis").xquat)
        np.testing.assert_array_equal(readings.actuator_force, data.actuator_force)
        np.testing.assert_array_equal(readings.com_velocity, data.subtree_linvel[1])
        assert readings.base_height == data.qpos[2]
        stale = readings.head_height.copy()
        mujoco.mj_forward(simulation.scene.model, data)
        assert readings.head_height != stale


@pytest.mark.parametrize("task", ["walk", "balance_hard", "truck"])
def test_a_frame_is_ten_physics_steps(task):
    """``step`` computes sensors in the last one only; that must not change a bit of anything."""
    simulation = Simulation(scene(task))
    model, data = simulation.scene.model, mujoco.MjData(simulation.scene.model)
    simulation.reset(np.random.default_rng(0))
    mujoco.mj_copyData(data, model, simulation.data)
    random = np.random.default_rng(1)
    for _ in range(30):
        data.ctrl[:] = simulation.scene.control(random.uniform(-1, 1, 19))
        simulation.step(data.ctrl.copy())
        for _ in range(10):
            mujoco.mj_step(model, data)
        for field in ("qpos", "qvel", "sensordata", "qacc_warmstart", "actuator_force", "xpos", "time"):
            np.testing.assert_array_equal(
                getattr(simulation.data, field), getattr(data, field), err_msg=field
            )


def test_model_has_the_published_figures():
    model = scene("walk").model
    assert (model.nq, model.nv, model.nu) == (26, 25, 19)
    # Sum of the table's masses: pelvis, two legs, torso, two arms.
    legs, arms = 2.244 + 2.232 + 4.152 + 1.721 + 0.552448, 1.033 + 0.793 + 0.839 + 0.669
    assert model.body_mass.sum() == pytest.approx(5.39 + 17.789 + 2 * (legs + arms), abs=1e-12)
    assert model.opt.timestep * 10 == 0.02


def test_right_limbs_mirror_left_ones():
    model = scene("walk").model
    data = mujoco.MjData(model)
    data.qpos[:] = scene("walk").initial_qpos
    mujoco.mj_forward(model, data)
    flip = np.diag([1.0, -1.0, 1.0])
    lefts = [model.body(i).name for i in range(model.nbody) if model.body(i).name.startswith("left_")]
    assert len(lefts) == 9
    for name in lefts:
        left, right = model.body(name), model.body(name.replace("left", "right"))
        np.testing.assert_allclose(flip @ data.xipos[left.id], data.xipos[right.id], atol=1e-12)
        tensors = []
        for body in (left, right):
            axes = data.ximat[body.id].reshape(3, 3)
            tensors.append(axes @ np.diag(body.inertia) @ axes.T)
        np.testing.assert_allclose(flip @ tensors[0] @ flip, tensors[1], atol=1e-12)
        limits = [model.joint(body.name).range for body in (left, right)]
        same_way = np.abs(model.joint(name).axis[1]) == 1  # pitch: the mirror keeps the sense of rotation
        np.testing.assert_array_equal(limits[0] if same_way else -limits[0][::-1], limits[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, mean_return, error, mean_length, length_error",
    # The official package on mujoco 4.0, 300 episodes each, by benchmarks/parity.py.
    [("walk", 4.16, 0.13, 59.57, 1.57), ("balance_simple", 12.90, 0.20, 21.49, 0.39)],
)
def test_random_policy_fares_as_in_the_original(task, mean_return, error, mean_length, length_error):
    env = make_vec(f"h1-{task}", num_envs=10)
    env.reset(seeds=0)
    played = []
    while len(played) < 300:
        played += env.step(env.random_action()).episodes
    for values, mean, its_error in (
        ([episode.episodic_return for episode in played], mean_return, error),
        ([episode.length for episode in played], mean_length, length_error),
    ):
        # Four standard errors of the difference: wrong once in 16,000 runs if the means are equal.
        assert abs(np.mean(values) - mean) < 4 * np.hypot(np.std(values) / np.sqrt(len(values)), its_error)
