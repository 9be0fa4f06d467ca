"""Time of the host for one step of K runs as one program, with the physics and the updates replaced by nothing.

    python -m benchmarks.host_time [--runs 1 4 12] [--rounds 5]

What is left is noise, acting, checks, counters, storing a transition, due dates. Measured twice: with the actor, whose
few small products are one launch on a GPU, and with it replaced by nothing too, which leaves what a GPU cannot take
over. Microseconds of processor time per run and step on one thread, SAC on h1-walk with the quick preset, medians over
rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from agents.sac import SAC
from agents.stack import Stack
from configs import loader
from envs.humanoid.vector import HumanoidVectorEnv
from training import loop
from training.due import Clock
from training.folder import run_configs, run_folders
from training.trainer import Trainer

SKIPPED, MEASURED = 200, 1000
FLAGS = (
    "--algo sac --env h1-walk --reset none --preset quick --replay.learning-starts 50 --num-threads 1 --device cpu "
    f"--eval.every 0 --log.every 0 --log.metrics-every 0 --checkpoint.every 0 --total-steps {SKIPPED + MEASURED + 10}"
)


class NoUpdates:
    """Learner that learns nothing."""

    def __init__(self, num_runs: int) -> None:
        self._learned = [None] * num_runs, {"loss": torch.zeros(num_runs)}

    def learn(self, count: int) -> Any:
        return self._learned


def no_physics() -> Any:
    """Return a replacement of the environments' step that takes one real step and repeats its result."""
    taken: dict[int, tuple[np.ndarray, ...]] = {}  # by number of environments
    step = HumanoidVectorEnv.step

    def repeat(self: HumanoidVectorEnv, actions: np.ndarray) -> Any:
        if self.num_envs not in taken:
            obs, reward, terminated, truncated, _ = step(self, actions)
            taken[self.num_envs] = (obs, reward, np.zeros_like(terminated), np.zeros_like(truncated))
        return *(array.copy() for array in taken[self.num_envs]), {}

    return repeat


def no_actor() -> list[tuple[type, str, Any]]:
    """Return replacements, one agent's and a stack's, of the policy by the mean that it draws around."""

    def nothing(self: Any, obs: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise

    return [(SAC, "explore", nothing), (Stack, "_explore", nothing)]


def measure(num_runs: int, actor: bool) -> float:
    """Microseconds of processor time per run and step, with the actor or with it replaced by nothing."""
    config, _ = loader.load([*FLAGS.split(), "--num-agents", str(num_runs)])
    configs = run_configs([config])
    marks: list[float] = []
    advance = Clock.advance

    def marked(self: Clock, transitions: int) -> None:
        advance(self, transitions)
        if self.env_step in (SKIPPED, SKIPPED + MEASURED):
            marks.append(time.process_time())

    nothing = mock.Mock()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        for owner, name, replacement in (
            (HumanoidVectorEnv, "step", no_physics()),
            (loop, "make_learner", lambda *_: NoUpdates(num_runs)),
            (Clock, "advance", marked),
            *((Trainer, name, nothing) for name in ("start", "evaluate", "save")),
            *(() if actor else no_actor()),
        ):
            patches.enter_context(mock.patch.object(owner, name, replacement))
        loop.train_together(configs, run_folders(configs, Path(folder) / "runs"))
    first, last = marks
    return 1e6 * (last - first) / MEASURED / num_runs


def measure_all(runs: Sequence[int], rounds: int) -> dict[str, dict[str, float]]:
    """Median and range over interleaved rounds for each number of runs."""
    seen: dict[str, list[float]] = {}
    for _ in range(rounds):
        for count, actor in itertools.product(runs, (True, False)):
            case = f"{count} runs" if actor else f"{count} runs, no actor"
            seen.setdefault(case, []).append(measure(count, actor))
    return {
        case: {"median": statistics.median(us), "min": min(us), "max": max(us)} for case, us in seen.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_time", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--runs", nargs="+", type=int, default=[1, 4, 12], metavar="K")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(measure_all(args.runs, args.rounds), indent=1))


if __name__ == "__main__":
    main()
