"""Builds the session of a handle: its layout, format, encryption and index."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, Union

from ._aws.clients import Clients
from ._codec.attribute_values import AttributeValue
from ._codec.format import Format
from ._codec.keys import KeyValue, encode_key, join_key
from ._codec.plain import Default
from ._item_collection.bodies import Bodies
from ._item_collection.layout import ItemCollection
from ._item_collection.reader import Reader
from ._item_collection.session import ItemCollectionSession
from ._item_collection.writer import Writer
from ._session import Access, Session
from ._session_index.counting import CountingWriter
from ._session_index.keyed import KeyedSession
from ._session_index.requests import SessionItem
from ._session_index.session import IndexedSession
from ._session_index.value_ids import Subsession, subsession_key
from ._single_item.layout import SingleItem
from .errors import SessionRef

if TYPE_CHECKING:
    from ._encryption.message_cipher import MessageCipher

Layout: TypeAlias = Union[SingleItem, ItemCollection]
AnyLayout = TypeVar("AnyLayout", bound=Layout)
Key: TypeAlias = Mapping[str, Union[KeyValue, "tuple[str, ...]"]]
# A day: clients and queues retry for that long, and Stripe keeps an idempotency key for that long.
IDEMPOTENCY_SECONDS = 24 * 3600


class Indexed(NamedTuple):
    """Marks a session as listed in the session index.

    Attributes:
        owner: the session's owner in the index, or None for no owner.
        listed: whether the table must have the index. A session that is not listed has an item, like one that is, and
            no owner.
        place: the session's place in its parent if it is a subsession, or None.
    """

    owner: str | None
    listed: bool = True
    place: Subsession | None = None


@dataclass(frozen=True)
class Settings:
    """The settings that the handles of a store share. A handle without a store has its own.

    Attributes:
        clients: the clients to send requests with.
        kms_key_id: the KMS key to encrypt with, or None to store messages unencrypted.
        consistent_read: whether reads are strongly consistent. If not, they are eventually consistent.
        default: the function that converts a value without a plain form, or None.
        idempotency_seconds: for how many seconds an idempotency key keeps its batch from being stored again.
        key_parts: the key attributes whose values must be tuples of ids, each with the number of ids.
    """

    clients: Clients
    kms_key_id: str | None
    consistent_read: bool
    default: Default | None
    idempotency_seconds: int = IDEMPOTENCY_SECONDS
    key_parts: Mapping[str, int] | None = None

    def access(self, layout: Layout, key: Mapping[str, KeyValue]) -> Access:
        """Return a session's access to its table. The key is not copied, so the caller must not change it any more."""
        ref = SessionRef(layout.table_name, key)
        cipher = cipher_type(self.kms_key_id)
        return Access(
            self.clients,
            ref,
            None if cipher is None else cipher(self.kms_key_id or "", layout.key, self.clients, ref),
            consistent_read=self.consistent_read,
            default=self.default,
        )

    def observed_layout(self, layout: Layout) -> str | None:
        """Return how spans name a layout, or None if the handles are not observed."""
        if not self.clients.options.tracing:
            return None
        return "single_item" if isinstance(layout, SingleItem) else "item_collection"


class Opened(NamedTuple):
    """A session, its summary in the session index, and what opens it with ids for its values; None without an index."""

    session: Session[Any]
    indexed: IndexedSession | None = None
    keyed: Callable[[], KeyedSession] | None = None


class SessionSpec(NamedTuple):
    """Everything that is needed to open a handle's session.

    A copy or a pickle of the handle keeps it, and opens the session again.

    A NamedTuple, because a frozen dataclass takes a microsecond longer to make.

    Attributes:
        settings: the settings of the session's handle.
        layout: the layout in which the session is stored.
        key: the session's whole key, which is not copied.
        format: the format of the session's values. A single item always has LangChain's messages.
        in_index: the session's owner in the session index, or None without an index.
    """

    settings: Settings
    layout: Layout
    key: Mapping[str, KeyValue]
    format: Format
    in_index: Indexed | None

    def other(self, key: Key) -> SessionSpec:
        """Return the spec of the session with this key, with the same settings, format and owner.

        Raises:
            ValueError: ``key`` is not the tuple that the store's ``key_parts`` requires.
        """
        whole_key = join_key(key, self.settings.key_parts)
        return self._replace(layout=layout_with(self.layout, whole_key), key=whole_key)

    def open(self) -> Opened:
        """Build the session. No I/O. Each call builds a new one."""
        layout, settings = self.layout, self.settings
        access, idempotency_seconds = settings.access(layout, self.key), settings.idempotency_seconds
        if isinstance(layout, SingleItem):
            # A single item has one format only, LangChain's messages, so the format is not used.
            from ._single_item.session import SingleItemSession

            return Opened(SingleItemSession(layout, access))
        # Bodies[Any](...) would take a microsecond longer.
        bodies: Bodies[Any] = Bodies(access, self.format)
        reader = Reader(layout, access, bodies.format_name)
        plain = Writer(layout, access, reader)
        if self.in_index is None:
            return Opened(ItemCollectionSession(layout, access, bodies, reader, plain, idempotency_seconds))
        summary = SessionItem(layout, self.in_index.owner, bodies.format_name)
        counting = CountingWriter(layout, access, reader, plain, summary, listed=self.in_index.listed)
        session = ItemCollectionSession(layout, access, bodies, reader, counting, idempotency_seconds)
        place, subsession = self.in_index.place, self._indexed_subsession
        indexed = IndexedSession(layout, access, session, reader, counting, summary, subsession, place)

        def keyed() -> KeyedSession:
            return KeyedSession(layout, session=session, reader=reader, writer=counting, indexed=indexed, place=place)

        return Opened(session, indexed, keyed)

    def subsession(self, name: str) -> SessionSpec:
        """Return the spec of a subsession. No owner lists it: it belongs to its parent."""
        layout = self.layout
        assert isinstance(layout, ItemCollection)  # noqa: S101  # a single item is not in the index
        ((attribute, parent),) = self.key.items()
        key: Mapping[str, KeyValue] = {attribute: subsession_key(str(parent), name)}
        in_index = Indexed(None, listed=False, place=Subsession(layout, name))
        return self._replace(layout=layout_with(layout, key), key=key, in_index=in_index)

    def _indexed_subsession(self, name: str) -> IndexedSession:
        indexed = self.subsession(name).open().indexed
        assert indexed is not None  # noqa: S101  # its spec says so
        return indexed


def cipher_type(kms_key_id: str | None) -> type[MessageCipher] | None:
    """Return the class that encrypts messages, or None if ``kms_key_id`` is None.

    The class is imported only here: it needs the AWS Encryption SDK, which is an extra and slow to import.

    Raises:
        TypeError: ``kms_key_id`` is not text.
        ValueError: ``kms_key_id`` is empty. An environment variable that is not set must not switch encryption off.
        ModuleNotFoundError: the extra ``kms`` is not installed.
    """
    if kms_key_id is None:
        return None
    if not isinstance(kms_key_id, str):
        raise TypeError(f"kms_key_id must be a str or None, not {type(kms_key_id).__name__}")
    if not kms_key_id:
        raise ValueError("kms_key_id is empty: pass None to store messages unencrypted")
    try:
        from ._encryption.message_cipher import MessageCipher
    except ModuleNotFoundError as error:
        advice = "pip install 'chathistory-async[kms]'"
        raise ModuleNotFoundError(f"kms_key_id needs the AWS Encryption SDK: {advice}", name=error.name) from error
    return MessageCipher


def layout_with(layout: AnyLayout, whole_key: Mapping[str, KeyValue]) -> AnyLayout:
    """Return a copy of a layout with a different session's key."""
    key = encode_key(whole_key)
    if key.keys() != layout.key.keys():
        return replace(layout, key=key)
    # replace() would check the names again, and that takes as long as the rest of making a handle.
    other = object.__new__(type(layout))
    for name in layout.__slots__:
        object.__setattr__(other, name, getattr(layout, name))
    object.__setattr__(other, "key", key)
    return other


def layout_of(
    sort_key_name: str | None,
    *,
    table_name: str,
    key: dict[str, AttributeValue],
    messages_name: str,
    expiry_name: str,
    ttl: int | None,
    history_size: int | None,
) -> Layout:
    """Return a single item's layout if ``sort_key_name`` is None, else an item collection's."""
    if sort_key_name is None:
        return SingleItem(table_name, key, messages_name, expiry_name, ttl, history_size)
    return ItemCollection(table_name, key, sort_key_name, messages_name, expiry_name, ttl, history_size)
