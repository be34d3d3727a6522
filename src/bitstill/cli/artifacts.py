"""The commands that measure, inspect, export, time, compare and publish artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitstill.cli.options import DataOption, JsonFlag
from bitstill.cli.printing import digests_text, export_text, gguf_text, out, print_json, runtime_text, write_page


def evaluate(
    folder: Annotated[Path, typer.Argument(help="An artifact, or owner/name on the hub.")],
    task: Annotated[str | None, typer.Option(help="Another task, or package.module:Name; default the artifact's.")] = None,
    model: Annotated[str | None, typer.Option(help="package.module:Name of the float network, where it is your own.")] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    as_json: JsonFlag = False,
) -> None:
    """Evaluate an artifact on its task."""
    from bitstill.deliver.evaluate import evaluate as run

    measured = run(folder, task=task, model=model, data=data, split=split)
    if as_json:
        print_json(measured)
        return
    out.print(
        f"{measured['metric']} on {measured['samples']:,} {measured['task']} {split} samples: [bold]{measured['value']:.2f}[/]",
        highlight=False,
    )
    others = [f"{name} {value:.2f}" for name, value in measured["metrics"].items() if name != measured["metric"]]
    if others:
        out.print(", ".join(others), style="dim", highlight=False)


def inspect(
    folder: Annotated[Path, typer.Argument(help="An artifact, or owner/name on the hub.")], as_json: JsonFlag = False
) -> None:
    """Show every layer of an artifact: its quantizer, its bits and its bytes."""
    from bitstill.deliver.inspect import inspect as run
    from bitstill.report.tables import size_table

    contents = run(folder)
    if as_json:
        print_json(contents)
        return
    out.print(size_table(contents))
    for text in (runtime_text(contents["runtime"]), gguf_text(contents["gguf"]), digests_text(contents["digests_of"])):
        out.print(text, style="dim", highlight=False)


def export(
    folder: Annotated[Path, typer.Argument(help="An artifact, or owner/name on the hub.")],
    target: Annotated[Path, typer.Option("--out", help="New folder for the export.")],
    to: Annotated[
        str,
        typer.Option(help="onnx, openvino, gguf (llama.cpp), compressed-tensors (vLLM, transformers) or torch (float)."),
    ] = "onnx",
    activations: Annotated[
        str | None,
        typer.Option(
            help="Input quantization: trained, or an approximation: per-tensor, qdq, blocks (onnx), float (openvino)."
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set: 21 (runs anywhere) or 23 (faster in recent runtimes).")
    ] = None,
    on_task: Annotated[bool, typer.Option("--on-task", help="Verify on the task's test split, not random inputs.")] = False,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Export an artifact to another runtime, and verify that outputs match."""
    from bitstill.deliver.export import export as run

    report = run(folder, target, to=to, activations=activations, opset=opset, on_task=on_task, data=data)
    if as_json:
        print_json(report)
        return
    out.print(export_text(report, target), highlight=False)


def bench(
    folders: Annotated[list[Path], typer.Argument(help="Artifacts, exports, or Hugging Face folders of float encoders.")],
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; repeatable; default 1 and 8.")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Length of texts in tokens; repeatable; default 16 and 128.")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per network; default is every core.")] = None,
    turns: Annotated[int, typer.Option(help="Timings per network, batch size and length.")] = 40,
    page: Annotated[Path | None, typer.Option("--out", help="HTML page with plots, for example bench.html.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Measure latency, loading time and memory of networks, each in its own process, in alternation."""
    from bitstill.deliver.bench import bench as run
    from bitstill.report.latency import latency_page, latency_tables

    timings = run(folders, batch=batch or (1, 8), length=length or (16, 128), threads=threads, turns=turns)
    if page is not None:
        write_page(page, latency_page(timings))
    if as_json:
        print_json(timings)
        return
    for table in latency_tables(timings):
        out.print(table, "")
    out.print(
        f"Median ms of {timings['turns']} turns with {timings['threads']} threads; in brackets, against the first network.",
        highlight=False,
    )


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Artifacts of one task, or owner/name on the hub.")],
    batch: Annotated[int, typer.Option(help="Batch size when timing.")] = 1,
    length: Annotated[int, typer.Option(help="Length of texts in tokens when timing.")] = 128,
    threads: Annotated[int | None, typer.Option(help="Threads per network; default is every core.")] = None,
    turns: Annotated[int, typer.Option(help="Timings per network; 0 skips timing.")] = 20,
    page: Annotated[Path | None, typer.Option("--out", help="HTML page with plots, for example compare.html.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare artifacts of one task: metric, size and latency."""
    from dataclasses import asdict

    from bitstill.deliver.compare import compare as run
    from bitstill.report.page import comparison_page
    from bitstill.report.tables import rich_table

    comparison = run(folders, batch=batch, length=length, threads=threads, turns=turns)
    if page is not None:
        write_page(
            page,
            comparison_page(f"{len(comparison.reports)} artifacts", comparison.rows, comparison.reports, {}, comparison.timed),
        )
    if as_json:
        print_json({"metric": comparison.metric, "timed": comparison.timed, "rows": [asdict(row) for row in comparison.rows]})
        return
    out.print(rich_table(comparison.rows, comparison.metric))
    if comparison.timed:
        out.print(comparison.timed, highlight=False)


def push(
    folder: Annotated[Path, typer.Argument(help="An artifact.")],
    name: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as private.")] = False,
) -> None:
    """Upload an artifact to the Hugging Face Hub, from where bitstill.load reads it by name."""
    from bitstill.artifact.hub import push as run

    out.print(run(folder, name, private=private), highlight=False)
