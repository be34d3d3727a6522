"""The commands that train, and the one that augments training texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bitstill.cli.options import (
    Assignments,
    CheckpointEvery,
    ClassWeights,
    DataOption,
    DropEmpty,
    ForceFlag,
    JsonFlag,
    LabelColumn,
    MaxLength,
    PrecisionOption,
    ResumeFlag,
    SeedOption,
    StepsOption,
    StrictFlag,
    TextColumn,
    Truncate,
    check_duration,
    class_weights_of,
)
from bitstill.cli.printing import escape, out, print_json, stoppable
from bitstill.errors import SpecError


def compress(
    run_file: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="Run file; flags override it.")] = None,
    recipe: Annotated[str | None, typer.Option(help="One of `bitstill recipes`, or package.module:Name.")] = None,
    task: Annotated[
        str | None,
        typer.Option(help="digits, cifar10, a GLUE task, text (own files) and so on, or package.module:Name."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Network to compress: name, artifact, Hugging Face folder or hub name, or package.module:Name."),
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="Network that guides the student; default is --model.")] = None,
    student: Annotated[str | None, typer.Option(help="Network that is compressed and delivered; default is --model.")] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Plain text for general distillation of the student beforehand: file, folder or hub name."),
    ] = None,
    augmented: Annotated[
        str | None, typer.Option(help="Folder with variants of the training texts, from `bitstill augment`.")
    ] = None,
    augment: Annotated[bool | None, typer.Option("--augment/--no-augment", help="Apply the task's augmentation.")] = None,
    bits: Annotated[str | None, typer.Option(help="Bits per weight: 1 to 8, ternary, or none (float).")] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs of the main stage.")] = None,
    steps: StepsOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    precision: Annotated[str | None, typer.Option(help="Training precision: float32 or bf16.")] = None,
    checkpoint_every: CheckpointEvery = None,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    drop_empty: DropEmpty = None,
    class_weights: ClassWeights = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for the artifact.")] = None,
    each_stage: Annotated[
        bool, typer.Option("--each-stage", help="Also deliver the student after every stage, to OUT-<stage>.")
    ] = False,
    force: ForceFlag = False,
    strict: StrictFlag = False,
    resume: ResumeFlag = False,
    assignments: Assignments = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages, and bits and bytes of every layer, without training.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Train a compressed model and deliver it as an artifact: a folder with packed weights."""
    from bitstill.report.stage_plan import planned_stages
    from bitstill.report.stage_text import stage_text
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
        "text.max_length": max_length, "text.truncate": truncate, "text.drop_empty": drop_empty, "augmented": augmented,
        "class_weights": class_weights_of(class_weights),
    }  # fmt: skip
    chosen = ([f"bits={'null' if bits == 'none' else bits}"] if bits is not None else []) + (assignments or [])
    check_duration(epochs, steps, "compress")
    spec = read_run(run_file, overrides, chosen)
    built = spec.build_recipe()
    if dry_run:
        more = (spec.settings, spec.storage, spec.data, spec.text, spec.augmented)
        planned = look(Job(built, spec.models(built), spec.task, *more, class_weights=spec.class_weights))
        if as_json:
            print_json(planned)
        else:
            typer.echo(stage_text(planned_stages(planned["stages"])))
            out.print(size_table(planned))
        return
    if spec.out is None:
        raise SpecError("a folder to deliver to", given="none", where="compress", fix="Add --out DIR.")
    with stoppable():
        result = run(
            built, spec.task, spec.models(built), out=spec.out, settings=spec.settings, storage=spec.storage,
            resume=resume, data=spec.data, text=spec.text, augmented=spec.augmented,
            class_weights=spec.class_weights, each_stage=each_stage, force=force, strict=strict,
        )  # fmt: skip
    if as_json:
        print_json(result.report)
        return
    out.print(size_table(result.report))
    _print_files(result.report)
    out.print(_summary(result.report, spec.out), highlight=False)


def finetune(
    model: Annotated[str, typer.Option(help="Pretrained encoder: folder or hub name.")],
    task: Annotated[str, typer.Option(help="GLUE task, text (files of your own), or package.module:Name.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the fine-tuned model.")],
    epochs: Annotated[float | None, typer.Option(help="Epochs; default 3.")] = None,
    steps: StepsOption = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate; default 5e-5.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples per step; default 32.")] = None,
    seed: SeedOption = 0,
    precision: PrecisionOption = "float32",
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    max_length: MaxLength = None,
    truncate: Truncate = None,
    drop_empty: DropEmpty = None,
    class_weights: ClassWeights = None,
    strict: StrictFlag = False,
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a pretrained encoder on a task, as a teacher; written as a Hugging Face model."""
    from bitstill.recipes import FineTuning
    from bitstill.run.finetune import finetune as run
    from bitstill.run.run_file import read_run

    overrides = {
        "recipe": "fine-tuning", "task": task, "options.epochs": epochs, "options.steps": steps, "options.lr": lr,
        "options.batch_size": batch_size, "settings.seed": seed, "settings.precision": precision, "data": data,
        "text.text": text_column or None, "text.label": label_column, "text.max_length": max_length,
        "text.truncate": truncate, "text.drop_empty": drop_empty, "class_weights": class_weights_of(class_weights),
    }  # fmt: skip
    check_duration(epochs, steps, "finetune")
    spec = read_run(None, overrides)
    recipe = spec.build_recipe()
    assert isinstance(recipe, FineTuning)
    with stoppable():
        report = run(
            model,
            task,
            folder,
            recipe=recipe,
            settings=spec.settings,
            data=spec.data,
            text=spec.text,
            class_weights=spec.class_weights,
            strict=strict,
            resume=resume,
        )
    if as_json:
        print_json(report)
        return
    delivered = report["delivered"]
    _print_files(report)
    out.print(
        f"{delivered['metric']} on {delivered['samples']:,} {task} test samples: [bold]{delivered['test']:.2f}[/]. "
        f"Delivered to [bold]{escape(str(folder))}[/]",
        highlight=False,
    )


def distill(
    model: Annotated[str, typer.Option(help="Teacher, a pretrained encoder: folder or hub name.")],
    corpus: Annotated[str, typer.Option(help="Plain text: file, folder with train files, or hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="New folder for the smaller encoder.")],
    layers: Annotated[int | None, typer.Option(help="Number of the teacher's layers that the student starts from.")] = None,
    student: Annotated[
        str | None, typer.Option(help="Student instead of --layers: folder or hub name; config.json alone for random weights.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Epochs; default 3.")] = None,
    steps: StepsOption = None,
    length: Annotated[int, typer.Option(help="Sequence length in tokens.")] = 128,
    limit: Annotated[int | None, typer.Option(help="Characters of the corpus to read; default is all.")] = None,
    text_column: Annotated[str, typer.Option("--text-column", help="Column with the text.")] = "text",
    cache: Annotated[Path | None, typer.Option(help="Folder for the tokenized corpus; default is OUT.tokens.")] = None,
    seed: SeedOption = 0,
    precision: PrecisionOption = "float32",
    checkpoint_every: CheckpointEvery = None,
    resume: ResumeFlag = False,
    assignments: Assignments = None,
    as_json: JsonFlag = False,
) -> None:
    """Distil a pretrained encoder into a smaller one on plain text; written as a Hugging Face model."""
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
    spec = read_run(None, overrides, assignments or [])
    recipe = spec.build_recipe()
    assert isinstance(recipe, GeneralDistillation) and isinstance(recipe.corpus, Corpus)
    with stoppable():
        report = run(
            model, recipe.corpus, folder, student=student, recipe=recipe, settings=spec.settings, cache=cache, resume=resume,
        )  # fmt: skip
    if as_json:
        print_json(report)
        return
    sizes, delivered = report["parameters"], report["delivered"]
    out.print(
        f"{sizes['student']:,} of the teacher's {sizes['teacher']:,} parameters; {delivered['metric']} on held-out text "
        f"[bold]{delivered['test']:.2f}[/] of 100. Delivered to [bold]{escape(str(folder))}[/]",
        highlight=False,
    )


def augment(
    task: Annotated[str, typer.Option(help="GLUE task, text (files of your own), or package.module:Name.")],
    model: Annotated[str, typer.Option(help="Masked language model, or any with word embeddings: folder or hub name.")],
    folder: Annotated[Path, typer.Option("--out", help="Folder for the variants; an unfinished one is resumed.")],
    method: Annotated[
        str, typer.Option(help="masked-lm (words the model predicts) or neighbours (words with similar embeddings).")
    ] = "masked-lm",
    vectors: Annotated[Path | None, typer.Option(help="Word embeddings in GloVe format, for neighbours.")] = None,
    variants: Annotated[int | None, typer.Option(help="Variants per text; default is the published number.")] = None,
    probability: Annotated[float, typer.Option(help="Probability of replacing a word.")] = 0.4,
    candidates: Annotated[int, typer.Option(help="Candidates per word.")] = 15,
    seed: SeedOption = 0,
    data: DataOption = None,
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    drop_empty: DropEmpty = None,
    as_json: JsonFlag = False,
) -> None:
    """Augment a task's training texts by replacing words, for `compress --augmented`."""
    from bitstill.data.augmentation import Augmentation
    from bitstill.data.text import TextOptions
    from bitstill.run.augment import augment as run

    named = {"text": tuple(text_column or ()), "label": label_column, "drop_empty": drop_empty}
    columns = {key: value for key, value in named.items() if value}
    options = Augmentation(variants=variants, probability=probability, candidates=candidates, seed=seed)
    text = TextOptions(**columns) if columns else None  # type: ignore[arg-type]
    with stoppable("The same command resumes."):
        summary = run(task, model, folder, method=method, vectors=vectors, options=options, data=data, text=text)
    if as_json:
        print_json(summary)
        return
    out.print(
        f"[bold]{summary['variants']:,}[/] variants of {summary['texts']:,} training texts in [bold]{escape(str(folder))}[/]:",
        highlight=False,
    )
    for original, variant in summary["examples"]:
        out.print(f"  {escape(original)}\n  [green]{escape(variant)}[/]", highlight=False)


def _print_files(report: dict[str, Any]) -> None:
    """The files that the data were read from, with their rows."""
    parts = []
    for part, origin in sorted(report.get("data", {}).items(), key=lambda item: (item[0] == "test", item[0])):
        names = origin["files"][0] if len(origin["files"]) == 1 else f"{len(origin['files'])} {part} files"
        dropped = f", {origin['dropped']:,} empty ones dropped" if origin.get("dropped") else ""
        parts.append(f"{names} ({origin['rows']:,} rows{dropped})")
    if parts:
        out.print(escape(f"Read {', '.join(parts)}."), highlight=False)


def _summary(report: dict[str, Any], folder: str) -> str:
    size, delivered = report["size"], report["delivered"]
    teacher = f", teacher {report['teacher']['test']:.2f}" if "teacher" in report else ""
    return (
        f"{delivered['metric']} [bold]{delivered['test']:.2f}[/]{teacher}; {size['file_bytes']:,} bytes, "
        f"{size['ratio']:.1f} times smaller than float32. Delivered to [bold]{escape(folder)}[/]"
    )
