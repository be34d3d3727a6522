"""Loading of a delivered model into torch."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import read
from bitstill.deliver.architecture import blank_network
from bitstill.model.attention_operands import attention_record
from bitstill.model.copies import copy_model
from bitstill.model.restore import load_into


def load(folder: str | Path, model: nn.Module | None = None, *, kernels: bool = False) -> nn.Module:
    """Load the delivered model in `folder`, ready to run: packed layers, eval mode, no gradients. No code in it is executed.

    Args:
        folder: an artifact, or "owner/name" on the hub.
        model: a float network of the delivered architecture, needed if that is not built in; a copy is used.
        kernels: run linear layers in the C library of low-bit kernels, which is faster and agrees up to the last bits of a
            float; otherwise they unpack their weights and agree with training in every bit. Has no effect if the package was
            installed without a C compiler.

    Raises:
        ArtifactError: the folder is missing, damaged, of another version, or does not fit `model`.
    """
    archive = read(resolve_folder(folder))
    network = blank_network(archive) if model is None else copy_model(model, "load")
    loaded = load_into(network, archive)
    if attention_record(loaded):
        from bitstill.hf.attention_scores import require

        require(loaded)
    if kernels:
        from bitstill.deliver.native_linear import use_kernels

        use_kernels(loaded, archive)
    return loaded
