"""The engine: plans, memory and execution in the C library for the weights of one artifact."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import Archive
from bitstill.errors import DataError
from bitstill.program.operations import Program
from bitstill.runtime.layer_weights import LayerWeights
from bitstill.runtime.plan import plan
from bitstill.runtime.structs import ALIGN, Run, Step, aligned
from bitstill.runtime.values import Plan

Array = npt.NDArray[Any]
MAX_ARENAS = 4
"""Largest number of arenas kept for later calls, one per concurrent call."""
MAX_LAYOUTS, MAX_PLANS = 256, 16
"""Numbers of cached memory layouts, by batch size, and of cached plans, by image size."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a batch to compute, with texts concatenated.

    Args:
        selected: bool (texts, length); None selects all.
        starts: int64 (texts + 1,), offset of each text.
        longest: number of tokens in the longest text.
        masked: uint8 (tokens,), 1 for tokens hidden from attention; None for none.
    """

    selected: Array | None
    starts: Array
    longest: int
    masked: Array | None

    @classmethod
    def of(cls, real: Array, *, all_needed: bool) -> Tokens:
        """Select the tokens of an attention mask; padding is skipped, unless results depend on it.

        Args:
            real: bool (texts, length), False for padding.
            all_needed: whether ranges include padding.
        """
        texts, length = real.shape
        padded = not real.all()
        if padded and not all_needed and real[:, 0].all():  # else the first token of some text is padding
            lengths = real.sum(1)
            return cls(real, np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), int(lengths.max()), None)
        masked = np.ascontiguousarray(~real.reshape(-1)).astype(np.uint8) if padded else None
        return cls(None, np.arange(texts + 1, dtype=np.int64) * length, length, masked)

    def flat(self, rows: Array) -> Array:
        """int32 (tokens,) of the numbers (texts, length) of rows."""
        return (rows.reshape(-1) if self.selected is None else rows[self.selected]).astype(np.int32)

    def by_text(self, answer: Array, shape: tuple[int, ...]) -> Array:
        """(tokens, width) -> (texts, length, width), with zeros at skipped padding."""
        if self.selected is None:
            return answer.reshape(*shape, -1)
        padded = np.zeros((*shape, answer.shape[1]), np.float32)
        padded[self.selected] = answer
        return padded


@dataclass
class _Arena:
    """Memory for one call at a time."""

    values: Array
    scratch: Array

    def grow(self, values: int, scratch: int) -> None:
        """Allocate memory for values, and scratch memory for all threads.

        Raises:
            DataError: the memory is not available.
        """
        try:
            if self.values.size < values + ALIGN:
                self.values = np.empty(values + ALIGN, np.uint8)
            if self.scratch.size < scratch + ALIGN:
                self.scratch = np.empty(scratch + ALIGN, np.uint8)
        except (MemoryError, ValueError):
            size, fix = f"{values + scratch:,} bytes", "Pass fewer texts or smaller images at once."
            raise DataError("a batch that fits into memory", given=size, where="inputs", fix=fix) from None


class NativeEngine:
    """A program run by the C library; thread-safe.

    Args:
        archive, program: an artifact's.
        library: the C library.
        threads: largest number of threads of a call.
    """

    def __init__(self, archive: Archive, program: Program, library: ctypes.CDLL, threads: int) -> None:
        self.program, self.library, self.threads = program, library, threads
        self.layers = LayerWeights(archive, library)
        self._plans: dict[tuple[int, ...], _ReadyPlan] = {}
        self._lock = threading.Lock()
        self._arenas: list[_Arena] = []
        self._reads_texts = program.inputs[0].dtype == "int64"
        if self._reads_texts:
            self._plan({})
        _ENGINES.add(self)

    @property
    def weight_bytes(self) -> int:
        """Bytes held by the weights."""
        return self.layers.bytes

    def texts(self, rows: Mapping[str, Array], real: Array) -> Array:
        """Outputs for texts.

        Args:
            rows: by table, the row of each token, (texts, length).
            real: bool (texts, length), False for padding.
        """
        ready, (texts, length) = self._plan({}), real.shape
        if texts == 0:
            return np.empty((0, length, ready.width) if ready.by_token else (0, ready.width), np.float32)
        tokens = Tokens.of(real, all_needed=ready.plan.padding_counts)
        flat = [tokens.flat(rows[operation.layer]) for operation in ready.plan.indices]
        pointers = (ctypes.c_void_p * len(flat))(*(each.ctypes.data for each in flat))
        run = Run(indices=ctypes.addressof(pointers), texts=texts, samples=texts, longest=tokens.longest)
        run.starts = run.first_rows = tokens.starts.ctypes.data
        if tokens.masked is not None:
            run.masked = tokens.masked.ctypes.data
        answer = self._execute(ready, run, {"token": int(tokens.starts[-1]), "text": texts})
        return tokens.by_text(answer, (texts, length)) if ready.by_token else answer

    def images(self, image: Array) -> Array:
        """Outputs for images, (samples, channels, height, width)."""
        free = self.program.inputs[0].shape[2:]
        sizes = {name: size for name, size in zip(free, image.shape[2:], strict=True) if isinstance(name, str)}
        ready, samples = self._plan(sizes), len(image)
        if samples == 0:
            return np.empty((0, ready.width), np.float32)
        pointers = (ctypes.c_void_p * 1)(image.ctypes.data)
        run = Run(inputs=ctypes.addressof(pointers), samples=samples, texts=samples)
        return self._execute(ready, run, {"sample": samples})

    def _plan(self, sizes: Mapping[str, int]) -> _ReadyPlan:
        key = tuple(sizes.values())
        with self._lock:
            if key not in self._plans:
                if len(self._plans) >= MAX_PLANS:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = _ReadyPlan(plan(self.program, self.layers, sizes))
                self.layers.release(everything=self._reads_texts)
            return self._plans[key]

    def renew_lock(self) -> None:
        """Replace the lock in a forked process, in which the thread that held it does not exist."""
        self._lock = threading.Lock()

    def _execute(self, ready: _ReadyPlan, run: Run, counts: Mapping[str, int]) -> Array:
        """Run a plan over so many tokens and texts, or samples; returns the result's rows."""
        layout = ready.layout(self.library, counts, run.longest)
        run.steps, run.n_steps, run.tier = ready.steps, len(ready.steps), self.layers.tier
        run.rows, run.width, run.offset = layout.rows.ctypes.data, ready.widths.ctypes.data, layout.offsets.ctypes.data
        run.scratch_bytes = layout.scratch_bytes
        with self._lock:
            arena = self._arenas.pop() if self._arenas else _Arena(np.empty(0, np.uint8), np.empty(0, np.uint8))
        arena.grow(layout.bytes, run.scratch_bytes * self.threads)
        try:
            run.arena, run.scratch = aligned(arena.values.ctypes.data), aligned(arena.scratch.ctypes.data)
            self.library.bs_execute(ctypes.byref(run), self.threads)
            begin = run.arena - arena.values.ctypes.data + int(layout.offsets[ready.result])
            rows = counts[ready.plan.result.shape.per]
            return arena.values[begin : begin + 4 * rows * ready.width].view(np.float32).reshape(rows, -1).copy()
        finally:
            with self._lock:
                if len(self._arenas) < MAX_ARENAS:
                    self._arenas.append(arena)


_ENGINES: weakref.WeakSet[NativeEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in _ENGINES:
        engine.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class _Layout:
    """Memory layout of a batch of one size.

    Args:
        rows, offsets: int64, of every value.
        bytes: bytes of all values.
        scratch_bytes: scratch bytes per thread.
    """

    rows: Array
    offsets: Array
    bytes: int
    scratch_bytes: int


class _ReadyPlan:
    """A plan as arrays for C."""

    def __init__(self, planned: Plan) -> None:
        self.plan = planned
        self.steps: Any = (Step * len(planned.steps))(*planned.steps)
        self.result = planned.steps[-1].output
        self.width = planned.result.shape.width
        self.by_token = planned.result.shape.per == "token"
        self.widths = np.array([value.shape.width for value in planned.values], np.int64)
        self._offsets = np.array(planned.offsets, np.int64)
        self._pixels = np.array([value.shape.pixels for value in planned.values], np.int64)
        self._layouts: dict[tuple[int, ...], _Layout] = {}

    def layout(self, library: ctypes.CDLL, counts: Mapping[str, int], longest: int) -> _Layout:
        """For so many tokens and texts, or samples; cached for batches of one size."""
        key = (*counts.values(), longest)
        layout = self._layouts.get(key)
        if layout is None:
            rows = self._pixels * np.array([counts[value.shape.per] for value in self.plan.values], np.int64)
            scale = max(counts.values())
            scratch = library.bs_scratch_bytes(self.steps, len(self.steps), longest)
            layout = _Layout(rows, self._offsets * scale, self.plan.bytes * scale, scratch)
            if len(self._layouts) >= MAX_LAYOUTS:
                self._layouts.clear()
            self._layouts[key] = layout
        return layout
