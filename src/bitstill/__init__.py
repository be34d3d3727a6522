"""bitstill: distil a trained network into a 1- to 8-bit one, and deliver a file that really is that small.

Names are loaded when they are first used (PEP 562), so that reading an artifact does not need torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bitstill._transformers import register_when_imported

if TYPE_CHECKING:
    from bitstill._version import VERSION as __version__
    from bitstill.api import Result, compress, load
    from bitstill.artifact.reader import Archive, read
    from bitstill.artifact.writer import Storage
    from bitstill.augmenting import augment
    from bitstill.comparing import Comparison, compare
    from bitstill.delivery import save
    from bitstill.errors import BitstillError
    from bitstill.exporting import export_artifact
    from bitstill.finetuning import finetune
    from bitstill.general import distill_encoder
    from bitstill.granularity import Bucket, PerChannel, PerGroup, PerTensor
    from bitstill.lifecycle import freeze, pack, prepare, unpack
    from bitstill.loading import text_task
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
    from bitstill.specs import (
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
    from bitstill.tasks.augmentation import Augmentation
    from bitstill.tasks.corpus import Corpus
    from bitstill.tasks.text import TextOptions
    from bitstill.train.following import Following
    from bitstill.train.loop import Settings
    from bitstill.train.task import Split, Task

_HOMES = {
    "Archive": "bitstill.artifact.reader",
    "Augmentation": "bitstill.tasks.augmentation",
    "Binary": "bitstill.specs",
    "BinaryBERT": "bitstill.recipes",
    "BitstillError": "bitstill.errors",
    "Bucket": "bitstill.granularity",
    "Comparison": "bitstill.comparing",
    "Compression": "bitstill.specs",
    "Corpus": "bitstill.tasks.corpus",
    "DifferentiableQuantization": "bitstill.recipes",
    "FineTuning": "bitstill.recipes",
    "Following": "bitstill.train.following",
    "GeneralDistillation": "bitstill.recipes.general_distillation",
    "LearnedStep": "bitstill.specs",
    "PQK": "bitstill.recipes",
    "PerChannel": "bitstill.granularity",
    "PerGroup": "bitstill.granularity",
    "PerTensor": "bitstill.granularity",
    "Points": "bitstill.specs",
    "PostTraining": "bitstill.recipes",
    "Prune": "bitstill.specs",
    "QuantizeAttention": "bitstill.specs",
    "QuantizeInput": "bitstill.specs",
    "QuantizedDistillation": "bitstill.recipes",
    "Result": "bitstill.api",
    "Settings": "bitstill.train.loop",
    "Split": "bitstill.train.task",
    "SplitBinary": "bitstill.specs",
    "Storage": "bitstill.artifact.writer",
    "Task": "bitstill.train.task",
    "Ternary": "bitstill.specs",
    "TextOptions": "bitstill.tasks.text",
    "Uniform": "bitstill.specs",
    "XTC": "bitstill.recipes",
    "augment": "bitstill.augmenting",
    "compare": "bitstill.comparing",
    "compress": "bitstill.api",
    "distill_encoder": "bitstill.general",
    "export_artifact": "bitstill.exporting",
    "finetune": "bitstill.finetuning",
    "freeze": "bitstill.lifecycle",
    "load": "bitstill.api",
    "pack": "bitstill.lifecycle",
    "prepare": "bitstill.lifecycle",
    "read": "bitstill.artifact.reader",
    "save": "bitstill.delivery",
    "text_task": "bitstill.loading",
    "unpack": "bitstill.lifecycle",
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
    "Following",
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


register_when_imported()


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
