"""More training texts from those there are, by exchanging words (Jiao et al. 2020, TinyBERT, algorithm 1).

For each word that is neither a stop word nor written with anything but letters, candidates come from a `Proposer`: what a
masked language model would put there, or the word's neighbours in a table of embeddings. A variant is a text in which each
such word was exchanged, with probability `p`, for one of its candidates. Everything between words stays as it was.

Variants are kept on disk, in shards that are written when they are done, so that a run that was stopped goes on with the next.
They hold the number of the row they come from and no label: whoever reads them takes that of the row.
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
"""Rows whose variants are made, and written, together."""
VARIANTS = {"cola": 30, "mrpc": 30, "stsb": 30, "rte": 30, "sst2": 20, "qnli": 20, "mnli": 10, "mnli-mm": 10, "qqp": 10}
"""N of each task (Jiao et al.'s code)."""
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
    """How texts are varied.

    Args:
        variants: of each text, at most; those that come out twice are dropped. None takes the published number for the task.
        probability: with which a word is exchanged.
        candidates: for each word, at most.
        seed: of everything random.
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
    """A task's training texts together with variants of them, as what a stage learns from.

    Args:
        model: folder or hub name: a masked language model, or for "neighbours" any with word embeddings.
        method: "masked-lm" takes what the model predicts for a masked word, and neighbours for words of several tokens;
            "neighbours" takes them for all words.
        vectors: a file of word embeddings in GloVe's format, in which neighbours are looked up; None takes the model's own.
        options: how many variants, and how different.
    """

    model: str
    method: Method = "masked-lm"
    vectors: str | None = None
    options: Augmentation = Augmentation()

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Word:
    """A word that may be exchanged: `text[start:end]`."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return self.text[self.start : self.end]


class Proposer(Protocol):
    """Where candidates come from."""

    def describe(self) -> dict[str, Any]:
        """What decides its answers, as plain values."""

    def propose(self, words: Sequence[Word], count: int) -> list[list[str]]:
        """At most `count` candidates for each word, best first; none where there is nothing to propose."""


def exchangeable(text: str) -> list[Word]:
    """The words of a text that may be exchanged: letters alone, and no stop word."""
    found = [Word(text, match.start(), match.end()) for match in _WORD.finditer(text)]
    return [word for word in found if str(word).isalpha() and str(word).lower() not in STOP_WORDS]


def variants_of(
    text: str, words: Sequence[Word], candidates: Sequence[Sequence[str]], options: Augmentation, count: int, *key: object
) -> list[str]:
    """Different texts made of `text`, at most `count`; the same ones for the same key.

    Args:
        text: the original, which is not among them.
        words: of it, in order.
        candidates: of each word; where there are none, it stays.
        options: probability and seed.
        count: how many are tried.
        key: which text of which data this is.
    """
    draw = random.Random(derive("augment", options.seed, *key))  # noqa: S311 (reproducible, and no secret)
    found: dict[str, None] = {}
    for _ in range(count):
        parts, end = [], 0
        for word, choices in zip(words, candidates, strict=True):
            exchange, which = draw.random() < options.probability, draw.random()
            chosen = choices[int(which * len(choices))] if exchange and choices else str(word)
            parts += [text[end : word.start], chosen]
            end = word.end
        found["".join([*parts, text[end:]])] = None
    found.pop(text, None)
    return list(found)


def write_variants(task: TextTask, proposer: Proposer, options: Augmentation, folder: Path, *, progress: bool = True) -> int:
    """Make variants of every training text of `task`, or go on where that was left off.

    Each text of a pair is varied beside the other's original.

    Args:
        task: its validation and test parts are not looked at.
        proposer: of candidates.
        options: how many, and how different.
        folder: new, empty, or one in which this very work was begun.
        progress: show a progress bar.

    Returns:
        How many variants there are.

    Raises:
        DataError: the folder holds variants of other data, or made in another way, or a shard that is damaged.
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
    """The task with its training texts and their variants, which have the labels of what they were made of.

    Args:
        task: the very one that they were made of.
        folder: from `write_variants`, finished.

    Raises:
        DataError: it is unfinished or damaged, or holds variants of other data.
    """
    manifest = _read_manifest(folder)
    if "variants" not in manifest:
        fix = "Run the same `bitstill augment` again: it goes on where it stopped."
        raise DataError("finished variants", given="some of them", where=str(folder), fix=fix)
    if manifest.get("data") != _data_digest(task):
        given = f"variants of {manifest.get('task')!r}, or of another state of it"
        fix = "Make them again from the data that you train on: bitstill augment."
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
    """A few texts of `task`, each with a variant of it in `folder`."""
    found: dict[int, tuple[str, str]] = {}
    for row, texts in _read_shard(_shard_path(folder, 0), len(task.train.texts)):
        changed = ((column[row], text) for column, text in zip(task.train.texts, texts, strict=True) if text != column[row])
        found.setdefault(row, next(changed))
        if len(found) == count:
            break
    return list(found.values())


def _write_shard(path: Path, task: TextTask, rows: range, proposer: Proposer, options: Augmentation, count: int) -> None:
    """One line for each variant: the row it comes from, and its texts."""
    columns = task.train.texts
    words = {(row, place): exchangeable(columns[place][row]) for row in rows for place in range(len(columns))}
    flat = [word for found in words.values() for word in found]
    proposed = iter(proposer.propose(flat, options.candidates))
    lines: list[str] = []
    for (row, place), found in words.items():
        originals = [column[row] for column in columns]
        candidates = [next(proposed) for _ in found]
        for variant in variants_of(originals[place], found, candidates, options, count, row, place):
            texts = [variant if place == other else text for other, text in enumerate(originals)]
            lines.append(json.dumps([row, *texts], ensure_ascii=False) + "\n")
    write_file(path, "".join(lines).encode())


def _read_shard(path: Path, columns: int) -> list[tuple[int, tuple[str, ...]]]:
    """The variants of a shard: the row that each comes from, and its texts."""
    try:
        with open(path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        found = [(int(row), tuple(texts)) for row, *texts in rows]
        if any(len(texts) != columns for _, texts in found):
            raise ValueError("another number of texts")
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path) from error
    return found


def _damaged(path: Path) -> DataError:
    fix = "Delete this file and run the same `bitstill augment` again: it is made anew, the others are kept."
    return DataError("a whole shard of variants", given="one that is missing or damaged", where=str(path), fix=fix)


def _about(task: TextTask, proposer: Proposer, options: Augmentation, count: int) -> dict[str, Any]:
    settings = {**asdict(options), "variants": count}
    about = {"version": VERSION, "task": task.name, "data": _data_digest(task), "options": settings}
    return {**about, "candidates from": proposer.describe()}


def _claim(folder: Path, about: dict[str, Any]) -> dict[str, str]:
    """Say in the folder what will be in it; refuse one that says something else. Returns the digests of shards that are done.

    One that has been deleted since is not, nor is one that was written just before a stop.
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
            raise ValueError("names of shards that are none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        given = f"{type(error).__name__}: {error}"
        fix = "Name a folder that `bitstill augment` has made."
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
