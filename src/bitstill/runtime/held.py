"""Arrays referenced by structures of the C library, and uncompressed weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact.reader import Archive
from bitstill.artifact.validate import DAMAGED
from bitstill.errors import ArtifactError
from bitstill.runtime.structs import PANEL

Array = npt.NDArray[Any]


@dataclass
class Held:
    """Arrays referenced by a structure, kept alive with it."""

    arrays: list[Array] = field(default_factory=list)

    def at(self, values: Array, dtype: Any = np.float32) -> int:
        """Address of the values, as that type."""
        self.arrays.append(np.ascontiguousarray(values, dtype))
        return int(self.arrays[-1].ctypes.data)

    def channels(self, values: Array) -> int:
        """Address of one number per channel, padded to a whole panel."""
        return self.at(np.pad(values.astype(np.float32), (0, -len(values) % PANEL)))

    @property
    def bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)


def leftover_weight(archive: Archive, layer: str, dimensions: tuple[int, ...]) -> Array:
    """Weight of an uncompressed layer.

    Raises:
        ArtifactError: there is none, or it has other dimensions.
    """
    name = f"{layer}.weight"
    weight = archive.tensors.get(name)
    if weight is None or weight.ndim not in dimensions or weight.size == 0:
        wanted, given = f"a tensor of {dimensions[0]} dimensions", "none" if weight is None else f"shape {weight.shape}"
        raise ArtifactError(wanted, given=given, where=name, fix=DAMAGED)
    return weight
