"""The training loop end to end, in processes of their own: env steps, updates, seconds, for several numbers of threads.

    python -m benchmarks.training [--cases sac-quick dqn-quick] [--rounds 1]

What is timed are whole steps of ``loop.train`` (act, step the environments, store, sample, update, log) after the first
updates; evaluations, metrics, checkpoints and resets are left out, since their periods are a matter of taste.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

# Flags, env steps before and during the measurement (on CUDA 20 times as many), and whether the environments have
# threads to choose.
CASES: dict[str, tuple[str, int, int, bool]] = {
    "sac-paper": ("--algo sac --env h1-walk --preset paper", 310, 16, False),
    "sac-quick": ("--algo sac --env h1-walk --preset quick", 320, 200, False),
    "dqn-paper": ("--algo dqn --env Pong --preset paper", 340, 60, True),
    "dqn-quick": ("--algo dqn --env Pong --preset quick", 360, 240, True),
}
WARM_UP = (
    300  # env steps of random actions; the rest of the steps before the measurement are taken with updates
)
QUIET = (
    "--reset none --eval.every 0 --eval.episodes 1 --eval.steps 100 --log.metrics-every 0 --checkpoint.every 0 "
    f"--replay.learning-starts {WARM_UP} --replay.replay-capacity 20000"
)


def work(case: str, threads: int, env_threads: int, device: str, act_lag: int = 0) -> dict[str, float]:
    """Train in this process and time its steps; on CUDA as many steps again are profiled for the share of busy time."""
    from common.threads import let_idle_threads_sleep

    let_idle_threads_sleep()
    from benchmarks.timing import KernelClock, clock
    from configs import loader
    from training import loop
    from training.due import Clock

    flags, before, during, has_env_threads = CASES[case]
    during *= 20 if device == "cuda" else 1
    marks: list[tuple[int, int, float, float]] = []
    busy: dict[str, float] = {}
    kernels = KernelClock() if device == "cuda" else None

    class TimedClock(Clock):
        updates = 0

        def take_owed(self) -> int:
            owed = super().take_owed()
            self.updates += owed
            return owed

        def advance(self, transitions: int) -> None:
            super().advance(transitions)
            if len(marks) < 2 and self.env_step >= before + len(marks) * during:
                clock(device)  # waits for the device
                marks.append((self.env_step, self.updates, time.perf_counter(), time.process_time()))
                if kernels and len(marks) == 2:
                    kernels.start()
            elif kernels and self.env_step >= before + 2 * during:
                busy["busy_share"] = kernels.stop()

    words = [*flags.split(), *QUIET.split(), "--total-steps", str(before + (2 if kernels else 1) * during)]
    words += ["--num-threads", str(threads), "--device", device, "--act-lag", str(act_lag)]
    words += ["--env.atari.num-threads", str(env_threads)] if has_env_threads else []
    config, _ = loader.load(words)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(loop, "Clock", TimedClock):
        loop.train(config, Path(folder) / "run")
    steps, updates, wall, cpu = (last - first for first, last in zip(*marks, strict=True))
    return {
        "env_steps_per_second": steps / wall,
        "updates_per_second": updates / wall,
        "updates_per_env_step": updates / steps,
        "wall_seconds_per_1000_env_steps": 1e3 * wall / steps,
        "cpu_seconds_per_1000_env_steps": 1e3 * cpu / steps,
        **busy,
    }


def measure(
    cases: Sequence[str], threads: Sequence[int], rounds: int, device: str, act_lag: int = 0
) -> dict[str, object]:
    """Medians over rounds for every case and number of threads of PyTorch and, where they have any, environments."""
    setups = [
        (case, own, theirs)
        for case in cases
        for own in threads
        for theirs in (threads if CASES[case][3] else threads[:1])
    ]
    seen: dict[tuple[str, int, int], list[dict[str, float]]] = {setup: [] for setup in setups}
    for _ in range(rounds):
        for setup in setups:
            command = [
                sys.executable,
                "-m",
                "benchmarks.training",
                "--worker",
                *map(str, setup),
                "--device",
                device,
                "--act-lag",
                str(act_lag),
            ]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            seen[setup].append(json.loads(output.splitlines()[-1]))
    figures: dict[str, object] = {}
    for (case, own, theirs), values in seen.items():
        name = f"{case}, {own} threads" + (f", environments {theirs}" if CASES[case][3] else "")
        figures[name] = {key: statistics.median(value[key] for value in values) for key in values[0]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["sac-quick", "dqn-quick"])
    parser.add_argument(
        "--threads", nargs="+", type=int, default=[1, 2], help="numbers of threads (default: 1 2)"
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--act-lag", type=int, choices=(0, 1), default=0, help="as of train.py (default: 0)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        case, threads, env_threads = args.worker
        print(json.dumps(work(case, int(threads), int(env_threads), args.device, args.act_lag)))
        return
    print(json.dumps(measure(args.cases, args.threads, args.rounds, args.device, args.act_lag), indent=1))


if __name__ == "__main__":
    main()
