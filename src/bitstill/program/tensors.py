"""Check of the tensors in an artifact against those that its program reads: none missing, none unused."""

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
"""Tensors of an input's range by its kind; "ready" marks an initialized step."""
_STATISTICS = ("running_mean", "running_var")
_COUNTER = "num_batches_tracked"
"""Counter next to the statistics of a batch norm in torch, which is not used."""
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
"""Optional part of an encoder without a head, not needed for token vectors."""


def check_tensors(program: Program, archive: Archive) -> None:
    """Compare the tensors that `program` reads with those in the file.

    Raises:
        ArtifactError: one is missing, would not be used, or has another number of dimensions.
    """
    needed = {name: dimensions for step in program.steps for name, dimensions in _needed(step.operation).items()}
    learned = {
        f"{name}.input_transform.{part}": 0
        for name, layer in archive.layers.items()
        if layer.input is not None
        for part in _LEARNED[layer.input["range"]]
    }
    leftovers = archive.leftovers
    present = {f"{layer}.weight" for layer in archive.layers} | leftovers.keys()
    optional: set[str] = set()
    if program.result == "last_hidden_state" and archive.config.get(POOLER) is not False:
        optional = {*_POOLER, *(name for name in learned if name.startswith("pooler.dense."))}
    known = needed | learned
    missing, unused = sorted(known.keys() - present - optional), sorted(present - known.keys() - optional)
    if missing or unused:
        raise _mismatch(f"{len(missing)} missing {missing[:3]}, {len(unused)} that it does not have {unused[:3]}", archive)
    for name, dimensions in known.items():
        if name in leftovers and leftovers[name].ndim != dimensions:
            raise _mismatch(f"{name} of shape {leftovers[name].shape}", archive)
    for step in program.steps:
        vectors = [name for name, dimensions in _needed(step.operation).items() if dimensions == 1 and name in leftovers]
        if len({leftovers[name].size for name in vectors}) > 1:
            raise _mismatch(f"different lengths of {', '.join(vectors)}", archive)


def _mismatch(given: str, archive: Archive) -> ArtifactError:
    return ArtifactError(
        "the tensors of the network in config.json",
        given=given,
        where=f"{archive.folder}: {WEIGHTS}",
        fix="Its settings contradict its weights: deliver the model again.",
    )


def _needed(operation: Operation) -> dict[str, int]:
    """Dimensions of the tensors that an operation reads, by name; packed weights have the name of the float weight."""
    match operation:
        case Embedding(layer) | Positions(layer):
            return {f"{layer}.weight": 2}
        case Linear(layer):
            return {f"{layer}.weight": 2, f"{layer}.bias": 1}
        case LayerNorm(layer):
            return {f"{layer}.weight": 1, f"{layer}.bias": 1}
        case Convolution(layer):
            return {f"{layer}.weight": 4, **({f"{layer}.bias": 1} if operation.bias else {})}
        case BatchNorm(layer):
            affine = ("weight", "bias") if operation.affine else ()
            return {f"{layer}.{_COUNTER}": 0, **{f"{layer}.{part}": 1 for part in (*_STATISTICS, *affine)}}
        case Quantize(transform):
            return _numbers(transform)
        case Attention(probabilities=transform) if transform is not None:
            return _numbers(transform)
    return {}


def _numbers(transform: Transform) -> dict[str, int]:
    return {f"{transform.name}.{part}": 0 for part in _LEARNED[transform.rule["range"]]}
