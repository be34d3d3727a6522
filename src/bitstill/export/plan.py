"""The program of an artifact, planned from what its files say; no torch."""

from __future__ import annotations

from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError
from bitstill.export.convnets import CONV_NETS
from bitstill.export.encoders import encoder
from bitstill.export.program import Program


def program_of(archive: Archive) -> Program:
    """What the network in an artifact computes.

    Raises:
        ArtifactError: its architecture is not known here, or does something that no operation says.
    """
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
