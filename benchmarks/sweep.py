"""What a sweep costs beside its runs: start-up, polling, and how well it fills the cores.

    python benchmarks/sweep.py --runs 8 --workers 2

Short runs of CartPole, made by sweep.py and, for comparison, by as many chains of plain train.py commands, each command
begun when the one before has ended. The sweep's own processor time, and the memory of its programs, come from /proc
(Linux). With --seeds-together the sweep trains the runs as one program, which the single commands are compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from sweeps.experiment import PlannedRun, read_experiment  # noqa: E402
from sweeps.plan import hardware  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def experiment(folder: Path, runs: int, steps: int, together: bool) -> Path:
    """Write an experiment of ``runs`` seeds, a process each, or one for all of them."""
    path = folder / "short.yaml"
    path.write_text(
        f"base: {{algo: dqn, env: CartPole-v1, preset: quick, reset: none, total_steps: {steps}, num_threads: 1}}\n"
        f"grid: {{seed: {{count: {runs}}}}}\ntogether: {'seeds' if together else 'none'}\n"
    )
    return path


def alone(runs: Sequence[PlannedRun], folder: Path, workers: int) -> float:
    """Return the seconds that ``workers`` chains of train.py commands take, each run after the one before."""

    def chain(mine: Sequence[PlannedRun]) -> None:
        for run in mine:
            command = [
                sys.executable,
                str(ROOT / "train.py"),
                *run.flags,
                "--run-dir",
                str(folder / run.folder),
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)

    begin = time.monotonic()
    chains = [threading.Thread(target=chain, args=(runs[index::workers],)) for index in range(workers)]
    for each in chains:
        each.start()
    for each in chains:
        each.join()
    return time.monotonic() - begin


class Cost(NamedTuple):
    """What a sweep takes."""

    seconds: float
    own: float  # its processor seconds
    before: float  # those of them before the first start
    bytes: int  # resident memory of the largest of its programs, at most


def swept(path: Path, folder: Path, workers: int) -> Cost:
    """Make the experiment with ``sweep.py``."""
    command = [
        sys.executable,
        str(ROOT / "sweep.py"),
        str(path),
        "--output",
        str(folder),
        "--workers",
        str(workers),
    ]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    own = before = 0.0
    largest = 0
    while process.poll() is None:
        largest = max([largest, *map(_most_memory, _children(process.pid))])
        own = _processor_seconds(process.pid) or own
        if not (folder / "state.jsonl").exists():
            before = own
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"sweep.py ended with code {process.returncode}")
    return Cost(time.monotonic() - begin, own, before, largest)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _most_memory(pid: int) -> int:
    """Return the most bytes that a process has had in memory so far; 0 once it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def _processor_seconds(pid: int) -> float | None:
    """Return the processor time of a process without its children; None once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4_000, help="env steps of each run")
    parser.add_argument("--seeds-together", action="store_true", help="one program for all runs of the sweep")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = experiment(folder, args.runs, args.steps, args.seeds_together)
        runs = read_experiment(path).runs
        by_hand = alone(runs, folder / "alone", args.workers)
        cost = swept(path, folder / "swept", args.workers)
    result = {
        "runs": args.runs,
        "workers": args.workers,
        "steps": args.steps,
        "by hand, s": round(by_hand, 1),
        "seeds": "one program" if args.seeds_together else "a process each",
        "sweep.py, s": round(cost.seconds, 1),
        "ratio": round(cost.seconds / by_hand, 3),
        "its processor time, s": round(cost.own, 2),
        "of it before the first start, s": round(cost.before, 2),
        "processor time per run, s": round(cost.own / args.runs, 2),
        "share of the cores while polling": round(
            (cost.own - cost.before) / (cost.seconds * args.workers), 4
        ),
        "memory of the largest program, MB": round(cost.bytes / 1e6),
        "load of the machine": os.getloadavg()[0],
        "hardware": hardware(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
