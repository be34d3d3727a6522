"""Rules of input quantization as structures of the C library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitstill.artifact.reader import Archive
from bitstill.runtime import structs as structures
from bitstill.runtime.structs import Range


def rule_of(archive: Archive, transform: str, rule: Mapping[str, Any]) -> structures.Rule:
    """Rule of a value's quantization, except for the rows that share a range.

    Args:
        archive: the artifact.
        transform: name under which learned bounds and steps are stored.
        rule: the fields of `QuantizeInput`.

    Raises:
        ArtifactError: a learned bound or step is missing.
    """
    bits, symmetric, kind = (rule[name] for name in ("bits", "symmetric", "range"))
    bounds = {name: float(number) for name, number in archive.learned(transform, rule).items()}
    return structures.Rule(bits=bits, symmetric=symmetric, range=Range[kind.upper()], **bounds)
