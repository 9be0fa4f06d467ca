"""A look into the time of a few training steps: Chrome trace and the ten dearest operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# Steps with gradient updates: the first ones allocate and choose algorithms, which would blur the picture.
SKIPPED, MEASURED = 10, 20
TRACE = "profile.json"


def on_device(events: Iterable[Any]) -> list[Any]:
    """Averages of the profiler that are a device's own work, each once.

    A kernel's time also counts as that of the operation that launched it and of the annotated region around both.
    """
    return [e for e in events if e.device_type != DeviceType.CPU and not e.is_user_annotation]


class StepProfiler:
    """Profiles the loop's steps ``SKIPPED`` to ``SKIPPED + MEASURED`` with gradient updates, then falls silent.

    Args:
        folder: where ``profile.json`` is written (chrome://tracing, ui.perfetto.dev).
        say: takes the lines of the table.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._path = folder / TRACE
        self._say = say
        self._steps = 0
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)

    def step(self, updates: int) -> None:
        """Count a finished step of the loop; those without updates count only once measuring has begun."""
        if self._steps > SKIPPED + MEASURED or not (updates or self._steps >= SKIPPED):
            return
        self._steps += 1
        if self._steps == SKIPPED:
            self._profile.start()
        elif self._steps == SKIPPED + MEASURED:
            self._finish()

    def close(self) -> None:
        """Write what was measured of a run that ends early."""
        if SKIPPED <= self._steps < SKIPPED + MEASURED:
            self._finish()

    def _finish(self) -> None:
        self._profile.stop()
        self._steps = SKIPPED + MEASURED + 1
        self._profile.export_chrome_trace(str(self._path))
        events = self._profile.key_averages()
        kernels = on_device(events)
        order = "self_device_time_total" if kernels else "self_cpu_time_total"
        events = kernels or events
        dearest = sorted(events, key=lambda event: -getattr(event, order))[:10]
        total = sum(getattr(event, order) for event in events) or 1.0
        where = "device" if kernels else "CPU"
        self._say(
            f"profile of {MEASURED} steps, {total / 1e3:,.0f} ms of {where} time, trace in {self._path}"
        )
        for event in dearest:
            time = getattr(event, order)
            self._say(f"  {time / total:6.1%}  {time / 1e3:9.1f} ms  {event.count:>6} x  {event.key}")
