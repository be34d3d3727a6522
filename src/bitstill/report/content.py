"""Content of a page, independent of its layout: facts, tables and figures in sections.

Both renderers, the styled one and the plain one without jinja2, read these.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One headline figure.

    Args:
        label: what it is.
        value: the figure with its unit.
        note: reference value for comparison.
    """

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of formatted text.

    Args:
        header: one cell per column; empty for a list of names and values.
        rows: cells of each row.
        texts: number of text columns, from the left; the others hold numbers and are right-aligned.
        title: title above it; may be empty.
        note: note below it; may be empty.
        strong: indices of emphasized rows, such as a total.
        folded: collapsed at first, because it is long.
        minor: indices of columns hidden on a phone.
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
        svg: inline SVG, safe to embed unescaped.
        title: title above it.
        note: note below it.
        legend: entries of the legend.
        narrow: the same plot for a phone; empty if `svg` suits both.
    """

    svg: str
    title: str
    note: str = ""
    legend: tuple[Key, ...] = ()
    narrow: str = ""


@dataclass(frozen=True)
class Section:
    """A heading with text, tables and figures. Figures share a row unless `wide`; tables do so if `compact`."""

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
