"""ONNX Runtime on the CPU. The only file that imports it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from bitstill.errors import need_package

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Array]


def open_session(source: Path | bytes, threads: int = 0) -> Run:
    """Load a model as a function from inputs by name to the first output; unknown inputs are ignored.

    Args:
        source: a file, or its contents.
        threads: threads per operation; 0 uses all cores.

    Raises:
        MissingPackageError: without onnxruntime.
    """
    runtime = need_package("onnxruntime", extra="all", purpose="running ONNX files")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    model = source if isinstance(source, bytes) else str(source)
    session = runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(values: Mapping[str, Array]) -> Array:
        result: Array = session.run(None, {name: values[name] for name in names})[0]
        return result

    return run
