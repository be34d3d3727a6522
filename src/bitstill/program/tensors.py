"""Which tensors a program reads, compared with those that an artifact has: none is missing, and none is left over."""

from __future__ import annotations

from bitstill.artifact.config_keys import POOLER
from bitstill.artifact.format import WEIGHTS
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.program.operations import (
    Attention,
    BatchNorm,
    Convolution,
    Embedding,
    LayerNorm,
    Linear,
    Operation,
    Positions,
    Program,
    Quantize,
    Transform,
)

_LEARNED = {"dynamic": (), "clip": ("low", "high"), "step": ("step", "ready")}
"""What is kept for an input's range, by its kind; "ready" says that training has set the step."""
_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"
"""What torch counts beside the statistics of a batch norm, and nothing is computed from."""
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
"""What an encoder without a head may bring along, and a vector for each token does not need."""


def check_tensors(program: Program, archive: Archive) -> None:
    """Compare the tensors that `program` reads with those in the file.

    Raises:
        ArtifactError: one is missing, or one would not be used.
    """
    needed = {name for step in program.steps for name in _needed(step.operation)}
    packed = {f"{layer}.weight" for layer in archive.layers}
    learned = {
        f"{name}.input_transform.{part}"
        for name, layer in archive.layers.items()
        if layer.input is not None
        for part in _LEARNED[layer.input["range"]]
    }
    present = packed | archive.leftovers.keys()
    optional = {name for name in present if name.endswith(f".{_COUNTER}")}
    if program.result == "last_hidden_state" and archive.config.get(POOLER) is not False:
        optional |= {*_POOLER, *(name for name in learned if name.startswith("pooler.dense."))}
    missing, unused = sorted((needed | learned) - present - optional), sorted(present - needed - learned - optional)
    if missing or unused:
        raise ArtifactError(
            "the tensors of the network in config.json",
            given=f"{len(missing)} missing {missing[:3]}, {len(unused)} that it does not have {unused[:3]}",
            where=f"{archive.folder}: {WEIGHTS}",
            fix="Its settings contradict its weights: deliver the model again.",
        )


def _needed(operation: Operation) -> tuple[str, ...]:
    """Names of the tensors that an operation reads; packed weights count under the name of the float weight."""
    match operation:
        case Embedding(layer) | Positions(layer):
            return (f"{layer}.weight",)
        case Linear(layer) | LayerNorm(layer):
            return (f"{layer}.weight", f"{layer}.bias")
        case Convolution(layer):
            return (f"{layer}.weight", *((f"{layer}.bias",) if operation.bias else ()))
        case BatchNorm(layer):
            parts = (*_STATISTICS, *(("weight", "bias") if operation.affine else ()))
            return tuple(f"{layer}.{part}" for part in parts)
        case Quantize(transform):
            return _numbers(transform)
        case Attention(probabilities=transform) if transform is not None:
            return _numbers(transform)
    return ()


def _numbers(transform: Transform) -> tuple[str, ...]:
    return tuple(f"{transform.name}.{part}" for part in _LEARNED[transform.rule["range"]])
