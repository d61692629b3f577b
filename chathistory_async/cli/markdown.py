"""Messages as Markdown."""

from __future__ import annotations

import re

from .messages import Part, Shown
from .output import readable, time_text, title_of

_FENCE = re.compile(" {0,3}(```|~~~)")
# Code within a line, or what begins HTML or an image, which a viewer may run or load.
_CODE_OR_LOADING = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)|<|!\[")
# Characters that Markdown takes for markup within a line.
_MARKUP = re.compile(r"([\\`*_{}\[\]<>()#+!|~-])")


def heading(title: str) -> str:
    """Return the heading of a session."""
    return f"# {_escaped(title)}\n\n"


def message(one: Shown) -> str:
    """Return a message: its role and time as a heading, and its parts.

    Texts are quoted, so that no line of a message can be taken for the heading of another one.
    """
    time = time_text(one.time)
    head = f"## {_escaped(one.speaker)}{f' · {time}' if time else ''}\n\n"
    return head + "".join(_part(part) for part in one.parts)


def _part(part: Part) -> str:
    lines = f"**{_escaped(part.label)}**\n\n" if part.label else ""
    if not part.text:
        return lines
    text = readable(part.text)
    if part.kind in ("text", "reasoning"):
        return f"{lines}{_quoted(text)}\n\n"
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return f"{lines}{fence}\n{text}\n{fence}\n\n"


def _quoted(text: str) -> str:
    """Return a text as a quotation, in which HTML and images are escaped outside of code."""
    lines, in_code = list[str](), False
    for line in text.split("\n"):
        in_code = in_code != bool(_FENCE.match(line))
        lines.append(f"> {line if in_code else _CODE_OR_LOADING.sub(_escaped_if_loading, line)}".rstrip())
    return "\n".join(lines)


def _escaped_if_loading(found: re.Match[str]) -> str:
    return {"<": "&lt;", "![": r"!\["}.get(found[0], found[0])


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", title_of(text))
