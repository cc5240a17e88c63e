"""How charts look: matplotlib's settings, and colours that the page's style sheet decides.

Strategy: charts are drawn in stand-in colours, each of which becomes a CSS variable in the SVG
text, so that one chart serves light and dark. Text stays text, in the page's own font.

Invariant: the same figure gives the same text, and no two charts of a page share an id.
"""

import io
import re
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS: Final = tuple(f"#0c0d{number:02x}" for number in range(8))
TEXT: Final = "#0c0e00"
FAINT: Final = "#0c0e01"
GRID: Final = "#0c0e02"
GOOD: Final = "#0c0e03"
BAD: Final = "#0c0e04"
CARD: Final = "#0c0e05"

WIDTH: Final = 5.4
"""Inches: narrow, so that text stays legible where the page is a phone's."""

_VARIABLES = {
    **{colour: f"var(--ink-{number})" for number, colour in enumerate(COLOURS)},
    TEXT: "var(--text)",
    FAINT: "var(--faint)",
    GRID: "var(--grid)",
    GOOD: "var(--good)",
    BAD: "var(--bad)",
    CARD: "var(--card)",
}
# By name, as matplotlib's own type of them has no name.
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": TEXT,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "legend.labelcolor": TEXT,
    "lines.linewidth": 1.4,
    "text.color": TEXT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": FAINT,
    "ytick.labelcolor": TEXT,
}
_IDS = re.compile(r'(?<=id=")|(?<=xlink:href="#)|(?<=url\(#)')
_HEAD = re.compile(r"^.*?(?=<svg )", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_SIZE = re.compile(r' width="[^"]*pt"| height="[^"]*pt"')


def new_figure(height: float) -> Figure:
    """An empty figure of the page's width, `height` in inches."""
    with mpl.rc_context(_SETTINGS):
        return Figure(figsize=(WIDTH, height), layout="constrained")


def settings() -> dict[Any, Any]:
    """For `matplotlib.rc_context`, around all that draws."""
    return dict(_SETTINGS)


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element; `name` is unique in the page."""
    output = io.StringIO()
    with mpl.rc_context({**_SETTINGS, "svg.hashsalt": name}):
        figure.savefig(output, format="svg", transparent=True, metadata={"Date": None})
    text = _METADATA.sub("", _HEAD.sub("", output.getvalue()))
    first, rest = text.split(">", 1)
    text = f"{_SIZE.sub('', first)}>{_IDS.sub(f'{name}-', rest)}"
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
