"""Formatting of numbers, the same in the terminal, in tables and on axes. MB means 10^6 bytes, kB 10^3."""

from __future__ import annotations

import math

MISSING = "–"
"""Placeholder for a number that does not apply, such as the bits of a layer in a network without layers."""


def count(value: float) -> str:
    """A whole number with thousands separators: 12,288."""
    return f"{value:,.0f}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A number with a fixed number of digits, so that columns align; None, NaN and infinity become a dash."""
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else MISSING


def size(value: float) -> str:
    """Bytes with a unit: MB from 10^6 on, otherwise whole bytes."""
    return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value:,.0f} bytes"


def times(value: float) -> str:
    """A ratio: 6.0×."""
    return f"{decimal(value, 1)}×"


def signed(value: float, digits: int = 2) -> str:
    """A difference with its sign, with a typographic minus: −1.21."""
    if not math.isfinite(value):
        return MISSING
    rounded = round(value, digits)
    return f"{'−' if rounded < 0 else '+' if rounded > 0 else '±'}{abs(rounded):,.{digits}f}"


def digits_of(value: float, name: str) -> int:
    """Decimals of a metric: two for percentages, four for fractions such as a correlation."""
    return 2 if name == "accuracy" or abs(value) >= 10 else 4


def score(value: float, name: str) -> str:
    """A task's metric without its unit, for columns."""
    return decimal(value, digits_of(value, name))


def metric(value: float, name: str) -> str:
    """A task's metric: accuracy is a percentage, others have no unit."""
    text = score(value, name)
    return f"{text} %" if name == "accuracy" and text != MISSING else text


def metric_label(name: str) -> str:
    """The metric with its unit, for headers and axes."""
    return f"{name} (%)" if name == "accuracy" else name


def duration(seconds: float) -> str:
    """Wall time in the two largest units: 2.8 s, 4 min 12 s, 3 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"
