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
def fitting(where: str) -> Iterator[None]:
    """What is wrong in a file that has sound checksums and makes no sense all the same becomes one of our errors.

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
    with fitting(f"{archive.folder}: config.json"):
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
        wanted = f"an encoder of transformers, or one of {', '.join(CONV_NETS)}"
        raise ArtifactError(wanted, given=str(config.get("class", name)), where="config.json", fix=fix)
    return CONV_NETS[name](config["arguments"])
