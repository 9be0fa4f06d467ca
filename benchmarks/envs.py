"""Speed of the native H1 environments, as ratios to the bare ``mj_step`` loop of the same model and to the original.

    python -m benchmarks.envs [--task walk] [--num-envs 8] [--steps 20] [--blocks 30] [--threads 1 2]
                              [--official PATH [--official-python PYTHON]] [--json FILE]

In every block all contenders start from the same states and get the same actions, so that all simulate the same
motion; they take turns, in changing order. The figures, each the median over blocks:

share    CPU time of the bare loop / CPU time of the contender: the part of the physics' speed that is left per core,
         1.0 at best. CPU time of the whole process, so that a busy machine counts little.
speedup  wall time of the bare loop on one core / wall time of the contender.
scaling  wall time with the first number of threads / wall time with the others, beside what the bare loop gains from
         as many processes, the most the machine gives, and wall time of these processes / wall time with the threads.
         Needs a machine with nothing else to do, as does the speedup.

With --official (the folder of a clone of github.com/carlosferrazza/humanoid-bench; dm_control must be importable) the
official package is one of the contenders: on the same MuJoCo in this process, or, with --official-python, in a
process of that interpreter with whatever versions it has, such as the package's own pins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

import gymnasium as gym
import mujoco
import numpy as np

import envs  # noqa: F401  (registers the environments)
from benchmarks import official_worker
from envs.humanoid.scene import FRAME_SKIP
from envs.humanoid.simulation import Simulation, scene
from envs.humanoid.vector import HumanoidVectorEnv
from envs.official import PREFIX, resolve_official

STATE_FIELDS = ("qpos", "qvel", "qacc_warmstart")
Seconds = tuple[float, float]  # CPU and wall
BARE, OFFICIAL = "bare mj_step", "humanoid_bench"


def clocked(work: Callable[[], None]) -> Seconds:
    """Return how long ``work`` took."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


class Contender(Protocol):
    """One way to step N environments."""

    def put(self, simulations: list[Simulation]) -> None:
        """Take up the states of N simulations, solver's warm start included."""

    def block(self, actions: np.ndarray) -> Seconds:
        """Step through actions, (steps, N, 19) float32, and return how long that took."""


class Bare:
    """Steps the physics and nothing else, with one ``mj_step`` call per frame; its states are everybody's start."""

    def __init__(self, task: str, num_envs: int) -> None:
        self.simulations = [Simulation(scene(task)) for _ in range(num_envs)]

    def put(self, simulations: list[Simulation]) -> None:
        assert simulations is self.simulations

    def block(self, actions: np.ndarray) -> Seconds:
        compiled = self.simulations[0].scene
        controls = compiled.control(actions)

        def work() -> None:
            for batch in controls:
                for simulation, control in zip(self.simulations, batch, strict=True):
                    simulation.data.ctrl[:] = control
                    mujoco.mj_step(compiled.model, simulation.data, FRAME_SKIP)

        return clocked(work)


class BareProcesses:
    """``Bare`` spread over processes that share nothing: as many cores as this machine really gives."""

    def __init__(self, task: str, num_envs: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[tuple[Connection, np.ndarray]] = []
        for part in np.array_split(np.arange(num_envs), processes):
            ours, theirs = context.Pipe()
            context.Process(target=_bare_worker, args=(theirs, task, len(part)), daemon=True).start()
            self.pipes.append((ours, part))

    def put(self, simulations: list[Simulation]) -> None:
        self._exchange(np.array([simulation.get_state() for simulation in simulations]))

    def block(self, actions: np.ndarray) -> Seconds:
        start = time.perf_counter()
        cpu = self._exchange(actions.swapaxes(0, 1))
        return sum(cpu), time.perf_counter() - start

    def _exchange(self, rows: np.ndarray) -> list[float]:
        """Send every process its environments' rows, then wait for all answers."""
        for pipe, part in self.pipes:
            pipe.send(rows[part])
        return [pipe.recv() for pipe, _ in self.pipes]


def _bare_worker(pipe: Connection, task: str, num_envs: int) -> None:
    """Take states, then actions (environments, steps, 19), in turn; answer with the CPU seconds of each."""
    bare = Bare(task, num_envs)
    with contextlib.suppress(EOFError):  # the other end is closed when the program ends
        while True:
            for simulation, state in zip(bare.simulations, pipe.recv(), strict=True):
                simulation.set_state(state)
            pipe.send(0.0)
            pipe.send(bare.block(pipe.recv().swapaxes(0, 1))[0])


class Singles:
    """Steps Gymnasium environments one after the other."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        self.envs = [gym.make(env_id, disable_env_checker=True).unwrapped for _ in range(num_envs)]

    def block(self, actions: np.ndarray) -> Seconds:
        def work() -> None:
            for batch in actions:
                for env, action in zip(self.envs, batch, strict=True):
                    env.step(action)

        return clocked(work)


class NativeSingles(Singles):
    """``HumanoidEnv``."""

    def put(self, simulations: list[Simulation]) -> None:
        for env, simulation in zip(self.envs, simulations, strict=True):
            env.set_state(simulation.get_state())


class OfficialHere(Singles):
    """The official package in this process."""

    def put(self, simulations: list[Simulation]) -> None:
        for env, simulation in zip(self.envs, simulations, strict=True):
            for field in STATE_FIELDS:
                getattr(env.data, field)[:] = getattr(simulation.data, field)


class OfficialElsewhere:
    """The official package in another interpreter."""

    def __init__(self, python: Path, path: Path, task: str, num_envs: int) -> None:
        self.worker = subprocess.Popen(
            [str(python), official_worker.__file__, str(path.resolve()), task, str(num_envs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        answer = self.worker.stdout.readline()
        if not answer:
            raise SystemExit(f"{python} cannot run humanoid_bench from {path}; see above")
        self.versions = json.loads(answer)

    def put(self, simulations: list[Simulation]) -> None:
        for field in STATE_FIELDS:
            values = np.array([getattr(simulation.data, field) for simulation in simulations])
            official_worker.write(self.worker.stdin, values)

    def block(self, actions: np.ndarray) -> Seconds:
        official_worker.write(self.worker.stdin, actions)
        self.worker.stdin.flush()
        cpu, wall = json.loads(self.worker.stdout.readline())
        return cpu, wall

    def close(self) -> None:
        """End the process."""
        self.worker.stdin.close()
        self.worker.wait()


class Batched:
    """``HumanoidVectorEnv``."""

    def __init__(self, task: str, num_envs: int, threads: int) -> None:
        self.vector = HumanoidVectorEnv(
            task, num_envs, num_threads=threads, max_episode_steps=10**9, autoreset_mode="Disabled"
        )

    def put(self, simulations: list[Simulation]) -> None:
        self.vector.set_state(np.array([[*simulation.get_state(), 0] for simulation in simulations]))

    def block(self, actions: np.ndarray) -> Seconds:
        def work() -> None:
            for batch in actions:
                self.vector.step(batch)
                self.vector._ended[:] = False  # all go on after a fall, as the bare loop does

        return clocked(work)


def processes_name(processes: int) -> str:
    """Return the name of the bare loop in several processes."""
    return f"{BARE}, {processes} processes"


def vector_name(threads: int) -> str:
    """Return the vector environment's name in the table."""
    return f"HumanoidVectorEnv, {threads} thread{'s' * (threads > 1)}"


def measure(contenders: dict[str, Contender], steps: int, blocks: int) -> dict[str, list[Seconds]]:
    """Return the times of every block per contender; ``contenders`` holds ``BARE``."""
    simulations = contenders[BARE].simulations
    generator = np.random.default_rng(0)
    times: dict[str, list[Seconds]] = {name: [] for name in contenders}
    for block in range(blocks):
        for simulation in simulations:
            simulation.reset(generator)
        for contender in contenders.values():
            contender.put(simulations)
        actions = generator.uniform(-1, 1, (steps, len(simulations), 19)).astype(np.float32)
        names = list(contenders)
        for name in names[block % len(names) :] + names[: block % len(names)]:
            times[name].append(contenders[name].block(actions))
    return times


def ratio(first: list[Seconds], second: list[Seconds], clock: int) -> float:
    """Return the median over blocks of ``first`` / ``second``; clock 0 is CPU time, 1 wall time."""
    return statistics.median(a[clock] / b[clock] for a, b in zip(first, second, strict=True))


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="walk")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="environment steps per block")
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--official", type=Path, help="folder that holds the package humanoid_bench")
    parser.add_argument("--official-python", type=Path, help="interpreter that runs it instead of this one")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    task, count = options.task, options.num_envs
    contenders = {BARE: Bare(task, count), "HumanoidEnv": NativeSingles(f"h1-{task}-v0", count)}
    contenders |= {vector_name(threads): Batched(task, count, threads) for threads in options.threads}
    contenders |= {processes_name(n): BareProcesses(task, count, n) for n in options.threads if n > 1}
    versions = {"mujoco": mujoco.__version__, "gymnasium": gym.__version__, "numpy": np.__version__}
    official_versions = versions
    if options.official_python is not None:
        if options.official is None:
            parser.error("--official-python needs --official")
        contenders[OFFICIAL] = OfficialElsewhere(options.official_python, options.official, task, count)
        official_versions = contenders[OFFICIAL].versions
    elif options.official is not None:
        sys.path.insert(0, str(options.official))
        contenders[OFFICIAL] = OfficialHere(resolve_official(f"{PREFIX}h1-{task}-v0"), count)
    times = measure(contenders, options.steps, options.blocks)
    if options.official_python is not None:
        contenders[OFFICIAL].close()

    print(f"h1-{task}, {count} environments, {options.blocks} blocks of {options.steps} steps")
    print(
        f"{versions}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    if options.official is not None:
        print(f"{OFFICIAL}: {official_versions}")
    figures = {}
    for name, own in times.items():
        figures[name] = {
            "cpu_us_per_step": 1e6 * statistics.median(o[0] for o in own) / (count * options.steps),
            "share": ratio(times[BARE], own, 0),
            "speedup": ratio(times[BARE], own, 1),
        }
        micro, share, speedup = figures[name].values()
        print(f"{name:30s} {micro:6.0f} us CPU per step   share {share:.3f}   speedup {speedup:.2f}")
    vector = times[vector_name(options.threads[0])]
    for threads in options.threads[1:]:
        name = vector_name(threads)
        figures[name]["scaling"] = ratio(vector, times[name], 1)
        processes = times[processes_name(threads)]
        own, reached = ratio(times[BARE], processes, 1), ratio(processes, times[name], 1)
        figures[name]["of_the_machines_own"] = reached
        print(
            f"{name}: scaling {figures[name]['scaling']:.2f} over {options.threads[0]}; "
            f"the machine's own: {own:.2f}, of which the environment reaches {reached:.2f}"
        )
    if OFFICIAL in times:
        for name in ("HumanoidEnv", vector_name(options.threads[0])):
            figures[name]["official_over_ours"] = ratio(times[OFFICIAL], times[name], 0)
            print(f"{OFFICIAL} / {name}: {figures[name]['official_over_ours']:.2f} in CPU time")
    if options.json:
        described = {"versions": versions, "official_versions": official_versions, "load": os.getloadavg()[0]}
        options.json.write_text(json.dumps(described | {"contenders": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
