"""Values that change while a stage runs: one mechanism for learning rate, temperature, loss weight, sparsity and bits.

A schedule maps *progress*, the fraction of the stage that is done (0 at its first step, 1 at its end), to a value. It is a
frozen dataclass rather than a closure, so that a recipe can be printed, compared, saved and decoded again. Wherever a
number is accepted, a schedule is too: read either with `at(value, progress)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitstill.constraints import check_fields
from bitstill.errors import SpecError


@dataclass(frozen=True)
class Constant:
    """The same `value` throughout."""

    value: float

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        return self.value


@dataclass(frozen=True)
class Linear:
    """A straight line from `start` to `end`, travelled between the fractions `begin` and `until` of the stage."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_window("Linear", self.begin, self.until)

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        return self.start + (self.end - self.start) * _within(progress, self.begin, self.until)


@dataclass(frozen=True)
class Cubic:
    """Fast at first, slow at the end: end + (start - end) (1 - t)^3 (Zhu and Gupta 2017, eq. 1)."""

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_window("Cubic", self.begin, self.until)

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        left = 1.0 - _within(progress, self.begin, self.until)
        return self.end + (self.start - self.end) * left**3


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, after a linear rise from zero over the fraction `warmup`."""

    start: float
    end: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_window("Cosine", self.warmup, 1.0)

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        if progress < self.warmup:
            return self.start * progress / self.warmup
        t = _within(progress, self.warmup, 1.0)
        return self.end + (self.start - self.end) * 0.5 * (1.0 + math.cos(math.pi * t))


@dataclass(frozen=True)
class WarmupLinear:
    """Linear rise from zero to `peak` over the fraction `warmup`, then a straight line down to `end`."""

    peak: float
    warmup: float = 0.1
    end: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        _check_window("WarmupLinear", self.warmup, 1.0)

    def __call__(self, progress: float) -> float:
        """The value at `progress`."""
        if progress < self.warmup:
            return self.peak * progress / self.warmup
        return self.peak + (self.end - self.peak) * _within(progress, self.warmup, 1.0)


Schedule = Constant | Linear | Cubic | Cosine | WarmupLinear
Scheduled = float | Schedule
"""A number, or a schedule that gives one."""


def at(value: Scheduled, progress: float) -> float:
    """The number that `value` stands for at `progress` (a fraction from 0 to 1)."""
    return float(value) if isinstance(value, (int, float)) else value(progress)


def _within(progress: float, begin: float, until: float) -> float:
    return min(1.0, max(0.0, (progress - begin) / (until - begin)))


def _check_window(name: str, begin: float, until: float) -> None:
    if not 0.0 <= begin < until <= 1.0:
        raise SpecError(
            "fractions of the stage with 0 <= begin < until <= 1",
            given=f"{begin} and {until}",
            where=name,
            fix="Give the window as fractions of the stage, for example begin=0.1, until=0.9.",
        )
