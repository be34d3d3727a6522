"""An artifact for another runtime: written, run there, and compared with itself in torch before it takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from bitstill._version import VERSION
from bitstill.api import load
from bitstill.artifact.files import check_new, replaced_folder, write_file
from bitstill.artifact.format import CONFIG, TOKENIZER_FILES, WEIGHTS
from bitstill.artifact.reader import Archive, Array, read
from bitstill.errors import ArtifactError, SpecError, suggest
from bitstill.export.gguf import write_gguf
from bitstill.export.onnx.graph import OPSET
from bitstill.export.onnx.lower import PER_TENSOR, lower
from bitstill.export.onnx.session import Run, open_session
from bitstill.export.plan import program_of
from bitstill.export.samples import made_up
from bitstill.hub import located
from bitstill.keys import ATTENTION, RESIZED

Target = Literal["onnx", "gguf", "torch"]
Activations = Literal["trained", "per-tensor"]
MODEL, GGUF, NOTES = "model.onnx", "model.gguf", "export.json"
SAMPLES, LENGTHS = 16, (4, 32)
"""Of the inputs that a comparison makes up: how many, and tokens in each text."""
TOLERANCE: Mapping[str, float] = {"trained": 0.05, "per-tensor": 0.25, "float": 1e-4}
"""Largest difference from the artifact's outputs that is let pass, as a fraction of the largest of them. Where inputs are
quantized, a difference in the last bit of a float moves a value that lies between two codes by a whole code."""


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Args:
        samples: how many inputs, made up at random.
        largest_difference: of two outputs.
        largest_output: of the artifact.
        tolerance: fraction of the latter that the former may be.
        same_label: fraction of inputs.
    """

    samples: int
    largest_difference: float
    largest_output: float
    tolerance: float
    same_label: float

    @property
    def passed(self) -> bool:
        """Whether the two say the same."""
        return self.largest_difference <= self.tolerance * self.largest_output


def export_artifact(
    folder: str | Path, out: str | Path, *, to: str = "onnx", activations: str = "trained", opset: int | None = None
) -> dict[str, Any]:
    """Write the artifact in `folder` for another runtime to a new folder `out`, and check that it says the same there.

    Args:
        folder: an artifact, or the name of one on the hub.
        out: a new or an empty folder. "onnx" writes model.onnx, in which weights are packed bits that standard operators
            unpack; "gguf" writes model.gguf for llama.cpp; "torch" an ordinary float model.safetensors, which quantizes no
            inputs. The tokenizer comes along.
        to: "onnx", "gguf" or "torch".
        activations: for "onnx", "trained" quantizes inputs exactly as in training; "per-tensor" with one range for all tokens
            of a batch, which runtimes have a faster operation for, and which changes what the network says a little.
        opset: for "onnx", the operator set; None is the oldest that will do.

    Returns:
        What export.json says: bytes, how each layer is computed, and how far outputs are from the artifact's.

    Raises:
        SpecError: unknown target or activations, an operator set that cannot say it, or `out` holds something.
        ArtifactError: the artifact is damaged, cannot be said in that target, or says something else there.
        MissingPackageError: without onnx and onnxruntime, or gguf.
    """
    for name, given, known in (("to", to, Target), ("activations", activations, Activations)):
        if given not in get_args(known):
            raise SpecError(f"a known {name}", given=repr(given), where="export", fix=suggest(given, get_args(known)))
    if to != "onnx" and (activations, opset) != ("trained", None):
        fix = "Leave them out: other runtimes quantize inputs as they do."
        raise SpecError("activations and opset with to='onnx'", given=repr(to), where="export", fix=fix)
    archive, target = read(located(folder)), Path(out).resolve()
    check_new(target)
    with replaced_folder(target) as beside:
        notes = _to_onnx(archive, beside, activations, opset or OPSET) if to == "onnx" else _OTHERS[to](archive, beside)
        config = {key: value for key, value in archive.config.items() if key not in ("quantization_config", ATTENTION)}
        write_file(beside / CONFIG, json.dumps(config, indent=2).encode())
        for name in TOKENIZER_FILES:
            if (archive.folder / name).is_file():
                write_file(beside / name, (archive.folder / name).read_bytes())
        about = {"written_by": VERSION, "to": to, "artifact_bytes": (archive.folder / WEIGHTS).stat().st_size}
        report = {**about, **notes}
        write_file(beside / NOTES, json.dumps(report, indent=1, sort_keys=True).encode())
    return report


def _to_onnx(archive: Archive, folder: Path, activations: str, opset: int) -> dict[str, Any]:
    program = program_of(archive)
    lowered = lower(program, archive, per_tensor=activations == "per-tensor", opset=opset)
    integers = any(layer.input for layer in archive.layers.values())
    found = _compare(archive, open_session(lowered.data), TOLERANCE[activations if integers else "float"])
    write_file(folder / MODEL, lowered.data)
    rules = {json.dumps(layer.input, sort_keys=True) for layer in archive.layers.values() if layer.input}
    changed = [PER_TENSOR] if activations == "per-tensor" and rules else [json.loads(rule) for rule in sorted(rules)]
    return {
        "file_bytes": len(lowered.data),
        "opset": opset,
        "arithmetic": lowered.arithmetic,
        "activations": activations,
        "inputs_quantized": changed,
        "compared": asdict(found),
    }


def _to_gguf(archive: Archive, folder: Path) -> dict[str, Any]:
    written = write_gguf(archive, folder / GGUF)
    return {
        "file_bytes": (folder / GGUF).stat().st_size,
        "block_types": written.types,
        "largest_change_of_a_weight": written.scales,
        "inputs_quantized_otherwise": sorted(name for name, layer in archive.layers.items() if layer.input),
        "first_segment_only": bool(archive.config.get("type_vocab_size", 1) > 1),
    }


def _to_torch(archive: Archive, folder: Path) -> dict[str, Any]:
    from safetensors.numpy import save

    learned = {name for name in archive.leftovers if ".input_transform." in name}
    tensors = {name: _float(tensor) for name, tensor in archive.leftovers.items() if name not in learned}
    tensors |= {f"{name}.weight": archive.weight(name) for name in archive.layers}
    data = save(tensors, {"format": "pt"})
    write_file(folder / WEIGHTS, data)
    return {
        "file_bytes": len(data),
        "inputs_no_longer_quantized": sorted(name for name, layer in archive.layers.items() if layer.input),
        "attention_no_longer_quantized": sorted(archive.config.get(ATTENTION) or ()),
        "narrower_than_config": sorted(archive.config.get(RESIZED) or ()),
    }


_OTHERS: Mapping[str, Callable[[Archive, Path], dict[str, Any]]] = {"gguf": _to_gguf, "torch": _to_torch}


def _float(tensor: Array) -> Array:
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


def _compare(archive: Archive, run: Run, tolerance: float) -> Compared:
    """Outputs of an exported network and of the artifact itself on inputs that are made up.

    Raises:
        ArtifactError: they differ by more than the tolerance.
    """
    longest = min(LENGTHS[1], archive.config.get("max_position_embeddings", LENGTHS[1]) - 2)
    values = made_up(archive.config, SAMPLES, longest, shortest=LENGTHS[0])
    model = load(archive.folder)
    with torch.inference_mode():
        tensors = {name: torch.from_numpy(value) for name, value in values.items()}
        answer = model(**tensors).logits if "input_ids" in tensors else model(*tensors.values())
    wanted = answer.float().numpy()
    given = run(values)
    largest, of = float(np.abs(given - wanted).max()), float(np.abs(wanted).max())
    same = float((given.argmax(-1) == wanted.argmax(-1)).mean())
    found = Compared(len(wanted), largest, of, tolerance, same)
    if not found.passed:
        fix = "Nothing was written. Report it, please, with the artifact's config.json; bitstill.load runs it in torch."
        alike = f"outputs that differ by at most {tolerance} of the largest, {of:.4g}"
        raise ArtifactError(alike, given=f"a difference of {largest:.4g}", where=str(archive.folder), fix=fix)
    return found
