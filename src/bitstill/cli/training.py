"""The commands that train, and the one that makes more to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitstill.cli.options import (
    Assignments,
    CheckpointEvery,
    ClassWeights,
    DataOption,
    JsonFlag,
    LabelColumn,
    MaxLength,
    PrecisionOption,
    ResumeFlag,
    SeedOption,
    StepsOption,
    TextColumn,
    Truncate,
    check_duration,
    class_weights_of,
)
from bitstill.cli.printing import escape, out, print_json, stoppable
from bitstill.errors import SpecError


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
    steps: StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32 or bf16.")] = None,
    checkpoint_every: CheckpointEvery = None,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    class_weights: ClassWeights = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to deliver the artifact.")] = None,
    each_stage: Annotated[
        bool, typer.Option("--each-stage", help="Deliver what every stage leaves, too, to OUT-<stage>.")
    ] = False,
    resume: ResumeFlag = False,
    assignments: Assignments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what each layer would get and the bytes; train nothing.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a compressed model and deliver it as a folder."""
    from bitstill.report.tables import size_table
    from bitstill.run.compress import compress as run
    from bitstill.run.dry_run import dry_run as look
    from bitstill.run.job import Job
    from bitstill.run.run_file import read_run

    overrides: dict[str, Any] = {
        "recipe": recipe, "task": task, "model": model, "teacher": teacher, "student": student, "data": data,
        "out": None if folder is None else str(folder), "options.general.corpus.source": corpus, "options.augment": augment,
        "options.epochs": epochs, "options.steps": steps, "settings.seed": seed, "settings.precision": precision,
        "settings.checkpoint_every": checkpoint_every, "text.text": text_column or None, "text.label": label_column,
        "text.max_length": max_length, "text.truncate": truncate, "augmented": augmented,
        "class_weights": class_weights_of(class_weights),
    }  # fmt: skip
    chosen = ([f"bits={'null' if bits == 'none' else bits}"] if bits is not None else []) + (assignments or [])
    check_duration(epochs, steps, "compress")
    wanted = read_run(run_file, overrides, chosen)
    built = wanted.build_recipe()
    if dry_run:
        more = (wanted.settings, wanted.storage, wanted.data, wanted.text, wanted.augmented)
        planned = look(Job(built, wanted.models(built), wanted.task, *more, class_weights=wanted.class_weights))
        if as_json:
            print_json(planned)
        else:
            out.print(size_table(planned))
        return
    if wanted.out is None:
        raise SpecError("a folder to deliver to", given="none", where="compress", fix="Add --out DIR.")
    with stoppable():
        result = run(
            built, wanted.task, wanted.models(built), out=wanted.out, settings=wanted.settings, storage=wanted.storage,
            resume=resume, data=wanted.data, text=wanted.text, augmented=wanted.augmented,
            class_weights=wanted.class_weights, each_stage=each_stage,
        )  # fmt: skip
    if as_json:
        print_json(result.report)
        return
    out.print(size_table(result.report))
    out.print(_summary(result.report, wanted.out), highlight=False)


def finetune(
    model: Annotated[str, typer.Option(help="A pretrained encoder: folder or hub name.")],
    task: Annotated[str, typer.Option(help="A GLUE task, or text for files of your own.")],
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the fine-tuned model.")],
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; default is 3.")] = None,
    steps: StepsOption = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default is 5e-5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step; default is 32.")] = None,
    seed: SeedOption = 0,
    precision: PrecisionOption = "float32",
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    class_weights: ClassWeights = None,
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a pretrained encoder on labels, to be a teacher: an ordinary Hugging Face folder."""
    from bitstill.recipes import FineTuning
    from bitstill.run.finetune import finetune as run
    from bitstill.run.run_file import read_run

    overrides = {
        "recipe": "fine-tuning", "task": task, "options.epochs": epochs, "options.steps": steps, "options.lr": lr,
        "options.batch_size": batch_size, "settings.seed": seed, "settings.precision": precision, "data": data,
        "text.text": text_column or None, "text.label": label_column, "text.max_length": max_length,
        "text.truncate": truncate, "class_weights": class_weights_of(class_weights),
    }  # fmt: skip
    check_duration(epochs, steps, "finetune")
    wanted = read_run(None, overrides)
    recipe = wanted.build_recipe()
    assert isinstance(recipe, FineTuning)
    with stoppable():
        report = run(
            model,
            task,
            folder,
            recipe=recipe,
            settings=wanted.settings,
            data=wanted.data,
            text=wanted.text,
            class_weights=wanted.class_weights,
            resume=resume,
        )
    if as_json:
        print_json(report)
        return
    found = report["delivered"]
    out.print(
        f"{found['metric']} on {found['samples']:,} {task} test samples: [bold]{found['test']:.2f}[/]. "
        f"Delivered to [bold]{escape(str(folder))}[/]",
        highlight=False,
    )


def distill(
    model: Annotated[str, typer.Option(help="The teacher, an encoder that was not fine-tuned: folder or hub name.")],
    corpus: Annotated[str, typer.Option(help="Plain text: a file, a folder with train files, or a hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="A new folder for the smaller encoder.")],
    layers: Annotated[int | None, typer.Option(help="How many of the teacher's layers the student keeps.")] = None,
    student: Annotated[
        str | None, typer.Option(help="The student instead: folder or hub name, or a folder with config.json alone.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the corpus; default is 3.")] = None,
    steps: StepsOption = None,
    length: Annotated[int, typer.Option(help="Of the sequences that the corpus is cut into, in tokens.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Characters of the corpus that are read; default is all.")] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column with the text.")] = "text",
    cache: Annotated[Path | None, typer.Option(help="Folder for the tokenized corpus; default is OUT.tokens.")] = None,
    seed: SeedOption = 0,
    precision: PrecisionOption = "float32",
    checkpoint_every: CheckpointEvery = None,
    resume: ResumeFlag = False,
    assignments: Assignments = None,
    as_json: JsonFlag = False,
) -> None:
    """Distil an encoder into a smaller one on plain text, for any task: an ordinary Hugging Face folder."""
    from bitstill.data.corpus import Corpus
    from bitstill.recipes.general_distillation import GeneralDistillation
    from bitstill.run.distill import distill as run
    from bitstill.run.run_file import read_run

    check_duration(epochs, steps, "distill")
    overrides = {
        "recipe": "general-distillation", "task": "corpus", "options.layers": layers, "options.epochs": epochs,
        "options.steps": steps, "options.corpus.source": corpus, "options.corpus.column": text_column,
        "options.corpus.length": length, "options.corpus.limit": limit, "settings.seed": seed, "settings.precision": precision,
        "settings.checkpoint_every": checkpoint_every,
    }  # fmt: skip
    wanted = read_run(None, overrides, assignments or [])
    recipe = wanted.build_recipe()
    assert isinstance(recipe, GeneralDistillation) and isinstance(recipe.corpus, Corpus)
    with stoppable():
        report = run(
            model, recipe.corpus, folder, student=student, recipe=recipe, settings=wanted.settings, cache=cache, resume=resume,
        )  # fmt: skip
    if as_json:
        print_json(report)
        return
    sizes, found = report["parameters"], report["delivered"]
    out.print(
        f"{sizes['student']:,} of the teacher's {sizes['teacher']:,} parameters; {found['metric']} on held-out text "
        f"[bold]{found['test']:.2f}[/] of 100. Delivered to [bold]{escape(str(folder))}[/]",
        highlight=False,
    )


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
    seed: SeedOption = 0,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    as_json: JsonFlag = False,
) -> None:
    """Make variants of a task's training texts by exchanging words, for `compress --augmented`."""
    from bitstill.data.augmentation import Augmentation
    from bitstill.data.text import TextOptions
    from bitstill.run.augment import augment as run

    chosen = {"text": tuple(text_column or ()), "label": label_column}
    given = {key: value for key, value in chosen.items() if value}
    options = Augmentation(variants=variants, probability=probability, candidates=candidates, seed=seed)
    text = TextOptions(**given) if given else None  # type: ignore[arg-type]
    with stoppable("The same command goes on where it was."):
        found = run(task, model, folder, method=method, vectors=vectors, options=options, data=data, text=text)
    if as_json:
        print_json(found)
        return
    out.print(
        f"[bold]{found['variants']:,}[/] variants of {found['texts']:,} training texts in [bold]{escape(str(folder))}[/]:",
        highlight=False,
    )
    for original, variant in found["examples"]:
        out.print(f"  {escape(original)}\n  [green]{escape(variant)}[/]", highlight=False)


def _summary(report: dict[str, Any], folder: str) -> str:
    size, delivered = report["size"], report["delivered"]
    teacher = f", teacher {report['teacher']['test']:.2f}" if "teacher" in report else ""
    return (
        f"{delivered['metric']} [bold]{delivered['test']:.2f}[/]{teacher}; {size['file_bytes']:,} bytes, "
        f"{size['ratio']:.1f} times smaller than float32. Delivered to [bold]{escape(folder)}[/]"
    )
