"""The outcomes of moving a session from a single item into an item collection. Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .._codec.keys import KeyValue

Outcome: TypeAlias = Literal[
    "copied", "moved", "kept", "unchanged", "would_copy", "expired", "absent", "deleted", "diverged", "failed"
]


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """The result of moving one session.

    Attributes:
        session_id: the value of the session's partition key.
        outcome: one of these:

            - "copied": messages were copied; "unchanged": all messages had been copied before.
            - "moved": all messages were copied and compared, by this run or earlier ones, and the source was deleted.
            - "kept": the source should have been deleted, but was not. Either all messages were copied and compared,
              but the source has attributes that this library does not know. ``error`` names them. Or the session was
              copied before and deleted in the target since, so nothing is left to compare the source with.
            - "would_copy": a dry run found messages to copy.
            - "absent": the source holds no messages; "expired": it has expired.
            - "deleted": the session was copied before, and deleted in the target since. Nothing more is copied.
            - "diverged": the source does not continue the messages that were copied from it, so it is not known which
              of its messages are new. No more messages were copied, nothing was deleted. ``error`` gives the remedy.
            - "failed": ``error`` gives the reason. The source was not deleted.
        copied: how many messages this run has copied, or would copy if it is a dry run.
        total: how many messages all runs have copied, including messages that were removed since.
        error: why the session was kept, diverged or failed; None for other outcomes. It holds no message content.
    """

    session_id: KeyValue
    outcome: Outcome
    copied: int
    total: int
    error: str | None = None


class ConcurrentChange(Exception):
    """Another process has changed the checkpoint or the source since it was read."""


class Ended(Exception):
    """The migration of a session has ended, with an outcome and possibly a reason."""

    def __init__(self, outcome: Outcome, reason: str | None = None) -> None:
        super().__init__()
        self.outcome = outcome
        self.reason = reason
