"""Bring the left hand to a target (HumanoidBench, ``Reach``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.scenery import SPHERE, add_position_sensor, add_shape
from envs.humanoid.task import Components, Readings, Task

TARGET_LOW, TARGET_HIGH = (-2, -2, 0.2), (2, 2, 2.0)  # m


class Reach(Task):
    """The target is drawn at every reset and kept in ``memory``; never terminates."""

    name, success = "reach", 12000.0
    memory_size = 3

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        target = spec.worldbody.add_body(name="target", mocap=True)
        add_shape(target, SPHERE, (0, 0, 0), (0.05,), (0.8, 0.28, 0.28, 1), contype=0, conaffinity=0)
        site, body = mujoco.mjtObj.mjOBJ_SITE, mujoco.mjtObj.mjOBJ_XBODY
        add_position_sensor(spec, "left_hand_position", site, "left_hand")
        spec.add_sensor(
            name="pelvis_up", type=mujoco.mjtSensor.mjSENS_FRAMEZAXIS, objtype=body, objname="pelvis"
        )

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        memory[:] = data.mocap_pos[0] = random.uniform(TARGET_LOW, TARGET_HIGH)
        return True

    def observation(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        hand = readings.sensor("left_hand_position")
        return np.concatenate((readings.qpos, readings.qvel, hand, memory), axis=-1)

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {
            "hand_dist": np.linalg.norm(readings.sensor("left_hand_position") - memory, axis=-1),
            "healthy_reward": readings.sensor("pelvis_up")[..., 2] * 5.0,
            "motion_penalty": np.square(readings.qvel).sum(axis=-1),
        }
        parts["reward_close"] = np.where(parts["hand_dist"] < 1, 5.0, 0.0)
        parts["reward_success"] = np.where(parts["hand_dist"] < 0.05, 10.0, 0.0)
        reward = parts["healthy_reward"] - 0.0001 * parts["motion_penalty"]
        return reward + parts["reward_close"] + parts["reward_success"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return np.zeros(readings.base_height.shape, dtype=np.bool_)
