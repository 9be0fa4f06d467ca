"""The learning curve of one run as a PNG."""

from __future__ import annotations

import os
from pathlib import Path

from training.summary import evaluations, reset_records


def plot_learning_curve(
    run_dir: Path, title: str, random_return: float | None, success_score: float | None
) -> Path:
    """Draw ``evaluations.csv`` with its 95 % intervals, the resets and the reference scores; return the PNG's path.

    Raises:
        RunFileError: the run has written no evaluations, or they are damaged.
    """
    # Figures of their own, not pyplot's: a notebook's backend (MPLBACKEND) is neither needed nor changed.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend

    rows = [row for row in evaluations(run_dir) if row["when"] != "random_policy"]
    resets = [record["env_step"] for record in reset_records(run_dir)]
    column = {
        name: [float(row[name]) for row in rows] for name in ("env_step", "mean_return", "low_95", "high_95")
    }

    figure = Figure(figsize=(8, 4.5), dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(
        column["env_step"],
        column["mean_return"],
        "o-",
        ms=3,
        lw=1.5,
        color="#1f5fa8",
        label="evaluation, mean",
    )
    axes.fill_between(
        column["env_step"],
        column["low_95"],
        column["high_95"],
        alpha=0.2,
        lw=0,
        color="#1f5fa8",
        label="95 % interval",
    )
    for index, step in enumerate(resets):
        axes.axvline(step, color="#c0392b", ls="--", lw=1, label="reset" if index == 0 else None)
    if random_return is not None:
        axes.axhline(
            random_return, color="#7f8c8d", ls=":", lw=1.2, label=f"random policy ({random_return:.1f})"
        )
    if success_score is not None and column["high_95"] and max(column["high_95"]) > 0.3 * success_score:
        axes.axhline(success_score, color="#27ae60", ls=":", lw=1.2, label=f"success ({success_score:.0f})")
    axes.set(xlabel="environment steps", ylabel="undiscounted return", title=title)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    path = run_dir / "learning_curve.png"
    figure.savefig(path)
    return path
