"""Bars and lines with their values and names written beside them, and targets as lines."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from .events import KEPT_LOOP, NEW_LOOP, SYNC_METHODS
from .footprint import STORE, STORE_WITHOUT, WITHOUT
from .measure import Spread
from .put_peers import AWS_SDK, DYNAMOXY, PYDYNOX
from .sync_and_encryption import ENCRYPTED, SYNC, UPSTREAM_SYNC
from .tracing import OFF, RECORDED, UNSAMPLED, UNSET
from .turns import ONE, PUT, TWO
from .variants import AIOBOTO3, AIODYNAMO, FLOOR, LARGE_POOL, OURS, PLAIN_PATH, UPSTREAM

# The page puts its own colours of light and dark into the place of these.
PAPER, INK, RULE = "#fefefe", "#232326", "#d2d2d7"
# Okabe and Ito's, which the colour-blind can tell apart; grey is for what is no competitor.
_BLUE, _SKY, _ORANGE, _YELLOW, _GREEN, _RED, _PURPLE, _GREY = (
    *("#0072b2", "#56b4e9", "#e69f00", "#c9b400", "#009e73", "#d55e00", "#cc79a7", "#8c8c91"),
)
COLOURS = {
    OURS: _BLUE,
    PLAIN_PATH: _SKY,
    SYNC: _SKY,
    ENCRYPTED: _PURPLE,
    AIOBOTO3: _ORANGE,
    LARGE_POOL: _YELLOW,
    AIODYNAMO: _GREEN,
    DYNAMOXY: _RED,
    PYDYNOX: _PURPLE,
    AWS_SDK: _YELLOW,
    UPSTREAM: _RED,
    UPSTREAM_SYNC: _RED,
    FLOOR: _GREY,
    WITHOUT: _GREY,
    STORE: _SKY,
    STORE_WITHOUT: _GREY,
    PUT: _SKY,
    ONE: _BLUE,
    OFF: _GREY,
    UNSET: _SKY,
    UNSAMPLED: _BLUE,
    RECORDED: _ORANGE,
    TWO: _BLUE,
    NEW_LOOP: _ORANGE,
    KEPT_LOOP: _BLUE,
    SYNC_METHODS: _SKY,
}
# For the stages of a read. Waiting is grey, because it takes no CPU.
STAGE_COLOURS = (_GREY, _SKY, _ORANGE, _BLUE)
_STYLE: Any = {
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "hatch.linewidth": 0.8,
    "savefig.facecolor": PAPER,
    # Text stays text, in the reader's own font.
    "svg.fonttype": "none",
}


_OVER_LINES = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.0}


@contextmanager
def style() -> Iterator[None]:
    """Draw, and save, in the style of all plots."""
    with mpl.rc_context(_STYLE):
        yield


@dataclass(frozen=True)
class Bar:
    """A bar: what it is of, and how long.

    Attributes:
        variant: which colour it has.
        wrong: what makes the value worth nothing, None where it counts.
        label: the name beside it, None for the variant's.
        target: where it is to end, None where nothing is said of it.
    """

    variant: str
    value: Spread
    wrong: str | None = None
    label: str | None = None
    target: float | None = None


def panels(columns: int, rows: int = 1, *, width: float = 11.0, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, from left to right and from top to bottom."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, [one for row in axes for one in row]


def draw_bars(
    axes: Axes, title: str, unit: str, bars: Sequence[Bar], *, target: float | None = None, log: bool = False
) -> None:
    """Draw horizontal bars, the first on top, with their quartiles and values."""
    # The target's name stands between the title and the bars.
    axes.set_title(title, pad=6 if target is None else 18)
    axes.set_xlabel(unit)
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    for position, bar in enumerate(bars):
        colour = COLOURS[bar.variant]
        (drawn,) = axes.barh(position, bar.value.median, height=0.7, color=colour)
        if bar.wrong:
            drawn.set(facecolor="none", edgecolor=colour, hatch="////")
        axes.plot([bar.value.q1, bar.value.q3], [position, position], color=INK, linewidth=1)
        if bar.target is not None:
            axes.plot([bar.target] * 2, [position - 0.5, position + 0.5], color=INK, linestyle="--", linewidth=1.2)
        text = number(bar.value.median) + (f"  WRONG: {bar.wrong}" if bar.wrong else "")
        axes.annotate(
            text,
            (max(bar.value.median, bar.value.q3), position),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            bbox=_OVER_LINES,
        )
    axes.set_yticks(range(len(bars)), [bar.label or bar.variant for bar in bars])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    low, high = axes.get_xlim()
    longest = max([*(max(bar.value) for bar in bars), target or 0])
    # Room for the values.
    axes.set_xlim(low if log else 0, longest * (high / low) ** 0.25 if log else longest * 1.3)
    if target is not None:
        draw_target(axes, target, vertical=True)


def draw_target(axes: Axes, value: float, *, vertical: bool = False, label: str = "target") -> None:
    """Draw a target as a dashed line with its name."""
    text = f"{label} {number(value)}"
    if vertical:
        axes.axvline(value, color=INK, linestyle="--", linewidth=1.2)
        place, coordinates, offset = (value, 1.0), ("data", "axes fraction"), (0, 3)
    else:
        axes.axhline(value, color=INK, linestyle="--", linewidth=1.2)
        place, coordinates, offset = (0.0, value), ("axes fraction", "data"), (4, 3)
    align = "center" if vertical else "left"
    axes.annotate(text, place, offset, coordinates, "offset points", fontsize=9, style="italic", ha=align, va="bottom")


@dataclass(frozen=True)
class Line:
    """A line through medians, with a band between the quartiles."""

    variant: str
    xs: Sequence[float]
    values: Sequence[Spread]
    label: str
    dashed: bool = False


def draw_lines(axes: Axes, title: str, x_label: str, y_label: str, lines: Sequence[Line]) -> None:
    """Draw lines over two logarithmic axes."""
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    for line in lines:
        colour, medians = COLOURS[line.variant], [value.median for value in line.values]
        dashes = "--" if line.dashed else "-"
        axes.plot(line.xs, medians, color=colour, marker="o", markersize=4, linestyle=dashes, label=line.label)
        axes.fill_between(
            line.xs, [value.q1 for value in line.values], [value.q3 for value in line.values], color=colour, alpha=0.15
        )
    ticks = sorted({x for line in lines for x in line.xs})
    axes.set_xticks(ticks, [_tick(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(visible=True, axis="y")


def name_ends(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name to the right, at the height of its end, none over another."""
    to_axes = axes.transScale + axes.transLimits
    heights = [float(to_axes.transform((line.xs[-1], line.values[-1].median))[1]) for line in lines]
    order = sorted(range(len(lines)), key=heights.__getitem__)
    for lower, upper in itertools.pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + 0.075)
    for line, height in zip(lines, heights, strict=True):
        axes.annotate(
            line.label, (1.02, height), xycoords="axes fraction", color=COLOURS[line.variant], fontsize=9, va="center"
        )


def name_below(figure: Figure, axes: Axes) -> None:
    """Write the names of a panel's lines below all panels, which have the same ones."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def number(value: float) -> str:
    """Return a number with three digits that count."""
    if value and abs(value) < 0.001:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _tick(value: float, _: object = None) -> str:
    """Return a short text for a tick."""
    return f"{value / 1000:,g}k" if value >= 1000 else f"{value:g}"
