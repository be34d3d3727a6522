"""What a page says, before anyone decides how it looks: facts, tables, figures, in sections.

Both renderers, the styled one and the plain one for machines without jinja2, read these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One headline figure.

    Args:
        label: what it is.
        value: the figure with its unit.
        note: what it is to be compared with.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of finished text.

    Args:
        header: one cell per column; none for a list of names and values.
        rows: as many cells each.
        texts: how many columns, from the left, hold text; the others hold numbers and align right.
        title: above it; may be empty.
        note: below it; may be empty.
        strong: indices of rows that stand out, such as a total.
        folded: shown on demand, because it is long.
        minor: indices of columns that a phone leaves out.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: int = 1
    title: str = ""
    note: str = ""
    strong: frozenset[int] = frozenset()
    folded: bool = False
    minor: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Key:
    """One entry of a legend: a name, a colour (its CSS expression), and the SVG path of its marker or "" for a line."""

    name: str
    color: str
    marker: str = ""


@dataclass(frozen=True)
class Figure:
    """One plot.

    Args:
        svg: inline SVG, safe to put in a page as it is.
        title: above it.
        note: below it.
        legend: beside the title.
        narrow: the same plot drawn for a phone; empty if `svg` suits both.
    """

    svg: str
    title: str
    note: str = ""
    legend: tuple[Key, ...] = ()
    narrow: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with what belongs to it. Figures share the width unless `wide`, tables do if `compact`."""

    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    wide: bool = False
    compact: bool = False


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    subtitle: str
    facts: tuple[Fact, ...]
    sections: tuple[Section, ...]
