"""The report as one HTML page that needs no network: tables, figures by plotly, its script inside."""

from __future__ import annotations

import html
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from reports import figures
from reports.analysis import Analysis
from reports.collect import Study
from reports.kept import kept_rows, networks_of, planes
from reports.numbers import MISSING, interval
from reports.panels import main_curve
from reports.runs_table import runs_table
from reports.spectra import spectra_of
from reports.tables import Table, difference_table, kept_table, reset_table, summary_table

HERE = Path(__file__).parent
MOST_BYTES = 8_000_000
POINTS = (200, 100, 50, 25)  # of a curve, tried until the page is small enough
MOST_RUNS = 40  # in a table that is not folded
MOST_SENTENCES = 4  # of the verdict that are not folded
# Metrics in the order in which a reader wants them, with their words; others follow by name.
METRICS = {
    "dormant_ratio": "dormant share",
    "dfi_any_scale": "DfI, any scale",
    "srank": "srank of features",
    "effective_rank": "effective rank of features",
    "feature_norm": "norm of features",
    "weight_norm": "norm of weights",
    "gradient_norm": "norm of the gradient",
    "trainability_loss": "trainability loss",
    "zero_activation_ratio": "share of zero units",
}
LEADING = 4  # metrics shown; the others are folded


def page(analysis: Analysis, output: Path) -> str:
    """Return the page as HTML of at most ``MOST_BYTES``, unless hundreds of figures leave no way to that.

    Curves lose points, never methods or panels, until it fits.

    Args:
        analysis: what it shows.
        output: folder in which it will lie, from which links to run folders are counted.
    """
    for most_points in POINTS:
        text = _page(analysis, output, most_points)
        if len(text.encode()) <= MOST_BYTES:
            break
    return text


def _page(analysis: Analysis, output: Path, most_points: int) -> str:
    study, words = analysis.study, analysis.verdict
    body = [
        f"<header><h1>{_text(study.title)}</h1>",
        f'<p class="question">{_text(study.question)}</p>' if study.question else "",
        f'<p class="verdict">{_text(words.headline)}</p>',
        _sentences(words.panels),
        "".join(f'<p class="caution">{_text(line)}</p>' for line in [*words.cautions, *study.notes]),
        "</header>",
        _legend(analysis),
        _section("tasks", "Tasks that change", _tasks(analysis)),
        _section("curves", "Learning curves", _curves(analysis, most_points)),
        _section("differences", "Differences", _differences(analysis)),
        _section("aggregates", "Over all environments", _aggregates(analysis)),
        _section("resets", "What resets kept and gave back", _resets(analysis)),
        _section("plasticity", "Plasticity", _plasticity(analysis, most_points)),
        _section("runs", "Runs", _runs(analysis.study, output)),
        _section("made", "How this was made", _made(analysis)),
    ]
    template = (HERE / "page.html").read_text(encoding="utf-8")
    parts = {
        "title": _text(study.title),
        "css": (HERE / "page.css").read_text(encoding="utf-8"),
        "body": "\n".join(filter(None, body)),
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text, 1)
    return template


def _text(text: str) -> str:
    return html.escape(text)


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(line)}</li>' for line in lines)}</ul>" if lines else ""


def _sentences(lines: Sequence[str]) -> str:
    listed = _list(lines)
    return listed if len(lines) <= MOST_SENTENCES else _folded("In each setting", listed)


def _section(identity: str, title: str, content: str) -> str:
    return f'<section id="{identity}"><h2>{_text(title)}</h2>{content}</section>' if content else ""


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{content}</details>" if content else ""


def _legend(analysis: Analysis) -> str:
    """Buttons that hide a method in every figure and table."""
    buttons = "".join(
        f'<button type="button" aria-pressed="true" data-method="{_text(method)}">'
        f'<span style="border-top:3px {_css_dash(analysis.look[method].dash)} {analysis.look[method].colour}"></span>'
        f"{_text(method)}</button>"
        for method in analysis.methods
    )
    return f'<nav class="legend" aria-label="Methods: press to hide or show">{buttons}</nav>'


def _css_dash(dash: str) -> str:
    return {"solid": "solid", "dot": "dotted"}.get(dash, "dashed")


def _plots(made: Iterable[go.Figure | None]) -> str:
    """A grid of figures, drawn when they come into view."""
    cells = "".join(
        f'<div class="plot" style="min-height:{figure.layout.height}px" role="img" '
        f'aria-label="{_text(str(figure.layout.title.text))}">'
        f'<script type="application/json">{_json(figure)}</script></div>'
        for figure in made
        if figure is not None
    )
    return f'<div class="plots">{cells}</div>' if cells else ""


def _json(figure: go.Figure) -> str:
    return figure.to_json().replace("</", "<\\/")


def _table(table: Table, methods: Iterable[str] = ()) -> str:
    """A table; rows whose first cell is a method hide with it."""
    known = set(methods)

    def row(cells: Sequence[str], tag: str) -> str:
        kind = [' class="number"' if i in table.numeric else "" for i in range(len(cells))]
        inside = "".join(f"<{tag}{k}>{_text(c)}</{tag}>" for k, c in zip(kind, cells, strict=True))
        marked = f' data-method="{_text(cells[0])}"' if tag == "td" and cells[0] in known else ""
        return f"<tr{marked}>{inside}</tr>"

    return (
        f'<div class="table" tabindex="0"><table><caption>{_text(table.title)}</caption>'
        f"<thead>{row(table.head, 'th')}</thead>"
        f"<tbody>{''.join(row(cells, 'td') for cells in table.rows)}</tbody></table></div>"
    )


def _tasks(analysis: Analysis) -> str:
    columns = {
        "return_second_half": "return, second half",
        "return_whole": "return, whole task",
        "return_on_previous": "return on the task before",
    }
    shown = {
        column: _plots(figures.tasks_figure(panel, analysis.look, column, words) for panel in analysis.panels)
        for column, words in columns.items()
    }
    if not any(shown.values()):
        return ""
    return "".join(
        [
            "<p>Mean over seeds with its 95 % interval, by number of the task; training episodes.</p>",
            shown["return_second_half"],
            _folded("Over whole tasks", shown["return_whole"]),
            _folded("On the task before", shown["return_on_previous"]),
        ]
    )


def _curves(analysis: Analysis, most_points: int) -> str:
    def drawn(key: str, words: str) -> str:
        return _plots(
            figures.curves_figure(panel, analysis.look, key, words, most_points) for panel in analysis.panels
        )

    shown = {
        "evaluation": drawn("evaluation", "evaluation return"),
        "training": drawn("training", "training return"),
    }
    first = main_curve(analysis.panels, analysis.study.hints.get("metric", ""))
    rest = {
        "evaluation": ("Return of training episodes", shown["training"]),
        "training": ("Return of evaluations", shown["evaluation"]),
    }[first]
    return "".join(
        [
            "<p>Mean over seeds with its 95 % interval; dotted lines are resets that all runs share.</p>",
            shown[first],
            _folded(*rest),
        ]
    )


def _differences(analysis: Analysis) -> str:
    parts = []
    for panel, headline in analysis.headlines:
        rows = [row for row in analysis.summaries if row.panel is panel and row.outcome is headline]
        compared = [row for row in analysis.comparisons if row.panel is panel]
        title = f"{panel.label or panel.env}: {headline.name}"
        here = [row for row in compared if row.outcome is headline]
        parts += [
            _plots([figures.summary_figure(rows, analysis.look)] if rows else []),
            _table(summary_table(title, rows), analysis.methods),
            _table(difference_table("Paired differences", here), analysis.methods) if here else "",
        ]
        others = list(dict.fromkeys(row.outcome.name for row in compared if row.outcome is not headline))
        folded = [
            _table(
                difference_table(name, [row for row in compared if row.outcome.name == name]),
                analysis.methods,
            )
            for name in others
        ]
        parts.append(_folded(f"{panel.label or panel.env}: by other outcomes", "".join(folded)))
    return "".join([*parts, _folded("How to read these tables", _reading())]) if parts else ""


def _reading() -> str:
    lines = [
        "Pairs are runs of equal seed; they share their beginnings and their streams of random numbers.",
        "Intervals are 95 % percentile bootstrap intervals over seeds.",
        "The sign test asks whether more and less are equally likely; Holm's correction counts all methods that are "
        "compared with one reference in one setting. The smallest p is what so many pairs can reach at best.",
        "P(more) is the probability that a run of the method beats one of the reference (Mann-Whitney).",
        "More or less: the interval leaves out 0 and the corrected p is at most 0.05. Likely: the interval alone, from "
        "five pairs on. A hint: the interval alone, with fewer. Else no difference is shown, which is no proof that "
        "there is none.",
        "IQM is the mean of the middle half of the runs.",
    ]
    return _list(lines)


def _aggregates(analysis: Analysis) -> str:
    rows = analysis.aggregates
    if not rows:
        return ""
    table = Table(
        f"Final evaluations of {rows[0].environments} environments; 0 is the random policy, 1 a human or success",
        ("method", "runs", "IQM [95 %]", "mean [95 %]", "P(more than the baseline)"),
        [
            (
                row.method,
                str(row.runs),
                interval(*row.iqm),
                interval(*row.mean),
                MISSING if row.improvement is None else interval(*row.improvement),
            )
            for row in rows
        ],
        frozenset({1, 2, 3, 4}),
    )
    return _table(table, analysis.methods) + _plots([figures.profile_figure(rows, analysis.look)])


def _resets(analysis: Analysis) -> str:
    parts = []
    for panel in analysis.panels:
        rows = [row for row in analysis.resets if row.panel is panel]
        if rows and any(run.resets for run in panel.runs):
            title = f"{panel.label or panel.env}: evaluations around resets, means"
            parts.append(_table(reset_table(title, rows), analysis.methods))
        if kept := kept_rows(panel):
            title = f"{panel.label or panel.env}: what a reset kept and gave back, means over resets"
            parts.append(_table(kept_table(title, kept), analysis.methods))
    drawn = _plots(
        figures.plane_figure(panel, analysis.look, network, x, y)
        for panel in analysis.panels
        for network in networks_of(panel)
        for x, y in planes(panel, network)
    )
    if drawn:
        parts += ["<p>One point is one reset of one run.</p>", drawn]
    spectra = [
        figures.spectra_figure(panel, analysis.look, layer, values)
        for panel in analysis.panels
        for layer, values in spectra_of(panel).items()
    ]
    if drawn := _plots(spectra):
        parts += [
            "<p>Singular values before (dotted) and after (solid) the first reset, one run each.</p>",
            drawn,
        ]
    return "".join(parts)


def _plasticity(analysis: Analysis, most_points: int) -> str:
    keys = list(dict.fromkeys(key for panel in analysis.panels for run in panel.runs for key in run.metrics))
    order = list(METRICS)

    def place(key: str) -> tuple[int, str]:
        name = key.rpartition("/")[2]
        return order.index(name) if name in order else len(order), name

    names = sorted({key.rpartition("/")[2] for key in keys}, key=place)

    def drawn(chosen: Sequence[str]) -> str:
        return _plots(
            figures.curves_figure(panel, analysis.look, key, _metric_words(key), most_points)
            for name in chosen
            for key in keys
            if key.rpartition("/")[2] == name
            for panel in analysis.panels
        )

    return drawn(names[:LEADING]) + _folded("More metrics", drawn(names[LEADING:]))


def _metric_words(key: str) -> str:
    _, network, name = key.split("/")
    return f"{METRICS.get(name, name.replace('_', ' '))} ({network})"


def _runs(study: Study, output: Path) -> str:
    table = runs_table(study, output)
    return table if len(study.runs) <= MOST_RUNS else _folded(f"All {len(study.runs)} runs", table)


def _made(analysis: Analysis) -> str:
    study = analysis.study
    rows = [*study.provenance.items(), ("report written with", versions())]
    table = "".join(f"<tr><th>{_text(label)}</th><td>{_text(text)}</td></tr>" for label, text in rows)
    commands = "\n".join(commands_of(analysis))
    return f'<div class="table"><table class="made">{table}</table></div><pre>{_text(commands)}</pre>'


def versions() -> str:
    """Return the versions of what computed and drew the report."""
    packages = ("numpy", "plotly", "matplotlib")
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{p} {importlib.metadata.version(p)}" for p in packages)]
    )


def commands_of(analysis: Analysis) -> list[str]:
    """Return the commands that make the runs again: the experiment's, or one for each run."""
    if analysis.study.commands:
        return list(analysis.study.commands)
    return [
        f"python train.py --config {run.folder}/config.yaml --run-dir AGAIN" for run in analysis.study.runs
    ]
