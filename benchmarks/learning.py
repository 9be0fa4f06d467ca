"""Final returns of the quick presets over several seeds, with and without resets, as a Markdown table.

    python benchmarks/learning.py --algo sac --env Pendulum-v1 --resets none fire
    python benchmarks/learning.py --algo dqn --env CartPole-v1 --resets none fire
    python benchmarks/learning.py --algo dqn --env Breakout --resets none --seeds 3 --training --plot curve.png
    python benchmarks/learning.py --algo dqn --env Breakout --resets none full shrink_perturb fire --branch-at 30000 \
        --seeds 3 --training --plot resets.png

Runs that are complete in --runs are not repeated; interrupted ones resume. With --branch-at all resets of a seed share
one beginning, the run without resets, and happen once, at that step.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common.stats import bootstrap_interval  # noqa: E402
from envs import human_score  # noqa: E402

COLORS = ("#1f5fa8", "#c0392b", "#8e44ad", "#d68910", "#16a085")


def evaluations(run_dir: Path) -> list[dict[str, str]]:
    """Rows of a run's ``evaluations.csv``; empty if there is none."""
    path = run_dir / "evaluations.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def finish(run_dir: Path, argv: Sequence[str]) -> None:
    """Run ``train.py`` with one thread until ``run_dir`` holds a complete run."""
    if (run_dir / "learning_curve.png").exists():
        return
    command = [sys.executable, str(ROOT / "train.py"), *argv, "--run-dir", str(run_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def row(reset: str, run_dirs: Sequence[Path]) -> str:
    """One line of the table: final mean return of each seed, their mean and its 95 % bootstrap interval."""
    finals, randoms = [], []
    for run_dir in run_dirs:
        rows = evaluations(run_dir)
        finals.append(float(rows[-1]["mean_return"]))
        randoms.append(float(rows[0]["mean_return"]))
    low, high = bootstrap_interval(finals)
    mean = sum(finals) / len(finals)
    seeds = ", ".join(f"{value:.1f}" for value in finals)
    chance = sum(randoms) / len(randoms)
    return f"| `{reset}` | {mean:.1f} | {low:.1f} to {high:.1f} | {seeds} | {chance:.1f} |"


def curve(run_dir: Path, training: bool) -> dict[int, float]:
    """Mean return by env step: of evaluations, or with ``training`` of the last 100 episodes that were learned from."""
    if training:
        with (run_dir / "scalars.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["key"] == "rollout/ep_rew_mean"]
        return {int(row["env_step"]): float(row["value"]) for row in rows}
    # Where a step was evaluated before and after a reset, what came after counts.
    return {int(row["env_step"]): float(row["mean_return"]) for row in evaluations(run_dir)[1:]}


def plot(
    path: Path,
    title: str,
    folders: dict[str, list[Path]],
    human: float | None,
    training: bool = False,
    branch_at: int | None = None,
) -> None:
    """Draw every seed's curve, their mean and its 95 % bootstrap interval over seeds, the random policy, the reset."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    chance = []
    for color, (reset, run_dirs) in zip(COLORS, folders.items(), strict=False):
        curves: dict[int, list[float]] = {}
        for run_dir in run_dirs:
            chance.append(float(evaluations(run_dir)[0]["mean_return"]))
            seed = curve(run_dir, training)
            axes.plot(seed.keys(), seed.values(), color=color, lw=0.7, alpha=0.5)
            for step, value in seed.items():
                curves.setdefault(step, []).append(value)
        curves = dict(sorted(curves.items()))  # seeds need not share their steps
        low, high = zip(*(bootstrap_interval(values) for values in curves.values()), strict=True)
        means = [sum(values) / len(values) for values in curves.values()]
        axes.plot(
            curves.keys(),
            means,
            "-" if training else "o-",
            ms=3,
            color=color,
            label=f"{reset}: mean of {len(run_dirs)} seeds",
        )
        axes.fill_between(curves.keys(), low, high, color=color, alpha=0.15, lw=0)
    random = sum(chance) / len(chance)
    axes.axhline(random, color="#7f8c8d", ls=":", lw=1.2, label=f"random policy ({random:.1f})")
    if human is not None and human < 2 * axes.get_ylim()[1]:  # else it would squeeze the curves
        axes.axhline(human, color="#27ae60", ls=":", lw=1.2, label=f"human ({human:,.1f})")
    if branch_at:
        axes.axvline(branch_at, color="#7f8c8d", lw=1, label="reset")
    axes.set(xlabel="environment steps", ylabel="undiscounted return", title=title)
    if training:
        axes.set_ylabel("return of the last 100 training episodes")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algo", required=True)
    parser.add_argument("--env", required=True)
    parser.add_argument("--resets", nargs="+", default=["none", "fire"])
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 to N - 1 (default: 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one thread each")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="where the run folders go")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the learning curves as PNG")
    parser.add_argument(
        "--training", action="store_true", help="draw training episodes instead of evaluations"
    )
    parser.add_argument(
        "--branch-at",
        type=int,
        metavar="STEP",
        help="env step at which the other resets leave the run of 'none'",
    )
    args = parser.parse_args()
    if args.branch_at and "none" not in args.resets:
        parser.error("--branch-at needs 'none' among --resets: the others branch from its runs")

    folders = {
        reset: [args.runs / f"{args.algo}-{args.env}-{reset}-seed{seed}" for seed in range(args.seeds)]
        for reset in args.resets
    }

    def make(reset: str) -> list[tuple[Path, list[str]]]:
        """The runs of one reset, as ``finish`` takes them."""
        jobs = []
        for seed, run_dir in enumerate(folders[reset]):
            words = f"--algo {args.algo} --env {args.env} --preset quick --reset {reset} --seed {seed}"
            if args.branch_at and reset == "none":
                words += f" --checkpoint.every {args.branch_at} --checkpoint.keep 1000"
            elif args.branch_at:
                start = folders["none"][seed] / "checkpoints" / f"step_{args.branch_at:012d}"
                words += f" --reset.every 0 --reset.at {args.branch_at} --branch-from {start}"
            jobs.append((run_dir, words.split()))
        return jobs

    stages = (
        [["none"], [reset for reset in args.resets if reset != "none"]] if args.branch_at else [args.resets]
    )
    with ThreadPoolExecutor(args.jobs) as pool:
        for resets in stages:
            list(pool.map(lambda job: finish(*job), [job for reset in resets for job in make(reset)]))

    steps = evaluations(folders[args.resets[0]][0])[-1]["env_step"]
    print(f"{args.algo} on {args.env}, {int(steps):,} env steps, {args.seeds} seeds\n")
    print("| reset | mean final return | 95 % interval over seeds | each seed | random policy |")
    print("|---|---|---|---|---|")
    for reset, run_dirs in folders.items():
        print(row(reset, run_dirs))
    if args.plot:
        plot(
            args.plot,
            f"{args.algo} on {args.env}, quick preset",
            folders,
            human_score(args.env),
            args.training,
            args.branch_at,
        )


if __name__ == "__main__":
    main()
