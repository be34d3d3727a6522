"""A loaded model: checks inputs and runs the program in an engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import Archive, read
from bitstill.artifact.validate import DAMAGED
from bitstill.errors import ArtifactError, DataError, SpecError, suggest
from bitstill.program import operations as ops
from bitstill.program.from_artifact import as_artifact_error, program_of
from bitstill.program.heads import head_of
from bitstill.program.operations import Program
from bitstill.runtime.engine import NativeEngine
from bitstill.runtime.library import library, processors
from bitstill.runtime.reference import Reference

Array = npt.NDArray[Any]
Pooling = Literal["mean", "first"]
MAX_THREADS = 64
"""Largest number of threads of a call: those that the C library starts, and the caller's."""


def load(source: str | Path, *, threads: int | None = None, pooling: Pooling | None = None) -> Model:
    """Load an artifact, without torch and transformers.

    Args:
        source: its folder, or its name on the hub.
        threads: largest number of threads of a call; None is one per available processor. A call during another one runs only
            on its caller's thread.
        pooling: for an encoder without a head, one vector per text: the "mean" over its tokens, or its "first" token (for
            sentence embeddings as in training, usually "mean"); None returns a vector per token.

    Raises:
        ArtifactError: it is missing or damaged, or has an unsupported operation.
        SpecError: invalid threads; an unknown pooling, or pooling for a network without token vectors.
    """
    threads = processors() if threads is None else threads
    if not isinstance(threads, (int, np.integer)) or threads < 1:
        raise SpecError("at least one thread", given=repr(threads), where="threads", fix="Leave it out to use all processors.")
    if pooling not in (None, *get_args(Pooling)):
        raise SpecError("a known pooling", given=repr(pooling), where="pooling", fix=suggest(str(pooling), get_args(Pooling)))
    folder = resolve_folder(source)
    with as_artifact_error(str(folder)):
        archive = read(folder)
        return Model(archive, program_of(archive), min(int(threads), MAX_THREADS), pooling)


class Model:
    """A loaded network: a function from arrays by name to an array; thread-safe.

    Attributes:
        program: its program.
        head: meaning of the outputs; `head.probabilities(outputs)` are those of classes or labels.
        engine: "avx2" or another instruction set of the C library; "numpy" if the package was installed without it.
    """

    def __init__(self, archive: Archive, program: Program, threads: int, pooling: Pooling | None = None) -> None:
        self.program, self.threads, self.pooling = program, threads, pooling
        self._by_text = isinstance(program.steps[-1].operation, ops.ByText)
        if pooling is not None and not self._by_text:
            fix = "Leave it out: a classifier already returns one row per text."
            raise SpecError("an encoder without a head, to pool", given=program.result, where="pooling", fix=fix)
        self.head = head_of(archive.config)
        self._reads_texts = program.inputs[0].name == "input_ids"
        for each in program.inputs:
            _check_shape(each)
        native = library()
        self.engine = "numpy" if native is None else native.bs_name_of(native.bs_tier_in_use()).decode()
        self._engine: NativeEngine | Reference
        if native is None:
            self._engine = Reference(archive, program)
        else:
            self._engine = NativeEngine(archive, program, native, threads)
        lookups = ((step.operation, step.inputs[0]) for step in program.steps)
        self._tables = [(each, source) for each, source in lookups if isinstance(each, (ops.Embedding, ops.Positions))]
        self._rows = {operation.layer: _table_rows(archive, operation.layer) for operation, _ in self._tables}

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of classes or labels, if the artifact has any."""
        return self.head.labels

    @property
    def weight_bytes(self) -> int:
        """Bytes held by the weights."""
        return self._engine.weight_bytes

    @property
    def longest(self) -> int | None:
        """Largest number of tokens in a text; None if unlimited, or for images."""
        positions = [each for each, _ in self._tables if isinstance(each, ops.Positions)]
        return min((self._rows[each.layer] - each.first for each in positions), default=None)

    def __call__(self, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Array:
        """Run a batch.

        Args:
            arrays: inputs in the program's order.
            named: inputs by name. Texts: `input_ids` (texts, length), and optionally `attention_mask`, 1 for tokens and 0 for
                padding, and `token_type_ids`, both of that shape. Images: float (samples, channels, height, width).

        Returns:
            float32 (texts or samples, classes). For an encoder without a head: (texts, length, width), zeros at padding; with
            pooling (texts, width).

        Raises:
            DataError: an input is missing or unknown, has another shape or type, or an id or position is out of range.
        """
        values = self._by_name(arrays, named)
        # Numbers beyond float32 become infinite in silence, as in torch and in the C library.
        with as_artifact_error("config.json"), np.errstate(over="ignore", invalid="ignore"):
            return self._answer_texts(values) if self._reads_texts else self._answer_images(values)

    def _by_name(self, arrays: tuple[npt.ArrayLike, ...], named: Mapping[str, npt.ArrayLike]) -> dict[str, Array]:
        names = [each.name for each in self.program.inputs]
        values = dict(zip(names, arrays, strict=False)) | dict(named)
        unknown = sorted(set(values) - set(names))
        if unknown or len(arrays) > len(names) or len(values) < len(arrays) + len(named):
            fix = "Give each once, by its name."
            raise DataError(f"inputs {', '.join(names)}", given=", ".join(unknown) or "one twice", where="inputs", fix=fix)
        if names[0] not in values:
            fix = "Give it by its name."
            raise DataError(f"an input {names[0]}", given=", ".join(values) or "none", where="inputs", fix=fix)
        return {name: _array(name, value) for name, value in values.items()}

    # Texts -----------------------------------------------------------------------------------------------------------------

    def _answer_texts(self, values: dict[str, Array]) -> Array:
        ids = _integers("input_ids", values["input_ids"], None)
        inputs = {name: _integers(name, value, ids.shape) for name, value in values.items()}
        real = inputs["attention_mask"] != 0 if "attention_mask" in inputs else np.ones(ids.shape, bool)
        if ids.size and not real.all() and not real.any(1).all():
            text = int(np.flatnonzero(~real.any(1))[0])
            raise DataError("a token in every text", given="none", where=f"attention_mask[{text}]", fix="Leave that text out.")
        answer = self._engine.texts(self._table_rows(inputs), real)
        if self._by_text:
            answer[~real] = 0.0
        if self.pooling == "mean":
            answer = answer.sum(1) / real.sum(1)[:, None].astype(np.float32)
        return answer[np.arange(len(real)), real.argmax(1)] if self.pooling == "first" else answer

    def _table_rows(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Row of each token by table, (texts, length)."""
        rows: dict[str, Array] = {}
        for operation, source in self._tables:
            if isinstance(operation, ops.Positions):
                positions = positions_of(operation, inputs[source])
                fix = "Cut the text."
                rows[operation.layer] = _in_table(positions, self._rows[operation.layer], f"{source} (its length)", fix)
            elif source in inputs:
                fix = "Was it made by the tokenizer of this artifact?"
                rows[operation.layer] = _in_table(inputs[source], self._rows[operation.layer], source, fix)
            else:
                rows[operation.layer] = np.zeros_like(inputs["input_ids"])
        return rows

    # Images ----------------------------------------------------------------------------------------------------------------

    def _answer_images(self, values: dict[str, Array]) -> Array:
        (about,) = self.program.inputs
        image = values[about.name]
        if image.dtype.kind not in "fiu":
            raise DataError("numbers", given=str(image.dtype), where=about.name, fix="Give float32.")
        fits = image.ndim == len(about.shape) and all(
            isinstance(expected, str) or expected == size for expected, size in zip(about.shape, image.shape, strict=True)
        )
        if not fits or 0 in image.shape[1:]:
            shape, fix = f"shape ({', '.join(map(str, about.shape))})", "Give a batch of such images."
            raise DataError(shape, given=str(image.shape), where=about.name, fix=fix)
        with np.errstate(over="ignore"):
            image = np.ascontiguousarray(image, np.float32)
        if not np.isfinite(image).all():
            fix = "Look for NaN, infinity, or numbers beyond float32."
            raise DataError("finite numbers", given="others", where=about.name, fix=fix)
        return self._engine.images(image)


def positions_of(operation: ops.Positions, ids: Array) -> Array:
    """Position of each token, in the shape of the ids."""
    if operation.padding is None:
        return np.tile(np.arange(operation.first, operation.first + ids.shape[1]), (len(ids), 1))
    real = ids != operation.padding
    return np.where(real, np.cumsum(real, 1) - 1 + operation.first, operation.padding)


def _table_rows(archive: Archive, layer: str) -> int:
    record = archive.layers.get(layer)
    return len(archive.tensors[f"{layer}.weight"]) if record is None else record.shape[0]


def _in_table(numbers: Array, rows: int, where: str, fix: str) -> Array:
    """Check that row numbers are within a table."""
    if numbers.size:
        smallest, largest = int(numbers.min()), int(numbers.max())
        if smallest < 0 or largest >= rows:
            beyond = smallest if smallest < 0 else largest
            raise DataError(f"numbers from 0 to {rows - 1}", given=str(beyond), where=where, fix=fix)
    return numbers


def _check_shape(about: ops.Input) -> None:
    """Check that an input has a consistent shape.

    Raises:
        ArtifactError: it has no size, or two sizes under one name.
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


def _integers(name: str, value: Array, shape: tuple[int, ...] | None) -> Array:
    if value.dtype.kind not in "iub":
        raise DataError("whole numbers", given=str(value.dtype), where=name, fix="Give an array of int64.")
    if value.ndim != 2 or (shape is not None and value.shape != shape) or value.shape[1] == 0:
        expected = "shape (texts, length)" if shape is None else f"shape {shape}"
        raise DataError(expected, given=str(value.shape), where=name, fix="Pad texts to one length.")
    return value.astype(np.int64)
