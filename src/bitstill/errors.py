"""The exceptions of bitstill.

    BitstillError
    ├── SpecError            an invalid setting, key or combination (also ValueError)
    ├── MatchError           a pattern that names no module, or two rules for one module (also ValueError)
    ├── DataError            data that are missing, empty, NaN or do not fit the model (also ValueError)
    ├── TrainingError        a loss without gradient, a stage that trains nothing, divergence (also RuntimeError)
    ├── CheckpointError      a checkpoint of another run, or a damaged one (also ValueError)
    ├── ArtifactError        a delivered folder that is missing, damaged or too new (also ValueError)
    └── MissingPackageError  an optional package that is not installed (also ImportError)

Every message has four parts: what was wanted, what was given, where, and how to fix it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

LONGEST_VALUE = 200
"""Largest number of characters of a given value in a message."""


class BitstillError(Exception):
    """Base class of all errors raised by bitstill; catch it to show one clear message.

    Args:
        wanted: the expected input, as a noun phrase ("bits from 1 to 8").
        given: the actual input.
        where: the setting, module path, file or tensor concerned.
        fix: one sentence on how to fix it.
    """

    def __init__(self, wanted: str, *, given: str, where: str, fix: str) -> None:
        self.wanted, self.given, self.where, self.fix = wanted, given, where, fix
        super().__init__(f"{where}: wanted {wanted}, got {given}. {fix}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.wanted, self.given, self.where, self.fix)


def _rebuild(kind: type[BitstillError], wanted: str, given: str, where: str, fix: str) -> BitstillError:
    return kind(wanted, given=given, where=where, fix=fix)


class BitstillWarning(UserWarning):
    """A result that is worth little, with its likely cause; an error in a strict run."""


class SpecError(BitstillError, ValueError):
    """An invalid setting, key or combination of settings."""


class MatchError(BitstillError, ValueError):
    """A pattern that names no module, or two rules that name the same one."""


class DataError(BitstillError, ValueError):
    """Data that are missing, empty, not finite, or that do not fit the model."""


class TrainingError(BitstillError, RuntimeError):
    """Training that cannot work: a loss without gradient, nothing to train, divergence."""


class CheckpointError(BitstillError, ValueError):
    """A checkpoint of another run, or a damaged one."""


class ArtifactError(BitstillError, ValueError):
    """A delivered folder that is missing, damaged, inconsistent or written by a newer version."""


class MissingPackageError(BitstillError, ImportError):
    """An optional package that this feature needs and that is not installed."""


def one_line(error: BaseException) -> str:
    """Type and beginning of the message of an error of another library, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def brief(value: object) -> str:
    """Abbreviated repr of a user's value."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists nested as deep
        return f"a very long {type(value).__name__}"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."


def suggest(name: str, valid: Iterable[str]) -> str:
    """Sentence with the valid name closest to `name` and a list of valid names, up to a dozen."""
    options = sorted(valid)
    near = difflib.get_close_matches(name, [option for option in options if option != name], n=1, cutoff=0.5)
    more = f" and {len(options) - 12} more" if len(options) > 12 else ""
    listed = f"Valid: {', '.join(options[:12]) if options else 'none'}{more}."
    return f"Did you mean {near[0]!r}? {listed}" if near else listed


def without_torch(error: ImportError, where: str) -> MissingPackageError | None:
    """Error for an import that failed because torch is not installed; None if it failed for another reason."""
    if error.name not in ("torch", "accelerate"):
        return None
    fix = "Install it with: pip install 'bitstill[train]'. bitstill.runtime and `bitstill inspect` work without."
    return MissingPackageError("torch", given=f"no package {error.name!r}", where=where, fix=fix)


def need_package(name: str, *, extra: str, purpose: str) -> ModuleType:
    """Import the optional package `name`, or say which extra of bitstill installs it.

    Raises:
        MissingPackageError: if it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(
            f"the package {name!r} for {purpose}",
            given=str(error),
            where="import",
            fix=f"Install it with: pip install 'bitstill[{extra}]'",
        ) from None
