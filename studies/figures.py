"""The figure of a study: every arm's curve with its interval over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.stats import bootstrap_interval
from studies.arms import Arm
from studies.results import Row

CONTROLS = ("none", "full", "optimizer_only", "random_orthogonal")  # drawn dashed


def draw(
    rows: Sequence[Row], arms: Sequence[Arm], metrics: Mapping[str, str], num_chunks: int, path: Path
) -> None:
    """Save a figure with one panel for each of ``metrics``, names by figure, to ``path``.

    With two chunks x is the update of the second; with more it is the chunk, and y the value at its end.
    """
    figure, axes = plt.subplots(
        1, len(metrics), figsize=(5.2 * len(metrics) + 2.8, 4.4), squeeze=False, layout="constrained"
    )
    for axis, (metric, label) in zip(axes[0], metrics.items(), strict=True):
        for number, arm in enumerate(arms):
            _curve(
                axis, rows, arm, metric, num_chunks, color="black" if number == 0 else f"C{(number - 1) % 10}"
            )
        axis.set_ylabel(label)
        axis.set_xlabel("update of the second chunk" if num_chunks == 2 else "chunk")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        _look_at_the_end(axis)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _curve(axis: Axes, rows: Sequence[Row], arm: Arm, metric: str, num_chunks: int, color: str) -> None:
    values: dict[int, list[float]] = {}
    ends = {(row["seed"], row["chunk"]): row["update"] for row in rows if row["arm"] == arm.spec}
    for row in rows:
        if row["arm"] != arm.spec or metric not in row:
            continue
        if num_chunks == 2 and row["chunk"] == 1:
            values.setdefault(row["update"], []).append(row[metric])
        elif num_chunks > 2 and row["update"] == ends[row["seed"], row["chunk"]]:
            values.setdefault(row["chunk"] + 1, []).append(row[metric])
    if not values:
        return
    x = sorted(values)
    style = "--" if arm.spec in CONTROLS else "-"
    axis.plot(x, [np.mean(values[i]) for i in x], style, color=color, label=arm.title, linewidth=1.5)
    low, high = zip(*(bootstrap_interval(values[i]) for i in x), strict=True)
    axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)


def _look_at_the_end(axis: Axes) -> None:
    """Zoom on where the curves end, which a fall right after a border would squeeze into a line."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in axis.get_lines()]
    late = np.concatenate([curve[len(curve) // 4 :] for curve in curves]) if curves else np.zeros(0)
    if late.size and np.ptp(late) > 0:
        margin = 0.15 * np.ptp(late)
        axis.set_ylim(late.min() - margin, late.max() + margin)
