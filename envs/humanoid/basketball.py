"""Catch a basketball and throw it into the hoop (HumanoidBench, ``Basketball``)."""

from __future__ import annotations

import math

import mujoco
import numpy as np

from envs.humanoid.locomotion import small_control, standing, upright
from envs.humanoid.rewards import tolerance
from envs.humanoid.robot import STANDING_QPOS
from envs.humanoid.scenery import (
    BOX,
    CYLINDER,
    GLASS,
    SPHERE,
    add_contact_sensor,
    add_hand_sensors,
    add_position_sensor,
    add_shape,
    body_part,
)
from envs.humanoid.task import Components, Readings, Task

BALL_RADIUS, BALL_DENSITY = 0.1193, 35  # m, kg/m^3
HOOP_POS = (5.8198, 0, 2.25)  # of the hoop's frame
HOOP_CENTER = np.array((5.9, 0, 2.25))
# The original's corners are turned by 45, meant as degrees and read as radians.
TURNED, TURNED_BACK = ((math.cos(22.5), 0, 0, side * math.sin(22.5)) for side in (1, -1))
STRAIGHT = (1, 0, 0, 0)
STEEL, BALL = (0.35, 0.36, 0.38, 1), (0.85, 0.42, 0.15, 1)


class Basketball(Task):
    """The ball flies towards the robot at 7.5 m/s from a direction drawn at every reset.

    ``memory`` holds whether the ball has touched anything: 0 while it is to be caught, 1 once it is to be thrown.
    Ends when the ball is through the hoop or low, or the robot has fallen.
    """

    name, success, camera = "basketball", 1200.0, "basketball"
    memory_size = 1
    max_episode_steps = 500
    scored_within = 0.05  # m
    lowest = 0.5  # m, of the ball and the pelvis
    start_distance, start_speed, widest_angle = 1.5, 7.5, 1.45  # m, m/s, rad
    above_hand = 0.3924  # m: how far the ball starts above the left hand
    # In the hoop's frame: position, half lengths, turn. The basket's sides, then the backboard.
    basket = (
        ((0.25, 0, -0.2), (0.01, 0.2, 0.2), STRAIGHT),
        ((0.2, 0.2, -0.2), (0.15, 0.01, 0.2), TURNED_BACK),
        ((0.2, -0.2, -0.2), (0.15, 0.01, 0.2), TURNED),
        ((-0.3, 0, -0.2), (0.01, 0.2, 0.2), STRAIGHT),
        ((-0.25, 0.2, -0.2), (0.15, 0.01, 0.2), TURNED),
        ((-0.25, -0.2, -0.2), (0.15, 0.01, 0.2), TURNED_BACK),
        ((-0.05, 0.25, -0.2), (0.2, 0.01, 0.2), STRAIGHT),
        ((-0.05, -0.25, -0.2), (0.2, 0.01, 0.2), STRAIGHT),
        ((0.27, 0, 0.3), (0.01, 0.55, 0.35), STRAIGHT),
    )

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        hoop = spec.worldbody.add_body(name="hoop", pos=HOOP_POS)
        for pos, size, quat in self.basket:
            add_shape(hoop, BOX, pos, size, GLASS, quat=quat)
        add_shape(hoop, CYLINDER, (0.6, 0, -1.25), (0.05, 1), STEEL)
        add_shape(hoop, BOX, (0.9, 0, -2.17), (0.35, 0.25, 0.08), STEEL)
        ball = spec.worldbody.add_body(name="basketball", pos=(0.35, 0.9, 2))
        ball.add_freejoint(name="free_basketball")
        add_shape(ball, SPHERE, (0, 0, 0), (BALL_RADIUS,), BALL, density=BALL_DENSITY)
        add_position_sensor(spec, "ball_position", mujoco.mjtObj.mjOBJ_XBODY, "basketball")
        add_hand_sensors(spec, "left", "right")
        add_contact_sensor(spec, "ball_contact", body_part("basketball"))

    def initial_qpos(self) -> np.ndarray:
        return np.concatenate((STANDING_QPOS, (0.35, 0.9, 2, 1, 0, 0, 0)))

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        angle = random.uniform(-self.widest_angle, self.widest_angle)
        direction = np.array((math.cos(angle), math.sin(angle)))
        data.qpos[26:28] = self.start_distance * direction
        data.qpos[28] = self.above_hand + data.site("left_hand").xpos[2]
        data.qvel[25:27] = -self.start_speed * direction
        return True

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        thrown = memory[..., 0] = np.maximum(memory[..., 0], readings.sensor("ball_contact")[..., 0] > 0)
        ball = readings.sensor("ball_position")
        away = np.maximum(
            *(
                np.linalg.norm(readings.sensor(f"{side}_hand_position") - ball, axis=-1)
                for side in ("left", "right")
            )
        )
        from_hoop = self._distance(readings)
        parts = {
            "reward_hand_proximity": tolerance(away, 0.0, 0.2, margin=1.0),
            "reward_ball_success": tolerance(from_hoop, margin=7.0, sigmoid="linear"),
            "stand_reward": standing(readings) * upright(readings),
            "small_control": small_control(readings),
            "success_subtasks": thrown,
            "success": from_hoop < self.scored_within,
        }
        steady = parts["stand_reward"] * parts["small_control"]
        near = parts["reward_hand_proximity"]
        reward = np.where(
            thrown,
            0.15 * steady + 0.05 * near + 0.8 * parts["reward_ball_success"],
            0.5 * steady + 0.5 * near,
        )
        return reward + 1000.0 * parts["success"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        low = np.minimum(readings.qpos[..., 28], readings.base_height) < self.lowest
        return low | (self._distance(readings) < self.scored_within)

    @staticmethod
    def _distance(readings: Readings) -> np.ndarray:
        return np.linalg.norm(readings.sensor("ball_position") - HOOP_CENTER, axis=-1)
