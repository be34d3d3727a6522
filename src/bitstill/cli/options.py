"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

from bitstill.errors import SpecError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
DataOption = Annotated[str | None, typer.Option(help="Folder with local files for the task.")]
TextColumn = Annotated[
    list[str] | None,
    typer.Option("--text-column", help="Column with the text; twice for pairs. Only for --task text."),
]
LabelColumn = Annotated[str | None, typer.Option("--label-column", help="Column with the label. Only for --task text.")]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Longest text in tokens. Only for --task text.")]
Truncate = Annotated[
    bool | None, typer.Option("--truncate/--no-truncate", help="Truncate longer texts instead of refusing them.")
]
DropEmpty = Annotated[
    bool | None, typer.Option("--drop-empty/--no-drop-empty", help="Leave out rows without a text or a label.")
]
StepsOption = Annotated[int | None, typer.Option(help="Duration in optimizer steps instead of epochs.")]
SeedOption = Annotated[int, typer.Option(help="Random seed.")]
PrecisionOption = Annotated[str, typer.Option(help="Training precision: float32 or bf16.")]
CheckpointEvery = Annotated[int | None, typer.Option(help="Steps between checkpoints; default is one epoch.")]
ResumeFlag = Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any option of the recipe (kd_weight=0.9, granularity.size=64, layers.0=2), settings.KEY, storage.KEY, "
        "text.KEY, or another key of a run file (class_weights=balanced); repeatable.",
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option("--class-weights", help="Class weights of the loss on labels: balanced, or comma-separated numbers."),
]
StrictFlag = Annotated[bool, typer.Option("--strict", help="Refuse a result that is worth little, rather than warn of it.")]
ForceFlag = Annotated[bool, typer.Option("--force", help="Replace an existing artifact at --out.")]


def check_duration(epochs: float | None, steps: int | None, command: str) -> None:
    """Check that at most one duration is set.

    Raises:
        SpecError: both are set.
    """
    if epochs is not None and steps is not None:
        fix = "Drop one: both set the duration."
        raise SpecError("one of --epochs and --steps", given="both", where=command, fix=fix)


def class_weights_of(text: str | None) -> str | list[float] | None:
    """Parse `--class-weights`.

    Raises:
        SpecError: neither "balanced" nor numbers.
    """
    if text is None or text == "balanced":
        return text
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        fix = "For example: --class-weights 1,2.5,1."
        raise SpecError("balanced, or one number per class", given=repr(text), where="--class-weights", fix=fix) from error
