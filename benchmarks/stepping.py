"""Speed of the native H1 environments, as ratios to the bare ``mj_step`` loop of the same model.

    python -m benchmarks.stepping [--task walk] [--num-envs 8] [--steps 20] [--blocks 30] [--threads 1 2]
                                  [--official PATH]

In every block all contenders start from the same states and get the same actions, so that all simulate the same
motion; they take turns, in changing order. Two figures, each the median over blocks:

share    CPU time of the bare loop / CPU time of the contender: the part of the physics' speed that is left per core,
         1.0 at best. CPU time of the whole process, so that a busy machine does not count.
speedup  wall time of the bare loop on one core / wall time of the contender. Means little on a busy machine.

With --official (the folder of a clone of github.com/carlosferrazza/humanoid-bench; dm_control must be importable) the
official package on the same MuJoCo is one of the contenders.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np

import envs  # noqa: F401  (registers the environments)
from envs.humanoid.scene import FRAME_SKIP
from envs.humanoid.simulation import Simulation, scene
from envs.humanoid.vector import HumanoidVectorEnv
from envs.official import resolve_official

Times = dict[str, list[tuple[float, float]]]  # by contender: CPU and wall seconds of each block


def bare(simulations: list[Simulation], actions: np.ndarray) -> None:
    """Step the physics and nothing else."""
    for simulation, control in zip(
        simulations, simulations[0].scene.control(actions).swapaxes(0, 1), strict=True
    ):
        model, data = simulation.scene.model, simulation.data
        for target in control:
            data.ctrl[:] = target
            mujoco.mj_step(model, data, FRAME_SKIP)


def singles(environments: list[gym.Env], actions: np.ndarray) -> None:
    """Step Gymnasium environments one after the other."""
    for batch in actions:
        for env, action in zip(environments, batch, strict=True):
            env.step(action)


def batched(vector: HumanoidVectorEnv, actions: np.ndarray) -> None:
    """Step the vector environment."""
    for batch in actions:
        vector.step(batch)
        vector._ended[:] = False  # all go on after a fall, as the bare loop does


def put(env: gym.Env, simulation: Simulation) -> None:
    """Bring an official environment into the state of a simulation of ours."""
    for field in ("qpos", "qvel", "qacc_warmstart"):
        getattr(env.unwrapped.data, field)[:] = getattr(simulation.data, field)


def measure(
    task: str, num_envs: int, steps: int, blocks: int, threads: list[int], official: bool = False
) -> Times:
    """Return the times of every block per contender."""
    simulations = [Simulation(scene(task)) for _ in range(num_envs)]
    environments = [gym.make(f"h1-{task}-v0", disable_env_checker=True).unwrapped for _ in range(num_envs)]
    vectors = [
        HumanoidVectorEnv(
            task, num_envs, num_threads=count, max_episode_steps=10**9, autoreset_mode="Disabled"
        )
        for count in threads
    ]
    contenders: dict[str, Callable[[np.ndarray], None]] = {
        "bare mj_step": lambda actions: bare(simulations, actions),
        "HumanoidEnv": lambda actions: singles(environments, actions),
    }
    for count, vector in zip(threads, vectors, strict=True):
        name = f"HumanoidVectorEnv, {count} thread{'s' * (count > 1)}"
        contenders[name] = lambda actions, vector=vector: batched(vector, actions)
    theirs = []
    if official:
        env_id = resolve_official(f"humanoid_bench:h1-{task}-v0")
        theirs = [gym.make(env_id, disable_env_checker=True).unwrapped for _ in range(num_envs)]
        contenders["humanoid_bench"] = lambda actions: singles(theirs, actions)
    generator = np.random.default_rng(0)
    times: Times = {name: [] for name in contenders}
    for block in range(blocks):
        for simulation, env in zip(simulations, environments, strict=True):
            simulation.reset(generator)
            env.set_state(simulation.get_state())
        for simulation, env in zip(simulations, theirs, strict=False):
            put(env, simulation)
        states = np.array([[*simulation.get_state(), 0] for simulation in simulations])
        for vector in vectors:
            vector.set_state(states)
        actions = generator.uniform(-1, 1, (steps, num_envs, 19)).astype(np.float32)
        names = list(contenders)
        for name in names[block % len(names) :] + names[: block % len(names)]:
            cpu, wall = time.process_time(), time.perf_counter()
            contenders[name](actions)
            times[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="walk")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="environment steps per block")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--official", type=Path, help="folder that holds the package humanoid_bench")
    options = parser.parse_args()
    if options.official is not None:
        sys.path.insert(0, str(options.official))
    official = options.official is not None
    times = measure(options.task, options.num_envs, options.steps, options.blocks, options.threads, official)
    reference = times["bare mj_step"]
    count = options.num_envs * options.steps
    print(
        f"h1-{options.task}, {options.num_envs} environments, {options.blocks} blocks of {options.steps} steps"
    )
    print(f"MuJoCo {mujoco.__version__}, {platform.processor() or platform.machine()}")
    for name, own in times.items():
        share = statistics.median(b[0] / o[0] for b, o in zip(reference, own, strict=True))
        speedup = statistics.median(b[1] / o[1] for b, o in zip(reference, own, strict=True))
        micro = 1e6 * statistics.median(o[0] for o in own) / count
        print(f"{name:30s} {micro:6.0f} us CPU per step   share {share:.2f}   speedup {speedup:.2f}")


if __name__ == "__main__":
    main()
