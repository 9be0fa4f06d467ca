"""Part ``atari``: DQN on Asterix, none and FIRE from one midpoint, as many steps as the time allows."""

from __future__ import annotations

import argparse
import json

from benchmarks.gpu.record import Record
from benchmarks.gpu.study import Study, area, at_columns, draw, summary, verdict

RESETS = ("none", "fire")
FRAMES_PER_STEP = 4
PROTOCOL = 2_500_000  # env steps of the paper's runs
# Training steps per second if ``speed`` has not measured them: what the targets ask for.
ASSUMED = 2_000.0
SHARE_OF_TRAINING = 0.75  # of the call; the rest is evaluation, start and end


def steps_in(seconds: float, per_second: float) -> int:
    """Env steps of a run whose first half is trained once and whose second half once for each reset, at most 2.5M.

    The networks of runs on frames are updated one after the other, so two runs take twice as long.
    """
    affordable = SHARE_OF_TRAINING * seconds * per_second / (0.5 + 0.5 * len(RESETS))
    return min(PROTOCOL, int(affordable) // 20_000 * 20_000)


def study(record: Record, args: argparse.Namespace) -> Study:
    """The study of the command line; its length is decided by the first call."""
    common = f"--algo dqn --env Asterix --preset paper --device {args.device} --precision {args.precision}"
    if args.rehearse:
        flags = (
            f"{common} --agent.pixel-network nips --replay.learning-starts 20 --replay.batch-size 4 --eval.every 40 "
            "--eval.steps 20 --eval.unfinished count --eval.episodes 1 --eval.num-envs 1 --env.num-envs 2 "
            "--eval.around-resets false --checkpoint.every 0 --log.metrics-every 0 --num-threads 1"
        )
        return Study(flags, 80, 160, RESETS, 1, args.runs)
    if "env steps of a run" not in record.figures:
        path = record.folder / "speed.json"
        measured = json.loads(path.read_text())["figures"] if path.exists() else {}
        rate = measured.get("whole loop, dqn-paper", {}).get("env_steps_per_second", ASSUMED)
        record.figures["env steps of a run"] = max(steps_in(record.seconds_left, rate), 100_000)
    total = int(record.figures["env steps of a run"])
    flags = (
        f"{common} --eval.every {total // 20} --eval.steps 8000 --eval.around-resets false --checkpoint.every 0 "
        "--eval.unfinished count --log.metrics-every 0"
    )
    return Study(flags, total // 2, total, RESETS, 1, args.runs)


def run(record: Record, args: argparse.Namespace) -> None:
    study(record, args).run(record)


def conclude(record: Record, args: argparse.Namespace) -> None:
    """Figure, means and what can be concluded."""
    own = study(record, args)
    curves = own.curves()
    record.figures["mean over the second half"] = {r: area(c) for r, c in curves.items() if r != "beginnings"}
    record.figures["what can be concluded"] = {str(i): s for i, s in enumerate(verdict(curves))}
    record.figures["share of the paper's steps"] = own.total / PROTOCOL
    record.figures["curves"] = {r: {str(step): v for step, v in c.items()} for r, c in curves.items()}
    quarters = [round(own.total * FRAMES_PER_STEP * share / 1e6, 2) for share in (0.5, 0.75, 1.0)]
    table = {reset: at_columns(curve, quarters, FRAMES_PER_STEP) for reset, curve in curves.items()}
    record.summary = summary(
        table, {}, [*verdict(curves), f"{own.total:,} of the paper's {PROTOCOL:,} env steps"]
    )
    draw(
        curves,
        FRAMES_PER_STEP,
        f"DQN on Asterix, {own.total:,} env steps, one seed",
        record.folder / "atari.png",
    )
