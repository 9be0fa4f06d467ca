"""Numbers as a person reads them."""

from __future__ import annotations

import math

MISSING = "-"


def number(value: float) -> str:
    """Return about three significant digits, without exponents between 0.001 and 10 million; a dash for NaN."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    digits = 0 if size >= 1000 else 1 if size >= 10 else 2 if size >= 1 else 3
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def signed(value: float) -> str:
    """Return a difference with its sign."""
    return number(value) if math.isnan(value) or value < 0 else f"+{number(value)}"


def interval(value: float, low: float, high: float) -> str:
    """Return a value with its interval in brackets; without bounds the value alone."""
    return number(value) if math.isnan(low) else f"{number(value)} [{number(low)}, {number(high)}]"


def p_value(p: float) -> str:
    """Return a p value as an equation, two digits; never 0."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"
