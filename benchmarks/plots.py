"""The plots: each with a headline that says what was found, out of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import faces, footprint, reading
from .drawing import STAGE_COLOURS, Bar, Line, draw_bars, draw_lines, draw_target, number, panels, style
from .measure import Row, Spread, find, ratio, spread
from .session_length import LATEST
from .targets import LABELS, Results
from .variants import (
    AIOBOTO3,
    AIODYNAMO,
    FLOOR,
    ITEM_COLLECTION,
    LARGE_POOL,
    OURS,
    PLAIN_PATH,
    SINGLE_ITEM,
    UPSTREAM,
)

# In the order in which they are drawn.
_VARIANTS = (OURS, PLAIN_PATH, AIODYNAMO, AIOBOTO3, LARGE_POOL, UPSTREAM, FLOOR)
_LAYOUTS = (SINGLE_ITEM, ITEM_COLLECTION)
Rows = Sequence[Row]


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        name: of its file.
        headline: what it shows, in a sentence.
        note: how to read it.
    """

    name: str
    headline: str
    note: str
    figure: Figure


def plots(results: Results) -> Iterator[Plot]:
    """Draw all plots for which there are data."""
    for benchmark, draw in _DRAWN:
        if rows := results.get(benchmark):
            with style():
                yield from draw(rows)


def _small_calls(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(4, height=2.9)
    shares = []
    for one, (operation, label) in zip(axes, LABELS.items(), strict=True):
        found = _found(rows, on="stub", operation=operation, at_once=1)
        plain, ours = found[AIOBOTO3], found[OURS]
        shares.append(ratio(ours, plain, "cpu_ms").median)
        draw_bars(one, label, "ms of CPU a call", _bars(found, "cpu_ms"), target=0.3 * plain.spread("cpu_ms").median)
        if one is not axes[0]:
            one.set_yticklabels([])
    yield Plot(
        "small_calls",
        f"A small call takes {_range(shares)} of the CPU of plain aioboto3's",
        "One call at a time on the stub, client and stub on one CPU. Bars are medians, thin lines the quartiles. The"
        " target is 0.30 of plain aioboto3. Bare aiohttp sends bytes that were signed once, and parses nothing: no"
        " client on aiohttp can do less.",
        figure,
    )


def _throughput(rows: Rows) -> Iterator[Plot]:
    crowds = sorted({int(row.case["at_once"]) for row in rows if row.case["operation"] == "put_item"})
    figure, (rate, tail) = panels(2, height=3.8)
    lines, tails = [], []
    for variant in _VARIANTS:
        found = [row for crowd in crowds if (row := find(rows, variant, operation="put_item", at_once=crowd))]
        if not found:
            continue
        xs = [float(row.case["at_once"]) for row in found]
        lines.append(Line(variant, xs, [row.spread("per_second") for row in found], variant))
        ratios = [spread([row.figures["p99_ms"] / row.figures["p50_ms"]]) for row in found]
        tails.append(Line(variant, xs, ratios, variant))
    draw_lines(rate, "puts a second", "calls at a time", "puts a second", lines)
    draw_lines(tail, "the slowest, of the median", "calls at a time", "p99 ÷ median", tails)
    draw_target(tail, 3)
    most = crowds[-1]
    ours, plain = (_known(rows, name, operation="put_item", at_once=most) for name in (OURS, AIOBOTO3))
    goal = 4 * plain.spread("per_second").median
    draw_target(rate, goal, label="target at the right:")
    yield Plot(
        "throughput",
        f"{most} at a time, one process puts {number(ratio(ours, plain, 'per_second').median)} times as often as with"
        f" plain aioboto3, and its slowest 1 % take {number(ours.figures['p99_ms'] / ours.figures['p50_ms'])} times the"
        " median or more",
        "On the stub, on another CPU than the client. The SDK's own pool of 10 connections lets some callers wait long;"
        " with a large pool it is only slow. Targets: 4 times plain aioboto3, and p99 of 3 times the median.",
        figure,
    )


def _chats(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(2, 2, height=5.4)
    for one, (operation, layout) in zip(axes, [(o, n) for o in ("append", "read") for n in _LAYOUTS], strict=True):
        found = _found(rows, on="stub", operation=operation, layout=layout, at_once=1)
        title = f"{'append a message' if operation == 'append' else 'read 20 messages'}, {layout}"
        draw_bars(one, title, "ms of CPU", _bars(found, "cpu_ms"))
    case: dict[str, Any] = {"on": "stub", "at_once": 1, "layout": SINGLE_ITEM}
    shares = [
        ratio(_known(rows, OURS, **case | one), _known(rows, UPSTREAM, **case | one), "cpu_ms").median
        for one in ({"operation": "append"}, {"operation": "read"})
    ]
    yield Plot(
        "appends_and_reads",
        f"Appending takes {number(shares[0])}, reading 20 messages {number(shares[1])} of langchain-community's CPU",
        "From LangChain's messages to what is sent and back, one at a time on the stub; CPU of the whole process. Ours"
        " also proves that each message reads back equal, makes its handle anew each time, and stores it exactly once"
        " under retries, which the code that calls aioboto3 and aiodynamo by hand does not.",
        figure,
    )


def _crowd(rows: Rows) -> Iterator[Plot]:
    writers = [row for row in rows if row.case["operation"] == "append to one session"]
    crowds = [int(row.case["at_once"]) for row in rows if row.case["operation"] == "append"]
    if not writers:
        return
    figure, axes = panels(3, height=3.0)
    most, factors = max(crowds), []
    for one, target in zip(axes, ("stub", "DynamoDB Local"), strict=False):
        found = _found(rows, on=target, operation="append", layout=SINGLE_ITEM, at_once=most)
        theirs = found[UPSTREAM].spread("per_second").median
        draw_bars(
            one, f"{most} sessions at once, {target}", "appends a second", _bars(found, "per_second"), target=4 * theirs
        )
        factors.append(ratio(found[OURS], found[UPSTREAM], "per_second").median)
    sent = writers[0].figures["sent"]
    bars = [
        Bar(
            row.variant,
            spread([row.figures["kept"]]),
            row.wrong and "lost the rest",
            f"{row.variant}, {row.case['layout']}",
        )
        for row in writers
    ]
    draw_bars(axes[2], "16 writers to one session", f"messages kept, of {sent:.0f}", bars)
    lost = [row for row in writers if row.wrong]
    which = ", ".join(f"{row.variant} {row.wrong}" for row in lost) or "nobody loses a message"
    yield Plot(
        "concurrent_appends",
        f"{most} appends at a time run {_range(factors)} times as fast as langchain-community's; when 16 write to one"
        f" session, {which}",
        "Left and middle: each writer has a session of its own, in a single item. Right: all have the same. The target"
        " is 4 times langchain-community through its async methods.",
        figure,
    )


def _session_length(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(2, 3, height=8.6)
    shown: list[tuple[str, str, Callable[[Row], Spread]]] = [
        ("time", "ms", lambda row: row.spread("wall_ms")),
        ("sent and received", "KB", lambda row: spread([row.figures["bytes"] / 1000])),
        ("capacity", "units", lambda row: spread([max(row.figures["read_units"] + row.figures["write_units"], 0.1)])),
    ]
    for number_of_row, (what, unit, value) in enumerate(shown):
        for column, operation in enumerate(("append", "read")):
            one = axes[2 * number_of_row + column]
            title = f"{'append a message' if operation == 'append' else f'read the latest {LATEST}'}: {what}"
            draw_lines(one, title, "messages in the session", unit, _lines(rows, operation, value))
    case: dict[str, Any] = {"operation": "append", "layout": SINGLE_ITEM}
    longest = max(int(row.case["messages"]) for row in rows if row.case.items() >= case.items())
    ours, theirs = (_known(rows, name, messages=longest, **case) for name in (OURS, UPSTREAM))
    flat = [
        row
        for row in rows
        if row.variant == OURS and row.case.items() >= {"operation": "append", "layout": ITEM_COLLECTION}.items()
    ]
    growth = ratio(flat[-1], flat[0], "wall_ms").median
    yield Plot(
        "session_length",
        f"At {longest:,} messages an append is {number(ratio(theirs, ours, 'wall_ms').median)} times as fast as"
        f" langchain-community's; in an item collection it takes {number(growth)} times as long at"
        f" {flat[-1].case['messages']:,} messages as at {flat[0].case['messages']}",
        "On DynamoDB Local, one at a time; solid lines for the single item, dashed ones for the item collection. A"
        " single item ends where DynamoDB's 400 KB are full. langchain-community reads eventually consistently, at half"
        " the price; a write unit costs five times what a read unit costs.",
        figure,
    )


def _lines(rows: Rows, operation: str, value: Callable[[Row], Spread]) -> list[Line]:
    lines = []
    for variant in _VARIANTS:
        for layout in _LAYOUTS:
            found = [
                row
                for row in rows
                if row.variant == variant and (row.case["operation"], row.case["layout"]) == (operation, layout)
            ]
            if not found:
                continue
            end = find(rows, variant, operation="append until it fails", layout=layout)
            note = f", full at {end.figures['messages']:,.0f}" if end and operation == "append" else ""
            xs = [float(row.case["messages"]) for row in found]
            label = f"{variant}, {layout.removeprefix('item ').removeprefix('single ')}"
            lines.append(Line(variant, xs, [value(row) for row in found], label, layout == ITEM_COLLECTION, note))
    return lines


def _reading(rows: Rows) -> Iterator[Plot]:
    lengths = sorted({int(row.case["messages"]) for row in rows})
    figure, axes = panels(len(lengths), height=3.3)
    for one, length in zip(axes, lengths, strict=True):
        _draw_stages(one, rows, length)
        if one is not axes[0]:
            one.set_yticklabels([])
    stages = ["waiting for DynamoDB Local", "JSON", "attribute conversion", "message construction"]
    figure.legend(
        [axes[0].patches[index] for index in range(len(stages))],
        stages,
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )
    most = lengths[-1]
    case: dict[str, Any] = {"measured": "whole read", "messages": most}
    stock = _known(rows, AIOBOTO3, layout=SINGLE_ITEM, **case)
    shares = [ratio(_known(rows, OURS, layout=layout, **case), stock, "above_floor_ms").median for layout in _LAYOUTS]
    yield Plot(
        "reading",
        f"From the bytes to {most:,} messages takes {number(shares[0])} of the stock way's CPU in a single item,"
        f" {number(shares[1])} in an item collection",
        "The stages of one answer, each timed by itself; the stock way is json, botocore's walk, TypeDeserializer and"
        " messages_from_dict. The ratios in the headline are of whole calls, less what bare aiohttp takes for the same"
        " bytes; both are to the stock way from a single item. Targets: 0.20 and 0.12.",
        figure,
    )


def _draw_stages(axes: Axes, rows: Rows, length: int) -> None:
    axes.set_title(f"{length:,} messages")
    axes.set_xlabel("ms")
    labels: list[str] = []
    for layout in _LAYOUTS:
        for name, label in ((OURS, "ours"), (AIOBOTO3, "stock")):
            row = _known(rows, name, measured="stages", layout=layout, messages=length)
            waited = find(rows, name, measured="on the engine", layout=layout, messages=length)
            parts = [
                waited.spread("waiting_ms").median if waited else 0.0,
                *(row.spread(stage).median for stage in reading.STAGES),
            ]
            left = 0.0
            for part, colour in zip(parts, STAGE_COLOURS, strict=True):
                axes.barh(len(labels), part, left=left, color=colour, height=0.7)
                left += part
            axes.text(left, len(labels), f" {number(left)}", va="center", fontsize=9)
            labels.append(f"{label}, {layout}")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.15)


def _holds(rows: Rows) -> Iterator[Plot]:
    ordered = sorted(
        rows, key=lambda row: (_VARIANTS.index(row.variant), str(row.case["layout"]), row.case["messages"])
    )
    figure, (cpu, wall) = panels(2, height=3.4)
    labels = [f"{row.variant}, {row.case['layout']}, {row.case['messages']:,}" for row in ordered]
    for one, name, title in ((cpu, "hold_cpu_ms", "CPU of the loop's thread"), (wall, "hold_ms", "time that passed")):
        bars = [
            Bar(row.variant, row.spread(name), row.wrong, label) for row, label in zip(ordered, labels, strict=True)
        ]
        draw_bars(one, title, "ms, the longest step of the loop while reading", bars, target=10, log=True)
    wall.set_yticklabels([])
    worst = max(row.figures["worst_hold_cpu_ms"] for row in rows if row.variant == OURS)
    others = max(row.figures["worst_hold_cpu_ms"] for row in rows if row.variant == AIOBOTO3)
    most = max(int(row.case["messages"]) for row in rows if row.variant == OURS)
    yield Plot(
        "loop_holds",
        f"Reading up to {most:,} messages holds the event loop for {number(worst)} ms of CPU at worst; a client called"
        f" by hand holds it for {number(others)}",
        "While 100 other sessions are appended to, on DynamoDB Local. Time that passed is longer than CPU where other"
        " processes or threads had the CPU. langchain-community works in threads: they spare the loop, and take the CPU"
        " elsewhere in the process.",
        figure,
    )


def _footprint(rows: Rows) -> Iterator[Plot]:
    handles = [row for row in rows if row.case["measured"] == "handle"]
    imports = [row for row in rows if row.case["measured"] == footprint.IMPORT]
    figure, (times, sizes, importing) = panels(3, height=2.8)
    labels = [f"{row.variant}: {row.case['way']}" for row in handles]
    made = [Bar(row.variant, row.spread("handle_us"), label=label) for row, label in zip(handles, labels, strict=True)]
    kept = [
        Bar(row.variant, spread([row.figures["bytes_new_session"]]), label=label)
        for row, label in zip(handles, labels, strict=True)
    ]
    draw_bars(times, "making a handle", "µs of CPU", made, target=20, log=True)
    draw_bars(sizes, "an idle handle on a new session", "bytes", kept, target=2048, log=True)
    sizes.set_yticklabels([])
    without = next(row for row in imports if row.variant == footprint.WITHOUT).spread("import_ms").median
    draw_bars(
        importing,
        "importing",
        "ms of CPU",
        [Bar(row.variant, row.spread("import_ms")) for row in imports],
        target=1.1 * without,
    )
    slowest = max(row.spread("handle_us").median for row in handles if row.variant == OURS)
    largest = max(row.figures["bytes_new_session"] for row in handles if row.variant == OURS)
    theirs = next(row for row in handles if row.variant == UPSTREAM)
    yield Plot(
        "footprint",
        f"A handle takes {number(slowest)} µs and {number(largest)} bytes; langchain-community's"
        f" {number(theirs.spread('handle_us').median / 1000)} ms and"
        f" {number(theirs.figures['bytes_new_session'] / 1000)} KB",
        "Targets: 20 µs, 2 KB, and 1.1 times the import of what the package cannot do without (aioboto3, orjson and"
        " langchain-core's messages).",
        figure,
    )


def _faces(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(2, 2, height=4.6)
    order = (OURS, faces.SYNC, faces.UPSTREAM_SYNC, faces.ENCRYPTED)
    shown = [("faces", "append", "wall_ms"), ("faces", "read", "wall_ms")]
    shown += [("encryption", "append", "cpu_ms"), ("encryption", "read", "cpu_ms")]
    for one, (compared, operation, name) in zip(axes, shown, strict=True):
        bars = [
            Bar(row.variant, row.spread(name), row.wrong, f"{row.variant}, {row.case['layout']}")
            for row in sorted(rows, key=lambda row: order.index(row.variant))
            if (row.case["compared"], row.case["operation"]) == (compared, operation)
        ]
        title = f"{'append a message' if operation == 'append' else f'read {faces.SHORT} messages'}"
        where = "on the stub" if compared == "faces" else "on DynamoDB Local"
        if bars:
            draw_bars(one, f"{title}, {where}", "ms of CPU" if name == "cpu_ms" else "ms", bars)
    added = [row.spread("added_ms").median for row in rows if row.variant == faces.SYNC]
    case: dict[str, Any] = {"compared": "encryption", "layout": ITEM_COLLECTION, "operation": "append"}
    sealed, plain = find(rows, faces.ENCRYPTED, **case), find(rows, OURS, **case)
    sealing = (
        f", and encryption takes {number(ratio(sealed, plain, 'cpu_ms').median)} times the CPU of an append"
        if sealed and plain
        else ""
    )
    yield Plot(
        "faces",
        f"A synchronous method adds {_range(added)} ms to its async twin{sealing}",
        "Above, time on the stub: the target is at most 0.15 ms added. Below, CPU on DynamoDB Local with data keys in"
        " use, which a session's first append has to get from KMS.",
        figure,
    )


def _soak(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(4, height=2.6)
    shown = [
        ("operations_per_second", "throughput", "appends and reads a second"),
        ("append_p99_ms", "slowest 1 % of appends", "ms (p99)"),
        ("memory_end_mb", "memory at the end", "MB"),
        ("threads", "threads", "threads"),
    ]
    for one, (name, title, unit) in zip(axes, shown, strict=True):
        bars = [
            Bar(row.variant, spread([row.figures[name]]), row.wrong, f"{row.variant}, {row.case['layout']}")
            for row in rows
        ]
        draw_bars(one, title, unit, bars)
        if one is not axes[0]:
            one.set_yticklabels([])
    ours = next(row for row in rows if row.variant == OURS)
    grown = ours.figures["memory_end_mb"] - ours.figures["memory_start_mb"]
    yield Plot(
        "soak",
        f"{ours.case['sessions']:,} sessions in use for {ours.case['seconds']} s:"
        f" {number(ours.figures['operations_per_second'])} operations a second, sockets: {ours.figures['sockets']:.0f},"
        f" threads: {ours.figures['threads']:.0f}; memory grows by {number(grown)} MB",
        "On DynamoDB Local, which shares the machine and limits the throughput; each session appends a message and"
        " reads its latest 20, again and again, without a pause. Memory at the end includes the handles that"
        " langchain-community keeps.",
        figure,
    )


def _known(rows: Rows, variant: str, **case: str | int) -> Row:
    """Return a row that every run has."""
    row = find(rows, variant, **case)
    if row is None:
        raise LookupError(f"{variant} was not measured in {case}")
    return row


def _found(rows: Rows, **case: str | int) -> dict[str, Row]:
    """Return the variants' rows of a case, in the order in which they are drawn."""
    return {variant: row for variant in _VARIANTS if (row := find(rows, variant, **case))}


def _bars(found: dict[str, Row], name: str) -> list[Bar]:
    return [Bar(variant, row.spread(name), row.wrong) for variant, row in found.items()]


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


_DRAWN: tuple[tuple[str, Callable[[Rows], Iterator[Plot]]], ...] = (
    ("small_calls", _small_calls),
    ("small_calls", _throughput),
    ("small_calls", _chats),
    ("small_calls", _crowd),
    ("session_length", _session_length),
    ("reading", _reading),
    ("loop_holds", _holds),
    ("footprint", _footprint),
    ("faces", _faces),
    ("soak", _soak),
)
