"""Writes what people look at: the plots, one page that holds them all, and the results in this folder's README."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import matplotlib as mpl

from . import cover
from .drawing import INK, PAPER, RULE, number, style
from .measure import Spread
from .plots import Plot, plots
from .results import Results
from .targets import Goal

README = Path(__file__).parent / "README.md"
_BLOCK = re.compile(r"(<!-- results: written by a run -->\n).*?(<!-- end of results -->)", re.DOTALL)
_MET = {True: "met", False: "missed", None: "not measured"}
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>chathistory_async beside its peers</title>
<style>
:root {{ color-scheme: light dark; --paper: #fff; --ink: #232326; --soft: #66666b; --rule: #d2d2d7;
  --met: #00664b; --missed: #b34700; }}
@media (prefers-color-scheme: dark) {{ :root {{ --paper: #17171a; --ink: #ececef; --soft: #a2a2a8; --rule: #47474c;
  --met: #3ecf9f; --missed: #ff9a52; }} }}
body {{ background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 3rem auto; padding: 0 1.5rem; }}
h1 {{ font-size: 1.9rem; margin: 0; }}
h2 {{ font-size: 1.25rem; line-height: 1.35; margin: 0 0 .75rem; max-width: 56rem; }}
section {{ margin: 4rem 0; }}
svg {{ width: 100%; height: auto; }}
p, footer, caption {{ color: var(--soft); max-width: 56rem; }}
table {{ border-collapse: collapse; width: 100%; font-size: .92rem; }}
th, td {{ text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0; border-bottom: 1px solid var(--rule); }}
td:nth-child(2) {{ white-space: nowrap; }}
.met {{ color: var(--met); }} .missed {{ color: var(--missed); font-weight: 600; }}
.notmeasured {{ color: var(--soft); }}
.wrong {{ color: var(--missed); }}
</style>
<h1>chathistory_async beside its peers</h1>
<p>{about}</p>
{notes}
<section><h2>{verdict}</h2><table>
<thead><tr><th>Target<th>Limit<th>Measured: median (quartiles)<th>Met</thead>
{targets}
</table></section>
{sections}
<footer>Medians and quartiles of every case, and ratios within rounds: results.json. How it is measured, and what it
does not show: benchmarks/README.md.</footer>
</html>
"""


def write(results: Results, directory: Path) -> None:
    """Write the plots and the page beside results.json, and the summary into this folder's README if they are there."""
    drawn = list(plots(results.rows))
    for plot in drawn:
        with style():
            plot.figure.savefig(directory / f"{plot.name}.png", dpi=144)
    (directory / "index.html").write_text(_page(results, drawn))
    if results.rows.get("session_length"):
        cover.write(directory)
    if directory.resolve() == README.parent / "results":
        README.write_text(
            _BLOCK.sub(lambda block: f"{block[1]}{_summary(results, drawn)}{block[2]}", README.read_text())
        )


def _page(results: Results, drawn: Iterable[Plot]) -> str:
    notes = [f'<p class="wrong">Wrong: {escape(line)}.</p>' for line in results.wrong()]
    notes += [f"<p>Left out: {escape(line)}.</p>" for line in results.skipped]
    sections = [
        f"<section><h2>{escape(plot.headline)}</h2>\n{_svg(plot)}\n<p>{escape(plot.note)}</p></section>"
        for plot in drawn
    ]
    rows = [
        f"<tr><td>{escape(goal.text)}<td>{limit_of(goal)}<td>{escape(values_of(goal))}"
        f'<td class="{_MET[goal.met].replace(" ", "")}">{_MET[goal.met]}'
        for goal in results.goals()
    ]
    return _PAGE.format(
        about=escape(about(results)),
        notes="\n".join(notes),
        verdict=verdict(results.goals()),
        targets="\n".join(rows),
        sections="\n".join(sections),
    )


def _svg(plot: Plot) -> str:
    file = io.StringIO()
    # Ids that no other plot of the page has.
    with style(), mpl.rc_context({"svg.hashsalt": plot.name}):
        plot.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawn = file.getvalue()
    for colour, name in ((PAPER, "paper"), (INK, "ink"), (RULE, "rule")):
        drawn = drawn.replace(colour, f"var(--{name})")
    return drawn[drawn.index("<svg") :]


def about(results: Results) -> str:
    """Return when, where and on what it ran."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    kind = "A smoke test, of no worth as a measurement. " if results.quick else ""
    return f"{kind}{results.date}, {results.machine}. {versions}."


def verdict(goals: Iterable[Goal]) -> str:
    """Return how many targets are met."""
    measured = [goal for goal in goals if goal.met is not None]
    return f"{sum(goal.met is True for goal in measured)} of {len(measured)} targets are met"


def limit_of(goal: Goal) -> str:
    """Return a target's limit as text."""
    return f"{'≤' if goal.sense == 'at most' else '≥'} {number(goal.limit)}{goal.unit and f' {goal.unit}'}"


def values_of(goal: Goal) -> str:
    """Return what was measured of a target as text."""
    return "; ".join(
        f"{label}{label and ': '}{_spread_text(value)}{goal.unit and f' {goal.unit}'}"
        for label, value in goal.values.items()
    )


def _spread_text(value: Spread) -> str:
    if value.q1 == value.q3:
        return number(value.median)
    return f"{number(value.median)} ({number(value.q1)} to {number(value.q3)})"


def _summary(results: Results, drawn: Iterable[Plot]) -> str:
    lines = [about(results), ""]
    lines += [f"Wrong: {line}.\n" for line in results.wrong()]
    lines += [f"Left out: {line}.\n" for line in results.skipped]
    lines += [f"{verdict(results.goals())}; ratios are medians over rounds, with quartiles.", ""]
    lines += ["| target | limit | measured | |", "|---|---|---|---|"]
    lines += [f"| {goal.text} | {limit_of(goal)} | {values_of(goal)} | {_MET[goal.met]} |" for goal in results.goals()]
    for plot in drawn:
        lines += ["", f"**{plot.headline}.** {plot.note}", "", f"![{plot.headline}](results/{plot.name}.png)"]
    return "\n".join(lines) + "\n\n"
