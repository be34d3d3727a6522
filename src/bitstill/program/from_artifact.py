"""The program of an artifact, planned from its files; no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError, BitstillError
from bitstill.program.convnets import CONV_NETS
from bitstill.program.encoders import encoder
from bitstill.program.operations import Program
from bitstill.program.tensors import check_tensors


@contextlib.contextmanager
def as_artifact_error(where: str) -> Iterator[None]:
    """Convert errors from a file with valid checksums and contradictory settings to ArtifactError.

    Raises:
        ArtifactError: an error occurred inside the block.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ArithmeticError) as error:
        if isinstance(error, BitstillError):
            raise
        fix = "Its settings contradict each other: deliver the model again."
        raise ArtifactError("a consistent artifact", given=f"{type(error).__name__}: {error}", where=where, fix=fix) from error


def program_of(archive: Archive) -> Program:
    """Program of the network in an artifact; its tensors are those in the file.

    Raises:
        ArtifactError: its architecture is not supported, or needs an unknown operation; or a tensor is missing or not used.
    """
    program = plan_of(archive)
    with as_artifact_error(f"{archive.folder}: config.json"):
        check_tensors(program, archive)
    return program


def plan_of(archive: Archive) -> Program:
    """Program of an archive from which parts were removed on purpose; its tensors are not checked.

    Raises:
        ArtifactError: its architecture is not supported, or needs an unknown operation.
    """
    with as_artifact_error(f"{archive.folder}: config.json"):
        return _program(archive)


def _program(archive: Archive) -> Program:
    config = archive.config
    if "model_type" in config:
        shapes = {name: record.shape for name, record in archive.layers.items()}
        shapes |= {name.removesuffix(".weight"): tensor.shape for name, tensor in archive.leftovers.items()}
        return encoder(config, shapes)
    name = config.get("architecture")
    if name not in CONV_NETS:
        fix = "Only these have a program; run others in torch (bitstill.load)."
        known = f"an encoder of transformers, or one of {', '.join(CONV_NETS)}"
        raise ArtifactError(known, given=str(config.get("class", name)), where="config.json", fix=fix)
    return CONV_NETS[name](config["arguments"])
