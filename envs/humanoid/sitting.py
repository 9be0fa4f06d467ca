"""Sit down on a chair and stay there (HumanoidBench, ``Sit`` and ``SitHard``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import small_control, standing_still, upright
from envs.humanoid.rewards import tolerance
from envs.humanoid.robot import STANDING_QPOS
from envs.humanoid.scenery import BOX, add_position_sensor, add_shape
from envs.humanoid.task import Components, Readings, Task

CHAIR_POS = (-0.25, 0, 0)
# Boxes in the chair's frame: position, half lengths. The four legs, the seat, the back's posts and its board are drawn
# and have mass; collisions happen with two simpler ones.
CHAIR_PARTS = (
    *(((x, y, 0.225), (0.02, 0.02, 0.225)) for x in (0.19, -0.19) for y in (0.19, -0.19)),
    ((0, 0, 0.45), (0.21, 0.21, 0.025)),
    *(((-0.23, y, 0.6375), (0.02, 0.02, 0.2125)) for y in (0.19, -0.19)),
    ((-0.23, 0, 0.77), (0.02, 0.21, 0.08)),
)
CHAIR_COLLISION = (((-0.23, 0, 0.65), (0.02, 0.21, 0.2)), ((0, 0, 0.2375), (0.21, 0.21, 0.2375)))


class SitSimple(Task):
    """A chair behind the robot that cannot move."""

    name, success = "sit_simple", 750.0
    chair_moves = False

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        chair = spec.worldbody.add_body(name="chair", pos=CHAIR_POS)
        if self.chair_moves:
            chair.add_freejoint(name="free_chair")
        for pos, size in CHAIR_PARTS:
            add_shape(chair, BOX, pos, size, contype=0, conaffinity=0)
        for pos, size in CHAIR_COLLISION:
            add_shape(chair, BOX, pos, size, mass=0, group=mujoco.mjNGROUP - 1)
        add_position_sensor(spec, "chair_position", mujoco.mjtObj.mjOBJ_XBODY, "chair")

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        chair = readings.sensor("chair_position")
        behind, beside = (readings.qpos[..., axis] - chair[..., axis] for axis in (0, 1))
        above_imu = readings.head_height - readings.sensor("imu_position")[..., 2]
        parts = {
            "sitting": tolerance(readings.base_height, 0.68, 0.72, margin=0.2),
            "on_chair": tolerance(behind, -0.19, 0.19, margin=0.2) * tolerance(beside, margin=0.1),
            "sitting_posture": tolerance(above_imu, 0.35, 0.45, margin=0.3),
            "upright": upright(readings, at_least=0.95, margin=0.9),
            "small_control": small_control(readings),
            "dont_move": standing_still(readings),
        }
        seated = 0.5 * parts["sitting"] + 0.5 * parts["on_chair"]
        parts["sit_reward"] = seated * parts["upright"] * parts["sitting_posture"]
        return parts["small_control"] * parts["sit_reward"] * parts["dont_move"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < 0.5


class SitHard(SitSimple):
    """A chair that can be pushed, and a robot that starts anywhere near it, facing any way within +-1.8 rad."""

    name = "sit_hard"
    chair_moves = True

    def initial_qpos(self) -> np.ndarray:
        return np.concatenate((STANDING_QPOS, (*CHAIR_POS, 1, 0, 0, 0)))

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        data.qpos[0] = random.uniform(0.2, 0.4)
        data.qpos[1] = random.uniform(-0.15, 0.15)
        half = random.uniform(-1.8, 1.8) / 2
        data.qpos[3:7] = np.cos(half), 0, 0, np.sin(half)
        return True
