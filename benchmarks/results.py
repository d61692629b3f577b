"""Everything that a run found out, as one JSON file."""

from __future__ import annotations

import importlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .measure import Row, as_json
from .targets import Goal, goals

PACKAGES = (
    *("chathistory-async", "aioboto3", "aiobotocore", "botocore", "aiohttp", "orjson", "pydantic", "langchain-core"),
    *("langchain-community", "aiodynamo", "dynamoxy", "pydynox", "aws-sdk-dynamodb"),
)


@dataclass
class Results:
    """The results of a run.

    Attributes:
        rows: what each benchmark measured, by its name.
        skipped: lines that say what was left out, and why.
        quick: whether it was a smoke test.
        date: when it ended, in UTC.
        versions: of what was measured, by name.
        machine: where it ran.
    """

    rows: Mapping[str, Sequence[Row]]
    skipped: Sequence[str]
    quick: bool
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"))
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    machine: str = field(default_factory=lambda: _machine())

    def goals(self) -> list[Goal]:
        """Return the targets, with what was measured of them."""
        return goals(self.rows)

    def wrong(self) -> list[str]:
        """Return a line for each variant that lost, repeated or changed messages."""
        return [
            f"{row.variant}, {', '.join(str(part) for part in row.case.values())}: {row.wrong}"
            for rows in self.rows.values()
            for row in rows
            if row.wrong
        ]


def write(results: Results, directory: Path) -> None:
    """Write the JSON file."""
    benchmarks = {name: as_json(rows, _baseline(name)) for name, rows in results.rows.items()}
    data: dict[str, Any] = {
        "date": results.date,
        "quick": results.quick,
        "machine": results.machine,
        "versions": results.versions,
        "skipped": results.skipped,
        "wrong": results.wrong(),
        "targets": [goal.as_json() for goal in results.goals()],
        "benchmarks": benchmarks,
    }
    (directory / "results.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _baseline(benchmark: str) -> str:
    baseline: str = importlib.import_module(f"{__package__}.{benchmark}").BASELINE
    return baseline


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # A run of some benchmarks needs not all of them.
            continue
    return found


def _machine() -> str:
    return f"{_cpu_model()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
