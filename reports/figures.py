"""Figures of the page, made by plotly: one for each panel, so that they stack on a narrow screen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from reports.aggregate import Aggregate
from reports.collect import Curve, Run
from reports.kept import QUANTITIES
from reports.outcomes import Summary
from reports.panels import Band, Panel, band, task_band
from reports.style import Style

Look = Mapping[str, Style]
# Colours of text and grid come from the page, which knows whether it is light or dark.
_LAYOUT: dict[str, Any] = {
    "margin": {"l": 58, "r": 12, "t": 34, "b": 44},
    "height": 300,
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "showlegend": False,
    "hovermode": "x unified",
    "template": "none",
    "font": {"size": 12},
    "modebar": {
        "bgcolor": "rgba(0,0,0,0)",
        "color": "rgba(128,128,128,0.6)",
        "activecolor": "rgb(128,128,128)",
    },
}
_AXIS: dict[str, Any] = {"gridcolor": "rgba(128,128,128,0.22)", "zeroline": False, "automargin": True}
_SPIKE = {"spikecolor": "rgba(128,128,128,0.8)", "spikethickness": 1, "spikedash": "solid"}
SMALLEST = 1e-12  # drawn on logarithmic axes in place of anything smaller
LEAST_DECADES = 0.18  # of a logarithmic axis, lest rounding errors fill it


def curves_figure(panel: Panel, look: Look, key: str, words: str, most_points: int) -> go.Figure | None:
    """Return mean and 95 % interval of a curve by env step for each method, with reset marks; None without curves.

    Args:
        panel: the runs.
        look: style of each method.
        key: ``evaluation``, ``training`` or a plasticity metric.
        words: label of the y axis.
        most_points: of each curve.
    """
    figure = _figure(_title(panel, words), "env steps", words)
    for method, runs in panel.methods.items():
        _add_band(figure, band([_curve(run, key) for run in runs], most_points), method, look[method])
    for step in panel.reset_steps:
        figure.add_vline(step, line={"color": "rgba(128,128,128,0.7)", "width": 1, "dash": "dot"})
    return figure if figure.data else None


def _curve(run: Run, key: str) -> Curve:
    curves = {"evaluation": run.evaluation, "training": run.training, **run.metrics}
    return curves.get(key, Curve(np.empty(0), np.empty(0)))  # a run of another version may log other metrics


def tasks_figure(panel: Panel, look: Look, column: str, words: str) -> go.Figure | None:
    """Return a column of ``tasks.csv`` by task number; None where no run has it."""
    figure = _figure(_title(panel, words), "task", words)
    for method, runs in panel.methods.items():
        _add_band(figure, task_band(runs, column), method, look[method])
    tasks = max((len(trace.x) for trace in figure.data if trace.name), default=1)
    figure.update_xaxes(dtick=max(1, math.ceil(tasks / 10)), tick0=1)
    return figure if figure.data else None


def summary_figure(rows: Sequence[Summary], look: Look) -> go.Figure:
    """Return each method's mean with its interval, and its single runs as points."""
    panel, outcome = rows[0].panel, rows[0].outcome
    figure = _figure(_title(panel, "mean of each method, its runs as ticks"), outcome.name, "")
    for row in rows:
        colour, scores = look[row.method].colour, outcome.scores(row.method)
        seeds = sorted(outcome.values[row.method])
        error = {} if math.isnan(row.low) else _error(row)
        figure.add_scatter(
            x=scores,
            y=[row.method] * len(scores),
            mode="markers",
            marker={"color": colour, "size": 16, "symbol": "line-ns-open", "line": {"width": 1.5}},
            customdata=seeds,
            hovertemplate="seed %{customdata}: %{x:.5~g}<extra></extra>",
            legendgroup=row.method,
        )
        figure.add_scatter(
            x=[row.mean],
            y=[row.method],
            mode="markers",
            marker={"color": colour, "size": 11, "symbol": "diamond"},
            error_x=error,
            customdata=[[row.low, row.high]],
            hovertemplate="mean %{x:.5~g} [%{customdata[0]:.5~g}, %{customdata[1]:.5~g}]<extra></extra>",
            legendgroup=row.method,
        )
    figure.update_layout(hovermode="closest", height=110 + 34 * len(rows))
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def _error(row: Summary) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [row.high - row.mean],
        "arrayminus": [row.mean - row.low],
        "thickness": 2.5,
        "width": 0,
    }


def plane_figure(panel: Panel, look: Look, network: str, x: str, y: str) -> go.Figure | None:
    """Return one point for each reset of each run: what it kept against what it gave back; None without such resets.

    Args:
        panel: the runs.
        look: style of each method.
        network: whose figures.
        x, y: keys of ``reports.kept.QUANTITIES``.
    """
    (x_words, x_of, x_log), (y_words, y_of, y_log) = QUANTITIES[x], QUANTITIES[y]
    figure = _figure(", ".join(filter(None, (panel.label, network))), x_words, y_words)
    for method, runs in panel.methods.items():
        points = [
            (x_of(record, network), y_of(record, network), run.seed, record["env_step"])
            for run in runs
            for record in run.resets
        ]
        points = [p for p in points if p[0] is not None and p[1] is not None]
        if not points:
            continue
        xs, ys, seeds, steps = zip(*points, strict=True)
        figure.add_scatter(
            x=[max(value, SMALLEST) for value in xs] if x_log else xs,
            y=[max(value, SMALLEST) for value in ys] if y_log else ys,
            mode="markers",
            marker={"color": look[method].colour, "size": 9, "opacity": 0.75},
            customdata=list(zip(seeds, steps, strict=True)),
            hovertemplate=f"{method}, seed %{{customdata[0]}}, step %{{customdata[1]:,}}<br>"
            "%{x:.3~g}, %{y:.3~g}<extra></extra>",
            legendgroup=method,
        )
    figure.update_layout(hovermode="closest")
    if x_log:
        figure.update_xaxes(**_logarithmic([trace.x for trace in figure.data]))
    if y_log:
        figure.update_yaxes(**_logarithmic([trace.y for trace in figure.data]))
    return figure if figure.data else None


def profile_figure(rows: Sequence[Aggregate], look: Look) -> go.Figure:
    """Return performance profiles: the share of runs above each normalised score, with 95 % intervals."""
    figure = _figure("performance profile", "normalised final score", "share of runs above")
    for row in rows:
        drawn = Band(row.thresholds, row.profile, row.profile_low, row.profile_high, row.runs)
        _add_band(figure, drawn, row.method, look[row.method])
    return figure


def spectra_figure(
    panel: Panel, look: Look, layer: str, spectra: Mapping[str, Mapping[str, np.ndarray]]
) -> go.Figure:
    """Return singular values before (dotted) and after (solid) a reset, largest first, one line for each method.

    Args:
        panel: for the title.
        look: style of each method.
        layer: its name.
        spectra: by method, then ``before`` or ``after``: singular values (n,), falling.
    """
    figure = _figure(", ".join(filter(None, (panel.label, layer))), "rank, share of all", "singular value")
    for method, values in spectra.items():
        for when, dash in (("before", "dot"), ("after", "solid")):
            row = values[when]
            figure.add_scatter(
                x=_single(np.linspace(0, 1, len(row))),
                y=_single(np.maximum(row, SMALLEST)),
                mode="lines",
                line={"color": look[method].colour, "dash": dash, "width": 2},
                name=f"{method}, {when}",
                hovertemplate="%{y:.3~g}",
                legendgroup=method,
            )
    figure.update_yaxes(**_logarithmic([trace.y for trace in figure.data]))
    return figure


def _logarithmic(values: Sequence[Any]) -> dict[str, Any]:
    """Options of an axis for arrays of positive numbers, with several ticks however near these are to each other."""
    if not values:
        return {}
    low, high = (float(np.log10(end)) for end in (min(map(np.min, values)), max(map(np.max, values))))
    # With a format plotly writes whole numbers at 2 and 5 too, and finer ones where the axis has no power of ten.
    few = 4 if high - low < 0.9 else 3
    options = {"type": "log", "tickformat": ".6~g", "nticks": few if high - low < 1.8 else 6}
    if high - low < LEAST_DECADES:
        middle = (low + high) / 2
        options["range"] = [middle - LEAST_DECADES / 2, middle + LEAST_DECADES / 2]
    return options


def _title(panel: Panel, words: str) -> str:
    """The panel, or, where it is the only one, what is drawn."""
    return panel.label or words


def _figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure(layout=_LAYOUT)
    figure.update_layout(title={"text": title, "x": 0.01, "xanchor": "left", "font": {"size": 14}})
    figure.update_xaxes(title_text=x, title_standoff=6, hoverformat=",.5~g", **_SPIKE, **_AXIS)
    figure.update_yaxes(title_text=y, title_standoff=6, **_AXIS)
    return figure


def _add_band(figure: go.Figure, drawn: Band, method: str, style: Style) -> None:
    """Add a mean as a line and its interval as an area that does not take part in hovering."""
    known = ~np.isnan(drawn.mean)
    if not known.any():
        return
    x, mean, low, high = (values[known] for values in drawn[:4])
    with_interval = not np.isnan(low).any()
    if with_interval:
        figure.add_scatter(
            x=_steps(np.concatenate([x, x[::-1]])),
            y=_single(np.concatenate([high, low[::-1]])),
            fill="toself",
            fillcolor=_transparent(style.colour),
            mode="none",
            hoverinfo="skip",
            legendgroup=method,
        )
    figure.add_scatter(
        x=_steps(x),
        y=_single(mean),
        mode="lines+markers" if len(x) <= 30 else "lines",
        line={"color": style.colour, "width": 2, "dash": style.dash},
        marker={"size": 4},
        name=method,
        customdata=_single(np.stack([low, high], axis=1)) if with_interval else None,
        hovertemplate=f"%{{y:.4~g}} [%{{customdata[0]:.4~g}}, %{{customdata[1]:.4~g}}] n = {drawn.runs}"
        if with_interval
        else "%{y:.4~g} (one run)",
        legendgroup=method,
    )


def _steps(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int32) if (x == np.round(x)).all() and np.abs(x).max() < 2**31 else _single(x)


def _single(values: np.ndarray) -> np.ndarray:
    """Half the page for digits that no screen shows."""
    return values.astype(np.float32)


def _transparent(colour: str, alpha: float = 0.16) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
