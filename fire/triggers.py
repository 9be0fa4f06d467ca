"""When to reset by what is measured: a metric that crosses a threshold and stays there."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass

from .fields import option


@dataclass(frozen=True)
class TriggerConfig:
    """Reset when a logged metric has been beyond its threshold for ``patience`` measurements in a row."""

    metric: str = option(
        "",
        "key of a logged metric, such as plasticity/critic/dormant_ratio; * matches any part; empty: never",
    )
    threshold: float = option(0.0, "value to cross", unit="of the metric")
    direction: str = option(
        "above", "which side of the threshold asks for a reset", choices=("above", "below")
    )
    patience: int = option(1, "measurements in a row that must lie beyond the threshold", unit="measurements")
    min_gap: int = option(0, "least distance between two resets by this trigger", unit="env steps")

    def __post_init__(self) -> None:
        if self.direction not in ("above", "below"):
            raise ValueError(f"direction {self.direction!r} is not one of above, below")
        if self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if self.min_gap < 0:
            raise ValueError(f"min_gap must be at least 0, got {self.min_gap}")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be finite, got {self.threshold}")


class Trigger:
    """Follows the measurements of one run and says when to reset, and why."""

    def __init__(self, config: TriggerConfig) -> None:
        self.config = config
        self._count = 0
        self._last_reset: int | None = None

    def update(self, env_step: int, scalars: Mapping[str, float]) -> str | None:
        """Take one measurement, by logged key, and return the reason for a reset now, or None.

        With ``*`` in the metric any matching key suffices. A measurement without a matching key changes
        nothing. NaN is not beyond any threshold. While the gap since the last reset is too short the count
        goes on.
        """
        keys = [key for key in scalars if fnmatch.fnmatchcase(key, self.config.metric)]
        if not keys:
            return None
        above = self.config.direction == "above"
        worst = (max if above else min)(keys, key=lambda key: _sortable(scalars[key], above))
        value = scalars[worst]
        beyond = value > self.config.threshold if above else value < self.config.threshold
        self._count = self._count + 1 if beyond else 0
        waited = self._last_reset is None or env_step - self._last_reset >= self.config.min_gap
        if self._count < self.config.patience or not waited:
            return None
        times = "once" if self._count == 1 else f"{self._count} times in a row"
        self._count, self._last_reset = 0, env_step
        return f"{worst} = {value:.4g} is {self.config.direction} {self.config.threshold:.4g}, {times}"

    def note_reset(self, env_step: int) -> None:
        """Tell the trigger of a reset for another reason: the gap counts from it and patience starts over."""
        self._count, self._last_reset = 0, env_step

    def state_dict(self) -> dict[str, int | None]:
        """Counters, for the checkpoint."""
        return {"count": self._count, "last_reset": self._last_reset}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Continue from :meth:`state_dict`."""
        self._count, self._last_reset = state["count"] or 0, state["last_reset"]


def _sortable(value: float, above: bool) -> float:
    """``value``, with NaN at the harmless end."""
    return value if not math.isnan(value) else -math.inf if above else math.inf
