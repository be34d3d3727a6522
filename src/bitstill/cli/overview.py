"""The demonstration, and the list of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitstill.cli.options import JsonFlag, SeedOption
from bitstill.cli.printing import err, out, print_json


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
    name: Annotated[str | None, typer.Argument(help="Recipe whose options are listed, or package.module:Name.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the recipes, or the options of one."""
    from bitstill.recipes.by_name import describe, describe_all

    if as_json:
        print_json(describe_all() if name is None else describe(name))
        return
    from bitstill.report.tables import options_table, recipes_table

    out.print(recipes_table(describe_all()) if name is None else options_table(describe(name)))
