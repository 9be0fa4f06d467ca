"""The verdict: what the headline outcome shows, and what it does not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from reports.compare import Comparison, compare
from reports.numbers import interval, number, p_value, signed
from reports.outcomes import Outcome, summarise
from reports.panels import Panel
from reports.statistics import few_seeds_note


@dataclass(frozen=True)
class Verdict:
    """One sentence over the whole, one for each panel, and what must be kept in mind."""

    headline: str
    panels: Sequence[str]
    cautions: Sequence[str]


def verdict(judged: Sequence[tuple[Panel, Outcome]]) -> Verdict:
    """Return the verdict on panels, each with its headline outcome."""
    by_panel = [(panel, outcome, compare(panel, outcome, panel.baseline)) for panel, outcome in judged]
    everything = [comparison for *_, comparisons in by_panel for comparison in comparisons]
    if not everything:
        headline = "Nothing to compare: there are no two methods with finished runs of equal seed."
    elif len(by_panel) == 1:
        headline = _alone(*by_panel[0])
    else:
        headline = _over_all(by_panel)
    return Verdict(headline, [_sentence(*row) for row in by_panel if row[2]], _cautions(everything))


def _alone(panel: Panel, outcome: Outcome, comparisons: Sequence[Comparison]) -> str:
    """Name the methods that differ from the baseline."""
    differing = [c for c in comparisons if c.evidence != "open"]
    if not differing:
        pairs = max(c.difference.pairs for c in comparisons)
        seeds = "one seed" if pairs == 1 else f"{pairs} seeds"
        return f"No method is shown to differ from {panel.baseline} in {outcome.name} ({seeds})."
    words = [
        f"{c.method} {c.finding} ({signed(c.difference.mean)} "
        f"[{number(c.difference.low)}, {number(c.difference.high)}])"
        for c in differing
    ]
    return f"{_capital(outcome.name)}, against {panel.baseline}: {'; '.join(words)}."


def _over_all(by_panel: Sequence[tuple[Panel, Outcome, list[Comparison]]]) -> str:
    """Count in how many settings each method differs from the baseline."""
    words = []
    for method in dict.fromkeys(c.method for *_, found in by_panel for c in found):
        found = [c for *_, comparisons in by_panel for c in comparisons if c.method == method]
        more = [c for c in found if c.evidence != "open" and c.difference.mean > 0]
        less = [c for c in found if c.evidence != "open" and c.difference.mean < 0]
        shown = sum(c.evidence == "shown" for c in [*more, *less])
        if more or less:
            confirmed = f"{shown} confirmed by sign test" if shown else "none confirmed by sign test"
            words.append(
                f"{method} more in {len(more)} and less in {len(less)} of {len(found)} ({confirmed})"
            )
    references = " or ".join(dict.fromkeys(panel.baseline for panel, *_ in by_panel))
    if not words:
        return f"In none of {len(by_panel)} settings is any method shown to differ from {references}."
    return f"Against {references}, by intervals of paired differences: {'; '.join(words)}."


def _sentence(panel: Panel, outcome: Outcome, comparisons: Sequence[Comparison]) -> str:
    where = f"{panel.label}: " if panel.label else f"{panel.env}: "
    rows = sorted(summarise(panel, outcome), key=lambda row: row.mean, reverse=True)
    best = rows[0]
    base = next((row for row in rows if row.method == panel.baseline), None)
    words = [f"{where}highest mean {outcome.name}: {best.method}, {interval(best.mean, best.low, best.high)}"]
    if base is not None and base is not best:
        words[0] += f" ({base.method}: {interval(base.mean, base.low, base.high)})"
    differing = [c for c in comparisons if c.evidence != "open"]
    words += [_difference(c) for c in differing]
    if open_ones := [c for c in comparisons if c.evidence == "open"]:
        names = ", ".join(c.method for c in open_ones)
        widest = max(max(abs(c.difference.low), abs(c.difference.high)) for c in open_ones)
        words.append(
            f"No difference from {panel.baseline} is shown for {names}, which does not mean that there is none: "
            f"up to {number(widest)} lies within the intervals"
        )
    return ". ".join(words) + "."


def _difference(comparison: Comparison) -> str:
    difference = comparison.difference
    return (
        f"{comparison.method} against {comparison.reference}: {comparison.finding}, {signed(difference.mean)} "
        f"[{number(difference.low)}, {number(difference.high)}], {difference.pairs} pairs, "
        f"{p_value(comparison.p_holm)} after Holm"
    )


def _cautions(comparisons: Sequence[Comparison]) -> list[str]:
    if not comparisons:
        return []
    fewest = min(comparisons, key=lambda c: c.difference.pairs)
    note = few_seeds_note(fewest.difference.pairs, fewest.family)
    return [note] if note else []


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
