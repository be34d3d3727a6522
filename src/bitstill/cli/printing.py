"""Output of the commands: documents, pages and short texts."""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape as escape

from bitstill.errors import BitstillWarning

out = Console()
err = Console(stderr=True)
RESUME = "The same command with --resume continues from the last checkpoint."


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_page(path: Path, html: str) -> None:
    """Write an HTML page, creating its folder if needed."""
    from bitstill.artifact.files import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, html.encode())


def show_warnings() -> None:
    """Print each of bitstill's warnings as one yellow line on standard error, and all others as Python does."""
    warnings.simplefilter("always", BitstillWarning)
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, BitstillWarning):
            err.print(f"[bold yellow]warning:[/] [yellow]{escape(str(message))}[/]", highlight=False, soft_wrap=True)
        else:
            others(message, category, *rest, **more)

    warnings.showwarning = show


@contextlib.contextmanager
def stoppable(advice: str = RESUME) -> Iterator[None]:
    """Context for long-running work: Ctrl-C ends the command with status 130 and prints how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"Stopped. {advice}", highlight=False)
        raise typer.Exit(130) from None


def digests_text(files: Sequence[str]) -> str:
    """Files of an artifact that were verified against their digests, from `inspect`."""
    return f"digests: of {', '.join(files)}{'' if len(files) > 1 else ' alone; an older version wrote it'}."


def gguf_text(gguf: dict[str, Any]) -> str:
    """Whether an artifact can be exported to GGUF, from `inspect`."""
    if not gguf["fits"]:
        return escape(f"gguf: no. {gguf['why_not']}.")
    return f"gguf: yes, {', '.join(f'{count} as {kind}' for kind, count in gguf['block_types'].items()) or 'in float'}."


def runtime_text(runtime: dict[str, Any]) -> str:
    """Whether an artifact runs without torch, from `inspect`."""
    return "runtime: yes, by bitstill.runtime." if runtime["fits"] else escape(f"runtime: no. {runtime['why_not']}.")


def export_text(report: dict[str, Any], folder: Path) -> str:
    """Summary of an export in a few lines."""
    first = (
        f"{report['file_bytes']:,} bytes (artifact: {report['artifact_bytes']:,}). Written to [bold]{escape(str(folder))}[/]"
    )
    if report["to"] == "gguf":
        types = ", ".join(f"{count} as {kind}" for kind, count in Counter(report["block_types"].values()).most_common())
        change = report["largest_change_of_a_weight"]
        exact = f"changed by up to {change:.1g} of the largest, by 16-bit scales" if change else "exactly as trained"
        notes = [f"Layers: {types}. Weights are {exact}."]
        if report["inputs_quantized_otherwise"]:
            notes.append("[yellow]llama.cpp quantizes inputs differently than in training:[/] outputs differ slightly.")
        if report["first_segment_only"]:
            notes.append("[yellow]llama.cpp assigns every token to the first segment:[/] not suitable for pairs of texts.")
        return "\n".join([first, *notes])
    if report["to"] in ("torch", "compressed-tensors"):
        bits = Counter(report.get("bits", {}).values())
        stored = (
            [f"Layers: {', '.join(f'{count} of {number} bits' for number, count in sorted(bits.items()))}."] if bits else []
        )
        changes = (
            ("in_float", "embeddings are in float again: transformers loads no quantized ones"),
            ("inputs_no_longer_quantized", "layers no longer quantize their inputs: outputs differ slightly"),
            ("attention_no_longer_quantized", "layers no longer quantize the operands of attention: outputs differ slightly"),
            ("narrower_than_config", "modules are narrower than config.json says: only bitstill can build this network"),
        )
        return "\n".join([first, *stored, *(f"{len(report[key])} {text}." for key, text in changes if report.get(key))])
    how, word = (report["arithmetic"], "by") if report["to"] == "onnx" else (report["constants"], "as")
    kinds = Counter(how.values())
    compared, layers = report["compared"], ", ".join(f"{count} {word} {kind}" for kind, count in kinds.most_common())
    changed = "" if report["activations"] == "trained" else " [yellow]Inputs are quantized differently than in training.[/]"
    where = "random inputs" if compared["inputs"] == "random" else f"samples of {compared['inputs']},"
    same = "" if compared["same_label"] is None else f"; {100 * compared['same_label']:.4g} % have the same label"
    lines = [
        f"{first}\nLayers: {layers}.{changed}\nOn {compared['samples']} {where} outputs differ from the artifact's by at "
        f"most {compared['largest_difference']:.2g} (largest output {compared['largest_output']:.2g}){same}."
    ]
    if compared["metric"] is not None:
        name, artifact_value, export_value = compared["metric"]
        lines.append(f"Its {name} is {export_value:.2f} there, and {artifact_value:.2f} in torch.")
    return "\n".join(lines)
