"""No thread reads what another may still be writing, or overwrites what another may still read: each plan, step by step."""

from __future__ import annotations

import pytest

import bitstill
from bitstill.program.from_artifact import program_of
from bitstill.program.samples import FREE
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.library import library
from bitstill.runtime.plan import plan
from bitstill.runtime.structs import EpilogueKind, Op, Sync
from tests.exporters.test_networks import BYTES, FAMILIES, NETWORKS, encoder_artifact, network_artifact
from tests.runtime.test_embeddings import bare_artifact
from tests.runtime.test_networks import PER_TENSOR

pytestmark = pytest.mark.skipif(library() is None, reason="installed without a C compiler: there are no plans")
ROW_BY_ROW = (Op.GATHER, Op.MAP, Op.NORM, Op.QUANTIZE, Op.INPUT, Op.POOL)


def reads(step):
    ranged = 1 if step.quantized and step.rule.needs_range and not step.rule.rows_per_range else 0
    count = {Op.GATHER: 0, Op.INPUT: 0, Op.ATTEND: 3 + ranged, Op.ATTEND_RANGES: 3}.get(step.op, 1)
    added = [epilogue.value for epilogue in step.epilogue if epilogue.kind == EpilogueKind.ADD]
    return [step.input, step.input_2, step.input_3, step.input_4][:count], added


def check(made, many):
    """Check every step in order, for few or many rows. Returns the number of values read."""
    uses = [[value.written] for value in made.values]
    for place, step in enumerate(made.steps):
        for value in (*reads(step)[0], *reads(step)[1]):
            uses[value].append(place)
    uses[made.steps[-1].output].append(len(made.steps))  # read by the caller
    shapes = [(value.shape.per, value.shape.pixels) for value in made.values]
    by_rows = [step.op in ROW_BY_ROW or (many and step.sync == Sync.FEW_ROWS) for step in made.steps]
    last = 0  # the last step before which all threads synchronize
    for place, step in enumerate(made.steps):
        if step.sync == Sync.ALWAYS or (step.sync == Sync.FEW_ROWS and not many):
            last = place
        inputs, added = reads(step)
        across = step.op in (Op.ATTEND, Op.ATTEND_RANGES, Op.FIRST_TOKEN, Op.POOL, Op.FLATTEN, Op.CONVOLVE) or (
            step.op == Op.QUANTIZE and step.rule.rows_per_range != 1
        )
        for value in (*inputs, *added):
            writer, same_rows = made.values[value].written, shapes[value] == shapes[step.output]
            own = by_rows[writer] and by_rows[place] and same_rows and not (across and value in inputs)
            assert writer < last or own, f"step {place} reads value {value} too early"
        begin, end = made.offsets[step.output], made.offsets[step.output] + made.values[step.output].bytes
        for other, value in enumerate(made.values):
            at = made.offsets[other]
            if value.written < place and at < end and begin < at + value.bytes:
                assert all(use < last for use in uses[other]), f"step {place} overwrites value {other}"
    return sum(len(each) > 1 for each in uses)


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("input", [None, BYTES, PER_TENSOR], ids=["float", "tokens", "tensor"])
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("make", [encoder_artifact, bare_artifact])
def test_encoders(make, kind, input, many, tmp_path):
    make(kind, tmp_path / "a", input)
    archive = bitstill.read(tmp_path / "a")
    made = plan(program_of(archive), LayerWeights(archive, library()), {})
    assert check(made, many) > 10
    if input is BYTES:
        waiting = [step.op for step in made.steps if step.sync == Sync.ALWAYS]
        layers = 3
        few = waiting.count(Op.LINEAR) <= 3 and len(waiting) <= 2 * layers + 9
        assert waiting.count(Op.ATTEND) == layers and few, "twice in a layer, and around the head"


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_images(name, bits, many, tmp_path):
    network_artifact(name, bits, tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    program = program_of(archive)
    sizes = {size: FREE[size] for size in program.inputs[0].shape[1:] if isinstance(size, str)}
    assert check(plan(program, LayerWeights(archive, library()), sizes), many) > 1


def test_the_check_finds_what_is_wrong(tmp_path):
    encoder_artifact("bert", tmp_path / "a")
    archive = bitstill.read(tmp_path / "a")
    made = plan(program_of(archive), LayerWeights(archive, library()), {})
    attend = next(step for step in made.steps if step.op == Op.ATTEND)
    attend.sync = Sync.NEVER
    with pytest.raises(AssertionError, match="too early"):
        check(made, many=True)
    attend.sync = Sync.ALWAYS
    check(made, many=True)
    norm = next(number for number, step in enumerate(made.steps) if step.op == Op.NORM)
    made.offsets[norm + 2] = made.offsets[norm]  # read by later additions
    with pytest.raises(AssertionError, match="overwrites"):
        check(made, many=True)
