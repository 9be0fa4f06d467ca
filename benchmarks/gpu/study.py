"""Study: one beginning for each seed, then a branch for each reset and seed, in calls that each end in time."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from benchmarks.gpu.record import Record
from common import checkpoint
from common.stats import bootstrap_interval
from common.table import format_table
from configs import loader
from configs.schema import Config
from training.due import Clock
from training.folder import run_configs
from training.loop import train_together
from training.summary import evaluations

SAVING = 60.0  # seconds for the checkpoints of all runs at the end of a call
# Curves in the order of the legend: what each reset is drawn as.
COLOURS = {
    "none": "#7f8c8d",
    "optimizer_only": "#8e6c3a",
    "full": "#c0392b",
    "shrink_perturb": "#27ae60",
    "fire_paper_sac": "#8e44ad",
    "fire": "#1f5fa8",
}


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        flags: of all runs, without reset and seed.
        midpoint, total: env steps of the resets and of the whole.
        resets: by the names of ``--reset``.
        seeds: number of runs of each.
        runs: folder of the runs.
        flags_of: further flags of some resets.
    """

    flags: str
    midpoint: int
    total: int
    resets: Sequence[str]
    seeds: int
    runs: Path
    flags_of: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def beginnings(self) -> tuple[list[Config], list[Path]]:
        """The runs that are left at the midpoint, one for each seed; they plan the whole length."""
        words = [*self.flags.split(), "--reset", "none", "--total-steps", str(self.total)]
        words += ["--checkpoint.every", str(self.midpoint), "--checkpoint.keep", "2"]
        config, _ = loader.load([*words, "--num-agents", str(self.seeds)])
        configs = run_configs([config])
        return configs, [self.runs / "beginnings" / f"seed{each.seed}" for each in configs]

    def branches(self) -> tuple[list[Config], list[Path]]:
        """The runs from there on, one for each reset and seed, as one program."""
        configs, folders = [], []
        number = len(self.resets) * self.seeds
        for reset in self.resets:
            for begun, source in zip(*self.beginnings(), strict=True):
                words = [*self.flags.split(), *self.flags_of.get(reset, "").split(), "--reset", reset]
                words += [
                    "--total-steps",
                    str(self.total),
                    "--reset.every",
                    "0",
                    "--reset.at",
                    str(self.midpoint),
                ]
                saved = source / "checkpoints" / f"step_{self.midpoint:012d}"
                words += ["--branch-from", str(saved), "--seed", str(begun.seed)]
                config, _ = loader.load(words)
                configs.append(dataclasses.replace(config, num_agents=number))
                folders.append(self.runs / reset / f"seed{begun.seed}")
        return configs, folders

    def run(self, record: Record) -> None:
        """Train until all is done or the time is nearly over; the next call goes on."""
        stages = {"beginnings": (self.beginnings, self.midpoint), "branches": (self.branches, self.total)}
        for name, (runs, until) in stages.items():
            if record.figures.get(name, {}).get("finished"):
                continue
            record.figures.pop(name, None)

            def train(
                runs: Callable[[], tuple[list[Config], list[Path]]] = runs, until: int = until
            ) -> dict[str, Any]:
                return self._train(*runs(), until, record.seconds_left - SAVING)

            seen = record.measure(name, train, needs=2 * SAVING)
            if not (seen or {}).get("finished"):
                return

    def _train(
        self, configs: Sequence[Config], folders: Sequence[Path], until: int, seconds: float
    ) -> dict[str, Any]:
        """Train until the runs have passed ``until`` (or ended there) or for so many seconds."""
        begun = time.monotonic()
        # One that comes before or after training must not end the program.
        handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        timer = threading.Timer(max(seconds, 1), os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
        try:
            with interrupted_after(until + 1):
                trainers = train_together(configs, folders)
        finally:
            timer.cancel()
            signal.signal(signal.SIGTERM, handler)
        step = trainers[0].clock.env_step
        finished = all(trainer.finished for trainer in trainers) or step > until
        spent = time.monotonic() - begun
        return {"env step": step, "runs": len(trainers), "seconds": spent, "finished": finished}

    # What came out

    def curves(self) -> dict[str, dict[int, list[float]]]:
        """Returns of the evaluations by reset and env step, one for each seed that has come so far."""
        found: dict[str, dict[int, list[float]]] = {}
        beginnings = [self.runs / "beginnings" / f"seed{seed}" for seed in range(self.seeds)]
        for reset in ("beginnings", *self.resets):
            folders = (
                beginnings if reset == "beginnings" else [self.runs / reset / b.name for b in beginnings]
            )
            by_step: dict[int, list[float]] = {}
            for folder in folders:
                for row in evaluations(folder) if (folder / "evaluations.csv").exists() else []:
                    step = int(row["env_step"])
                    if row["when"] == "periodic" and (reset == "beginnings" or step > self.midpoint):
                        by_step.setdefault(step, []).append(float(row["mean_return"]))
            if by_step:
                found[reset] = dict(sorted(by_step.items()))
        return found

    def policies(self, folder: Path) -> list[str]:
        """Save the newest actor of each branch, its normaliser included; return the files' names and sizes."""
        names = []
        for reset in self.resets:
            for seed in range(self.seeds):
                saved = checkpoint.find(self.runs / reset / f"seed{seed}" / "checkpoints", "step")
                if not saved:
                    continue
                agent = checkpoint.load(saved[-1], ["agent"])["agent"]
                network = "actor" if "actor" in agent else "q"
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{reset}-seed{seed}.pt"
                torch.save({"env_step": checkpoint.step_of(saved[-1]), network: agent[network]}, path)
                names.append(f"{path.name} ({path.stat().st_size / 1e6:.2f} MB)")
        return names


def interrupted_after(steps: int) -> mock._patch:
    """Whoever trains is asked to stop, as by Ctrl-C, once so many env steps are done."""
    advance: Callable[[Clock, int], None] = Clock.advance

    def watched(self: Clock, transitions: int) -> None:
        before = self.env_step
        advance(self, transitions)
        if before < steps <= self.env_step:
            os.kill(os.getpid(), signal.SIGTERM)

    return mock.patch.object(Clock, "advance", watched)


def at_columns(
    curve: Mapping[int, Sequence[float]], columns: Sequence[float], frames_per_step: int
) -> dict[str, Any]:
    """A curve at frames in millions: mean, 95 % bootstrap interval over seeds, seeds; None where it has not come yet.

    A column is the nearest evaluation, at most 2 % of a million frames away.
    """
    row: dict[str, Any] = {}
    for column in columns:
        near = min(curve, key=lambda step: abs(step * frames_per_step - column * 1e6), default=None)
        if near is None or abs(near * frames_per_step - column * 1e6) > 2e4:
            row[f"{column:g}M"] = None
            continue
        returns = list(curve[near])
        low, high = bootstrap_interval(returns)
        row[f"{column:g}M"] = {
            "mean": float(np.mean(returns)),
            "low": low,
            "high": high,
            "seeds": len(returns),
        }
    return row


def area(curve: Mapping[int, Sequence[float]]) -> list[float]:
    """Each seed's mean return over all evaluations; seeds that have come less far count what all have."""
    seeds = max((len(returns) for returns in curve.values()), default=0)
    common = [returns for returns in curve.values() if len(returns) == seeds]
    return [float(np.mean([returns[seed] for returns in common])) for seed in range(seeds)]


def verdict(curves: Mapping[str, Mapping[int, Sequence[float]]], against: str = "none") -> list[str]:
    """What can and what cannot be said of each reset beside ``against``, by the seeds' paired differences.

    Seeds share their beginning, so that differences are taken within a seed.
    """
    base = area(curves.get(against, {}))
    sentences = []
    for reset in curves:
        own = area(curves[reset])
        if reset in ("beginnings", against) or not own or len(own) != len(base):
            continue
        differences = [a - b for a, b in zip(own, base, strict=True)]
        low, high = bootstrap_interval(differences)
        mean, seeds = float(np.mean(differences)), len(own)
        signs = {d > 0 for d in differences}
        what = f"{reset}: {mean:+.1f} beside {against} over the second half ({low:+.1f} to {high:+.1f}, {seeds} seeds)"
        if seeds == 1:
            sentences.append(
                f"{reset}: {mean:+.1f} beside {against} over the second half, one seed: no conclusion"
            )
        elif len(signs) > 1 or low <= 0 <= high:
            sentences.append(f"{what}: no difference can be told from chance")
        elif seeds < 5:
            chance = 2 * 0.5**seeds
            sentences.append(
                f"{what}: all seeds agree, which chance alone does with probability {chance:.3g}; too few to conclude"
            )
        else:
            sentences.append(f"{what}: a difference")
    return sentences


def summary(
    table: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]], sentences: Sequence[str]
) -> str:
    """The table of ``at_columns`` by reset, the figures of ``others`` below it, and what can be concluded."""
    columns = list(next(iter(table.values()), {}))

    def cell(value: Any) -> str:
        if isinstance(value, dict):
            return f"{value['mean']:.0f} [{value['low']:.0f}, {value['high']:.0f}]"
        return "-" if value is None else str(value)

    rows = [["mean [95 %]", *columns]]
    rows += [[name, *(cell(row.get(c)) for c in columns)] for name, row in {**table, **others}.items()]
    return "\n".join([format_table(rows), *sentences])


def draw(
    curves: Mapping[str, Mapping[int, Sequence[float]]], frames_per_step: int, title: str, path: Path
) -> None:
    """Mean curves with 95 % bootstrap intervals over seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for reset, curve in curves.items():
        frames = [step * frames_per_step / 1e6 for step in curve]
        bounds = [bootstrap_interval(list(returns), resamples=1000) for returns in curve.values()]
        colour = COLOURS.get(reset, "#2c3e50")
        label = "before the reset" if reset == "beginnings" else reset
        axes.plot(frames, [float(np.mean(r)) for r in curve.values()], lw=1.5, color=colour, label=label)
        low, high = zip(*bounds, strict=True)
        axes.fill_between(frames, low, high, color=colour, alpha=0.15, lw=0)
    if curves:
        axes.legend(fontsize=8)
    axes.set(xlabel="million frames", ylabel="mean return", title=title)
    figure.savefig(path)
