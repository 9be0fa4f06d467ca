"""Plain words about a run for the person who started it."""

from __future__ import annotations

import csv
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import reading_run_file

if TYPE_CHECKING:
    from training.trainer import Trainer


def reset_line(env_step: int, index: int, record: Mapping[str, Any]) -> str:
    """Return one line about a reset, from the record that goes into ``resets.jsonl``."""
    seconds = record["report"]["reset/seconds"]
    line = f"step {env_step:>9,}  reset {index} ({record['reset']}, {record['reason']}) in {seconds:.2f} s"
    before, after = record["before"], record["after"]
    if "mean_return" in before:
        line += f", evaluation {before['mean_return']:.1f} before, {after['mean_return']:.1f} after"
    return line


def task_line(env_step: int, task: int, figures: Mapping[str, float | None]) -> str:
    """Return one line about a task that is over, from its figures in ``tasks.csv``."""
    whole, second = figures["return_whole"], figures["return_second_half"]
    line = f"step {env_step:>9,}  task {task} over, {figures['episodes']} episodes"
    if whole is None:
        return line
    return f"{line}, return {whole:.1f}" + ("" if second is None else f", {second:.1f} in its second half")


def closing_words(
    trainer: Trainer,
    argv: Sequence[str],
    published_random: float | None,
    success_score: float | None,
    human_score: float | None = None,
) -> str:
    """Return what a finished run did, its score beside the random policy's, and what to type next."""
    config, run_dir, env_step = trainer.config, trainer.run_dir, trainer.clock.env_step
    rows = evaluations(run_dir)
    resets = reset_records(run_dir)
    with reading_run_file(run_dir / "evaluations.csv"):
        random = next(row for row in rows if row["when"] == "random_policy")
        last = rows[-1]
        is_better = float(last["low_95"]) > float(random["high_95"])
        final, untrained = _score(last), _score(random)

    frames = env_step * config.env.action_repeat
    words = [
        f"Done: {config.algo.upper()} on {config.env.id}, {env_step:,} env steps ({frames:,} frames) "
        f"in {trainer.record.seconds / 60:.1f} minutes.",
    ]
    if resets:
        # A branch's history may hold resets of another name.
        names = " and ".join(dict.fromkeys(r["reset"] for r in resets))
        times = ", ".join(f"{r['env_step']:,}" for r in resets)
        cost = sum(r["report"]["reset/seconds"] for r in resets)
        plural = "s" if len(resets) > 1 else ""
        words.append(
            f"{len(resets)} {names} reset{plural}, at env step{plural} {times}; {cost:.2f} s in all."
        )
    elif trainer.tracker is not None:
        counted = "; reset/<network>/recycled_units counts its resets" if trainer.tracker.recycles else ""
        words.append(f"{config.reset.name} acted after every update{counted}.")
    else:
        words.append("No network was reset.")
    words.append(f"Final evaluation {final}; the random policy gets {untrained} in the same environment.")
    published = {
        "random policy {}": published_random,
        "success from {:.0f}": success_score,
        "human {}": human_score,
    }
    if known := [words_for.format(score) for words_for, score in published.items() if score is not None]:
        words.append(f"Published: {', '.join(known)}.")
    if not is_better:
        words.append("Its interval does not lie above the random policy's: this run shows no learning yet.")
    other = "fire" if config.reset.strategy == "none" else "none"
    words += [
        f"Folder: {run_dir} (TensorBoard events, config.yaml, checkpoints/, evaluations.csv, resets.jsonl, "
        "learning_curve.png)",
        "Next:",
        f"  {python_command()} -m tensorboard.main --logdir {run_dir}",
        f"  {python_command()} evaluate.py {run_dir} --episodes 20 --video",
        f"  {python_command()} train.py {shlex.join([*_without_reset(argv), '--reset', other])}",
    ]
    return "\n".join(words)


def python_command() -> str:
    """Return how to call this very Python from here: ``python`` if that is the one on the path."""
    found = shutil.which("python")
    if found is not None and os.path.samefile(os.path.dirname(found), os.path.dirname(sys.executable)):
        return "python"
    relative = os.path.relpath(sys.executable)
    return sys.executable if relative.startswith("..") else relative


def _without_reset(argv: Sequence[str]) -> list[str]:
    """Drop the flags of the reset and of the run folder, with their values."""
    kept, dropping = [], False
    for word in argv:
        if word.startswith("--"):
            dropping = word.startswith(("--reset", "--run-dir", "--run_dir"))
        if not dropping:
            kept.append(word)
    return kept


def random_mean(run_dir: Path) -> float:
    """Return the random policy's mean return, measured when the run began."""
    with reading_run_file(run_dir / "evaluations.csv"):
        rows = evaluations(run_dir)
        return next(float(row["mean_return"]) for row in rows if row["when"] == "random_policy")


def evaluations(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of ``evaluations.csv`` by column; RunFileError if it is damaged."""
    path = run_dir / "evaluations.csv"
    with reading_run_file(path), path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def reset_records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records in ``resets.jsonl``; RunFileError if it is damaged."""
    path = run_dir / "resets.jsonl"
    records = []
    with reading_run_file(path):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            with reading_run_file(path, number):
                record = json.loads(line)
                record["env_step"], record["reset"], record["report"]["reset/seconds"]  # what is read of it
                records.append(record)
    return records


def _score(row: Mapping[str, str]) -> str:
    return f"{float(row['mean_return']):.1f} (95 % interval {float(row['low_95']):.1f} to {float(row['high_95']):.1f})"
