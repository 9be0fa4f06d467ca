"""Statistics of a few seeds: aggregates with intervals, comparisons of two methods, corrections for many.

Scores are float arrays ``(runs,)`` or ``(runs, tasks)``: one row for each seed, one column for each environment, in
units that may be averaged over columns (see ``reports.scores``). "Agarwal" is Agarwal et al. 2021, Deep Reinforcement
Learning at the Edge of the Statistical Precipice, arXiv 2108.13264; tests compare with its authors' library rliable.

Few seeds cannot show much, and no choice of test changes that: with n seeds the smallest two-sided p of a sign test is
2^(1 - n) (``smallest_sign_test_p``), so that five seeds never reach 0.05, and bootstrap intervals of fewer than ten
seeds are too narrow (``few_seeds_note``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from common.stats import bootstrap_interval

# Aggregates reduce the last two axes (runs, tasks), so that all resamples are reduced in one call.
Aggregate = Callable[[np.ndarray], np.ndarray]

CONFIDENCE = 0.95
RESAMPLES = 5_000
# Most numbers of one block of resamples, so that memory stays flat.
_BLOCK = 4_000_000


class Interval(NamedTuple):
    """An estimate and its confidence interval, in the unit of the scores."""

    value: float
    low: float
    high: float


class PairedDifference(NamedTuple):
    """What a method has over another in runs of equal seed.

    Attributes:
        pairs: number of pairs.
        mean, low, high: mean difference with its 95 % bootstrap interval over pairs, in the unit of the scores.
        wins, losses: pairs in which the method has more, or less.
        p: two-sided p of the sign test; 1 where no pair differs.
        smallest_p: the least p that this many pairs can give.
    """

    pairs: int
    mean: float
    low: float
    high: float
    wins: int
    losses: int
    p: float
    smallest_p: float


def mean_over_runs(scores: np.ndarray) -> np.ndarray:
    """Mean over runs and tasks, the last two axes."""
    return scores.mean(axis=(-2, -1))


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """IQM: mean of the middle half of all runs and tasks together (Agarwal, section 4.3).

    As in rliable, ``floor(n / 4)`` scores are left out at either end; of up to three scores none is.

    Args:
        scores: (..., runs, tasks).

    Returns:
        (...), float64.
    """
    flat = np.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(axis=-1)


def stratified_interval(
    scores: np.ndarray, aggregate: Aggregate, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return an aggregate of (runs, tasks) and its 95 % percentile interval by a stratified bootstrap over runs.

    Runs are drawn with replacement within each task for itself (Agarwal, section 4.2).

    Args:
        scores: (runs, tasks), or (runs,) for one task.
        aggregate: reduces the last two axes, such as ``interquartile_mean``.
        resamples: bootstrap samples.
        seed: of the resampling.

    Raises:
        ValueError: there are no scores.
    """
    table = as_table(scores)
    estimates = _bootstrap([table], lambda tables: aggregate(tables[0]), resamples, seed)
    low, high = _percentiles(estimates)
    return Interval(float(aggregate(table)), float(low), float(high))


def performance_profile(
    scores: np.ndarray, thresholds: np.ndarray, resamples: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the share of runs that score above each threshold, with pointwise 95 % intervals (Agarwal, section 4.2).

    Every task counts alike. All three arrays have the shape of ``thresholds`` (T,).
    """
    table = as_table(scores)

    def profile(tables: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([(tables[0] > threshold).mean(axis=(-2, -1)) for threshold in thresholds], axis=-1)

    low, high = _percentiles(_bootstrap([table], profile, resamples, seed))
    return profile([table]), low, high


def probability_of_improvement(
    method: np.ndarray, other: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Return how probably a run of ``method`` beats one of ``other`` on a task, with its 95 % interval.

    Mean over tasks of the Mann-Whitney U statistic over the number of pairs; ties count one half (Agarwal, section
    4.3).

    Args:
        method, other: (runs, tasks) of equal tasks; their numbers of runs may differ.
        resamples: bootstrap samples, of both at once.
        seed: of the resampling.

    Raises:
        ValueError: the tasks differ in number, or there are no scores.
    """
    left, right = as_table(method), as_table(other)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"scores of {left.shape[1]} and {right.shape[1]} tasks cannot be compared")

    def probability(tables: Sequence[np.ndarray]) -> np.ndarray:
        x, y = tables[0][..., :, None, :], tables[1][..., None, :, :]
        return ((x > y) + 0.5 * (x == y)).mean(axis=(-3, -2, -1))

    estimates = _bootstrap([left, right], probability, resamples, seed)
    low, high = _percentiles(estimates)
    return Interval(float(probability([left, right])), float(low), float(high))


def mean_band(
    curves: np.ndarray, resamples: int = 2_000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean of curves (runs, points) and its pointwise 95 % bootstrap interval over runs, each (points,).

    A single run has no interval: its band is NaN. Points at which no run has a value are NaN too.
    """
    curves = np.asarray(curves, dtype=np.float64)
    runs = len(curves)
    present = ~np.isnan(curves)
    values = np.where(present, curves, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(axis=0) / present.sum(axis=0)
        if runs < 2:
            return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
        # Resampled means as one product: how often each run was drawn, times its curve.
        draws = np.random.default_rng(seed).multinomial(runs, np.full(runs, 1 / runs), size=resamples)
        means = (draws @ values) / (draws @ present.astype(np.float64))
    known = ~np.isnan(mean)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    if known.any():
        tail = (1 - CONFIDENCE) / 2
        low[known], high[known] = np.nanquantile(means[:, known], [tail, 1 - tail], axis=0)
    return mean, low, high


def sign_test(differences: Sequence[float] | np.ndarray) -> float:
    """Return the two-sided p of the exact sign test: are positive and negative differences equally likely?

    Binomial with probability one half over the pairs that differ (Dixon & Mood 1946); 1 where none does.
    """
    values = np.asarray(differences, dtype=np.float64)
    wins, losses = int((values > 0).sum()), int((values < 0).sum())
    number, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(number, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**number)


def smallest_sign_test_p(pairs: int) -> float:
    """Return the least two-sided p that a sign test over so many pairs can give, 2^(1 - pairs)."""
    return min(1.0, 2.0 ** (1 - pairs))


def pairs_needed(comparisons: int, level: float = 0.05) -> int:
    """Return how many pairs a sign test needs before ``comparisons`` of them can stay below ``level`` after Holm."""
    return math.ceil(1 - math.log2(level / max(1, comparisons)))


def paired_difference(
    method: Sequence[float] | np.ndarray, other: Sequence[float] | np.ndarray
) -> PairedDifference:
    """Compare two methods by runs of equal seed, or branches of one midpoint.

    Args:
        method, other: scores (pairs,), in the same order.

    Raises:
        ValueError: there are no pairs, or the lengths differ.
    """
    mine, others = np.asarray(method, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if mine.shape != others.shape or mine.ndim != 1:
        raise ValueError(f"pairs need two equally long rows of scores, got {mine.shape} and {others.shape}")
    differences = mine - others
    low, high = bootstrap_interval(differences.tolist())
    return PairedDifference(
        pairs=len(differences),
        mean=float(differences.mean()),
        low=low,
        high=high,
        wins=int((differences > 0).sum()),
        losses=int((differences < 0).sum()),
        p=sign_test(differences),
        smallest_p=smallest_sign_test_p(len(differences)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values adjusted for making all these comparisons at once (Holm 1979), in the same order.

    The i-th smallest of m is multiplied by m - i + 1, never below a smaller one's result, never above 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


# Share of 95 % percentile bootstrap intervals of a mean that hold the true one, for normal scores, by number of seeds;
# tests measure it again.
COVERAGE = {2: 0.51, 3: 0.75, 4: 0.79, 5: 0.84, 6: 0.87, 7: 0.88, 8: 0.88, 9: 0.89}


def few_seeds_note(seeds: int, comparisons: int = 1) -> str:
    """Return in words what so many seeds cannot show; empty where there is nothing to say."""
    if seeds < 2:
        return "One seed shows what happened once: no interval, no test, no comparison."
    words = []
    if seeds in COVERAGE:
        words.append(
            f"With {seeds} seeds a nominal 95 % interval holds the true mean in about {100 * COVERAGE[seeds]:.0f} % of "
            "cases (normal scores): read intervals as too narrow."
        )
    smallest = min(1.0, smallest_sign_test_p(seeds) * max(1, comparisons))
    if smallest > 0.05:
        among = f" after Holm's correction for {comparisons} comparisons" if comparisons > 1 else ""
        words.append(
            f"The smallest p that a sign test can reach with {seeds} pairs is {smallest:.2g}{among}: it can confirm "
            f"nothing at 0.05; {pairs_needed(comparisons)} pairs could."
        )
    return " ".join(words)


def as_table(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return scores as (runs, tasks), float64; ValueError if there are none."""
    table = np.asarray(scores, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0:
        raise ValueError(f"scores must be (runs, tasks) and not empty, got shape {table.shape}")
    return table


def _bootstrap(
    tables: Sequence[np.ndarray],
    reduce: Callable[[Sequence[np.ndarray]], np.ndarray],
    resamples: int,
    seed: int,
) -> np.ndarray:
    """Reduce ``resamples`` stratified resamples of the tables; (resamples, ...)."""
    generator = np.random.default_rng(seed)
    size = math.prod(len(table) for table in tables) * tables[0].shape[1]
    block = max(1, min(resamples, _BLOCK // size))
    results = []
    for start in range(0, resamples, block):
        number = min(block, resamples - start)
        drawn = [
            np.take_along_axis(
                table[None], generator.integers(len(table), size=(number, *table.shape)), axis=1
            )
            for table in tables
        ]
        results.append(reduce(drawn))
    return np.concatenate(results)


def _percentiles(estimates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(estimates, [tail, 1 - tail], axis=0)
    return low, high
