"""The compiled library: located next to the package, checked, and typed. It may be absent."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import warnings
from ctypes import POINTER, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path

from bitstill.errors import SpecError
from bitstill.runtime.structs import INTERFACE, SIZES, Matrix, Run, Step

NAMES = ("libbitstill.so", "libbitstill.dylib", "bitstill.dll")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None if the package was installed without a C compiler, or the versions differ."""
    for folder in sys.modules["bitstill.runtime"].__path__:  # an editable install keeps compiled files in another folder
        for name in NAMES:
            if (Path(folder) / name).is_file():
                return _opened(Path(folder) / name)
    return None


def _opened(path: Path) -> ctypes.CDLL | None:
    try:
        return _checked(ctypes.CDLL(str(path)))
    except OSError as error:  # truncated, or for another architecture
        warnings.warn(f"bitstill continues without its compiled library, slowly: {error}", stacklevel=4)
        return None


def processors() -> int:
    """Number of processors available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tiers() -> tuple[str, ...]:
    """Instruction sets of the library that this processor supports, best first; empty without the library."""
    native = library()
    if native is None:
        return ()
    names: list[str] = []
    while (name := native.bs_tier_name(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def use_tier(name: str) -> None:
    """Use one instruction set for everything loaded from now on in this process, for tests and comparisons.

    Raises:
        SpecError: it is not one of `tiers()`.
    """
    native = library()
    if native is None or native.bs_use_tier(name.encode()) != 0:
        fix = "Choose one of those."
        raise SpecError(f"one of {', '.join(tiers()) or 'no instruction sets'}", given=name, where="use_tier", fix=fix)


def _checked(native: ctypes.CDLL) -> ctypes.CDLL | None:
    native.bs_sizeof.restype, native.bs_sizeof.argtypes = c_int64, (c_int,)
    if native.bs_interface() != INTERFACE or tuple(native.bs_sizeof(each) for each in range(len(SIZES))) != SIZES:
        return None
    for name, result, *arguments in (
        ("bs_tier_name", c_char_p, c_int),
        ("bs_use_tier", c_int, c_char_p),
        ("bs_tier_in_use", c_void_p),
        ("bs_name_of", c_char_p, c_void_p),
        ("bs_best_form", c_int, c_void_p, c_int),
        ("bs_pack_lines", None, c_void_p, c_int64, c_int64, c_int64, c_int, c_int, c_void_p),
        ("bs_unpack_rows", None, c_void_p, c_int64, c_int64, c_int64, c_int, c_int, c_void_p),
        ("bs_product", None, c_void_p, c_int64, POINTER(Matrix), c_int, c_void_p, c_int),
        ("bs_scratch_bytes", c_int64, POINTER(Step), c_int64, c_int64),
        ("bs_execute", None, POINTER(Run), c_int),
    ):
        function = getattr(native, name)
        function.restype, function.argtypes = result, arguments
    return native
