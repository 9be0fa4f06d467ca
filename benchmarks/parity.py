"""The native H1 tasks against the official ``humanoid_bench`` package on the same MuJoCo, under a random policy.

    python -m benchmarks.parity --official PATH [--tasks walk stand ...] [--episodes 300] [--json FILE]

PATH is the folder of a clone of github.com/carlosferrazza/humanoid-bench (dm_control must be importable).
Both run the same episodes: same seeds, same actions, one action per frame. Reported per task: mean return and length
with their standard errors, and how many standard errors apart the two are (below 1.96 in 95 % of tasks that agree).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path

import mujoco
import numpy as np

from envs import make_vec
from envs.humanoid.tasks import TASKS


def play(env_id: str, episodes: int, seed: int) -> list[tuple[float, int]]:
    """Return (return, length) of ``episodes`` episodes of uniform random actions; each has a seed of its own."""
    env = make_vec(env_id)
    results = []
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        while True:
            step = env.step(env.random_action())
            if step.episodes:
                results.append((step.episodes[0].episodic_return, step.episodes[0].length))
                break
    env.close()
    return results


def summarise(values: list[float]) -> tuple[float, float]:
    """Return mean and standard error."""
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def compare(task: str, episodes: int, seed: int) -> dict[str, float]:
    """Return the figures of one task."""
    row: dict[str, float] = {"episodes": episodes}
    native, official = (
        play(env_id, episodes, seed) for env_id in (f"h1-{task}-v0", f"humanoid_bench:h1-{task}-v0")
    )
    for index, name in enumerate(("return", "length")):
        ours, theirs = ([float(result[index]) for result in side] for side in (native, official))
        (mean, error), (their_mean, their_error) = summarise(ours), summarise(theirs)
        apart = math.hypot(error, their_error)
        row |= {
            f"native_{name}": mean,
            f"native_{name}_se": error,
            f"official_{name}": their_mean,
            f"official_{name}_se": their_error,
            f"{name}_apart": abs(mean - their_mean) / apart if apart else 0.0,
        }
    return row


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--official", type=Path, required=True, help="folder that holds the package humanoid_bench"
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--episodes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    sys.path.insert(0, str(options.official))
    print(
        f"MuJoCo {mujoco.__version__}, NumPy {np.__version__}, {options.episodes} episodes per task and side"
    )
    print(
        f"{'task':16s} {'native return':>18s} {'official':>18s} {'length':>16s} {'official':>16s}   apart (s.e.)"
    )
    rows = {}
    for task in options.tasks:
        row = rows[task] = compare(task, options.episodes, options.seed)
        cells = [
            f"{row[f'{side}_{name}']:10.2f} ± {row[f'{side}_{name}_se']:.2f}"
            for name in ("return", "length")
            for side in ("native", "official")
        ]
        print(f"{task:16s}", *cells, f"  {row['return_apart']:.1f} {row['length_apart']:.1f}", flush=True)
        if options.json:
            options.json.write_text(
                json.dumps({"mujoco": mujoco.__version__, "tasks": rows}, indent=1) + "\n"
            )


if __name__ == "__main__":
    main()
