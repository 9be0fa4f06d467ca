"""Swing up on a bar (HumanoidBench, ``HighBarSimple``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import small_control
from envs.humanoid.rewards import INFINITY, tolerance
from envs.humanoid.robot import JOINTS
from envs.humanoid.scenery import CYLINDER, add_shape
from envs.humanoid.task import Components, Readings, Task

ALONG_Y = (0.5**0.5, -(0.5**0.5), 0, 0)  # quaternion that turns z there
RAISED_ARM = {"shoulder_roll": 3.11, "elbow": 1.49}  # rad, left; the right shoulder mirrors it


class HighBarSimple(Task):
    """Hang from a bar by the forearms, which are tied to it, and come to stand on the hands.

    The original adds reset noise only to the very first episode of an environment; ours never does, so that an
    episode depends on its seed alone.
    """

    name, success = "highbar_simple", 750.0
    reset_noise = 0.0

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        steel = (0.35, 0.36, 0.38, 1)
        bar = spec.worldbody.add_body(name="bar", pos=(0.5, 0, 0))
        for y in (1.2, -1.2):
            add_shape(bar, CYLINDER, (-0.19, y, 2), (0.02, 2), steel)
        add_shape(bar, CYLINDER, (-0.19, 0, 2.8), (0.02, 1.2), steel, quat=ALONG_Y)
        # Where the forearms are tied is fixed by the pose the model is compiled in: arms down, pelvis at 2.7 m.
        spec.body("pelvis").pos = (0, 0, 2.7)
        for side, y in (("left", 0.22), ("right", -0.22)):
            tie = spec.add_equality(
                name=f"{side}_hand_to_bar",
                type=mujoco.mjtEq.mjEQ_CONNECT,
                objtype=mujoco.mjtObj.mjOBJ_BODY,
                name1="bar",
                name2=f"{side}_elbow",
            )
            tie.data[:3] = (-0.19, y, 2.82)
            spec.add_exclude(bodyname1="bar", bodyname2=f"{side}_elbow")

    def initial_qpos(self) -> np.ndarray:
        angles = dict.fromkeys(JOINTS, 0.0)
        for joint, angle in RAISED_ARM.items():
            angles[f"left_{joint}"] = angle
            angles[f"right_{joint}"] = -angle if joint == "shoulder_roll" else angle
        return np.array([0.27, 0, 1.74, 1, 0, 0, 0, *angles.values()])

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        feet = [readings.sensor(f"{side}_foot_position")[..., 2] for side in ("left", "right")]
        high = tolerance((feet[0] + feet[1]) / 2, 4.8, INFINITY, 2.0, "linear", value_at_margin=0.0)
        down = -readings.torso_upright
        parts = {
            "upright_reward": tolerance(down, 0.9, INFINITY, 1.9, "linear", value_at_margin=0.0),
            "feet_reward": (1 + high) / 2,
            "small_control": small_control(readings),
        }
        return parts["upright_reward"] * parts["feet_reward"] * parts["small_control"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.head_height < 2.0
