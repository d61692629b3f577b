"""The arguments of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from .stub import Stub
from .variants import Target


@dataclass
class Setup:
    """The servers to measure on, and how long to measure.

    Attributes:
        stub: the server with canned answers.
        on_stub: the same, as a target.
        engine: DynamoDB Local with its tables, None where there is none.
        quick: whether a smoke test is all that is wanted.
        soak_seconds: how long many sessions are kept busy.
        skipped: lines that say what was left out, and why.
    """

    stub: Stub
    on_stub: Target
    engine: Target | None
    quick: bool
    soak_seconds: float
    skipped: list[str] = field(default_factory=list)

    def rounds(self, number: int) -> int:
        """Return how many rounds to run instead of so many."""
        return max(1, number // 10) if self.quick else number

    def needs_engine(self, what: str) -> Target | None:
        """Return the engine; where there is none, note what is left out."""
        if self.engine is None:
            self.skipped.append(f"{what}: no DynamoDB Local")
        return self.engine
