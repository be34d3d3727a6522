"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from bitstill.errors import SpecError

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
ClassWeights = Annotated[
    str | None,
    typer.Option("--class-weights", help="Of the loss on labels: balanced, or a number per class, separated by commas."),
]
StepsOption = Annotated[int | None, typer.Option(help="The same in optimizer steps.")]
SeedOption = Annotated[int, typer.Option(help="Of everything random.")]
PrecisionOption = Annotated[str, typer.Option(help="float32 or bf16.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints; default is an epoch.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")]
Assignments = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any option; repeatable.")]


def check_duration(epochs: float | None, steps: int | None, command: str) -> None:
    """Refuse two answers to how long to train.

    Raises:
        SpecError: both are given.
    """
    if epochs is not None and steps is not None:
        fix = "Drop one: both say how long to train."
        raise SpecError("one of --epochs and --steps", given="both", where=command, fix=fix)


def class_weights_of(text: str | None) -> str | list[float] | None:
    """The weights that `--class-weights` names.

    Raises:
        SpecError: neither a word that is known nor numbers.
    """
    if text is None or text == "balanced":
        return text
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        fix = "For example: --class-weights 1,2.5,1."
        raise SpecError("balanced, or one number per class", given=repr(text), where="--class-weights", fix=fix) from error
