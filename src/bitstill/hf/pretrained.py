"""Pretrained models by folder or hub name, with the head of a task or without. Remote code is never executed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from bitstill.data.label_order import check_label_order
from bitstill.data.task import Task
from bitstill.errors import BitstillError, DataError, one_line
from bitstill.hf import attention_scores
from bitstill.hf.auto_classes import auto_class_for
from bitstill.hf.quiet import quiet
from bitstill.hf.read_config import read_config
from bitstill.rng import derive

_LOADING: dict[str, Any] = {
    "dtype": "float32", "output_loading_info": True, "use_safetensors": True, "trust_remote_code": False,
}  # fmt: skip
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt")


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model, and its differences from its files.

    Args:
        model: model in float32, with the attention of `hf.attention_scores` if transformers dispatches it.
        new: parameters missing in the files; they are initialised and must be trained.
        unused: parameters in the files that the model does not have.
    """

    model: nn.Module
    new: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(source: str, task: Task, role: str, seed: int = 0) -> Pretrained:
    """Load a model with the head of the task's objective.

    Args:
        source: folder or hub name.
        task: task whose objective defines the head and its outputs.
        role: "student" or "teacher", for errors.
        seed: seed of new parameters.

    Raises:
        DataError: no such model, its head is for another task, its labels are in another order, or parts of its body are
            missing.
    """
    if task.objective.head_kind == "none":
        return load_encoder(source, role, seed)
    head = auto_class_for(task)
    with _loading("a pretrained model", source, role, seed):
        # The objective overrides the problem type of a model trained for another task.
        settings = {"problem_type": None, **task.objective.head()}
        config = read_config(source)
        if config.model_type not in head.classes:
            fix = f"Valid: {', '.join(sorted(head.classes)[:12])} and others."
            raise DataError(f"an encoder for {head.purpose}", given=config.model_type, where=source, fix=fix)
        check_label_order(config.id2label, task.objective, source)
        config = read_config(source, **settings)
        model, report = head.auto.from_pretrained(source, config=config, ignore_mismatched_sizes=True, **_LOADING)
    _check_complete(model, report, task, f"{role} {source!r}")
    attention_scores.use(model)
    return Pretrained(model, tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])))


def load_encoder(source: str, role: str, seed: int = 0) -> Pretrained:
    """Load a model without its head: the encoder of a masked language model or of a classifier, or a model without a head.

    Args:
        source: folder or hub name. A folder with `config.json` and no weights gives a student with random weights.
        role: "student" or "teacher", for errors.
        seed: seed of random weights.

    Raises:
        DataError: no such model, or parts of it are missing.
    """
    folder = Path(source)
    untrained = folder.is_dir() and not any(file.suffix in _WEIGHTS for file in folder.iterdir())
    if untrained and role != "student":
        fix = "Only a student may begin with random weights."
        raise DataError("a pretrained encoder", given="a folder without weights", where=f"{role} {source!r}", fix=fix)
    with _loading("a pretrained encoder", source, role, seed):
        if untrained:
            model = AutoModel.from_config(read_config(source), trust_remote_code=False)  # type: ignore[no-untyped-call]
            new, unused = [name for name, _ in model.named_parameters()], []
        else:
            model, report = AutoModel.from_pretrained(source, config=read_config(source), **_LOADING)
            new, unused = [], sorted(report["unexpected_keys"])
    if not untrained:
        missing = [name for name in sorted(report["missing_keys"]) if not name.startswith("pooler.")]
        _check_body(missing, "all weights of the encoder", f"{role} {source!r}")
    attention_scores.use(model)
    return Pretrained(model, tuple(new), tuple(unused))


def load_float_classifier(folder: Path) -> nn.Module:
    """Load the float text classifier in a folder by transformers itself, without changes."""
    with quiet():
        config = read_config(str(folder))
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(str(folder), config=config, local_files_only=True)
    return model.eval()


def save_pretrained(network: nn.Module, task: Task, folder: Path) -> None:
    """Save a transformers model and the task's tokenizer to `folder` in the standard format."""
    with quiet():
        network.save_pretrained(str(folder))  # type: ignore[operator]
    if task.preprocessor is not None:
        task.preprocessor.save(folder)


@contextlib.contextmanager
def _loading(expected: str, source: str, role: str, seed: int) -> Iterator[None]:
    """Context of loading: quiet, with its own random state.

    Raises:
        DataError: loading failed.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init", role))
            yield
    except BitstillError:
        raise
    except Exception as error:  # transformers raises many kinds for damaged or missing files
        fix = "Give the folder of a Hugging Face model, or its name on the hub (which needs a connection)."
        raise DataError(expected, given=one_line(error), where=f"{role} {source!r}", fix=fix) from error


def _check_complete(model: nn.Module, report: dict[str, Any], task: Task, where: str) -> None:
    """Check that the body is complete and the head has the right shape."""
    body = f"{getattr(model, 'base_model_prefix', '')}."
    for name, stored_shape, expected_shape in sorted(report["mismatched_keys"])[:1]:
        if name.startswith(body):
            fix = "The folder's config.json and its weights belong to different models."
            raise DataError(
                f"{name} {tuple(expected_shape)}, as its config says", given=str(tuple(stored_shape)), where=where, fix=fix
            )
        raise DataError(
            f"a model for {task.name} ({task.objective.summary}; {name} {tuple(expected_shape)})",
            given=f"{name} {tuple(stored_shape)}",
            where=where,
            fix="It was trained for other classes: give the model it was fine-tuned from, or one for this task.",
        )
    missing = [name for name in sorted(report["missing_keys"]) if name.startswith(body) and ".pooler." not in name]
    _check_body(missing, "all weights below the classifier", where)


def _check_body(missing: list[str], expected: str, where: str) -> None:
    if missing:
        fix = "The folder holds an architecture other than its config.json describes, or only a part of it."
        raise DataError(expected, given=f"{len(missing)} missing, such as {missing[0]}", where=where, fix=fix)
