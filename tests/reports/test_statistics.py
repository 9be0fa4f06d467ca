"""Statistics against rliable 1.2.0 (recorded), SciPy and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats

from reports import statistics
from reports.statistics import (
    holm,
    interquartile_mean,
    mean_band,
    mean_over_runs,
    paired_difference,
    pairs_needed,
    performance_profile,
    probability_of_improvement,
    sign_test,
    smallest_sign_test_p,
    stratified_interval,
)

# rliable's figures for these scores, from get_interval_estimates (50,000 resamples; 20,000 for the probability of
# improvement) and create_performance_profile (5,000), with numpy 2.4.6, arch 7.2.0, pandas 2.
SCORES = np.random.default_rng(7).gamma(2.0, 1.0, size=(10, 4)).round(3)
OTHER = np.random.default_rng(8).gamma(2.5, 1.0, size=(8, 4)).round(3)
MONTE_CARLO = 0.03  # of the interval's width, for either end


def close_to(interval, low, high):
    tolerance = MONTE_CARLO * (high - low)
    return interval.low == pytest.approx(low, abs=tolerance) and interval.high == pytest.approx(
        high, abs=tolerance
    )


def test_interquartile_mean_equals_rliables_and_scipys():
    assert interquartile_mean(SCORES) == pytest.approx(1.46005)
    assert interquartile_mean(OTHER) == pytest.approx(2.0485)
    for size in range(1, 12):
        row = np.random.default_rng(size).normal(size=(size, 1))
        assert interquartile_mean(row) == pytest.approx(scipy.stats.trim_mean(row, 0.25, axis=None))


def test_stratified_intervals_are_rliables():
    assert close_to(
        stratified_interval(SCORES, interquartile_mean, resamples=20_000), 1.18934875, 1.7866012500000001
    )
    interval = stratified_interval(SCORES, mean_over_runs, resamples=20_000)
    assert interval.value == pytest.approx(1.65085)
    assert close_to(interval, 1.321675, 2.0136)


def test_resampling_is_within_each_task():
    """Tasks of constant but different scores: drawing across tasks would spread the mean."""
    constant = np.tile([1.0, 100.0], (5, 1))
    assert stratified_interval(constant, mean_over_runs) == (50.5, 50.5, 50.5)


def test_performance_profile_is_rliables():
    shares, low, high = performance_profile(SCORES, np.array([0.5, 1.0, 2.0, 4.0]), resamples=5_000)
    assert shares.tolist() == [0.875, 0.7, 0.225, 0.05]
    assert low == pytest.approx([0.775, 0.575, 0.1, 0.0], abs=0.026)  # one run of forty
    assert high == pytest.approx([0.950625, 0.825, 0.35, 0.125], abs=0.026)


def test_probability_of_improvement_is_rliables_and_scipys():
    interval = probability_of_improvement(SCORES, OTHER)
    assert interval.value == pytest.approx(0.390625)
    assert close_to(interval, 0.259375, 0.528125)
    x, y = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 0.0, 3.0])
    reference = scipy.stats.mannwhitneyu(x, y).statistic / 12
    assert probability_of_improvement(x, y).value == pytest.approx(reference)


@pytest.mark.parametrize("wins, losses, ties", [(5, 0, 0), (4, 1, 2), (7, 3, 0), (3, 3, 1), (0, 6, 0)])
def test_sign_test_is_scipys_binomial_test(wins, losses, ties):
    differences = [1.0] * wins + [-2.0] * losses + [0.0] * ties
    assert sign_test(differences) == pytest.approx(scipy.stats.binomtest(wins, wins + losses).pvalue)


def test_sign_test_without_a_difference_is_one():
    assert sign_test([0.0, 0.0]) == 1.0


@pytest.mark.parametrize("pairs", range(1, 12))
def test_the_smallest_p_is_that_of_all_wins(pairs):
    assert smallest_sign_test_p(pairs) == pytest.approx(sign_test(np.ones(pairs)))


@pytest.mark.parametrize("comparisons, pairs", [(1, 6), (3, 7), (5, 8), (10, 9)])
def test_pairs_needed_is_the_least_number_that_can_pass(comparisons, pairs):
    assert pairs_needed(comparisons) == pairs
    assert smallest_sign_test_p(pairs) * comparisons <= 0.05 < smallest_sign_test_p(pairs - 1) * comparisons


def test_paired_difference_uses_the_pairing():
    """Scores that differ by seed far more than by method: paired, a small gain is sure; unpaired, it drowns."""
    base = np.array([10.0, 200.0, 50.0, 400.0, 120.0, 90.0, 300.0])
    gain = np.array([1.0, 2.0, 1.5, 0.5, 1.0, 3.0, 2.0])
    difference = paired_difference(base + gain, base)
    assert difference.mean == pytest.approx(gain.mean())
    assert 0.5 <= difference.low < gain.mean() < difference.high <= 3.0
    assert (difference.wins, difference.losses, difference.p) == (7, 0, 2 / 2**7)
    assert difference.smallest_p == difference.p
    with pytest.raises(ValueError, match="equally long"):
        paired_difference(base, base[:3])


def test_holm_is_statsmodels():
    # statsmodels 0.15.0: multipletests(p, method="holm")[1]
    p_values = [0.01, 0.04, 0.03, 0.2, 0.0019]
    assert holm(p_values) == pytest.approx([0.04, 0.09, 0.09, 0.2, 0.0095])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_band_is_the_bootstrap_interval_at_every_point():
    curves = np.random.default_rng(3).normal([0.0, 5.0, 10.0], [1.0, 2.0, 3.0], size=(12, 3))
    mean, low, high = mean_band(curves, resamples=20_000)
    assert mean == pytest.approx(curves.mean(axis=0))
    for point in range(3):
        reference = scipy.stats.bootstrap(
            (curves[:, point],),
            np.mean,
            n_resamples=20_000,
            method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval
        width = reference.high - reference.low
        assert (low[point], high[point]) == pytest.approx(tuple(reference), abs=MONTE_CARLO * width)


def test_mean_band_leaves_out_what_is_missing():
    mean, low, high = mean_band(np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]]))
    assert mean[:2].tolist() == [2.0, 4.0] and np.isnan(mean[2])
    assert low[0] == 1.0 and high[0] == 3.0 and np.isnan(low[2])
    _, low, _ = mean_band(np.array([[1.0, 2.0]]))
    assert np.isnan(low).all()


@pytest.mark.parametrize("seeds", sorted(statistics.COVERAGE))
def test_what_is_said_of_few_seeds_is_measured(seeds):
    """Coverage of the percentile bootstrap by simulation with the mean known, normal scores."""
    generator = np.random.default_rng(seeds)
    scores = generator.standard_normal((2_000, seeds))
    draws = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=1_000) / seeds
    low, high = np.quantile(scores @ draws.T, [0.025, 0.975], axis=1)
    covered = ((low <= 0) & (high >= 0)).mean()
    assert covered == pytest.approx(
        statistics.COVERAGE[seeds], abs=0.03
    )  # 3 standard errors of either simulation


def test_few_seeds_are_told_what_they_cannot_show():
    assert "no comparison" in statistics.few_seeds_note(1)
    five = statistics.few_seeds_note(5, comparisons=3)
    assert "84 %" in five and "0.19" in five and f"{pairs_needed(3)} pairs" in five
    assert statistics.few_seeds_note(10, comparisons=3) == ""


def test_without_scores_there_is_nothing_to_aggregate():
    with pytest.raises(ValueError, match="not empty"):
        stratified_interval(np.empty((0, 3)), interquartile_mean)
    with pytest.raises(ValueError, match="tasks"):
        probability_of_improvement(np.ones((2, 3)), np.ones((2, 2)))
    assert math.isnan(mean_band(np.full((2, 1), np.nan))[0][0])
