"""bitstill: distil a trained network into a 1- to 8-bit one, and deliver a file that really is that small.

Names are loaded when they are first used (PEP 562), so that reading an artifact does not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitstill._version import VERSION as __version__
    from bitstill.artifact.reader import Archive, read
    from bitstill.data.augmentation import Augmentation
    from bitstill.data.corpus import Corpus
    from bitstill.data.task import Split, Task
    from bitstill.data.text import TextOptions
    from bitstill.deliver.compare import Comparison, compare
    from bitstill.deliver.deliver import save
    from bitstill.deliver.export import export_artifact
    from bitstill.deliver.load import load
    from bitstill.deliver.load_task import text_task
    from bitstill.errors import BitstillError
    from bitstill.model.lifecycle import freeze, pack, prepare, unpack
    from bitstill.model.writer import Storage
    from bitstill.quant.granularity import Bucket, PerChannel, PerGroup, PerTensor
    from bitstill.quant.rules import (
        Binary,
        Compression,
        LearnedStep,
        Points,
        Prune,
        QuantizeAttention,
        QuantizeInput,
        SplitBinary,
        Ternary,
        Uniform,
    )
    from bitstill.recipes import (
        PQK,
        XTC,
        BinaryBERT,
        DifferentiableQuantization,
        FineTuning,
        PostTraining,
        QuantizedDistillation,
    )
    from bitstill.recipes.general_distillation import GeneralDistillation
    from bitstill.run.augment import augment
    from bitstill.run.compress import Result, compress
    from bitstill.run.distill import distill_encoder
    from bitstill.run.finetune import finetune
    from bitstill.train.optimizer_step import after_optimizer_step
    from bitstill.train.settings import Settings

_HOMES = {
    "Archive": "bitstill.artifact.reader",
    "Augmentation": "bitstill.data.augmentation",
    "Binary": "bitstill.quant.rules",
    "BinaryBERT": "bitstill.recipes",
    "BitstillError": "bitstill.errors",
    "Bucket": "bitstill.quant.granularity",
    "Comparison": "bitstill.deliver.compare",
    "Compression": "bitstill.quant.rules",
    "Corpus": "bitstill.data.corpus",
    "DifferentiableQuantization": "bitstill.recipes",
    "FineTuning": "bitstill.recipes",
    "GeneralDistillation": "bitstill.recipes.general_distillation",
    "LearnedStep": "bitstill.quant.rules",
    "PQK": "bitstill.recipes",
    "PerChannel": "bitstill.quant.granularity",
    "PerGroup": "bitstill.quant.granularity",
    "PerTensor": "bitstill.quant.granularity",
    "Points": "bitstill.quant.rules",
    "PostTraining": "bitstill.recipes",
    "Prune": "bitstill.quant.rules",
    "QuantizeAttention": "bitstill.quant.rules",
    "QuantizeInput": "bitstill.quant.rules",
    "QuantizedDistillation": "bitstill.recipes",
    "Result": "bitstill.run.compress",
    "Settings": "bitstill.train.settings",
    "Split": "bitstill.data.task",
    "SplitBinary": "bitstill.quant.rules",
    "Storage": "bitstill.model.writer",
    "Task": "bitstill.data.task",
    "Ternary": "bitstill.quant.rules",
    "TextOptions": "bitstill.data.text",
    "Uniform": "bitstill.quant.rules",
    "XTC": "bitstill.recipes",
    "after_optimizer_step": "bitstill.train.optimizer_step",
    "augment": "bitstill.run.augment",
    "compare": "bitstill.deliver.compare",
    "compress": "bitstill.run.compress",
    "distill_encoder": "bitstill.run.distill",
    "export_artifact": "bitstill.deliver.export",
    "finetune": "bitstill.run.finetune",
    "freeze": "bitstill.model.lifecycle",
    "load": "bitstill.deliver.load",
    "pack": "bitstill.model.lifecycle",
    "prepare": "bitstill.model.lifecycle",
    "read": "bitstill.artifact.reader",
    "save": "bitstill.deliver.deliver",
    "text_task": "bitstill.deliver.load_task",
    "unpack": "bitstill.model.lifecycle",
}

__all__ = [  # noqa: RUF022 (plainly sorted, as dir() gives them)
    "Archive",
    "Augmentation",
    "Binary",
    "BinaryBERT",
    "BitstillError",
    "Bucket",
    "Comparison",
    "Compression",
    "Corpus",
    "DifferentiableQuantization",
    "FineTuning",
    "GeneralDistillation",
    "LearnedStep",
    "PQK",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Points",
    "PostTraining",
    "Prune",
    "QuantizeAttention",
    "QuantizeInput",
    "QuantizedDistillation",
    "Result",
    "Settings",
    "Split",
    "SplitBinary",
    "Storage",
    "Task",
    "Ternary",
    "TextOptions",
    "Uniform",
    "XTC",
    "__version__",
    "after_optimizer_step",
    "augment",
    "compare",
    "compress",
    "distill_encoder",
    "export_artifact",
    "finetune",
    "freeze",
    "load",
    "pack",
    "prepare",
    "read",
    "save",
    "text_task",
    "unpack",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("bitstill._version").VERSION
    if name not in _HOMES:
        raise AttributeError(f"module 'bitstill' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    except ImportError as error:
        from bitstill.errors import without_torch

        raise without_torch(error, f"bitstill.{name}") or error from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
