"""Synchronization of threads between steps, which is skipped if a step reads only rows written by the same thread.

Row-wise steps split rows between threads. A product does so if there are many rows; if there are few, it splits outputs, so
each thread writes some columns of all rows. A plan serves batches of any size, so both cases must be covered.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bitstill.runtime.structs import Op, Step, Sync
from bitstill.runtime.values import Plan, Shape

WRITE_OWN_ROWS = frozenset({Op.GATHER, Op.MAP, Op.NORM, Op.QUANTIZE, Op.INPUT, Op.POOL})
"""Operations in which each thread writes its own rows."""
READ_OWN_ROWS = frozenset({Op.GATHER, Op.MAP, Op.NORM})
"""Operations that read only the rows that they write; so does quantization with a range per row."""


@dataclass
class Dependencies:
    """The steps of a plan so far.

    Args:
        plan: plan of the steps.
        last_sync: last synchronized step up to each step, for few rows and for many rows.
    """

    plan: Plan
    last_sync: list[dict[bool, int]] = field(default_factory=list)

    def append(self, step: Step, inputs: tuple[int, ...], shape: Shape) -> None:
        """Set the synchronization before the next step, which computes rows of that shape."""
        number = len(self.last_sync)
        step.sync = self._sync(step, inputs, shape) if number else Sync.ALWAYS
        before = self.last_sync[-1] if number else {False: 0, True: 0}
        waits = {False: step.sync != Sync.NEVER, True: step.sync == Sync.ALWAYS}
        self.last_sync.append({many: number if waits[many] else before[many] for many in (False, True)})

    def _sync(self, step: Step, inputs: tuple[int, ...], shape: Shape) -> Sync:
        row_by_row = step.op in READ_OWN_ROWS or (step.op == Op.QUANTIZE and step.rule.rows_per_range == 1)
        if not row_by_row and not (step.op == Op.LINEAR and step.quantized):
            return Sync.ALWAYS
        before = len(self.last_sync) - 1
        if not all(self.is_own(value, before, shape, many=True) for value in inputs):
            return Sync.ALWAYS
        own_if_few = row_by_row and all(self.is_own(value, before, shape, many=False) for value in inputs)
        return Sync.NEVER if own_if_few else Sync.FEW_ROWS

    def is_own(self, value: int, reader: int, shape: Shape, *, many: bool) -> bool:
        """Whether a thread may read its rows of a value after step `reader`: it wrote them, or all have waited since.

        Args:
            value: its number.
            reader: a step's number.
            shape: of the rows that are computed from it.
            many: whether rows are many.
        """
        source = self.plan.values[value]
        if source.written < self.last_sync[reader][many]:
            return True
        if (source.shape.per, source.shape.pixels) != (shape.per, shape.pixels):
            return False
        step = self.plan.steps[source.written]
        if step.op == Op.LINEAR:
            return many and step.sync == Sync.FEW_ROWS
        return step.op in WRITE_OWN_ROWS

    def may_add(self, value: int, number: int) -> bool:
        """Whether step `number` may add a value to its result."""
        step, addend = self.plan.steps[number], self.plan.values[value]
        cases = {Sync.ALWAYS: (), Sync.NEVER: (False, True), Sync.FEW_ROWS: (True,)}[Sync(step.sync)]
        shape = self.plan.values[step.output].shape
        return addend.written < number and all(self.is_own(value, number, shape, many=many) for many in cases)
