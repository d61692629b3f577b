"""What an encrypted value is bound to, pure: the first line of what is encrypted.

The encryption context is one for all values of a session, because each context needs a data key of its own from KMS.
It binds a value to its session, and not to its place in the session. The plaintext does: it is one line of JSON, a
newline, and the body::

    {"value":"record","sort_key":"m#…","encoding":"zlib","format":"json","count":2,"positions":"0,2"}

- value: "record", "message" for one of a single item, "title", "metadata", or "migration" for the digests of a
  migration.
- sort_key: the sort key of the value's item, of the first one where a record has several. A single item has none.
- encoding: "zlib" where the body is zlib data. Without it the body is text in UTF-8, or the digests.
- format: the name of the record's format, left out for LangChain's messages.
- count, positions: how many values the record has, left out for one; and their positions, left out where they are the
  first ones.

The line has no spaces, the names come in this order, and what does not apply is left out. So a reader compares bytes:
it knows which line belongs into the place that it reads from, and accepts no other.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

import orjson


class Binding(NamedTuple):
    """What a value is, where it is stored, and how its body is encoded."""

    kind: Literal["record", "message", "title", "metadata", "migration"]
    sort_key: str | None = None
    encoding: str = ""
    format: str = ""
    length: int = 1
    positions: str = ""

    def name(self, message: int | str) -> str:
        """Return what an error calls the value, a record by its id, a message by its position in the session."""
        if self.kind not in ("record", "message"):
            return self.kind
        return f"{'message' if self.length == 1 else 'record'} {message}"


# A body, opened or encrypted, with its binding.
Bound: TypeAlias = "tuple[Binding, bytes]"


class BoundElsewhere(Exception):
    """A value was encrypted to be something else, or for another place. The text holds no content."""


def bind(binding: Binding, body: bytes) -> bytes:
    """Return the plaintext of a value."""
    return _line(binding) + body


def body_of(binding: Binding, plaintext: bytes) -> bytes:
    """Return the body of a value that is read where this binding belongs.

    Raises:
        BoundElsewhere: the value has another binding, or none.
    """
    line = _line(binding)
    if plaintext.startswith(line):
        return plaintext[len(line) :]
    found = _FORM.match(plaintext)
    bound_as = "without a binding" if found is None else f"as {found[1].decode()}"
    raise BoundElsewhere(f"was encrypted {bound_as}, and is stored where {line.decode().rstrip()} belongs")


def _line(binding: Binding) -> bytes:
    fields: dict[str, str | int] = {"value": binding.kind}
    if binding.sort_key is not None:
        fields["sort_key"] = binding.sort_key
    if binding.encoding:
        fields["encoding"] = binding.encoding
    if binding.format:
        fields["format"] = binding.format
    if binding.length != 1:
        fields["count"] = binding.length
    if binding.positions:
        fields["positions"] = binding.positions
    return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


# Only a line that we may have written is shown in an error: any other text may be content.
_FORM = re.compile(
    rb'(\{"value":"(?:record|message|title|metadata|migration)"'
    rb'(?:,"sort_key":"(?:m#[0-9a-f-]{36}|session|migration)")?'
    rb'(?:,"encoding":"zlib")?'
    rb'(?:,"format":"[a-z0-9_.-]{1,64}")?'
    rb'(?:,"count":[0-9]{1,8})?'
    rb'(?:,"positions":"[0-9,-]+")?\})\n'
)
