"""Statistics against SciPy."""

import numpy as np
import pytest
import scipy.stats

from common.stats import bootstrap_interval, slope, standard_error


def test_standard_error_matches_scipy():
    values = [1.0, 4.0, 2.5, 8.0]
    assert standard_error(values) == pytest.approx(scipy.stats.sem(values))
    assert np.isnan(standard_error([3.0]))


def test_bootstrap_interval_matches_scipy():
    values = np.random.default_rng(0).gamma(2.0, 50.0, size=20)
    reference = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=100_000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # Both quantiles carry Monte Carlo error of about 1 % of the interval's width.
    width = reference.high - reference.low
    assert bootstrap_interval(values) == pytest.approx(tuple(reference), abs=0.05 * width)


def test_bootstrap_interval_is_repeatable_and_refuses_nothing():
    assert bootstrap_interval([1.0, 2.0, 3.0]) == bootstrap_interval([1.0, 2.0, 3.0])
    assert bootstrap_interval([2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_slope_matches_scipy():
    points = np.random.default_rng(0).normal(size=(10, 2)) * [1e3, 1.0] + [1e6, 5.0]
    assert slope(points) == pytest.approx(scipy.stats.linregress(*points.T).slope)
    assert np.isnan(slope([])) and np.isnan(slope([(3.0, 1.0)])) and np.isnan(slope([(3.0, 1.0), (3.0, 2.0)]))
