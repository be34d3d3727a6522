"""The packed format, versions 1 to 3: names and records in the files of an artifact. No torch, no tensors.

A folder holds `model.safetensors` (tensors), `config.json` (the architecture, and `quantization_config` with one record per
packed layer), `recipe.yaml`, `report.json`, `report.html`, `README.md` and the preprocessor's files. A packed layer `L`
has the tensors

    L.codes     uint8   packed codes (rows, bytes per row), or (bytes,) under entropy coding
    L.scale     float   (rows, groups per row)
    L.offset    float   the same shape; absent where levels are symmetric
    L.levels    float32 (levels,); only for learned points, since all other levels are consecutive integers
    L.mask      uint8   one bit per weight; only if no level is zero

and, for a second plane, `L.codes_1`, `L.scale_1` and so on. Every other tensor is a leftover under its own name.
Version 2 adds the field `stored_as` to a layer's record: the name that replaces `L` in the names above. Layers that share a
weight share its tensors, and so this name; and if a leftover already has one of these names (a user's buffer called `scale`),
the packed layer is stored as `L.packed`.
Codes of pruned layers may be coded as a bitmap: one bit per weight in memory order, low bits first, set where the level is
not zero, in whole bytes; then, as one packed row, the codes of those weights counted without the level zero.
`config.json` holds the SHA-256 of `model.safetensors`, so that mixed files and flipped bits are detected; the metadata of
`model.safetensors` hold the SHA-256 of the layers' records, so that an edited record is detected, too.
Version 3 adds `quantization_config.digests`: "files" with the SHA-256 of the recipe and of each file that prepares inputs, and
"config" with that of `config.json` as canonical JSON (keys sorted, no spaces), without that entry itself and without the keys
in `EDITABLE_KEYS`. The report, its page and the model card may be edited. Versions 1 and 2 are read without such digests.
The number of weights per tensor of codes is limited by `most_weights`, so that a small file cannot allocate much memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from bitstill.errors import ArtifactError
from bitstill.quant.granularity import Bucket, Granularity, Grid, PerChannel, PerGroup, PerTensor, grid_of
from bitstill.quant.layouts import Layout

FORMAT_VERSIONS = (1, 2, 3)
"""Readable versions; the last one is written."""
SETTINGS, DIGESTS = "quantization_config", "digests"
"""Key of `config.json`, and a key within that."""
EDITABLE_KEYS = ("_name_or_path",)
"""Keys of `config.json` excluded from its digest: they describe the location of a model, not its outputs."""
METADATA = "bitstill_layers_sha256"
"""The one metadata key of `model.safetensors`."""
WEIGHTS, CONFIG, RECIPE, REPORT, PAGE, CARD = (
    "model.safetensors", "config.json", "recipe.yaml", "report.json", "report.html", "README.md",
)  # fmt: skip

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
    "merges.txt", "spiece.model", "spm.model", "sentencepiece.bpe.model", "preprocessor_config.json",
)  # fmt: skip
FILES = (WEIGHTS, CONFIG, RECIPE, REPORT, PAGE, CARD, *TOKENIZER_FILES)
"""All files of an artifact; a folder with any other file is not replaced."""
DIGESTED_FILES = (RECIPE, *TOKENIZER_FILES)
"""Files with a digest in `config.json`, if they exist."""

_MOST, _MOST_LEVELS = 2**40, 256
"""Largest numbers of weights in a layer, and of levels in a plane."""
_LAYOUTS, _CODINGS = ("bits", "trits", "bytes"), ("none", "zstd", "bitmap")
_GRANULARITIES: dict[str, type[Granularity]] = {
    "tensor": PerTensor, "channel": PerChannel, "group": PerGroup, "bucket": Bucket,
}  # fmt: skip


@dataclass(frozen=True)
class PlaneRecord:
    """One plane of a packed layer.

    Args:
        levels: number of levels.
        first: the first of consecutive integer levels (-1 for binary and ternary; binary then steps by `step`), or None if the
            levels are a tensor.
        step: distance between consecutive levels: 2 for binary (-1, +1), else 1.
        offset: whether there is an offset tensor.
        layout: layout of packed codes.
        coding: "none"; "zstd" if the packed codes are compressed further; "bitmap" (see above).
    """

    levels: int
    first: int | None
    step: int
    offset: bool
    layout: Layout
    coding: str


@dataclass(frozen=True)
class LayerRecord:
    """One packed layer.

    Args:
        name: its dotted module name.
        kind: "Linear", "TransposedLinear", "Conv1d", "Conv2d" or "Embedding".
        shape: the weight's shape, rows first.
        granularity: which weights share a scale.
        quantizer: its name, for reports.
        scale_dtype: "float32" or "float16".
        planes: one or more, which are summed.
        mask: whether there is a mask tensor.
        input: settings of the input quantizer (the fields of `QuantizeInput`), or None.
        stored_as: prefix of the names of its tensors.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    granularity: Granularity
    quantizer: str
    scale_dtype: str
    planes: tuple[PlaneRecord, ...]
    mask: bool
    input: dict[str, Any] | None
    stored_as: str

    @property
    def grid(self) -> Grid:
        """Division of the weight into groups."""
        return grid_of(self.shape, self.granularity)

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.grid.rows * self.grid.length

    def tensor(self, kind: str, plane: int = 0) -> str:
        """Name of one of the layer's tensors in the file."""
        return f"{self.stored_as}.{kind}" + (f"_{plane}" if plane else "")

    def tensors(self) -> dict[str, str]:
        """Every tensor this layer has in the file: name -> "codes", "scale", "offset", "levels" or "mask"."""
        names = {self.tensor("mask"): "mask"} if self.mask else {}
        for index, plane in enumerate(self.planes):
            present = {"codes": True, "scale": True, "offset": plane.offset, "levels": plane.first is None}
            names |= {self.tensor(kind, index): kind for kind, there in present.items() if there}
        return names

    def to_json(self) -> dict[str, Any]:
        """The record as `config.json` holds it."""
        record = asdict(self)
        del record["name"]
        if self.stored_as == self.name:
            del record["stored_as"]
        record["granularity"] = _granularity_to_json(self.granularity)
        return record

    @classmethod
    def from_json(cls, name: str, record: dict[str, Any]) -> LayerRecord:
        """Undo `to_json`.

        Raises:
            ArtifactError: if a field is missing, unknown or of the wrong kind.
        """
        try:
            fields = dict(record)
            fields["granularity"] = _granularity_from_json(fields["granularity"])
            fields["shape"] = tuple(int(n) for n in fields["shape"])
            fields["planes"] = tuple(PlaneRecord(**plane) for plane in fields["planes"])
            fields.setdefault("stored_as", name)
            layer = cls(name=name, **fields)
            _check(layer)
            return layer
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(
                "a record of a packed layer",
                given=f"{type(error).__name__}: {error}",
                where=f"{CONFIG}: quantization_config.layers[{name!r}]",
                fix="The file is damaged or was edited; deliver the model again.",
            ) from None


def _check(layer: LayerRecord) -> None:
    """Check that every field has its type and a valid value, so that readers need not check again.

    Raises:
        ValueError: a field is invalid.
    """
    fits = {
        "shape": bool(layer.shape) and _are_counts(layer.shape) and math.prod(layer.shape) < _MOST,
        "planes": bool(layer.planes),
        **{f"planes[{number}] {plane}": _is_plane(plane) for number, plane in enumerate(layer.planes)},
        "mask": type(layer.mask) is bool,
        "kind, quantizer, stored_as": all(isinstance(text, str) for text in (layer.kind, layer.quantizer, layer.stored_as)),
        "granularity": isinstance(getattr(layer.granularity, "size", 1), int),
        "input": layer.input is None or is_rule(layer.input),
    }
    if not all(fits.values()):
        raise ValueError(f"{next(name for name in fits if not fits[name])} out of range")


def _are_counts(values: Iterable[Any]) -> bool:
    return all(type(value) is int and value >= 1 for value in values)


def _is_plane(plane: PlaneRecord) -> bool:
    """Whether levels, layout and coding are consistent."""
    return (
        _are_counts((plane.levels, plane.step + (plane.first is None)))
        and max(plane.levels, plane.step) <= _MOST_LEVELS
        and (plane.first is None or (type(plane.first) is int and abs(plane.first) <= _MOST_LEVELS))
        and plane.layout in _LAYOUTS
        and plane.coding in _CODINGS
        and type(plane.offset) is bool
        and (plane.layout != "trits" or plane.levels - (plane.coding == "bitmap") == 3)
    )


def is_rule(rule: Any) -> bool:
    """Whether `rule` has the fields of `QuantizeInput`."""
    return (
        isinstance(rule, dict)
        and set(rule) == {"bits", "symmetric", "per", "range"}
        and type(rule["bits"]) is int
        and 2 <= rule["bits"] <= 8
        and type(rule["symmetric"]) is bool
        and rule["per"] in ("token", "sample", "tensor")
        and rule["range"] in ("dynamic", "clip", "step")
        and (rule["range"] == "dynamic" or rule["per"] == "tensor")
    )


def most_weights(stored: int) -> int:
    """Largest number of weights for `stored` bytes of codes: that of a small layer, or 512 per byte."""
    return max(2**16, 512 * stored)


def records_digest(records: dict[str, Any]) -> str:
    """SHA-256 of the layers' records as JSON, independent of spacing and order."""
    return hashlib.sha256(json.dumps(records, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _granularity_to_json(granularity: Granularity) -> dict[str, Any]:
    kind = next(name for name, cls in _GRANULARITIES.items() if type(granularity) is cls)
    return {"kind": kind, **asdict(granularity)}


def _granularity_from_json(record: dict[str, Any]) -> Granularity:
    fields = dict(record)
    return _GRANULARITIES[fields.pop("kind")](**fields)
