"""Go up and down: stairs and a row of ramps (HumanoidBench, ``ClimbingUpwards``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import moving_forward, small_control, upright
from envs.humanoid.rewards import INFINITY, tolerance
from envs.humanoid.scenery import BOX, GLASS, MESH, add_shape
from envs.humanoid.task import Components, Readings, Task

LEG_LENGTH = 1.2  # m from foot to head: more gives the full standing reward
LEAST_UPRIGHT = 0.1  # less ends the episode
SPEED = 1.0  # m/s


class Climbing(Task):
    """Keep the head above both feet, wherever these stand, and move forward."""

    success, camera = 700.0, "hurdle"

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {
            "standing": _head_above(readings, "left_foot") * _head_above(readings, "right_foot"),
            "upright": upright(readings, at_least=0.5),
            "small_control": small_control(readings),
            "move": moving_forward(readings, SPEED),
        }
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        return parts["stand_reward"] * parts["small_control"] * parts["move"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.torso_upright < LEAST_UPRIGHT


class Stair(Climbing):
    """Four flights of five steps up and five down."""

    name = "stair"

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        for flight in range(4):
            for layer in range(5):
                pos = (3.2 + 6 * flight, 0, 0.09 + 0.18 * layer)
                add_shape(world, BOX, pos, (2.7 - 0.6 * layer, 5, 0.09))
        for y in (-5.05, 5.05):
            add_shape(world, BOX, (13.5, y, 2), (15.5, 0.1, 2), GLASS)
        add_shape(world, BOX, (-2.1, 0, 2), (0.1, 7.25, 2), GLASS)


class Slide(Climbing):
    """Nine ramps, each 5 m up and 5 m down, 1.75 m high."""

    name = "slide"

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        world = spec.worldbody
        profile = ((0.3, 0.0), (5.3, 1.75), (10.3, 0.0))  # x, z
        corners = [(x, y, z) for x, z in profile for y in (5, -5)]
        spec.add_mesh(name="ramp", uservert=np.array(corners, dtype=np.float64).ravel())
        for ramp in range(9):
            add_shape(world, MESH, (10 * ramp, 0, 0), (), meshname="ramp")
        for y in (-5.15, 5.15):
            add_shape(world, BOX, (48.85, y, 4), (53, 0.15, 4), GLASS)
        add_shape(world, BOX, (-4, 0, 4), (0.15, 5.15, 4), GLASS)


def _head_above(readings: Readings, foot: str) -> np.ndarray:
    height = readings.head_height - readings.sensor(f"{foot}_position")[..., 2]
    return tolerance(height, LEG_LENGTH, INFINITY, margin=0.45)
