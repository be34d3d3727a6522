"""Tokenization of a `TextTask`, which turns it into a `Task`."""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from bitstill.artifact.config_keys import without_code
from bitstill.data.task import Batch, Forward, Split, Task, Texts
from bitstill.data.text import TextOptions, TextSplit, TextTask
from bitstill.errors import DataError, SpecError, one_line
from bitstill.hf.quiet import quiet

CHUNK = 2_000
"""Rows tokenized between two updates of the progress bar."""
COMPARED = 200
"""Texts on which two tokenizers are compared, and as many that are not ASCII."""
PROBES: Texts = (
    ("The Café isn't naïve: 3.14 % of 1,000!", "STRASSE straße", "\u5317\u4eac  e\u0301 \u00e9", "under_score\ttab"),
)
"""Texts on which they are compared where there is no task."""


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer as the preprocessor of a task.

    Args:
        tokenizer: of transformers.
        texts: some of the task's, on which other tokenizers are compared with it.
    """

    tokenizer: Any
    texts: Texts = ()

    def save(self, folder: Path) -> None:
        """Write its files into `folder`, for `AutoTokenizer.from_pretrained`, without keys that would fetch code."""
        self.tokenizer.save_pretrained(str(folder))
        path = folder / "tokenizer_config.json"
        if path.is_file():
            settings = json.loads(path.read_text(encoding="utf-8"))
            if without_code(settings) != settings:
                path.write_text(json.dumps(without_code(settings), indent=2, ensure_ascii=False), encoding="utf-8")


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer of a folder (a model's or an artifact's) or of a model on the hub.

    Raises:
        DataError: there is no tokenizer, or it has no padding token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        fix = "Check the path or the name; a folder needs tokenizer.json or the tokenizer's own files."
        raise DataError("a model with a tokenizer", given=one_line(error), where=str(source), fix=fix) from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # built from a config, without a vocabulary
        fix = "A folder needs tokenizer.json or the tokenizer's own files."
        raise DataError("a model with a tokenizer", given="no vocabulary", where=str(source), fix=fix)
    if tokenizer.pad_token_id is None:
        fix = "Set tokenizer.pad_token (and model.config.pad_token_id) and save the folder again."
        raise DataError("a tokenizer with a padding token", given="none", where=str(source), fix=fix)
    return tokenizer


def check_same_tokens(one: Any, other: Any, texts: Texts, where: str) -> None:
    """Check that two tokenizers have the same vocabulary and encode texts as the same tokens.

    Args:
        one, other: tokenizers.
        texts: on which they are compared.
        where: the other one's model, for errors.

    Raises:
        DataError: they differ.
    """
    tokens, other_tokens = one.get_vocab(), other.get_vocab()
    fix = "Choose a teacher with the student's tokenizer, since both read the same ids."
    if tokens != other_tokens:
        differing = next(token for token in (*tokens, *other_tokens) if tokens.get(token) != other_tokens.get(token))
        ids = f"{tokens.get(differing)} and {other_tokens.get(differing)}"
        given = f"{len(tokens):,} and {len(other_tokens):,} tokens; {differing!r} is {ids}"
        raise DataError("one vocabulary", given=given, where=where, fix=fix)
    with quiet():  # their remarks on long texts
        rows = zip(*texts, one(*texts)["input_ids"], other(*texts)["input_ids"], strict=True)
    for *row, first, second in rows:
        if first != second:
            place = next(
                (n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
                min(len(first), len(second)),
            )
            near = (one.convert_ids_to_tokens(ids[place : place + 3]) for ids in (first, second))
            given = f"{' ... '.join(text[:60] for text in row)!r} as {' and as '.join(map(str, near))} from token {place} on"
            raise DataError("tokenizers that encode texts alike", given=given, where=where, fix=fix)


def load_tokenizers(sources: Mapping[str, str]) -> list[Any]:
    """Load the tokenizers of several models; `check_same_tokens` compares them.

    Args:
        sources: folder or hub name by role.

    Raises:
        DataError: a model has no tokenizer.
    """
    return [load_tokenizer(source) for source in dict.fromkeys(sources.values())]


def input_names(tokenizers: Iterable[Any]) -> tuple[str, ...]:
    """Names of all inputs of models with these tokenizers: a BERT teacher has segments, its DistilBERT student none."""
    return tuple(dict.fromkeys(name for tokenizer in tokenizers for name in tokenizer.model_input_names))


def tokenize(task: TextTask, tokenizer: Any, *, names: Sequence[str] | None = None, progress: bool = True) -> Task:
    """Tokenize a task.

    Args:
        task: texts and labels.
        tokenizer: tokenizer of transformers.
        names: names of the inputs; None uses the tokenizer's own.
        progress: show a progress bar for large splits.

    Returns:
        The task with "input_ids", "attention_mask" and other inputs from the tokenizer, int32 (rows, longest), padded on the
        right.

    Raises:
        DataError: a text is longer than `task.options.max_length` and must not be truncated.
        SpecError: `max_length` exceeds the limit of the tokenizer's model.
    """
    limit = tokenizer.model_max_length
    if task.options.max_length > limit and task.options.truncate:
        task = replace(task, options=replace(task.options, max_length=int(limit)))
    if task.options.max_length > limit:
        fix = f"Set --max-length to at most {limit}."
        raise SpecError(
            f"at most {limit} tokens", given=str(task.options.max_length), where=f"{task.name}: max_length", fix=fix
        )
    names = input_names([tokenizer]) if names is None else tuple(names)
    parts = {part: getattr(task, part) for part in ("train", "validation", "test")}
    splits = {part: _encode(task, part, split, tokenizer, names, progress) for part, split in parts.items()}
    return Task(
        task.name,
        splits["train"],
        splits["validation"],
        splits["test"],
        task.objective,
        forward_of(names),
        preprocessor=Tokenizer(tokenizer, _some_texts(task.train)),
        options=asdict(task.options),
        origin=task.origin,
    )


def _some_texts(split: TextSplit) -> Texts:
    """Rows from all over the split, and the first of those that have more than plain letters."""
    count = len(split)
    unusual = [row for row, cells in enumerate(zip(*split.texts, strict=True)) if not all(map(str.isascii, cells))]
    rows = sorted({*range(0, count, math.ceil(count / COMPARED)), *unusual[:COMPARED]})
    return tuple([column[row] for row in rows] for column in split.texts)


def forward_of(names: Sequence[str]) -> Forward:
    """Forward function for tokenized batches, which passes those of the inputs `names` that a model's `forward` declares."""
    read_by: dict[type[nn.Module], tuple[str, ...]] = {}

    def forward(model: nn.Module, batch: Batch) -> Any:
        kind = type(model)
        if kind not in read_by:
            read_by[kind] = _read_by(kind, tuple(names))
        return model(**{name: batch[name].long() for name in read_by[kind] if name in batch})

    return forward


def _read_by(kind: type[nn.Module], names: tuple[str, ...]) -> tuple[str, ...]:
    # Models of transformers accept further keywords and pass them on, so only declared ones are passed.
    known = inspect.signature(kind.forward).parameters
    return tuple(name for name in names if name in known) if "input_ids" in known else names


def _encode(task: TextTask, part: str, split: TextSplit, tokenizer: Any, names: tuple[str, ...], progress: bool) -> Split:
    options = task.options
    settings: dict[str, Any] = {"return_token_type_ids": True} if "token_type_ids" in names else {}
    if options.truncate:
        settings["max_length"] = options.max_length
    rows: dict[str, list[list[int]]] = {}
    bar = tqdm(total=len(split), desc=f"tokenizing {part}", unit="row", leave=False, disable=not progress or len(split) < CHUNK)
    for start in range(0, len(split), CHUNK):
        chunk = [column[start : start + CHUNK] for column in split.texts]
        # Without a limit at first, to detect texts that would be truncated.
        with quiet():  # its own warning about long texts, which are handled below
            encoded = tokenizer(*chunk, truncation=options.truncate, **settings)
        for name in names:
            if name in encoded:
                rows.setdefault(name, []).extend(encoded[name])
        bar.update(len(chunk[0]))
    bar.close()
    lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
    if int(lengths.max()) > options.max_length:
        _refuse_long(task, part, lengths, options)
    padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
    inputs = {name: _padded(values, int(lengths.max()), padding.get(name, 0)) for name, values in rows.items()}
    return Split(inputs, split.labels, lengths)


def _padded(rows: list[list[int]], width: int, value: int) -> Tensor:
    table = torch.full((len(rows), width), value, dtype=torch.int32)
    for row, ids in zip(table, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int32)
    return table


def _refuse_long(task: TextTask, part: str, lengths: Tensor, options: TextOptions) -> None:
    long = (lengths > options.max_length).nonzero().flatten()
    rows = getattr(task, part).rows
    first = int(long[0] if rows is None else rows[long].min())
    tokens = int(lengths[long[0]] if rows is None else lengths[(rows == first).nonzero().flatten()[0]])
    raise DataError(
        f"texts of at most {options.max_length} tokens",
        given=f"{len(long)} longer ones, row {first} with {tokens} tokens",
        where=f"{task.name} {part}",
        fix="Set --max-length higher, or truncate them with --truncate.",
    )
