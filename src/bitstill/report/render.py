"""Rendering of a `Page` as HTML: styled with jinja2, or plain if optional packages are missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from html import escape

from bitstill.report.content import Page, Table

_HEAD = """<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<style>
body { font-family: system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
td, th { padding: .1em 1em .1em 0; text-align: left; }
.n { text-align: right; }
</style>
"""


def styled(page: Page) -> str:
    """Render the page with its plots. Needs jinja2; check for it with `need_package` before calling this."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("bitstill.report")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html").render(page=page) + "\n"


def plain(page: Page, missing: str) -> str:
    """Render facts and tables, without style or plots.

    Args:
        page: the page, whose figures are omitted.
        missing: a sentence on the packages that the full page needs.
    """
    facts = Table((), tuple((fact.label, fact.value, fact.note) for fact in page.facts), texts=3)
    body = itertools.chain(
        (f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.subtitle)}</p>", f"<p><strong>{escape(missing)}</strong></p>"),
        _table(facts),
        *(_section(section.title, section.text, section.tables) for section in page.sections),
    )
    head = _HEAD + f"<title>{escape(page.title)}</title>"
    return "\n".join(('<!DOCTYPE html>\n<html lang="en">', f"<head>\n{head}\n</head>", "<body>", *body, "</body>\n</html>\n"))


def _section(title: str, text: str, tables: tuple[Table, ...]) -> Iterator[str]:
    if text or tables:
        yield f"<h2>{escape(title)}</h2>"
    if text:
        yield f"<p>{escape(text)}</p>"
    for table in tables:
        yield from _table(table)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"<h3>{escape(table.title)}</h3>"
    yield "<table>"
    if table.header:
        yield _row(table, table.header, "th")
    for row in table.rows:
        yield _row(table, row, "td")
    yield "</table>"
    if table.note:
        yield f"<p>{escape(table.note)}</p>"


def _row(table: Table, cells: tuple[str, ...], tag: str) -> str:
    classes = [' class="n"' if index >= table.texts else "" for index in range(len(cells))]
    return "<tr>" + "".join(f"<{tag}{c}>{escape(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True)) + "</tr>"
