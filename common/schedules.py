"""When things happen, counted in environment steps: small objects whose state goes into the checkpoint.

A vectorised environment advances several steps at once, so every test is ``>=`` and none is ``==``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSchedule:
    """``start`` until ``begin``, then linear to ``end`` over ``duration`` steps, then constant."""

    start: float
    end: float
    begin: int
    duration: int

    def __call__(self, step: int) -> float:
        if self.duration <= 0:
            return self.start if step < self.begin else self.end
        fraction = min(max((step - self.begin) / self.duration, 0.0), 1.0)
        return self.start + fraction * (self.end - self.start)


def first_reached(step: int, num_envs: int) -> int:
    """Return the first env step from ``step`` on at which ``num_envs`` environments can stand."""
    return -(-step // num_envs) * num_envs


@dataclass(frozen=True)
class Restarted:
    """``first`` for ``period`` steps; then, in every further period anew, ``again`` of the steps since it began."""

    first: LinearSchedule
    again: LinearSchedule
    period: int

    def __call__(self, step: int) -> float:
        return self.first(step) if step < self.period else self.again(step % self.period)


class Every:
    """Due once whenever the step count reaches or passes a multiple of ``period``; 0 means never.

    ``until`` (inclusive) ends the series. Several multiples passed in one call count as one.
    """

    def __init__(self, period: int, until: int | None = None) -> None:
        if period < 0:
            raise ValueError(f"period must be at least 0, got {period}")
        self.period = period
        self.until = until
        self.passed = 0

    def due(self, step: int) -> bool:
        if self.period == 0:
            return False
        last = step if self.until is None else min(step, self.until)
        multiples = last // self.period
        if multiples <= self.passed:
            return False
        self.passed = multiples
        return True

    @property
    def next_step(self) -> float:
        """The first step at which it will be due; infinity: never again."""
        step = (self.passed + 1) * self.period
        over = self.period == 0 or (self.until is not None and step > self.until)
        return math.inf if over else step

    def state_dict(self) -> dict[str, int]:
        return {"passed": self.passed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passed = int(state["passed"])


class At:
    """Due once for each of the given steps, as soon as the step count reaches or passes it."""

    def __init__(self, steps: Iterable[int]) -> None:
        self.steps = sorted(set(steps))
        self.passed = 0

    def due(self, step: int) -> bool:
        reached = sum(step >= s for s in self.steps)
        if reached <= self.passed:
            return False
        self.passed = reached
        return True

    @property
    def next_step(self) -> float:
        """The first step at which it will be due; infinity: never again."""
        return self.steps[self.passed] if self.passed < len(self.steps) else math.inf

    def state_dict(self) -> dict[str, int]:
        return {"passed": self.passed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.passed = int(state["passed"])
