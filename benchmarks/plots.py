"""The plots: each with a headline that says what was found, out of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from . import events, footprint, reading, tracing, turns
from .drawing import (
    STAGE_COLOURS,
    Bar,
    Line,
    draw_bars,
    draw_lines,
    draw_target,
    name_below,
    name_ends,
    number,
    panels,
    style,
)
from .measure import Row, Spread, find, ratio, spread
from .put_peers import AWS_SDK, DYNAMOXY, PYDYNOX
from .session_length import LATEST
from .sync_and_encryption import ENCRYPTED, SHORT, SYNC, SYNC_METHODS, UPSTREAM_SYNC
from .targets import LABELS, READING_LIMITS, Results
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
_PUT_VARIANTS = (OURS, DYNAMOXY, PYDYNOX, AIODYNAMO, AIOBOTO3, AWS_SDK)
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


def _put_peers(rows: Rows) -> Iterator[Plot]:
    case: dict[str, Any] = {"on": "stub", "operation": "put_item"}
    if find(rows, DYNAMOXY, **case, at_once=1) is None:
        return
    levels = (1, 64) if find(rows, DYNAMOXY, **case, at_once=64) else (1, 16)
    figure, axes = panels(2, height=2.9)
    shares = []
    for one, at_once in zip(axes, levels, strict=True):
        found = {name: row for name in _PUT_VARIANTS if (row := find(rows, name, **case, at_once=at_once))}
        shares.append(ratio(found[OURS], found[DYNAMOXY], "cpu_ms").median)
        draw_bars(one, f"{at_once} at a time", "ms of CPU a put", _bars(found, "cpu_ms"))
    yield Plot(
        "put_peers",
        f"A put takes {number(shares[0])} of the CPU of dynamoxy's, whose core is in Rust; {levels[1]} at a time"
        f" {number(shares[1])}",
        "On the stub, CPU of the whole process with all its threads. dynamoxy and pydynox have a core in Rust;"
        " aws-sdk-dynamodb is AWS's own client for asyncio. They need Python 3.12.",
        figure,
    )


def _throughput(rows: Rows) -> Iterator[Plot]:
    figure, (rate, tail) = panels(2, height=3.8)
    lines, tails = [], []
    for variant in _VARIANTS:
        found = _of(rows, variant, operation="put_item")
        if not found:
            continue
        xs = [float(row.case["at_once"]) for row in found]
        lines.append(Line(variant, xs, [row.spread("per_second") for row in found], variant))
        ratios = [spread([row.figures["p99_ms"] / row.figures["p50_ms"]]) for row in found]
        tails.append(Line(variant, xs, ratios, variant))
    draw_lines(rate, "puts a second", "calls at a time", "puts a second", lines)
    name_ends(rate, lines)
    draw_lines(tail, "the slowest of 100, of the median", "calls at a time", "p99 ÷ median", tails)
    name_ends(tail, tails)
    draw_target(tail, 3)
    most = int(lines[0].xs[-1])
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
        " also proves that each message reads back as it was dumped, makes its handle anew each time, and stores it"
        " exactly once under retries, which the code that calls aioboto3 and aiodynamo by hand does not.",
        figure,
    )


def _crowd(rows: Rows) -> Iterator[Plot]:
    targets = list(dict.fromkeys(str(row.case["on"]) for row in rows))
    most = max(int(row.case["at_once"]) for row in rows if row.case["operation"] == "append")
    figure, axes = panels(len(targets), height=2.6)
    factors = []
    for one, target in zip(axes, targets, strict=True):
        found = _found(rows, on=target, operation="append", layout=SINGLE_ITEM, at_once=most)
        goal = 4 * found[UPSTREAM].spread("per_second").median
        draw_bars(one, f"on {target}", "appends a second", _bars(found, "per_second"), target=goal)
        factors.append(ratio(found[OURS], found[UPSTREAM], "per_second").median)
    yield Plot(
        "concurrent_appends",
        f"{most} appends at a time run {_range(factors)} times as fast as langchain-community's",
        "Each to a session of its own, in a single item. The target is 4 times langchain-community through its async"
        " methods.",
        figure,
    )


def _one_session(rows: Rows) -> Iterator[Plot]:
    writers = [row for row in rows if row.case["operation"] == "append to one session"]
    if not writers:
        return
    figure, (kept,) = panels(1, height=2.6)
    sent, crowd = writers[0].figures["sent"], writers[0].case["at_once"]
    bars = _labelled(writers, "kept")
    draw_bars(kept, "", f"messages kept, of {sent:.0f}", bars)
    which = ", ".join(f"{row.variant} {row.wrong}" for row in writers if row.wrong) or "nobody loses a message"
    yield Plot(
        "one_session",
        f"When {crowd} write to one session at once, {which}",
        "Each writer waits for its own appends. A variant that is wrong is not compared for its speed.",
        figure,
    )


def _session_length(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(3, 2, height=6.6)
    shown: list[tuple[str, str, Callable[[Row], Spread]]] = [
        ("time", "ms", lambda row: row.spread("wall_ms")),
        ("sent and received", "KB", lambda row: spread([row.figures["bytes"] / 1000])),
        ("capacity", "units consumed", lambda row: spread([row.figures["read_units"] + row.figures["write_units"]])),
    ]
    operations = (("append", "append a message"), ("read", f"read the latest {LATEST}"))
    cells = [(operation, title, *one) for operation, title in operations for one in shown]
    for one, (operation, title, what, unit, value) in zip(axes, cells, strict=True):
        draw_lines(one, f"{title}: {what}", "messages in the session", unit, _lines(rows, operation, value))
    name_below(figure, axes[0])
    item = _of(rows, OURS, operation="append", layout=SINGLE_ITEM)
    collection = _of(rows, OURS, operation="append", layout=ITEM_COLLECTION)
    theirs = _of(rows, UPSTREAM, operation="append", layout=SINGLE_ITEM)
    tenth = theirs[-1].spread("wall_ms").median / 10
    draw_target(axes[0], tenth, label="target of the single item, at the end:")
    full = _of(rows, UPSTREAM, operation="append until it fails")
    yield Plot(
        "session_length",
        f"At {item[-1].case['messages']:,} messages an append is"
        f" {number(ratio(theirs[-1], item[-1], 'wall_ms').median)} times as fast as langchain-community's; in an item"
        f" collection it takes {number(ratio(collection[-1], collection[0], 'wall_ms').median)} times as long at"
        f" {collection[-1].case['messages']:,} messages as at {collection[0].case['messages']}",
        "On DynamoDB Local, one at a time; solid lines for the single item, dashed ones for the item collection. An"
        f" append is {theirs[-1].figures['requests']:.0f} requests of langchain-community's, and"
        f" {item[-1].figures['requests']:.0f} of ours. langchain-community reads eventually consistently, at half the"
        " price of the others; a unit of writing costs five times a unit of reading."
        + "".join(
            f" A single item refuses more than {row.figures['messages']:,.0f} of these messages." for row in full
        ),
        figure,
    )


def _lines(rows: Rows, operation: str, value: Callable[[Row], Spread]) -> list[Line]:
    lines = []
    for variant in _VARIANTS:
        for layout in _LAYOUTS:
            if found := _of(rows, variant, operation=operation, layout=layout):
                xs = [float(row.case["messages"]) for row in found]
                values = [value(row) for row in found]
                lines.append(Line(variant, xs, values, f"{variant}, {layout}", layout == ITEM_COLLECTION))
    return lines


def _reading(rows: Rows) -> Iterator[Plot]:
    lengths = sorted({int(row.case["messages"]) for row in rows})
    figure, (*axes, share) = panels(len(lengths) + 1, height=3.3)
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
    shares = {
        (name, layout): ratio(_known(rows, name, layout=layout, **case), stock, "above_floor_ms")
        for layout in READING_LIMITS
        for name in ((OURS, AIOBOTO3) if layout in _LAYOUTS else (OURS,))
    }
    bars = [
        Bar(name, one, target=READING_LIMITS[layout] if name == OURS else None)
        for (name, layout), one in shares.items()
    ]
    draw_bars(share, f"CPU of {most:,}", "÷ stock, single item", bars)
    # The others have the names of the panels at the left.
    share.set_yticks([len(bars) - 1], ["in twos"])
    yield Plot(
        "reading",
        f"From the bytes to {most:,} messages takes {number(shares[OURS, SINGLE_ITEM].median)} of the stock way's CPU"
        f" in a single item, {number(shares[OURS, ITEM_COLLECTION].median)} in an item collection, and"
        f" {number(shares[OURS, reading.IN_TWOS].median)} where it has them in twos",
        "Left: the stages of one answer, each timed by itself; the stock way is json, botocore's walk, TypeDeserializer"
        " and messages_from_dict. Right: whole calls, less what bare aiohttp takes for the same bytes, with the targets"
        " of 0.20, 0.12 and, where two messages were appended together, 0.11.",
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
    ordered = [row for variant in _VARIANTS for row in _of(rows, variant)]
    figure, (cpu, wall) = panels(2, height=3.4)
    for one, name, title in ((cpu, "hold_cpu_ms", "CPU of the loop's thread"), (wall, "hold_ms", "time that passed")):
        bars = _labelled(ordered, name, "layout", "messages")
        draw_bars(one, title, "ms, the longest step of the loop while reading", bars, target=10, log=True)
    wall.set_yticklabels([])
    worst, others = (max(row.figures["worst_hold_cpu_ms"] for row in _of(rows, name)) for name in (OURS, AIOBOTO3))
    garbage = max(row.figures["worst_garbage_ms"] for row in _of(rows, OURS))
    yield Plot(
        "loop_holds",
        f"Reading up to {_of(rows, OURS)[-1].case['messages']:,} messages holds the event loop for {number(worst)} ms"
        f" of CPU at worst; a client called by hand holds it for {number(others)}",
        "While 100 other sessions are appended to, on DynamoDB Local. Time that passed is longer than CPU where other"
        " processes or threads had the CPU. CPU is without Python's collections of garbage, which held the loop for up"
        f" to {number(garbage)} ms. langchain-community works in threads: they spare the loop, and take the CPU"
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
    imported = {row.variant: row.spread("import_ms") for row in imports}
    targets = {
        OURS: 1.1 * imported[footprint.WITHOUT].median,
        footprint.STORE: 1.2 * imported[footprint.STORE_WITHOUT].median,
    }
    bars = [Bar(name, value, target=targets.get(name)) for name, value in imported.items()]
    draw_bars(importing, "importing", "ms of CPU", bars)
    slowest = max(row.spread("handle_us").median for row in handles if row.variant == OURS)
    largest = max(row.figures["bytes_new_session"] for row in handles if row.variant == OURS)
    theirs = next(row for row in handles if row.variant == UPSTREAM)
    yield Plot(
        "footprint",
        f"A handle takes {number(slowest)} µs and {number(largest)} bytes; langchain-community's"
        f" {number(theirs.spread('handle_us').median / 1000)} ms and"
        f" {number(theirs.figures['bytes_new_session'] / 1000)} KB",
        "Targets: 20 µs, 2 KB, and 1.1 times the import of what LangChain's class cannot do without (aioboto3, orjson"
        " and langchain-core's messages); 1.2 times that of what the store alone cannot do without, which does not"
        " import LangChain (aioboto3, orjson and pydantic).",
        figure,
    )


def _sync_methods(rows: Rows) -> Iterator[Plot]:
    figure, (append, read, added) = panels(3, height=2.7)
    order = [(variant, layout) for variant in (OURS, SYNC, UPSTREAM_SYNC) for layout in _LAYOUTS]
    for one, operation, title in ((append, "append", "append a message"), (read, "read", "read 20 messages")):
        found = [row for variant, layout in order for row in _of(rows, variant, **_sync_case(operation, layout))]
        bars = _labelled(found, "wall_ms")
        draw_bars(one, title, "ms", bars)
    read.set_yticklabels([])
    synchronous = _of(rows, SYNC, compared=SYNC_METHODS)
    bars = [
        Bar(row.variant, row.spread("added_ms"), row.wrong, f"{row.case['operation']}, {row.case['layout']}")
        for row in synchronous
    ]
    draw_bars(added, "added by sync methods", "ms", bars, target=0.15)
    yield Plot(
        "sync_methods",
        f"A synchronous method adds {_range([bar.value.median for bar in bars])} ms to its async twin",
        "On the stub, one at a time. The target is at most 0.15 ms.",
        figure,
    )


def _sync_case(operation: str, layout: str) -> dict[str, str]:
    return {"compared": SYNC_METHODS, "operation": operation, "layout": layout}


def _encryption(rows: Rows) -> Iterator[Plot]:
    if not _of(rows, ENCRYPTED):
        return
    operations = ("append", "read", "first append")
    figure, axes = panels(len(operations), height=2.4)
    for one, operation in zip(axes, operations, strict=True):
        case = {"compared": "encryption", "operation": operation}
        found = [row for variant in (OURS, ENCRYPTED) for row in _of(rows, variant, **case)]
        bars = _labelled(found, "cpu_ms")
        if operation == "read":
            plain = _known(rows, OURS, layout=ITEM_COLLECTION, **case).spread("cpu_ms").median
            limited = found.index(_known(rows, ENCRYPTED, layout=ITEM_COLLECTION, **case))
            bars[limited] = replace(bars[limited], target=3.5 * plain)
        draw_bars(one, operation, "ms of CPU", bars)
        if one is not axes[0]:
            one.set_yticklabels([])
    factors = {
        operation: [
            ratio(_known(rows, ENCRYPTED, **case), _known(rows, OURS, **case), "cpu_ms").median
            for layout in _LAYOUTS
            for case in ({"compared": "encryption", "operation": operation, "layout": layout},)
        ]
        for operation in ("append", "read")
    }
    yield Plot(
        "encryption",
        f"Encryption takes {_range(factors['append'])} times the CPU of an append, and {_range(factors['read'])} times"
        f" that of reading {SHORT} messages",
        "On DynamoDB Local, with moto as KMS. Data keys are in use, but for a session's first append, which gets one"
        " from KMS. The messages were appended in twos; the target is 3.5 times plain in the item collection.",
        figure,
    )


def _soak(rows: Rows) -> Iterator[Plot]:
    figure, axes = panels(3, 2, height=4.4)
    shown = [
        ("operations_per_second", "throughput", "appends and reads a second"),
        ("append_p50_ms", "appends: median", "ms"),
        ("append_p99_ms", "appends: slowest of 100", "ms (p99)"),
        ("memory_end_mb", "memory at the end", "MB"),
        ("grown_mb", "more memory than at the start", "MB"),
        ("threads", "threads at the end", "threads"),
    ]
    for position, (one, (name, title, unit)) in enumerate(zip(axes, shown, strict=True)):
        bars = _labelled(rows, name)
        draw_bars(one, title, unit, bars)
        if position % 3:
            one.set_yticklabels([])
    ours = _of(rows, OURS)[0]
    yield Plot(
        "soak",
        f"{ours.case['sessions']:,} sessions in use for {ours.case['seconds']} s:"
        f" {number(ours.figures['operations_per_second'])} operations a second, sockets: {ours.figures['sockets']:.0f},"
        f" threads: {ours.figures['threads']:.0f}; memory grows by {number(ours.figures['grown_mb'])} MB",
        "On DynamoDB Local, which shares the machine and limits the throughput; each session appends a message and"
        " reads its latest 20, again and again, without a pause. The start is after a tenth of that time, when all"
        " connections and handles exist.",
        figure,
    )


def _turns(rows: Rows) -> Iterator[Plot]:
    figure, (cpu,) = panels(1, height=2.2)
    put, one, two = (_known(rows, name) for name in (turns.PUT, turns.ONE, turns.TWO))
    goals = (None, 1.35 * put.spread("cpu_ms").median, 1.3 * one.spread("cpu_ms").median)
    bars = [
        Bar(row.variant, row.spread("cpu_ms"), row.wrong, target=goal)
        for row, goal in zip((put, one, two), goals, strict=True)
    ]
    draw_bars(cpu, "", "ms of CPU", bars)
    yield Plot(
        "turns",
        f"Appending two messages takes {number(ratio(two, one, 'cpu_ms').median)} of the CPU of appending one, which"
        f" takes {number(ratio(one, put, 'cpu_ms').median)} of that of the put alone",
        "In an item collection, one at a time on the stub. Two messages are one item and one request. The put alone"
        " sends a text. Targets: 1.35 of the put alone, and 1.3 of the append of one.",
        figure,
    )


def _tracing(rows: Rows) -> Iterator[Plot]:
    figure, (cpu,) = panels(1, height=2.2)
    unsampled = _known(rows, tracing.UNSAMPLED)
    added = number(unsampled.spread("added_us").median)
    draw_bars(cpu, "", "ms of CPU", [Bar(row.variant, row.spread("cpu_ms"), row.wrong) for row in rows])
    yield Plot(
        "tracing",
        f"A tracer provider that samples nothing adds {added} µs to an append",
        "In an item collection, one at a time on the stub: the span of the operation and that of its call. The target"
        " is 25 µs. Spans are recorded but not exported.",
        figure,
    )


def _events(rows: Rows) -> Iterator[Plot]:
    figure, (wall,) = panels(1, height=2.0)
    new, kept, sync = (
        _known(rows, way).spread("wall_ms").median for way in (events.NEW_LOOP, events.KEPT_LOOP, events.SYNC_METHODS)
    )
    draw_bars(wall, "", "ms", [Bar(row.variant, row.spread("wall_ms"), row.wrong) for row in rows])
    yield Plot(
        "events",
        f"A handler of events takes {number(new)} ms for a turn if each event has an event loop of its own,"
        f" {number(kept)} ms on a kept one, and {number(sync)} ms by the synchronous methods",
        "In an item collection on the stub, one at a time: the latest 20 messages are read, and two are appended.",
        figure,
    )


def _known(rows: Rows, variant: str, **case: str | int) -> Row:
    """Return a row that every run has."""
    row = find(rows, variant, **case)
    if row is None:
        raise LookupError(f"{variant} was not measured in {case}")
    return row


def _of(rows: Rows, variant: str, **case: str | int) -> list[Row]:
    """Return a variant's rows of all cases with these properties."""
    return [row for row in rows if row.variant == variant and case.items() <= row.case.items()]


def _found(rows: Rows, **case: str | int) -> dict[str, Row]:
    """Return the variants' rows of a case, in the order in which they are drawn."""
    return {variant: row for variant in _VARIANTS if (row := find(rows, variant, **case))}


def _bars(found: dict[str, Row], name: str) -> list[Bar]:
    return [Bar(variant, row.spread(name), row.wrong) for variant, row in found.items()]


def _labelled(rows: Rows, name: str, *properties: str) -> list[Bar]:
    """Return bars that are named by their variant and, of the case, by these properties, or by the layout."""
    return [
        Bar(row.variant, row.spread(name), row.wrong, ", ".join([row.variant, *_texts(row, properties or ("layout",))]))
        for row in rows
    ]


def _texts(row: Row, properties: Sequence[str]) -> list[str]:
    values = [row.case[one] for one in properties]
    return [f"{value:,}" if isinstance(value, int) else value for value in values]


def _range(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"


_DRAWN: tuple[tuple[str, Callable[[Rows], Iterator[Plot]]], ...] = (
    ("small_calls", _small_calls),
    ("small_calls", _put_peers),
    ("small_calls", _throughput),
    ("small_calls", _chats),
    ("small_calls", _crowd),
    ("small_calls", _one_session),
    ("session_length", _session_length),
    ("reading", _reading),
    ("loop_holds", _holds),
    ("footprint", _footprint),
    ("sync_and_encryption", _sync_methods),
    ("sync_and_encryption", _encryption),
    ("soak", _soak),
    ("turns", _turns),
    ("tracing", _tracing),
    ("events", _events),
)
