"""Outcomes: the numbers by which the runs of a panel are judged, one for each run."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from reports.after_reset import area, at_horizons, recovery
from reports.collect import Curve, Run
from reports.panels import Panel
from reports.statistics import interquartile_mean, mean_over_runs, stratified_interval

HORIZONS = (0.1, 0.25, 0.5, 1.0)  # shares of the span from a reset to the next one or the end


@dataclass(frozen=True)
class Outcome:
    """One number for each run of a panel; more is better.

    Attributes:
        key: in tables.
        name: in words.
        values: by method, then by seed; runs without a number have no entry.
        headline: whether the verdict speaks of it.
    """

    key: str
    name: str
    values: Mapping[str, Mapping[int, float]]
    headline: bool = False

    def scores(self, method: str) -> np.ndarray:
        """Return the numbers of a method in the order of seeds, (runs,)."""
        values = self.values.get(method, {})
        return np.array([values[seed] for seed in sorted(values)])

    def pairs(self, method: str, other: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of two methods in runs of equal seed, (pairs,) each."""
        left, right = self.values.get(method, {}), self.values.get(other, {})
        seeds = sorted(set(left) & set(right))
        return np.array([left[s] for s in seeds]), np.array([right[s] for s in seeds])


@dataclass(frozen=True)
class Summary:
    """A method's outcome over its seeds: mean and interquartile mean with 95 % intervals; NaN bounds for one run."""

    panel: Panel
    outcome: Outcome
    method: str
    runs: int
    mean: float
    low: float
    high: float
    iqm: float
    iqm_low: float
    iqm_high: float


@dataclass(frozen=True)
class AfterResets:
    """What resets did to a method's evaluation returns, means over its runs' resets; NaN where unknown.

    Attributes:
        resets: number of resets looked at, over all runs.
        before, after: return right before and right after.
        drop: from the return before to the lowest until the next reset or the end.
        recovered: resets whose return before was reached again in that time.
        recovery_steps: median env steps that took, over those that did; the others take longer.
        horizons: return after each share ``HORIZONS`` of the span between resets.
        span: env steps of that span, the shortest of the panel.
    """

    panel: Panel
    method: str
    resets: int
    before: float
    after: float
    drop: float
    recovered: int
    recovery_steps: float
    horizons: tuple[float, ...]
    span: float


def outcomes(panel: Panel, metric: str | None = None) -> list[Outcome]:
    """Return the outcomes of a panel's finished runs.

    Args:
        panel: the runs.
        metric: on which the verdict rests: ``tasks``, ``evaluation`` or ``training``; None: the first of these that
            the runs have.
    """
    found = [*_of_tasks(panel), *_of_curves(panel, "evaluation"), *_of_curves(panel, "training")]
    found = [outcome for outcome in found if any(outcome.values.values())]
    families = [outcome.key.partition("_")[0] for outcome in found]
    family = metric if metric in families else next(iter(families), "")
    first = next((outcome for outcome in found if outcome.key.startswith(family)), None)
    return [
        Outcome(outcome.key, outcome.name, outcome.values, headline=outcome is first) for outcome in found
    ]


def summarise(panel: Panel, outcome: Outcome) -> list[Summary]:
    """Return mean and IQM of every method."""
    rows = []
    for method in panel.methods:
        scores = outcome.scores(method)
        if not len(scores):
            continue
        mean, iqm = (
            stratified_interval(scores, mean_over_runs),
            stratified_interval(scores, interquartile_mean),
        )
        if len(scores) == 1:
            mean, iqm = mean._replace(low=math.nan, high=math.nan), iqm._replace(low=math.nan, high=math.nan)
        rows.append(Summary(panel, outcome, method, len(scores), *mean, *iqm))
    return rows


def _collect(panel: Panel, number: Callable[[Run], float]) -> dict[str, dict[int, float]]:
    values = {
        method: {run.seed: number(run) for run in runs if run.finished}
        for method, runs in panel.methods.items()
    }
    return {
        method: {seed: value for seed, value in of.items() if not math.isnan(value)}
        for method, of in values.items()
    }


def _of_tasks(panel: Panel) -> list[Outcome]:
    numbers = [len(run.tasks["env_step"]) for run in panel.runs if run.tasks]
    if not numbers:
        return []
    tasks = max(numbers)
    quarter = max(1, tasks // 4)
    return [
        Outcome(
            f"tasks_{column}_{key}", f"{words}, {span}", _collect(panel, _task_mean(column, tasks, start))
        )
        for key, span, start in (
            ("last_quarter", f"last quarter of {tasks} tasks", tasks - quarter),
            ("second_half", f"second half of {tasks} tasks", tasks // 2),
            ("all", f"all {tasks} tasks", 0),
        )
        for column, words in (
            ("return_second_half", "return in each task's second half"),
            ("return_whole", "return over whole tasks"),
            ("return_on_previous", "return on the task before"),
        )
    ]


def _task_mean(column: str, tasks: int, start: int) -> Callable[[Run], float]:
    def number(run: Run) -> float:
        values = run.tasks.get(column, np.empty(0))[start:tasks]
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else math.nan

    return number


def _of_curves(panel: Panel, family: str) -> list[Outcome]:
    names = {"evaluation": "evaluation return", "training": "return of training episodes"}
    start = min(panel.reset_steps or _first_resets(panel), default=0)
    end = min(run.total_steps for run in panel.runs)

    def curve(run: Run) -> Curve:
        return run.evaluation if family == "evaluation" else run.training

    def final(run: Run) -> float:
        return float(curve(run).values[-1]) if len(curve(run).values) else math.nan

    def mean_since(run: Run) -> float:
        return area(*curve(run), start, end)

    since = f"mean from the first reset on (env step {start:,})" if start else "mean over the run"
    found = [
        Outcome(f"{family}_final", f"final {names[family]}", _collect(panel, final)),
        Outcome(f"{family}_area", f"{names[family]}, {since}", _collect(panel, mean_since)),
    ]
    if family == "training" or not panel.reset_steps:
        return found
    span = span_between_resets(panel)
    for index, share in enumerate(HORIZONS[:-1]):
        words = f"evaluation return {share * span:,.0f} env steps after a reset"
        found.append(Outcome(f"evaluation_after_{share:g}", words, _collect(panel, _horizon(panel, index))))
    return found


def _horizon(panel: Panel, index: int) -> Callable[[Run], float]:
    def number(run: Run) -> float:
        values = [found[index] for found in _horizons(panel, run)]
        known = [value for value in values if not math.isnan(value)]
        return float(np.mean(known)) if known else math.nan

    return number


def _horizons(panel: Panel, run: Run) -> list[list[float]]:
    spans = tuple(share * span_between_resets(panel) for share in HORIZONS)
    return [
        at_horizons(*run.evaluation, reset, end, spans)
        for reset, end in windows(panel.reset_steps, panel.end)
    ]


def windows(resets: Sequence[int], end: int) -> list[tuple[int, int]]:
    """Return each reset with the step at which its time ends: the next reset, or the end of the run."""
    return list(itertools.pairwise([*resets, end]))


def span_between_resets(panel: Panel) -> float:
    """Return the shortest span from a reset to the next one or the end, env steps; 0 without common reset points."""
    return float(min((b - a for a, b in windows(panel.reset_steps, panel.end)), default=0))


def after_resets(panel: Panel) -> list[AfterResets]:
    """Return what resets did to the evaluations of every method.

    A method without resets is looked at where the others have theirs, so that they can be held against it.
    """
    rows = []
    for method, runs in panel.methods.items():
        done = [run for run in runs if run.finished]
        looked_at = [
            (run, reset, end)
            for run in done
            for reset, end in windows(_resets_of(run) or panel.reset_steps, run.total_steps)
        ]
        found = [recovery(*run.evaluation, reset, end) for run, reset, end in looked_at]
        kept = [(place, r) for place, r in zip(looked_at, found, strict=True) if r is not None]
        if not kept:
            continue
        back = [r.steps for _, r in kept if r.steps is not None]
        horizons = [values for run in done for values in _horizons(panel, run)] or [
            [math.nan] * len(HORIZONS)
        ]
        rows.append(
            AfterResets(
                panel=panel,
                method=method,
                resets=len(kept),
                before=float(np.mean([r.before for _, r in kept])),
                after=float(
                    np.mean(
                        [at_horizons(*run.evaluation, reset, end, (0.0,))[0] for (run, reset, end), _ in kept]
                    )
                ),
                drop=float(np.mean([r.drop for _, r in kept])),
                recovered=len(back),
                recovery_steps=float(np.median(back)) if back else math.nan,
                horizons=tuple(_mean_known(values) for values in zip(*horizons, strict=True)),
                span=span_between_resets(panel),
            )
        )
    return rows


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _resets_of(run: Run) -> tuple[int, ...]:
    return tuple(record["env_step"] for record in run.resets)


def _first_resets(panel: Panel) -> list[int]:
    return [run.resets[0]["env_step"] for run in panel.runs if run.resets]
