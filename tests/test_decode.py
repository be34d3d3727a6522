"""Settings to plain values and back, and every way in which they can be wrong."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitstill.decode import decode, encode
from bitstill.errors import SpecError
from bitstill.losses import KL, CrossEntropy, Loss
from bitstill.quant import LearnedStep, Quantizer, SplitBinary
from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
from bitstill.quant.rules import (
    Binary,
    Clipped,
    Compression,
    ExactScale,
    Points,
    Prune,
    QuantizeInput,
    StraightThrough,
    Ternary,
    Uniform,
)
from bitstill.schedules import Constant, Cosine, Cubic, Linear, Scheduled, WarmupLinear
from bitstill.train import SGD, Action, AdamW, Copy, Optimizer, SetDropout

granularities = st.one_of(
    st.just(PerTensor()), st.just(PerChannel()), st.integers(1, 999).map(PerGroup), st.integers(1, 999).map(Bucket)
)
dtypes = st.sampled_from(["float32", "float16"])
simple = st.one_of(st.just(StraightThrough()), st.floats(0.1, 9).map(Clipped))
weights = st.one_of(
    st.builds(Uniform, st.integers(1, 8), st.just(False), granularities, st.sampled_from(["nearest", "stochastic"]),
              st.one_of(simple, st.just(ExactScale())), dtypes),
    st.builds(Uniform, st.integers(2, 8), st.just(True), granularities, st.just("nearest"), simple, dtypes),
    st.builds(Binary, granularities, simple, dtypes),
    st.builds(Ternary, granularities, simple, dtypes),
    st.builds(Points, st.integers(2, 256), st.sampled_from(["quantiles", "uniform"]), granularities, dtypes),
)  # fmt: skip
inputs = st.one_of(
    st.builds(QuantizeInput, st.integers(2, 8), st.booleans(), st.sampled_from(["token", "sample", "tensor"])),
    st.builds(QuantizeInput, st.integers(2, 8), st.booleans(), st.just("tensor"), st.sampled_from(["clip", "step"])),
)
names = st.lists(st.text("abc.*", min_size=1, max_size=5), min_size=1, max_size=3).map(tuple)
compressions = st.builds(
    Compression,
    targets=names,
    ignore=names,
    weight=weights,
    input=st.none() | inputs,
    prune=st.none() | st.builds(Prune, st.floats(0, 0.99)),
)


@given(compressions)
def test_there_and_back_through_json_and_yaml(compression):
    plain = encode(compression)
    assert decode(Compression, plain) == compression
    assert decode(Compression, json.loads(json.dumps(plain))) == compression
    assert decode(Compression, yaml.safe_load(yaml.safe_dump(plain))) == compression


@dataclass(frozen=True)
class Box:
    value: Scheduled = 1.0
    bits: int | Literal["ternary"] = 4
    flag: bool = False
    note: str | None = None
    anything: Any = None


@given(st.sampled_from([2.5, Constant(1.0), Linear(0.0, 1.0), Cubic(0.0, 0.9, 0.1, 0.8), Cosine(1.0), WarmupLinear(1.0)]),
       st.sampled_from([3, "ternary"]))  # fmt: skip
def test_numbers_may_be_schedules(value, bits):
    box = Box(value, bits, True, "x", [1, {"a": 2}])
    assert decode(Box, encode(box)) == box


def test_whole_numbers_are_floats_where_floats_are_wanted_but_not_the_other_way_round():
    box = decode(Box, {"value": 2})
    assert (box.value, type(box.value)) == (2.0, float)
    with pytest.raises(SpecError, match=r"Box\.bits"):
        decode(Box, {"bits": 4.0})


@pytest.mark.parametrize(("plain", "message"), [
    ({"bist": 3}, r"Box: wanted a known setting, got 'bist'\. Did you mean 'bits'"),
    ({"bits": "binary"}, r"Box\.bits: wanted .*int.*'ternary'.*'binary' \(str\)"),
    ({"bits": True}, r"Box\.bits"),
    ({"flag": 1}, r"Box\.flag: wanted a value of type bool, got 1 \(int\)"),
    ({"note": 3}, r"Box\.note"),
    ({"value": "fast"}, r"Box\.value"),
    ({"value": True}, r"Box\.value"),
    ({"value": {"kind": "Cubik", "start": 0, "end": 1}}, r"Box\.value: .* kind, got 'Cubik'\. Did you mean 'Cubic'"),
    ({"value": {"start": 0, "end": 1}}, r"Box\.value: wanted a key 'kind'"),
    ({"value": {"kind": "Cubic", "start": 0}}, r"Box\.value: wanted the setting 'end'"),
    ({"value": {"kind": "Cubic", "start": 0, "end": 1, "begin": 2}}, "begin < until"),
    ({"kind": "Bax"}, "wanted kind Box, got 'Bax'"),
    ([1], "wanted the settings of Box"),
    ("text", "wanted the settings of Box"),
    (None, "wanted the settings of Box"),
])  # fmt: skip
def test_every_mistake_names_its_place(plain, message):
    with pytest.raises(SpecError, match=message):
        decode(Box, plain)


def test_lists_name_the_element_and_are_not_text():
    with pytest.raises(SpecError, match=r"Compression\.targets\[1\]: wanted a value of type str, got 3"):
        decode(Compression, {"targets": ["a", 3], "weight": {"kind": "Binary"}})
    with pytest.raises(SpecError, match=r"Compression\.targets: wanted a list"):
        decode(Compression, {"targets": "abc", "weight": {"kind": "Binary"}})


def test_what_a_settings_class_refuses_is_refused():
    with pytest.raises(SpecError, match="bits from 1 to 8"):
        decode(Uniform, {"bits": 9})
    with pytest.raises(SpecError, match=r"'deep'\.rounding: wanted one of 'nearest', 'stochastic'|deep\.rounding"):
        decode(Uniform, {"rounding": "up"}, where="deep")


def test_only_plain_data_is_encoded():
    with pytest.raises(SpecError, match="wanted plain data, got object"):
        encode({"a": [object()]})
    assert encode({1: (2, None, True, "x", 0.5)}) == {"1": [2, None, True, "x", 0.5]}


def test_every_dataclass_says_its_kind():
    plain = encode(Compression(weight=Uniform(granularity=PerGroup(3))))
    assert plain["kind"] == "Compression"
    assert plain["weight"]["granularity"] == {"kind": "PerGroup", "size": 3}
    assert set(plain["weight"]) == {"kind", *(field.name for field in dataclasses.fields(Uniform))}


# User-defined classes, named by `package.module:Name`

MODULE = """
from __future__ import annotations
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from bitstill.quant import Binary, Granularity, PerChannel, Quantizer
if TYPE_CHECKING:
    from fractions import Fraction

@dataclass(frozen=True)
class Sign(Quantizer):
    granularity: Granularity = PerChannel()
    scale_dtype: Any = "float32"
    shift: float = 0.0
    name = "sign"
    def quantize(self, weight, mask, state, *, training=False):
        return Binary(self.granularity).quantize(weight + self.shift, mask, state)

@dataclass(frozen=True)
class Half(Quantizer):
    granularity: Granularity = PerChannel()
    scale_dtype: Any = "float32"
    name = "half"

class Plain(Sign): ...
class Loose(Sign):
    def __init__(self): ...

@dataclass(frozen=True)
class Halved:
    weight: float = 0.5
    needs_teacher = True
    def __call__(self, student, target, labels, progress): return self.weight * student.logits.sum()
    def taps(self): return (), ()

@dataclass(frozen=True)
class Hidden(Halved):
    part: Fraction | None = None

sign = Sign()
"""


@dataclass(frozen=True)
class Open:
    quantizer: Quantizer | None = None
    loss: Loss = dataclasses.field(default_factory=CrossEntropy)
    optimizer: Optimizer = dataclasses.field(default_factory=SGD)
    actions: tuple[Action, ...] = ()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Name of a module in the current directory, which Python does not search by itself."""
    name = f"own_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    sys.modules.pop(name, None)


def test_own_classes_come_by_their_path_and_go_by_it(own):
    plain = {"quantizer": {"kind": f"{own}:Sign", "shift": 0.5}, "loss": {"kind": f"{own}:Halved"}}
    box = decode(Open, plain, imports=True)
    assert (box.quantizer.shift, box.loss.weight, type(box.quantizer).__module__) == (0.5, 0.5, own)
    encoded = encode(box)
    assert encoded["quantizer"] == {"kind": f"{own}:Sign", "granularity": {"kind": "PerChannel"}, "scale_dtype": "float32",
                                    "shift": 0.5}  # fmt: skip
    assert decode(Open, json.loads(json.dumps(encoded)), imports=True) == box


def test_own_classes_are_imported_only_where_that_is_allowed(own):
    with pytest.raises(SpecError, match="Only run files, command lines and Python code may name classes to import"):
        decode(Open, {"quantizer": {"kind": f"{own}:Sign"}})
    assert own not in sys.modules


@pytest.mark.parametrize("cls", [Uniform, Binary, Ternary, SplitBinary, Points, LearnedStep])
def test_bitstills_quantizers_go_by_their_names(cls):
    assert decode(Open, {"quantizer": {"kind": cls.__name__}}).quantizer == cls()


def test_losses_optimizers_and_actions_of_bitstill_go_by_their_names():
    box = Open(None, KL(3.0), AdamW(1e-3), (Copy("a", "b"), SetDropout("b", 0.1)))
    assert decode(Open, encode(box)) == box


@pytest.mark.parametrize(("field", "kind", "message"), [
    ("quantizer", "Sign", r"Open\.quantizer: wanted a known kind, got 'Sign'.*Binary.*Uniform"),
    ("quantizer", "CrossEntropy", r"Open\.quantizer: wanted a known kind, got 'CrossEntropy'"),
    ("quantizer", "no_such_module:Sign", "wanted a module, got none called 'no_such_module'. Run from the folder"),
    ("quantizer", "OWN:Sin", "wanted a name in .*, got 'Sin'. Did you mean 'Sign'?"),
    ("quantizer", "OWN:sign", "wanted the class of a Quantizer, got 'own.*:sign', which is none"),
    ("quantizer", "OWN:Half", "wanted a Quantizer, got 'own.*:Half', without quantize"),
    ("quantizer", "OWN:Halved", "wanted a Quantizer, got .*:Halved', which is not derived from Quantizer"),
    ("loss", "OWN:Sign", "wanted a Loss, got .*:Sign', without needs_teacher, __call__, taps. .*losses.loss.Loss"),
    ("loss", "json:JSONDecoder", "wanted a Loss, got 'json:JSONDecoder', without needs_teacher"),
    ("loss", "OWN:Hidden", "wanted types of Hidden that are there at run time, got name 'Fraction' is not defined"),
    ("optimizer", "OWN:Halved", "wanted an Optimizer, got .*without lr, weight_decay, learned_lr_scale, build"),
    ("loss", "BROKEN:Sign", "wanted a module 'broken' that can be imported, got SyntaxError"),
    ("loss", "DEPENDENT:Sign", "wanted a module 'dependent' that can be imported, got .*No module named 'not_installed'"),
])  # fmt: skip
def test_every_wrong_path_is_one_clear_error(own, tmp_path, field, kind, message):
    (tmp_path / "broken.py").write_text("def (\n")
    (tmp_path / "dependent.py").write_text("import not_installed\n")
    path = kind.replace("OWN", own).replace("BROKEN", "broken").replace("DEPENDENT", "dependent")
    with pytest.raises(SpecError, match=message):
        decode(Open, {field: {"kind": path}}, imports=True)


def test_a_contract_without_a_kind_lists_what_there_is():
    with pytest.raises(SpecError, match=r"a key 'kind'.*Valid: .*KL.*, or package\.module:Name"):
        decode(Open, {"loss": {"temperature": 2}})
    with pytest.raises(SpecError, match=r"Open\.quantizer: wanted the settings of Quantizer or .*got 'Binary'"):
        decode(Open, {"quantizer": "Binary"})
