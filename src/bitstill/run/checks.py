"""Checks before training: models must fit the data, and stages must be able to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bitstill.data.label_order import check_label_order
from bitstill.data.task import Task, Texts
from bitstill.errors import DataError, SpecError
from bitstill.model.select import word_embeddings
from bitstill.model.state import stored_tensors
from bitstill.model.weight_transform import check_finite
from bitstill.run.models import ModelLike, ResolvedModels, tokenizer_source
from bitstill.train.stage import Stage


def check_model(name: str, network: nn.Module, task: Task) -> None:
    """Check that weights are finite, labels in the task's order, and that inputs and outputs fit the task.

    Raises:
        DataError: they are not; names the model.
    """
    for tensor_name, tensor in stored_tensors(network).items():
        if tensor.is_floating_point():
            check_finite(tensor.detach(), f"{name}: {tensor_name}")
    check_label_order(getattr(getattr(network, "config", None), "id2label", None), task.objective, name)
    _check_vocabulary(name, network, task)
    task.check_model(network, name)


def check_tokenizers(tokenizer: Any, texts: Texts, models: Mapping[str, ModelLike]) -> None:
    """Refuse a model whose own tokenizer makes other tokens of the data's texts than the one that the data are read with.

    Args:
        tokenizer: of the data.
        texts: some of them, one sequence per column.
        models: by role: folders, hub names, or networks that were loaded from a folder that is still there.

    Raises:
        DataError: naming the model.
    """
    from bitstill.hf.tokenize import check_same_tokens, load_tokenizer

    for source, role in {source: role for role, model in models.items() if (source := tokenizer_source(model))}.items():
        check_same_tokens(tokenizer, load_tokenizer(source), texts, f"{role} {source}")


def check_trained(stages: Sequence[Stage], models: ResolvedModels) -> None:
    """Check that random weights are not quantized: a student built by name must be trained by some stage.

    Raises:
        SpecError: no stage trains its weights.
    """
    moved = any(stage.terms and "student" in stage.train and stage.parameters != "learned" for stage in stages)
    if "student" in models.untrained and not moved:
        raise SpecError(
            "a trained student",
            given="one whose weights, or whose classifier's, are random",
            where="models",
            fix="Pass a trained network or an artifact delivered with bits=None, or let the recipe train it first.",
        )


def _check_vocabulary(name: str, network: nn.Module, task: Task) -> None:
    if word_embeddings(network) is None or "input_ids" not in task.train.inputs:
        return
    splits = (task.train, task.validation, task.test)
    check_length(name, network, max(split.inputs["input_ids"].shape[1] for split in splits), task.name)
    check_tokens(name, network, max(int(split.inputs["input_ids"].max()) for split in splits), task.name)


def check_length(name: str, network: nn.Module, longest: int, data: str) -> None:
    """Check that a model's position embeddings cover the `longest` text of the data, in tokens.

    Raises:
        DataError: they do not; names the model.
    """
    limit = _readable_tokens(network)
    if limit is not None and limit < longest:
        fix = f"Set --max-length (of a corpus: --length) to at most {limit}, or choose a model that reads longer texts."
        raise DataError(f"texts of at most {limit} tokens", given=f"{longest}", where=f"{name}, {data}", fix=fix)


def check_tokens(name: str, network: nn.Module, largest: int, data: str) -> None:
    """Check that a model's word embeddings have a row for token `largest` of the data.

    Raises:
        DataError: they do not; names the model.
    """
    table = word_embeddings(network)
    if table is None:
        return
    weight = network.get_submodule(table).weight
    assert isinstance(weight, Tensor)
    if largest >= len(weight):
        fix = "Teacher, student and tokenizer must share one vocabulary."
        rows = f"an embedding of {len(weight)} rows"
        raise DataError(f"a model that knows token {largest}", given=rows, where=f"{name}, {data}", fix=fix)


def _readable_tokens(network: nn.Module) -> int | None:
    """Maximal length of a text in tokens, or None if the model does not state it."""
    limit = getattr(getattr(network, "config", None), "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for name, module in network.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and isinstance(padding, int):
            return limit - padding - 1  # RoBERTa's first positions, up to that of padding, are unused
    return limit
