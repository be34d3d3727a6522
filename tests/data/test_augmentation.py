"""Variants of texts: only replaceable words change, pairs stay separate, and the files on disk match the request."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstill.data import augmentation
from bitstill.data.augmentation import (
    MANIFEST,
    STOP_WORDS,
    Augmentation,
    Word,
    examples,
    replaceable_words,
    variants_of,
    with_variants,
    write_variants,
)
from bitstill.data.text import TextSplit
from bitstill.errors import ArtifactError, DataError
from tests.hf import tiny


class Shouting:
    """Proposes the word itself in capitals, numbered, so that replacements are visible."""

    def __init__(self, name: str = "shouting", dies_after: int = 10**9) -> None:
        self.name, self.calls, self.dies_after = name, 0, dies_after

    def describe(self):
        return {"candidates": self.name}

    def propose(self, words, count):
        self.calls += 1
        if self.calls > self.dies_after:
            raise KeyboardInterrupt
        return [[f"{str(word).upper()}{number}" for number in range(count)] for word in words]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(augmentation, "SHARD", 5)


def lower(text: str) -> str:
    return re.sub(r"([A-Z]+)\d+", lambda match: match[1].lower(), text)


def test_what_may_be_exchanged():
    text = "The film isn't 3D, but it WAS shot in Île-de-France by co_directors!"
    assert [str(word) for word in replaceable_words(text)] == ["film", "isn", "shot", "Île", "de", "France"]
    assert all(text[word.start : word.end] == str(word) for word in replaceable_words(text))
    assert {"the", "it", "was", "but"} <= STOP_WORDS and "film" not in STOP_WORDS


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.integers(0, 5))
def test_everything_but_exchanged_words_stays_as_it_was(text, seed):
    words = replaceable_words(text)
    candidates = [["\0a\0", "\0b\0"] for _ in words]
    pattern = "".join(
        re.escape(text[a:b]) + ("" if word is None else f"(?:{re.escape(str(word))}|\0a\0|\0b\0)")
        for a, b, word in zip(
            [0, *(word.end for word in words)], [*(word.start for word in words), len(text)], [*words, None], strict=True
        )
    )
    found = variants_of(text, words, candidates, Augmentation(seed=seed), 8, 0)
    assert len(found) == len(set(found)) <= 8 and text not in found
    assert all(re.fullmatch(pattern, variant, re.DOTALL) for variant in found)


def test_words_are_exchanged_with_the_probability_that_was_asked_for():
    text = " ".join(["word"] * 200)
    words = replaceable_words(text)
    for probability in (0.1, 0.4, 1.0):
        options = Augmentation(probability=probability)
        (variant,) = variants_of(text, words, [["other"]] * 200, options, 1, 7)
        assert abs(variant.count("other") / 200 - probability) < 0.1


def test_candidates_are_drawn_evenly_and_a_word_without_any_stays():
    text = " ".join(["word"] * 300)
    words = replaceable_words(text)
    (variant,) = variants_of(text, words, [["a", "b", "c"]] * 299 + [[]], Augmentation(probability=1.0), 1, 7)
    assert all(70 < variant.split().count(letter) < 130 for letter in "abc") and variant.endswith("word")


def test_labels_are_those_of_the_text_and_what_is_held_out_is_left_alone(tmp_path):
    task = tiny.text_task(12)
    count = write_variants(task, Shouting(), Augmentation(4), tmp_path / "out", progress=False)
    whole = with_variants(task, tmp_path / "out")
    assert count > 12 and len(whole.train) == 12 + count
    assert whole.validation is task.validation and whole.test is task.test
    (texts,) = whole.train.texts
    (originals,) = task.train.texts
    assert texts[:12] == originals
    for text, label in zip(texts[12:], whole.train.labels[12:], strict=True):
        assert text not in originals and label == task.train.labels[originals.index(lower(text))]


def test_each_text_of_a_pair_is_varied_beside_the_originals_of_the_other(tmp_path):
    """The published code keeps the last variant of the first text in the row while it varies the second."""
    task = tiny.text_task(8, pair=True, names=None)
    write_variants(task, Shouting(), Augmentation(5), tmp_path / "out", progress=False)
    whole = with_variants(task, tmp_path / "out")
    assert whole.train.labels.is_floating_point()
    pairs = list(zip(*task.train.texts, strict=True))
    varied = [0, 0]
    for row in list(zip(*whole.train.texts, strict=True))[8:]:
        original = next(pair for pair in pairs if pair == tuple(map(lower, row)))
        changed = [column for column in range(2) if row[column] != original[column]]
        assert len(changed) == 1
        varied[changed[0]] += 1
    assert min(varied) > 0


def test_rows_keep_saying_where_they_were_in_their_file(tmp_path):
    task = tiny.text_task(12)
    task = replace(task, train=task.train.take(torch.tensor([7, 3, 9])))
    write_variants(task, Shouting(), Augmentation(2), tmp_path / "out", progress=False)
    rows = with_variants(task, tmp_path / "out").train.rows
    assert rows[:3].tolist() == [7, 3, 9] and set(rows[3:].tolist()) <= {7, 3, 9}


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    task, options = tiny.text_task(23), Augmentation(3)
    write_variants(task, Shouting(), options, tmp_path / "whole", progress=False)
    for shards in range(5):
        folder = tmp_path / f"stopped after {shards}"
        with pytest.raises(KeyboardInterrupt):
            write_variants(task, Shouting(dies_after=shards), options, folder, progress=False)
        with pytest.raises(DataError, match="finished variants"):
            with_variants(task, folder)
        again = Shouting()
        write_variants(task, again, options, folder, progress=False)
        assert again.calls == 5 - shards and contents(folder) == contents(tmp_path / "whole")


def test_another_seed_gives_other_variants(tmp_path):
    task = tiny.text_task(8)
    for seed in (0, 1):
        write_variants(task, Shouting(), Augmentation(2, seed=seed), tmp_path / str(seed), progress=False)
    assert with_variants(task, tmp_path / "0").train.texts != with_variants(task, tmp_path / "1").train.texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda task, options: (task, replace(options, probability=0.5), Shouting()), "variants of options"),
        (lambda task, options: (task, options, Shouting("other")), "variants of candidates from"),
        (lambda task, options: (tiny.text_task(9), options, Shouting()), "variants of data"),
    ],
)
def test_a_folder_of_other_variants_is_not_gone_on_with(tmp_path, change, message):
    task, options = tiny.text_task(8), Augmentation(2)
    write_variants(task, Shouting(), options, tmp_path / "out", progress=False)
    before = contents(tmp_path / "out")
    task, options, proposer = change(task, options)
    with pytest.raises(DataError, match=message):
        write_variants(task, proposer, options, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="a new or an empty folder"):
        write_variants(tiny.text_task(8), Shouting(), Augmentation(2), tmp_path, progress=False)
    with pytest.raises(DataError, match="a folder of variants"):
        with_variants(tiny.text_task(8), tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({"version": 99}))
    with pytest.raises(DataError, match="version 99"):
        with_variants(tiny.text_task(8), tmp_path)


@pytest.mark.parametrize("damage", ["cut", "fewer", "changed", "gone"])
def test_a_damaged_shard_is_named_and_can_be_made_again(tmp_path, damage):
    task, options = tiny.text_task(12), Augmentation(2)
    write_variants(task, Shouting(), options, tmp_path / "out", progress=False)
    whole = contents(tmp_path / "out")
    path = tmp_path / "out" / "variants-00001.jsonl"
    if damage == "gone":
        path.unlink()
    else:
        text = whole[path.name]
        damaged = {"cut": text[:-20], "fewer": text[text.index(b"\n") + 1 :], "changed": bytes(100) + text[100:]}
        path.write_bytes(damaged[damage])
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match=r"variants-00001\.jsonl"):
        with_variants(task, tmp_path / "out")
    if damage != "gone":
        with pytest.raises(DataError, match=r"variants-00001\.jsonl"):
            write_variants(task, Shouting(), options, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before, "a damaged shard is not made a whole one by a new digest"
    path.unlink(missing_ok=True)
    write_variants(task, Shouting(), options, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == whole


def test_variants_of_other_data_are_not_trained_on(tmp_path):
    write_variants(tiny.text_task(8), Shouting(), Augmentation(2), tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="variants of the training texts of 'tiny'"):
        with_variants(tiny.text_task(9), tmp_path / "out")


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ArtifactError, match="a folder that can be written"):
            write_variants(tiny.text_task(8), Shouting(), Augmentation(2), folder, progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_manifest_that_names_other_files_is_none(tmp_path):
    write_variants(tiny.text_task(8), Shouting(), Augmentation(2), tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    manifest["shards"] = {"../elsewhere.jsonl": "0"}
    (tmp_path / "out" / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="a folder of variants"):
        with_variants(tiny.text_task(8), tmp_path / "out")


def test_examples_are_texts_and_what_became_of_them(tmp_path):
    task = tiny.text_task(8, pair=True, names=None)
    write_variants(task, Shouting(), Augmentation(3), tmp_path / "out", progress=False)
    found = examples(task, tmp_path / "out", 3)
    assert len(found) == 3 and all(lower(variant) == text != variant for text, variant in found)


def test_texts_without_a_word_to_exchange_have_no_variants(tmp_path):
    task = tiny.text_task(8)
    task = replace(task, train=TextSplit((["the of and", "42!"],), torch.tensor([0, 1])))
    assert write_variants(task, Shouting(), Augmentation(3), tmp_path / "out", progress=False) == 0
    assert len(with_variants(task, tmp_path / "out").train) == 2


def test_a_word_knows_its_place():
    assert str(Word("two words", 4, 9)) == "words"
