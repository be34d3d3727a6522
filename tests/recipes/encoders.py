"""Text encoders small enough to train in a test, with and without transformers, and their data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitstill.data.objectives import Classification, Regression
from bitstill.data.task import Batch, Split, Task
from bitstill.model.attention_operands import SCORES
from bitstill.train.settings import Settings

VOCAB, WIDTH, LONGEST, HEADS, LAYERS = 50, 16, 12, 2, 4
QUIET = Settings(progress=False, device="cpu", teacher_precision="float32")


class Block(nn.Module):
    """A transformer layer whose attention exposes its scores as `hf.attention` does."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm, self.wide, self.narrow = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        heads = [part(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)]
        scores = heads[0] @ heads[1].transpose(2, 3) / heads[0].shape[-1] ** 0.5
        if SCORES in self.__dict__:
            self.__dict__[SCORES](scores)
        attended = scores.masked_fill(~mask[:, None, None, :], -1e9).softmax(-1) @ heads[2]
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(2)))
        return (x + self.narrow(torch.relu(self.wide(self.norm(x)))),)


class Encoder(nn.Module):
    """Word and position embeddings, blocks, and a classifier on the first position: ids (N, T) -> (N, classes)."""

    def __init__(self, classes: int = 2, layers: int = LAYERS, dropout: float = 0.0) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCAB, WIDTH, padding_idx=0), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.ModuleList(Block(dropout=dropout) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, classes)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            (x,) = block(x, attention_mask.bool())
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))


def encoder(seed: int = 0, classes: int = 2, layers: int = LAYERS, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(classes, layers, dropout)


def bert(seed: int = 0, classes: int = 2, layers: int = LAYERS, dropout: float = 0.0) -> Any:
    """A tiny BERT with large initial weights, so that its layers differ and quantizing them matters."""
    from transformers import BertConfig, BertForSequenceClassification

    from bitstill.hf import attention_scores as attention

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        max_position_embeddings=LONGEST,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,
        **({"num_labels": 1, "problem_type": "regression"} if classes == 1 else {"num_labels": classes}),
    )
    model = BertForSequenceClassification(config)
    attention.use(model)
    return model


def forward(model: nn.Module, batch: Batch) -> Tensor:
    output = model(input_ids=batch["input_ids"].long(), attention_mask=batch["attention_mask"].long())
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def split(samples: int, seed: int, *, regression: bool = False, padding: int = 0) -> Split:
    """Random words; the class is the half of the vocabulary of the first word, the value its place in the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, LONGEST + 1, (samples,), generator=generator)
    mask = torch.arange(LONGEST) < lengths.unsqueeze(1)
    ids = torch.randint(2, VOCAB, (samples, LONGEST), generator=generator).where(mask, padding)
    labels = ids[:, 0] / VOCAB * 4 - 2 if regression else (ids[:, 0] >= VOCAB // 2).long()
    return Split({"input_ids": ids.int(), "attention_mask": mask.int()}, labels, lengths)


def minus_squared_error(logits: Tensor, labels: Tensor) -> float:
    return -float((logits.flatten() - labels).square().mean())


def task(samples: int = 96, *, regression: bool = False) -> Task:
    splits = [split(count, seed, regression=regression) for count, seed in ((samples, 1), (32, 2), (48, 3))]
    if regression:
        judged = {"minus squared error": minus_squared_error}
        return Task("tiny text", *splits, Regression("minus squared error", judged), forward)
    return Task("tiny text", *splits, Classification(2), forward)
