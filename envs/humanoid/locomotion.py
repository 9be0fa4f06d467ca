"""Stand, walk and run on the flat floor (HumanoidBench, ``basic_locomotion_envs``)."""

from __future__ import annotations

import numpy as np

from envs.humanoid.rewards import INFINITY, tolerance
from envs.humanoid.task import Components, Readings, Task

STAND_HEIGHT = 1.65  # m, of the head: higher gives the full standing reward
WALK_SPEED, RUN_SPEED = 1.0, 5.0  # m/s
FALLEN_HEIGHT = 0.2  # m, of the pelvis


def small_control(readings: Readings) -> np.ndarray:
    """Return how little torque is spent, (...) in [0.8, 1]."""
    effort = tolerance(readings.actuator_force, margin=10.0, sigmoid="quadratic", value_at_margin=0.0)
    return (4 + np.add.reduce(effort, axis=-1) / effort.shape[-1]) / 5


def standing(readings: Readings, height: float = STAND_HEIGHT) -> np.ndarray:
    """Return how close the head is to ``height``, (...)."""
    return tolerance(readings.head_height, height, INFINITY, margin=STAND_HEIGHT / 4)


def upright(readings: Readings, at_least: float = 0.9, margin: float = 1.9) -> np.ndarray:
    """Return how upright the torso is, (...)."""
    return tolerance(readings.torso_upright, at_least, INFINITY, margin, "linear", value_at_margin=0.0)


def moving_forward(readings: Readings, speed: float) -> np.ndarray:
    """Return how close the centre of mass comes to ``speed`` along x, (...) in [1/6, 1]."""
    move = tolerance(readings.com_velocity[..., 0], speed, INFINITY, speed, "linear", value_at_margin=0.0)
    return (5 * move + 1) / 6


def standing_still(readings: Readings) -> np.ndarray:
    """Return how little the centre of mass moves along x and y, (...)."""
    return tolerance(readings.com_velocity[..., :2], margin=2.0).mean(axis=-1)


class Upright(Task):
    """Stay upright, spend little torque, and do what ``goal`` asks: the three factors of the reward."""

    goal_name: str

    def goal(self, readings: Readings) -> np.ndarray:
        """Return the task's own factor, (...)."""
        raise NotImplementedError

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {"standing": standing(readings), "upright": upright(readings)}
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        parts["small_control"] = small_control(readings)
        parts[self.goal_name] = self.goal(readings)
        return parts["small_control"] * parts["stand_reward"] * parts[self.goal_name], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < FALLEN_HEIGHT


class Stand(Upright):
    """Stand still."""

    name, success = "stand", 800.0
    goal_name = "dont_move"

    def goal(self, readings: Readings) -> np.ndarray:
        return standing_still(readings)


class Walk(Upright):
    """Move forward at 1 m/s or faster."""

    name, success = "walk", 700.0
    goal_name = "move"
    speed: float = WALK_SPEED

    def goal(self, readings: Readings) -> np.ndarray:
        return moving_forward(readings, self.speed)


class Run(Walk):
    """Move forward at 5 m/s or faster."""

    name = "run"
    speed: float = RUN_SPEED
