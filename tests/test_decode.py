"""Settings to plain values and back, and every way they can be wrong."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bitstill.decode import decode, encode
from bitstill.errors import SpecError
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
