"""Replacement candidates against slow, obvious versions: single predictions of the model, and a full sort by cosine."""

from __future__ import annotations

import pytest
import torch

from bitstill.data.augmentation import replaceable_words
from bitstill.errors import DataError
from bitstill.hf.candidates import MaskedLanguageModel, Neighbours, _around, neighbours_from_file, own_neighbours, whole_words
from tests.hf import tiny

WORDS = [*tiny.VOCABULARY, "##s", "##ly", "42", "!", "films"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(tiny.saved_masked_lm(tmp_path_factory.mktemp("models") / "predictor", WORDS))


@pytest.fixture(scope="module")
def language_model(source):
    return MaskedLanguageModel(source, own_neighbours(source), torch.device("cpu"), progress=False)


def test_whole_words_are_neither_pieces_nor_signs_nor_special(source):
    found = whole_words(tiny.tokenizer(WORDS))
    assert set(found) == {*tiny.WORDS, "films"} and found["film"] == WORDS.index("film")


def test_the_model_reads_the_masked_text_and_the_text_itself(language_model):
    text = "a good film, never dull"
    words = replaceable_words(text)
    assert [str(word) for word in words] == ["good", "film", "never", "dull"]
    found = language_model.propose(words, 5)
    for word, candidates in zip(words, found, strict=True):
        masked = text[: word.start] + "[MASK]" + text[word.end :]
        ids = language_model.tokenizer(masked, text, return_tensors="pt")
        with torch.no_grad():
            row = language_model.model(**ids).logits[
                0, ids["input_ids"][0].tolist().index(language_model.tokenizer.mask_token_id)
            ]
        best = [WORDS[index] for index in row.argsort(descending=True)[:6].tolist()]
        wanted = [name for name in best if name in {*tiny.WORDS, "films"} and name != str(word)][:5]
        assert candidates == wanted


def test_words_of_several_tokens_get_neighbours_of_their_pieces(language_model, source):
    (word,) = replaceable_words("sharply")
    table = language_model.model.get_input_embeddings().weight
    unit = torch.nn.functional.normalize(table, dim=1)
    mean = (unit[WORDS.index("sharp")] + unit[WORDS.index("##ly")]) / 2
    cosine = {name: float(torch.cosine_similarity(mean, table[WORDS.index(name)], dim=0)) for name in {*tiny.WORDS, "films"}}
    wanted = sorted(cosine, key=cosine.__getitem__, reverse=True)[:4]
    assert language_model.propose([word], 4) == [wanted]


def test_of_a_long_text_what_is_around_the_word_is_read(language_model):
    """The tokenizer would truncate the text, the mask token included."""
    text = " ".join(["film"] * 60) + " good " + " ".join(["film"] * 60)
    words = [word for word in replaceable_words(text) if str(word) == "good"]
    (found,) = language_model.propose(words, 3)
    limit = tiny.LIMIT
    around, word = _around(words[0], limit)
    assert str(word) == "good" and len(around) <= 2 * limit + 4 and around.split() == ["film"] * 6 + ["good"] + ["film"] * 6
    assert found == language_model.propose([word], 3)[0] and found


@pytest.mark.parametrize("characters", [0, 1, 3, 7, 100])
def test_a_text_is_cut_at_spaces(characters):
    text = "ab cde good fgh i"
    for word in replaceable_words(text):
        around, place = _around(word, characters)
        assert str(place) == str(word) and around in text and len(around) <= len(str(word)) + 2 * characters
        start = word.start - place.start
        if " " in text[max(0, word.start - characters) : word.start]:
            assert start == 0 or text[start - 1] == " "


def test_neighbours_do_not_depend_on_which_words_are_asked_for_together():
    """A resumed run asks for other words than an uninterrupted one."""
    torch.manual_seed(0)
    letters = "abcdefghij"
    names = [f"{a}{b}{c}{d}" for a in letters for b in letters for c in letters for d in letters[:2]]
    vectors = torch.randn(len(names), 24).repeat_interleave(2, 0)[: len(names)]  # each has a twin, so all are ties in pairs
    words = replaceable_words(" ".join(names[:64]))
    wanted = Neighbours(names, vectors, "here").propose(words, 5)
    for size in (1, 3, 17):
        asked = Neighbours(names, vectors, "here")
        assert [found for at in range(0, 64, size) for found in asked.propose(words[at : at + size], 5)] == wanted
    cosine = torch.nn.functional.normalize(vectors.double(), dim=1)
    for word, found in zip(words, wanted, strict=True):
        near = cosine @ cosine[names.index(str(word))]
        assert [float(near[names.index(name)]) for name in found] == sorted(
            (float(near[names.index(n)]) for n in found), reverse=True
        )


def test_neighbours_are_the_nearest_by_cosine_without_the_word_itself():
    torch.manual_seed(0)
    names = [f"w{chr(97 + index)}" for index in range(20)]
    vectors = torch.randn(20, 6) * torch.rand(20, 1)
    table = Neighbours(names, vectors, "made up")
    found = table.propose(replaceable_words("wc, Wd, unknown"), 4)
    for word, candidates in zip(("wc", "wd"), found, strict=False):
        cosine = torch.cosine_similarity(vectors[names.index(word)], vectors)
        order = [names[index] for index in cosine.argsort(descending=True).tolist()]
        assert candidates == [name for name in order if name != word][:4]
    assert found[2] == []
    assert table.propose(replaceable_words("wc"), 4) == found[:1], "what was looked up once is remembered"


def test_a_file_of_embeddings(tmp_path):
    path = tmp_path / "glove.txt"
    path.write_text("good 1.0 0.0\nfine 0.9 0.1\nat a place 0.0 1.0\nbad -1.0 0.0\n. 0.9 0.0\n")
    table = neighbours_from_file(path)
    assert table.words == ["good", "fine", "at a place", "bad", "."], "as a few lines of published tables are"
    assert table.propose(replaceable_words("good"), 2) == [[".", "fine"]]


@pytest.mark.parametrize("text", ["", "good 1.0 0.0\nfine 0.9\n", "good\n", "good one two\n", "good nan 0.0\n"])
def test_a_file_that_is_no_such_table(tmp_path, text):
    path = tmp_path / "glove.txt"
    path.write_text(text)
    with pytest.raises(DataError, match="a table of word embeddings"):
        neighbours_from_file(path)
    with pytest.raises(DataError, match="a table of word embeddings"):
        neighbours_from_file(tmp_path / "nowhere.txt")


def test_a_model_that_predicts_no_words_says_so(tmp_path):
    folder = str(tiny.saved(tmp_path / "bert", "bert", body=True))
    with pytest.raises(DataError, match=r"a masked language model.*neighbours"):
        MaskedLanguageModel(folder, own_neighbours(folder), torch.device("cpu"))
    with pytest.raises(DataError, match="wanted a model"):
        own_neighbours(str(tmp_path))
