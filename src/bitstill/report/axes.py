"""Axes on which compressed models can be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKS = (99, 90, 0, 97, 60, 99.9, 100, 95, 99.5, 80, 98, 40, 99.8)
"""Candidates for ticks, the most welcome first."""
_BEYOND = 1.6
"""Factor by which the horizontal axis exceeds the largest value, for labels."""
SPREAD = 15.0
"""Percentage points from which a linear axis would squeeze the good models into one line."""


def by_error(values: Sequence[float], metric_name: str) -> bool:
    """Whether an axis for these values should be logarithmic in the error: accuracies, in percent, that spread far."""
    return metric_name == "accuracy" and len(values) > 0 and max(values) - min(values) > SPREAD and max(values) <= 100


def error_scale(axes: Axes, values: Sequence[float], *, few: bool = False) -> None:
    """Make the vertical axis logarithmic in the error: 90, 99 and 99.9 % stand equally far apart, 100 % is still on it.

    Args:
        axes: with a percentage upwards.
        values: all that must be seen.
        few: fewer tick labels, for a low plot.
    """
    import numpy as np
    from matplotlib.ticker import FixedLocator

    errors = [100.0 - value for value in values]
    # Added to every error, so that none at all is a finite place.
    floor = max(min((error for error in errors if error > 0), default=1.0) / 2, 0.02)

    def forward(percent: Any) -> Any:
        return -np.log10(np.maximum(100.0 - np.asarray(percent, dtype=float) + floor, floor / 10))

    def backward(place: Any) -> Any:
        return 100.0 + floor - 10.0 ** -np.asarray(place, dtype=float)

    low, high = float(forward(min(values))), float(forward(max(values)))
    margin = 0.09 * (high - low)
    bottom, top = max(0.0, float(backward(low - margin))), float(backward(high + margin))
    axes.set_yscale("function", functions=(forward, backward))
    axes.set_ylim(bottom, top)
    gap = (0.2 if few else 0.06) * (high - low + 2 * margin)
    ticks: list[float] = []
    for mark in _MARKS:
        if bottom <= mark <= top and all(abs(float(forward(mark) - forward(tick))) >= gap for tick in ticks):
            ticks.append(mark)
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")


def size_scale(axes: Axes, sizes: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic in bytes, with ticks in kB or MB (10^3, 10^6 bytes)."""
    unit, name = (1e6, "MB") if max(sizes) * _BEYOND >= 2e6 else (1e3, "kB")
    _log_scale(axes, sizes, unit, f"model.safetensors ({name}, log scale)")


def latency_scale(axes: Axes, milliseconds: Sequence[float]) -> None:
    """Milliseconds from 0 on; logarithmic where they span more than a factor of 10."""
    if max(milliseconds) > 10 * min(milliseconds):
        _log_scale(axes, milliseconds, 1.0, "latency (ms, log scale)")
        return
    axes.set_xlim(0, 1.25 * max(milliseconds))
    axes.set_xlabel("latency (ms)")


def _log_scale(axes: Axes, values: Sequence[float], unit: float, label: str) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(values) / 1.35, max(values) * _BEYOND
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [step * 10.0**power for power in range(-6, 13) for step in steps if low <= step * 10.0**power <= high]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _position: f"{value / unit:,g}")
    axes.set_xlim(low, high)
    axes.set_xlabel(label)


def loss_scale(axes: Axes, values: Sequence[float]) -> bool:
    """Make the vertical axis logarithmic if the losses span more than a factor of 30; returns whether it did."""
    from matplotlib.ticker import FixedLocator, NullLocator

    if min(values) <= 0 or max(values) <= 30 * min(values):
        axes.locator_params(axis="y", nbins=4)
        if min(values) >= 0 and max(values) > 0:
            axes.set_ylim(bottom=0)
        return False
    steps = (1, 3) if max(values) < 1000 * min(values) else (1,)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(FixedLocator([step * 10.0**power for power in range(-12, 12) for step in steps]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _position: f"{value:g}")
    axes.set_ylim(min(values) / 1.3, max(values) * 1.3)
    return True
