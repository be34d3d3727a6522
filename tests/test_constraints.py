"""Values outside a setting's annotation are refused, and every number declares a range."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from bitstill.constraints import (
    Constraint,
    Count,
    Fraction,
    Positive,
    Range,
    check_fields,
    constraints,
    numeric_fields,
)
from bitstill.errors import SpecError
from bitstill.losses.logits import CrossEntropy
from bitstill.quant import Uniform
from bitstill.schedules import Linear, Scheduled

VOCABULARY = (
    "bitstill.recipes", "bitstill.train", "bitstill.quant", "bitstill.losses", "bitstill.data", "bitstill.artifact.writer",
    "bitstill.data.augmentation", "bitstill.data.networks", "bitstill.data.res8", "bitstill.run.run_file",
)  # fmt: skip
ANY_NUMBER = {"Constant", "Linear", "Cubic", "Cosine", "WarmupLinear"}
"""Schedules: the setting that holds one limits its values."""
NO_SETTINGS = {"Grid", "State", "Word", "Task", "WeightContent"}
"""Built by code from settings and data; users never write them."""
REQUIRED: dict[str, dict[str, Any]] = {
    "Pruning": {"sparsity": 0.5}, "Prune": {"sparsity": 0.5}, "Corpus": {"source": "text"}, "Stage": {"name": "stage"},
    "ReduceWidth": {"model": "student", "fraction": 0.5}, "SetDropout": {"model": "student", "probability": 0.1},
    "SharePoints": {"model": "student"}, "Linear": {"start": 0.0, "end": 1.0}, "Cubic": {"start": 0.0, "end": 1.0},
    "Cosine": {"start": 1.0}, "Constant": {"value": 1.0}, "WarmupLinear": {"peak": 1.0}, "PerGroup": {"size": 128},
    "Classification": {"classes": 3}, "ChooseTernary": {"model": "student", "budget": 9, "terms": ()},
    "Term": {"loss": CrossEntropy()}, "MultiLabel": {"label_names": ("a", "b")}, "AttentionRelation": {"pairs": ()},
    "AddProjection": {"name": "projection", "student": 4, "teacher": 8}, "Compress": {"model": "a", "compression": ()},
    "ReduceLayers": {"source": "a", "name": "b", "layers": (0,)}, "Variants": {"model": "mlm"},
    "AttentionScoreMSE": {"pairs": ()}, "FeatureMSE": {"pairs": ()},
    "ConvNetConfig": {"blocks": ((4,),), "kernel": 3, "hidden": ()}, "RunFile": {"recipe": "xtc", "task": "digits"},
}  # fmt: skip


def settings_classes() -> Iterator[type[Any]]:
    """Dataclasses that users write, and those that artifacts and run files are read into."""
    for module in map(importlib.import_module, VOCABULARY):
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            own = isinstance(value, type) and (hasattr(module, "__all__") or value.__module__ == module.__name__)
            if own and dataclasses.is_dataclass(value) and name not in NO_SETTINGS and not name.startswith("_"):
                yield value


CLASSES = list(dict.fromkeys(settings_classes()))
NUMBERS = [(cls, *field) for cls in CLASSES for field in numeric_fields(cls)]
WORDS = [(cls, name) for cls in CLASSES for name, constraint in constraints(cls).items() if constraint.words]


def make(cls: type[Any], **changes: Any) -> Any:
    return cls(**REQUIRED.get(cls.__name__, {}) | changes)


def outside(bounds: Range, whole: bool) -> list[Any]:
    """Values that a numeric field must refuse: non-finite, just beyond each bound, of the wrong type, and text."""
    beyond = [bounds.least - 1, bounds.most + 1, bounds.above, bounds.below]
    finite = [int(number) if whole else number for number in beyond if math.isfinite(number)]
    return [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, "many", *finite, *([2.5] if whole else [])]


def name_of(value: object) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", "")


@pytest.mark.parametrize(("cls", "name", "constraint"), NUMBERS, ids=name_of)
def test_every_number_of_every_setting_has_a_range_and_keeps_to_it(cls: type[Any], name: str, constraint: Constraint) -> None:
    assert constraint.range is not None or cls.__name__ in ANY_NUMBER, "declare a range in the annotation"
    make(cls)
    in_tuple = not constraints(cls)[name].numbers
    for value in outside(constraint.range or Range(), constraint.whole):
        if constraint.allows(value):  # a flag or a word besides the numbers
            continue
        with pytest.raises(SpecError, match=name):
            make(cls, **{name: (value,) if in_tuple else value})


@pytest.mark.parametrize(("cls", "name"), WORDS, ids=name_of)
def test_every_word_of_every_setting_is_one_of_those_that_it_knows(cls: type[Any], name: str) -> None:
    with pytest.raises(SpecError, match=rf"{cls.__name__}|stage") as caught:
        make(cls, **{name: "sideways"})
    words = [word for word in constraints(cls)[name].words if isinstance(word, str)]
    assert name in str(caught.value) and all(word in str(caught.value) for word in words)


@dataclass(frozen=True)
class Example:
    """One field of each kind."""

    rate: Positive = 0.1
    share: Fraction | None = None
    count: Count = 3
    layers: tuple[Annotated[int, Range(least=0)], ...] | Count = 1
    strength: Annotated[Scheduled, Range(least=0)] = 1.0
    plain: float = 0.0
    flag: bool = True
    text: str = ""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    bits: Annotated[int, Range(least=1, most=8)] | Literal["ternary"] | None = None
    coding: bool | Literal["pruned"] = "pruned"
    inner: Uniform | None = None
    anything: Any = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    "options",
    [
        {"share": 1, "layers": (0, 5), "strength": Linear(0.0, 2.0), "plain": -3},
        {"bits": "ternary", "coding": False, "inner": Uniform(4), "anything": "many"},
        {"bits": 8, "rate": np.float64(0.5), "rounding": "stochastic", "layers": ()},
    ],
    ids=str,
)
def test_what_annotations_allow_is_accepted(options: dict[str, Any]) -> None:
    Example(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, r"Example: wanted rate above 0, got 0\. The default is 0\.1\."),
        ({"rate": None}, "rate as a number above 0, got None"),
        ({"rate": np.array([1.0])}, r"rate as a number above 0, got array"),
        ({"share": 1.5}, "share from 0 to 1, got 1.5"),
        ({"share": math.nan}, "share from 0 to 1, got nan"),
        ({"count": 2.5}, "count as a whole number from 1 to 1,000,000,000, got 2.5"),
        ({"count": True}, "count as a whole number from 1 to"),
        ({"count": 2**63}, "count from 1 to"),
        ({"count": 10**5000}, "count from 1 to .*, got a very long int"),
        ({"layers": (0, -1)}, r"layers of at least 0, got \(0, -1\)"),
        ({"strength": Linear(1.0, -0.5)}, "strength of at least 0"),
        ({"plain": math.inf}, "plain that is finite"),
        ({"flag": "yes"}, "flag of type bool, got 'yes'"),
        ({"text": 3}, "text of type str, got 3"),
        ({"rounding": "nearst"}, r"a known rounding, got 'nearst'\. Did you mean 'nearest'\?"),
        ({"rounding": None}, "a known rounding, got None"),
        ({"bits": 9}, "bits from 1 to 8 or 'ternary', got 9"),
        ({"bits": "two"}, r"bits as a whole number from 1 to 8 or 'ternary', got 'two'\. Valid: ternary"),
        ({"coding": "zip"}, "a known coding, got 'zip'"),
        ({"inner": "uniform"}, "inner of type Uniform or None, got 'uniform'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_messages_say_what_the_field_may_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Example(**options)


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (Range(above=0), "above 0"), (Range(least=0), "of at least 0"), (Range(most=3), "at most 3"),
        (Range(below=1), "below 1"), (Range(least=0, most=1), "from 0 to 1"), (Range(least=0, below=1), "from 0 to below 1"),
        (Range(above=0, most=0.5), "above 0 and at most 0.5"), (Range(), "that is finite"),
    ],
)  # fmt: skip
def test_ranges_read_as_phrases(bounds: Range, text: str) -> None:
    assert str(bounds) == text
