"""Stand on a board that lies on a sphere (HumanoidBench, ``BalanceSimple`` and ``BalanceHard``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import STAND_HEIGHT, small_control, standing, standing_still, upright
from envs.humanoid.robot import STANDING_QPOS
from envs.humanoid.scenery import BOX, FLOOR, ROBOT, SPHERE, add_contact_sensor, add_shape, body_part
from envs.humanoid.task import Components, Readings, Task

BOARD_POS, SPHERE_POS = (0, 0, 0.37), (0, 0, 0.17)
BASE_POS = (-0.1, 0, 1.38)  # of the pelvis, standing on the board


class BalanceSimple(Task):
    """The sphere is fixed, the board is free."""

    name, success = "balance_simple", 800.0
    sphere_rolls = False

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        board = spec.worldbody.add_body(name="board", pos=BOARD_POS)
        board.add_freejoint(name="free_board")
        add_shape(board, BOX, (0, 0, 0), (0.15, 0.55, 0.03))
        pivot = spec.worldbody.add_body(name="sphere", pos=SPHERE_POS)
        if self.sphere_rolls:
            pivot.add_freejoint(name="free_sphere")
        add_shape(pivot, SPHERE, (0, 0, 0), (0.17,), (0.85, 0.35, 0.25, 1))
        add_contact_sensor(spec, "robot_on_floor", FLOOR, ROBOT)
        add_contact_sensor(spec, "board_on_floor", FLOOR, body_part("board"))
        add_contact_sensor(spec, "robot_on_sphere", body_part("sphere"), ROBOT)

    def initial_qpos(self) -> np.ndarray:
        poses = (BOARD_POS, SPHERE_POS) if self.sphere_rolls else (BOARD_POS,)
        free = [number for pos in poses for number in (*pos, 1, 0, 0, 0)]
        return np.concatenate((BASE_POS, STANDING_QPOS[3:], free))

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {"standing": standing(readings, STAND_HEIGHT + BOARD_POS[2]), "upright": upright(readings)}
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        parts["small_control"] = small_control(readings)
        parts["dont_move"] = standing_still(readings)
        return parts["small_control"] * parts["stand_reward"] * parts["dont_move"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        fallen = readings.base_height < 0.8
        for name in ("robot_on_floor", "board_on_floor", "robot_on_sphere"):
            fallen = fallen | (readings.sensor(name)[..., 0] > 0)
        return fallen


class BalanceHard(BalanceSimple):
    """The sphere rolls."""

    name = "balance_hard"
    sphere_rolls = True
