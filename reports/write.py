"""Writing a report: page, figures, tables beside each other in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from common.files import replace_bytes
from configs.errors import ConfigError
from reports.analysis import Analysis, analyse
from reports.collect import PLAN, Study, collect
from reports.kept import kept_rows
from reports.page import commands_of, page, versions
from reports.panels import main_curve
from reports.pictures import picture_of_curves, picture_of_summaries, picture_of_tasks
from reports.tables import (
    difference_table,
    differences_csv,
    kept_csv,
    kept_table,
    reset_table,
    resets_csv,
    runs_csv,
    summaries_csv,
    summary_table,
    tasks_csv,
)

PAGE = "report.html"


def write_report(
    sources: Sequence[Path],
    output: Path | None = None,
    against: Sequence[str] = (),
    compare_by: Sequence[str] = (),
) -> Path:
    """Write the report on run folders or an experiment.

    Args:
        sources: as for :func:`reports.collect.collect`.
        output: folder, made if missing; None: ``report`` in the experiment's folder, or ``<name>-report`` beside the
            folder that holds the runs.
        against: methods with which the others are compared; empty: the baseline, and ``fire``.
        compare_by: factors whose combinations are the methods; empty: see :func:`reports.panels.panels_of`.

    Returns:
        the page's path; beside it lie ``report.md``, PNG and CSV files.

    Raises:
        ConfigError: a source is no run, a method or a factor is unknown, or the folder cannot be written.
        RunFileError: the experiment's plan is damaged.
    """
    study = collect(sources)
    analysis = analyse(study, against, compare_by)
    folder = output or default_output(study)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _files(analysis, folder).items():
            replace_bytes(folder / name, content)
    except OSError as error:
        raise ConfigError(f"cannot write the report into {folder}: {error.strerror}") from error
    return folder / PAGE


def default_output(study: Study) -> Path:
    """Return where the report of a study goes."""
    if (study.folder / PLAN).is_file():
        return study.folder / "report"
    return study.folder.parent / f"{study.folder.name}-report" if study.folder.name else Path("report")


def _files(analysis: Analysis, folder: Path) -> Mapping[str, bytes]:
    study = analysis.study
    pictures = _pictures(analysis)
    texts = {
        "report.md": _markdown(analysis, list(pictures)),
        "summary.csv": summaries_csv(analysis.summaries),
        "differences.csv": differences_csv(analysis.comparisons),
        "resets.csv": resets_csv(analysis.resets),
        "kept.csv": kept_csv([row for panel in analysis.panels for row in kept_rows(panel)]),
        "runs.csv": runs_csv(study),
        "tasks.csv": tasks_csv(study),
        PAGE: page(analysis, folder),
    }
    return pictures | {name: text.encode() for name, text in texts.items() if text}


def _pictures(analysis: Analysis) -> dict[str, bytes]:
    panels, look = analysis.panels, analysis.look
    family = main_curve(panels, analysis.study.hints.get("metric", ""))
    name = {"evaluation": "evaluations.png", "training": "training.png"}[family]
    pictures = {name: picture_of_curves(panels, look, family)}
    if any(run.tasks for run in analysis.study.runs):
        words = "return in each task's second half"
        pictures["tasks.png"] = picture_of_tasks(panels, look, "return_second_half", words)
        pictures["whole_tasks.png"] = picture_of_tasks(
            panels, look, "return_whole", "return over whole tasks"
        )
    groups = [
        [row for row in analysis.summaries if row.panel is panel and row.outcome is outcome]
        for panel, outcome in analysis.headlines
    ]
    if groups := [group for group in groups if group]:
        pictures["outcomes.png"] = picture_of_summaries(groups, look, groups[0][0].outcome.name)
    return pictures


def _markdown(analysis: Analysis, pictures: Sequence[str]) -> str:
    study, words = analysis.study, analysis.verdict
    lines = [f"# {study.title}", ""]
    lines += [study.question, ""] if study.question else []
    lines += [f"**{words.headline}**", ""]
    lines += [*(f"- {sentence}" for sentence in words.panels), ""] if words.panels else []
    for caution in [*words.cautions, *study.notes]:
        lines += [caution, ""]
    for picture in pictures:
        lines += [f"![{picture.removesuffix('.png').replace('_', ' ')}]({picture})", ""]
    for panel, headline in analysis.headlines:
        where = panel.label or panel.env
        summaries = [row for row in analysis.summaries if row.panel is panel and row.outcome is headline]
        compared = [row for row in analysis.comparisons if row.panel is panel and row.outcome is headline]
        resets = [row for row in analysis.resets if row.panel is panel]
        lines += [f"## {where}: {headline.name}", "", summary_table("", summaries).markdown()]
        lines += [difference_table("", compared).markdown()] if compared else []
        if resets and any(run.resets for run in panel.runs):
            lines += ["Evaluations around resets, means:", "", reset_table("", resets).markdown()]
        if kept := kept_rows(panel):
            lines += ["What a reset kept and gave back, means:", "", kept_table("", kept).markdown()]
    lines += ["## How this was made", ""]
    lines += [f"- {label}: {text}" for label, text in study.provenance.items()]
    lines += [f"- report written with {versions()}", "", "```", *commands_of(analysis), "```", ""]
    return "\n".join(lines)
