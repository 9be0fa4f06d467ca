"""Host time of one ``VecEnv.step`` beyond its backend's own: checks, counters, copies.

    python -m benchmarks.vec_overhead [--env h1-walk] [--runs 1 4 12] [--num-envs 1] [--steps 2000] [--blocks 20]

Every K in --runs is one ``VecEnv`` of K runs, whose backend answers every step with arrays made beforehand. Blocks
take turns; the figures are medians over them, us of CPU time per step of all runs. ``finite`` is the part that looks
for NaN and infinity.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from common.table import format_table
from envs.backend import Transition
from envs.vec import VecEnv


class Recorded:
    """A backend's first observations, and one transition that it gives as its answer to every step."""

    def __init__(self, env: VecEnv) -> None:
        real = env._backend
        self.observation_space, self.action_space = real.observation_space, real.action_space
        self.max_episode_steps, self.frames_per_second = real.max_episode_steps, real.frames_per_second
        env.reset(range(env.num_runs))
        self._transition = real.step(env._checked(env.random_action()))
        real.close()

    def start(self, seeds: Sequence[int]) -> np.ndarray:
        return self._transition.obs

    def restart(self, rows: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
        return self._transition.obs

    def step(self, actions: np.ndarray) -> Transition:
        return self._transition

    def state_dict(self, rows: slice) -> dict[str, Any]:
        return {}

    def load_state_dict(self, states: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> None:
        return None

    def render(self) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        return None


def step_seconds(env: VecEnv, actions: np.ndarray, steps: int) -> float:
    """Return the mean time of a step."""
    start = time.process_time()
    for _ in range(steps):
        env.step(actions)
    return (time.process_time() - start) / steps


def finite_seconds(env: VecEnv, actions: np.ndarray, steps: int) -> float:
    """Return the mean time that a step looks for NaN and infinity."""
    step = env.step(actions)
    start = time.process_time()
    for _ in range(steps):
        env._require_finite("observation", step.next_obs)
        env._require_finite("reward", step.reward)
    return (time.process_time() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="h1-walk", metavar="ID")
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 4, 12])
    parser.add_argument("--num-envs", type=int, default=1, help="of each run")
    parser.add_argument("--steps", type=int, default=2000, help="per block")
    parser.add_argument("--blocks", type=int, default=20)
    options = parser.parse_args()
    contenders = []
    for runs in options.runs:
        env = VecEnv(options.env, options.num_envs, num_runs=runs)
        env._backend = Recorded(env)
        env.reset(range(runs))
        contenders.append((env, env.random_action()))
    times: list[list[tuple[float, float]]] = [[] for _ in contenders]
    for _ in range(options.blocks):
        for (env, actions), taken in zip(contenders, times, strict=True):
            of_step = step_seconds(env, actions, options.steps)
            taken.append((of_step, finite_seconds(env, actions, options.steps)))
    rows = []
    for (env, _), taken in zip(contenders, times, strict=True):
        of_step, finite = (1e6 * statistics.median(part) for part in zip(*taken, strict=True))
        rows.append([str(env.num_runs), str(env.num_rows), f"{of_step:.1f}", f"{finite:.1f}"])
    print(f"{options.env}, us per step of all runs")
    print(format_table([["runs", "rows", "VecEnv.step", "of it finite"], *rows]))


if __name__ == "__main__":
    main()
