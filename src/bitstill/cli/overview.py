"""The demonstration, and the list of recipes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitstill.cli.options import JsonFlag, SeedOption
from bitstill.cli.printing import err, out, print_json
from bitstill.errors import BitstillError

if TYPE_CHECKING:
    from bitstill.report.stage_plan import StagePlan


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the artifacts, report.json and report.html.")] = Path(
        "demo"
    ),
    recipe: Annotated[
        str, typer.Option(help="quantized-distillation (32 to 1 bits under a teacher) or pqk (pruned and quantized).")
    ] = "quantized-distillation",
    seed: SeedOption = 0,
    epochs: Annotated[float | None, typer.Option(help="Epochs per trained network; default 60 (pqk: 40).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Demonstrate a recipe on handwritten digits: trained low-bit networks beside float and post-training ones."""
    from bitstill.report.tables import rich_table
    from bitstill.run.demo import demo as run

    result = run(folder, recipe=recipe, seed=seed, epochs=epochs, say=lambda text: err.print(text, highlight=False))
    if as_json:
        print_json(result.report)
        return
    out.print(rich_table(result.rows, "accuracy"))
    out.print(f"Open [bold]{folder / 'report.html'}[/]; artifacts are in the folders beside it.", highlight=False)


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Recipe whose stages and options are shown, or package.module:Name.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the recipes, or show the stages and the options of one."""
    from bitstill.recipes.by_name import describe, describe_all
    from bitstill.report.tables import options_table, recipes_table

    if name is None:
        print_json(describe_all()) if as_json else out.print(recipes_table(describe_all()))
        return
    plans = _example_plans(name)
    if as_json:
        print_json({**describe(name), "stages": [asdict(plan) for plan in plans]})
        return
    from bitstill.report.stage_text import stage_text

    if plans:
        typer.echo(stage_text(plans))
    out.print(options_table(describe(name)))


def _example_plans(name: str) -> tuple[StagePlan, ...]:
    """The stages of a recipe at its defaults in words; none where they cannot be planned without the user's models."""
    from bitstill.recipes.by_name import recipe_class
    from bitstill.recipes.example_run import example_stages
    from bitstill.report.stage_plan import stage_plans

    recipe = recipe_class(name)()
    try:
        return stage_plans(example_stages(recipe))
    except BitstillError:
        return ()
