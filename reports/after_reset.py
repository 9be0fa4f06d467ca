"""What a return curve says about a reset: area, drop, recovery, several horizons.

A curve is two float arrays ``(points,)``: env steps, not falling, and mean returns. At a reset it may have two points
of equal step, before and after; a window that begins at a reset begins with the one after.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Recovery(NamedTuple):
    """How far a reset threw a policy back, and for how long.

    Attributes:
        before: last return up to the reset.
        lowest: least return from the reset to the end of the window.
        drop: ``before - lowest``; negative where the return never fell.
        steps: env steps from the reset to the first return that reaches ``before`` again, linear between points;
            None where the window ends first.
    """

    before: float
    lowest: float
    drop: float
    steps: float | None


def window(
    steps: np.ndarray, returns: np.ndarray, start: float, end: float, after_reset: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Return the part of a curve within [start, end], its ends interpolated where no point stands there.

    Args:
        steps, returns: the curve.
        start, end: env steps; the window is cut to where the curve has points.
        after_reset: of two points at ``start``, begin with the second.
    """
    if len(steps) == 0:
        return steps, returns
    start, end = max(start, float(steps[0])), min(end, float(steps[-1]))
    if end < start:
        return steps[:0], returns[:0]
    first = int(np.searchsorted(steps, start, "left"))
    if after_reset and first + 1 < len(steps) and steps[first] == start == steps[first + 1]:
        first = int(np.searchsorted(steps, start, "right")) - 1
    # Of two points at the end, before and after the next reset, the window holds the first.
    last = int(np.searchsorted(steps, end, "left"))
    last = last + 1 if steps[last] == end and last >= first else last
    xs, ys = steps[first:last].astype(np.float64), returns[first:last].astype(np.float64)
    if len(xs) == 0 or xs[0] > start:
        xs, ys = np.append(start, xs), np.append(np.interp(start, steps, returns), ys)
    if xs[-1] < end:
        xs, ys = np.append(xs, end), np.append(ys, np.interp(end, steps, returns))
    return xs, ys


def area(steps: np.ndarray, returns: np.ndarray, start: float, end: float) -> float:
    """Return the mean return over [start, end]: area under the curve (trapezia) over its length; NaN without points.

    The area under the learning curve as in Machado et al. 2018 (arXiv 1709.06009, section 3.1, performance during
    training), here from a reset on, so that what a reset costs at once and what it gains later are added up.
    """
    xs, ys = window(steps, returns, start, end)
    if len(xs) == 0:
        return float("nan")
    if xs[-1] == xs[0]:
        return float(ys[-1])
    return float(np.trapezoid(ys, xs) / (xs[-1] - xs[0]))


def recovery(steps: np.ndarray, returns: np.ndarray, reset: float, end: float) -> Recovery | None:
    """Return drop and recovery after a reset at env step ``reset``, looked at until ``end``.

    None where no point stands at or before the reset, or none after it.
    """
    earlier = np.flatnonzero(steps <= reset)
    xs, ys = window(steps, returns, reset, end)
    if len(earlier) == 0 or len(xs) == 0 or xs[-1] <= reset:
        return None
    at_reset = np.flatnonzero(steps == reset)
    before = float(returns[at_reset[0] if len(at_reset) else earlier[-1]])
    return Recovery(before, float(ys.min()), before - float(ys.min()), _first_reach(xs, ys, before, reset))


def _first_reach(xs: np.ndarray, ys: np.ndarray, level: float, start: float) -> float | None:
    """Env steps after ``start`` at which the curve reaches ``level``; None if it never does."""
    reached = np.flatnonzero(ys >= level)
    if len(reached) == 0:
        return None
    index = int(reached[0])
    if index == 0:
        return float(xs[0] - start)
    x0, x1, y0, y1 = xs[index - 1], xs[index], ys[index - 1], ys[index]
    return float(x0 + (x1 - x0) * (level - y0) / (y1 - y0) - start)


def at_horizons(
    steps: np.ndarray, returns: np.ndarray, reset: float, end: float, horizons: tuple[float, ...]
) -> list[float]:
    """Return the curve's value so many env steps after a reset, linear between points; NaN beyond ``end``.

    Several, because the horizon decides whether a reset pays (arXiv 2607.05609).
    """
    xs, ys = window(steps, returns, reset, end)
    if len(xs) == 0:
        return [float("nan")] * len(horizons)
    return [
        float(np.interp(reset + h, xs, ys)) if xs[0] <= reset + h <= xs[-1] else float("nan")
        for h in horizons
    ]
