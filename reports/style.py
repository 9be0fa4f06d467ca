"""Colours and dashes of methods, the same in every figure and on every page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# Okabe and Ito's palette for colour-blind readers (Color Universal Design, 2008) without black and with its yellow,
# too pale on white, darkened; grey is kept for the baseline.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#A6951A")
BASELINE_COLOUR = "#808080"
# Name in plotly and in matplotlib; a second round through the colours is dashed.
DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))


class Style(NamedTuple):
    """How a method is drawn."""

    colour: str
    dash: str
    line: str


def styles(methods: Sequence[str], baseline: str) -> dict[str, Style]:
    """Return the style of each method; the baseline is grey."""
    found = {baseline: Style(BASELINE_COLOUR, *DASHES[0])}
    for index, method in enumerate(method for method in methods if method != baseline):
        round_, place = divmod(index, len(COLOURS))
        found[method] = Style(COLOURS[place], *DASHES[round_ % len(DASHES)])
    return found
