"""A single linear layer of an artifact in the C library, for use in other networks."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import Archive
from bitstill.runtime import structs as structures
from bitstill.runtime.held import Held
from bitstill.runtime.input_rules import rule_of
from bitstill.runtime.pack_matrix import matrix
from bitstill.runtime.structs import EpilogueKind, Op, aligned

Array = npt.NDArray[Any]


class Linear:
    """x (rows, inputs) -> (rows, outputs): inputs quantized as trained, multiplied with packed weights, plus the bias.

    Args:
        archive: the artifact.
        layer: name of a packed layer of kind "Linear".
        library: the C library.
    """

    def __init__(self, archive: Archive, layer: str, library: ctypes.CDLL) -> None:
        self.library, self.rule = library, archive.layers[layer].input
        self._tier = library.bs_tier_in_use()
        self.weight = matrix(archive, layer, library, self._tier)
        self.inputs, self.outputs = self.weight.struct.inputs, self.weight.struct.outputs
        self._held = Held()
        multiply = structures.Step(op=Op.LINEAR, matrix=ctypes.pointer(self.weight.struct), output=0, input=1)
        bias = archive.tensors.get(f"{layer}.bias")
        if bias is not None:
            multiply.epilogue[0] = structures.Epilogue(kind=EpilogueKind.AFFINE, shift=self._held.channels(bias))
        self._steps = [multiply]
        self._widths = [self.outputs, self.inputs]
        if self.rule is not None:
            self._quantize(rule_of(archive, f"{layer}.input_transform", self.rule), multiply)

    def _quantize(self, rule: structures.Rule, multiply: structures.Step) -> None:
        """Steps before the product: quantize to codes, and dequantize if codes cannot be multiplied."""
        self._steps.insert(0, structures.Step(op=Op.QUANTIZE, input=1, output=2, rule=rule))
        self._widths.append(self.weight.struct.padded)
        multiply.input, multiply.quantized = 2, 1
        if not self.weight.by_integers:
            self._steps.insert(1, structures.Step(op=Op.MAP, input=2, output=3, quantized=1))
            self._widths.append(self.inputs)
            multiply.input, multiply.quantized = 3, 0

    def __call__(self, x: Array, *, together: int = 1, threads: int = 1) -> Array:
        """Run the layer.

        Args:
            x: float32 (rows, inputs), contiguous.
            together: rows that share a range, if inputs are quantized per sample.
            threads: largest number of threads.
        """
        rows = len(x)
        steps = (structures.Step * len(self._steps))(*self._steps)
        if self.rule is not None:
            steps[0].rule.rows_per_range = {"token": 1, "sample": together, "tensor": 0}[self.rule["per"]]
        result = np.empty((rows, self.outputs), np.float32)
        if rows == 0:
            return result
        # The arena is everything above the lowest address: values lie where they are.
        between = [np.empty(rows * (4 * width + 12) + 256, np.uint8) for width in self._widths[2:]]
        addresses = np.array([result.ctypes.data, x.ctypes.data, *(aligned(each.ctypes.data) for each in between)], np.int64)
        arena = int(addresses.min())
        offsets, counts = addresses - arena, np.full(len(addresses), rows, np.int64)
        widths = np.array(self._widths, np.int64)
        each = self.library.bs_scratch_bytes(steps, len(steps), 0)
        scratch = np.empty(each * threads + 64, np.uint8)
        run = structures.Run(
            steps=steps,
            n_steps=len(steps),
            arena=arena,
            offset=offsets.ctypes.data,
            rows=counts.ctypes.data,
            width=widths.ctypes.data,
            scratch=aligned(scratch.ctypes.data),
            scratch_bytes=each,
            tier=self._tier,
        )
        self.library.bs_execute(ctypes.byref(run), threads)
        return result
