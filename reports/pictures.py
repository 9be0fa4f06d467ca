"""PNG figures of a report, drawn by matplotlib."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from reports.outcomes import Summary
from reports.panels import Band, Panel, band, task_band
from reports.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLUMNS = 3


def picture_of_curves(panels: Sequence[Panel], look: Mapping[str, Style], family: str) -> bytes:
    """Draw a learning curve for each panel: mean of seeds, 95 % interval, resets as vertical lines.

    Args:
        panels: at least one.
        look: style of each method.
        family: ``evaluation`` or ``training``.

    Returns:
        a PNG.
    """
    figure, axes = _grid(len(panels), share_y=len({panel.env for panel in panels}) == 1)
    for panel, axis in zip(panels, axes, strict=False):
        for method, runs in panel.methods.items():
            curves = [run.evaluation if family == "evaluation" else run.training for run in runs]
            _draw(axis, band(curves), method, look)
        for step in panel.reset_steps:
            axis.axvline(step, color="#888888", ls=(0, (1, 3)), lw=0.8, zorder=0)
        axis.set(title=panel.label or panel.env, xlabel="env steps")
    axes[0].set_ylabel("evaluation return" if family == "evaluation" else "return of training episodes")
    return _png(figure, axes)


def picture_of_tasks(panels: Sequence[Panel], look: Mapping[str, Style], column: str, words: str) -> bytes:
    """Draw a column of ``tasks.csv`` by task number for each panel, mean of seeds with interval; returns a PNG."""
    figure, axes = _grid(len(panels), share_y=len({panel.env for panel in panels}) == 1)
    for panel, axis in zip(panels, axes, strict=False):
        for method, runs in panel.methods.items():
            _draw(axis, task_band(runs, column), method, look)
        axis.set(title=panel.label or panel.env, xlabel="task")
        axis.locator_params(axis="x", integer=True)
    axes[0].set_ylabel(words)
    return _png(figure, axes)


def picture_of_summaries(rows: Sequence[Sequence[Summary]], look: Mapping[str, Style], words: str) -> bytes:
    """Draw means with intervals and single runs, a panel for each group of rows; returns a PNG."""
    figure, axes = _grid(len(rows))
    for group, axis in zip(rows, axes, strict=False):
        for place, row in enumerate(group):
            colour = look[row.method].colour
            axis.barh(place, row.mean, color=colour, alpha=0.35, height=0.7)
            scores = row.outcome.scores(row.method)
            axis.plot(scores, [place] * len(scores), "o", ms=3, color=colour, alpha=0.8)
            if not math.isnan(row.low):
                axis.plot([row.low, row.high], [place, place], "-", lw=2.5, color=colour)
        axis.set_yticks(range(len(group)), [row.method for row in group])
        axis.invert_yaxis()
        axis.set(title=group[0].panel.label or group[0].panel.env, xlabel=words)
    return _png(figure, axes, legend=False)


def _draw(axis: Axes, drawn: Band, method: str, look: Mapping[str, Style]) -> None:
    if not len(drawn.x):
        return
    style = look[method]
    marker: dict[str, Any] = {"marker": "o", "ms": 2.5} if len(drawn.x) <= 30 else {}
    axis.plot(drawn.x, drawn.mean, style.line, color=style.colour, lw=1.6, label=method, **marker)
    axis.fill_between(drawn.x, drawn.low, drawn.high, color=style.colour, alpha=0.15, lw=0)


def _grid(number: int, share_y: bool = False) -> tuple[Figure, list[Axes]]:
    # Figures of their own, not pyplot's: a notebook's backend (MPLBACKEND) is neither needed nor changed.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    columns = 2 if number == 4 else min(MOST_COLUMNS, number)
    rows = -(-number // columns)
    figure = Figure(figsize=(4.2 * columns + 1.8, 3.2 * rows + 0.3), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for axis in axes[number:]:
        axis.set_visible(False)
    return figure, axes


def _png(figure: Figure, axes: Sequence[Axes], legend: bool = True) -> bytes:
    entries: dict[str, Any] = {}
    for axis in axes:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if legend and entries:
        figure.legend(entries.values(), entries.keys(), loc="outside right upper", frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
