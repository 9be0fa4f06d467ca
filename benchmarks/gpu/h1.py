"""Part ``h1``: FIRE's figure 4(b) on h1-walk. Seeds to the midpoint as one program, then every reset on every seed."""

from __future__ import annotations

import argparse

from benchmarks.gpu.record import Record
from benchmarks.gpu.study import Study, area, at_columns, draw, summary, verdict

RESETS = ("none", "optimizer_only", "full", "shrink_perturb", "fire_paper_sac", "fire")
FRAMES_PER_STEP = 2
COLUMNS = (0.54, 0.6, 0.7, 0.8, 0.9, 0.96, 1.0)
# Read off FIRE's figure 4(b), 5 seeds (arXiv 2602.08040); None: not to be read.
PAPER = {
    "FIRE": (None, None, 272, 450, 617, 682, 708),
    "S&P": (159, 219, 321, 462, 638, 743, 772),
    "Reset": (135, 181, 259, 366, 516, 660, 696),
    "vanilla": (172, None, 288, None, 451, 549, 584),
}
# SimBa's own results, no reset, 10 seeds, mean and standard deviation (SonyResearch/simba, results).
SIMBA = {"0.5M": "170 +- 88", "1M": "551 +- 257"}


def study(args: argparse.Namespace) -> Study:
    """The study of the command line: the paper's protocol, evaluations of 10 episodes every 20k frames."""
    flags = (
        f"--algo sac --env h1-walk --preset paper --device {args.device} --precision {args.precision} "
        "--eval.every 10000 --eval.episodes 10 --eval.num-envs 10 --eval.around-resets false --checkpoint.every 0 "
        "--log.metrics-every 50000 --log.every 5000"
    )
    if not args.rehearse:
        return Study(flags, 250_000, 500_000, RESETS, args.seeds, args.runs)
    flags += (
        " --agent.actor-width 8 --agent.critic-width 16 --agent.critic-blocks 1 --replay.learning-starts 20 "
        "--replay.batch-size 16 --eval.every 30 --eval.episodes 1 --eval.num-envs 1 --eval.steps 20 "
        "--eval.unfinished count --log.metrics-every 0 --num-threads 1"
    )
    return Study(flags, 60, 120, ("none", "fire"), args.seeds, args.runs)


def run(record: Record, args: argparse.Namespace) -> None:
    study(args).run(record)


def conclude(record: Record, args: argparse.Namespace) -> None:
    """Table at the paper's columns, figure, actors, and what can be concluded."""
    own = study(args)
    curves = own.curves()
    paper = {name: dict(zip([f"{c:g}M" for c in COLUMNS], row, strict=True)) for name, row in PAPER.items()}
    table = {reset: at_columns(curve, COLUMNS, FRAMES_PER_STEP) for reset, curve in curves.items()}
    found = {
        "table": table,
        "mean over the second half": {r: area(curve) for r, curve in curves.items() if r != "beginnings"},
        "paper": paper,
        "SimBa, no reset": SIMBA,
        "what can be concluded": {str(i): sentence for i, sentence in enumerate(verdict(curves))},
        "curves": {r: {str(step): returns for step, returns in curve.items()} for r, curve in curves.items()},
        "actors": own.policies(record.folder / "policies"),
    }
    record.figures.update(found)
    others = {f"paper, {name}, 5 seeds": row for name, row in paper.items()}
    simba = {"SimBa, no reset, 10 seeds": {"1M": SIMBA["1M"]}}
    record.summary = summary(table, {**others, **simba}, verdict(curves))
    draw(curves, FRAMES_PER_STEP, f"SAC on h1-walk, {own.seeds} seeds", record.folder / "h1.png")
