"""Inspection of an artifact without torch and without running it: layers, bytes, and supported export formats."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from bitstill.artifact.digests import digested_files
from bitstill.artifact.format import WEIGHTS
from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import Archive, read
from bitstill.artifact.size import size_report, to_json
from bitstill.errors import ArtifactError
from bitstill.exporters.gguf import gguf_types
from bitstill.program.from_artifact import program_of


def inspect(folder: str | Path) -> dict[str, Any]:
    """List the packed layers and the leftovers of an artifact, with bytes. Needs no torch.

    Args:
        folder: an artifact, or "owner/name" on the hub.

    Raises:
        ArtifactError: as `artifact.reader.read`.
    """
    archive = read(resolve_folder(folder))
    leftovers = [
        {"parameter": name, "shape": list(tensor.shape), "action": "float", "detail": str(tensor.dtype), "bytes": tensor.nbytes}
        for name, tensor in archive.leftovers.items()
    ]
    layers = [
        {"parameter": f"{layer.name}.weight", "shape": list(layer.shape), "action": "quantized", "detail": layer.quantizer}
        for layer in archive.layers.values()
    ]
    return {
        "architecture": archive.config.get("architecture"),
        "task": archive.config.get("task"),
        "parameters": layers + leftovers,
        "size": to_json(size_report(archive)),
        "digests_of": [WEIGHTS, *digested_files(archive.config)],
        "gguf": _gguf(archive),
        "runtime": _runtime(archive),
    }


def _gguf(archive: Archive) -> dict[str, Any]:
    """Whether GGUF can represent every layer: the block types, or the reason why not."""
    try:
        return {"fits": True, "block_types": dict(Counter(gguf_types(archive).values()))}
    except ArtifactError as error:
        return {"fits": False, "why_not": f"{error.where}: wanted {error.wanted}, got {error.given}"}


def _runtime(archive: Archive) -> dict[str, Any]:
    """Whether `bitstill.runtime` can run it, or the reason why not."""
    try:
        program_of(archive)
    except ArtifactError as error:
        return {"fits": False, "why_not": f"{error.where}: wanted {error.wanted}, got {error.given}"}
    return {"fits": True}
