"""The check of a table before the first append: DynamoDB accepts writes that the reads would then not find."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable

from ..errors import AccessDeniedError, ServiceError, ThrottledError


class FirstAppend:
    """The checks that have passed. Each check is made once for the clients that own this object, not for each append.

    Appends that begin before the first response send the check too. This costs one request each, and needs no lock.
    """

    def __init__(self) -> None:
        self._passed: set[Hashable] = set()

    def record(self, what: Hashable) -> None:
        """Record a check as passed, because a different request has shown the same."""
        self._passed.add(what)

    async def check(self, what: Hashable, read: Callable[[], Awaitable[object]]) -> None:
        """Send a read that fails if the table does not fit the write. Send nothing if the check has passed before.

        After an AccessDeniedError the check counts as passed. After a ThrottledError or a ServiceError, which show
        nothing about the table, the next append checks again.

        Args:
            what: identifies the check and its table.
            read: sends the read.

        Raises:
            ChatHistoryError: any other error of the read.
        """
        if what in self._passed:
            return
        try:
            await read()
        except AccessDeniedError:
            # A writer may lack the permission to read.
            pass
        except (ThrottledError, ServiceError):
            return
        self._passed.add(what)
