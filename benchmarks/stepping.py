"""Cost of stepping the native H1 environments, as ratios to the bare ``mj_step`` loop of the same model.

    python -m benchmarks.stepping [--task walk] [--steps 50] [--blocks 40]

Every block starts each contender from the same state and gives it the same actions, so that all simulate
the same motion; contenders take turns within a block. The figure is the median over blocks of (bare time /
own time): the share of the physics' speed that is left, 1.0 at best. It is a ratio within one run on one
machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import mujoco
import numpy as np

import envs  # noqa: F401  (registers the environments)
from envs.humanoid.scene import FRAME_SKIP
from envs.humanoid.simulation import Simulation, scene

Contender = Callable[[np.ndarray], None]  # steps through actions, (steps, 19)


def bare(simulation: Simulation, actions: np.ndarray) -> None:
    """Step the physics and nothing else."""
    model, data = simulation.scene.model, simulation.data
    for control in simulation.scene.control(actions):
        data.ctrl[:] = control
        mujoco.mj_step(model, data, FRAME_SKIP)


def single(env: gym.Env, actions: np.ndarray) -> None:
    """Step one Gymnasium environment."""
    for action in actions:
        env.step(action)


def measure(task: str, steps: int, blocks: int) -> dict[str, list[float]]:
    """Return the seconds of every block per contender."""
    simulation = Simulation(scene(task))
    env = gym.make(f"h1-{task}-v0", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    generator = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"bare mj_step": [], "HumanoidEnv": []}
    for _ in range(blocks):
        simulation.reset(generator)
        start = simulation.get_state()
        env.set_state(start)
        actions = generator.uniform(-1, 1, (steps, 19)).astype(np.float32)
        for name, run in (
            ("bare mj_step", lambda a: bare(simulation, a)),
            ("HumanoidEnv", lambda a: single(env, a)),
        ):
            began = time.process_time()
            run(actions)
            seconds[name].append(time.process_time() - began)
    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="walk")
    parser.add_argument("--steps", type=int, default=50, help="environment steps per block")
    parser.add_argument("--blocks", type=int, default=40)
    options = parser.parse_args()
    seconds = measure(options.task, options.steps, options.blocks)
    reference = seconds["bare mj_step"]
    print(f"h1-{options.task}, {options.blocks} blocks of {options.steps} steps, MuJoCo {mujoco.__version__}")
    for name, own in seconds.items():
        share = statistics.median(b / o for b, o in zip(reference, own, strict=True))
        micro = 1e6 * min(own) / options.steps
        print(f"{name:24s} {micro:7.0f} us per step at best   {share:.2f} of the bare loop's speed")


if __name__ == "__main__":
    main()
