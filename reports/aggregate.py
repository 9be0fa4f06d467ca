"""Aggregates over environments whose scores are published: what rliable's figures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reports.panels import Panel
from reports.statistics import (
    Interval,
    interquartile_mean,
    mean_over_runs,
    performance_profile,
    probability_of_improvement,
    stratified_interval,
)


@dataclass(frozen=True)
class Aggregate:
    """One method over several environments, final evaluations normalised by published scores.

    Attributes:
        method: its name.
        environments, runs: size of the table of scores.
        iqm, mean: with stratified bootstrap intervals.
        improvement: probability that a run of it beats one of the baseline; None for the baseline itself.
        thresholds, profile, profile_low, profile_high: share of runs above each threshold; arrays (T,).
    """

    method: str
    environments: int
    runs: int
    iqm: Interval
    mean: Interval
    improvement: Interval | None
    thresholds: np.ndarray
    profile: np.ndarray
    profile_low: np.ndarray
    profile_high: np.ndarray


def normalized(env_id: str, value: float) -> float | None:
    """Return 0 for the published random score, 1 for a human's, or for success where the task has that; else None."""
    from envs import human_score, random_score, success_score
    from envs.errors import EnvError

    try:
        random = random_score(env_id)
        top = human_score(env_id) if human_score(env_id) is not None else success_score(env_id)
    except EnvError:
        return None
    return None if random is None or top is None else (value - random) / (top - random)


def aggregate_over_environments(panels: Sequence[Panel]) -> list[Aggregate]:
    """Return the aggregates of methods that all of at least two environments have; else nothing.

    Every panel must be another environment: the same environment under two settings is no second task.
    """
    environments = [panel.env for panel in panels]
    if len(panels) < 2 or len(set(environments)) < len(environments):
        return []
    methods = [method for method in panels[0].methods if all(method in panel.methods for panel in panels)]
    tables = {method: _scores(panels, method) for method in methods}
    if not tables or any(table is None for table in tables.values()):
        return []
    known = {method: table for method, table in tables.items() if table is not None}
    top = max(float(table.max()) for table in known.values())
    thresholds = np.linspace(0.0, max(1.0, top), 101)
    baseline = known.get(panels[0].baseline)
    return [
        Aggregate(
            method,
            table.shape[1],
            table.shape[0],
            stratified_interval(table, interquartile_mean),
            stratified_interval(table, mean_over_runs),
            None
            if baseline is None or method == panels[0].baseline
            else probability_of_improvement(table, baseline),
            thresholds,
            *performance_profile(table, thresholds),
        )
        for method, table in known.items()
    ]


def _scores(panels: Sequence[Panel], method: str) -> np.ndarray | None:
    """Normalised final evaluations (runs, environments), as many runs as every environment has; None without scores."""
    columns = []
    for panel in panels:
        finished = [run for run in panel.methods[method] if run.finished]
        column = [normalized(panel.env, float(run.evaluation.values[-1])) for run in finished]
        if not column or None in column:
            return None
        columns.append([value for value in column if value is not None])
    runs = min(map(len, columns))
    return np.array([column[:runs] for column in columns]).T
