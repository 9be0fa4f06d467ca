"""Panels: runs that may be compared with each other, by method, and the curves of a method over its seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from configs.errors import ConfigError
from reports.collect import Curve, Run, Study
from reports.statistics import mean_band

# Factors that say what is to be learned rather than how.
SETTINGS = ("env", "algo", "preset")
# Factors whose values speak for themselves; those of others are named with the option.
NAMES_OF_METHODS = ("reset", "arm")
MOST_POINTS = 200


@dataclass(frozen=True)
class Panel:
    """Runs that differ in the method and the seed alone.

    Attributes:
        label: what they share and other panels do not; empty where there is one panel.
        env: id of their environment.
        methods: runs by method, in the order in which the study has them, the baseline first.
        baseline: the method that others are compared with by default.
        reset_steps: env steps at which resets happened, where all runs that reset agree on them; else empty.
        begins: env step from which the methods differ, above 0 for branches.
    """

    label: str
    env: str
    methods: Mapping[str, Sequence[Run]]
    baseline: str
    reset_steps: tuple[int, ...]
    begins: int

    @property
    def runs(self) -> list[Run]:
        return [run for runs in self.methods.values() for run in runs]

    @property
    def end(self) -> int:
        """Env steps of its longest run."""
        return max(run.total_steps for run in self.runs)


def main_curve(panels: Sequence[Panel], metric: str) -> str:
    """Return which curve stands first: ``metric`` if it is one, else ``evaluation`` where a run has some on its way."""
    if metric in ("evaluation", "training"):
        return metric
    evaluated = any(len(run.evaluation.steps) > 2 for panel in panels for run in panel.runs)
    return "evaluation" if evaluated else "training"


class Band(NamedTuple):
    """Mean over runs with its 95 % interval, and how many runs; arrays (points,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: int


def panels_of(study: Study, compare: Sequence[str] = ()) -> list[Panel]:
    """Group the runs of a study.

    The method is the factor ``reset``, without it ``arm``, without that the first one that says how rather than what is
    learned. Runs that end where others begin are no method of their own; one that goes on beside its branches is
    compared with them.

    Args:
        study: the runs.
        compare: factors whose combinations are the methods instead; empty: those of the experiment's hint ``compare``.

    Raises:
        ConfigError: a factor that does not vary.
    """
    lengths = {run.parent: run.total_steps for run in study.runs if run.parent}
    runs = [run for run in study.runs if run.total_steps >= lengths.get(run.name, 0)] or list(study.runs)
    compared = _compared(runs, [*compare] or study.hints.get("compare") or [])
    groups: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        setting = tuple((key, value) for key, value in run.factors.items() if key not in compared)
        groups.setdefault(setting, []).append(run)
    if any(_has_twins(group, compared) for group in groups.values()):
        groups = {
            (("stage", stage), *setting): [run for run in group if run.stage == stage]
            for setting, group in groups.items()
            for stage in dict.fromkeys(run.stage for run in group)
        }
    varying = _varying(groups)
    return [
        _panel(_label(setting, varying), group, compared, str(study.hints.get("baseline") or "none"))
        for setting, group in groups.items()
    ]


def _compared(runs: Sequence[Run], wanted: str | Sequence[str]) -> tuple[str, ...]:
    """Return the factors whose values are methods; empty where there are none."""
    factors = list(dict.fromkeys(key for run in runs for key in run.factors))
    varied = [key for key in factors if len({run.factors.get(key) for run in runs}) > 1]
    wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for key in wanted:
        if key not in varied:
            raise ConfigError(
                f"compare {key}: no factor that varies; there are {', '.join(varied) or 'none'}"
            )
    if wanted:
        return wanted
    how = [key for key in varied if key not in SETTINGS and not key.startswith("env.")]
    return tuple([key for key in ("reset", "arm", *how) if key in varied][:1])


def _has_twins(runs: Sequence[Run], compared: Sequence[str]) -> bool:
    """Whether two of these runs have the same method and seed: stages that repeat each other."""
    return len({(_method(run, compared), run.seed) for run in runs}) < len(runs)


def _method(run: Run, compared: Sequence[str]) -> str:
    given = [(key, value) for key in compared if (value := run.factors.get(key))]
    words = [value if key in NAMES_OF_METHODS else f"{_short(key)} {value}" for key, value in given]
    return ", ".join(words) or str(run.config.get("reset.name", "run"))


def _short(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _panel(label: str, runs: Sequence[Run], compared: Sequence[str], wanted_baseline: str) -> Panel:
    methods: dict[str, list[Run]] = {}
    for run in runs:
        method = _method(run, compared)
        seeds = {other.seed for other in methods.setdefault(method, [])}
        if run.seed not in seeds:
            methods[method].append(run)
    baseline = wanted_baseline if wanted_baseline in methods else next(iter(methods))
    order = [baseline, *(method for method in methods if method != baseline)]
    points = {tuple(record["env_step"] for record in run.resets) for run in runs if run.resets}
    return Panel(
        label=label,
        env=str(runs[0].config.get("env.id", "")),
        methods={method: sorted(methods[method], key=lambda run: run.seed) for method in order},
        baseline=baseline,
        reset_steps=points.pop() if len(points) == 1 else (),
        begins=max(run.begins for run in runs),
    )


def _varying(groups: Iterable[tuple[tuple[str, str], ...]]) -> list[str]:
    settings = [dict(group) for group in groups]
    keys = dict.fromkeys(key for setting in settings for key in setting)
    return [key for key in keys if len({setting.get(key) for setting in settings}) > 1]


def _label(setting: Sequence[tuple[str, str]], varying: Sequence[str]) -> str:
    words = []
    for key, value in setting:
        if key in varying and value:
            plain = key in ("env", "stage", *NAMES_OF_METHODS) or key.endswith(".kind")
            words.append(value if plain else f"{_short(key)} {value}")
    return ", ".join(words)


def band(curves: Sequence[Curve], most_points: int = MOST_POINTS) -> Band:
    """Return the mean of curves over a common x axis with its interval.

    Where all curves have the same points these are kept, both of a reset's two among them; else, and where there are
    more than ``most_points``, curves are interpolated on a grid over the span that all of them have.
    """
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        empty = np.empty(0)
        return Band(empty, empty, empty, empty, 0)
    first = curves[0].steps
    same = all(len(c.steps) == len(first) and (c.steps == first).all() for c in curves)
    if same and len(first) <= most_points:
        x, values = first, np.stack([curve.values for curve in curves])
    else:
        start, end = max(c.steps[0] for c in curves), min(c.steps[-1] for c in curves)
        shared = np.unique(np.concatenate([c.steps for c in curves]))
        shared = shared[(shared >= start) & (shared <= end)]
        x = shared if len(shared) <= most_points else np.linspace(start, end, most_points)
        values = np.stack([np.interp(x, *curve) for curve in curves]) if end >= start else np.empty((1, 0))
        x = x[: values.shape[1]]
    return Band(x, *mean_band(values), len(curves))


def task_band(runs: Sequence[Run], column: str) -> Band:
    """Return the mean over runs of a column of ``tasks.csv`` by task number, with its interval."""
    rows = [run.tasks[column] for run in runs if column in run.tasks]
    if not rows:
        return band([])
    values = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, filled in zip(rows, values, strict=True):
        filled[: len(row)] = row
    return Band(np.arange(1.0, values.shape[1] + 1), *mean_band(values), len(rows))
