"""The native H1 tasks against figures recorded from the official HumanoidBench package."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.humanoid.simulation import Simulation, scene
from envs.humanoid.task import Readings
from envs.humanoid.tasks import TASKS

DATA = Path(__file__).parents[1] / "data"
RECORDED = sorted(path.stem.removeprefix("h1-") for path in DATA.glob("h1-*.npz"))


def readings_of(trace: dict[str, np.ndarray], task: str) -> Readings:
    """Return what the official simulator held after each step, (T, ...)."""
    compiled = scene(task)
    nq, nv = compiled.model.nq, compiled.model.nv
    sensordata = np.full((len(trace["reward"]), compiled.model.nsensordata), np.nan)
    readings = Readings(
        compiled.layout, trace["obs"][:, :nq].copy(), trace["obs"][:, nq : nq + nv].copy(), sensordata
    )
    readings.sensor("head_position")[:, 2] = trace["head_height"]
    readings.sensor("torso_up")[:, 2] = trace["torso_upright"]
    readings.sensor("com_velocity")[:] = trace["com_velocity"]
    readings.sensor("actuator_force")[:] = trace["actuator_force"]
    return readings


@pytest.mark.parametrize("name", RECORDED)
def test_rewards_terminations_and_observations_on_official_states(name):
    trace = dict(np.load(DATA / f"h1-{name}.npz"))
    task, readings = TASKS[name](), readings_of(trace, name)
    memory = np.zeros((len(trace["reward"]), task.memory_size))
    reward, components = task.reward(readings, memory)
    np.testing.assert_allclose(reward, trace["reward"], rtol=0, atol=1e-9)
    np.testing.assert_array_equal(task.terminated(readings, memory), trace["terminated"])
    np.testing.assert_array_equal(task.observation(readings, memory), trace["obs"])
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
