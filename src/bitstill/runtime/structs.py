"""Structures of the C library, field by field as in `native/bitstill.h`."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from enum import IntEnum

INTERFACE = 5
PANEL, LINE, ALIGN, SLICES, PLANES, EPILOGUES = 16, 64, 64, 3, 2, 6


def aligned(number: int) -> int:
    """The next multiple of `ALIGN`: of an address, of bytes, or of the codes in a row."""
    return -(-number // ALIGN) * ALIGN


class Sync(IntEnum):
    """`bs_sync`: whether threads wait for each other before a step."""

    ALWAYS, NEVER, FEW_ROWS = range(3)


class Op(IntEnum):
    """`bs_op`."""

    GATHER = 0
    MAP = 1
    QUANTIZE = 2
    LINEAR = 3
    CONVOLVE = 4
    NORM = 5
    ATTEND = 6
    FIRST_TOKEN = 7
    POOL = 8
    INPUT = 9
    FLATTEN = 10
    ATTEND_RANGES = 11


class EpilogueKind(IntEnum):
    """`bs_epilogue_kind`."""

    END = 0
    AFFINE = 1
    FUNCTION = 2
    ADD = 3


class Range(IntEnum):
    """`bs_range`."""

    DYNAMIC = 0
    CLIP = 1
    STEP = 2


class Pooling(IntEnum):
    """`bs_pooling`."""

    MAX = 0
    MEAN = 1


FUNCTIONS = {"relu": 1, "gelu": 2, "gelu_tanh": 3, "tanh": 4}
"""`bs_function`, by the names that programs use."""


class RowsPlane(Structure):
    """`bs_rows_plane`."""

    _fields_ = (
        *((name, c_void_p) for name in ("codes", "levels", "scale", "offset")),
        *((name, c_int64) for name in ("bytes", "trits", "bits")),
    )


class Table(Structure):
    """`bs_table`."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "length", "groups", "group", "scale_rows", "planes")),
        ("plane", RowsPlane * PLANES),
        ("mask", c_void_p),
        ("mask_bytes", c_int64),
        ("dense", c_void_p),
    )


class Plane(Structure):
    """`bs_plane`."""

    _fields_ = (
        ("lines", c_void_p * SLICES),
        ("bits", c_int32 * SLICES),
        ("shift", c_int32 * SLICES),
        ("form", c_int32 * SLICES),
        *((name, c_int32) for name in ("slices", "first", "step")),
        *((name, c_void_p) for name in ("levels", "scale", "offset", "sums")),
    )


class Matrix(Structure):
    """`bs_matrix`."""

    _fields_ = (
        *((name, c_int64) for name in ("outputs", "inputs", "padded", "groups", "group", "planes")),
        ("plane", Plane * PLANES),
        *((name, c_void_p) for name in ("mask", "dense", "weight_sums")),
    )


class Epilogue(Structure):
    """`bs_epilogue`."""

    _fields_ = (
        *((name, c_int32) for name in ("kind", "function", "value", "pad")),
        ("scale", c_void_p),
        ("shift", c_void_p),
    )


class Rule(Structure):
    """`bs_rule`."""

    _fields_ = (
        *((name, c_int32) for name in ("bits", "symmetric", "range", "rows_per_range")),
        *((name, c_float) for name in ("low", "high", "step")),
    )

    @property
    def needs_range(self) -> bool:
        """Whether codes depend on the range of the values."""
        return self.range != Range.STEP or not self.symmetric


class Step(Structure):
    """`bs_step`."""

    _fields_ = (
        *((name, c_int32) for name in ("op", "input", "input_2", "input_3", "output", "input_4", "sync", "quantized")),
        ("matrix", POINTER(Matrix)),
        ("table", POINTER(Table)),
        *((name, c_int32) for name in ("index", "heads", "head_width")),
        ("epsilon", c_float),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("rule", Rule),
        *((name, c_int32) for name in ("height", "width", "channels", "kernel_height", "kernel_width", "stride", "padding")),
        *((name, c_int32) for name in ("out_height", "out_width", "pooling")),
        ("epilogue", Epilogue * EPILOGUES),
    )


class Run(Structure):
    """`bs_run`."""

    _fields_ = (
        ("steps", POINTER(Step)),
        ("n_steps", c_int64),
        *((name, c_void_p) for name in ("arena", "offset", "rows", "width", "indices", "inputs")),
        *((name, c_void_p) for name in ("starts", "masked", "first_rows")),
        *((name, c_int64) for name in ("texts", "longest", "samples")),
        ("scratch", c_void_p),
        ("scratch_bytes", c_int64),
        ("tier", c_void_p),
    )


SIZES = tuple(ctypes.sizeof(kind) for kind in (Table, Matrix, Step, Run))
"""As `bs_sizeof` reports them: a library of another version is detected before it is used."""
