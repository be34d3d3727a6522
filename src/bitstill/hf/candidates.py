"""Candidates for replacing words: predictions of a masked language model, or nearest neighbours in a table of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoModel, AutoModelForMaskedLM

from bitstill.data.augmentation import Word
from bitstill.errors import BitstillError, DataError, one_line
from bitstill.hf.quiet import quiet
from bitstill.hf.read_config import read_config
from bitstill.hf.tokenize import load_tokenizer
from bitstill.model.state import stored_tensors

LARGEST_TABLE = 100_000
"""Words read from a file of embeddings: the most frequent ones, which come first (Jiao et al. 2020)."""
BATCH, LONGEST = 32, 512


class Neighbours:
    """Nearest neighbours of words, by cosine similarity of their embeddings.

    Args:
        words: distinct words of the table.
        vectors: their embeddings, float (words, width).
        source: name of the table.
        pieces: function that computes a vector for a word outside the table, or None.
    """

    def __init__(self, words: Sequence[str], vectors: Tensor, source: str, pieces: Any = None) -> None:
        self.words, self.source = list(words), source
        self.vectors = torch.nn.functional.normalize(vectors.float(), dim=1)
        self.index = {word: number for number, word in enumerate(self.words)}
        self._pieces = pieces
        self._known: dict[str, list[str]] = {}

    def describe(self) -> dict[str, Any]:
        """Plain values that identify the table."""
        return {"neighbours in": self.source, "digest": _digest([self.vectors])}

    def propose(self, words: Sequence[Word], count: int) -> list[list[str]]:
        """The `count` nearest words to each word, excluding itself."""
        distinct = dict.fromkeys(str(word) for word in words)
        queries = {word: vector for word in distinct if word not in self._known and (vector := self._vector(word)) is not None}
        for chunk in _chunks(list(queries), 256):
            unit = torch.nn.functional.normalize(torch.stack([queries[word] for word in chunk]), dim=1)
            near = (unit @ self.vectors.T).topk(min(2 * count + 2, len(self.words)), dim=1).indices.sort(dim=1).values
            # The last bits of that product depend on the batch of words, and so would the order of near ties.
            cosine = (self.vectors[near].double() * unit[:, None].double()).sum(2)
            best = near.gather(1, cosine.sort(dim=1, descending=True, stable=True).indices)
            for word, row in zip(chunk, best.tolist(), strict=True):
                named = [self.words[number] for number in row]
                self._known[word] = [other for other in named if other.lower() != word.lower()][:count]
        return [self._known.get(str(word), []) for word in words]

    def _vector(self, word: str) -> Tensor | None:
        for form in (word, word.lower()):
            if form in self.index:
                return self.vectors[self.index[form]]
        return None if self._pieces is None else self._pieces(word)


class MaskedLanguageModel:
    """Predictions of a masked language model for a masked word; nearest neighbours for words of several tokens.

    As in Jiao et al. (2020), the input is the text with the word masked, followed by the text itself, and the best predictions
    are the candidates, without pieces of words and without the word itself.

    Args:
        source: folder or hub name.
        otherwise: nearest neighbours for words that are not one token.
        device: device of the model.
        progress: show a progress bar for the words of a shard.
    """

    def __init__(self, source: str, otherwise: Neighbours, device: torch.device, *, progress: bool = True) -> None:
        self.source, self.otherwise, self.device, self.progress = source, otherwise, device, progress
        self.tokenizer = load_tokenizer(source)
        self.model = _load(AutoModelForMaskedLM, source, "a masked language model", "Use --method neighbours with it.")
        self.model.to(device)
        if self.tokenizer.mask_token_id is None:
            fix = "Use --method neighbours with it."
            raise DataError("a tokenizer with a mask token", given="none", where=source, fix=fix)
        self.whole = {token: word for word, token in whole_words(self.tokenizer).items()}

    def describe(self) -> dict[str, Any]:
        """Plain values that identify the model and the table."""
        about = {"masked language model": self.source, "digest": _digest(stored_tensors(self.model).values())}
        return {**about, **self.otherwise.describe()}

    def propose(self, words: Sequence[Word], count: int) -> list[list[str]]:
        """The `count` best predictions for words that are one token; neighbours for the others."""
        single = [place for place, word in enumerate(words) if self._token(str(word)) in self.whole]
        rest = sorted(set(range(len(words))) - set(single))
        candidates: dict[int, list[str]] = dict(zip(rest, self.otherwise.propose([words[p] for p in rest], count), strict=True))
        single.sort(key=lambda place: len(words[place].text))  # texts of similar length together
        with tqdm(total=len(single), desc="predicting words", unit="word", leave=False, disable=not self.progress) as bar:
            for chunk in _chunks(single, BATCH):
                candidates |= zip(chunk, self._predict([words[place] for place in chunk], count), strict=True)
                bar.update(len(chunk))
        return [candidates[place] for place in range(len(words))]

    def _predict(self, words: Sequence[Word], count: int) -> list[list[str]]:
        limit = min(LONGEST, self.tokenizer.model_max_length)
        # Only so much context that two copies of the text fit: most tokens have four letters or more.
        around = [_around(word, limit) for word in words]
        masked = [text[: word.start] + self.tokenizer.mask_token + text[word.end :] for text, word in around]
        originals = [text for text, _ in around]
        inputs = self.tokenizer(masked, originals, truncation=True, max_length=limit, padding=True, return_tensors="pt")
        here = inputs["input_ids"] == self.tokenizer.mask_token_id
        with torch.inference_mode():
            logits = self.model(**inputs.to(self.device)).logits
            rows = logits[torch.arange(len(words)), here.int().argmax(1)].float().cpu()
        candidates: list[list[str]] = []
        for word, row, there in zip(words, rows, here.any(1).tolist(), strict=True):
            if not there:  # truncated nevertheless
                candidates.append([])
                continue
            best = row.topk(min(count + 1, row.shape[-1])).indices.tolist()
            named = [self.whole[token] for token in best if token in self.whole]
            candidates.append([other for other in named if other.lower() != str(word).lower()][:count])
        return candidates

    def _token(self, word: str) -> int | None:
        ids = self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
        return ids[0] if len(ids) == 1 else None


def _around(word: Word, characters: int) -> tuple[str, Word]:
    """Context of a word with at most `characters` on either side, cut at spaces, and the word in it."""
    start, end = max(0, word.start - characters), min(len(word.text), word.end + characters)
    if start > 0:
        start = max(start, word.text.find(" ", start, word.start) + 1)
    if end < len(word.text):
        space = word.text.rfind(" ", word.end, end)
        end = space if space >= 0 else end
    text = word.text[start:end]
    return text, Word(text, word.start - start, word.end - start)


def own_neighbours(source: str) -> Neighbours:
    """Neighbours in a model's vocabulary, by its input embeddings; other words have the mean embedding of their pieces.

    Args:
        source: folder or hub name.

    Raises:
        DataError: no such model.
    """
    tokenizer = load_tokenizer(source)
    table: Tensor = _load(AutoModel, source, "a model", "Check the name.").get_input_embeddings().weight.detach().float()
    words = whole_words(tokenizer)
    unit = torch.nn.functional.normalize(table, dim=1)

    def of_pieces(word: str) -> Tensor:
        return unit[tokenizer(f" {word}", add_special_tokens=False)["input_ids"]].mean(0)

    return Neighbours(list(words), table[list(words.values())], f"{source}, input embeddings", of_pieces)


def neighbours_from_file(path: Path) -> Neighbours:
    """Neighbours in a table in GloVe format: a word and its numbers on each line, most frequent words first.

    Raises:
        DataError: the file cannot be read, or has another format.
    """
    words: dict[str, npt.NDArray[np.float32]] = {}
    width = 0
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                line = line.rstrip("\n")  # a few words in published tables contain spaces
                word, *numbers = line.rsplit(" ", width) if width else line.split(" ")
                vector = np.array(numbers, dtype=np.float32)
                width = width or len(vector)
                if len(vector) != width or not width or not np.isfinite(vector).all():
                    raise ValueError(f"{len(vector)} numbers, after lines of {width}")
                words.setdefault(word, vector)
                if len(words) == LARGEST_TABLE:
                    break
    except (OSError, ValueError) as error:
        given = f"{type(error).__name__}: {error}"
        fix = "Each line must be a word and its numbers, separated by single spaces, as in GloVe's text files."
        raise DataError(
            "a table of word embeddings", given=given, where=f"{path}, after {len(words)} words", fix=fix
        ) from error
    if not words:
        raise DataError("a table of word embeddings", given="an empty file", where=str(path), fix="Check the path.")
    return Neighbours(list(words), torch.from_numpy(np.stack(list(words.values()))), path.name)


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Tokens that are whole words of letters, by word: no pieces, numbers, punctuation or special tokens."""
    ids = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    texts = [text.strip() for text in tokenizer.batch_decode([[token] for token in ids])]
    named = [(text, token) for text, token in zip(texts, ids, strict=True) if text.isalpha()]
    again = tokenizer([f" {text}" for text, _ in named], add_special_tokens=False)["input_ids"]
    return {text: token for (text, token), back in zip(named, again, strict=True) if back == [token]}


def _load(auto: Any, source: str, expected: str, fix: str) -> Any:
    try:
        with quiet():
            config = read_config(source)
            model, report = auto.from_pretrained(
                source, config=config, dtype="float32", output_loading_info=True, use_safetensors=True, trust_remote_code=False
            )
    except BitstillError:
        raise
    except Exception as error:  # transformers raises many kinds for damaged or missing files
        raise DataError(expected, given=one_line(error), where=source, fix=fix) from error
    missing = [name for name in report["missing_keys"] if ".pooler." not in f".{name}"]
    if missing:
        raise DataError(expected, given=f"one without {sorted(missing)[0]}", where=source, fix=fix)
    return model.eval().requires_grad_(False)


def _digest(tensors: Any) -> str:
    state = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        state.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return state.hexdigest()


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
