"""The builder of a plan, shared by all operations.

An elementwise operation becomes an *epilogue* of the step that computes its input, if nothing else reads that. Quantized inputs
are computed once for all layers that quantize a value in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from bitstill.program.operations import Program, Transform
from bitstill.program.scopes import check_scope
from bitstill.runtime.dependencies import Dependencies
from bitstill.runtime.input_rules import rule_of
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.structs import EPILOGUES, Epilogue, EpilogueKind, Op, Rule, Step
from bitstill.runtime.values import Plan, Shape, Value

NO_EPILOGUE = (Op.INPUT, Op.FLATTEN, Op.ATTEND, Op.FIRST_TOKEN)
OPERANDS = ("input", "input_2", "input_3", "input_4")


@dataclass
class Builder:
    """Builder of a plan.

    Args:
        layers: weights of the layers.
        readers: operations of the program that read a value, by its name.
        plan: the plan so far.
        numbers: numbers of the plan's values, by their names in the program.
    """

    layers: LayerWeights
    readers: dict[str, int]
    plan: Plan = field(default_factory=Plan)
    numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._dependencies = Dependencies(self.plan)
        self._codes: dict[tuple[int, Shape, bytes], int] = {}

    @classmethod
    def of(cls, program: Program, layers: LayerWeights) -> Builder:
        """Start an empty plan for a program."""
        readers: dict[str, int] = {}
        for step in program.steps:
            for name in step.inputs:
                readers[name] = readers.get(name, 0) + 1
        return cls(layers, readers)

    def shape(self, name: str) -> Shape:
        """Shape of a value."""
        return self.plan.values[self.numbers[name]].shape

    def writer(self, number: int) -> Step:
        """Step that computes a value."""
        return self.plan.steps[self.plan.values[number].written]

    def emit(self, step: Step, inputs: tuple[int, ...], shape: Shape, name: str, *, codes: bool = False) -> int:
        """Append a step that computes a value of that name and shape; returns the value's number."""
        place, plan = len(self.plan.steps), self.plan
        readers = self.readers.get(name, 1)
        plan.values.append(Value(shape, codes, written=place, last_read=place, readers=readers))
        number = self.numbers[name] = step.output = len(plan.values) - 1
        for operand, value in zip(OPERANDS, inputs, strict=False):
            setattr(step, operand, value)
            plan.values[value].last_read = place
        self._dependencies.append(step, inputs, shape)
        plan.steps.append(step)
        return number

    def elementwise(self, output: str, epilogue: Epilogue, name: str, addend: str | None = None) -> None:
        """Apply an operation to a value, or add another value: in the step that computes either, or else in a new one."""
        if self._fuse(output, epilogue, name, addend) or (addend and self._fuse(output, epilogue, addend, name)):
            return
        names = (name,) if addend is None else (name, addend)
        number = self.emit(Step(op=Op.MAP), tuple(self.numbers[each] for each in names), self.shape(name), output)
        if addend is not None:
            epilogue.value = self.numbers[addend]
        self.writer(number).epilogue[0] = epilogue

    def _fuse(self, output: str, epilogue: Epilogue, name: str, addend: str | None) -> bool:
        """Whether the step that computes `name` can apply the operation, because nothing reads the unmodified result."""
        number = self.numbers[name]
        value, step = self.plan.values[number], self.writer(number)
        used = sum(each.kind != EpilogueKind.END for each in step.epilogue)
        if value.readers > 1 or value.codes or used >= EPILOGUES - 1 or step.op in NO_EPILOGUE:
            return False
        if addend is not None:
            other = self.numbers[addend]
            if not self._dependencies.may_add(other, value.written):
                return False
            self.plan.values[other].last_read = max(self.plan.values[other].last_read, value.written)
            epilogue.value = other
        step.epilogue[used] = epilogue
        value.readers = self.readers.get(output, 1)
        self.numbers[output] = number
        return True

    def codes(self, transform: Transform, number: int, rows: Shape) -> int:
        """The number of a value's codes, in rows of that shape."""
        rule = self.quantizer(transform, rows)
        key = (number, rows, bytes(rule))
        if key not in self._codes:
            name = f"codes {len(self._codes)}"
            self._codes[key] = self.emit(Step(op=Op.QUANTIZE, rule=rule), (number,), rows, name, codes=True)
        return self._codes[key]

    def quantizer(self, transform: Transform, rows: Shape) -> Rule:
        """The rule by which rows of that shape are quantized.

        Raises:
            ArtifactError: ranges of a scope that programs do not support.
        """
        per = transform.rule["per"]
        check_scope(per, transform.name, tokens=rows.per == "token", lines=rows.per == "sample" and rows.pixels > 1)
        rule = rule_of(self.layers.archive, transform.name, transform.rule)
        rule.rows_per_range = {"tensor": 0, "token": 1, "sample": rows.pixels}[per]
        self.plan.padding_counts |= per == "tensor" and rule.needs_range and rows.per == "token"
        return rule

    def quantized_input(self, layer: str, name: str, rows: Shape, *, by_integers: bool) -> tuple[int, bool]:
        """Number of a layer's input, and whether it holds codes; otherwise it holds dequantized floats.

        Args:
            layer: name of the layer.
            name: name of the value that it reads.
            rows: shape of its rows of codes.
            by_integers: whether its weight can be multiplied with codes.
        """
        rule, number = self.layers.rule(layer), self.numbers[name]
        if rule is None:
            return number, False
        number = self.codes(Transform(f"{layer}.input_transform", rule), number, rows)
        if by_integers:
            return number, True
        shape = replace(rows, width=self.shape(name).width)
        return self.emit(Step(op=Op.MAP, quantized=1), (number,), shape, f"{layer} floats"), False
