"""Writing an ONNX graph node by node. The only file that imports onnx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.errors import SpecError, need_package

Array = npt.NDArray[Any]
OPSET = 21
"""Oldest sufficient operator set."""
MIDDLE = 128
"""Zero point of signed 8-bit codes stored unsigned."""


class Graph:
    """Builder of nodes and constants. Names are short, since they are a large part of the file of a small network."""

    def __init__(self, opset: int = OPSET) -> None:
        self._onnx = need_package("onnx", extra="all", purpose="writing ONNX files")
        newest = self._onnx.defs.onnx_opset_version()
        if not OPSET <= opset <= newest:
            fix = "Older sets lack shifts of bits and sums over axes that are inputs; newer ones need a newer onnx."
            raise SpecError(f"an opset from {OPSET} to {newest}", given=str(opset), where="opset", fix=fix)
        self.opset = opset
        self._nodes: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._initializers: list[Any] = []
        self._made: dict[tuple[Any, ...], str] = {}
        self._names = 0

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def once(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Output of a node that is added on first use."""
        key = (operator, inputs, tuple(sorted(attributes.items())))
        if key not in self._made:
            self._made[key] = self.node(operator, *inputs, **attributes)
        return self._made[key]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Add a node with several outputs; returns their names."""
        names = tuple(self._name() for _ in range(outputs))
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), list(names), **attributes))
        return names

    def constant(self, value: Array | Sequence[int] | int | float, dtype: Any = None) -> str:
        """Name of a constant, stored once; plain integers are int64, others float32."""
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value, order="C")
        else:
            array = np.asarray(value, dtype or (np.float32 if isinstance(value, float) else np.int64))
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._name()
            self._initializers.append(self._onnx.numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def named_constant(self, name: str, value: Array) -> str:
        """Add a constant under a fixed name."""
        self._initializers.append(self._onnx.numpy_helper.from_array(value, name))
        return name

    def cast(self, value: str, dtype: str) -> str:
        """Cast a value to another dtype ("float32", "int32" and so on)."""
        kind = self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return self.node("Cast", value, to=kind)

    def model(
        self, inputs: Sequence[tuple[str, str, Sequence[int | str]]], output: tuple[str, str, Sequence[int | str]], about: str
    ) -> bytes:
        """The finished file, checked.

        Args:
            inputs: name, dtype and shape of each; a string in a shape is a free dimension.
            output: the same of the result, under its name inside the graph.
            about: who made it.
        """
        helper = self._onnx.helper

        def info(name: str, dtype: str, shape: Sequence[int | str]) -> Any:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))

        graph = helper.make_graph(self._nodes, "bitstill", [info(*i) for i in inputs], [info(*output)], self._initializers)
        domains = sorted({node.domain for node in self._nodes} - {""})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        version = helper.find_min_ir_version_for(opsets[:1])
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version, producer_name=about)
        self._onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data

    def named(self, value: str, name: str) -> None:
        """Rename a value for users of the file."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [value], [name]))

    def _name(self) -> str:
        self._names += 1
        return _short(self._names)


def _short(number: int) -> str:
    digits = "abcdefghijklmnopqrstuvwxyz"
    name = ""
    while number:
        number, digit = divmod(number - 1, len(digits))
        name = digits[digit] + name
    return "_" + name
