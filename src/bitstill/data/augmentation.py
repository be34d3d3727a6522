"""Text augmentation by replacing words (Jiao et al. 2020, TinyBERT, algorithm 1).

A `Proposer` provides candidates for each word that consists of letters and is no stop word: the predictions of a masked
language model, or the nearest neighbours in a table of embeddings. In a variant of a text, each such word is replaced by one
of its candidates with probability `p`. Everything between words is preserved.

Variants are stored on disk in shards, each written when complete, so that an interrupted run resumes with the next shard.
A variant holds the index of its original row and no label, which is that of the row.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from tqdm.auto import tqdm

from bitstill.artifact.files import filled_folder, write_file
from bitstill.constraints import Count, Range, Seed, check_fields
from bitstill.data.folders import check_same, check_unused
from bitstill.data.text import TextSplit, TextTask
from bitstill.errors import DataError
from bitstill.rng import derive

MANIFEST, VERSION = "augmentation.json", 1
SHARD = 500
"""Rows per shard."""
VARIANTS = {"cola": 30, "mrpc": 30, "stsb": 30, "rte": 30, "sst2": 20, "qnli": 20, "mnli": 10, "mnli-mm": 10, "qqp": 10}
"""Variants per text by task (the code of Jiao et al.)."""
_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before being below between both but by can
could did do does doing don down during each few for from further had has have having he her here hers herself him
himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other
our ours ourselves out over own s same she should so some such t than that the their theirs them themselves then there
these they this those through to too under until up very was we were what when where which while who whom why will with
would you your yours yourself yourselves
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Augmentation:
    """Settings of text augmentation.

    Args:
        variants: largest number of variants per text; duplicates are dropped. None uses the published number for the task.
        probability: probability of replacing a word.
        candidates: largest number of candidates per word.
        seed: seed of all randomness.
    """

    variants: Count | None = None
    probability: Annotated[float, Range(above=0, most=1)] = 0.4
    candidates: Count = 15
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self)


Method = Literal["masked-lm", "neighbours"]


@dataclass(frozen=True)
class Variants:
    """A task's training texts together with their variants, as the training data of a stage.

    Args:
        model: folder or hub name of a masked language model, or for "neighbours" of any model with word embeddings.
        method: "masked-lm" replaces a word by the model's prediction for it, or by a nearest neighbour if it has several
            tokens; "neighbours" uses nearest neighbours for all words.
        vectors: file of word embeddings in GloVe's format for nearest neighbours; None uses the model's own.
        options: number of variants, and how much they differ.
    """

    model: str
    method: Method = "masked-lm"
    vectors: str | None = None
    options: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Word:
    """A replaceable word: `text[start:end]`."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return self.text[self.start : self.end]


class Proposer(Protocol):
    """Source of candidates."""

    def describe(self) -> dict[str, Any]:
        """Plain values that determine its answers."""

    def propose(self, words: Sequence[Word], count: int) -> list[list[str]]:
        """Propose at most `count` candidates for each word, best first."""


def replaceable_words(text: str) -> list[Word]:
    """Words of a text that consist of letters and are no stop words."""
    words = [Word(text, match.start(), match.end()) for match in _WORD.finditer(text)]
    return [word for word in words if str(word).isalpha() and str(word).lower() not in STOP_WORDS]


def variants_of(
    text: str, words: Sequence[Word], candidates: Sequence[Sequence[str]], options: Augmentation, count: int, *key: object
) -> list[str]:
    """Distinct variants of `text`, at most `count`; the same for the same key.

    Args:
        text: the original, which is not among the variants.
        words: its replaceable words, in order.
        candidates: candidates for each word; without any, the word is kept.
        options: probability and seed.
        count: number of draws.
        key: identifies the text.
    """
    draw = random.Random(derive("augment", options.seed, *key))  # noqa: S311 (reproducible, and no secret)
    variants: dict[str, None] = {}
    for _ in range(count):
        parts, end = [], 0
        for word, choices in zip(words, candidates, strict=True):
            replace_word, position = draw.random() < options.probability, draw.random()
            chosen = choices[int(position * len(choices))] if replace_word and choices else str(word)
            parts += [text[end : word.start], chosen]
            end = word.end
        variants["".join([*parts, text[end:]])] = None
    variants.pop(text, None)
    return list(variants)


def write_variants(task: TextTask, proposer: Proposer, options: Augmentation, folder: Path, *, progress: bool = True) -> int:
    """Generate variants of every training text of `task`, or resume an unfinished run.

    Of a pair, one text is varied at a time and the other kept.

    Args:
        task: task whose training texts are varied.
        proposer: source of candidates.
        options: number of variants, and how much they differ.
        folder: a new or empty folder, or one with unfinished variants of the same settings.
        progress: show a progress bar.

    Returns:
        Number of variants.

    Raises:
        DataError: the folder holds variants of other data or settings, or a damaged shard.
        ArtifactError: the folder cannot be written.
    """
    count = options.variants or VARIANTS.get(task.name, 20)
    about = _about(task, proposer, options, count)
    with filled_folder(folder):
        digests = _claim(folder, about)
        shards = range(0, len(task.train), SHARD)
        with tqdm(total=len(task.train), desc="varying texts", unit="text", leave=False, disable=not progress) as bar:
            for number, start in enumerate(shards):
                path, rows = _shard_path(folder, number), range(start, min(start + SHARD, len(task.train)))
                if path.name not in digests:
                    _write_shard(path, task, rows, proposer, options, count)
                    digests[path.name] = _digest(path)
                    _note(folder, {**about, "shards": digests})
                bar.update(len(rows))
        total = sum(len(_read_shard(folder / name, len(task.train.texts))) for name in digests)
        _note(folder, {**about, "shards": digests, "variants": total})
    return total


def with_variants(task: TextTask, folder: Path) -> TextTask:
    """Add variants to the training texts of a task; they have the labels of their originals.

    Args:
        task: the task of which they are variants.
        folder: a finished folder of `write_variants`.

    Raises:
        DataError: the folder is unfinished or damaged, or holds variants of other data.
    """
    manifest = _read_manifest(folder)
    if "variants" not in manifest:
        fix = "Run the same `bitstill augment` again: it resumes."
        raise DataError("finished variants", given="unfinished ones", where=str(folder), fix=fix)
    if manifest.get("data") != _data_digest(task):
        given = f"variants of {manifest.get('task')!r}, or of another version of its data"
        fix = "Generate them again from the data that you train on: bitstill augment."
        raise DataError(f"variants of the training texts of {task.name!r}", given=given, where=str(folder), fix=fix)
    columns: list[list[str]] = [list(column) for column in task.train.texts]
    origins = list(range(len(task.train)))
    for name, digest in manifest["shards"].items():
        path = folder / name
        if not path.exists() or _digest(path) != digest:
            raise _damaged(path)
        for row, texts in _read_shard(path, len(columns)):
            origins.append(row)
            for column, text in zip(columns, texts, strict=True):
                column.append(text)
    origin = torch.tensor(origins)
    own = None if task.train.rows is None else task.train.rows[origin]
    split = TextSplit(tuple(columns), task.train.labels[origin], own)
    return replace(task, train=split)


def examples(task: TextTask, folder: Path, count: int) -> list[tuple[str, str]]:
    """A few texts of `task`, each with one of its variants in `folder`."""
    pairs: dict[int, tuple[str, str]] = {}
    for row, texts in _read_shard(_shard_path(folder, 0), len(task.train.texts)):
        changed = ((column[row], text) for column, text in zip(task.train.texts, texts, strict=True) if text != column[row])
        pairs.setdefault(row, next(changed))
        if len(pairs) == count:
            break
    return list(pairs.values())


def _write_shard(path: Path, task: TextTask, rows: range, proposer: Proposer, options: Augmentation, count: int) -> None:
    """Write one line per variant: index of the original row, and the texts."""
    columns = task.train.texts
    words = {(row, place): replaceable_words(columns[place][row]) for row in rows for place in range(len(columns))}
    flat = [word for row_words in words.values() for word in row_words]
    proposed = iter(proposer.propose(flat, options.candidates))
    lines: list[str] = []
    for (row, place), row_words in words.items():
        originals = [column[row] for column in columns]
        candidates = [next(proposed) for _ in row_words]
        for variant in variants_of(originals[place], row_words, candidates, options, count, row, place):
            texts = [variant if place == other else text for other, text in enumerate(originals)]
            lines.append(json.dumps([row, *texts], ensure_ascii=False) + "\n")
    write_file(path, "".join(lines).encode())


def _read_shard(path: Path, columns: int) -> list[tuple[int, tuple[str, ...]]]:
    """Read the variants of a shard: index of the original row, and the texts."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        variants = [(int(row), tuple(texts)) for row, *texts in rows]
        if any(len(texts) != columns for _, texts in variants):
            raise ValueError("a different number of texts")
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path) from error
    return variants


def _damaged(path: Path) -> DataError:
    fix = "Delete this file and run the same `bitstill augment` again: only this shard is regenerated."
    return DataError("an intact shard of variants", given="a missing or damaged one", where=str(path), fix=fix)


def _about(task: TextTask, proposer: Proposer, options: Augmentation, count: int) -> dict[str, Any]:
    settings = {**asdict(options), "variants": count}
    about = {"version": VERSION, "task": task.name, "data": _data_digest(task), "options": settings}
    return {**about, "candidates from": proposer.describe()}


def _claim(folder: Path, about: dict[str, Any]) -> dict[str, str]:
    """Record the settings in the folder, or compare them with those recorded. Returns the digests of finished shards.

    A shard that was deleted, or written just before an interruption, does not count as finished.
    """
    if not (folder / MANIFEST).exists():
        check_unused(folder)
        _note(folder, about)
        return {}
    manifest = _read_manifest(folder)
    check_same(folder, about, manifest, "variants")
    digests = {name: digest for name, digest in manifest.get("shards", {}).items() if (folder / name).exists()}
    for name, digest in digests.items():
        if _digest(folder / name) != digest:
            raise _damaged(folder / name)
    return digests


def _note(folder: Path, manifest: dict[str, Any]) -> None:
    write_file(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise ValueError(f"version {manifest['version']}")
        if not all(re.fullmatch(r"variants-\d+\.jsonl", name) for name in manifest.get("shards", {})):
            raise ValueError("invalid names of shards")
    except (OSError, ValueError, KeyError, TypeError) as error:
        given = f"{type(error).__name__}: {error}"
        fix = "Name a folder written by `bitstill augment`."
        raise DataError("a folder of variants", given=given, where=str(folder / MANIFEST), fix=fix) from error
    return dict(manifest)


def _data_digest(task: TextTask) -> str:
    state = hashlib.blake2b(repr(task.options.text).encode(), digest_size=8)
    for column in task.train.texts:
        state.update(json.dumps(column).encode())
    return state.hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _shard_path(folder: Path, number: int) -> Path:
    return folder / f"variants-{number:05d}.jsonl"
