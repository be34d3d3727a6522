"""The demonstration, and the commands that look at artifacts and recipes or carry an artifact elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitstill.cli.options import DataOption, JsonFlag, SeedOption
from bitstill.cli.printing import err, export_text, gguf_text, out, print_json, runtime_text, write_page


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to write artifacts, report.json and report.html.")] = Path(
        "demo"
    ),
    recipe: Annotated[
        str, typer.Option(help="quantized-distillation: 32 to 1 bits under a teacher; pqk: pruned and quantized.")
    ] = "quantized-distillation",
    seed: SeedOption = 0,
    epochs: Annotated[float | None, typer.Option(help="Of each row that trains; default is 60 (pqk: 40).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare float, post-training and trained low-bit networks on handwritten digits, all read back from their files."""
    from bitstill.report.tables import rich_table
    from bitstill.run.demo import demo as run

    result = run(folder, recipe=recipe, seed=seed, epochs=epochs, say=lambda text: err.print(text, highlight=False))
    if as_json:
        print_json(result.report)
        return
    out.print(rich_table(result.rows, "accuracy"))
    out.print(f"Open [bold]{folder / 'report.html'}[/]; artifacts are in the folders beside it.", highlight=False)


def evaluate(
    folder: Annotated[Path, typer.Argument(help="An artifact, or owner/name on the hub.")],
    task: Annotated[str | None, typer.Option(help="Task of your own, package.module:Name; default is the artifact's.")] = None,
    model: Annotated[str | None, typer.Option(help="Float network of your own, package.module:Name.")] = None,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    as_json: JsonFlag = False,
) -> None:
    """Measure an artifact on its task."""
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
    """Show every layer of an artifact: what was done to it, its bits and its bytes."""
    from bitstill.deliver.inspect import inspect as run
    from bitstill.report.tables import size_table

    found = run(folder)
    if as_json:
        print_json(found)
        return
    out.print(size_table(found))
    for text in (runtime_text(found["runtime"]), gguf_text(found["gguf"])):
        out.print(text, style="dim", highlight=False)


def export(
    folder: Annotated[Path, typer.Argument(help="An artifact, or owner/name on the hub.")],
    target: Annotated[Path, typer.Option("--out", help="A new folder.")],
    to: Annotated[
        str,
        typer.Option(
            help="onnx: packed, for any ONNX Runtime; openvino; gguf: for llama.cpp; compressed-tensors; torch: float."
        ),
    ] = "onnx",
    activations: Annotated[
        str | None,
        typer.Option(
            help="trained: inputs as in training; not quite the same: per-tensor, qdq, blocks (onnx), float (openvino)."
        ),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX operator set; 21 runs anywhere, 23 faster in recent runtimes.")
    ] = None,
    on_task: Annotated[bool, typer.Option("--on-task", help="Compare on the task's test split, not on random inputs.")] = False,
    data: DataOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Write an artifact for another runtime, and check that it says the same there."""
    from bitstill.deliver.export import export as run

    found = run(folder, target, to=to, activations=activations, opset=opset, on_task=on_task, data=data)
    if as_json:
        print_json(found)
        return
    out.print(export_text(found, target), highlight=False)


def bench(
    folders: Annotated[list[Path], typer.Argument(help="Artifacts, exports, or Hugging Face folders of float encoders.")],
    batch: Annotated[list[int] | None, typer.Option(help="Texts or pictures at once; repeatable; default 1 and 8.")] = None,
    length: Annotated[list[int] | None, typer.Option(help="Of texts, in tokens; repeatable; default 16 and 128.")] = None,
    threads: Annotated[int | None, typer.Option(help="For each network; default is all there are.")] = None,
    turns: Annotated[int, typer.Option(help="How often each is timed at each point.")] = 40,
    page: Annotated[Path | None, typer.Option("--out", help="Where to write a page with plots, such as bench.html.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time networks in turns, each in a process of its own: latency, loading, memory, bytes."""
    from bitstill.deliver.bench import bench as run
    from bitstill.report.latency import latency_page, latency_tables

    found = run(folders, batch=batch or (1, 8), length=length or (16, 128), threads=threads, turns=turns)
    if page is not None:
        write_page(page, latency_page(found))
    if as_json:
        print_json(found)
        return
    for table in latency_tables(found):
        out.print(table, "")
    out.print(
        f"Median ms of {found['turns']} turns with {found['threads']} threads; in brackets, against the first network.",
        highlight=False,
    )


def compare(
    folders: Annotated[list[Path], typer.Argument(help="Artifacts of one task, or owner/name on the hub.")],
    batch: Annotated[int, typer.Option(help="Texts or pictures at once, while timing.")] = 1,
    length: Annotated[int, typer.Option(help="Of texts, in tokens.")] = 128,
    threads: Annotated[int | None, typer.Option(help="For each network; default is all there are.")] = None,
    turns: Annotated[int, typer.Option(help="How often each is timed; 0 does not time.")] = 20,
    page: Annotated[Path | None, typer.Option("--out", help="Where to write a page with plots, such as compare.html.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put artifacts side by side: what they score, weigh and cost to run."""
    from dataclasses import asdict

    from bitstill.deliver.compare import compare as run
    from bitstill.report.page import comparison_page
    from bitstill.report.tables import rich_table

    found = run(folders, batch=batch, length=length, threads=threads, turns=turns)
    if page is not None:
        write_page(page, comparison_page(f"{len(found.reports)} artifacts", found.rows, found.reports, {}, found.timed))
    if as_json:
        print_json({"metric": found.metric, "timed": found.timed, "rows": [asdict(row) for row in found.rows]})
        return
    out.print(rich_table(found.rows, found.metric))
    if found.timed:
        out.print(found.timed, highlight=False)


def push(
    folder: Annotated[Path, typer.Argument(help="An artifact.")],
    name: Annotated[str, typer.Argument(help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Only you can see it, if it is made.")] = False,
) -> None:
    """Put an artifact on the Hugging Face Hub, where bitstill.load finds it by name."""
    from bitstill.artifact.hub import push as run

    out.print(run(folder, name, private=private), highlight=False)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show the options of one recipe.")] = None, as_json: JsonFlag = False
) -> None:
    """List the recipes, or the options of one."""
    from bitstill.recipes.catalogue import describe, describe_all

    if as_json:
        print_json(describe_all() if name is None else describe(name))
        return
    from bitstill.report.tables import options_table, recipes_table

    out.print(recipes_table(describe_all()) if name is None else options_table(describe(name)))
