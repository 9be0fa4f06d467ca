"""Summary statistics of a handful of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean (ddof 1); NaN for fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else float("nan")


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (Efron & Tibshirani 1993, section 13.3).

    Args:
        values: independent observations, at least one.
        confidence: coverage in (0, 1).
        resamples: bootstrap samples drawn.
        seed: seed of the resampling, fixed so that the same returns always print the same interval.

    Raises:
        ValueError: ``values`` is empty.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("a bootstrap interval needs at least one value")
    indices = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    means = array[indices].mean(axis=1)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of y over x; NaN where there are fewer than two x."""
    x, y = np.asarray(points, dtype=np.float64).reshape(-1, 2).T
    dx = x - x.mean() if x.size else x
    square = dx @ dx
    return float(dx @ y / square) if square > 0 else float("nan")
