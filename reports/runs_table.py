"""The page's table of runs: each with its factors, curve, folder and video."""

from __future__ import annotations

import html
import os
from pathlib import Path

from reports.collect import Run, Study
from reports.numbers import number
from reports.tables import last_returns

VIDEOS = ("video.mp4", "video.gif")


def runs_table(study: Study, output: Path) -> str:
    """Return one row for each run as HTML; links are counted from the folder ``output``."""
    factors = list(dict.fromkeys(key for run in study.runs for key in run.factors))
    head = ["run", *factors, "seed", "env steps", "evaluations", "last return", "video"]
    rows = []
    for run in study.runs:
        link = _link(output, run.folder)
        cells = [
            f'<a href="{link}">{html.escape(run.name)}</a>',
            *(html.escape(run.factors.get(key, "")) for key in factors),
            str(run.seed),
            f"{run.last_step:,}" + ("" if run.finished else f" of {run.total_steps:,}"),
            _sparkline(run),
            number(last_returns(run)[0]),
            _video(run, output),
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        '<div class="table" tabindex="0"><table class="runs"><thead><tr>'
        f"{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _link(output: Path, target: Path) -> str:
    return html.escape(Path(os.path.relpath(target.resolve(), output.resolve())).as_posix())


def _video(run: Run, output: Path) -> str:
    found = [run.folder / name for name in VIDEOS if (run.folder / name).is_file()]
    return f'<a href="{_link(output, found[0])}">{found[0].name}</a>' if found else ""


def _sparkline(run: Run, width: int = 120, height: int = 28) -> str:
    """A run's evaluations as a small picture."""
    steps, values = run.evaluation
    if len(steps) < 2:
        return ""
    spread = float(values.max() - values.min()) or 1.0
    span = float(steps[-1] - steps[0]) or 1.0
    xs = 2 + (steps - steps[0]) / span * (width - 4)
    ys = height - 2 - (values - values.min()) / spread * (height - 4)
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
    words = f"evaluations from {number(float(values.min()))} to {number(float(values.max()))}"
    return (
        f'<svg width="{width}" height="{height}" role="img" aria-label="{words}"><title>{words}</title>'
        f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.3"/></svg>'
    )
