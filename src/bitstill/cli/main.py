"""The command line. Each command parses, calls one function of the library and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from bitstill.errors import BitstillError, SpecError

if TYPE_CHECKING:
    from bitstill.runfile import RunFile

app = typer.Typer(
    name="bitstill",
    help="Distil trained networks into 1- to 8-bit ones, and deliver files that really are that small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out = Console()
err = Console(stderr=True)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
DataOption = Annotated[str | None, typer.Option(help="Folder with local files for the task.")]


TextColumn = Annotated[
    list[str] | None, typer.Option("--text-column", help="Column with the text; twice for a pair. Task text only.")
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column with the label. Task text only.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Longest text in tokens. Task text only.")]
Truncate = Annotated[
    bool | None, typer.Option("--truncate/--no-truncate", help="Cut longer texts off instead of refusing them.")
]


def main() -> None:
    """Run the command line; an error of bitstill's becomes one message and exit status 1."""
    try:
        app()
    except BitstillError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where to write artifacts, report.json and report.html.")] = Path(
        "demo"
    ),
    recipe: Annotated[
        str, typer.Option(help="quantized-distillation: 32 to 1 bits under a teacher; pqk: pruned and quantized.")
    ] = "quantized-distillation",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    epochs: Annotated[float | None, typer.Option(help="Of each row that trains; default is 60 (pqk: 40).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare float, post-training and trained low-bit networks on handwritten digits, all read back from their files."""
    from bitstill.demo import run_demo
    from bitstill.report.tables import rich_table

    result = run_demo(folder, recipe=recipe, seed=seed, epochs=epochs, say=lambda text: err.print(text, highlight=False))
    if as_json:
        _print_json(result.report)
        return
    out.print(rich_table(result.rows, "accuracy"))
    out.print(f"Open [bold]{folder / 'report.html'}[/]; artifacts are in the folders beside it.", highlight=False)


@app.command()
def compress(
    run_file: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="A run file; flags override it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="See `bitstill recipes`.")] = None,
    task: Annotated[str | None, typer.Option(help="Data and metric: digits, cifar10.")] = None,
    model: Annotated[
        str | None, typer.Option(help="What is to be compressed: a network's name or an artifact's folder.")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Guides the student; default is --model.")] = None,
    student: Annotated[str | None, typer.Option(help="What is delivered; default is --model.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Plain text on which the student is distilled in general first: folder, file or hub name."),
    ] = None,
    augmented: Annotated[
        str | None, typer.Option(help="Folder with variants of the training texts, from `bitstill augment`.")
    ] = None,
    augment: Annotated[bool | None, typer.Option("--augment/--no-augment", help="Augment the training data.")] = None,
    bits: Annotated[str | None, typer.Option(help="1 to 8, ternary, or none for a float student.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Duration of the main stage.")] = None,
    steps: Annotated[int | None, typer.Option(help="The same in optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; default is an epoch.")] = None,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to deliver the artifact.")] = None,
    each_stage: Annotated[
        bool, typer.Option("--each-stage", help="Deliver what every stage leaves, too, to OUT-<stage>.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option; repeatable.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what each layer would get and the bytes; train nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a compressed model and deliver it as a folder."""
    from bitstill.api import compress as run
    from bitstill.dry_run import dry_run as look
    from bitstill.report.tables import size_table
    from bitstill.runfile import read_run

    overrides: dict[str, Any] = {
        "recipe": recipe, "task": task, "model": model, "teacher": teacher, "student": student, "data": data,
        "out": None if folder is None else str(folder), "corpus.source": corpus, "options.augment": augment,
        "options.epochs": epochs, "options.steps": steps, "settings.seed": seed, "settings.precision": precision,
        "settings.checkpoint_every": checkpoint_every, "text.text": text_column or None, "text.label": label_column,
        "text.max_length": max_length, "text.truncate": truncate, "augmented": augmented,
    }  # fmt: skip
    chosen = ([f"bits={'null' if bits == 'none' else bits}"] if bits is not None else []) + (assignments or [])
    _check_duration(epochs, steps, "compress")
    wanted = read_run(run_file, overrides, chosen)
    built = wanted.build_recipe()
    if dry_run:
        if wanted.corpus is not None:
            fix = "Leave --corpus out, or give what `bitstill distill` has made as --student."
            raise SpecError("no --corpus", given="one", where="--dry-run, which trains nothing", fix=fix)
        more = (wanted.data, wanted.text, wanted.augmented)
        planned = look(built, wanted.task, wanted.models(built), wanted.settings, wanted.storage, *more)
        if as_json:
            _print_json(planned)
        else:
            out.print(size_table(planned))
        return
    if wanted.out is None:
        raise SpecError("a folder to deliver to", given="none", where="compress", fix="Add --out DIR.")
    try:
        models = _with_general(wanted, built, resume)
        result = run(
            built, wanted.task, models, out=wanted.out, settings=wanted.settings, storage=wanted.storage,
            resume=resume, data=wanted.data, text=wanted.text, augmented=wanted.augmented, each_stage=each_stage,
        )  # fmt: skip
    except KeyboardInterrupt:
        err.print("Stopped. The same command with --resume continues from the last checkpoint.", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(result.report)
        return
    out.print(size_table(result.report))
    out.print(_summary(result.report, wanted.out), highlight=False)


@app.command()
def finetune(
    model: Annotated[str, typer.Option(help="A pretrained encoder: folder or hub name.")],
    task: Annotated[str, typer.Option(help="A GLUE task, or text for files of your own.")],
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the fine-tuned model.")],
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; default is 3.")] = None,
    steps: Annotated[int | None, typer.Option(help="The same in optimizer steps.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default is 5e-5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step; default is 32.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a pretrained encoder on labels, to be a teacher: an ordinary Hugging Face folder."""
    from bitstill.finetuning import finetune as run
    from bitstill.recipes import FineTuning
    from bitstill.runfile import read_run

    overrides = {
        "recipe": "fine-tuning", "task": task, "options.epochs": epochs, "options.steps": steps, "options.lr": lr,
        "options.batch_size": batch_size, "settings.seed": seed, "settings.precision": precision, "data": data,
        "text.text": text_column or None, "text.label": label_column, "text.max_length": max_length,
        "text.truncate": truncate,
    }  # fmt: skip
    _check_duration(epochs, steps, "finetune")
    wanted = read_run(None, overrides)
    recipe = wanted.build_recipe()
    assert isinstance(recipe, FineTuning)
    try:
        report = run(
            model, task, folder, recipe=recipe, settings=wanted.settings, data=wanted.data, text=wanted.text, resume=resume
        )
    except KeyboardInterrupt:
        err.print("Stopped. The same command with --resume continues from the last checkpoint.", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(report)
        return
    found = report["delivered"]
    out.print(
        f"{found['metric']} on {found['samples']:,} {task} test samples: [bold]{found['test']:.2f}[/]. "
        f"Delivered to [bold]{_escape(str(folder))}[/]",
        highlight=False,
    )


@app.command()
def distill(
    model: Annotated[str, typer.Option(help="The teacher, an encoder that was not fine-tuned: folder or hub name.")],
    corpus: Annotated[str, typer.Option(help="Plain text: a file, a folder with train files, or a hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the smaller encoder.")],
    layers: Annotated[int | None, typer.Option(help="How many of the teacher's layers the student keeps.")] = None,
    student: Annotated[
        str | None, typer.Option(help="The student instead: folder or hub name, or a folder with config.json alone.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the corpus; default is 3.")] = None,
    steps: Annotated[int | None, typer.Option(help="The same in optimizer steps.")] = None,
    length: Annotated[int, typer.Option(help="Of the sequences that the corpus is cut into, in tokens.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Characters of the corpus that are read; default is all.")] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column with the text.")] = "text",
    cache: Annotated[Path | None, typer.Option(help="Folder for the tokenized corpus; default is OUT.tokens.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    precision: Annotated[str, typer.Option(help="float32 or bf16.")] = "float32",
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints; default is an epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    assignments: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option; repeatable.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Distil an encoder into a smaller one on plain text, for any task: an ordinary Hugging Face folder."""
    from bitstill.general import distill_encoder as run
    from bitstill.recipes.general_distillation import GeneralDistillation
    from bitstill.runfile import read_run
    from bitstill.tasks.corpus import Corpus

    _check_duration(epochs, steps, "distill")
    overrides = {
        "recipe": "general-distillation", "task": "corpus", "general.layers": layers, "general.epochs": epochs,
        "general.steps": steps, "settings.seed": seed, "settings.precision": precision,
        "settings.checkpoint_every": checkpoint_every,
    }  # fmt: skip
    named = [key if key.startswith("settings.") else f"general.{key}" for key in assignments or []]
    wanted = read_run(None, overrides, named)
    try:
        report = run(
            model, Corpus(corpus, text_column, length, limit), folder, student=student,
            recipe=wanted.general or GeneralDistillation(), settings=wanted.settings, cache=cache, resume=resume,
        )  # fmt: skip
    except KeyboardInterrupt:
        err.print("Stopped. The same command with --resume continues from the last checkpoint.", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(report)
        return
    sizes, found = report["parameters"], report["delivered"]
    out.print(
        f"{sizes['student']:,} of the teacher's {sizes['teacher']:,} parameters; {found['metric']} on held-out text "
        f"[bold]{found['test']:.2f}[/] of 100. Delivered to [bold]{_escape(str(folder))}[/]",
        highlight=False,
    )


@app.command()
def augment(
    task: Annotated[str, typer.Option(help="A GLUE task, or text for files of your own.")],
    model: Annotated[str, typer.Option(help="A masked language model, or any with word embeddings: folder or hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="Where variants are kept; one that was begun is gone on with.")],
    method: Annotated[
        str, typer.Option(help="masked-lm: what the model predicts; neighbours: words with similar embeddings.")
    ] = "masked-lm",
    vectors: Annotated[Path | None, typer.Option(help="Word embeddings in GloVe's format, for neighbours.")] = None,
    variants: Annotated[int | None, typer.Option(help="Of each text; default is the published number.")] = None,
    probability: Annotated[float, typer.Option(help="With which a word is exchanged.")] = 0.4,
    candidates: Annotated[int, typer.Option(help="For each word.")] = 15,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    as_json: JsonFlag = False,
) -> None:
    """Make variants of a task's training texts by exchanging words, for `compress --augmented`."""
    from bitstill.augmenting import augment as run
    from bitstill.tasks.augmentation import Augmentation
    from bitstill.tasks.text import TextOptions

    chosen = {"text": tuple(text_column or ()), "label": label_column}
    given = {key: value for key, value in chosen.items() if value}
    options = Augmentation(variants=variants, probability=probability, candidates=candidates, seed=seed)
    text = TextOptions(**given) if given else None  # type: ignore[arg-type]
    try:
        found = run(task, model, folder, method=method, vectors=vectors, options=options, data=data, text=text)
    except KeyboardInterrupt:
        err.print("Stopped. The same command goes on where it was.", highlight=False)
        raise typer.Exit(130) from None
    if as_json:
        _print_json(found)
        return
    out.print(
        f"[bold]{found['variants']:,}[/] variants of {found['texts']:,} training texts in [bold]{_escape(str(folder))}[/]:",
        highlight=False,
    )
    for original, variant in found["examples"]:
        out.print(f"  {_escape(original)}\n  [green]{_escape(variant)}[/]", highlight=False)


@app.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(help="An artifact.")],
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    as_json: JsonFlag = False,
) -> None:
    """Measure an artifact on its task."""
    from bitstill.evaluate import evaluate_artifact

    found = evaluate_artifact(folder, None if data is None else Path(data), split)
    if as_json:
        _print_json(found)
        return
    out.print(
        f"{found['metric']} on {found['samples']:,} {found['task']} {split} samples: [bold]{found['value']:.2f}[/]",
        highlight=False,
    )


@app.command()
def inspect(folder: Annotated[Path, typer.Argument(help="An artifact.")], as_json: JsonFlag = False) -> None:
    """Show every layer of an artifact: what was done to it, its bits and its bytes."""
    from bitstill.evaluate import inspect_artifact
    from bitstill.report.tables import size_table

    found = inspect_artifact(folder)
    if as_json:
        _print_json(found)
        return
    out.print(size_table(found))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show the options of one recipe.")] = None, as_json: JsonFlag = False
) -> None:
    """List the recipes, or the options of one."""
    from bitstill.recipes.catalogue import describe, describe_all

    if as_json:
        _print_json(describe_all() if name is None else describe(name))
        return
    from bitstill.report.tables import options_table, recipes_table

    out.print(recipes_table(describe_all()) if name is None else options_table(describe(name)))


def _with_general(wanted: RunFile, recipe: Any, resume: bool) -> dict[str, str]:
    """The run's models; where it names a corpus, the student is what general distillation on it has made, or makes now."""
    models = wanted.models(recipe)
    if wanted.corpus is None:
        return models
    from dataclasses import replace

    from bitstill.artifact.format import REPORT
    from bitstill.general import distill_encoder as run
    from bitstill.recipes.general_distillation import GeneralDistillation

    if not hasattr(recipe, "layers") or "student" in models:
        fix = "Use xtc or binarybert without --student; `bitstill distill` makes such a student for other uses."
        given = wanted.recipe if not hasattr(recipe, "layers") else "a student"
        raise SpecError("a recipe that makes a smaller transformer of its teacher", given=given, where="--corpus", fix=fix)
    source = wanted.model or wanted.teacher
    if source is None:
        raise SpecError("a model to distil", given="none", where="--corpus", fix="Add --model.")
    general = wanted.general or GeneralDistillation()
    if general.layers is None:
        general = replace(general, layers=recipe.layers, choice=recipe.choice)
    folder = Path(f"{wanted.out}-general")
    # One that is there is taken, if it is what this run would make.
    again = resume or (folder / REPORT).exists()
    run(source, wanted.corpus, folder, recipe=general, settings=wanted.settings, resume=again)
    return {**models, "student": str(folder)}


def _check_duration(epochs: float | None, steps: int | None, command: str) -> None:
    if epochs is not None and steps is not None:
        fix = "Drop one: both say how long to train."
        raise SpecError("one of --epochs and --steps", given="both", where=command, fix=fix)


def _summary(report: dict[str, Any], folder: str) -> str:
    size, delivered = report["size"], report["delivered"]
    teacher = f", teacher {report['teacher']['test']:.2f}" if "teacher" in report else ""
    return (
        f"{delivered['metric']} [bold]{delivered['test']:.2f}[/]{teacher}; {size['file_bytes']:,} bytes, "
        f"{size['ratio']:.1f} times smaller than float32. Delivered to [bold]{_escape(folder)}[/]"
    )


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


if __name__ == "__main__":
    main()
