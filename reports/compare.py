"""Comparisons: each method against a reference by runs of equal seed, corrected for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.outcomes import Outcome
from reports.panels import Panel
from reports.statistics import (
    Interval,
    PairedDifference,
    holm,
    paired_difference,
    probability_of_improvement,
)

LEVEL = 0.05
FEW = 5  # pairs below which an interval that leaves out 0 is no more than a hint


@dataclass(frozen=True)
class Comparison:
    """A method against a reference.

    Attributes:
        panel, outcome: where and by what.
        method, reference: names of the two.
        difference: method minus reference, over pairs of equal seed.
        improvement: probability that a run of the method beats one of the reference.
        p_holm: sign test, Holm's correction over all methods against this reference in this panel and outcome.
        family: number of comparisons corrected for.
    """

    panel: Panel
    outcome: Outcome
    method: str
    reference: str
    difference: PairedDifference
    improvement: Interval
    p_holm: float
    family: int

    @property
    def evidence(self) -> str:
        """``shown``, ``likely``, ``hint`` or ``open``; see ``docs/reports.md``."""
        if self.difference.pairs < 2 or self.difference.low <= 0 <= self.difference.high:
            return "open"
        if self.p_holm <= LEVEL:
            return "shown"
        return "likely" if self.difference.pairs >= FEW else "hint"

    @property
    def finding(self) -> str:
        """What the evidence allows to say, in words."""
        if self.difference.pairs < 2:
            return "one pair: nothing to compare"
        word = "more" if self.difference.mean > 0 else "less"
        return {
            "shown": word,
            "likely": f"likely {word}; the sign test does not confirm it",
            "hint": f"a hint of {word}; too few seeds to say",
            "open": "no difference shown",
        }[self.evidence]


def compare(panel: Panel, outcome: Outcome, reference: str) -> list[Comparison]:
    """Compare all other methods of a panel with ``reference``; those without a common seed are left out."""
    differences = {}
    for method in panel.methods:
        mine, others = outcome.pairs(method, reference)
        if method != reference and len(mine):
            differences[method] = paired_difference(mine, others)
    corrected = holm([difference.p for difference in differences.values()])
    return [
        Comparison(
            panel,
            outcome,
            method,
            reference,
            difference,
            probability_of_improvement(outcome.scores(method), outcome.scores(reference)),
            p,
            len(differences),
        )
        for (method, difference), p in zip(differences.items(), corrected, strict=True)
    ]


def references(panel: Panel, wanted: Sequence[str] = ()) -> list[str]:
    """Return the methods that others are compared with: the baseline and ``fire``, or the ``wanted`` ones it has."""
    names = [*wanted] if wanted else [panel.baseline, "fire"]
    return [name for name in dict.fromkeys(names) if name in panel.methods]
