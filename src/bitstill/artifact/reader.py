"""Reading an artifact with numpy: validated records, tensors, and weights dequantized as in training.

Nothing here imports torch, and nothing in the files is executed. It is the reader for servers without torch, and the oracle
for tests of the reader in torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bitstill.artifact import codes as packing
from bitstill.artifact import coding
from bitstill.artifact.digests import check_digests
from bitstill.artifact.format import CONFIG, FORMAT_VERSIONS, METADATA, WEIGHTS, LayerRecord, records_digest
from bitstill.artifact.validate import DAMAGED, check_codes, check_layer, check_leftover, check_shared, check_values
from bitstill.errors import ArtifactError
from bitstill.quant.layouts import Layout, packed_length

Array = npt.NDArray[Any]
Unpack = Callable[[Array, int, int, Layout], Array]
"""Function from packed codes (rows, bytes), row length, levels and layout to codes (rows, length), uint8."""


@dataclass(frozen=True)
class Archive:
    """An artifact, read and validated.

    Args:
        folder: its folder.
        config: contents of `config.json`.
        layers: packed layers by module name.
        tensors: all tensors of `model.safetensors` by name.
    """

    folder: Path
    config: dict[str, Any]
    layers: dict[str, LayerRecord]
    tensors: dict[str, Array]

    @property
    def stored_weights(self) -> dict[str, LayerRecord]:
        """One layer per quantized weight, by module name: the first of those that share it."""
        first: dict[str, LayerRecord] = {}
        for layer in self.layers.values():
            first.setdefault(layer.stored_as, layer)
        return {layer.name: layer for layer in first.values()}

    @property
    def leftovers(self) -> dict[str, Array]:
        """Tensors outside packed layers, by parameter or buffer name."""
        packed = {name for layer in self.layers.values() for name in layer.tensors()}
        return {name: tensor for name, tensor in self.tensors.items() if name not in packed}

    def packed_codes(self, layer: LayerRecord, plane: int = 0) -> Array:
        """Packed codes of one plane without entropy coding, uint8 (rows, bytes per row); not for those coded as a bitmap."""
        record, name = layer.planes[plane], layer.tensor("codes", plane)
        stored, width = self.tensors[name], packed_length(layer.grid.length, layer.planes[plane].levels, record.layout)
        if record.coding == "zstd":
            plain = coding.decompress(stored.tobytes(), layer.grid.rows * width, f"{WEIGHTS}: {name}")
            stored = np.frombuffer(plain, np.uint8)
            check_codes(stored.reshape(layer.grid.rows, width), record.levels, record.layout, name)
        return stored.reshape(layer.grid.rows, width)

    def codes(self, layer: LayerRecord, plane: int = 0, unpack: Unpack | None = None) -> Array:
        """Codes of one plane, uint8 (rows, row length).

        Args:
            layer, plane: the plane.
            unpack: a faster equivalent of `artifact.codes.unpack`; None uses that.
        """
        record, where = layer.planes[plane], f"{WEIGHTS}: {layer.tensor('codes', plane)}"
        if record.coding == "bitmap":
            codes = self._from_bitmap(layer, plane, where)
        else:
            codes = (unpack or packing.unpack)(self.packed_codes(layer, plane), layer.grid.length, record.levels, record.layout)
        return codes

    def _from_bitmap(self, layer: LayerRecord, plane: int, where: str) -> Array:
        record, stored = layer.planes[plane], self.tensors[layer.tensor("codes", plane)]
        zero = np.flatnonzero(self.levels(layer, plane) == 0)
        size = packed_length(layer.weights, 2, "bits")
        if stored.ndim != 1 or len(stored) < size or zero.size != 1:
            raise _damaged_codes(f"a bitmap of {layer.weights} bits and a level zero", f"shape {stored.shape}", where)
        there = np.unpackbits(stored[:size], bitorder="little")[: layer.weights].astype(bool)
        nonzero, expected = int(there.sum()), packed_length(int(there.sum()), record.levels - 1, record.layout)
        if len(stored) != size + expected:
            raise _damaged_codes(f"{expected} bytes of codes after the bitmap", str(len(stored) - size), where)
        check_codes(stored[size:], record.levels - 1, record.layout, layer.tensor("codes", plane))
        rest = packing.unpack(stored[None, size:], nonzero, record.levels - 1, record.layout)[0]
        codes = np.full(layer.weights, zero[0], np.uint8)
        codes[there] = rest + (rest >= zero[0])
        return codes.reshape(layer.grid.rows, layer.grid.length)

    def levels(self, layer: LayerRecord, plane: int = 0) -> Array:
        """Sorted levels of one plane, float32."""
        record = layer.planes[plane]
        if record.first is None:
            return self.tensors[layer.tensor("levels", plane)]
        return (record.first + record.step * np.arange(record.levels)).astype(np.float32)

    def learned(self, transform: str, rule: Mapping[str, Any]) -> dict[str, np.float32]:
        """Learned bounds, "low" and "high", or the positive "step"; empty for a dynamic range.

        Args:
            transform: prefix of their names.
            rule: the fields of `QuantizeInput`.

        Raises:
            ArtifactError: one is missing, or is not a number.
        """
        numbers = {}
        for part in {"clip": ("low", "high"), "step": ("step",)}.get(rule["range"], ()):
            name = f"{transform}.{part}"
            tensor = self.tensors.get(name)
            if tensor is None or tensor.size != 1:
                given = "none" if tensor is None else f"shape {tensor.shape}"
                raise ArtifactError(f"one number {name}", given=given, where=name, fix=DAMAGED)
            numbers[part] = np.float32(tensor.reshape(()))
        if "step" in numbers:
            numbers["step"] = np.maximum(np.abs(numbers["step"]), np.float32(1e-8))
        return numbers

    def weight(self, name: str) -> Array:
        """The effective weight of the packed layer `name`, float32, bit for bit the one that was trained."""
        layer = self.layers[name]
        grid = layer.grid
        total: Array | None = None
        for index, record in enumerate(layer.planes):
            values = self.levels(layer, index)[self.codes(layer, index)]
            values = np.pad(values, ((0, 0), (0, grid.padding))).reshape(grid.rows, grid.groups, grid.size)
            plane = values * self.tensors[layer.tensor("scale", index)].astype(np.float32)[..., None]
            if record.offset:
                plane = plane + self.tensors[layer.tensor("offset", index)].astype(np.float32)[..., None]
            total = plane if total is None else total + plane
        assert total is not None
        weight = total.reshape(grid.rows, -1)[:, : grid.length].reshape(layer.shape)
        if layer.mask:
            row = int(np.prod(layer.shape[1:]))
            important = np.unpackbits(self.tensors[layer.tensor("mask")], axis=-1, bitorder="little")[:, :row]
            weight = np.where(important.reshape(layer.shape).astype(bool), weight, np.float32(0))
        return np.ascontiguousarray(weight)


def _damaged_codes(wanted: str, given: str, where: str) -> ArtifactError:
    return ArtifactError(wanted, given=given, where=where, fix=DAMAGED)


def read(folder: str | Path, *, complete: bool = True) -> Archive:
    """Read and check the artifact in `folder`.

    Args:
        folder: folder of the artifact.
        complete: whether all delivered files must exist; False if they are fetched one at a time.

    Raises:
        ArtifactError: it is missing, truncated, inconsistent, of another version or not bitstill's; or a code, a scale or
            another number in it is invalid.
    """
    folder = Path(folder)
    config = read_config(folder, complete=complete)
    settings = config["quantization_config"]
    tensors = _read_tensors(folder / WEIGHTS, settings)
    layers = {name: LayerRecord.from_json(name, record) for name, record in settings["layers"].items()}
    archive = Archive(folder, config, layers, tensors)
    for layer in layers.values():
        check_layer(layer, tensors)
    check_shared(layers)
    for layer in archive.stored_weights.values():
        check_values(layer, tensors)
    for name, tensor in archive.leftovers.items():
        check_leftover(name, tensor)
    return archive


def read_config(folder: Path, *, complete: bool = True) -> dict[str, Any]:
    """Read `config.json` of the artifact in `folder`, and check its version and the digests of all small files.

    Args:
        folder, complete: as for `read`.

    Raises:
        ArtifactError: as for `read`.
    """
    if not folder.is_dir():
        raise ArtifactError(
            "a folder with an artifact",
            given="no such folder",
            where=str(folder),
            fix="Check the path, or deliver the model first.",
        )
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"a folder with {CONFIG} and {WEIGHTS}", given=f"no {name}", where=str(folder), fix="Is this an artifact?"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        settings = config["quantization_config"]
        method, version = settings["quant_method"], settings["version"]
        if not isinstance(settings.get("layers"), dict):
            raise TypeError("quantization_config.layers is no object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(
            "a quantization_config written by bitstill",
            given=f"{type(error).__name__}: {error}",
            where=str(folder / CONFIG),
            fix="The file is damaged, or this is another kind of model folder.",
        ) from None
    if method != "bitstill":
        raise ArtifactError(
            "quant_method 'bitstill'",
            given=repr(method),
            where=str(folder / CONFIG),
            fix="Load it with the library that wrote it.",
        )
    if version not in FORMAT_VERSIONS:
        raise ArtifactError(
            f"format version {' or '.join(map(str, FORMAT_VERSIONS))}",
            given=repr(version),
            where=str(folder / CONFIG),
            fix="Upgrade bitstill: the artifact was written by another version.",
        )
    check_digests(config, folder, complete=complete)
    result: dict[str, Any] = config
    return result


def _read_tensors(path: Path, settings: dict[str, Any]) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    data = path.read_bytes()
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArtifactError(
            "an intact safetensors file",
            given=f"{len(data)} bytes, {error}",
            where=str(path),
            fix="The file is truncated or damaged; copy or deliver it again.",
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != settings.get("weights_sha256"):
        raise ArtifactError(
            f"the weights that {CONFIG} describes (SHA-256 {str(settings.get('weights_sha256'))[:12]}...)",
            given=f"SHA-256 {digest[:12]}...",
            where=str(path),
            fix="Files of two artifacts were mixed, or one was damaged; copy or deliver the folder again.",
        )
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if header.get("__metadata__", {}).get(METADATA) != records_digest(settings.get("layers", {})):
        raise ArtifactError(
            "the layers that were delivered",
            given="other records",
            where=f"{path.with_name(CONFIG)}: quantization_config.layers",
            fix="The file was edited or damaged; copy or deliver the folder again.",
        )
    return tensors
