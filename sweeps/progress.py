"""How a run goes, from what it has written into its folder so far."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

_RETURN, _STEPS = "rollout/ep_rew_mean", "time/total_timesteps"


class RunProgress:
    """RunProgress: step, speed and returns of a run at work; reads only what is new.

    Args:
        folder: of the run.
        total: env steps of the run.

    Attributes:
        env_step: of the newest log interval; 0 before the first.
        seen_steps, seen_seconds: since the run was first seen at work, everything included.
        mean_return: of the last training episodes, or None.
        evaluation: mean return of the newest evaluation, or None.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.total = total
        self.env_step = 0
        self.seen_steps = 0
        self.seen_seconds = 0.0
        self.mean_return: float | None = None
        self.evaluation: float | None = None
        self._scalars = _Tail(folder / "scalars.csv")
        self._evaluations = _Tail(folder / "evaluations.csv")
        self._first: tuple[float, int] | None = None

    def update(self) -> None:
        """Read on."""
        before = self.env_step
        for words in self._scalars.new_rows():
            if words[1] == _STEPS:
                self.env_step = int(float(words[2]))
            elif words[1] == _RETURN:
                self.mean_return = float(words[2])
        for words in self._evaluations.new_rows():
            if words[1] != "random_policy":
                self.evaluation = float(words[2])
        if self.env_step == before:
            return
        now = time.monotonic()
        if self._first is None or self.env_step < before:  # it begins, or goes on from an earlier checkpoint
            self._first = (now, self.env_step)
        self.seen_steps, self.seen_seconds = self.env_step - self._first[1], now - self._first[0]

    @property
    def speed(self) -> float | None:
        """Env steps a second; None: not known yet."""
        return self.seen_steps / self.seen_seconds if self.seen_steps and self.seen_seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds to its end at this speed; None: not known yet."""
        return (self.total - self.env_step) / self.speed if self.speed else None


class _Tail:
    """Yields what a CSV file has gained; from its beginning where it was cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_rows(self) -> Iterator[list[str]]:
        """Yield new rows of at least three cells whose third is a number."""
        for line in self._new_lines():
            words = line.split(",")
            if len(words) > 2 and _is_number(words[2]):
                yield words

    def _new_lines(self) -> list[str]:
        try:
            size = self._path.stat().st_size
            if size == self._offset:
                return []
            if size < self._offset:
                self._offset = 0
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except OSError:
            return []
        end = content.rfind(b"\n") + 1  # the last line may still be written
        self._offset += end
        return content[:end].decode(errors="replace").splitlines()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
