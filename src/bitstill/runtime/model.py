"""A loaded artifact that answers: inputs are checked, padding is left out, and the C library runs the plan."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bitstill.artifact.hub import located
from bitstill.artifact.reader import DAMAGED, Archive, read
from bitstill.errors import ArtifactError, DataError, SpecError, suggest
from bitstill.program import operations as ops
from bitstill.program.from_artifact import fitting, program_of
from bitstill.program.operations import Program
from bitstill.runtime.library import library, processors
from bitstill.runtime.plan import Layers, Plan, plan
from bitstill.runtime.reference import Reference
from bitstill.runtime.structs import Run, rounded

Array = npt.NDArray[Any]
Pooling = Literal["mean", "first"]
KEPT = 4
"""Arenas that wait for the next call: as many as callers that came at once, up to this."""
SIZES_KEPT, PLANS_KEPT = 256, 16
"""Sizes of batches for which is remembered what they need, and sizes of pictures for which a plan is."""
MOST_THREADS = 64
"""That one call works with: as many as the C library ever starts, and the caller's."""


def load(source: str | Path, *, threads: int | None = None, pooling: Pooling | None = None) -> Model:
    """An artifact, ready to run. Neither torch nor transformers is imported.

    Args:
        source: its folder, or its name on the hub.
        threads: at most, for one call; None is one for each processor that this process may use. Calls that come while another
            one works run on their caller's thread alone.
        pooling: of an encoder without a head: one vector for each text, the "mean" of its tokens' or that of its "first" token
            (for sentence embeddings as their model was trained, most often "mean"); None is a vector for each token.

    Raises:
        ArtifactError: it is missing or damaged, or computes something that has no operation here.
        SpecError: threads below 1, or no number of them; an unknown pooling, or one for a network that gives no vectors for
            tokens.
    """
    threads = processors() if threads is None else threads
    if not isinstance(threads, (int, np.integer)) or threads < 1:
        raise SpecError("at least one thread", given=repr(threads), where="threads", fix="Leave it out to use all processors.")
    if pooling not in (None, *get_args(Pooling)):
        raise SpecError("a known pooling", given=repr(pooling), where="pooling", fix=suggest(str(pooling), get_args(Pooling)))
    folder = located(source)
    with fitting(str(folder)):
        archive = read(folder)
        return Model(archive, program_of(archive), min(int(threads), MOST_THREADS), pooling)


class Model:
    """A network that takes arrays by name and returns an array. May be called from many threads at once.

    Attributes:
        program: what it computes.
        labels: names of classes, where the artifact has them.
        engine: "avx2" or another instruction set of the C library; "numpy" where the package was installed without it.
    """

    def __init__(self, archive: Archive, program: Program, threads: int, pooling: Pooling | None = None) -> None:
        self.program, self.threads, self.pooling = program, threads, pooling
        self._by_text = isinstance(program.steps[-1].operation, ops.ByText)
        if pooling is not None and not self._by_text:
            fix = "Leave it out: a classifier gives its answers for each text."
            raise SpecError("an encoder without a head, to pool", given=program.result, where="pooling", fix=fix)
        self.labels = tuple(
            name for _, name in sorted((archive.config.get("id2label") or {}).items(), key=lambda at: int(at[0]))
        )
        self._text = program.inputs[0].name == "input_ids"
        for each in program.inputs:
            _check_open(each)
        native = library()
        self.engine = "numpy" if native is None else native.bs_name_of(native.bs_tier_in_use()).decode()
        self._run: _Native | Reference
        if native is None:
            self._run = Reference(archive, program)
        else:
            self._run = _Native(archive, program, native, threads)
        self._tables = [
            (step.operation, step.inputs[0])
            for step in program.steps
            if isinstance(step.operation, (ops.Embedding, ops.Positions))
        ]
        self._rows = {
            each.layer: archive.layers[each.layer].shape[0]
            if each.layer in archive.layers
            else len(archive.tensors[f"{each.layer}.weight"])
            for each, _ in self._tables
        }

    @property
    def weight_bytes(self) -> int:
        """That weights take in memory."""
        return self._run.weight_bytes

    @property
    def longest(self) -> int | None:
        """The most tokens that a text may have; None where nothing limits them, or there are no texts."""
        counted = [each for each, _ in self._tables if isinstance(each, ops.Positions)]
        return min((self._rows[each.layer] - each.first for each in counted), default=None)

    def __call__(self, *given: npt.ArrayLike, **named: npt.ArrayLike) -> Array:
        """Answers for a batch.

        Args:
            given: inputs in the program's order.
            named: inputs by name. Texts: `input_ids` (texts, length), and if need be `attention_mask`, 1 for real tokens, and
                `token_type_ids`, both of that shape. Pictures: float (samples, channels, height, width).

        Returns:
            float32 (texts or samples, classes). Of an encoder without a head: (texts, length, width), zeros where padding is;
            with pooling (texts, width).

        Raises:
            DataError: an input is missing or unknown, has another shape or type, or names a word or place that no table has.
        """
        values = self._named(given, named)
        with fitting("config.json"):
            return self._texts(values) if self._text else self._pictures(values)

    def _named(self, given: tuple[npt.ArrayLike, ...], named: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        names = [each.name for each in self.program.inputs]
        found = dict(zip(names, given, strict=False)) | dict(named)
        strange = sorted(set(found) - set(names))
        if strange or len(given) > len(names) or len(found) < len(given) + len(named):
            fix = "Give each once, by its name."
            raise DataError(f"inputs {', '.join(names)}", given=", ".join(strange) or "one twice", where="inputs", fix=fix)
        if names[0] not in found:
            raise DataError(
                f"an input {names[0]}", given=", ".join(found) or "none", where="inputs", fix="Give it by its name."
            )
        return {name: _array(name, value) for name, value in found.items()}

    # Texts -----------------------------------------------------------------------------------------------------------------

    def _texts(self, values: dict[str, Array]) -> Array:
        ids = _whole("input_ids", values["input_ids"], None)
        given = {"input_ids": ids} | {name: _whole(name, values[name], ids.shape) for name in values if name != "input_ids"}
        seen = given["attention_mask"] != 0 if "attention_mask" in given else np.ones(ids.shape, bool)
        if ids.size and not seen.all() and not seen.any(1).all():
            text = int(np.flatnonzero(~seen.any(1))[0])
            raise DataError("a token in every text", given="none", where=f"attention_mask[{text}]", fix="Leave that text out.")
        found: dict[str, Array] = {}
        for operation, source in self._tables:
            if isinstance(operation, ops.Positions):
                found[operation.layer] = self._checked(source, places(operation, ids), operation.layer, " (its length)")
            elif source in given:
                found[operation.layer] = self._checked(source, given[source], operation.layer)
            else:
                found[operation.layer] = np.zeros_like(ids)
        answer = self._run.texts(found, seen)
        if self._by_text:
            answer[~seen] = 0.0
        if self.pooling == "mean":
            answer = answer.sum(1) / seen.sum(1)[:, None].astype(np.float32)
        return answer[np.arange(len(seen)), seen.argmax(1)] if self.pooling == "first" else answer

    def _checked(self, name: str, numbers: Array, layer: str, what: str = "") -> Array:
        rows = self._rows[layer]
        if numbers.size:
            least, most = int(numbers.min()), int(numbers.max())
            if least < 0 or most >= rows:
                fix = "Cut the text." if what else "Was it made by the tokenizer of this artifact?"
                given = str(least if least < 0 else most)
                raise DataError(f"numbers from 0 to {rows - 1}", given=given, where=f"{name}{what}", fix=fix)
        return numbers

    # Pictures --------------------------------------------------------------------------------------------------------------

    def _pictures(self, values: dict[str, Array]) -> Array:
        (about,) = self.program.inputs
        picture = values[about.name]
        if picture.dtype.kind not in "fiu":
            raise DataError("numbers", given=str(picture.dtype), where=about.name, fix="Give float32.")
        fits = picture.ndim == len(about.shape) and all(
            isinstance(wanted, str) or wanted == size for wanted, size in zip(about.shape, picture.shape, strict=True)
        )
        if not fits or 0 in picture.shape[1:]:
            wanted = f"shape ({', '.join(map(str, about.shape))})"
            raise DataError(wanted, given=str(picture.shape), where=about.name, fix="Give a batch of such pictures.")
        with np.errstate(over="ignore"):
            picture = np.ascontiguousarray(picture, np.float32)
        if not np.isfinite(picture).all():
            fix = "Look for NaN, infinity, or numbers beyond float32."
            raise DataError("finite numbers", given="others", where=about.name, fix=fix)
        return self._run.pictures(picture)


def _check_open(about: ops.Input) -> None:
    """Refuse a file whose input has no size, or two sizes by one name.

    Raises:
        ArtifactError: that.
    """
    names = [size for size in about.shape if isinstance(size, str)]
    sized = all(isinstance(size, str) or (isinstance(size, int) and size > 0) for size in about.shape)
    if not sized or len(set(names)) < len(names):
        raise ArtifactError("sizes of an input", given=str(about.shape), where=f"config.json: {about.name}", fix=DAMAGED)


def _array(name: str, value: npt.ArrayLike) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError("an array", given=str(error), where=name, fix="Give rows of one length.") from None


def places(operation: ops.Positions, ids: Array) -> Array:
    """The row of the table of positions for each token, of the ids' shape."""
    if operation.padding is None:
        return np.tile(np.arange(operation.first, operation.first + ids.shape[1]), (len(ids), 1))
    real = ids != operation.padding
    return np.where(real, np.cumsum(real, 1) - 1 + operation.first, operation.padding)


def _whole(name: str, value: Array, shape: tuple[int, ...] | None) -> Array:
    if value.dtype.kind not in "iub":
        raise DataError("whole numbers", given=str(value.dtype), where=name, fix="Give an array of int64.")
    if value.ndim != 2 or (shape is not None and value.shape != shape) or value.shape[1] == 0:
        wanted = "shape (texts, length)" if shape is None else f"shape {shape}"
        raise DataError(wanted, given=str(value.shape), where=name, fix="Pad texts to one length.")
    return value.astype(np.int64)


@dataclass
class _Arena:
    """Memory for one call at a time."""

    values: Array
    scratch: Array


class _Native:
    """The C library with the weights of an artifact."""

    def __init__(self, archive: Archive, program: Program, native: ctypes.CDLL, threads: int) -> None:
        self.program, self.native, self.threads = program, native, threads
        self.layers = Layers(archive, native)
        self._plans: dict[tuple[int, ...], _Ready] = {}
        self._lock = threading.Lock()
        self._arenas: list[_Arena] = []
        self._texts = program.inputs[0].dtype == "int64"
        if self._texts:
            self._ready({})
        _ALIVE.add(self)

    @property
    def weight_bytes(self) -> int:
        """That weights take in memory."""
        return self.layers.bytes

    def texts(self, rows: Mapping[str, Array], seen: Array) -> Array:
        """Answers for texts: rows of tables (texts, length) by layer, and which tokens are real."""
        ready = self._ready({})
        texts, length = seen.shape
        if texts == 0:
            return np.empty((0, length, ready.classes) if ready.by_token else (0, ready.classes), np.float32)
        # Nobody looks at padding: only texts whose ranges it takes part in, or whose first token it is, need it.
        whole = bool(seen.all())
        kept = None if whole or ready.plan.padding_counts or not seen[:, 0].all() else seen
        if kept is None:
            starts, longest = np.arange(texts + 1, dtype=np.int64) * length, length
        else:
            lengths = seen.sum(1)
            starts, longest = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), int(lengths.max())
        numbers = [rows[operation.layer] for operation in ready.plan.indices]
        flat = [(each.reshape(-1) if kept is None else each[kept]).astype(np.int32) for each in numbers]
        hidden = np.ascontiguousarray(~seen.reshape(-1)).astype(np.uint8) if kept is None and not whole else None
        pointers = (ctypes.c_void_p * len(flat))(*(each.ctypes.data for each in flat))
        tokens = int(starts[-1])
        run = Run(indices=ctypes.addressof(pointers), starts=starts.ctypes.data, first=starts.ctypes.data, texts=texts)
        run.longest, run.samples = longest, texts
        if hidden is not None:
            run.hidden = hidden.ctypes.data
        answer = self._executed(ready, run, {"token": tokens, "text": texts}, tokens if ready.by_token else texts)
        if not ready.by_token:
            return answer
        if kept is None:
            return answer.reshape(texts, length, -1)
        by_text = np.zeros((texts, length, ready.classes), np.float32)
        by_text[kept] = answer
        return by_text

    def pictures(self, picture: Array) -> Array:
        """Answers for pictures (samples, channels, height, width)."""
        about = self.program.inputs[0].shape[2:]
        sizes = {name: size for name, size in zip(about, picture.shape[2:], strict=True) if isinstance(name, str)}
        ready = self._ready(sizes)
        samples = len(picture)
        if samples == 0:
            return np.empty((0, ready.classes), np.float32)
        pointers = (ctypes.c_void_p * 1)(picture.ctypes.data)
        run = Run(given=ctypes.addressof(pointers), samples=samples, texts=samples)
        return self._executed(ready, run, {"sample": samples}, samples)

    def _ready(self, sizes: Mapping[str, int]) -> _Ready:
        key = tuple(sizes.values())
        with self._lock:
            if key not in self._plans:
                if len(self._plans) >= PLANS_KEPT:
                    del self._plans[next(iter(self._plans))]
                self._plans[key] = _Ready(plan(self.program, self.layers, sizes))
                self.layers.release(everything=self._texts)
            return self._plans[key]

    def renew_lock(self) -> None:
        """In a new process, in which whoever held the lock is not."""
        self._lock = threading.Lock()

    def _executed(self, ready: _Ready, run: Run, counts: Mapping[str, int], answers: int) -> Array:
        sized = ready.sized(self.native, counts, run.longest)
        run.steps, run.n_steps, run.tier = ready.steps, len(ready.steps), self.layers.tier
        run.rows, run.width, run.offset = sized.rows.ctypes.data, ready.widths.ctypes.data, sized.offsets.ctypes.data
        run.scratch_bytes = sized.scratch_bytes
        arena = self._taken(sized.bytes, run.scratch_bytes * self.threads)
        try:
            run.arena, run.scratch = rounded(arena.values.ctypes.data), rounded(arena.scratch.ctypes.data)
            self.native.bs_execute(ctypes.byref(run), self.threads)
            start = run.arena - arena.values.ctypes.data + int(sized.offsets[ready.result])
            return arena.values[start : start + 4 * answers * ready.classes].view(np.float32).reshape(answers, -1).copy()
        finally:
            with self._lock:
                if len(self._arenas) < KEPT:
                    self._arenas.append(arena)

    def _taken(self, values: int, scratch: int) -> _Arena:
        with self._lock:
            arena = self._arenas.pop() if self._arenas else _Arena(np.empty(0, np.uint8), np.empty(0, np.uint8))
        try:
            if arena.values.size < values + 64:
                arena.values = np.empty(values + 64, np.uint8)
            if arena.scratch.size < scratch + 64:
                arena.scratch = np.empty(scratch + 64, np.uint8)
        except (MemoryError, ValueError):
            given, fix = f"{values + scratch:,} bytes", "Ask for fewer texts or smaller pictures at once."
            raise DataError("a batch that fits into memory", given=given, where="inputs", fix=fix) from None
        return arena


_ALIVE: weakref.WeakSet[_Native] = weakref.WeakSet()


def _after_fork() -> None:
    for native in _ALIVE:
        native.renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass
class _Sized:
    """What a batch of one size needs: rows of every value, where each lies, and bytes of all, and of scratch for a thread."""

    rows: Array
    offsets: Array
    bytes: int
    scratch_bytes: int


class _Ready:
    """A plan in arrays that C reads."""

    def __init__(self, made: Plan) -> None:
        self.plan = made
        self.steps: Any = (type(made.steps[0]) * len(made.steps))(*made.steps)
        self.widths = np.array([value.shape.width for value in made.values], np.int64)
        self.offsets = np.array(made.offsets, np.int64)
        self.result = made.steps[-1].output
        self.classes = made.values[self.result].shape.width
        self.by_token = made.values[self.result].shape.per == "token"
        self._pixels = np.array([value.shape.pixels for value in made.values], np.int64)
        self._per = [value.shape.per for value in made.values]
        self._sized: dict[tuple[int, ...], _Sized] = {}

    def sized(self, native: ctypes.CDLL, counts: Mapping[str, int], longest: int) -> _Sized:
        """The same for a batch like one of the last ones."""
        key = (*counts.values(), longest)
        found = self._sized.get(key)
        if found is None:
            rows = self._pixels * np.array([counts[per] for per in self._per], np.int64)
            base = max(counts.values())
            scratch = native.bs_scratch_bytes(self.steps, len(self.steps), longest)
            found = _Sized(rows, self.offsets * base, self.plan.bytes * base, scratch)
            if len(self._sized) >= SIZES_KEPT:
                self._sized.clear()
            self._sized[key] = found
        return found
