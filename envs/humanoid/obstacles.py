"""Get past something: hurdles, poles, a tunnel, a maze (HumanoidBench)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import (
    FALLEN_HEIGHT,
    RUN_SPEED,
    WALK_SPEED,
    moving_forward,
    small_control,
    standing,
    upright,
)
from envs.humanoid.rewards import tolerance
from envs.humanoid.scenery import (
    BOX,
    CYLINDER,
    GLASS,
    SPHERE,
    add_contact_sensor,
    add_position_sensor,
    add_shape,
    body_part,
)
from envs.humanoid.task import Components, Readings, Task

COLLISION_DISCOUNT = 0.1  # factor on the reward while the robot touches what it must not


def discount(readings: Readings, sensor: str) -> np.ndarray:
    """Return the factor for touching, (...): ``COLLISION_DISCOUNT`` or 1."""
    return np.where(readings.sensor(sensor)[..., 0] > 0, COLLISION_DISCOUNT, 1.0)


class Hurdle(Task):
    """Run at 5 m/s over ten hurdles without touching the barriers at the sides."""

    name, success, camera = "hurdle", 700.0, "hurdle"

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        for hurdle in range(1, 11):
            add_shape(spec.worldbody, BOX, (7 * hurdle, 0, 0.1875), (0.03, 5, 0.1875))
        barriers = spec.worldbody.add_body(name="barriers")
        for y in (-4.725, 4.725):
            add_shape(barriers, BOX, (35, y, 1), (35.5, 0.275, 1), GLASS)
        add_shape(barriers, BOX, (-0.525, 0, 1), (0.05, 5, 1), GLASS)
        add_contact_sensor(spec, "barrier_contact", body_part("barriers"))

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {"standing": standing(readings), "upright": upright(readings, at_least=0.8)}
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        parts["small_control"] = small_control(readings)
        parts["move"] = moving_forward(readings, RUN_SPEED)
        parts["wall_collision_discount"] = discount(readings, "barrier_contact")
        reward = parts["small_control"] * parts["stand_reward"] * parts["move"]
        return reward * parts["wall_collision_discount"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < FALLEN_HEIGHT


class Pole(Task):
    """Walk at 0.5 m/s through a forest of thin poles without touching them."""

    name, success, camera = "pole", 700.0, "hurdle"
    speed: float = 0.5

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        for y in (-3.15, 3.15):
            add_shape(spec.worldbody, BOX, (20, y, 1), (20.75, 0.15, 1), GLASS)
        add_shape(spec.worldbody, BOX, (-0.6, 0, 1), (0.15, 3, 1), GLASS)
        poles = spec.worldbody.add_body(name="poles")
        for row in range(1, 42):
            for y in (2.25, 0.75, -0.75, -2.25) if row % 2 else (1.5, 0, -1.5):
                add_shape(poles, CYLINDER, (row, y, 1), (0.05, 1))
        add_contact_sensor(spec, "pole_contact", body_part("poles"))

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        parts = {"standing": standing(readings), "upright": upright(readings)}
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        parts["small_control"] = small_control(readings)
        parts["move"] = moving_forward(readings, self.speed)
        parts["collision_discount"] = discount(readings, "pole_contact")
        reward = 0.5 * (parts["small_control"] * parts["stand_reward"]) + 0.5 * parts["move"]
        return reward * parts["collision_discount"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < 0.5


class Crawl(Task):
    """Crawl forward through a tunnel; never terminates."""

    name, success = "crawl", 700.0
    # m, of the head and the torso's sensor, and the pelvis's quaternion while crawling.
    lowest, highest = 0.8 - 0.2, 0.8 + 0.2
    crawling_quat = np.array((0.75, 0, 0.65, 0))

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        tunnel = spec.worldbody.add_body(name="tunnel", pos=(2.2, 0, 0))
        for y in (-1.35, 1.35):
            add_shape(tunnel, BOX, (8, y, 0.775), (8, 0.2, 0.775), GLASS)
        add_shape(tunnel, BOX, (8, 0, 1.35), (8, 1.15, 0.2), GLASS)

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        imu = readings.sensor("imu_position")
        turn = np.linalg.norm(readings.sensor("pelvis_quaternion") - self.crawling_quat, axis=-1)
        parts = {
            "crawling": tolerance(imu[..., 2], self.lowest, self.highest, margin=1.0),
            "crawling_head": tolerance(readings.head_height, self.lowest, self.highest, margin=1.0),
            "small_control": small_control(readings),
            "move": moving_forward(readings, WALK_SPEED),
            "orientation": tolerance(turn, margin=1.0),
            "in_tunnel": tolerance(imu[..., 1], -1.0, 1.0),
        }
        reward = (
            0.1 * parts["small_control"]
            + 0.25 * np.minimum(parts["crawling"], parts["crawling_head"])
            + 0.4 * parts["move"]
            + 0.25 * parts["orientation"]
        )
        return reward * parts["in_tunnel"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return np.zeros(readings.base_height.shape, dtype=np.bool_)


class Maze(Task):
    """Walk from checkpoint to checkpoint through a maze at 2 m/s; ``memory`` holds the number of those reached."""

    name, success, camera = "maze", 1200.0, "maze"
    memory_size = 1
    # Seen from above: x to the right, y upwards, blocks of 1.5 m, the middle of the lower left one at (-1.5, -1.5).
    plan = ("#######", "#     #", "### # #", "#     #", "# # ###", "#     #", "#######")
    block = 1.5  # m
    speed: float = 2.0
    # By the number of checkpoints reached: the next one, and the way to go.
    checkpoints = np.array(((0, 0), (3, 0), (3, 6), (6, 6), (6, 6)), dtype=np.float64)
    directions = np.array(((1, 0), (1, 0), (0, 1), (1, 0), (0, 1)), dtype=np.float64)
    reached_within = 0.4  # m
    stage_reward = 100.0  # times the number of checkpoints reached

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        maze = spec.worldbody.add_body(name="maze")
        for row, line in enumerate(reversed(self.plan)):
            for column, cell in enumerate(line):
                if cell == "#":
                    pos = ((column - 1) * self.block, (row - 1) * self.block, 0.6)
                    add_shape(maze, BOX, pos, (self.block / 2, self.block / 2, 0.6), GLASS)
        for x, y in self.checkpoints[:-1]:
            ball = (0.9, 0.3, 0.2, 1)
            add_shape(spec.worldbody, SPHERE, (x, y, 1), (0.05,), ball, contype=0, conaffinity=0)
        add_contact_sensor(spec, "wall_contact", body_part("maze"))
        add_position_sensor(spec, "pelvis_position", mujoco.mjtObj.mjOBJ_XBODY, "pelvis")

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        before = memory[..., 0].astype(np.int64)
        pelvis = readings.sensor("pelvis_position")[..., :2]
        close = np.linalg.norm(pelvis - self.checkpoints[before], axis=-1) < self.reached_within
        last = len(self.checkpoints) - 1
        stage = np.minimum(before + close, last)
        memory[..., 0] = stage

        parts = {"standing": standing(readings), "upright": upright(readings)}
        parts["stand_reward"] = parts["standing"] * parts["upright"]
        parts["small_control"] = small_control(readings)
        parts["wall_collision_discount"] = discount(readings, "wall_contact")
        parts["stage_convert_reward"] = np.where(stage > before, stage * self.stage_reward, 0.0)
        too_fast = readings.com_velocity[..., :2] - self.directions[stage] * self.speed
        along = tolerance(too_fast, margin=1.0, sigmoid="linear", value_at_margin=0.0).prod(axis=-1)
        parts["move"] = (5 * np.where(stage == last, 1.0, along) + 1) / 6
        away = np.linalg.norm(self.checkpoints[stage] - readings.sensor("imu_position")[..., :2], axis=-1)
        parts["checkpoint_proximity_reward"] = tolerance(away, margin=1.0)
        parts["success_subtasks"] = stage
        reward = (
            0.2 * (parts["stand_reward"] * parts["small_control"])
            + 0.4 * parts["move"]
            + 0.4 * parts["checkpoint_proximity_reward"]
        )
        return reward * parts["wall_collision_discount"] + parts["stage_convert_reward"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < FALLEN_HEIGHT
