"""Messages as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .messages import Part, Shown
from .output import readable, time_text, title_of

# The beginning of a block of code: its indentation, and its fence.
_FENCE = re.compile("( {0,3})(`{3,}(?=[^`]*$)|~{3,})")
# Within a line: escaped characters, code, fences, and what begins HTML or an image, which a viewer may run or load.
# Code with a | is none in a table.
_INLINE = re.compile(r"\\<|\\`+|\\.|(?P<code>(`+)(?!`)[^|]*?(?<!`)\2(?!`))|`+|~{3,}|<|!\[")
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
    return "\n".join(f"> {line}".rstrip() for line in _without_loading(text))


def _without_loading(text: str) -> Iterator[str]:
    """Yield the lines of a text, without what a viewer may run or load outside of code.

    No viewer may see code end earlier, or begin later, than this function does. So fences and backticks that viewers
    read differently are escaped, and a block of code ends where the list around it may end.
    """
    indentation, fence = "", ""
    for line in text.split("\n"):
        if fence and line.strip() and not line.startswith(indentation):
            yield indentation + fence
            fence = ""
        if fence:
            ends = line.strip().startswith(fence) and not line.strip().strip(fence[0])
            yield indentation + fence if ends else line
            fence = "" if ends else fence
        elif opening := _FENCE.match(line):
            indentation, fence = opening.groups()
            yield line
        else:
            yield _INLINE.sub(_escaped_if_loading, line)


def _escaped_if_loading(found: re.Match[str]) -> str:
    text = found[0]
    if found["code"]:
        return text
    if text[-1] == "`":
        return r"\`" * text.count("`")
    if text[0] == "~":
        return f"\\{text}"
    return {"<": "&lt;", r"\<": "&lt;", "![": r"!\["}.get(text, text)


def _escaped(text: str) -> str:
    return _MARKUP.sub(r"\\\1", title_of(text))
