"""Plot accuracy against bytes of delivered models, from committed result files.

python benchmarks/picture.py         # writes docs/images/accuracy-against-bytes.svg
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitstill.report.svg import CARD, INK, MUTED, RULE, SERIES, canvas, inline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results"
PICTURE = RESULTS.parents[1] / "docs" / "images" / "accuracy-against-bytes.svg"
FLOAT, POST, TRAINED = "float32", "quantized after training", "trained by bitstill"
STYLES = {FLOAT: (INK, "*"), POST: (SERIES[2], "s"), TRAINED: (SERIES[1], "o")}
DARK = {
    INK: "#e6e9ee", MUTED: "#9aa6b4", RULE: "#39424e", CARD: "#1b2027", SERIES[1]: "#6ea3f5", SERIES[2]: "#f08a5d",
}  # fmt: skip
"""Colours of the dark theme, by those of the light theme."""


@dataclass(frozen=True)
class Model:
    """A delivered model.

    Args:
        label: text beside the point.
        kind: a key of `STYLES`.
        file_bytes: size of the weights on disk.
        accuracy: accuracy on the test split, in percent.
        above: whether the label is above its point instead of below.
    """

    label: str
    kind: str
    file_bytes: int
    accuracy: float
    above: bool = True


def sentences() -> list[Model]:
    """Models of SST-2: all-MiniLM-L6-v2."""
    xtc, onnx = _rows("xtc"), _rows("onnx_runtime")
    other = onnx["int8, by ONNX Runtime"]
    trained = {
        "1 bit, 6 layers": ("1 bit", False),
        "ternary, 6 layers": ("ternary", True),
        "1 bit, 3 layers": ("1 bit, 3 layers", False),
    }
    teacher = xtc["sst2-teacher-0"]
    return [
        Model("teacher", FLOAT, teacher["file_bytes"], teacher["value"]),
        Model("int8, ONNX Runtime", POST, other["file_bytes"], other["accuracy"], above=False),
        *(
            Model(label, TRAINED, xtc[f"sst2-{row}-0"]["file_bytes"], xtc[f"sst2-{row}-0"]["value"], above)
            for row, (label, above) in trained.items()
        ),
    ]


def pictures() -> list[Model]:
    """Models of CIFAR-10: the teacher and the first student of Polino et al."""
    rows = _rows("cifar10")
    shown = {
        "teacher": ("teacher", FLOAT, True),
        "student-1-float": ("student", FLOAT, True),
        "student-1-ptq-4": ("4 bits", POST, False),
        "student-1-ptq-2": ("2 bits", POST, True),
        "student-1-qd-2": ("2 bits", TRAINED, True),
        "student-1-dq-4": ("4 bits", TRAINED, True),
    }
    return [
        Model(label, kind, rows[name]["file_bytes"], rows[name]["test"], above) for name, (label, kind, above) in shown.items()
    ]


PANELS = {"MiniLM-L6 on SST-2": sentences, "CNN on CIFAR-10": pictures}


def drawing() -> str:
    """Plot as an SVG document."""
    panels = {title: models() for title, models in PANELS.items()}
    words = ". ".join(f"{title}: {'; '.join(map(_worded, models))}" for title, models in panels.items())
    with canvas(9.2, 3.5, "accuracy-against-bytes") as figure:
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.04)
        for axes, (title, models) in zip(figure.subplots(1, 2), panels.items(), strict=True):
            _draw(axes, title, models)
        figure.axes[1].legend(loc="lower right", frameon=False, labelcolor=MUTED, handletextpad=0.2)
        element = inline(figure, f"Accuracy against bytes of delivered models. {words}")
    return _standalone(element)


def _draw(axes: Axes, title: str, models: list[Model]) -> None:
    for kind, (color, marker) in STYLES.items():
        points = [(model.file_bytes / 1e6, model.accuracy) for model in models if model.kind == kind]
        size = 13 if marker == "*" else 8
        axes.plot(*zip(*points, strict=True), marker, color=color, markersize=size, markeredgecolor=CARD, label=kind)
    for model in models:
        place = (0, 8 if model.above else -15)
        where = (model.file_bytes / 1e6, model.accuracy)
        axes.annotate(model.label, where, place, textcoords="offset points", ha="center", color=STYLES[model.kind][0])
    axes.set_xscale("log")
    axes.margins(x=0.16, y=0.25)
    axes.set_title(f"{title}: test accuracy, %")
    axes.set_xlabel("megabytes on disk")
    axes.xaxis.set_major_locator(_locator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def _locator() -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator([0.1, 0.3, 1, 3, 10, 30, 100])


def _worded(model: Model) -> str:
    return f"{model.label}, {model.kind}: {model.accuracy:.2f} % at {model.file_bytes:,} bytes"


def _standalone(element: str) -> str:
    """Wrap an SVG element in a standalone document with a background card, in the reader's light or dark theme."""
    from bitstill.report.svg import css

    names = {color: css(color).removeprefix("var(").partition(",")[0] for color in DARK}
    light = "".join(f"{name}: {color}; " for color, name in names.items())
    dark = "".join(f"{names[color]}: {shade}; " for color, shade in DARK.items())
    style = f"<style>svg {{ {light}font-family: sans-serif }} @media (prefers-color-scheme: dark) {{ svg {{ {dark}}} }}</style>"
    head, _, rest = element.partition(">")
    xml = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"')
    background = f'<rect width="100%" height="100%" rx="6" fill="{css(CARD)}"/>'
    return f"{xml}>\n{style}\n{background}{rest}\n".replace(' href="#', ' xlink:href="#')


def _rows(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text())["rows"])


if __name__ == "__main__":
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(drawing())
