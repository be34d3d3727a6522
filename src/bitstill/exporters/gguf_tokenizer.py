"""WordPiece tokenizers in GGUF. llama.cpp always performs BERT's steps, so a tokenizer.json with other steps is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitstill.errors import ArtifactError

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
"""Types of tokens: pieces of words, special tokens, and tokens matched before the text is split into words."""
_WORD = "\u2581"
"""Prefix of a token that begins a word; WordPiece marks continuations instead."""
_LONGEST_WORD = 100
"""Length of a word beyond which BERT's tokenizer returns [UNK], while llama.cpp still splits it into pieces."""
_SPECIAL = ("[CLS]", "[UNK]", "[SEP]", "[PAD]", "[MASK]")

Section = Mapping[str, Any]


def add_tokenizer(writer: Any, path: Path, rows: int) -> None:
    """Write the tokenizer in `path`, a tokenizer.json, as llama.cpp's "bert".

    Args:
        writer: writer of the package gguf.
        path: path of tokenizer.json.
        rows: rows of the word embeddings; those without a token get an unused name.

    Raises:
        ArtifactError: the file is missing, or has steps that llama.cpp does not support.
    """
    try:
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = dict(tokenizer["model"]["vocab"])
        lowercase = _check(tokenizer, path)
        added = {token["content"]: token for token in tokenizer.get("added_tokens") or ()}
        vocabulary |= {content: token["id"] for content, token in added.items()}
        special = {content for content, token in added.items() if token.get("special")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ArtifactError):
            raise
        raise _unfit("a tokenizer.json", f"{type(error).__name__}: {error}", str(path)) from None
    words = {number: token for token, number in vocabulary.items()}
    pieces, kinds = [], []
    for number in range(rows):
        token = words.get(number, f"[PAD{number}]")
        if token in special or number not in words:
            kind, piece = _CONTROL, token
        elif token in added:
            kind, piece = _USER_DEFINED, token
        else:
            kind, piece = _NORMAL, token[2:] if token.startswith("##") else f"{_WORD}{token}"
        pieces.append(piece)
        kinds.append(kind)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(pieces)
    writer.add_token_types(kinds)
    writer.add_bool("tokenizer.ggml.normalizer.lowercase", lowercase)
    ids = (writer.add_bos_token_id, writer.add_unk_token_id, writer.add_sep_token_id, writer.add_pad_token_id)
    for token, add in zip(_SPECIAL, (*ids, writer.add_mask_token_id), strict=True):
        if token in vocabulary:
            add(vocabulary[token])


def _check(tokenizer: Section, path: Path) -> bool:
    """Compare every section with llama.cpp's steps, and return whether the normalizer lowercases.

    Raises:
        ArtifactError: a section differs; names it.
    """
    model = tokenizer["model"]
    for key, expected in (
        ("type", "WordPiece"),
        ("unk_token", "[UNK]"),
        ("continuing_subword_prefix", "##"),
        ("max_input_chars_per_word", _LONGEST_WORD),
    ):
        if model.get(key) != expected:
            raise _unfit(repr(expected), repr(model.get(key)), f"{path}: model.{key}")
    lowercase = _check_normalizer(tokenizer.get("normalizer"), path)
    steps = list(_flat(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    if [step.get("type") for step in steps] != ["BertPreTokenizer"]:
        raise _unfit("a BertPreTokenizer", _types(steps), f"{path}: pre_tokenizer")
    _check_template(tokenizer.get("post_processor"), model["vocab"], path)
    for token in tokenizer.get("added_tokens") or ():
        _check_added(token, path)
    return lowercase


def _check_normalizer(normalizer: Any, path: Path) -> bool:
    """Whether text is lowercased, by a normalizer with llama.cpp's steps.

    These remove control characters, separate Chinese characters, decompose every character and strip accents.
    """
    steps = list(_flat(normalizer, "normalizers"))
    kinds = [step.get("type") for step in steps]
    bert = [step for step in steps if step.get("type") == "BertNormalizer"]
    where = f"{path}: normalizer"
    if len(bert) != 1 or not set(kinds) <= {"BertNormalizer", "NFD", "Lowercase", "StripAccents"}:
        raise _unfit("a BertNormalizer, perhaps with NFD, Lowercase and StripAccents beside it", _types(steps), where)
    for key in ("clean_text", "handle_chinese_chars"):
        if bert[0].get(key) is not True:
            raise _unfit("true", repr(bert[0].get(key)), f"{where}.{key}")
    own_lowercase = bert[0].get("lowercase") is True
    strips = bert[0].get("strip_accents")
    strips = own_lowercase if strips is None else strips is True
    decomposed = "NFD" in kinds and "StripAccents" in kinds[kinds.index("NFD") :]
    if not (strips or decomposed):
        raise _unfit("accents that are stripped", "accents that are kept", f"{where}.strip_accents")
    return own_lowercase or "Lowercase" in kinds


def _check_template(processor: Any, vocabulary: Section, path: Path) -> None:
    """Check that the post-processor adds [CLS] before a text and [SEP] after it."""
    where, kind = f"{path}: post_processor", processor.get("type") if isinstance(processor, Mapping) else None
    expected = [("[CLS]", vocabulary.get("[CLS]")), ("[SEP]", vocabulary.get("[SEP]"))]
    if kind == "BertProcessing":
        frame = [tuple(processor["cls"]), tuple(processor["sep"])]
    elif kind == "TemplateProcessing":
        parts = [next(iter(part.items())) for part in processor["single"]]
        ids = {name: token["ids"] for name, token in processor["special_tokens"].items()}
        if [name for name, _ in parts] != ["SpecialToken", "Sequence", "SpecialToken"] or any(
            about["type_id"] != 0 for _, about in parts
        ):
            raise _unfit("[CLS] text [SEP], all of segment 0", json.dumps(processor["single"])[:200], where)
        frame = [(about["id"], *ids[about["id"]]) for name, about in parts if name == "SpecialToken"]
    else:
        raise _unfit("[CLS] text [SEP] by TemplateProcessing or BertProcessing", str(kind), where)
    if frame != expected or None in dict(expected).values():
        raise _unfit(f"{expected}", f"{frame}", where)


def _check_added(token: Section, path: Path) -> None:
    """Check that an added token is matched literally: without stripping neighbours, and in text before normalization."""
    where = f"{path}: added_tokens {token['content']!r}"
    for key in ("lstrip", "rstrip", "single_word"):
        if token.get(key):
            raise _unfit("false", "true", f"{where}.{key}")
    if token.get("normalized") and not token.get("special"):
        raise _unfit("normalized=false", "true: it is found in normalized text", where)


def _flat(section: Any, inner: str) -> Iterator[Section]:
    """Steps of a section, with nested sequences flattened."""
    if section is None:
        return
    if section.get("type") == "Sequence":
        for step in section[inner]:
            yield from _flat(step, inner)
    else:
        yield section


def _types(steps: list[Section]) -> str:
    return ", ".join(str(step.get("type")) for step in steps) or "none"


def _unfit(expected: str, actual: str, where: str) -> ArtifactError:
    fix = "llama.cpp's tokenizer of BERT does nothing else; export it to onnx."
    return ArtifactError(f"{expected} for gguf", given=actual[:200], where=where, fix=fix)
