"""Pretrained encoders by path or hub name, and back from an artifact's `config.json`. No code of a repository is ever run."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging

from bitstill.artifact.config_keys import POOLER, TRANSFORMERS_WEIGHTS
from bitstill.data.task import Task
from bitstill.errors import ArtifactError, DataError
from bitstill.hf import attention_scores as attention
from bitstill.hf.quantizer import REFUSAL
from bitstill.rng import derive

_AUTO: dict[str, tuple[Any, Any]] = {
    "text": (AutoModelForSequenceClassification, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "image": (AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
}


@dataclass(frozen=True)
class Loaded:
    """A pretrained model, and what of it was not in its files.

    Args:
        model: in float32, computing attention by `hf.attention`.
        new: parameters that the files did not have; they were initialised anew and must be trained.
        unused: parameters of the files that the model has no place for.
    """

    model: nn.Module
    new: tuple[str, ...]
    unused: tuple[str, ...]


def load_pretrained(source: str, task: Task, role: str, seed: int = 0) -> Loaded:
    """A model for the task's classes from a folder or from the hub.

    Args:
        source: path or hub name.
        task: whose classes and label names it gets.
        role: "student" or "teacher", for errors.
        seed: of what has to be initialised anew.

    Raises:
        DataError: there is no such model, it has other classes, labels in another order, or parts of its body are missing.
    """
    kind = "text" if "input_ids" in task.train.inputs else "image"
    auto, known = _AUTO[kind]
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "init", role))
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            if config.model_type not in known:
                fix = f"Valid: {', '.join(sorted(known)[:12])} and others."
                raise DataError(f"an encoder for {kind} classification", given=config.model_type, where=source, fix=fix)
            _check_labels(config, task, source)
            model, report = auto.from_pretrained(
                source,
                dtype="float32",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                **{"problem_type": None, **task.objective.head()},  # a teacher's own may be of another task
            )
    except DataError:
        raise
    except Exception as error:  # whatever its many parts raise for files that are damaged or not there
        given = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        fix = "Give the folder of a Hugging Face model, or its name on the hub (which needs a connection)."
        raise DataError("a pretrained model", given=given, where=f"{role} {source!r}", fix=fix) from error
    _check_complete(model, report, task, f"{role} {source!r}")
    attention.use(model)
    return Loaded(model, tuple(sorted(report["missing_keys"])), tuple(sorted(report["unexpected_keys"])))


def config_of(model: nn.Module) -> dict[str, Any] | None:
    """What `config.json` says of a transformers model, so that `from_config` and `from_pretrained` can rebuild it."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_diff_dict") or type(model).__module__.split(".")[0] != "transformers":
        return None
    assert config is not None
    content: dict[str, Any] = json.loads(config.to_json_string(use_diff=True))
    content.pop("quantization_config", None)  # the mark of `model.save_guard`; the artifact's own is added by its writer
    about = {**content, "architectures": [type(model).__name__], "dtype": "float32", TRANSFORMERS_WEIGHTS: REFUSAL}
    if getattr(model, "pooler", model) is None:  # an argument of the class, which no config of transformers says
        about[POOLER] = False
    return about


def from_config(config: dict[str, Any]) -> nn.Module:
    """A freshly initialised model of the architecture that an artifact's `config.json` describes.

    Raises:
        ArtifactError: transformers does not know it.
    """
    import transformers

    settings = {key: value for key, value in config.items() if key not in ("quantization_config", TRANSFORMERS_WEIGHTS)}
    names = settings.get("architectures") or [None]
    known = {name for table in (*(table for _, table in _AUTO.values()), MODEL_MAPPING_NAMES) for name in table.values()}
    try:
        if names[0] not in known:
            raise ValueError(f"architecture {names[0]!r}")
        cls = getattr(transformers, names[0])
        with quiet():
            without = {} if settings.pop(POOLER, True) else {"add_pooling_layer": False}
            model: nn.Module = cls(cls.config_class.from_dict(settings), **without)
    except Exception as error:  # a config may be wrong in as many ways as there are architectures
        raise ArtifactError(
            "a classifier, or a model without a head, that transformers knows",
            given=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
            where="config.json",
            fix="Upgrade transformers, or pass the network: bitstill.load(folder, model=network).",
        ) from error
    attention.use(model)
    return model


def _check_labels(config: Any, task: Task, source: str) -> None:
    """Refuse a classifier that means other classes by the same numbers: an old trap of NLI models."""
    theirs = {str(name).lower(): int(index) for index, name in (config.id2label or {}).items()}
    ours = {name.lower(): index for index, name in enumerate(task.objective.label_names)}
    if theirs.keys() == ours.keys() and theirs != ours:
        given = ", ".join(sorted(theirs, key=theirs.__getitem__))
        fix = "Reorder the rows of its classifier and its id2label, or fine-tune another model for the task."
        raise DataError(f"labels in the order {', '.join(ours)}", given=given, where=source, fix=fix)


def _check_complete(model: nn.Module, report: dict[str, Any], task: Task, where: str) -> None:
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, theirs, ours = wrong[0]
        if name.startswith(f"{getattr(model, 'base_model_prefix', '')}."):
            fix = "The folder's config.json and its weights are not of one model."
            raise DataError(f"{name} {tuple(ours)}, as its config says", given=str(tuple(theirs)), where=where, fix=fix)
        raise DataError(
            f"a model for {task.name} ({task.objective.summary}; {name} {tuple(ours)})",
            given=f"{name} {tuple(theirs)}",
            where=where,
            fix="It was trained for other classes: give the model it was fine-tuned from, or one for this task.",
        )
    body = f"{getattr(model, 'base_model_prefix', '')}."
    lost = [name for name in sorted(report["missing_keys"]) if name.startswith(body) and ".pooler." not in name]
    if lost:
        given = f"{len(lost)} missing, such as {lost[0]}"
        fix = "The folder holds another architecture than its config.json says, or only a part of it."
        raise DataError("all weights below the classifier", given=given, where=where, fix=fix)


def classifier_in(folder: Path) -> nn.Module:
    """The float classifier of texts in a folder, as transformers itself loads and runs it."""
    with quiet():
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(str(folder), local_files_only=True)
    return model.eval()


def save_pretrained(network: nn.Module, task: Task, folder: Path) -> None:
    """Write a transformers model and the task's tokenizer to `folder`, as any tool reads them."""
    with quiet():
        network.save_pretrained(str(folder))  # type: ignore[operator]
    if task.preprocessor is not None:
        task.preprocessor.save(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading bars and reports off the screen: what matters of them is reported by us."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
