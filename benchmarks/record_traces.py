"""Record what the official ``humanoid_bench`` package returns, and from which quantities, as data for the
tests.

    python -m benchmarks.record_traces --official PATH --out tests/data --tasks push door [--steps 40]

PATH is the folder of a clone of github.com/carlosferrazza/humanoid-bench (dm_control must be importable).
Uniform random actions; episodes follow each other until ``--steps`` frames are recorded. Keys of
``h1-<task>.npz``: ``obs``, ``reward``, ``terminated`` and ``info/*`` as returned; ``sensor/*`` the
quantities that the rewards of ours read, taken from the official simulation under our names; ``memory``;
``qpos`` and ``qvel`` where ``obs`` is not just these; ``start``: the first frame of an episode.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

import envs  # noqa: F401  (registers the native tasks)
from envs.humanoid.robot import JOINTS
from envs.humanoid.simulation import Scene, scene
from envs.humanoid.tasks import TASKS
from envs.official import resolve_official

# Our names of bodies that the original calls something else; links of the robot get the suffix "_link".
BODIES = {
    "board": "stand_board",
    "sphere": "rolling_pivot",
    "hatch": "door_hatch",
    "target": "package_destination",
}
# Pairs of parts whose contacts our sensors count; None stands for anything.
CONTACTS = {
    "barrier_contact": ("barrier", None),
    "wall_contact": ("maze", None),
    "pole_contact": ("pole_r", None),
    "robot_on_floor": ("floor", "robot"),
    "board_on_floor": ("floor", "stand_board"),
    "robot_on_sphere": ("rolling_pivot", "robot"),
    "ball_contact": ("basketball", None),
}
# What random actions never bring about is brought about by hand: before which frame of an episode which free joint
# is moved where, at rest.
EVENTS: dict[str, dict[int, dict[str, tuple[float, float, float]]]] = {
    "truck": {
        4: {"package_a": (5, 0, 1.9), "package_b": (5.1, 0, 2.3)},
        8: {"package_a": (1.9, -1.5, 1.3), "package_c": (2, -1.9, 1.9)},
        14: {"package_b": (2.1, -1.7, 1.5), "package_a": (2, 0.6, 0.4)},
        18: {"package_d": (1.8, -1.8, 2.1), "package_e": (2.2, -1.5, 2.6)},
        24: {"package_a": (2, -1.7, 3.2)},
    },
    "basketball": {20: {"basketball": (5.9, 0, 2.25)}},
}


def official_body(name: str) -> str:
    """Return the original's name of one of our bodies."""
    return f"{name}_link" if name in JOINTS else BODIES.get(name, name)


def part_of(model: mujoco.MjModel, geom: int) -> str:
    """Return which part of the scene a geom of the original belongs to, in the words of ``CONTACTS``."""
    body = model.geom_bodyid[geom]
    if model.body_rootid[body] == model.body("pelvis").id:
        return "robot"
    for word in ("barrier", "pole_r"):
        if word in model.geom(geom).name:
            return word
    return model.geom(geom).name if geom == 0 else model.body(body).name


def sensors(compiled: Scene, model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, np.ndarray]:
    """Return our sensors' numbers, read from the original's simulation."""
    ours, found = compiled.model, {}
    pairs = [{part_of(model, geom) for geom in contact.geom} for contact in data.contact]
    for index in range(ours.nsensor):
        sensor = ours.sensor(index)
        kind = sensor.type[0]
        if kind == mujoco.mjtSensor.mjSENS_ACTUATORFRC:
            continue
        if kind == mujoco.mjtSensor.mjSENS_CONTACT:
            first, second = CONTACTS[sensor.name]
            found[sensor.name] = np.array(
                [any({first, second or first} <= pair for pair in pairs)], dtype=float
            )
        elif kind == mujoco.mjtSensor.mjSENS_SUBTREELINVEL:
            found[sensor.name] = data.sensor("pelvis_subtreelinvel").data.copy()
        elif sensor.objtype[0] == mujoco.mjtObj.mjOBJ_SITE:
            found[sensor.name] = data.site(ours.site(sensor.objid[0]).name).xpos.copy()
        elif sensor.name == "destination":
            found[sensor.name] = data.site("destination_loc").xpos.copy()
        else:
            body = data.body(official_body(ours.body(sensor.objid[0]).name))
            found[sensor.name] = {
                int(mujoco.mjtSensor.mjSENS_FRAMEPOS): body.xpos,
                int(mujoco.mjtSensor.mjSENS_FRAMEQUAT): body.xquat,
                int(mujoco.mjtSensor.mjSENS_FRAMEZAXIS): body.xmat[2::3],
            }[int(kind)].copy()
    found["actuator_force"] = data.actuator_force.copy()
    return found


def record(task: str, steps: int) -> dict[str, np.ndarray]:
    """Return ``steps`` frames of one task."""
    compiled = scene(task)
    generator = np.random.default_rng(0)
    frames: list[dict[str, np.ndarray]] = []
    over, episode = True, 0
    while len(frames) < steps:
        if over:  # a new environment, because truck remembers the last episode of an old one
            env = gym.make(resolve_official(f"humanoid_bench:h1-{task}-v0"), disable_env_checker=True)
            inner, since = env.unwrapped, len(frames)
            env.reset(seed=episode)
            episode += 1
        for name, pos in EVENTS.get(task, {}).get(len(frames) - since, {}).items():
            joint = inner.data.joint(f"free_{name}")
            joint.qpos[:3], joint.qvel[:] = pos, 0
        start = over
        obs, reward, terminated, truncated, info = env.step(generator.uniform(-1, 1, 19).astype(np.float32))
        over = terminated or truncated
        frame = {"obs": obs, "reward": reward, "terminated": bool(terminated), "start": start}
        if len(obs) != inner.model.nq + inner.model.nv:
            frame |= {"qpos": inner.data.qpos.copy(), "qvel": inner.data.qvel.copy()}
        frame["memory"] = getattr(inner.task, "goal", np.zeros(0)).copy()
        frame |= {
            f"sensor/{name}": value for name, value in sensors(compiled, inner.model, inner.data).items()
        }
        frame |= {
            f"info/{name}": float(value) for name, value in info.items() if name != "per_timestep_reward"
        }
        frames.append(frame)
    return {name: np.array([frame[name] for frame in frames]) for name in frames[0]}


def main() -> None:
    """Record and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", type=Path, required=True, help="folder that holds the package humanoid_bench"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--steps", type=int, default=40, help="frames per task")
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    for task in options.tasks:
        trace = record(task, options.steps)
        np.savez_compressed(options.out / f"h1-{task}.npz", **trace)
        print(task, trace["reward"].shape, f"{int(trace['start'].sum())} episodes")


if __name__ == "__main__":
    main()
