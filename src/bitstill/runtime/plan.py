"""From a program to the C library's steps: layers with what follows them, values with their places in memory.

Elementwise operations become *tails* of the step whose result they change, where nothing else reads that result. A step that
reads only what the same thread has made needs no waiting for the others; products are made so where rows are many. Values whose
last reader has run give their memory to later ones.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import DAMAGED, Archive
from bitstill.errors import ArtifactError
from bitstill.program import operations as ops
from bitstill.program.operations import Program, Transform
from bitstill.program.scopes import check_scope
from bitstill.runtime import packing as weights
from bitstill.runtime import structs as structures
from bitstill.runtime.structs import ALIGN, FUNCTIONS, TAILS, Op, TailKind, Waiting, rounded

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shape:
    """What a value has: `pixels` rows for each token, text or sample, and so many numbers in a row.

    Args:
        per: what there are as many of as the batch has: "token", "text" or "sample".
        width: numbers in a row.
        height, across: of a picture; 1 elsewhere.
    """

    per: str
    width: int
    height: int = 1
    across: int = 1

    @property
    def pixels(self) -> int:
        """Rows for each of them."""
        return self.height * self.across


@dataclass
class Value:
    """A value's shape, and whether it holds codes.

    Args:
        made, read: the steps that make it and that read it last.
        readers: operations of the program that read it.
    """

    shape: Shape
    codes: bool = False
    made: int = 0
    read: int = 0
    readers: int = 0

    @property
    def bytes(self) -> int:
        """For each token, text or sample, rounded up."""
        size = self.shape.pixels * (self.shape.width + 12 if self.codes else 4 * self.shape.width)
        return rounded(size) + 4 * ALIGN


@dataclass
class Plan:
    """Steps for the C library, and what they need.

    Args:
        steps: in order.
        values: made on the way; the last step makes the result.
        offsets: of the values, in bytes for each token or sample.
        bytes: of all values, for each token or sample.
        indices: whose rows are looked up, by place in the list of indices.
        padding_counts: whether results depend on padded tokens too.
    """

    steps: list[structures.Step] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    bytes: int = 0
    indices: list[ops.Embedding | ops.Positions] = field(default_factory=list)
    padding_counts: bool = False


def expect(what: str, wanted: object, given: object, where: str) -> None:
    """Refuse what the steps, which trust their numbers, would read beyond.

    Raises:
        ArtifactError: what was given is not what was wanted.
    """
    if wanted != given:
        raise ArtifactError(what, given=str(given), where=where, fix=DAMAGED)


class Layers:
    """Weights of an artifact in the C library's form, made once and shared by plans for several sizes of pictures."""

    def __init__(self, archive: Archive, library: ctypes.CDLL) -> None:
        self.archive, self.library = archive, library
        self.tier: int = library.bs_tier_in_use()
        self._matrices: dict[str, weights.Matrix] = {}
        self._tables: dict[str, weights.Table] = {}
        self._numbers = weights.Held()
        self._addresses: dict[bytes, int] = {}

    def release(self, *, everything: bool = False) -> None:
        """Let go of the file's bytes that are held in another form by now; of all, where nothing more will be planned."""
        if everything:
            self.archive = replace(self.archive, tensors={})
            return
        made = (self.archive.layers[layer] for layer in (*self._matrices, *self._tables) if layer in self.archive.layers)
        gone = {name for layer in made for name in layer.tensors()}
        kept = {name: tensor for name, tensor in self.archive.tensors.items() if name not in gone}
        self.archive = replace(self.archive, tensors=kept)

    def rule(self, layer: str) -> Mapping[str, Any] | None:
        """How the layer quantizes its input."""
        record = self.archive.layers.get(layer)
        return None if record is None else record.input

    def matrix(self, layer: str) -> weights.Matrix:
        """Its weight, for products."""
        if layer not in self._matrices:
            self._matrices[layer] = weights.matrix(self.archive, layer, self.library, self.tier)
        return self._matrices[layer]

    def table(self, layer: str) -> weights.Table:
        """Its weight, to look up rows."""
        if layer not in self._tables:
            self._tables[layer] = weights.table(self.archive, layer)
        return self._tables[layer]

    def leftover(self, name: str, size: int) -> Array | None:
        """A tensor that was not compressed, of so many numbers, in float32 (size,); None if there is none."""
        found = self.archive.tensors.get(name)
        if found is not None:
            expect(f"{size} numbers", size, found.size, name)
        return None if found is None else found.astype(np.float32).reshape(size)

    def needed(self, name: str, size: int) -> Array:
        """The same, of one that must be there."""
        found = self.leftover(name, size)
        if found is None:
            raise ArtifactError(f"a tensor {name}", given="none", where=name, fix=DAMAGED)
        return found

    def numbers(self, values: Array) -> int:
        """Address of one number for each channel, with room up to a whole panel behind; the same for the same numbers."""
        key = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
        if key not in self._addresses:
            self._addresses[key] = self._numbers.channels(values)
        return self._addresses[key]

    @property
    def bytes(self) -> int:
        """That all weights take in memory."""
        held = [*(each.held for each in self._matrices.values()), *(each.held for each in self._tables.values()), self._numbers]
        return sum(each.bytes for each in held)


def plan(program: Program, layers: Layers, sizes: Mapping[str, int]) -> Plan:
    """The steps of a program.

    Args:
        program: of an artifact.
        layers: its weights.
        sizes: of the inputs' dimensions that the program leaves open: "height" and "width", or "frames" and "bands".

    Raises:
        ArtifactError: inputs of a layer are quantized over what has no place in a program.
    """
    planner = _Planner(program, layers, sizes)
    for step in program.steps:
        planner.add(step)
    return planner.finished()


class _Planner:
    def __init__(self, program: Program, layers: Layers, sizes: Mapping[str, int]) -> None:
        self.program, self.layers, self.plan = program, layers, Plan()
        self.numbers: dict[str, int] = {}
        self.counts: dict[str, int] = {}
        for step in program.steps:
            for name in step.inputs:
                self.counts[name] = self.counts.get(name, 0) + 1
        self.coded: dict[tuple[Any, ...], int] = {}
        self.waits: list[tuple[int, int]] = []
        """After each step: the last before which all threads have waited for each other, where rows are few, and where many."""
        for place, given in enumerate(program.inputs):
            if given.dtype == "float32":
                found = [size if isinstance(size, int) else sizes[size] for size in given.shape[1:]]
                channels, height, across = (*found, 1, 1)[:3]
                shape = Shape("sample", channels, height, across)
                self._emit(Op.INPUT, (), shape, given.name, index=place, height=height, across=across, channels=channels)
        self.make: dict[type[Any], Callable[..., None]] = {
            ops.Embedding: self._gather, ops.Positions: self._gather, ops.Linear: self._linear, ops.LayerNorm: self._norm,
            ops.Activation: self._activation, ops.Add: self._add, ops.Quantize: self._quantize, ops.Attention: self._attention,
            ops.FirstToken: self._first, ops.ByText: self._by_text, ops.Convolution: self._convolution,
            ops.BatchNorm: self._batch_norm,
            ops.MaxPool: self._pool, ops.AveragePool: self._pool, ops.Mean: self._mean, ops.Flatten: self._flatten,
        }  # fmt: skip

    def add(self, step: ops.Step) -> None:
        """Append what one operation needs."""
        self.make[type(step.operation)](step.operation, step.output, *step.inputs)

    def finished(self) -> Plan:
        """Find places for all values."""
        last = self.plan.values[self.plan.steps[-1].output]
        last.read = len(self.plan.steps)
        taken: list[tuple[int, int, int]] = []  # until which step, from, to
        for value in self.plan.values:
            taken = [each for each in taken if each[0] > value.made]
            at = 0
            for _, begin, end in sorted(taken, key=lambda each: each[1]):
                if at + value.bytes <= begin:
                    break
                at = max(at, end)
            # Others may still read it until all have waited for each other once more.
            later = range(value.read + 1, len(self.plan.steps))
            until = next((n for n in later if self.plan.steps[n].by_rows == Waiting.ALWAYS), 1 << 30)
            taken.append((until, at, at + value.bytes))
            self.plan.offsets.append(at)
            self.plan.bytes = max(self.plan.bytes, at + value.bytes)
        return self.plan

    # Steps ---------------------------------------------------------------------------------------------------------------

    def _emit(self, op: Op, inputs: tuple[int, ...], shape: Shape, name: str, *, codes: bool = False, **settings: Any) -> int:
        """Append a step that makes a value; returns the value's number."""
        here, plan = len(self.plan.steps), self.plan
        plan.values.append(Value(shape, codes, made=here, read=here, readers=self.counts.get(name, 1)))
        number = self.numbers[name] = len(plan.values) - 1
        step = structures.Step(op=op, output=number, **settings)
        for place, value in zip(("input", "input_2", "input_3", "input_4"), inputs, strict=False):
            setattr(step, place, value)
        for value in inputs:
            plan.values[value].read = here
        row_by_row = op in (Op.GATHER, Op.MAP, Op.NORM) or (op == Op.QUANTIZE and step.rule.span == 1)
        few = many = False  # whether it reads only what its thread has made
        if here and (row_by_row or (op == Op.LINEAR and step.coded)):
            few, many = (all(self._own(value, here - 1, shape, many=each) for value in inputs) for each in (False, True))
        step.by_rows = Waiting.ALWAYS if not many else Waiting.NEVER if few and row_by_row else Waiting.UNLESS_ROWS_ARE_MANY
        plan.steps.append(step)
        waited = self.waits[-1] if here else (0, 0)
        self.waits.append((waited[0] if step.by_rows == Waiting.NEVER else here, waited[1] if many else here))
        return number

    def _own(self, value: int, reader: int, rows: Shape, *, many: bool) -> bool:
        """Whether each thread has made its own rows of a value, or all have waited since it was made.

        Args:
            value: its number.
            reader: the step after which it is read.
            rows: what is made of it.
            many: whether rows are.
        """
        made, shape = self.plan.values[value].made, self.plan.values[value].shape
        if made < self.waits[reader][many]:
            return True
        if (shape.per, shape.pixels) != (rows.per, rows.pixels):
            return False
        step = self.plan.steps[made]
        if step.op == Op.LINEAR:
            return many and step.by_rows == Waiting.UNLESS_ROWS_ARE_MANY
        return step.op in (Op.GATHER, Op.MAP, Op.NORM, Op.QUANTIZE, Op.INPUT, Op.POOL)

    def _shape(self, name: str) -> Shape:
        return self.plan.values[self.numbers[name]].shape

    def _tail(self, name: str, output: str, kind: TailKind, other: str | None = None, **settings: Any) -> bool:
        """Let the step that makes `name` do something more, if nobody else reads its result as it was."""
        number = self.numbers[name]
        value, step = self.plan.values[number], self.plan.steps[self.plan.values[number].made]
        done = sum(tail.kind != TailKind.END for tail in step.tail)
        if value.readers > 1 or value.codes or done >= TAILS - 1 or step.op in (Op.INPUT, Op.FLATTEN, Op.ATTEND, Op.TAKE):
            return False
        if other is not None:
            added = self.plan.values[self.numbers[other]]
            sizes = {Waiting.ALWAYS: (), Waiting.NEVER: (False, True), Waiting.UNLESS_ROWS_ARE_MANY: (True,)}[step.by_rows]
            if added.made >= value.made or not all(
                self._own(self.numbers[other], value.made, value.shape, many=many) for many in sizes
            ):
                return False
            added.read = max(added.read, value.made)
            settings["value"] = self.numbers[other]
        step.tail[done] = structures.Tail(kind=kind, **settings)
        value.readers = self.counts.get(output, 1)
        self.numbers[output] = number
        return True

    def _elementwise(self, name: str, output: str, kind: TailKind, other: str | None = None, **settings: Any) -> None:
        if self._tail(name, output, kind, other, **settings):
            return
        if other is not None and self._tail(other, output, kind, name, **settings):
            return
        inputs = (self.numbers[name],) if other is None else (self.numbers[name], self.numbers[other])
        number = self._emit(Op.MAP, inputs, self._shape(name), output)
        if other is not None:
            settings["value"] = self.numbers[other]
        self.plan.steps[self.plan.values[number].made].tail[0] = structures.Tail(kind=kind, **settings)

    # Operations ------------------------------------------------------------------------------------------------------------

    def _gather(self, operation: ops.Embedding | ops.Positions, output: str, _ids: str) -> None:
        table = self.layers.table(operation.layer)
        if self.plan.indices:
            width = self.plan.values[self.plan.steps[0].output].shape.width
            expect("tables of one width", width, table.struct.length, operation.layer)
        self.plan.indices.append(operation)
        shape, index = Shape("token", table.struct.length), len(self.plan.indices) - 1
        self._emit(Op.GATHER, (), shape, output, table=ctypes.pointer(table.struct), index=index)

    def _norm(self, operation: ops.LayerNorm, output: str, name: str) -> None:
        shape = self._shape(name)
        by, plus = (self.layers.leftover(f"{operation.layer}.{part}", shape.width) for part in ("weight", "bias"))
        by = np.ones(shape.width, np.float32) if by is None else by
        plus = np.zeros(shape.width, np.float32) if plus is None else plus
        numbers: dict[str, Any] = {"by": self.layers.numbers(by), "plus": self.layers.numbers(plus)}
        self._emit(Op.NORM, (self.numbers[name],), shape, output, epsilon=operation.epsilon, **numbers)

    def _activation(self, operation: ops.Activation, output: str, name: str) -> None:
        self._elementwise(name, output, TailKind.FUNCTION, function=FUNCTIONS[operation.function])

    def _add(self, _operation: ops.Add, output: str, name: str, other: str) -> None:
        expect("two values of one shape to add", self._shape(name), self._shape(other), output)
        later = max(name, other, key=lambda each: self.plan.values[self.numbers[each]].made)
        self._elementwise(later, output, TailKind.ADD, other if later == name else name)

    def _batch_norm(self, operation: ops.BatchNorm, output: str, name: str) -> None:
        width = self._shape(name).width
        by, plus = (self.layers.leftover(f"{operation.layer}.{part}", width) for part in ("weight", "bias"))
        mean, variance = (self.layers.needed(f"{operation.layer}.running_{part}", width) for part in ("mean", "var"))
        scale = np.float32(1) / np.sqrt(variance + np.float32(operation.epsilon))
        scale = scale if by is None else scale * by
        shift = -mean * scale if plus is None else plus - mean * scale
        numbers: dict[str, Any] = {"by": self.layers.numbers(scale), "plus": self.layers.numbers(shift)}
        self._elementwise(name, output, TailKind.AFFINE, **numbers)

    def _attention(self, operation: ops.Attention, output: str, *names: str) -> None:
        inputs, width = tuple(self.numbers[name] for name in names), operation.heads * operation.head_width
        for shape in map(self._shape, names):
            expect("as many numbers as heads have", width, shape.pixels * shape.width, output)
        settings: dict[str, Any] = {"heads": operation.heads, "head_width": operation.head_width}
        if operation.probabilities is not None:
            rule = self._rule(operation.probabilities, Shape("token", width))
            settings |= {"coded": True, "rule": rule}
            if not rule.span and rule.moves:
                ranges = Shape("text", 2 * operation.heads)
                inputs = (*inputs, self._emit(Op.ATTEND_RANGES, inputs, ranges, f"{output} ranges", **settings))
        self._emit(Op.ATTEND, inputs, Shape("token", width), output, **settings)

    def _quantize(self, operation: ops.Quantize, output: str, name: str) -> None:
        before = self._shape(name)
        rows = Shape(before.per, operation.width, before.width // operation.width)
        expect("whole rows", before.width, rows.width * rows.height, operation.transform.name)
        codes = self._codes(operation.transform, self.numbers[name], rows)
        self._emit(Op.MAP, (codes,), rows, output, coded=1)

    def _first(self, _operation: ops.FirstToken, output: str, name: str) -> None:
        self._emit(Op.TAKE, (self.numbers[name],), Shape("text", self._shape(name).width), output)

    def _by_text(self, _operation: ops.ByText, output: str, name: str) -> None:
        self.numbers[output] = self.numbers[name]  # rows are in that order already

    def _linear(self, operation: ops.Linear, output: str, name: str) -> None:
        weight, before = self.layers.matrix(operation.layer), self._shape(name)
        expect(
            "rows, and as many inputs as there are", (1, before.width), (before.pixels, weight.struct.inputs), operation.layer
        )
        shape = Shape(before.per, weight.struct.outputs)
        self._product(Op.LINEAR, operation.layer, weight, shape, output, name)

    def _convolution(self, operation: ops.Convolution, output: str, name: str) -> None:
        weight, before = self.layers.matrix(operation.layer), self._shape(name)
        record = self.layers.archive.layers.get(operation.layer)
        kernel = self.layers.archive.tensors[f"{operation.layer}.weight"].shape if record is None else record.shape
        wanted = (4, before.width)
        expect("a kernel of four dimensions for these channels", wanted, (len(kernel), *kernel[1:2]), operation.layer)
        rows, columns = kernel[2:]
        around = 2 * operation.padding
        high = (before.height + around - rows) // operation.stride + 1
        wide = (before.across + around - columns) // operation.stride + 1
        if min(high, wide) < 1:
            given, fix = f"{before.height} x {before.across}", "Give a larger picture."
            raise ArtifactError(f"at least {rows} x {columns} with padding", given=given, where=operation.layer, fix=fix)
        sizes: dict[str, Any] = {
            "height": before.height, "across": before.across, "channels": before.width, "kernel_y": rows, "kernel_x": columns,
            "stride": operation.stride, "padding": operation.padding, "out_height": high, "out_across": wide,
        }  # fmt: skip
        shape = Shape(before.per, weight.struct.outputs, high, wide)
        self._product(Op.CONVOLVE, operation.layer, weight, shape, output, name, **sizes)

    def _product(self, op: Op, layer: str, weight: weights.Matrix, shape: Shape, output: str, name: str, **sizes: Any) -> None:
        rule, number = self.layers.rule(layer), self.numbers[name]
        if rule is not None:
            before = self._shape(name)
            rows = replace(before, width=rounded(before.width)) if op == Op.LINEAR else before
            number = self._codes(Transform(f"{layer}.input_transform", rule), number, rows)
            if not weight.by_integers:
                number = self._emit(Op.MAP, (number,), self._shape(name), f"{layer} floats", coded=1)
        coded = rule is not None and weight.by_integers
        made = self._emit(op, (number,), shape, output, matrix=ctypes.pointer(weight.struct), coded=coded, **sizes)
        bias = self.layers.leftover(f"{layer}.bias", shape.width)
        if bias is not None:
            step = self.plan.steps[self.plan.values[made].made]
            step.tail[0] = structures.Tail(kind=TailKind.AFFINE, plus=self.layers.numbers(bias))

    def _codes(self, transform: Transform, number: int, rows: Shape) -> int:
        """The value as codes, in rows of that shape: made once for all layers that quantize it in one way."""
        settings = self._rule(transform, rows)
        key = (number, rows, bytes(settings))
        if key not in self.coded:
            self.coded[key] = self._emit(Op.QUANTIZE, (number,), rows, f"codes {len(self.coded)}", codes=True, rule=settings)
        return self.coded[key]

    def _rule(self, transform: Transform, rows: Shape) -> structures.Rule:
        """How rows of that shape are quantized."""
        per = transform.rule["per"]
        check_scope(per, transform.name, tokens=rows.per == "token", lines=rows.per == "sample" and rows.pixels > 1)
        settings = weights.rule_of(self.layers.archive, transform.name, transform.rule)
        settings.span = {"tensor": 0, "token": 1, "sample": rows.pixels}[per]
        self.plan.padding_counts |= per == "tensor" and settings.moves and rows.per == "token"
        return settings

    # Pictures ----------------------------------------------------------------------------------------------------------------

    def _pool(self, operation: ops.MaxPool | ops.AveragePool, output: str, name: str) -> None:
        before, (rows, columns) = self._shape(name), operation.window
        self._pooled(name, output, before, rows, columns, mean=isinstance(operation, ops.AveragePool))

    def _mean(self, _operation: ops.Mean, output: str, name: str) -> None:
        before = self._shape(name)
        self._pooled(name, output, before, before.height, before.across, mean=True)

    def _pooled(self, name: str, output: str, before: Shape, rows: int, columns: int, *, mean: bool) -> None:
        high, wide = before.height // rows, before.across // columns
        if min(high, wide) < 1:
            given, fix = f"{before.height} x {before.across}", "Give a larger picture."
            raise ArtifactError(f"at least {rows} x {columns} to pool", given=given, where="input", fix=fix)
        sizes: dict[str, Any] = {
            "height": before.height, "across": before.across, "channels": before.width, "kernel_y": rows, "kernel_x": columns,
            "out_height": high, "out_across": wide, "mean": mean,
        }  # fmt: skip
        self._emit(Op.POOL, (self.numbers[name],), Shape(before.per, before.width, high, wide), output, **sizes)

    def _flatten(self, _operation: ops.Flatten, output: str, name: str) -> None:
        before = self._shape(name)
        sizes: dict[str, Any] = {"height": before.height, "across": before.across, "channels": before.width}
        shape = Shape(before.per, before.width * before.pixels)
        self._emit(Op.FLATTEN, (self.numbers[name],), shape, output, **sizes)
