"""Tiny transformers with random weights, a tokenizer of some sixty words, and sentences for it."""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    PreTrainedConfig,
    RobertaConfig,
    ViTConfig,
)

from bitstill.data.objectives import Classification, Regression
from bitstill.data.task import Split, Task
from bitstill.data.text import TextOptions, TextSplit, TextTask
from bitstill.train.settings import Settings

_TEXT = (
    "the a an of and in on with this that it is was are be not no very so too but or as at by film story actor plot scene joke "
    "music script cast end start good bad great awful fine poor warm cold dull sharp long short new old funny sad deep thin "
    "makes gives takes feels looks sounds never always often"
)
WORDS = _TEXT.split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
POSITIVE, NEGATIVE = ("good", "great", "fine", "warm", "sharp", "funny"), ("bad", "awful", "poor", "cold", "dull", "sad")
QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")
LIMIT = 32
"""Longest text that the tokenizer's model can read, in tokens."""

_SIZES: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.5,
}  # fmt: skip
_DEBERTA: dict[str, Any] = {
    **_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "type_vocab_size": 0,
    "max_relative_positions": -1, "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 8,
}  # fmt: skip
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "bert": (BertConfig, _SIZES),
    "roberta": (RobertaConfig, {**_SIZES, "bos_token_id": 2, "eos_token_id": 3, "type_vocab_size": 2}),
    "distilbert": (
        DistilBertConfig,
        {
            "vocab_size": len(VOCABULARY), "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24,
            "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.5,
        },
    ),
    "electra": (ElectraConfig, {**_SIZES, "embedding_size": 12}),
    "deberta": (DebertaV2Config, {**_SIZES, "type_vocab_size": 2}),
    "deberta-v3": (DebertaV2Config, _DEBERTA),
}  # fmt: skip
TEXT = tuple(CONFIGS)
DISPATCHED = ("bert", "roberta", "distilbert", "electra")
"""Families whose attention transformers dispatches, so that scores can be tapped."""
_OTHERS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "vit": (
        ViTConfig,
        {
            "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
            "patch_size": 4, "num_channels": 1, "initializer_range": 0.5,
        },
    ),
    "albert": (AlbertConfig, {**_SIZES, "embedding_size": 12}),
    "gpt2": (
        GPT2Config,
        {
            "vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 40, "pad_token_id": 0,
            "bos_token_id": 2, "eos_token_id": 3,
        },
    ),
}  # fmt: skip
MODELS = (*CONFIGS, *_OTHERS)


def tokenizer(words: Sequence[str] = VOCABULARY, limit: int = LIMIT) -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=limit)


def config(name: str, **changes: Any) -> PreTrainedConfig:
    kind, settings = {**CONFIGS, **_OTHERS}[name]
    return kind(**{**settings, **changes})


def model(name: str, attention: str = "eager", seed: int = 0, **changes: Any) -> nn.Module:
    """A network with random weights, dropout off."""
    auto = AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification
    torch.manual_seed(seed)
    return auto.from_config(config(name, **changes), attn_implementation=attention).eval()


def saved(folder: Path, name: str, words: Sequence[str] = VOCABULARY, body: bool = False, **changes: Any) -> Path:
    """A folder with a tokenizer and a model, with or without its classifier."""
    network = model(name, **changes)
    (network.base_model if body else network).save_pretrained(folder)
    if name != "vit":
        tokenizer(words).save_pretrained(folder)
    return folder


def saved_masked_lm(folder: Path, words: Sequence[str] = VOCABULARY) -> Path:
    """A folder with a masked language model and a tokenizer."""
    torch.manual_seed(0)
    BertForMaskedLM(config("bert", vocab_size=len(words))).save_pretrained(folder)
    tokenizer(words).save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0, shortest: int = 3, longest: int = 12) -> tuple[list[str], list[int]]:
    """Sentences of random words in which one gives the label, 1 for positive."""
    draw = random.Random(seed)
    neutral = [word for word in WORDS if word not in (*POSITIVE, *NEGATIVE)]
    texts, labels = [], []
    for index in range(count):
        label = index % 2
        words = [draw.choice(neutral) for _ in range(draw.randint(shortest, longest))]
        words.insert(draw.randrange(len(words) + 1), draw.choice(POSITIVE if label else NEGATIVE))
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def split(count: int, seed: int = 0, pair: bool = False, regression: bool = False) -> TextSplit:
    texts, labels = sentences(count, seed)
    columns = (texts, sentences(count, seed + 1000)[0]) if pair else (texts,)
    return TextSplit(columns, torch.tensor(labels, dtype=torch.float32 if regression else torch.int64))


def text_task(
    train: int = 24,
    *,
    pair: bool = False,
    names: tuple[str, ...] | None = ("negative", "positive"),
    max_length: int = LIMIT,
    truncate: bool = False,
) -> TextTask:
    """A task of two named classes, or a regression if there are no names."""
    kind = "regression" if names is None else "classification"
    options = TextOptions(("one", "two") if pair else ("text",), "label", kind, max_length, truncate)
    parts = [split(count, seed, pair, names is None) for seed, count in enumerate((train, 6, 10))]
    objective = Regression() if names is None else Classification(len(names), names)
    return TextTask("tiny", *parts, objective, options)


def image_task(classes: int = 2) -> Task:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    part = Split({"pixel_values": images}, torch.arange(6) % classes)
    return Task("pictures", part, part, part, Classification(classes), lambda network, batch: network(batch["pixel_values"]))


def write_csv(folder: Path, counts: dict[str, int] | None = None, labels: Sequence[object] = (0, 1)) -> Path:
    """Write a user's own files: one CSV file per part, columns "text" and "label"."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate((counts or {"train": 24, "validation": 6, "test": 10}).items()):
        texts, found = sentences(count, seed)
        with open(folder / f"{part}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((text, labels[label]) for text, label in zip(texts, found, strict=True))
    return folder


def batch(lengths: Sequence[int] = (9, 4, 7, 1), seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids of texts of unequal length, padded on the right, with their mask."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    ids = torch.randint(5, len(VOCABULARY), shape, generator=generator)
    mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
