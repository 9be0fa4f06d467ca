"""Area, drop, recovery and horizons on curves whose figures are known in closed form."""

import numpy as np
import pytest

from reports.after_reset import area, at_horizons, recovery, window

# 100 until the reset at 20, then 0, back at 100 by 40, at 200 by 60; another reset at 60 throws it to 50.
STEPS = np.array([0.0, 10.0, 20.0, 20.0, 30.0, 40.0, 60.0, 60.0, 80.0])
RETURNS = np.array([100.0, 100.0, 100.0, 0.0, 50.0, 100.0, 200.0, 50.0, 50.0])


def test_area_is_the_mean_of_the_curve_after_the_reset():
    assert area(STEPS, RETURNS, 20, 40) == pytest.approx(50.0)
    assert area(STEPS, RETURNS, 20, 60) == pytest.approx((20 * 50 + 20 * 150) / 40)
    assert area(STEPS, RETURNS, 60, 80) == pytest.approx(50.0)
    assert area(STEPS, RETURNS, 0, 20) == pytest.approx(100.0)


def test_area_interpolates_between_evaluations():
    assert area(STEPS, RETURNS, 25, 35) == pytest.approx(50.0)
    line = np.linspace(0.0, 10.0, 11)
    assert area(line, 3 * line**2, 0.0, 10.0) == pytest.approx(100.0, rel=0.006)  # trapezia of a parabola


def test_area_without_points_is_nan():
    assert np.isnan(area(STEPS, RETURNS, 90, 100))
    assert np.isnan(area(np.array([]), np.array([]), 0, 1))


def test_recovery_measures_drop_and_way_back():
    first = recovery(STEPS, RETURNS, 20, 60)
    assert (first.before, first.lowest, first.drop, first.steps) == (100.0, 0.0, 100.0, 20.0)
    assert recovery(STEPS, RETURNS, 20, 35).steps is None
    second = recovery(STEPS, RETURNS, 60, 80)
    assert (second.before, second.drop, second.steps) == (200.0, 150.0, None)


def test_recovery_is_interpolated_and_zero_without_a_drop():
    curve = recovery(np.array([0.0, 0.0, 10.0]), np.array([5.0, 0.0, 10.0]), 0, 10)
    assert curve.steps == pytest.approx(5.0)
    rising = recovery(np.array([0.0, 10.0, 20.0]), np.array([1.0, 2.0, 3.0]), 10, 20)
    assert (rising.drop, rising.steps) == (0.0, 0.0)


def test_recovery_without_points_on_both_sides_is_none():
    assert recovery(STEPS, RETURNS, 80, 100) is None
    assert recovery(STEPS + 100, RETURNS, 50, 150) is None


def test_horizons_count_from_the_reset():
    assert at_horizons(STEPS, RETURNS, 20, 60, (0, 5, 20, 40)) == [0.0, 25.0, 100.0, 200.0]
    assert np.isnan(at_horizons(STEPS, RETURNS, 60, 80, (30,))[0])
    assert np.isnan(at_horizons(STEPS, RETURNS, 90, 95, (0,))[0])


def test_a_window_begins_after_one_reset_and_ends_before_the_next():
    xs, ys = window(STEPS, RETURNS, 20, 60)
    assert xs.tolist() == [20.0, 30.0, 40.0, 60.0]
    assert ys.tolist() == [0.0, 50.0, 100.0, 200.0]
