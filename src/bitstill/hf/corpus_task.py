"""The task of general distillation, from a tokenized corpus and a teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitstill.data.corpus import Encoder
from bitstill.data.objectives import MeanStates
from bitstill.data.task import Batch, Split, Task
from bitstill.errors import DataError
from bitstill.hf.quiet import quiet
from bitstill.hf.tokenize import Tokenizer
from bitstill.model.modes import evaluating
from bitstill.rng import derive

HELD_OUT = 256
"""Largest number of sequences on which student and teacher are compared."""


def encoder_of(tokenizer: Any) -> Encoder:
    """Encoder of documents for a tokenizer.

    Raises:
        DataError: the tokenizer has no separator.
    """
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        fix = "Set tokenizer.sep_token and save the folder again."
        raise DataError("a tokenizer with a separator", given="none", where="corpus", fix=fix)

    def encode(texts: list[str]) -> list[list[int]]:
        with quiet():  # its warning about long texts: they are cut into sequences
            ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    vocabulary = sorted(tokenizer.get_vocab().items())
    about = {"class": type(tokenizer).__name__, "vocabulary": derive(vocabulary), "separator": int(separator)}
    word, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next(place for place in range(len(whole)) if whole[place : place + len(word)] == word)
    return Encoder(encode, int(separator), tuple(whole[:start]), tuple(whole[start + len(word) :]), about)


def corpus_task(sequences: Tensor, tokenizer: Any, teacher: nn.Module, mask_probability: float) -> Task:
    """Build the task of general distillation on a corpus.

    The labels of held-out sequences are the teacher's mean hidden states (`MeanStates`); training sequences have none.

    Args:
        sequences: int32 (count, length); the first ones are held out.
        tokenizer: tokenizer of both models.
        teacher: teacher, which runs on the held-out sequences.
        mask_probability: probability of replacing a token by the mask token; special tokens are kept.

    Raises:
        DataError: too few sequences, or no mask token.
    """
    held_out = min(HELD_OUT, len(sequences) // 10)
    if held_out < 2:
        fix = "Use a larger corpus, or shorter sequences."
        raise DataError("at least 20 sequences", given=str(len(sequences)), where="corpus", fix=fix)
    if mask_probability and tokenizer.mask_token_id is None:
        raise DataError("a mask token", given="none", where="corpus", fix="Set the corpus's mask_probability to 0.")
    special = torch.tensor(sorted(tokenizer.all_special_ids))

    def masked(batch: Batch, draws: Tensor) -> Batch:
        ids = batch["input_ids"]
        chosen = (draws < mask_probability) & ~torch.isin(ids, special)
        return {**batch, "input_ids": ids.masked_fill(chosen, tokenizer.mask_token_id)}

    blank = Split({"input_ids": sequences[:held_out]}, torch.zeros(held_out))
    labels = _mean_states(teacher, blank)
    train = Split({"input_ids": sequences[held_out:]}, torch.zeros(len(sequences) - held_out))
    validation = Split(blank.inputs, labels)
    return Task(
        "corpus",
        train,
        validation,
        validation,
        MeanStates(),
        _forward,
        augment=masked if mask_probability else None,
        draws=sequences.shape[1],
        preprocessor=Tokenizer(tokenizer),
    )


def _forward(model: nn.Module, batch: Batch) -> Any:
    """Run the encoder without a head, also for a student that already has one."""
    ids = batch["input_ids"].long()
    encoder: nn.Module = getattr(model, "base_model", model)
    return encoder(input_ids=ids, attention_mask=torch.ones_like(ids))


def _mean_states(model: nn.Module, split: Split) -> Tensor:
    objective = MeanStates()
    with evaluating(model), torch.inference_mode():
        batches = (split.take(indices) for indices in split.batches(32))
        return torch.cat([objective.read(_forward(model, batch), batch) for batch in batches]).clone()
