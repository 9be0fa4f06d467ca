"""Move things: push a box, carry a package, open a door (HumanoidBench)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import small_control, standing, upright
from envs.humanoid.rewards import INFINITY, tolerance
from envs.humanoid.robot import STANDING_QPOS, Quaternion, Vector
from envs.humanoid.scenery import (
    BOX,
    CYLINDER,
    GLASS,
    SPHERE,
    add_hand_sensors,
    add_position_sensor,
    add_shape,
)
from envs.humanoid.task import Components, Readings, Task

TARGET_COLOUR = (0.8, 0.28, 0.28, 0.7)
ALONG_X, ALONG_Y = (0.5**0.5, 0, 0.5**0.5, 0), (0.5**0.5, -(0.5**0.5), 0, 0)  # quaternions that turn z there


def add_target(spec: mujoco.MjSpec, radius: float) -> None:
    """Add a ball that resets can place through ``data.mocap_pos[0]``; nothing collides with it."""
    target = spec.worldbody.add_body(name="target", mocap=True)
    add_shape(target, SPHERE, (0, 0, 0), (radius,), TARGET_COLOUR, contype=0, conaffinity=0)


class Push(Task):
    """Push a box on a table to a target, which ``memory`` holds; ends when it is there."""

    name, success, camera = "push", 700.0, "tabletop"
    memory_size = 3
    max_episode_steps = 500
    reached_within = 0.05  # m

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        table = spec.worldbody.add_body(name="table", pos=(0.9, 0, 0.45))
        add_shape(table, BOX, (0, 0, 0.4), (0.5, 1, 0.05))
        for x in (0.4, -0.4):
            for y in (0.85, -0.85):
                add_shape(table, BOX, (x, y, -0.05), (0.05, 0.05, 0.4))
        box = spec.worldbody.add_body(
            name="object",
            pos=(0.7, 0, 1),
            explicitinertial=True,
            mass=0.3,
            ipos=(0, 0, 0),
            iquat=(1, 0, 0, 0),
            inertia=(0.001, 0.001, 0.001),
        )
        box.add_freejoint(name="free_object")
        add_shape(box, BOX, (0, 0, 0), (0.1, 0.1, 0.1), (0.67, 0.73, 0.78, 1))
        add_target(spec, 0.05)
        add_hand_sensors(spec, "left")

    def initial_qpos(self) -> np.ndarray:
        return np.concatenate((STANDING_QPOS, (0.7, 0, 1, 1, 0, 0, 0)))

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        memory[:] = random.uniform(0.7, 1.0), random.uniform(-0.5, 0.5), 1.0
        data.mocap_pos[0] = memory
        return True

    def observation(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        qpos, qvel = readings.qpos, readings.qvel
        hand = readings.sensor("left_hand_position")
        parts = (qpos[..., :26], qvel[..., :25], hand, memory, qpos[..., 26:29], qvel[..., 25:28])
        return np.concatenate(parts, axis=-1)

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        box = readings.qpos[..., 26:29]
        parts = {
            "target_dist": np.linalg.norm(box - memory, axis=-1),
            "hand_dist": np.linalg.norm(readings.sensor("left_hand_position") - box, axis=-1),
        }
        parts["success"] = parts["target_dist"] < self.reached_within
        parts["reward_success"] = 1000.0 * parts["success"]
        return -0.1 * parts["hand_dist"] - parts["target_dist"] + parts["reward_success"], parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return np.linalg.norm(readings.qpos[..., 26:29] - memory, axis=-1) < self.reached_within


class Package(Task):
    """Bring a package to a place on the floor; both are drawn at every reset. Ends when it is there."""

    name, success = "package", 1500.0
    arrived_within = 0.1  # m
    height = 0.35  # m, of the package's centre when it stands

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        package = spec.worldbody.add_body(name="package", pos=(0.5, 0, self.height))
        package.add_freejoint(name="free_package")
        add_shape(package, BOX, (0, 0, 0), (0.2, 0.1, 0.35), density=5)
        add_target(spec, 0.09)
        add_position_sensor(spec, "destination", mujoco.mjtObj.mjOBJ_XBODY, "target")
        add_hand_sensors(spec, "left", "right")

    def initial_qpos(self) -> np.ndarray:
        return np.concatenate((STANDING_QPOS, (0.75, 0, self.height, 1, 0, 0, 0)))

    def randomize(self, data: mujoco.MjData, memory: np.ndarray, random: np.random.Generator) -> bool:
        data.qpos[26:29] = random.uniform(-2, 2), random.uniform(-2, 2), self.height
        data.mocap_pos[0] = random.uniform(-2, 2), random.uniform(-2, 2), self.height
        return True

    def observation(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        qpos, qvel = readings.qpos, readings.qvel
        places = [
            readings.sensor(name) for name in ("destination", "left_hand_position", "right_hand_position")
        ]
        parts = (qpos[..., :26], qvel[..., :25], places[0], qpos[..., 26:], qvel[..., 25:], *places[1:])
        return np.concatenate(parts, axis=-1)

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        package = readings.qpos[..., 26:29]
        parts = {
            "stand_reward": standing(readings) * upright(readings, at_least=0.8),
            "small_control": small_control(readings),
            "dist_package_destination": self._distance(readings),
            "package_height": np.minimum(package[..., 2], 1.0),
        }
        for side in ("left", "right"):
            hand = readings.sensor(f"{side}_hand_position")
            parts[f"dist_hand_package_{side}"] = np.linalg.norm(hand - package, axis=-1)
        parts["success"] = parts["dist_package_destination"] < self.arrived_within
        reward = (
            parts["stand_reward"] * parts["small_control"]
            - 3 * parts["dist_package_destination"]
            - 0.1 * (parts["dist_hand_package_left"] + parts["dist_hand_package_right"])
            + parts["package_height"]
            + 1000.0 * parts["success"]
        )
        return reward, parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return self._distance(readings) < self.arrived_within

    @staticmethod
    def _distance(readings: Readings) -> np.ndarray:
        return np.linalg.norm(readings.qpos[..., 26:29] - readings.sensor("destination"), axis=-1)


class Door(Task):
    """Turn the hatch, open the door and walk through."""

    name, success = "door", 600.0
    # In the hatch's frame: position, radius and half length, turn. Axles, handles, bolts.
    hatch_parts: tuple[tuple[Vector, tuple[float, float], Quaternion], ...] = (
        *(((x, 0, 0), (0.05, 0.05), ALONG_X) for x in (-0.12, 0.12)),
        *(((x, -0.1, 0), (0.02, 0.1), ALONG_Y) for x in (-0.141, 0.141)),
        *(((x, 0.07, 0), (0.01, 0.07), ALONG_Y) for x in (0.15, -0.15)),
    )
    # In the door frame's frame: position, half lengths. The frame around the door, the room's walls.
    walls: tuple[tuple[Vector, Vector], ...] = (
        *(((0, y, 1), (0.12, 0.14, 1)) for y in (0.66, -0.66)),
        ((0, 0, 2.19), (0.12, 0.82, 0.19)),
        *(((-1.31, y, 1.19), (1.19, 0.12, 1.19)) for y in (-0.7, 0.7)),
        ((-2.35, 0, 1.19), (0.15, 0.58, 1.19)),
    )

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        limited = mujoco.mjtLimited.mjLIMITED_TRUE
        door = spec.worldbody.add_body(name="door", pos=(0.8, 0, 0))
        door.add_joint(
            name="door", pos=(-0.05, -0.5, 1), axis=(0, 0, 1), limited=limited, range=(0, 1.4), stiffness=50
        )
        add_shape(door, BOX, (0, 0, 1), (0.07, 0.48, 0.99), density=600)
        hatch = door.add_body(name="hatch", pos=(0, 0.4, 1.2), gravcomp=1)
        hatch.add_joint(name="hatch", axis=(1, 0, 0), limited=limited, range=(0, 2), stiffness=2)
        for pos, size, quat in self.hatch_parts:
            add_shape(hatch, CYLINDER, pos, size, (0.35, 0.36, 0.38, 1), quat=quat)
        frame = spec.worldbody.add_body(name="door_frame", pos=(0.8, 0, 0))
        for pos, half_lengths in self.walls:
            add_shape(frame, BOX, pos, half_lengths, GLASS)
        add_position_sensor(spec, "hatch_position", mujoco.mjtObj.mjOBJ_XBODY, "hatch")
        add_hand_sensors(spec, "left", "right")

    def initial_qpos(self) -> np.ndarray:
        return np.concatenate((STANDING_QPOS, (0, 0)))

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        opened, turned = readings.qpos[..., 26], readings.qpos[..., 27]
        hatch = readings.sensor("hatch_position")
        away = np.minimum(
            *(
                np.linalg.norm(hatch - readings.sensor(f"{side}_hand_position"), axis=-1)
                for side in ("left", "right")
            )
        )
        passed = readings.sensor("imu_position")[..., 0]
        parts = {
            "stand_reward": standing(readings) * upright(readings, margin=0.9),
            "small_control": small_control(readings),
            "door_openness_reward": np.minimum(1.0, opened * np.abs(opened)),
            "door_hatch_openness_reward": tolerance(turned, 0.75, 2.0, 0.75, "linear"),
            "hand_hatch_proximity_reward": tolerance(away, 0.0, 0.25, 1.0, "linear"),
            "passage_reward": tolerance(passed, 1.2, INFINITY, 1.0, "linear", value_at_margin=0.0),
        }
        reward = (
            0.1 * parts["stand_reward"] * parts["small_control"]
            + 0.45 * parts["door_openness_reward"]
            + 0.05 * parts["door_hatch_openness_reward"]
            + 0.05 * parts["hand_hatch_proximity_reward"]
            + 0.35 * parts["passage_reward"]
        )
        return reward, parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return readings.base_height < 0.58
