"""Exports of an artifact to other runtimes, verified there against the artifact in torch before they are put in place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from bitstill._version import __version__
from bitstill.artifact.config_keys import ATTENTION, RESIZED, TRANSFORMERS_WEIGHTS, without_code
from bitstill.artifact.files import check_new, replaced_folder, write_file
from bitstill.artifact.format import CONFIG, TOKENIZER_FILES, WEIGHTS
from bitstill.artifact.hub import resolve_folder
from bitstill.artifact.reader import Archive, Array, read
from bitstill.deliver.parity import Compared, Run, compare_in_float, compare_outputs, without_input_quantization
from bitstill.errors import ArtifactError, SpecError, suggest
from bitstill.exporters.compressed_tensors import bits_of, packable, packed_words, quantization_config, unpacked_weight
from bitstill.exporters.gguf import write_gguf
from bitstill.exporters.onnx.graph import OPSET
from bitstill.exporters.onnx.lower import PER_TENSOR, Products, lower
from bitstill.exporters.onnx.session import open_session
from bitstill.exporters.openvino import open_model, write_openvino
from bitstill.program.from_artifact import program_of

MODEL, XML, GGUF, NOTES = "model.onnx", "model.xml", "model.gguf", "export.json"
BLOCKS = {"by": "MatMulNBits", "bits": 8, "symmetric": True, "per": "block", "range": "dynamic"}
"""Input quantization of ONNX Runtime's own operator."""
TOLERANCE: Mapping[str, float] = {"trained": 0.05, "changed": 0.25, "float": 1e-4}
"""Largest accepted difference from the artifact's outputs, as a fraction of the largest output. Where inputs are quantized, a
difference in the last bit of a float can move a value between two codes by a whole code: these tolerances are for 8 bits, and
double with each bit less."""
MOST = 0.5
"""Upper limit of the tolerance."""


@dataclass(frozen=True)
class Options:
    """Options of an export; None is the target's default.

    Args:
        activations: quantization of layer inputs.
        opset: operator set of ONNX.
        on_task: compare on the test split of the artifact's task instead of random inputs.
        data: folder with local files for the task.
    """

    activations: str | None = None
    opset: int | None = None
    on_task: bool = False
    data: Path | None = None


def export(
    folder: str | Path,
    out: str | Path,
    *,
    to: str = "onnx",
    activations: str | None = None,
    opset: int | None = None,
    on_task: bool = False,
    data: str | Path | None = None,
) -> dict[str, Any]:
    """Export the artifact in `folder` to another runtime, into a new folder `out`, and verify that outputs match.

    Args:
        folder: an artifact, or the name of one on the hub.
        out: a new or an empty folder. "onnx" writes model.onnx, whose weights are packed bits that standard operators unpack;
            "openvino" model.xml and model.bin, whose weights are low-bit constants; "gguf" model.gguf for llama.cpp;
            "compressed-tensors" a model.safetensors for transformers and vLLM, and "torch" an ordinary float one, both of which
            quantize no inputs. The tokenizer is copied.
        to: "onnx", "openvino", "gguf", "compressed-tensors" or "torch".
        activations: for "onnx" and "openvino", "trained" (the default there) quantizes inputs exactly as in training; others
            change outputs slightly. For "onnx": "per-tensor", one range for all tokens of a batch, for which runtimes have a
            faster operation; "qdq", the same as pairs of quantizing and dequantizing operators around float products, as
            compilers for other hardware expect; "blocks", ONNX Runtime's own operator MatMulNBits, which keeps weights packed
            in memory and has a range for each block of an input. For "openvino": "float". Operands of attention products are
            quantized as in training under all of these but "float".
        opset: for "onnx", the operator set; None is the oldest sufficient one, 21; from 23 on, attention is a single operator,
            which recent runtimes execute faster.
        on_task: for "onnx" and "openvino", compare on the test split of the artifact's task instead of random inputs.
        data: folder with local files for the task.

    Returns:
        Contents of export.json: bytes, arithmetic of each layer, and difference of the outputs from the artifact's.

    Raises:
        SpecError: unknown target or activations, an insufficient operator set, or `out` is not empty.
        ArtifactError: the artifact is damaged, cannot be represented in the target, or its outputs differ there.
        MissingPackageError: without the target's own packages.
    """
    options = Options(activations, opset, on_task, None if data is None else Path(data))
    _check(to, options)
    archive, target = read(resolve_folder(folder)), Path(out).resolve()
    check_new(target)
    with replaced_folder(target) as beside:
        notes = _TARGETS[to].write(archive, beside, options)
        own_keys = ("quantization_config", ATTENTION, TRANSFORMERS_WEIGHTS)
        config = {key: value for key, value in without_code(archive.config).items() if key not in own_keys}
        if "quantization_config" in notes:
            config["quantization_config"] = notes.pop("quantization_config")
        write_file(beside / CONFIG, json.dumps(config, indent=2).encode())
        for name in TOKENIZER_FILES:
            if (archive.folder / name).is_file():
                write_file(beside / name, (archive.folder / name).read_bytes())
        about = {"written_by": __version__, "to": to, "artifact_bytes": (archive.folder / WEIGHTS).stat().st_size}
        report = {**about, **notes}
        write_file(beside / NOTES, json.dumps(report, indent=1, sort_keys=True).encode())
    return report


def _check(to: str, options: Options) -> None:
    if to not in _TARGETS:
        raise SpecError("a known target", given=repr(to), where="to", fix=suggest(to, tuple(_TARGETS)))
    target, chosen = _TARGETS[to], options.activations
    if chosen is not None and chosen not in target.activations:
        fix = suggest(chosen, target.activations) if target.activations else "Leave it out: this target has no such choice."
        raise SpecError(f"activations that {to} has", given=repr(chosen), where="activations", fix=fix)
    if options.opset is not None and to != "onnx":
        raise SpecError("an opset with to='onnx'", given=f"to={to!r}", where="opset", fix="Leave it out.")
    if options.on_task and not target.activations:
        fix = "For this target every weight is compared instead."
        raise SpecError("to='onnx' or 'openvino' to compare on the task", given=f"to={to!r}", where="on_task", fix=fix)
    if options.data is not None and not options.on_task:
        raise SpecError("data with on_task", given="data alone", where="data", fix="Set on_task as well.")


_PRODUCTS: dict[str, Products] = {"blocks": "blocks", "qdq": "qdq"}
"""Kind of products by activations, where they are not of integers."""


def _to_onnx(archive: Archive, folder: Path, options: Options) -> dict[str, Any]:
    opset, how = OPSET if options.opset is None else options.opset, options.activations
    per_tensor, in_blocks = how in ("per-tensor", "qdq"), how == "blocks"
    products = _PRODUCTS.get(how or "", "integer")
    lowered = lower(program_of(archive), archive, products=products, per_tensor=per_tensor, opset=opset)
    if in_blocks and "packed blocks" not in lowered.arithmetic.values():
        fix = "Train linear layers with Uniform(symmetric=True), Ternary or Binary, or leave activations out."
        raise ArtifactError("a layer that fits blocks", given="none", where=str(archive.folder), fix=fix)
    if _quantizes_inputs(archive):
        plain = without_input_quantization(archive)
        compare_in_float(archive, open_session(lower(program_of(plain), plain, opset=opset).data))
    compared = _compare(archive, open_session(lowered.data), options)
    write_file(folder / MODEL, lowered.data)
    rules = _rules(archive)
    return {
        "file_bytes": len(lowered.data),
        "opset": opset,
        "arithmetic": lowered.arithmetic,
        "activations": options.activations or "trained",
        "inputs_quantized": [dict(PER_TENSOR)] if per_tensor and rules else [dict(BLOCKS), *rules] if in_blocks else rules,
        "attention_quantized": archive.config.get(ATTENTION) or {},
        "compared": asdict(compared),
    }


def _to_openvino(archive: Archive, folder: Path, options: Options) -> dict[str, Any]:
    plain = without_input_quantization(archive)
    exported = plain if options.activations == "float" else archive
    if exported is not plain and _quantizes_inputs(archive):
        with tempfile.TemporaryDirectory() as temporary:
            write_openvino(program_of(plain), plain, Path(temporary) / XML)
            compare_in_float(archive, open_model(Path(temporary) / XML))
    types = write_openvino(program_of(exported), exported, folder / XML)
    compared = _compare(archive, open_model(folder / XML), options)
    return {
        "file_bytes": sum((folder / XML).with_suffix(suffix).stat().st_size for suffix in (".xml", ".bin")),
        "constants": types,
        "activations": options.activations or "trained",
        "inputs_quantized": _rules(exported),
        "attention_quantized": exported.config.get(ATTENTION) or {},
        "compared": asdict(compared),
    }


def _quantizes_inputs(archive: Archive) -> bool:
    return bool(_rules(archive) or archive.config.get(ATTENTION))


def _rules(archive: Archive) -> list[dict[str, Any]]:
    """Distinct settings of input quantization."""
    rules = {json.dumps(layer.input, sort_keys=True) for layer in archive.layers.values() if layer.input}
    return [json.loads(rule) for rule in sorted(rules)]


def _compare(archive: Archive, run: Run, options: Options) -> Compared:
    inside = [rule for rules in (archive.config.get(ATTENTION) or {}).values() for rule in rules.values()]
    rules = [*inside, *_rules(archive), *([BLOCKS] if options.activations == "blocks" else ())]
    changed = options.activations not in (None, "trained")
    tolerance = TOLERANCE["changed" if rules and changed else "trained" if rules else "float"]
    if rules:
        tolerance = min(MOST, tolerance * 2 ** (8 - min(rule["bits"] for rule in rules)))
    return compare_outputs(archive, run, tolerance, on_task=options.on_task, data=options.data)


def _to_gguf(archive: Archive, folder: Path, _: Options) -> dict[str, Any]:
    written = write_gguf(archive, folder / GGUF)
    return {
        "file_bytes": (folder / GGUF).stat().st_size,
        "block_types": written.types,
        "largest_change_of_a_weight": written.scales,
        "inputs_quantized_otherwise": sorted(name for name, layer in archive.layers.items() if layer.input),
        "first_segment_only": bool(archive.config.get("type_vocab_size", 1) > 1),
        "gelu_by_tanh": archive.config["hidden_act"] in ("gelu", "gelu_python"),
    }


def _to_torch(archive: Archive, folder: Path, _: Options) -> dict[str, Any]:
    return _saved(archive, folder, {f"{name}.weight": archive.weight(name) for name in archive.layers})


def _to_compressed_tensors(archive: Archive, folder: Path, _: Options) -> dict[str, Any]:
    if "model_type" not in archive.config:
        given = str(archive.config.get("architecture"))
        raise ArtifactError("a model of transformers", given=given, where="config.json", fix="Export it to onnx or torch.")
    bits = {layer.name: bits_of(layer) for layer in packable(archive)}
    tensors = {f"{name}.weight": archive.weight(name) for name in archive.layers if name not in bits}
    for name in bits:
        tensors |= packed_words(archive, archive.layers[name])
    written = _saved(archive, folder, tensors)
    read_back = load_file(folder / WEIGHTS)
    for name, number in bits.items():
        if not np.array_equal(unpacked_weight(read_back, name, number), archive.weight(name)):
            fix = "Nothing was written. This is a defect of bitstill: please report it."
            raise ArtifactError("the weights that were trained", given="others", where=name, fix=fix)
    left = sorted(set(archive.layers) - set(bits))
    return {**written, "bits": bits, "in_float": left, "quantization_config": quantization_config(archive)}


def _saved(archive: Archive, folder: Path, weights: Mapping[str, Array]) -> dict[str, Any]:
    """Write weights and leftovers in float32; returns a note of the quantization that is lost."""
    learned = {name for name in archive.leftovers if {"input_transform", "attention_transform"} & set(name.split("."))}
    tensors = {name: _float(tensor) for name, tensor in archive.leftovers.items() if name not in learned}
    data = save({**tensors, **weights}, {"format": "pt"})
    write_file(folder / WEIGHTS, data)
    return {
        "file_bytes": len(data),
        "inputs_no_longer_quantized": sorted(name for name, layer in archive.layers.items() if layer.input),
        "attention_no_longer_quantized": sorted(archive.config.get(ATTENTION) or ()),
        "narrower_than_config": sorted(archive.config.get(RESIZED) or ()),
    }


def _float(tensor: Array) -> Array:
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


@dataclass(frozen=True)
class _Target:
    """An export target: its writer, and its choices of activations."""

    write: Callable[[Archive, Path, Options], dict[str, Any]]
    activations: tuple[str, ...] = ()


_TARGETS = {
    "onnx": _Target(_to_onnx, ("trained", "per-tensor", "qdq", "blocks")),
    "openvino": _Target(_to_openvino, ("trained", "float")),
    "gguf": _Target(_to_gguf),
    "compressed-tensors": _Target(_to_compressed_tensors),
    "torch": _Target(_to_torch),
}
