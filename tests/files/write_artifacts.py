"""Writes small artifacts of every kind and their outputs, for tests that later versions still read them.

    python tests/files/write_artifacts.py tests/files/COMMIT.zip

The archive has one folder per artifact. `answers.safetensors` holds the inputs and outputs of each by "name/what": in torch,
and in the runtime by the C library and by numpy. `weights.json` holds the SHA-256 of every dequantized weight.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

import bitstill
import bitstill.runtime
from bitstill import Storage
from bitstill.data.networks import ConvNet, ConvNetConfig
from bitstill.hf import attention_scores
from bitstill.model.attention_operands import quantize_attention
from bitstill.model.width import reduce_width
from bitstill.quant import (
    Binary,
    Bucket,
    Compression,
    LearnedStep,
    PerChannel,
    PerGroup,
    PerTensor,
    Points,
    Prune,
    QuantizeAttention,
    QuantizeInput,
    SplitBinary,
    Ternary,
    Uniform,
)
from bitstill.runtime import model as runtime_model

HALF = "float16"
WEIGHTS: dict[str, Any] = {
    "affine-8": Uniform(8, granularity=PerChannel(), scale_dtype=HALF),
    "affine-4": Uniform(4, granularity=PerGroup(16)),
    "affine-2": Uniform(2, granularity=Bucket(20)),
    "affine-3-tensor": Uniform(3, granularity=PerTensor()),
    "symmetric-8": Uniform(8, symmetric=True, granularity=PerChannel()),
    "symmetric-4": Uniform(4, symmetric=True, granularity=PerGroup(16), scale_dtype=HALF),
    "binary-channel": Binary(PerChannel(), scale_dtype=HALF),
    "binary-group": Binary(PerGroup(16)),
    "binary-bucket": Binary(Bucket(20)),
    "binary-learned": Binary(PerChannel(), learned_scale=True),
    "ternary": Ternary(PerChannel(), scale_dtype=HALF),
    "ternary-fitted": Ternary(PerGroup(16), iterations=5),
    "split": SplitBinary(PerChannel(), scale_dtype=HALF),
    "points-16": Points(16, granularity=PerChannel()),
    "points-5": Points(5, granularity=Bucket(20)),
    "step-2": LearnedStep(2),
    "step-4": LearnedStep(4, granularity=PerChannel(), dead_zone=False),
}
"""One of each quantizer and granularity, by artifact name."""
PRUNED = {name: WEIGHTS[name] for name in ("affine-4", "symmetric-4", "binary-channel", "ternary", "points-5", "split")}
INPUTS = {
    "tokens": QuantizeInput(),
    "tokens-asymmetric-4": QuantizeInput(4, symmetric=False),
    "samples": QuantizeInput(per="sample"),
    "tensor-asymmetric": QuantizeInput(symmetric=False, per="tensor"),
    "clip": QuantizeInput(per="tensor", range="clip"),
    "step": QuantizeInput(4, per="tensor", range="step"),
}


class EveryLayer(nn.Module):
    """One layer of every kind, including a transposed one: ids (N, 9) -> (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.along = nn.Conv1d(6, 6, 3, padding=1)
        self.across = nn.Conv2d(3, 4, (3, 2))
        self.transposed = Conv1D(7, 32)
        self.head = nn.Linear(7, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.relu(self.along(self.words(ids).transpose(1, 2)))  # (N, 6, 9)
        x = torch.relu(self.across(x.reshape(-1, 3, 6, 3)))  # (N, 4, 4, 2)
        return self.head(torch.relu(self.transposed(x.flatten(1))))


def image_network() -> ConvNet:
    """Two convolutions and two linear layers, each after a norm with non-trivial statistics: (N, 1, 8, 8) -> (N, 3)."""
    network = ConvNet(ConvNetConfig(((4, 5),), 3, (7,), channels=1, size=8, classes=3))
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(16, 1, 8, 8))
    return network


def text_network(**changes: Any) -> BertForSequenceClassification:
    sizes = {
        "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 10, "num_labels": 3, "initializer_range": 0.5,
    }  # fmt: skip
    model = BertForSequenceClassification(BertConfig(**{**sizes, **changes}))
    attention_scores.use(model)
    return model.eval()


def ids(words: int, length: int) -> Tensor:
    return torch.arange(4 * length).reshape(4, length) * 7 % (words - 1) + 1


def text_inputs() -> dict[str, Tensor]:
    mask = (torch.arange(9) < torch.tensor([9, 4, 7, 1])[:, None]).long()
    return {"input_ids": ids(20, 9) * mask, "attention_mask": mask}


def artifacts() -> Iterator[tuple[str, nn.Module, dict[str, Tensor], Storage]]:
    """Name, prepared model, inputs and storage options of each artifact."""
    for name, weight in WEIGHTS.items():
        yield from image_artifact(name, Compression(weight=weight))
    for name, weight in PRUNED.items():
        for coded in (False, True) if name in ("affine-4", "ternary") else (True,):
            rule = Compression(weight=weight, prune=Prune(0.7))
            yield from image_artifact(f"pruned-{name}{'-coded' * coded}", rule, Storage(entropy_coding=coded))
    for name in ("affine-8", "symmetric-4", "binary-channel", "ternary", "split", "points-5", "step-2"):
        network = EveryLayer()
        rule = Compression(weight=WEIGHTS[name], prune=Prune(0.4) if name in PRUNED else None)
        bitstill.prepare(network, rule)
        yield f"layers-{name}", network, {"ids": ids(11, 9)}, Storage(leftovers="float16")
    for name, inputs in INPUTS.items():
        if inputs.per != "token":
            yield from image_artifact(f"inputs-{name}", Compression(weight=WEIGHTS["symmetric-8"], input=inputs))
    yield from text_artifacts()


def image_artifact(name: str, rule: Compression, storage: Storage | None = None) -> Iterator[Any]:
    network, x = image_network(), torch.randn(3, 1, 8, 8)
    bitstill.prepare(network, rule)
    network.train()(x)  # learned steps and ranges are initialized here
    yield name, network, {"image": x}, storage or Storage()


def text_artifacts() -> Iterator[tuple[str, nn.Module, dict[str, Tensor], Storage]]:
    words = Compression(weight=WEIGHTS["binary-channel"], targets=("*word_embeddings",))

    def prepared(model: nn.Module, weight: Any, inputs: QuantizeInput | None) -> nn.Module:
        bitstill.prepare(model, [Compression(weight=weight, targets=("*.layer.*",), input=inputs), words])
        model.train()(**text_inputs())
        return model

    for name in ("tokens", "tokens-asymmetric-4", "step"):
        yield f"bert-{name}", prepared(text_network(), WEIGHTS["symmetric-8"], INPUTS[name]), text_inputs(), Storage()
    yield "bert-float-inputs", prepared(text_network(), WEIGHTS["split"], None), text_inputs(), Storage()
    narrow = text_network()
    reduce_width(narrow, lambda model: model(**text_inputs()), 0.5, keep=["classifier"])
    yield "bert-narrow", prepared(narrow, WEIGHTS["binary-channel"], QuantizeInput()), text_inputs(), Storage()
    attentive = text_network()
    quantize_attention(attentive, QuantizeAttention(), lambda model: model(**text_inputs()))
    yield "bert-attention", prepared(attentive, WEIGHTS["binary-channel"], QuantizeInput()), text_inputs(), Storage()


def logits_of(output: Any) -> Tensor:
    tensor: Tensor = getattr(output, "logits", output)
    return tensor


def write(folder: Path) -> None:
    """Write every artifact and its outputs into `folder`."""
    torch.manual_seed(0)
    answers: dict[str, np.ndarray] = {}
    digests: dict[str, dict[str, str]] = {}
    for name, model, inputs, storage in artifacts():
        bitstill.save(model.eval(), folder / name, storage=storage)
        answers |= {f"{name}/{key}": value.numpy() for key, value in inputs.items()}
        answers |= {f"{name}/{engine}": output for engine, output in outputs(folder / name, inputs).items()}
        archive = bitstill.read(folder / name)
        digests[name] = {layer: hashlib.sha256(archive.weight(layer).tobytes()).hexdigest() for layer in archive.layers}
        for extra in (path for path in (folder / name).iterdir() if path.name not in ("model.safetensors", "config.json")):
            extra.unlink()
    save_file(answers, folder / "answers.safetensors")
    (folder / "weights.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


def outputs(folder: Path, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Outputs of the artifact in torch, and in the runtime if there is a program for it."""
    own = EveryLayer() if folder.name.startswith("layers-") else None
    with torch.inference_mode():
        answers = {"torch": logits_of(bitstill.load(folder, own)(**named(inputs))).numpy()}
    if own is None:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        answers["runtime"] = run(folder, arrays)
        library: Callable[[], Any] = runtime_model.library
        runtime_model.library = lambda: None  # type: ignore[assignment]
        answers["numpy"] = run(folder, arrays)
        runtime_model.library = library
    return answers


def named(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs by the argument names of torch networks."""
    return {"x" if name == "image" else name: value for name, value in inputs.items()}


def run(folder: Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    model = bitstill.runtime.load(folder)
    return model(arrays["image"]) if "image" in arrays else model(**arrays)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        shutil.make_archive(str(target.with_suffix("")), "zip", folder)
