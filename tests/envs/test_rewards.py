"""``tolerance`` against the closed forms of the DeepMind Control Suite's definition, written out point by point."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.humanoid.rewards import INFINITY, tolerance


@pytest.mark.parametrize("sigmoid", ["gaussian", "linear", "quadratic"])
def test_one_inside_and_value_at_margin_at_the_margin(sigmoid):
    x = np.array([1.0, 1.7, 2.0, 2.5, 0.5])
    got = tolerance(x, 1.0, 2.0, margin=0.5, sigmoid=sigmoid, value_at_margin=0.3)
    np.testing.assert_allclose(got, [1, 1, 1, 0.3, 0.3], atol=1e-15)


@pytest.mark.parametrize("distance", [0.0, 0.1, 0.9, 1.5, 4.0])
def test_closed_forms(distance):
    x = np.array(3.0 - 2.0 * distance)  # below the interval [3, inf), in units of the margin 2
    expected = {
        "gaussian": math.exp(-0.5 * (distance * math.sqrt(-2 * math.log(0.1))) ** 2),
        "linear": 1 - 0.9 * distance if 0.9 * distance < 1 else 0.0,
        "quadratic": 1 - (math.sqrt(0.9) * distance) ** 2 if math.sqrt(0.9) * distance < 1 else 0.0,
    }
    for sigmoid, value in expected.items():
        assert tolerance(x, 3.0, INFINITY, 2.0, sigmoid) == pytest.approx(value, abs=1e-15)


def test_no_margin_is_a_step():
    np.testing.assert_array_equal(
        tolerance(np.array([-1.1, -1.0, 0.0, 1.0, 1.1]), -1.0, 1.0), [0, 1, 1, 1, 0]
    )


def test_keeps_any_shape_and_rejects_unknown_names():
    assert tolerance(np.zeros((2, 3, 4)), margin=1.0).shape == (2, 3, 4)
    with pytest.raises(ValueError, match="unknown sigmoid 'cosine'"):
        tolerance(np.zeros(1), margin=1.0, sigmoid="cosine")
