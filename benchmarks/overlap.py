"""What ``--act-lag 1`` can hide: time of environments and of updates in the training loop, lag 0 and 1 in turns.

    python -m benchmarks.overlap [--rounds 3]

For each environment step after the warm-up: wall time, CPU time of the process, and of its two threads. With lag 1 and
a core for each thread the longer one decides, with lag 0 the sum; ``bound`` is their ratio, from the run with lag 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from configs import loader
from configs.schema import Config
from envs.vec import Step, VecEnv
from training import loop
from training.due import Clock

QUIET = (
    "--reset none --eval.every 0 --eval.episodes 1 --log.metrics-every 0 --log.every 0 --num-threads 1 "
    "--replay.replay-capacity 10000 --device cpu"
)
# Name: flags, env steps of warm-up, env steps left out behind it, env steps measured.
CASES = {
    "h1-walk, quick preset": (f"--algo sac --env h1-walk --preset quick {QUIET}", 300, 20, 220),
    "Pong, paper preset": (f"--algo dqn --env Pong --preset paper --eval.steps 4 {QUIET}", 100, 20, 100),
}
COLUMNS = ("wall", "process", "learner", "environments")


def measure(flags: str, starts: int, skipped: int, steps: int, lag: int) -> dict[str, float]:
    """Milliseconds per environment step of one run; ``environments`` leaves out threads that they start themselves."""
    schedule = (
        f"--replay.learning-starts {starts} --total-steps {starts + skipped + steps + 4} --act-lag {lag}"
    )
    config, _ = loader.load([*flags.split(), *schedule.split()])
    seconds, marks = [0.0], []
    build, advance = loop.make_training_env, Clock.advance

    def timed_env(config: Config, seeds: Sequence[int]) -> VecEnv:
        env = build(config, seeds)
        take = env.step

        def step(actions: np.ndarray) -> Step:
            start = time.thread_time()
            result = take(actions)
            seconds[0] += time.thread_time() - start
            return result

        env.step = step
        return env

    def marked(self: Clock, transitions: int) -> None:
        advance(self, transitions)
        if self.env_step >= starts + skipped + len(marks[:1]) * steps and len(marks) < 2:
            now = (time.perf_counter(), time.process_time(), time.thread_time(), seconds[0])
            marks.append((*now, self.env_step))

    patches = (
        mock.patch.object(loop, "make_training_env", timed_env),
        mock.patch.object(Clock, "advance", marked),
    )
    with tempfile.TemporaryDirectory() as folder, patches[0], patches[1]:
        loop.train(config, Path(folder) / "run")
    first, last = marks
    taken = last[-1] - first[-1]
    return {name: 1e3 * (b - a) / taken for name, a, b in zip(COLUMNS, first, last, strict=False)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    for name in args.cases:
        rounds = []
        for number in range(args.rounds):
            order = (0, 1) if number % 2 == 0 else (1, 0)
            rounds.append({lag: measure(*CASES[name], lag) for lag in order})
        shares = [r[1]["learner"] / r[1]["process"] for r in rounds]
        figures = {
            "bound": statistics.median(max(share, 1 - share) for share in shares),
            "wall lag 1 / lag 0": statistics.median(r[1]["wall"] / r[0]["wall"] for r in rounds),
            **{
                f"lag {lag}": {c: statistics.median(r[lag][c] for r in rounds) for c in COLUMNS}
                for lag in (0, 1)
            },
        }
        print(json.dumps({name: figures}, indent=1), flush=True)


if __name__ == "__main__":
    main()
