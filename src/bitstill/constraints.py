"""Constraints on the fields of settings, declared in their annotations.

    @dataclass(frozen=True)
    class Settings:
        lr: Positive = 1e-3
        momentum: Annotated[float, Range(least=0, below=1)] = 0.9
        rounding: Literal["nearest", "stochastic"] = "nearest"

        def __post_init__(self) -> None:
            check_fields(self)

Numbers without a declared range must be finite. A schedule is checked against the range at several points of its stage. Only
plain values are checked: numbers, text, flags, None and tuples of them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from bitstill.errors import SpecError, brief, suggest

_MOMENTS = tuple(step / 16 for step in range(17))
"""Progress values at which a schedule is evaluated: 0 is the beginning of a stage, 1 its end."""
LARGEST_DURATION = 10**9
"""Maximum number of steps of a stage; a larger number is likely a typo."""


@dataclass(frozen=True)
class Range:
    """Range of allowed numbers: all bounds must hold.

    Args:
        least, most: inclusive bounds.
        above, below: exclusive bounds.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def holds(self, number: float) -> bool:
        """Whether `number` is finite and within all bounds."""
        try:
            finite = math.isfinite(number)
        except OverflowError:  # an integer too large for a float
            return False
        return finite and self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        """Phrase that follows the name of a setting in a message."""
        low = f"above {_plain(self.above)}" if self.above > -math.inf else f"of at least {_plain(self.least)}"
        high = f"below {_plain(self.below)}" if self.below < math.inf else f"at most {_plain(self.most)}"
        has_low, has_high = max(self.above, self.least) > -math.inf, min(self.below, self.most) < math.inf
        if self.least > -math.inf and has_high:
            high = high.replace("at most", "to") if self.most < math.inf else f"to {high}"
            return f"from {_plain(self.least)} {high}"
        if has_low and has_high:
            return f"{low} and {high}"
        return low if has_low else high if has_high else "that is finite"


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(least=0, most=1)]
FractionBelowOne = Annotated[float, Range(least=0, below=1)]
Epochs = Annotated[float, Range(least=0, most=1e6)]
Count = Annotated[int, Range(least=1, most=LARGEST_DURATION)]
WholeNumber = Annotated[int, Range(least=0, most=LARGEST_DURATION)]
Seed = Annotated[int, Range(least=0, most=2**63 - 1)]


@dataclass(frozen=True)
class Constraint:
    """Values allowed by the annotation of a field.

    Args:
        numbers: int, float or both; if empty, numbers are not allowed.
        range: range of these numbers; None if the annotation declares none.
        words: values of a `Literal` annotation.
        plain: those of str, bool and None that are allowed.
        items: constraint on the items of a tuple; None if the field is not a tuple.
        classes: names of the classes whose instances are allowed; "Any" allows everything.
    """

    numbers: frozenset[type] = frozenset()
    range: Range | None = None
    words: tuple[Any, ...] = ()
    plain: frozenset[type] = frozenset()
    items: Constraint | None = None
    classes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether numbers must be integers."""
        return self.numbers == {int}

    def allows(self, value: object) -> bool:
        """Whether `value` is allowed."""
        if "Any" in self.classes or type(value) in self.plain:
            return True
        if any(value == word and type(value) is type(word) for word in self.words):
            return True
        if value is None or isinstance(value, (bool, str)):
            return False
        if isinstance(value, (int, float)):
            of_type = bool(self.numbers) and (isinstance(value, int) or not self.whole)
            return of_type and (self.range or Range()).holds(value)
        if isinstance(value, (tuple, list)):
            return bool(self.classes) if self.items is None else all(self.items.allows(item) for item in value)
        if self.numbers and dataclasses.is_dataclass(value) and callable(value):
            schedule: Callable[[float], Any] = value
            return all((self.range or Range()).holds(schedule(moment)) for moment in _MOMENTS)
        return bool(self.classes) or (str in self.plain and not isinstance(value, Mapping))

    def range_text(self) -> str:
        """Readable range of the numbers, in a tuple too ("from 0 to 1"); empty without one."""
        return _bounds(self.range) or ("" if self.items is None else self.items.range_text())

    def type_text(self) -> str:
        """Readable types and range: "int from 1 to 8, 'ternary' or None"."""
        names = []
        if self.numbers:
            names.append(" ".join(filter(None, ("int" if self.whole else "float", _bounds(self.range)))))
        names += [repr(word) for word in self.words]
        names += [kind.__name__ for kind in (bool, str) if kind in self.plain]
        names += self.classes
        names += [] if self.items is None else [f"list of {self.items.type_text()}"]
        names += ["None"] if type(None) in self.plain else []
        return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def check_fields(settings: Any, where: str = "") -> None:
    """Refuse values that the annotations of a dataclass do not allow.

    Args:
        settings: an instance; its `__post_init__` calls this.
        where: name of the instance in errors; by default, its class.

    Raises:
        SpecError: a value is not allowed; the message names the class, the field and its allowed values.
    """
    cls: Any = type(settings)
    for name in constraints(cls):
        check_field(cls, name, getattr(settings, name), where or cls.__name__)


def check_field(cls: Any, name: str, value: object, where: str) -> None:
    """Refuse a value that the annotation of the field `name` of the dataclass `cls` does not allow.

    Raises:
        SpecError: the value is not allowed; the message names `where`, the field and its allowed values.
    """
    constraint = constraints(cls)[name]
    if constraint.allows(value):
        return
    default = next(field.default for field in dataclasses.fields(cls) if field.name == name)
    fix = f"The default is {default!r}." if isinstance(default, (int, float, str, type(None))) else "Correct the value."
    raise SpecError(_phrase(name, constraint, value), given=brief(value), where=where, fix=_fix(constraint, value, fix))


def _phrase(name: str, constraint: Constraint, value: object) -> str:
    """Expected value of a field, as a noun phrase."""
    if constraint.words and not constraint.numbers and constraint.items is None:
        return f"a known {name}"
    while constraint.items is not None and (isinstance(value, tuple) or not constraint.numbers):
        constraint = constraint.items
    if not constraint.numbers:
        return f"{name} of type {constraint.type_text()}"
    numbers = value if isinstance(value, (tuple, list)) else (value,)
    right_type = (int,) if constraint.whole else (int, float)
    mistyped = any(isinstance(number, bool) or not isinstance(number, right_type) for number in numbers if not callable(number))
    kind = ("as a whole number " if constraint.whole else "as a number ") if mistyped else ""
    words = "".join(f" or {word!r}" for word in constraint.words)
    return f"{name} {kind}{constraint.range or Range()}{words}"


def _fix(constraint: Constraint, value: object, default: str) -> str:
    words = [word for word in constraint.words if isinstance(word, str)]
    return suggest(value, words) if words and isinstance(value, str) else default


@functools.cache
def constraints(cls: Any) -> dict[str, Constraint]:
    """Constraints of the fields of a dataclass, by name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: _read(hints[field.name]) for field in dataclasses.fields(cls)}


def _read(hint: Any) -> Constraint:
    """Constraint that an annotation declares."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        own = next((each for each in arguments[1:] if isinstance(each, Range)), None)
        inner = _read(arguments[0])
        return dataclasses.replace(inner, range=own or inner.range)
    if origin is Literal:
        return Constraint(words=arguments)
    if origin in (typing.Union, types.UnionType):
        return functools.reduce(_either, map(_read, arguments))
    if origin is tuple:
        return Constraint(items=functools.reduce(_either, (_read(each) for each in arguments if each is not Ellipsis)))
    if hint in (int, float):
        return Constraint(numbers=frozenset({hint}))
    if hint in (str, bool, type(None)):
        return Constraint(plain=frozenset({hint}))
    return Constraint(classes=(getattr(origin or hint, "__name__", str(hint)),))


def _either(first: Constraint, second: Constraint) -> Constraint:
    """Union of two constraints."""
    return Constraint(
        first.numbers | second.numbers,
        first.range or second.range,
        first.words + second.words,
        first.plain | second.plain,
        first.items or second.items,
        first.classes + second.classes,
    )


def numeric_fields(cls: Any) -> Iterator[tuple[str, Constraint]]:
    """Names of the fields that may hold numbers, directly or in a tuple, with the constraint on the numbers."""
    for name, constraint in constraints(cls).items():
        if constraint.numbers:
            yield name, constraint
        elif constraint.items is not None and constraint.items.numbers:
            yield name, constraint.items


def _bounds(bounds: Range | None) -> str:
    """Phrase for a range alone ("at least 0"); empty without a range."""
    return "" if bounds is None else str(bounds).removeprefix("of ")


def _plain(number: float) -> str:
    return f"{int(number):,}" if float(number).is_integer() else f"{number:g}"
