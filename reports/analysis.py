"""Analysis: everything that a report shows of a study, computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.errors import ConfigError
from reports.aggregate import Aggregate, aggregate_over_environments
from reports.collect import Study
from reports.compare import Comparison, compare, references
from reports.outcomes import AfterResets, Outcome, Summary, after_resets, outcomes, summarise
from reports.panels import Panel, panels_of
from reports.style import Style, styles
from reports.verdict import Verdict, verdict


@dataclass(frozen=True)
class Analysis:
    """What a report shows.

    Attributes:
        study: the runs.
        panels: groups that are compared within themselves.
        methods: all methods in the order of the study, baselines first.
        look: style of each method.
        outcomes: of each panel, in the order of ``panels``.
        summaries, comparisons, resets: rows of the tables.
        aggregates: over environments with published scores; empty where there are fewer than two.
        verdict: in words.
    """

    study: Study
    panels: Sequence[Panel]
    methods: Sequence[str]
    look: Mapping[str, Style]
    outcomes: Sequence[Sequence[Outcome]]
    summaries: Sequence[Summary]
    comparisons: Sequence[Comparison]
    resets: Sequence[AfterResets]
    aggregates: Sequence[Aggregate]
    verdict: Verdict

    @property
    def headlines(self) -> list[tuple[Panel, Outcome]]:
        """Each panel with the outcome on which its verdict rests."""
        return [
            (panel, outcome)
            for panel, found in zip(self.panels, self.outcomes, strict=True)
            for outcome in found
            if outcome.headline
        ]


def analyse(study: Study, against: Sequence[str] = (), compare_by: Sequence[str] = ()) -> Analysis:
    """Compute everything that a report shows.

    Args:
        study: the runs.
        against: methods with which the others are compared; empty: each panel's baseline, and ``fire``.
        compare_by: factors that make the methods, see :func:`reports.panels.panels_of`.

    Raises:
        ConfigError: a factor that does not vary, or a method that does not exist.
    """
    panels = panels_of(study, compare_by)
    methods = list(dict.fromkeys(method for panel in panels for method in panel.methods))
    if unknown := [name for name in against if name not in methods]:
        raise ConfigError(f"against {unknown[0]}: no such method; there are {', '.join(methods)}")
    metric = str(study.hints.get("metric") or "") or None
    found = [outcomes(panel, metric) for panel in panels]
    pairs = [(panel, outcome) for panel, of in zip(panels, found, strict=True) for outcome in of]
    return Analysis(
        study=study,
        panels=panels,
        methods=methods,
        look=styles(methods, panels[0].baseline),
        outcomes=found,
        summaries=[row for panel, outcome in pairs for row in summarise(panel, outcome)],
        comparisons=[
            row
            for panel, outcome in pairs
            for reference in references(panel, against)
            for row in compare(panel, outcome, reference)
        ],
        resets=[row for panel in panels for row in after_resets(panel)],
        aggregates=aggregate_over_environments(panels),
        verdict=verdict([pair for pair in pairs if pair[1].headline]),
    )
