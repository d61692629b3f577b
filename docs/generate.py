"""Writes the pages of the documentation that say what the code says: ``python docs/generate.py``.

They are the settings with their defaults, the command line, and the drawing of the modules. A test fails where one is
out of date.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import click

import chathistory_async
from chathistory_async import ChatHistoryStore, DynamoDBChatMessageHistory
from chathistory_async.cli.commands import chathistory

DOCS = Path(__file__).parent
PACKAGE = Path(chathistory_async.__file__).parent

SETTINGS = """\
# Settings

`ChatHistoryStore` takes its settings by name. `DynamoDBChatMessageHistory` has the parameters of langchain-community's
class in the same order, and the newer ones by name. A dash means that a class does not have the parameter. The
[store](store.md) and the [history](history.md) say more about each.

"""
COMMANDS = """\
# The command line

`pip install ".[cli]"` installs `chathistory`. Its [guide](../guides/command-line.md) shows how the
commands work together. `chathistory COMMAND --help` says the same as this page.

"""
TABLE_OPTIONS = """\
## Options of the table

Most commands have these options. Each can be set by a variable of the environment instead.

"""


def pages() -> dict[str, str]:
    """Return the text of each generated file, by its path in ``docs``."""
    return {
        "reference/settings.md": SETTINGS + "\n".join(settings()) + "\n",
        "reference/command-line.md": COMMANDS + "\n".join(commands()) + "\n" + TABLE_OPTIONS + table_options(),
        "how-it-works/modules.svg": "\n".join(drawing()) + "\n",
    }


def settings() -> Iterator[str]:
    store, history = (inspect.signature(kind).parameters for kind in (ChatHistoryStore, DynamoDBChatMessageHistory))
    of_store = first_sentences(ChatHistoryStore)
    # The store refers to the history in some.
    meaning = (
        of_store
        | first_sentences(DynamoDBChatMessageHistory)
        | {name: text for name, text in of_store.items() if "DynamoDBChatMessageHistory" not in text}
    )
    yield "| setting | store | history | meaning |\n|---|---|---|---|"
    for name in [*store, *(name for name in history if name not in store)]:
        defaults = [default_of(parameters.get(name)) for parameters in (store, history)]
        yield f"| `{name}` | {' | '.join(defaults)} | {meaning[name]} |"


def default_of(parameter: inspect.Parameter | None) -> str:
    if parameter is None:
        return "—"
    return "required" if parameter.default is parameter.empty else f"`{parameter.default!r}`"


def first_sentences(kind: type) -> dict[str, str]:
    """Return the first sentence of each parameter's description in a class's docstring."""
    section = re.split(r"\n\n(?=\w+:\n)", inspect.getdoc(kind) or "")
    [arguments] = [part for part in section if part.startswith("Args:\n")]
    described = re.findall(r"^    (\w+): (.*?)(?=^    \w|\Z)", arguments, re.MULTILINE | re.DOTALL)
    return {name: sentence(text) for name, text in described}


def sentence(text: str) -> str:
    """Return a description's first sentence, in Markdown, for a cell of a table."""
    joined = " ".join(text.split()).replace("``", "`").replace("|", "\\|")
    first = re.split(r"(?<=\.) (?=[A-Z`])|; as for", joined)[0].rstrip(".")
    return f"{first[0].upper()}{first[1:]}."


def commands() -> Iterator[str]:
    for name, command in chathistory.commands.items():
        usage = ["chathistory", name, *(["[OPTIONS]"] if options_of(command) else []), *arguments_of(command)]
        yield f"## {name}\n\n```text\n{' '.join(usage)}\n```\n"
        yield f"{inspect.cleandoc(as_text(command.help or ''))}\n"
        own = [part for part in options_of(command) if not part.envvar]
        if own:
            yield f"{table_of(own)}\n"


def arguments_of(command: click.Command) -> Iterator[str]:
    for part in command.params:
        if isinstance(part, click.Argument):
            name = part.metavar or str(part.name).upper()
            yield name if part.required else f"[{name}]"


def as_text(help_text: str) -> str:
    """Return a command's help as Markdown shows it as text."""
    return re.sub(r"(`[^`]*`)|(\{.*?\}|(?<!\w)--[\w-]+|CHATHISTORY_\w+)", as_code, help_text)


def as_code(found: re.Match[str]) -> str:
    return found[1] or f"`{found[2]}`"


def options_of(command: click.Command) -> list[click.Option]:
    return [part for part in command.params if isinstance(part, click.Option)]


def table_of(options: list[click.Option]) -> str:
    rows = [f"| {', '.join(f'`{name}`' for name in option.opts)} | {meaning_of(option)} |" for option in options]
    return "\n".join(["| option | meaning |\n|---|---|", *rows])


def meaning_of(option: click.Option) -> str:
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    texts = [as_text(option.help or "")]
    if choices:
        texts.append(f"One of {', '.join(f'`{choice}`' for choice in choices)}.")
    if option.show_default:
        texts.append(f"Default: `{option.default}`.")
    return " ".join(texts)


def table_options() -> str:
    shared = [option for option in options_of(chathistory.commands["show"]) if option.envvar]
    rows = [f"| `{option.opts[0]}` | `{option.envvar}` | {meaning_of(option)} |" for option in shared]
    return "\n".join(["| option | variable | meaning |\n|---|---|---|", *rows]) + "\n"


# The drawing: a box for each folder and each module beside them, and a line to what it imports and nothing between
# them imports. In pixels.
WIDTH, MARGIN, BOX_WIDTH, LINE_HEIGHT, GAP, ROW_GAP = 860, 10, 158, 13, 10, 44
STYLE = """\
<style>
text { font: 10.5px system-ui, sans-serif; fill: #37415c }
.name { font-weight: 600; fill: #1c2333 }
rect { fill: #eef1fa; stroke: #9aa5c4 }
path { fill: none; stroke: #8d97b5; stroke-width: 1.1 }
</style>"""


def imports() -> dict[str, dict[str, int]]:
    """Return how often each folder or module imports from each other one."""
    found: dict[str, dict[str, int]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).with_suffix("").parts
        if place == ("__init__",):
            continue
        counts = found.setdefault(place[0], defaultdict(int))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                imported = [*place[: -node.level], *(node.module or "").split(".")][0]
                if imported not in ("", place[0]):
                    counts[imported] += 1
    return found


def downward(found: dict[str, dict[str, int]]) -> dict[str, set[str]]:
    """Return what each imports, without the rarer direction between two folders that import modules of each other."""
    return {
        name: {other for other, count in counts.items() if found[other].get(name, 0) < count}
        for name, counts in found.items()
    }


def below(graph: dict[str, set[str]], name: str) -> set[str]:
    """Return all that one imports, directly or not."""
    return graph[name].union(*(below(graph, other) for other in graph[name]))


def depth(graph: dict[str, set[str]], name: str) -> int:
    return 1 + max((depth(graph, other) for other in graph[name]), default=-1)


def rows_of(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the names from the top down, of which each row imports from the rows below it."""
    depths = {name: depth(graph, name) for name in graph}
    rows = [[name for name in graph if depths[name] == level] for level in range(max(depths.values()), -1, -1)]
    most = (WIDTH - 2 * MARGIN + GAP) // (BOX_WIDTH + GAP)
    return [row[start : start + most] for row in rows for start in range(0, len(row), most)]


def lines_of(name: str) -> list[str]:
    """Return the text in a box: the name of a folder and of its modules, or of a module."""
    folder = PACKAGE / name
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
    lines = [f"{name}/" if folder.is_dir() else f"{name}.py"]
    for module in modules:
        if len(lines) > 1 and len(lines[-1]) + len(module) < 24:
            lines[-1] += f", {module}"
        else:
            lines.append(module)
    return lines


def drawing() -> Iterator[str]:
    graph = downward(imports())
    boxes: dict[str, tuple[float, float, float]] = {}
    top = float(MARGIN)
    for row in rows_of(graph):
        heights = [len(lines_of(name)) * LINE_HEIGHT + 10.0 for name in row]
        left = (WIDTH - len(row) * BOX_WIDTH - (len(row) - 1) * GAP) / 2
        for number, (name, height) in enumerate(zip(row, heights)):  # noqa: B905
            boxes[name] = left + number * (BOX_WIDTH + GAP), top, height
        top += max(heights) + ROW_GAP
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top - ROW_GAP + MARGIN:g}">'
    yield STYLE
    for name, others in graph.items():
        for other in sorted(others.difference(*(below(graph, between) for between in others))):
            yield line(boxes[name], boxes[other])
    for name, (x, y, height) in boxes.items():
        yield f'<rect x="{x:g}" y="{y:g}" width="{BOX_WIDTH}" height="{height:g}" rx="5"/>'
        for number, text in enumerate(lines_of(name)):
            kind = ' class="name"' if number == 0 else ""
            yield f'<text x="{x + 7:g}" y="{y + 16 + number * LINE_HEIGHT:g}"{kind}>{text}</text>'
    yield "</svg>"


def line(upper: tuple[float, float, float], lower: tuple[float, float, float]) -> str:
    left, top, height = upper
    start, end = left + BOX_WIDTH / 2, lower[0] + BOX_WIDTH / 2
    bend = (top + height + lower[1]) / 2
    return f'<path d="M{start:g} {top + height:g}C{start:g} {bend:g} {end:g} {bend:g} {end:g} {lower[1]:g}"/>'


if __name__ == "__main__":
    for page, text in pages().items():
        (DOCS / page).write_text(text)
