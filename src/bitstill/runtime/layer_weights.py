"""Weights in the C library's form, packed once and shared by plans for several image sizes."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import Archive
from bitstill.artifact.validate import DAMAGED
from bitstill.errors import ArtifactError
from bitstill.runtime import pack_matrix, pack_table
from bitstill.runtime.held import Held
from bitstill.runtime.pack_matrix import Matrix
from bitstill.runtime.pack_table import Table

Array = npt.NDArray[Any]


def expect(what: str, expected: object, actual: object, where: str) -> None:
    """Check two sizes for equality, since the steps in C read without bounds checks.

    Raises:
        ArtifactError: the two differ.
    """
    if expected != actual:
        raise ArtifactError(what, given=str(actual), where=where, fix=DAMAGED)


class LayerWeights:
    """Weights by layer, and numbers by their address.

    Args:
        archive: the artifact.
        library: the C library; weights are packed for its current tier.
    """

    def __init__(self, archive: Archive, library: ctypes.CDLL) -> None:
        self.archive, self.library = archive, library
        self.tier: int = library.bs_tier_in_use()
        self._matrices: dict[str, Matrix] = {}
        self._tables: dict[str, Table] = {}
        self._numbers = Held()
        self._addresses: dict[bytes, int] = {}

    def release(self, *, everything: bool = False) -> None:
        """Free tensors of the file that have been packed, or all of them if no further plans are needed."""
        if everything:
            self.archive = replace(self.archive, tensors={})
            return
        packed = (self.archive.layers[layer] for layer in (*self._matrices, *self._tables) if layer in self.archive.layers)
        dropped = {name for layer in packed for name in layer.tensors()}
        remaining = {name: tensor for name, tensor in self.archive.tensors.items() if name not in dropped}
        self.archive = replace(self.archive, tensors=remaining)

    def rule(self, layer: str) -> Mapping[str, Any] | None:
        """The rule by which the layer quantizes its input."""
        record = self.archive.layers.get(layer)
        return None if record is None else record.input

    def matrix(self, layer: str) -> Matrix:
        """The layer's weight, for products."""
        if layer not in self._matrices:
            self._matrices[layer] = pack_matrix.matrix(self.archive, layer, self.library, self.tier)
        return self._matrices[layer]

    def table(self, layer: str) -> Table:
        """The layer's weight, for looking up rows."""
        if layer not in self._tables:
            self._tables[layer] = pack_table.table(self.archive, layer)
        return self._tables[layer]

    def kernel_shape(self, layer: str) -> tuple[int, ...]:
        """The shape of a convolution's weight in the file."""
        record = self.archive.layers.get(layer)
        return self.archive.tensors[f"{layer}.weight"].shape if record is None else record.shape

    def leftover(self, name: str, size: int) -> Array | None:
        """A tensor that was not compressed, of so many numbers, as float32 (size,); None if there is none."""
        tensor = self.archive.tensors.get(name)
        if tensor is None:
            return None
        expect(f"{size} numbers", size, tensor.size, name)
        return tensor.astype(np.float32).reshape(size)

    def required(self, name: str, size: int) -> Array:
        """The same, of a tensor that must exist."""
        tensor = self.leftover(name, size)
        if tensor is None:
            raise ArtifactError(f"a tensor {name}", given="none", where=name, fix=DAMAGED)
        return tensor

    def numbers(self, values: Array) -> int:
        """Address of one number for each channel, padded to a whole panel; equal numbers are stored once."""
        key = hashlib.blake2b(values.tobytes(), digest_size=16).digest()
        if key not in self._addresses:
            self._addresses[key] = self._numbers.channels(values)
        return self._addresses[key]

    @property
    def bytes(self) -> int:
        """Bytes held by the weights."""
        held = [*(each.held for each in self._matrices.values()), *(each.held for each in self._tables.values()), self._numbers]
        return sum(each.bytes for each in held)
