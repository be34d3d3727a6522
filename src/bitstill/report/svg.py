"""Inline SVG from matplotlib figures: small, themed by CSS variables, without external references.

Text stays text, so that it uses the page's font and can be selected; the layout is computed with matplotlib's own, wider
font, so that text never overlaps.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE, CARD = "#1d2530", "#626d7a", "#e1e5ea", "#fefefe"
SERIES = ("#5f6f83", "#2b6cdb", "#d4531c", "#12906b", "#9d46a6", "#a27600")
_THEME = {INK: "ink", MUTED: "muted", RULE: "rule", CARD: "card", **{color: f"c{i}" for i, color in enumerate(SERIES)}}
FONT = 8.5
"""Font size in points; plots are drawn at about the width at which they are shown."""


def series(index: int) -> str:
    """Colour of series `index`; colours repeat, and markers distinguish the repetitions."""
    return SERIES[index % len(SERIES)]


def css(color: str) -> str:
    """A colour of this module as CSS that follows the page's theme."""
    return f"var(--{_THEME[color]}, {color})" if color in _THEME else color


@contextmanager
def canvas(width: float, height: float, salt: str) -> Iterator[Figure]:
    """Create a figure of the given size. The global state of matplotlib is restored at the end, and no window is needed.

    Args:
        width, height: size in inches.
        salt: unique string for the ids in the SVG, which share one name space in a page.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": salt, "text.parse_math": False, "font.family": ["DejaVu Sans"],
        "font.size": FONT, "axes.edgecolor": MUTED, "axes.labelcolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
        "text.color": INK, "axes.linewidth": 0.6, "xtick.major.width": 0.6, "xtick.major.size": 3,
        "ytick.major.size": 0, "axes.titlesize": FONT, "axes.titlecolor": MUTED, "axes.titlelocation": "left",
        "axes.titlepad": 5, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.8, "axes.axisbelow": True,
        "axes.facecolor": "none", "figure.facecolor": "none", "lines.linewidth": 1.4, "lines.solid_capstyle": "round",
        "axes.formatter.use_mathtext": False, "path.simplify": True,
    }  # fmt: skip
    with rc_context(settings):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def inline(figure: Figure, alt: str) -> str:
    """`figure` as an SVG element. Call it within the `canvas` block.

    Args:
        figure: the finished figure.
        alt: text alternative; escaped here.
    """
    from html import escape

    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    width, height = (figure.get_size_inches() * 72).tolist()
    head = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}">'
    text = head + text[text.index(">") + 1 :]
    text = re.sub(r"\s*<metadata>.*?</metadata>|<style.*?</style>|<defs>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace(' xlink:href="#', ' href="#')
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]).replace("\n", ""), text)
    text = re.sub(r"(fill|stroke): (#[0-9a-f]{6})", lambda match: f"{match[1]}: {css(match[2])}", text)
    return re.sub(r"\n\s*", "\n", text)
