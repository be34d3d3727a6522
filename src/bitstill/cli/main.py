"""The command line: each command parses its options, calls the function of the same name in `bitstill`, and prints."""

from __future__ import annotations

import sys

import typer

from bitstill.cli.artifacts import bench, compare, evaluate, export, inspect, push
from bitstill.cli.overview import demo, recipes
from bitstill.cli.printing import err, escape, show_warnings
from bitstill.cli.training import augment, compress, distill, finetune
from bitstill.errors import BitstillError, without_torch

app = typer.Typer(
    name="bitstill",
    help="Train networks down to 1 to 8 bits under a teacher, and deliver files that really are that small.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (demo, compress, finetune, distill, augment, evaluate, inspect, export, bench, compare, push, recipes):
    app.command()(_command)


def main() -> None:
    """Run the command line; a `BitstillError` is printed as one message, with exit status 1."""
    show_warnings()
    try:
        _run()
    except BitstillError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)


def _run() -> None:
    try:
        app()
    except ImportError as error:
        raise without_torch(error, "bitstill " + " ".join(sys.argv[1:2])) or error from None


if __name__ == "__main__":
    main()
