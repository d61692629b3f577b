"""Messages as an HTML page: one file without scripts, which loads nothing, and in which all stored text is text."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape

from .messages import Part, Shown
from .output import in_one_line, readable, time_text, title_of

# Longer results, arguments and reasoning are folded.
_LONGEST_OPEN = 1200

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --faint: #5b6470; --line: #d8dee4; --block: #f5f7f9;
  --human: #116329; --ai: #0550ae; --tool: #7d4e00; --other: #6639ba; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1318; --ink: #e3e8ee; --faint: #9aa5b1; --line: #303842;
  --block: #181e25; --human: #57c26f; --ai: #6cb2ff; --tool: #e0a23c; --other: #c4a3ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 50rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; line-height: 1.3; margin: 2rem 0 .25rem; }
h2 { font-size: 1rem; margin: 0; display: inline; }
nav ul { padding-left: 1.2rem; }
a { color: var(--ai); }
article { border-top: 1px solid var(--line); padding: .9rem 0; --role: var(--other); }
article.human, article.user { --role: var(--human); }
article.ai, article.assistant { --role: var(--ai); }
article.tool { --role: var(--tool); }
article h2 { color: var(--role); }
.faint, time { color: var(--faint); font-size: .85rem; margin: 0 0 .5rem; }
time { margin-left: .6rem; }
.text { white-space: pre-wrap; margin: .4rem 0; }
.label { color: var(--faint); font-weight: 600; margin: .5rem 0 .2rem; }
pre { white-space: pre-wrap; margin: .2rem 0 .6rem; padding: .6rem .75rem; background: var(--block);
  border-radius: .4rem; font: .875rem/1.5 ui-monospace, monospace; }
.reasoning { color: var(--faint); border-left: 3px solid var(--line); padding-left: .75rem; }
.attachment { display: inline-block; border: 1px dashed var(--line); border-radius: .4rem; padding: .3rem .6rem;
  margin: .3rem .3rem .3rem 0; color: var(--faint); }
summary { cursor: pointer; }
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
# Nothing is loaded and no script runs, even if a stored text were taken for markup.
_POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'"

SESSION_END = "</section>\n"
END = "</body>\n</html>\n"


def page_head(titles: Sequence[str]) -> str:
    """Return the beginning of the page, with links to the sessions if there are several."""
    title = titles[0] if len(titles) == 1 else f"{len(titles):,} sessions"
    links = "".join(f'<li><a href="#session-{at}">{escape(title_of(one))}</a></li>\n' for at, one in enumerate(titles))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escape(title_of(title))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + (f"<nav>\n<ul>\n{links}</ul>\n</nav>\n" if len(titles) > 1 else "")
    )


def session_head(number: int, title: str, session: str, format_name: str) -> str:
    """Return the beginning of a session's section."""
    named = "" if title == session else f"{_line(session)}, "
    return (
        f'<section id="session-{number}">\n<h1 dir="auto">{escape(title_of(title))}</h1>\n'
        f'<p class="faint">{named}{_line(format_name)}</p>\n'
    )


def message(one: Shown) -> str:
    """Return a message."""
    time = f"<time>{time_text(one.time)}</time>" if one.time else ""
    parts = "".join(_part(part) for part in one.parts)
    anchor = f' id="{_line(one.id)}"' if one.id else ""
    speaker = escape(title_of(one.speaker))
    return f'<article class="{_line(one.role)}"{anchor}>\n<h2>{speaker}</h2>{time}\n{parts}</article>\n'


def _part(part: Part) -> str:
    text = escape(readable(part.text))
    if part.kind == "text":
        return f'<div class="text" dir="auto">{text}</div>\n'
    if part.kind == "attachment":
        return f'<div class="attachment">{_line(part.label)}</div>\n'
    if part.kind == "reasoning":
        body = f'<div class="text reasoning" dir="auto">{text}</div>'
    else:
        body = f'<pre dir="auto">{text}</pre>' if text else ""
    label = _line(part.label or part.kind)
    if len(part.text) <= _LONGEST_OPEN:
        return f'<div class="label">{label}</div>\n{body}\n'
    return f'<details><summary class="label">{label}</summary>\n{body}\n</details>\n'


def _line(text: str) -> str:
    return escape(in_one_line(text))
