"""The command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from .commands import chathistory
    except ModuleNotFoundError as missing:
        if missing.name not in ("click", "rich"):
            raise
        sys.exit(f"The command line needs {missing.name}: pip install 'chathistory-async[cli]'")
    # As `python -m chathistory_async.cli` it would be named after the file.
    chathistory(prog_name="chathistory")
