"""A corpus as packed sequences: every token once and in order, for any chunk size, and again after an interruption."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitstill.data import corpus as module
from bitstill.data.corpus import MANIFEST, TOKENS, Corpus, Encoder, pack_corpus, wait_until_packed
from bitstill.errors import ArtifactError, DataError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:datasets.*")
SEPARATOR, START, END = 1, 2, 3


def letters(texts: list[str]) -> list[list[int]]:
    return [[ord(letter) for letter in text] for text in texts]


ENCODER = Encoder(letters, SEPARATOR, (START,), (END,), {"letters": True})


def write(path: Path, texts: list[str]) -> Corpus:
    path.mkdir(exist_ok=True)
    datasets.Dataset.from_dict({"text": texts}).to_parquet(str(path / "train.parquet"))
    return Corpus(str(path), length=8)


def flat(texts: list[str]) -> list[int]:
    return [token for ids in letters(texts) if ids for token in (*ids, SEPARATOR)]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(module, "DOCUMENTS", 3)
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


TEXTS = ["once upon a time", "", "there was", "a", "bit", "that was still", "ten", "eleven", "twelve"]


def test_every_token_is_there_once_and_in_order(tmp_path):
    found = pack_corpus(write(tmp_path / "texts", TEXTS), ENCODER, tmp_path / "out", progress=False)
    assert found.dtype == torch.int32 and found.shape[1] == 8
    assert bool((found[:, 0] == START).all()) and bool((found[:, -1] == END).all())
    tokens = flat(TEXTS)
    assert found[:, 1:-1].flatten().tolist() == tokens[: len(tokens) // 6 * 6]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text("abcd", max_size=9), min_size=1, max_size=12), size=st.integers(1, 4))
def test_the_encoder_cuts_what_it_is_given(texts, size):
    tokens = flat(texts)
    rows = ENCODER.sequences(tokens, size + 2)
    assert [token for row in rows for token in row[1:-1]] == tokens[: len(tokens) // size * size]


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    corpus = write(tmp_path / "texts", TEXTS)
    whole = pack_corpus(corpus, ENCODER, tmp_path / "whole", progress=False)
    for stop in range(1, 4):
        calls = 0

        def dying(texts, stop=stop):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return letters(texts)

        folder = tmp_path / f"stopped at {stop}"
        with pytest.raises(KeyboardInterrupt):
            pack_corpus(corpus, Encoder(dying, SEPARATOR, (START,), (END,), ENCODER.about), folder, progress=False)
        with open(folder / TOKENS, "ab") as file:
            file.write(b"half written")
        assert torch.equal(pack_corpus(corpus, ENCODER, folder, progress=False), whole)
        for name in (TOKENS, MANIFEST):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_finished_is_not_read_again(tmp_path):
    corpus = write(tmp_path / "texts", TEXTS)
    first = pack_corpus(corpus, ENCODER, tmp_path / "out", progress=False)
    (tmp_path / "texts" / "train.parquet").unlink()
    assert torch.equal(pack_corpus(corpus, ENCODER, tmp_path / "out", progress=False), first)


def test_a_limit_in_characters(tmp_path):
    corpus = write(tmp_path / "texts", TEXTS)
    limited = Corpus(corpus.source, length=8, limit=20)
    found = pack_corpus(limited, ENCODER, tmp_path / "out", progress=False)
    tokens = flat(["once upon a time", "ther"])
    assert found[:, 1:-1].flatten().tolist() == tokens[: len(tokens) // 6 * 6]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["characters"] == 20


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "file"])
def test_other_kinds_of_files(tmp_path, kind):
    texts = ["once upon a time", "there was a bit"]
    folder = tmp_path / "texts"
    folder.mkdir()
    if kind in ("txt", "file"):
        (folder / "train.txt").write_text("\n\n".join(texts))
    elif kind == "jsonl":
        (folder / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        (folder / "train.csv").write_text("text\n" + "\n".join(texts) + "\n")
    source = folder / "train.txt" if kind == "file" else folder
    found = pack_corpus(Corpus(str(source), length=8), ENCODER, tmp_path / "out", progress=False)
    tokens = flat(texts)
    assert found[:, 1:-1].flatten().tolist() == tokens[: len(tokens) // 6 * 6]


FOREIGN = {
    "txt": ("café au lait\r\nand more\r\n\r\nthe end", ["café au lait\nand more", "the end"]),
    "csv": ('id,text\r\n0,"café, au lait"\r\n1,\r\n2,the end', ["café, au lait", "", "the end"]),
    "jsonl": ('{"text": "café au lait"}\r\n\r\n{"text": "the end"}', ["café au lait", "the end"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_byte_order_mark_and_other_line_ends_are_no_text(tmp_path, kind):
    content, texts = FOREIGN[kind]
    (tmp_path / f"train.{kind}").write_bytes(content.encode("utf-8-sig"))
    (tmp_path / f"train_old.{kind}").write_text("not read")
    found = pack_corpus(Corpus(str(tmp_path), length=8), ENCODER, tmp_path / "out", progress=False)
    tokens = flat(texts)
    assert found[:, 1:-1].flatten().tolist() == tokens[: len(tokens) // 6 * 6]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["documents"] == len(texts)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", "first\ncafé".encode("latin-1"), "train.txt: wanted a readable file in utf-8, got .* in line 2"),
        ("train.csv", b"text;id\na;1\n", "train.csv, line 1: wanted a header with commas"),
        ("train.csv", b"text,text\na,b\n", "columns of different names, got 'text' twice"),
        ("train.jsonl", b'{"text": "a"}\n{"text": null}\n', "train.jsonl, row 1: wanted a text in column 'text', got None"),
        ("train.jsonl", b'{"text": ' + b"[" * 100_000, "train.jsonl: wanted a readable file, got RecursionError"),
        ("train-00001-of-00002.txt", b"a\n", "all 2 pieces of train, got 1 of them"),
    ],
)
def test_files_that_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        pack_corpus(Corpus(str(tmp_path), length=8), ENCODER, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write(path, ["", ""]), "text for at least one sequence"),
        (lambda path: write(path, ["abc"]), "text for at least one sequence"),
        (lambda path: Corpus(write(path, TEXTS).source, column="body"), "a text in column 'body'"),
        (lambda path: Corpus(str(path.parent)), "train.*got none"),
        (lambda path: Corpus(str(path.parent / "nowhere")), "a readable corpus"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_corpus_without_text(tmp_path, monkeypatch, make, message):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=message):
        pack_corpus(make(tmp_path / "texts"), ENCODER, tmp_path / "out", progress=False)


def test_no_documents_at_all(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="wanted"):
        pack_corpus(Corpus(str(tmp_path / "texts")), ENCODER, tmp_path / "out", progress=False)


def test_a_file_that_is_damaged(tmp_path):
    write(tmp_path / "texts", TEXTS)
    path = tmp_path / "texts" / "train.parquet"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="wanted a readable file, got ArrowInvalid"):
        pack_corpus(Corpus(str(tmp_path / "texts")), ENCODER, tmp_path / "out", progress=False)
    right = write(tmp_path / "right", TEXTS)
    assert len(pack_corpus(right, ENCODER, tmp_path / "out", progress=False)), "nothing had been read into the folder"


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "manifest", "key"])
def test_tokens_that_are_damaged(tmp_path, damage):
    corpus, folder = write(tmp_path / "texts", TEXTS), tmp_path / "out"
    pack_corpus(corpus, ENCODER, folder, progress=False)
    if damage == "cut":
        (folder / TOKENS).write_bytes((folder / TOKENS).read_bytes()[:-4])
    elif damage == "changed":
        tokens = bytearray((folder / TOKENS).read_bytes())
        tokens[4] ^= 1
        (folder / TOKENS).write_bytes(tokens)
    elif damage == "gone":
        (folder / TOKENS).unlink()
    elif damage == "manifest":
        (folder / MANIFEST).write_text("{")
    else:
        state = json.loads((folder / MANIFEST).read_text())
        del state["carry"]
        (folder / MANIFEST).write_text(json.dumps(state))
    with pytest.raises(DataError, match="an intact file of tokens"):
        pack_corpus(corpus, ENCODER, folder, progress=False)


def test_tokens_that_were_damaged_after_a_stop_are_not_gone_on_with(tmp_path):
    corpus, folder = write(tmp_path / "texts", TEXTS), tmp_path / "out"
    calls = 0

    def dying(texts):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return letters(texts)

    with pytest.raises(KeyboardInterrupt):
        pack_corpus(corpus, Encoder(dying, SEPARATOR, (START,), (END,), ENCODER.about), folder, progress=False)
    (folder / TOKENS).write_bytes(bytes((folder / TOKENS).stat().st_size))
    with pytest.raises(DataError, match="changed bytes"):
        pack_corpus(corpus, ENCODER, folder, progress=False)


def test_a_place_that_cannot_be_written(tmp_path):
    corpus = write(tmp_path / "texts", TEXTS)
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(ArtifactError, match="a folder that can be written"):
            pack_corpus(corpus, ENCODER, folder, progress=False)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("lines", [1, 4, 50])
def test_a_text_file_without_empty_lines_is_read_in_pieces(tmp_path, monkeypatch, lines):
    """One sentence per line: as a single document, the whole file would be held in memory."""
    monkeypatch.setattr(module, "PIECE", 10)
    texts = [f"line {number}" for number in range(lines)]
    (tmp_path / "train.txt").write_text("\n".join(texts))
    asked = []

    def noting(texts):
        asked.extend(texts)
        return letters(texts)

    encoder = Encoder(noting, SEPARATOR, (START,), (END,), ENCODER.about)
    corpus = Corpus(str(tmp_path / "train.txt"), length=8)
    try:
        pack_corpus(corpus, encoder, tmp_path / "out", progress=False)
    except DataError:
        assert lines == 1, "too short for a sequence"
    assert asked == ["\n".join(texts[start : start + 2]) for start in range(0, lines, 2)]


def test_long_documents_are_tokenized_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DOCUMENTS", 100)
    whole = pack_corpus(write(tmp_path / "texts", TEXTS), ENCODER, tmp_path / "whole", progress=False)
    monkeypatch.setattr(module, "CHARACTERS", 12)
    sizes = []

    def noting(texts):
        sizes.append(sum(map(len, texts)))
        return letters(texts)

    corpus, encoder = Corpus(str(tmp_path / "texts"), length=8), Encoder(noting, SEPARATOR, (START,), (END,), ENCODER.about)
    assert torch.equal(pack_corpus(corpus, encoder, tmp_path / "out", progress=False), whole)
    longest = max(map(len, TEXTS))
    assert len(sizes) > 2 and max(sizes) < 12 + longest


def test_a_corpus_that_was_edited_is_another_one(tmp_path):
    corpus, folder = write(tmp_path / "texts", TEXTS), tmp_path / "out"
    pack_corpus(corpus, ENCODER, folder, progress=False)
    write(tmp_path / "texts", [*TEXTS, "thirteen"])
    with pytest.raises(DataError, match="tokens of files"):
        pack_corpus(corpus, ENCODER, folder, progress=False)


def test_the_others_wait_for_the_main_process(tmp_path):
    folder = tmp_path / "out"
    waiting = threading.Thread(target=wait_until_packed, args=(folder, 0.01))
    waiting.start()
    pack_corpus(write(tmp_path / "texts", TEXTS), ENCODER, folder, progress=False)
    waiting.join(timeout=30)
    assert not waiting.is_alive()


def test_tokens_of_something_else_are_left_alone(tmp_path):
    corpus, folder = write(tmp_path / "texts", TEXTS), tmp_path / "out"
    pack_corpus(corpus, ENCODER, folder, progress=False)
    with pytest.raises(DataError, match="tokens of length 9"):
        pack_corpus(Corpus(corpus.source, length=9), ENCODER, folder, progress=False)
    other = Encoder(letters, SEPARATOR, (START,), (END,), {"letters": False})
    with pytest.raises(DataError, match="tokens of tokenizer"):
        pack_corpus(corpus, other, folder, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="a new or an empty folder"):
        pack_corpus(corpus, ENCODER, tmp_path / "mine", progress=False)
