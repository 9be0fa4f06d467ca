"""Whether a long program stays as it began: memory, descriptors, threads, speed.

    python -m benchmarks.soak [--minutes 5] [--resets 60] [--runs 3] [--json FILE] [FLAGS OF train.py]

Several runs train as one program, with a reset of each from time to time (evaluations before and after it, metrics,
checkpoints); ``--minutes 60`` is the hour with a reset a minute. A window lies between two resets. The windows of the
second quarter are compared with those of the last, so that buffers are full and caches warm in both: memory may differ
by 1 %, processor time of an env step by 5 %, descriptors and threads not at all. Exits with 1 where they do. Other
programs make a processor slower, so time is counted in units of a fixed piece of work: updates of other agents of the
same kind, one after the other all through every window.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from benchmarks.throughput import learner_update
from benchmarks.timing import seconds_per_call
from common.files import to_json
from common.table import format_table
from configs import loader
from training import loop
from training.due import Clock
from training.folder import run_configs, run_folders

MEMORY, SPEED = 0.01, 0.05
CALIBRATION = 3000  # env steps
PARTS = 200  # of the fixed work, in each window
FLAGS = (
    "--algo sac --env Pendulum-v1 --preset quick --reset fire --reset.until null --replay.replay-capacity 2000 "
    "--eval.episodes 2 --checkpoint.keep 1 --num-threads 1 --log.every 500"
)


class Sample(NamedTuple):
    """What the program holds, and has used, at an env step."""

    env_step: int
    seconds: float  # of the processor since the start, without the fixed work
    work: float  # seconds of the processor for the fixed work since the start
    memory: int  # resident bytes
    descriptors: int
    threads: int


class Verdict(NamedTuple):
    """The last quarter beside the second."""

    memory: float  # relative growth
    time_per_step: float  # likewise, in units of the fixed piece of work
    descriptors: set[int]
    threads: set[int]

    @property
    def stays(self) -> bool:
        steady = len(self.descriptors) == 1 and len(self.threads) == 1
        return steady and abs(self.memory) <= MEMORY and abs(self.time_per_step) <= SPEED


def sample(env_step: int, work: float) -> Sample:
    """Look at this process (Linux), which has spent ``work`` seconds of the processor for the fixed work."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    descriptors, threads = (len(os.listdir(f"/proc/self/{kind}")) for kind in ("fd", "task"))
    return Sample(env_step, time.process_time() - work, work, resident, descriptors, threads)


def make_fixed_work(num_runs: int) -> Callable[[], object]:
    """A piece of work like the runs' own, which slows down as they do where other programs run: an update of agents."""
    sizes = "--agent.actor-width 32 --agent.critic-width 64 --agent.critic-blocks 1 --replay.batch-size 128"
    return learner_update("cpu", *sizes.split(), agents=num_runs)


def judge(samples: Sequence[Sample]) -> Verdict:
    """Compare the last quarter of the windows between ``samples`` with the second; at least 8 windows.

    Raises:
        ValueError: fewer.
    """
    windows = len(samples) - 1
    if windows < 8:
        raise ValueError(f"at least 8 windows are needed, got {windows}")
    quarter = windows // 4
    early, late = samples[quarter : 2 * quarter + 1], samples[-quarter - 1 :]

    def growth(values: Sequence[Sequence[float]]) -> float:
        first, last = map(statistics.median, values)
        return last / first - 1

    rates = [
        [
            (b.seconds - a.seconds) / (b.env_step - a.env_step) / (b.work - a.work)
            for a, b in itertools.pairwise(part)
        ]
        for part in (early, late)
    ]
    steady = samples[quarter:]
    return Verdict(
        growth([[each.memory for each in part] for part in (early, late)]),
        growth(rates),
        {each.descriptors for each in steady},
        {each.threads for each in steady},
    )


def soak(argv: Sequence[str], folder: Path, every: int) -> list[Sample]:
    """Train as ``argv`` says, in ``folder``, and look every ``every`` env steps."""
    configs = run_configs([loader.load(argv)[0]])
    samples: list[Sample] = []
    fixed_work = make_fixed_work(len(configs))
    work: list[float] = []
    advance = Clock.advance

    def watched(self: Clock, transitions: int) -> None:
        advance(self, transitions)
        if self.env_step * PARTS >= every * len(work):
            work.append(seconds_per_call(fixed_work, 1, "cpu"))
        if self.env_step >= every * (len(samples) + 1) - every // 2:  # in the middle between two resets
            samples.append(sample(self.env_step, sum(work)))

    with mock.patch.object(Clock, "advance", watched):
        loop.train_together(configs, run_folders(configs, folder))
    return samples


def main(argv: list[str] | None = None) -> int:
    """Soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "soak").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--resets", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args, own = parser.parse_known_args(argv)
    flags = [*FLAGS.split(), *own, "--num-agents", str(args.runs)]

    def program(steps: int, every: int) -> list[str]:
        periods = {
            "reset.every": every,
            "eval.every": every,
            "checkpoint.every": every,
            "log.metrics-every": every,
        }
        return [
            *flags,
            *f"--total-steps {steps}".split(),
            *(w for p, n in periods.items() for w in (f"--{p}", str(n))),
        ]

    with tempfile.TemporaryDirectory() as folder:
        window = CALIBRATION // 3
        *_, early, late = soak(program(CALIBRATION, window), Path(folder) / "calibration", window)
        seconds_per_step = (late.seconds + late.work - early.seconds - early.work) / window
        every = max(int(args.minutes * 60 / seconds_per_step / (args.resets + 1)), 100)
        started = time.perf_counter()
        samples = soak(program(every * (args.resets + 1), every), Path(folder) / "run", every)
    verdict = judge(samples)
    minutes = (time.perf_counter() - started) / 60
    print(
        f"{args.runs} runs, {args.resets} resets of each, {samples[-1].env_step:,} env steps, {minutes:.1f} minutes"
    )
    rows = [
        ["resident memory, last quarter over second", f"{verdict.memory:+.2%}"],
        [
            "time of the processor per env step, in units of fixed work, likewise",
            f"{verdict.time_per_step:+.2%}",
        ],
        ["open descriptors", ", ".join(map(str, sorted(verdict.descriptors)))],
        ["threads", ", ".join(map(str, sorted(verdict.threads)))],
    ]
    print(format_table(rows))
    if args.json:
        args.json.write_text(to_json([each._asdict() for each in samples]) + "\n")
    return 0 if verdict.stays else 1


if __name__ == "__main__":
    sys.exit(main())
