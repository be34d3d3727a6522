"""Limits on the size of a network in `config.json`, checked against the file of weights before anything is built."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from bitstill.artifact.format import CONFIG, SETTINGS
from bitstill.artifact.reader import Archive
from bitstill.errors import ArtifactError, brief

FEWEST = 64
"""Parts that any network may have."""
MOST_NUMBERS = 64
"""Numbers that a network holds when it is built, for each weight in the file: those that were pruned away, and tables."""
_STRUCTURE = re.compile(r"(^|_)(layers?|depths?|blocks?|groups?|group_num|experts?|stages?)$")
_LABELS = "num_labels"
_FIX = "The number is wrong: copy or deliver the folder again."


def check_counts(config: Mapping[str, Any], tensors: int) -> None:
    """Refuse more layers, blocks, groups or labels than a file can have, before a network is built.

    Args:
        config: of `config.json`.
        tensors: how many there are in the file, or may be at most.

    Raises:
        ArtifactError: a number is too large, or below zero.
    """
    most = max(FEWEST, tensors)
    for key, count in _counts(config):
        if not 0 <= count <= most:
            wanted = f"at most {most} where there are {tensors} tensors"
            raise ArtifactError(wanted, given=brief(count), where=f"{CONFIG}: {key}", fix=_FIX)


def check_labels(config: Mapping[str, Any], weights: int) -> None:
    """Refuse more labels than there are weights: each has a row of them.

    Raises:
        ArtifactError: there are.
    """
    labels = config.get(_LABELS)
    if isinstance(labels, int) and not 0 <= labels <= weights:
        raise ArtifactError(f"at most {weights} labels", given=brief(labels), where=f"{CONFIG}: {_LABELS}", fix=_FIX)


def weights_of(archive: Archive) -> int:
    """Numbers that the file stands for: weights of packed layers, each as often as it is used, and leftovers."""
    return sum(math.prod(layer.shape) for layer in archive.layers.values()) + sum(t.size for t in archive.leftovers.values())


def check_numbers(numbers: int, archive: Archive) -> None:
    """Refuse a network that holds many more numbers than the file has weights.

    Args:
        numbers: parameters and buffers of the network, before it is built in memory.
        archive: the file.

    Raises:
        ArtifactError: it does.
    """
    most = MOST_NUMBERS * weights_of(archive) + 2**20
    if numbers > most:
        raise ArtifactError(f"a network of at most {most} numbers", given=str(numbers), where=CONFIG, fix=_FIX)


def _counts(config: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, int]]:
    """Whole numbers under names of things that are built, with their places; those of a list are added."""
    for key, value in config.items():
        if key == SETTINGS:
            continue
        if isinstance(value, Mapping):
            yield from _counts(value, f"{place}{key}.")
        elif _STRUCTURE.search(str(key)):
            if type(value) is int:
                yield f"{place}{key}", value
            elif key == "depths" and isinstance(value, list) and all(type(each) is int for each in value):
                yield f"{place}{key}", sum(value)
