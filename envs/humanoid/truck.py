"""Unload a truck (HumanoidBench, ``Truck``)."""

from __future__ import annotations

import mujoco
import numpy as np

from envs.humanoid.locomotion import upright
from envs.humanoid.rewards import tolerance
from envs.humanoid.robot import STANDING_QPOS, Vector
from envs.humanoid.scenery import BOX, CYLINDER, GLASS, add_position_sensor, add_shape
from envs.humanoid.task import Components, Readings, Task

# Name, position, quaternion, half lengths.
PACKAGES = (
    ("package_a", (5, 0, 1.1), (0.707105, -0.707108, 0, 0), (0.2, 0.1, 0.15)),
    ("package_b", (5.1, 0, 1.3), (0.706752, 0, 0, 0.707462), (0.25, 0.2, 0.1)),
    ("package_c", (5, 0.35, 1.3), (0.707105, 0.707108, 0, 0), (0.2, 0.3, 0.1)),
    ("package_d", (5, -0.5, 1.1), (1, 0, 0, 0), (0.25, 0.3, 0.1)),
    ("package_e", (5.1, -0.6, 1.4), (1, 0, 0, 0), (0.2, 0.2, 0.2)),
)
TABLE_POS = np.array((2, -1.7, 0.45))
# A package's centre between these counts as on the table, m.
TABLE_LOW, TABLE_HIGH = np.array((1.65, -2.05, 0.5)), np.array((2.35, -1.35, np.inf))
ON_TRUCK, PICKED_UP, ON_TABLE = range(3)
GREY, BLACK = (0.5, 0.52, 0.55, 1), (0.1, 0.1, 0.1, 1)
ALONG_Y = (0.5**0.5, -(0.5**0.5), 0, 0)  # quaternion that turns z there


class Truck(Task):
    """Carry five packages from a truck to a table; ends when all are on it.

    ``memory``: whether the heights are known (1); each package's height after the first frame (5), its place (5),
    and when it got there (5), counted in changes of place (1). In the original all this survives a reset; here an
    episode starts anew.
    """

    name, success, camera = "truck", 3000.0, "hurdle"
    memory_size = 17
    lifted_by = 0.1  # m: what counts as picked up
    # In the truck's frame: position and half lengths. The bed, the walls, the roof.
    truck: tuple[tuple[Vector, Vector], ...] = (
        ((0, 0, 0.5), (4, 1.2, 0.5)),
        *(((0, y, 2), (4, 0.05, 1)) for y in (1.15, -1.15)),
        ((4, 0, 2), (0.05, 1.2, 1)),
        ((0, 0, 3.05), (4, 1.2, 0.05)),
    )
    ramp_turn = (np.cos(0.25), 0, -np.sin(0.25), 0)  # 0.5 rad about y

    def add_scenery(self, spec: mujoco.MjSpec) -> None:
        truck = spec.worldbody.add_body(name="truck", pos=(8, 0, 0))
        for index, (pos, size) in enumerate(self.truck):
            add_shape(truck, BOX, pos, size, GLASS if index else GREY)
        add_shape(truck, BOX, (-4.7, 0, 0.5), (0.85, 1.2, 0.1), GREY, quat=self.ramp_turn)
        for x in (-3.5, 3.5):
            for y in (1.2, -1.2):
                seen_only = {"contype": 0, "conaffinity": 0}
                add_shape(truck, CYLINDER, (x, y, 0.5), (0.5, 0.1), BLACK, quat=ALONG_Y, **seen_only)
        table = spec.worldbody.add_body(name="table", pos=TABLE_POS)
        add_shape(table, BOX, (0, 0, 0.45), (0.5, 0.5, 0.05))
        for x in (0.4, -0.4):
            for y in (0.4, -0.4):
                add_shape(table, BOX, (x, y, 0), (0.05, 0.05, 0.5))
        wall = spec.worldbody.add_body(name="package_wall", pos=(7, 0, 1))
        add_shape(wall, BOX, (0, 0, 0.9), (0.2, 1.1, 0.9))
        for name, pos, quat, size in PACKAGES:
            package = spec.worldbody.add_body(name=name, pos=pos, quat=quat)
            package.add_freejoint(name=f"free_{name}")
            add_shape(package, BOX, (0, 0, 0), size)
            add_position_sensor(spec, f"{name}_position", mujoco.mjtObj.mjOBJ_XBODY, name)

    def initial_qpos(self) -> np.ndarray:
        packages = [(*pos, *(np.array(quat) / np.linalg.norm(quat))) for _, pos, quat, _ in PACKAGES]
        return np.concatenate(((2,), STANDING_QPOS[1:], *packages))

    def reward(self, readings: Readings, memory: np.ndarray) -> tuple[np.ndarray, Components]:
        packages = np.stack([readings.sensor(f"{name}_position") for name, *_ in PACKAGES], axis=-2)
        known, heights, place = memory[..., :1], memory[..., 1:6], memory[..., 6:11]
        heights[:] = np.where(known > 0, heights, packages[..., 2])
        known[:] = 1
        lifted = packages[..., 2] > heights + self.lifted_by
        on_table = np.asarray(((packages > TABLE_LOW) & (packages < TABLE_HIGH)).all(axis=-1))
        moved = np.zeros(readings.base_height.shape)
        changes = ((place == ON_TRUCK) & lifted) | ((place == PICKED_UP) & on_table)
        changes |= (place == ON_TABLE) & ~on_table
        for index in map(tuple, np.argwhere(changes.any(axis=-1))):
            moved[index] = _move(memory[index][6:], lifted[index], on_table[index])

        base = readings.qpos[..., None, :3]
        from_robot = np.linalg.norm(packages - base, axis=-1)
        from_table = np.linalg.norm(packages - TABLE_POS, axis=-1)
        counts = [(place == where).sum(axis=-1) for where in (ON_TRUCK, PICKED_UP, ON_TABLE)]
        all_there = counts[ON_TABLE] == len(PACKAGES)
        parts = {
            "upright": upright(readings),
            "reward_robot_package_truck": _nearness(from_robot, place == ON_TRUCK),
            "reward_robot_package_picked_up": _nearness(from_robot, place == PICKED_UP),
            "reward_package_table": _nearness(from_table, place == PICKED_UP),
            "packages_on_truck": counts[ON_TRUCK],
            "packages_picked_up": counts[PICKED_UP],
            "packages_on_table": counts[ON_TABLE],
            "success_subtasks": counts[ON_TABLE],
            "success": all_there,
        }
        near = (
            parts["reward_robot_package_truck"]
            + parts["reward_robot_package_picked_up"]
            + parts["reward_package_table"]
        )
        return parts["upright"] * (1 + near) + 100.0 * moved + 1000.0 * all_there, parts

    def terminated(self, readings: Readings, memory: np.ndarray) -> np.ndarray:
        return (memory[..., 6:11] == ON_TABLE).all(axis=-1)


def _nearness(distances: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return how near the nearest counted package is, (...) in [0, 1]; 0 if there is none."""
    nearest = np.where(counted, distances, np.inf).min(axis=-1)
    return tolerance(nearest, 0.0, 0.2, 4.0, "linear", value_at_margin=0.0)


def _move(memory: np.ndarray, lifted: np.ndarray, on_table: np.ndarray) -> int:
    """Bring the places of one environment's packages up to date; return gains minus losses.

    The original takes a package out of the list it is walking through, so that the one behind it has to wait for
    the next frame; hence the lists in order of arrival.
    """
    place, since, changes = memory[:5], memory[5:10], memory[10:]
    balance = 0
    for source, target, ready in (
        (ON_TRUCK, PICKED_UP, lifted),
        (PICKED_UP, ON_TABLE, on_table),
        (ON_TABLE, PICKED_UP, ~on_table),
    ):
        listed = np.flatnonzero(place == source)
        skips = False
        for package in listed[np.argsort(since[listed], kind="stable")].tolist():
            moves = not skips and bool(ready[package])
            skips = moves
            if moves:
                changes += 1
                place[package], since[package] = target, changes[0]
                balance += -1 if source == ON_TABLE else 1
    return balance
