"""The building block of every HumanoidBench reward: how well a quantity keeps to an interval.

Definition: ``tolerance`` of the DeepMind Control Suite (Tassa et al. 2018, section 3.1 and dm_control.utils.rewards).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

INFINITY = float("inf")
Sigmoid = Literal["gaussian", "linear", "quadratic"]


def tolerance(
    x: np.ndarray | float,
    lower: float = 0.0,
    upper: float = 0.0,
    margin: float = 0.0,
    sigmoid: Sigmoid = "gaussian",
    value_at_margin: float = 0.1,
) -> np.ndarray:
    """Return 1 where ``lower <= x <= upper``, falling to ``value_at_margin`` at a distance of ``margin``.

    With d the distance to the interval in units of the margin and v the value at the margin:
    gaussian exp(d^2 ln v), linear max(1 - (1 - v) d, 0), quadratic max(1 - (1 - v) d^2, 0).
    A margin of 0 makes it a step.

    Args:
        x: a number or an array of any shape; the result has the same.
        lower, upper: the interval; may be infinite.
        margin: in the units of ``x``, at least 0.
        sigmoid: how the value falls off.
        value_at_margin: in (0, 1) for gaussian, [0, 1) otherwise.
    """
    # Any: NumPy's and Python's arithmetic, written once.
    value: Any = x
    maximum: Any = np.maximum
    beyond: Any
    if np.ndim(x) == 0:  # a single environment: Python's arithmetic is ten times cheaper on single numbers
        value, maximum = float(x), max
    if lower == upper:
        beyond = abs(value - lower)
    elif upper == INFINITY:
        beyond = maximum(lower - value, 0.0)
    else:
        beyond = maximum(maximum(lower - value, value - upper), 0.0)
    if margin == 0.0:
        return (beyond <= 0.0) * 1.0
    distance = beyond / margin
    if sigmoid == "gaussian":
        return np.exp(math.log(value_at_margin) * distance**2)
    if sigmoid == "linear":
        return maximum(1.0 - (1.0 - value_at_margin) * distance, 0.0)
    if sigmoid == "quadratic":
        return maximum(1.0 - (1.0 - value_at_margin) * distance**2, 0.0)
    raise ValueError(f"unknown sigmoid {sigmoid!r}; choose gaussian, linear or quadratic")
