"""Runs the examples of a page of the documentation."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from engines import ROOT


async def of_page(page: str, names: dict[str, Any], replaced: Mapping[str, str]) -> None:
    """Run a page's Python, which may await at its top level, as in a notebook.

    Args:
        page: the name of its file.
        names: the names that the Python finds, and afterwards also those that it has made.
        replaced: texts in it, and what to put there instead.
    """
    text = (ROOT / "docs" / page).read_text()
    for old, new in replaced.items():
        text = text.replace(old, new)
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    await eval(compile(program, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
