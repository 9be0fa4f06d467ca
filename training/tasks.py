"""What is known of each task once it is over, where tasks change: how well it was learned, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TASK_COLUMNS = (
    "env_step",
    "task",
    "episodes",
    "return_whole",
    "return_first_half",
    "return_second_half",
    "steps_to_half_best",
    "return_on_previous",
)
WINDOW = 10  # episodes over which a return is averaged to say how good the agent is at a moment


class TaskTally:
    """TaskTally: the training episodes that end by themselves in the present task, and the best and worst so far.

    Args:
        period: length of a task in env steps.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self._returns: list[float] = []  # of the present task
        self._ends: list[int] = []  # env steps from its beginning to the end of each
        self._extremes: list[float] = []  # lowest and highest mean of a window in all tasks so far

    def episode(self, episodic_return: float, env_step: int) -> None:
        """Take note of an episode that ended with transition ``env_step``."""
        self._returns.append(episodic_return)
        self._ends.append((env_step - 1) % self._period + 1)

    def finish(self) -> dict[str, float | None]:
        """Return the figures of the task that is over, None where there is none, and go on to the next one.

        ``steps_to_half_best`` is the first env step of the task at which the mean return of its last ``WINDOW``
        episodes lies halfway between the lowest and the highest such mean of all tasks so far, this one included.
        """
        first_half = sum(end * 2 <= self._period for end in self._ends)  # the first so many
        figures: dict[str, float | None] = {
            "episodes": len(self._returns),
            "return_whole": _mean(self._returns),
            "return_first_half": _mean(self._returns[:first_half]),
            "return_second_half": _mean(self._returns[first_half:]),
            "steps_to_half_best": self._steps_to_half_best(),
        }
        self._returns, self._ends = [], []
        return figures

    def _steps_to_half_best(self) -> int | None:
        windows = range(WINDOW, len(self._returns) + 1)
        means = [sum(self._returns[last - WINDOW : last]) / WINDOW for last in windows]
        if not means:
            return None
        seen = [*self._extremes, *means]
        self._extremes = [min(seen), max(seen)]
        halfway = sum(self._extremes) / 2
        ends = self._ends[WINDOW - 1 :]
        return next((end for end, mean in zip(ends, means, strict=True) if mean >= halfway), None)

    def state_dict(self) -> dict[str, Any]:
        return {"returns": list(self._returns), "ends": list(self._ends), "extremes": list(self._extremes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._returns, self._ends = list(state["returns"]), list(state["ends"])
        self._extremes = list(state["extremes"])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
