"""The binding of an encrypted value to its place: the first line of the plaintext. Pure: no I/O.

All values of a session have the same encryption context, because each encryption context needs its own data key from
KMS. The encryption context binds a value to its session, but not to its place in the session. The plaintext binds the
value to its place. The plaintext is one line of JSON, a newline, and the body::

    {"value":"record","sort_key":"m#…","encoding":"zlib","format":"json","count":2,"positions":"0,2"}

- value: "record", "message" (a message in a single item), "title", "metadata", or "migration" (the digests of a
  migration).
- sort_key: the sort key of the value's item. If a record has several items, the sort key of the first one. A message in
  a single item has no sort_key.
- encoding: "zlib" if the body is zlib data. Without encoding the body is UTF-8 text, or the digests.
- format: the name of the record's format, left out for LangChain's messages.
- count: the number of values in the record, left out if it is one.
- positions: the positions of the record's values, left out if they are the first ones.

The line has no spaces, its names have this order, and names that do not apply are left out. So a reader can compare
bytes: it knows the line that belongs to the place that it reads from, and refuses a plaintext with any other line.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, TypeAlias

import orjson


class Binding(NamedTuple):
    """The kind of a value, its place in the session, and the encoding of its body."""

    kind: Literal["record", "message", "title", "metadata", "migration"]
    sort_key: str | None = None
    encoding: str = ""
    format: str = ""
    length: int = 1
    positions: str = ""

    def name(self, message: int | str) -> str:
        """Return the value's name in errors.

        Args:
            message: the id of a record or message, or the position of a single item's message.
        """
        if self.kind not in ("record", "message"):
            return self.kind
        return f"{'message' if self.length == 1 else 'record'} {message}"


# A body, decrypted or encrypted, with its binding.
Bound: TypeAlias = "tuple[Binding, bytes]"


class BoundElsewhere(Exception):
    """A value was encrypted as a different kind of value, or for a different place. The error text holds no content."""


def bind(binding: Binding, body: bytes) -> bytes:
    """Return the plaintext of a value: the line of its binding, and its body."""
    return _line(binding) + body


def body_of(binding: Binding, plaintext: bytes) -> bytes:
    """Return the body in a plaintext.

    Args:
        binding: the binding that belongs to the place that the value was read from.
        plaintext: the decrypted value.

    Raises:
        BoundElsewhere: the plaintext has a different binding, or none.
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


# An error shows only a line that this library may have written: any other text may be content.
_FORM = re.compile(
    rb'(\{"value":"(?:record|message|title|metadata|migration)"'
    rb'(?:,"sort_key":"(?:m#[0-9a-f-]{36}|session|migration)")?'
    rb'(?:,"encoding":"zlib")?'
    rb'(?:,"format":"[a-z0-9_.-]{1,64}")?'
    rb'(?:,"count":[0-9]{1,8})?'
    rb'(?:,"positions":"[0-9,-]+")?\})\n'
)
