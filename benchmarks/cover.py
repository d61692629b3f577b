"""The picture of the project's README: an append to a session that grows, drawn for light and for dark pages.

``python -m benchmarks.cover`` draws it again from the recorded results.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

from .drawing import COLOURS, INK, PAPER, RULE, Line, draw_lines, name_ends, panels, style
from .measure import Spread, spread
from .variants import ITEM_COLLECTION, OURS, SINGLE_ITEM, UPSTREAM

RESULTS = Path(__file__).parent / "results"
_NAMES = {
    (UPSTREAM, SINGLE_ITEM): "langchain-community",
    (OURS, SINGLE_ITEM): "single item",
    (OURS, ITEM_COLLECTION): "item collection",
}
# GitHub's colours of paper, ink and rules. On a dark page, the colours of the lines would be too dark for text.
_THEMES = {
    "light": {PAPER: "#ffffff", INK: "#1f2328", RULE: "#d1d9e0"},
    "dark": {
        PAPER: "#0d1117",
        INK: "#f0f6fc",
        RULE: "#3d444d",
        COLOURS[OURS]: "#56b4e9",
        COLOURS[UPSTREAM]: "#ff9a52",
    },
}


def write(directory: Path) -> None:
    """Draw the results in a directory into its ``append_light.svg`` and ``append_dark.svg``."""
    rows = json.loads((directory / "results.json").read_text())["benchmarks"]["session_length"]
    drawn = _drawn([row for row in rows if row["case"]["operation"] == "append"])
    for theme, colours in _THEMES.items():
        coloured = drawn
        for colour, shown in colours.items():
            coloured = coloured.replace(colour, shown)
        (directory / f"append_{theme}.svg").write_text(coloured)


def _drawn(appends: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    with style(), mpl.rc_context({"svg.hashsalt": "append", "font.size": 11}):
        figure, (time, capacity) = panels(2, width=10, height=2.9)
        times = _lines(appends, lambda row: Spread(**row["values"]["wall_ms"]))
        units = _lines(appends, lambda row: spread([row["figures"]["write_units"]]))
        draw_lines(time, "Milliseconds for an append", "messages in the session", "", times)
        draw_lines(capacity, "Write units for an append", "messages in the session", "", units)
        figure.draw_without_rendering()
        name_ends(time, times)
        name_ends(capacity, units)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return file.getvalue()


def _lines(appends: list[dict[str, Any]], value: Callable[[dict[str, Any]], Spread]) -> list[Line]:
    lines = []
    for (variant, layout), name in _NAMES.items():
        rows = [row for row in appends if row["variant"] == variant and row["case"]["layout"] == layout]
        xs = [float(row["case"]["messages"]) for row in rows]
        lines.append(Line(variant, xs, [value(row) for row in rows], name, dashed=layout == ITEM_COLLECTION))
    return lines


if __name__ == "__main__":
    write(RESULTS)
