"""What a HumanoidBench task is, and what it may read of the simulation.

Everything here works on arrays with any leading dimensions (written ``...``): () for a single environment, (N,)
for a batch of them, (T,) for a recorded trace. A task keeps no state of its own, so one object serves all; what it
must remember between steps of an episode lies in ``memory``.
"""

from __future__ import annotations

from typing import NamedTuple

import mujoco
import numpy as np

from envs.humanoid.robot import JOINTS, STANDING_QPOS

Components = dict[str, np.ndarray]
# HumanoidBench's key in ``info`` for the reward of one frame, before any action repeat adds it to others.
FRAME_REWARD = "per_timestep_reward"


class Layout(dict[str, slice]):
    """Where each sensor's numbers lie in ``sensordata``."""

    @classmethod
    def of(cls, model: mujoco.MjModel) -> Layout:
        """Read the layout of a compiled scene; ``actuator_force`` is all joints' sensors, in their order."""
        layout = cls()
        for index in range(model.nsensor):
            sensor = model.sensor(index)
            layout[sensor.name] = slice(sensor.adr[0], sensor.adr[0] + sensor.dim[0])
        forces = [layout.pop(_force_sensor(joint)) for joint in JOINTS]
        layout["actuator_force"] = slice(forces[0].start, forces[-1].stop)
        return layout


class Readings(NamedTuple):
    """The quantities rewards are made of, in SI units and world axes.

    ``sensordata`` is as old as MuJoCo's derived quantities are after a step: it belongs to the state one physics
    step (2 ms) before ``qpos`` and ``qvel``. HumanoidBench computes its rewards from that mixture, and so do we.
    """

    layout: Layout
    qpos: np.ndarray  # (..., nq) float64; the robot's base position, base quaternion and 19 angles come first
    qvel: (
        np.ndarray
    )  # (..., nv) float64; base velocity, base angular velocity, 19 joint velocities come first
    sensordata: np.ndarray  # (..., nsensordata) float64

    def sensor(self, name: str) -> np.ndarray:
        """Return the numbers of one sensor, (..., dimension)."""
        return self.sensordata[..., self.layout[name]]

    @property
    def base_height(self) -> np.ndarray:
        """Height of the pelvis, (...), without the lag."""
        return self.qpos[..., 2]

    @property
    def head_height(self) -> np.ndarray:
        """Height of the site ``head``, (...)."""
        return self.sensor("head_position")[..., 2]

    @property
    def torso_upright(self) -> np.ndarray:
        """Vertical part of the torso's own z axis, (...): 1 upright, -1 upside down."""
        return self.sensor("torso_up")[..., 2]

    @property
    def com_velocity(self) -> np.ndarray:
        """Velocity of the robot's centre of mass, (..., 3)."""
        return self.sensor("com_velocity")

    @property
    def actuator_force(self) -> np.ndarray:
        """Torque each actuator applied, (..., 19)."""
        return self.sensor("actuator_force")


class Task:
    """A reward and an end on top of the robot in a scene; the base class is a task without scenery.

    Attributes:
        name: the id is ``h1-<name>-v0``.
        success: the return that counts as solved.
        camera: a key of ``scene.CAMERAS``.
        memory_size: float64 numbers kept per environment between steps, zeroed by a reset.
        max_episode_steps: time limit in frames.
        speed: that the reward asks for, m/s, where one number says it; None elsewhere.
        reset_noise: half width of the uniform noise a reset adds to every entry of qpos (m, rad).
    """

    name: str
    success: float
    camera = "default"
    memory_size = 0
    max_episode_steps = 1000
    speed: float | None = None
    reset_noise = 0.01

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        """Add bodies and sensors to the scene; the robot is already in it."""

    def initial_qpos(self) -> np.ndarray:
        """Return the pose before the reset noise, (nq,)."""
        return STANDING_QPOS

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        """Change ``data.qpos``, ``data.qvel`` and ``memory`` after the reset noise; return whether data changed."""
        return False

    def observation(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        """Return what the agent sees, (..., size) float64."""
        return np.concatenate((readings.qpos, readings.qvel), axis=-1)

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        """Return the reward, (...), and its named parts; may update ``memory`` (..., memory_size) in place."""
        raise NotImplementedError

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        """Return whether the episode ends here, (...) bool; called after ``reward``."""
        raise NotImplementedError


def add_sensors(spec: mujoco.MjSpec) -> None:
    """Add the sensors that ``Readings`` names."""
    site, body, link = mujoco.mjtObj.mjOBJ_SITE, mujoco.mjtObj.mjOBJ_BODY, mujoco.mjtObj.mjOBJ_XBODY
    for name, kind, objtype, objname in (
        ("head_position", mujoco.mjtSensor.mjSENS_FRAMEPOS, site, "head"),
        ("imu_position", mujoco.mjtSensor.mjSENS_FRAMEPOS, site, "imu"),
        ("left_foot_position", mujoco.mjtSensor.mjSENS_FRAMEPOS, site, "left_foot"),
        ("right_foot_position", mujoco.mjtSensor.mjSENS_FRAMEPOS, site, "right_foot"),
        ("pelvis_quaternion", mujoco.mjtSensor.mjSENS_FRAMEQUAT, link, "pelvis"),
        ("torso_up", mujoco.mjtSensor.mjSENS_FRAMEZAXIS, link, "torso"),
        ("com_velocity", mujoco.mjtSensor.mjSENS_SUBTREELINVEL, body, "pelvis"),
    ):
        spec.add_sensor(name=name, type=kind, objtype=objtype, objname=objname)
    for joint in JOINTS:
        spec.add_sensor(
            name=_force_sensor(joint),
            type=mujoco.mjtSensor.mjSENS_ACTUATORFRC,
            objtype=mujoco.mjtObj.mjOBJ_ACTUATOR,
            objname=joint,
        )


def _force_sensor(joint: str) -> str:
    return f"force/{joint}"
