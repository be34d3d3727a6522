"""A corpus of plain text as packed sequences of tokens on disk, read once as a stream and memory-mapped from then on.

Documents are tokenized in order, joined by a separator, and cut into sequences of equal length, so that there is no padding.
They are appended to one file, `tokens.bin`; `tokens.json` records the number of valid sequences, their digest, and the number
of documents read, so that an interrupted run resumes. Neither the corpus nor its tokens are ever entirely in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bitstill.artifact.files import filled_folder, write_file
from bitstill.constraints import LARGEST_DURATION, Count, FractionBelowOne, Range, check_fields
from bitstill.data.file_readers import read_rows
from bitstill.data.folders import check_same, check_unused
from bitstill.data.part_files import part_files
from bitstill.data.sources import quiet
from bitstill.errors import DataError, need_package, one_line

TOKENS, MANIFEST, VERSION = "tokens.bin", "tokens.json", 2
DOCUMENTS, CHARACTERS = 500, 1 << 20
"""Largest numbers of documents and characters that are tokenized between two writes."""
PIECE = 10_000
"""Characters after which a document in a text file ends at the next line, if no empty line ended it before."""
_BYTES = 4
_END = 1 << 20
READABLE = (".parquet", ".txt", ".jsonl", ".json", ".csv")


@dataclass(frozen=True)
class Corpus:
    """Source of a corpus, and how it is cut into sequences.

    Args:
        source: a file, a folder with train files (parquet, text, JSON, CSV; `data.part_files`), or a name on the hub,
            "owner/name" or "owner/name:configuration".
        column: column with the text.
        length: sequence length in tokens, special tokens included.
        limit: largest number of characters to read; None reads all.
        mask_probability: probability of replacing a token by the mask token, for student and teacher alike.
    """

    source: str
    column: str = "text"
    length: Annotated[int, Range(least=8, most=LARGEST_DURATION)] = 128
    limit: Count | None = None
    mask_probability: FractionBelowOne = 0.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Encoder:
    """Conversion of documents into sequences.

    Args:
        encode: function from texts to their token ids, without special tokens.
        separator: id between documents.
        prefix, suffix: special ids around a sequence.
        about: plain values that determine its output.
    """

    encode: Callable[[list[str]], list[list[int]]]
    separator: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    about: Mapping[str, Any]

    def sequences(self, ids: Sequence[int], length: int) -> list[list[int]]:
        """Cut `ids` into complete sequences of that length."""
        body = self.body(length)
        starts = range(0, len(ids) - body + 1, body)
        return [[*self.prefix, *ids[start : start + body], *self.suffix] for start in starts]

    def body(self, length: int) -> int:
        """Number of corpus tokens in a sequence of that length."""
        return length - len(self.prefix) - len(self.suffix)


def pack_corpus(corpus: Corpus, encoder: Encoder, folder: Path, *, progress: bool = True) -> Tensor:
    """Tokenize the corpus into `folder`, resuming an unfinished run, and memory-map the result.

    Args:
        corpus: source of the text.
        encoder: encoder of the model.
        folder: a new or empty folder, or one with tokens of the same settings.
        progress: show a progress bar.

    Returns:
        int32 (sequences, length), memory-mapped.

    Raises:
        DataError: the corpus is empty, cannot be read or lacks the column; or the folder is of another corpus, or damaged.
        ArtifactError: the folder cannot be written.
    """
    about = {"version": VERSION, "source": corpus.source, "column": corpus.column, "length": corpus.length}
    about |= {"limit": corpus.limit, "tokenizer": dict(encoder.about)}
    there, finished = file_digests(corpus), _finished(folder)
    # A finished folder may outlive its source files; if these still exist, they must be unchanged.
    about["files"] = finished["files"] if finished is not None and not there else there
    with filled_folder(folder):
        state = _claim(folder, about)
        digest = _digest_of(folder, state)
        if not state["finished"]:
            _extend(corpus, encoder, folder, about, state, digest, progress)
            state = _state(folder)
    if not state["sequences"]:
        fix = "Check the corpus: it has too little text."
        raise DataError(f"text for at least one sequence of {corpus.length} tokens", given="less", where=corpus.source, fix=fix)
    count = state["sequences"] * corpus.length
    return torch.from_file(str(folder / TOKENS), shared=False, size=count, dtype=torch.int32).reshape(-1, corpus.length)


def wait_until_packed(folder: Path, seconds: float = 1.0) -> None:
    """Wait until the main process has finished `folder`."""
    while _finished(folder) is None:
        time.sleep(seconds)


def _extend(
    corpus: Corpus, encoder: Encoder, folder: Path, about: dict[str, Any], state: dict[str, Any], digest: Any, progress: bool
) -> None:
    documents, characters, carry = state["documents"], state["characters"], list(state["carry"])
    sequences = state["sequences"]
    bar = tqdm(desc="tokenizing the corpus", unit="token", unit_scale=True, leave=False, disable=not progress)
    with open(folder / TOKENS, "r+b") as file, bar:
        file.seek(sequences * corpus.length * _BYTES)
        for texts in _chunks(_documents(corpus, documents)):
            if corpus.limit is not None:
                texts = _at_most(texts, corpus.limit - characters)
            if not texts:
                break
            for ids in encoder.encode(texts):
                if ids:
                    carry += [*ids, encoder.separator]
            rows = encoder.sequences(carry, corpus.length)
            carry = carry[len(rows) * encoder.body(corpus.length) :]
            if rows:
                table = torch.tensor(rows, dtype=torch.int32)
                written = table.numpy().tobytes()
                file.write(written)
                digest.update(written)
                bar.update(table.numel())
            sequences += len(rows)
            documents += len(texts)
            characters += sum(map(len, texts))
            file.flush()
            os.fsync(file.fileno())
            _note(folder, about, sequences, documents, characters, carry, digest.hexdigest())
        file.truncate(sequences * corpus.length * _BYTES)
    if not documents:
        raise DataError("a corpus with text", given="no documents", where=corpus.source, fix="Check the files.")
    _note(folder, about, sequences, documents, characters, carry, digest.hexdigest(), finished=True)


def _documents(corpus: Corpus, skip: int) -> Iterator[str]:
    """Yield the texts of the corpus after the first `skip`; empty ones count and are yielded, too."""
    path = Path(corpus.source)
    if path.exists():
        files = _local_files(path)
        if not files:
            fix = "Name one file, or a folder with train files of one kind."
            raise DataError("train.parquet, .txt, .jsonl or .csv", given="none", where=corpus.source, fix=fix)
        texts = itertools.chain.from_iterable(_texts_of_file(corpus, file) for file in files)
        yield from itertools.islice(_documents_of_lines(texts) if files[0].suffix == ".txt" else texts, skip, None)
        return
    datasets = need_package("datasets", extra="all", purpose="a corpus")
    name, _, configuration = corpus.source.partition(":")
    try:
        with quiet(datasets):
            rows = datasets.load_dataset(name, configuration or None, split="train", streaming=True)
            yield from itertools.islice((_text(corpus, row, f"row {number}") for number, row in enumerate(rows)), skip, None)
    except DataError:
        raise
    except Exception as error:  # readers of the hub raise whatever their libraries do
        given = one_line(error)
        fix = "Check the path, or the connection if it is a name on the hub."
        raise DataError("a readable corpus", given=given, where=corpus.source, fix=fix) from error


def _texts_of_file(corpus: Corpus, file: Path) -> Iterator[str]:
    """Yield the text of each row of a file; an empty cell of a CSV file is an empty text."""
    for number, row in enumerate(read_rows(file, [corpus.column])):
        empty = file.suffix == ".csv" and row.get(corpus.column, "") is None
        yield "" if empty else _text(corpus, row, f"{file.name}, row {number}")


def _text(corpus: Corpus, row: Mapping[str, Any], where: str) -> str:
    text = row.get(corpus.column)
    if not isinstance(text, str):
        given = f"columns {', '.join(row)}" if corpus.column not in row else repr(text)
        fix = "Name the column with --text-column."
        raise DataError(f"a text in column {corpus.column!r}", given=given[:200], where=f"{corpus.source}, {where}", fix=fix)
    return text


def _documents_of_lines(lines: Iterable[str]) -> Iterator[str]:
    """Group lines up to an empty one, or until they are long enough: many files have a sentence per line and no empty lines."""
    document: list[str] = []
    characters = 0
    for line in lines:
        if line.strip():
            document.append(line)
            characters += len(line)
        if document and (not line.strip() or characters >= PIECE):
            yield "\n".join(document)
            document, characters = [], 0
    if document:
        yield "\n".join(document)


def _local_files(path: Path) -> list[Path]:
    """A file as it is named, or a folder's train files (`part_files`).

    Raises:
        DataError: files of several kinds, of an unknown one, or of which pieces are missing.
    """
    if not path.is_file():
        return part_files(path, "train", READABLE)
    if path.suffix not in READABLE:
        fix = "Rename it after what it holds."
        raise DataError("a .parquet, .txt, .json, .jsonl or .csv file", given=path.name, where=str(path.parent), fix=fix)
    return [path]


def file_digests(corpus: Corpus) -> dict[str, str]:
    """Name, size and a digest of both ends of each local file, to detect edits."""
    digests = {}
    for path in _local_files(Path(corpus.source)):
        size = path.stat().st_size
        with open(path, "rb") as file:
            ends = file.read(_END)
            file.seek(max(0, size - _END))
            ends += file.read(_END)
        digests[path.name] = f"{size} bytes, {hashlib.blake2b(ends, digest_size=8).hexdigest()}"
    return digests


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == DOCUMENTS or characters >= CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _at_most(texts: Sequence[str], characters: int) -> list[str]:
    shortened: list[str] = []
    for text in texts:
        if characters <= 0:
            break
        shortened.append(text[:characters])
        characters -= len(shortened[-1])
    return shortened


def _claim(folder: Path, about: dict[str, Any]) -> dict[str, Any]:
    """Record the settings in the folder, or compare them with those recorded, unless nothing has been written yet."""
    begun = (folder / MANIFEST).exists()
    if not begun:
        check_unused(folder)
    if not begun or not _state(folder)["documents"]:
        _note(folder, about, 0, 0, 0, [], hashlib.blake2b().hexdigest())
    state = _state(folder)
    check_same(folder, about, state, "tokens")
    if not state["sequences"]:
        (folder / TOKENS).touch()
    if not (folder / TOKENS).exists():
        raise _damaged(folder, "no tokens")
    return state


def _digest_of(folder: Path, state: dict[str, Any]) -> Any:
    """Digest of the valid tokens, checked against the recorded one, to be updated with the tokens that follow."""
    digest, left = hashlib.blake2b(), state["sequences"] * state["length"] * _BYTES
    size = (folder / TOKENS).stat().st_size
    if size < left or (state["finished"] and size > left):
        raise _damaged(folder, f"{size:,} bytes instead of {left:,}")
    with open(folder / TOKENS, "rb") as file:
        while left:
            part = file.read(min(left, _END))
            digest.update(part)
            left -= len(part)
    if digest.hexdigest() != state["digest"]:
        raise _damaged(folder, "changed bytes")
    return digest


def _finished(folder: Path) -> dict[str, Any] | None:
    """State of the folder, if it is finished."""
    state = _state(folder) if (folder / MANIFEST).exists() else None
    return state if state is not None and state["finished"] else None


def _state(folder: Path) -> dict[str, Any]:
    keys = ("version", "source", "files", "column", "length", "limit", "tokenizer", "finished", "sequences", "documents")
    try:
        state = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return {key: state[key] for key in (*keys, "characters", "carry", "digest")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"{type(error).__name__}: {error}") from error


def _note(
    folder: Path,
    about: dict[str, Any],
    sequences: int,
    documents: int,
    characters: int,
    carry: list[int],
    digest: str,
    finished: bool = False,
) -> None:
    state = {"finished": finished, "sequences": sequences, "documents": documents, "characters": characters, "carry": carry}
    write_file(folder / MANIFEST, json.dumps({**about, **state, "digest": digest}).encode())


def _damaged(folder: Path, given: str) -> DataError:
    fix = "Delete the folder and run the same command again to tokenize the corpus."
    return DataError("an intact file of tokens", given=given, where=str(folder), fix=fix)
