"""Tables of a report: rows of cells, as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from reports.collect import Run, Study
from reports.compare import Comparison
from reports.kept import QUANTITIES, KeptRow, measured
from reports.numbers import MISSING, interval, number, p_value, signed
from reports.outcomes import HORIZONS, AfterResets, Summary

Cell = str | int | float


@dataclass(frozen=True)
class Table:
    """A table for people, and the same as numbers.

    Attributes:
        title: what it shows.
        head: names of the columns; those of numbers end with nothing special, alignment is by ``numeric``.
        rows: cells as text.
        numeric: columns that hold numbers.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: frozenset[int] = frozenset()

    def markdown(self) -> str:
        """Return the table as Markdown, without its title."""
        lines = [
            self.head,
            ["---:" if i in self.numeric else "---" for i in range(len(self.head))],
            *self.rows,
        ]
        return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def to_csv(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV: numbers in full, NaN as an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(
        [
            "" if isinstance(c, float) and math.isnan(c) else repr(c) if isinstance(c, float) else c
            for c in row
        ]
        for row in rows
    )
    return text.getvalue()


def summary_table(title: str, rows: Sequence[Summary]) -> Table:
    """Return a table of methods: runs, mean and IQM with intervals."""
    return Table(
        title,
        ("method", "runs", "mean [95 %]", "IQM [95 %]"),
        [
            (
                row.method,
                str(row.runs),
                interval(row.mean, row.low, row.high),
                interval(row.iqm, row.iqm_low, row.iqm_high),
            )
            for row in rows
        ],
        frozenset({1, 2, 3}),
    )


def difference_table(title: str, rows: Sequence[Comparison]) -> Table:
    """Return a table of comparisons."""
    return Table(
        title,
        (
            "method",
            "against",
            "difference [95 %]",
            "pairs",
            "more / less",
            "p, sign test",
            "p, Holm",
            "smallest p",
            "P(more)",
            "in words",
        ),
        [
            (
                row.method,
                row.reference,
                f"{signed(row.difference.mean)} [{number(row.difference.low)}, {number(row.difference.high)}]",
                str(row.difference.pairs),
                f"{row.difference.wins} / {row.difference.losses}",
                p_value(row.difference.p).removeprefix("p = ").removeprefix("p "),
                p_value(row.p_holm).removeprefix("p = ").removeprefix("p "),
                p_value(row.difference.smallest_p).removeprefix("p = ").removeprefix("p "),
                f"{row.improvement.value:.2f}",
                row.finding,
            )
            for row in rows
        ],
        frozenset(range(2, 9)),
    )


def reset_table(title: str, rows: Sequence[AfterResets]) -> Table:
    """Return a table of what resets did to the evaluations."""
    shares = [share for share in HORIZONS if rows[0].span]
    return Table(
        title,
        (
            "method",
            "resets",
            "return before",
            "right after",
            "deepest drop",
            "recovered",
            "median env steps to recover",
            *(f"after {share * rows[0].span:,.0f}" for share in shares),
        ),
        [
            (
                row.method,
                str(row.resets),
                number(row.before),
                number(row.after),
                number(row.drop),
                f"{row.recovered} of {row.resets}",
                MISSING if math.isnan(row.recovery_steps) else f"{row.recovery_steps:,.0f}",
                *(number(value) for value in row.horizons[: len(shares)]),
            )
            for row in rows
        ],
        frozenset(range(1, 7 + len(shares))),
    )


def kept_table(title: str, rows: Sequence[KeptRow]) -> Table:
    """Return a table of what resets kept and gave back, with the quantities that were measured."""
    keys = measured(rows)
    return Table(
        title,
        ("method", "network", "resets", *(QUANTITIES[key].words for key in keys)),
        [
            (row.method, row.network, str(row.resets), *(number(row.means.get(k, math.nan)) for k in keys))
            for row in rows
        ],
        frozenset(range(2, 3 + len(keys))),
    )


def kept_csv(rows: Sequence[KeptRow]) -> str:
    """Return the same as CSV; empty where nothing was reset."""
    keys = measured(rows)
    return (
        to_csv(
            ("panel", "method", "network", "resets", *keys),
            [
                (r.panel.label, r.method, r.network, r.resets, *(r.means.get(key, math.nan) for key in keys))
                for r in rows
            ],
        )
        if rows
        else ""
    )


def summaries_csv(rows: Sequence[Summary]) -> str:
    """Return every outcome of every method as CSV."""
    head = (
        "panel",
        "outcome",
        "method",
        "runs",
        "mean",
        "low_95",
        "high_95",
        "iqm",
        "iqm_low_95",
        "iqm_high_95",
    )
    return to_csv(
        head,
        [
            (
                r.panel.label,
                r.outcome.key,
                r.method,
                r.runs,
                r.mean,
                r.low,
                r.high,
                r.iqm,
                r.iqm_low,
                r.iqm_high,
            )
            for r in rows
        ],
    )


def differences_csv(rows: Sequence[Comparison]) -> str:
    """Return every comparison as CSV."""
    head = (
        *(
            "panel",
            "outcome",
            "method",
            "reference",
            "pairs",
            "difference",
            "low_95",
            "high_95",
            "more",
            "less",
        ),
        *("p_sign_test", "p_holm", "comparisons", "smallest_p"),
        *("probability_of_improvement", "probability_low_95", "probability_high_95", "evidence"),
    )
    return to_csv(
        head,
        [
            (
                *(r.panel.label, r.outcome.key, r.method, r.reference, r.difference.pairs, r.difference.mean),
                *(r.difference.low, r.difference.high, r.difference.wins, r.difference.losses),
                *(r.difference.p, r.p_holm, r.family, r.difference.smallest_p),
                *(*r.improvement, r.evidence),
            )
            for r in rows
        ],
    )


def resets_csv(rows: Sequence[AfterResets]) -> str:
    """Return what resets did as CSV."""
    head = (
        *("panel", "method", "resets", "return_before", "return_after", "drop", "recovered"),
        *("median_recovery_steps", "span", *(f"return_after_{share:g}_of_span" for share in HORIZONS)),
    )
    return to_csv(
        head,
        [
            (
                *(r.panel.label, r.method, r.resets, r.before, r.after, r.drop, r.recovered),
                *(r.recovery_steps, r.span, *r.horizons),
            )
            for r in rows
        ],
    )


def runs_csv(study: Study) -> str:
    """Return one row for each run: factors, seed, where it stands, its last returns."""
    factors = list(dict.fromkeys(key for run in study.runs for key in run.factors))
    head = ("run", "stage", "parent", *factors, "seed", "env_step", "total_steps", "resets", *_LAST)
    return to_csv(
        head,
        [
            (
                *(run.name, run.stage, run.parent or ""),
                *(run.factors.get(key, "") for key in factors),
                *(run.seed, run.last_step, run.total_steps, len(run.resets)),
                *last_returns(run),
            )
            for run in study.runs
        ],
    )


_LAST = ("final_evaluation", "final_training_return", "random_policy")


def last_returns(run: Run) -> tuple[float, float, float]:
    """Return a run's last evaluation, last training return and its random policy's return; NaN where unknown."""
    nan = math.nan
    return (
        float(run.evaluation.values[-1]) if len(run.evaluation.values) else nan,
        float(run.training.values[-1]) if len(run.training.values) else nan,
        nan if run.random_return is None else run.random_return,
    )


def tasks_csv(study: Study) -> str:
    """Return all tasks of all runs as one tidy table; empty where no tasks change."""
    columns = list(dict.fromkeys(column for run in study.runs for column in run.tasks))
    factors = list(dict.fromkeys(key for run in study.runs for key in run.factors))
    rows: list[list[Cell]] = [
        [
            run.name,
            *(run.factors.get(key, "") for key in factors),
            run.seed,
            task,
            *(float(run.tasks[column][task]) if column in run.tasks else math.nan for column in columns),
        ]
        for run in study.runs
        for task in range(len(run.tasks.get("env_step", ())))
    ]
    return to_csv(("run", *factors, "seed", "task", *columns), rows) if rows else ""
