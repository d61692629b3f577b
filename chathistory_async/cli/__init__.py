"""The command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .interruption import end_interrupted


def main() -> None:
    """Run the command line."""
    _open_missing_streams()
    try:
        _run()
    except KeyboardInterrupt:
        # It came during the imports, which take a second. The commands end in the same way.
        end_interrupted()


def _run() -> None:
    try:
        from .commands import chathistory
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit(f"The command line needs {missing.name}: pip install 'chathistory-async[cli]'")
    # As `python -m chathistory_async.cli` it would be named after the file.
    chathistory(prog_name="chathistory")


def _open_missing_streams() -> None:
    """Open a stream for each standard stream that the caller has closed, or a connection would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  # it stays open
