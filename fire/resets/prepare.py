"""Prepare: a plan that is known to be good and the report on it, for which the host waits once on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from ..network.memory import to_host
from ..polar.factors import doubts_postponed
from .plan import Plan
from .report import LayerChange, LayerReport, figures, layer_reports, reports_from


class Prepared(NamedTuple):
    """A plan that may be written.

    Attributes:
        plan: checked as a whole.
        reports: on the layers' changes.
        seconds: what planning and checking took, the reports excluded; on a GPU by its own clock.
    """

    plan: Plan
    reports: tuple[LayerReport, ...]
    seconds: float


def prepare(
    make: Callable[[], Plan],
    changes: Callable[[Plan], Sequence[LayerChange]],
    devices: Sequence[torch.device],
) -> Prepared:
    """Plan, check and report; nothing is written.

    For a GPU the plan is first made on trust: whether its matrices are solved, whether its values are finite and what
    the report says are all asked at once. Where a matrix is in doubt the plan is made again, question by question.

    Args:
        make: makes the plan; called a second time where a matrix is in doubt, it must make the same draws.
        changes: what the report is to be about.
        devices: the GPUs on which weights are.

    Raises:
        TypeError, ValueError: of ``make``, and see :meth:`Plan.check`.
    """
    watch = _Stopwatch(devices)
    if devices and (trusted := _on_trust(make, changes, watch)) is not None:
        return trusted
    plan = make()
    plan.check()
    watch.stop()
    reports = layer_reports(changes(plan))
    return Prepared(plan, reports, watch.seconds())


def _on_trust(
    make: Callable[[], Plan], changes: Callable[[Plan], Sequence[LayerChange]], watch: _Stopwatch
) -> Prepared | None:
    """Ask everything at once; None where a matrix is in doubt."""
    with doubts_postponed() as doubts:
        try:
            plan = make()
        except ValueError:  # perhaps of values that nobody has vouched for
            if doubts:
                return None
            raise
    plan.check_places()
    looked_at, finite = plan.finite()
    watch.stop()
    about = changes(plan)
    asked = figures(about)
    answers = iter(to_host([*doubts, *finite, *asked.rows]))
    if any([bool(next(answers).any()) for _ in doubts]):
        return None
    plan.refuse_infinite(looked_at, [next(answers) for _ in finite])
    return Prepared(plan, reports_from(about, asked.grams, list(answers)), watch.seconds())


class _Stopwatch:
    """Seconds from its making to ``stop``, by the GPUs' clocks where there are any: the host need not wait for them."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._devices = devices
        self._began, self._start = time.perf_counter(), self._marks()

    def stop(self) -> None:
        self._ended, self._end = time.perf_counter(), self._marks()

    def seconds(self) -> float:
        """To be asked when the host has waited for what came behind ``stop``."""
        pairs = zip(self._start, self._end, strict=True)
        on_devices = [1e-3 * start.elapsed_time(end) for start, end in pairs if end.query()]
        return max(on_devices, default=self._ended - self._began)

    def _marks(self) -> list[torch.cuda.Event]:
        marks = []
        for device in self._devices:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record(torch.cuda.current_stream(device))
        return marks
