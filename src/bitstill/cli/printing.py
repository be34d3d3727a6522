"""What commands print, and where."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape as escape

out = Console()
err = Console(stderr=True)
RESUME = "The same command with --resume continues from the last checkpoint."


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=1, sort_keys=True) + "\n")


@contextlib.contextmanager
def stoppable(advice: str = RESUME) -> Iterator[None]:
    """Long work: Ctrl-C ends the command with status 130, and says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"Stopped. {advice}", highlight=False)
        raise typer.Exit(130) from None
