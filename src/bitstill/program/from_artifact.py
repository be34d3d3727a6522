"""The program of an artifact, planned from what its files say; no torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError, BitstillError
from bitstill.program.convnets import CONV_NETS
from bitstill.program.encoders import encoder
from bitstill.program.operations import Program


@contextlib.contextmanager
def as_artifact_error(where: str) -> Iterator[None]:
    """Turn what goes wrong with a file of sound checksums and contradictory settings into an ArtifactError.

    Raises:
        ArtifactError: with what happened.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, ArithmeticError) as error:
        if isinstance(error, BitstillError):
            raise
        fix = "Its settings contradict each other: deliver the model again."
        raise ArtifactError(
            "an artifact that fits together", given=f"{type(error).__name__}: {error}", where=where, fix=fix
        ) from error


def program_of(archive: Archive) -> Program:
    """What the network in an artifact computes.

    Raises:
        ArtifactError: its architecture is not known here, or does something that no operation says.
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
