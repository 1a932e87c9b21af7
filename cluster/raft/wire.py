"""What nodes say to each other, as bytes: frames, their limits, and the shape of every message.

Rules
- A frame is one byte of wire version, four bytes of length, four of its CRC-32, four of the CRC-32
  of these nine (big endian), and a msgpack array of the message's number followed by its fields.
  There is no pickle.
- What arrives otherwise than it was sent is no message: the checksums of TCP miss some of what
  hardware and proxies change, and one bit of an entry stops a node for good, or makes its state
  another one than its fellows'. One of a length would have it wait for megabytes.
- Every field is checked before a message exists: type, sign, size. What does not fit is
  `BadFrame`, and the stream that brought it is closed.
- What a peer can make this node hold is bounded by the frame's limit: fields are scalars, never
  nested, and log entries travel as one string of bytes, with a limit on their number.

`Frames` cuts a stream of bytes into messages; `encode` makes the frame of a message.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

from cluster.storage.journal_format import Entry

WIRE_VERSION: Final = 3
"""The first byte of every frame. A peer of another version is refused, and the log says which."""

MAX_HELLO_BYTES: Final = 4 * 1024
"""The limit of a frame until the handshake is over: all that a stranger can make us hold."""

MAX_FRAME_BYTES: Final = 32 * 1024 * 1024
"""The limit after the handshake: one group of the largest commands, with room."""

MAX_ENTRIES: Final = 4096
"""Entries in one `Append`."""

MAX_NAME: Final = 64
BOOT_BYTES: Final = 16
_MAX_INTEGER: Final = 2**63 - 1
_MAX_FIELDS: Final = 12
_ARRAY: Final = 0x90
"""The first byte of a msgpack array of fewer than 16 elements, less their number."""
_HEADER = struct.Struct(">BII")
_CHECK = struct.Struct(">I")
_HEADER_BYTES: Final = _HEADER.size + _CHECK.size
_ENTRY = struct.Struct(">QI")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class BadFrame(ValueError):
    """What came from the peer is not a frame, or not a message of this version."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialer's first frame. `credential` is the place of authentication, empty for now."""

    cluster: str
    sender: str
    receiver: str
    boot: bytes
    """Drawn at each start of the sender's process, so that its streams are told from older ones."""
    stream: int
    """Counts the sender's dials since its start: of two streams the later one counts."""
    birth: bytes
    """Of the sender's data directory (`cluster/storage/fellows.py`)."""
    credential: bytes = b""
    founding: str = ""
    """Of the sender's log (`coordinator.log.StateMachine.founding`); empty while it has none."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The acceptor's answer to `Hello`: from here on frames flow from dialer to acceptor."""

    boot: bytes
    birth: bytes
    credential: bytes = b""
    founding: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The acceptor's other answer: why, in a sentence. The stream is closed after it."""

    reason: str
    is_another: bool = False
    """The node is known by another data directory than the one whose birth it said."""


@dataclass(frozen=True, slots=True)
class PreVote:
    """Would you vote for me in `term`? Nothing changes by asking (Raft thesis, section 9.6)."""

    term: int
    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True)
class PreVoteReply:
    """`term` is the voter's own, `asked` the one it was asked about."""

    term: int
    asked: int
    granted: bool


@dataclass(frozen=True, slots=True)
class RequestVote:
    """`transfer`: the leader itself asked for this election, so a living leader is no objection."""

    term: int
    last_index: int
    last_term: int
    transfer: bool


@dataclass(frozen=True, slots=True)
class VoteReply:
    term: int
    granted: bool


@dataclass(frozen=True, slots=True)
class TimeoutNow:
    """From the leader to its chosen successor: stand for election at once."""

    term: int


@dataclass(frozen=True, slots=True)
class Append:
    """Entries after (`previous_index`, `previous_term`); without entries, a heartbeat."""

    term: int
    round: int
    """Grows each time the leader speaks to all: an answer proves that it led after that."""
    now_ms: int
    commit: int
    previous_index: int
    previous_term: int
    entries: tuple[Entry, ...] = ()


@dataclass(frozen=True, slots=True)
class AppendReply:
    """`matched`: all below `next_index` is the leader's; else: try from `next_index`."""

    term: int
    round: int
    now_ms: int
    matched: bool
    next_index: int


@dataclass(frozen=True, slots=True)
class SnapshotPiece:
    """Bytes at `offset` of the snapshot of (`index`, `entry_term`); none: how much is held?"""

    term: int
    round: int
    now_ms: int
    index: int
    entry_term: int
    offset: int
    last: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class SnapshotReply:
    """`offset` bytes of that snapshot are held. `AppendReply` answers when it is installed."""

    term: int
    round: int
    now_ms: int
    index: int
    entry_term: int
    offset: int


RaftMessage: TypeAlias = (
    PreVote
    | PreVoteReply
    | RequestVote
    | VoteReply
    | TimeoutNow
    | Append
    | AppendReply
    | SnapshotPiece
    | SnapshotReply
)
Message: TypeAlias = Hello | Welcome | Refused | RaftMessage


def encode(message: Message) -> bytes:
    """The frame of `message`. Raises BadFrame when it is larger than any peer would accept."""
    number = _NUMBERS[type(message)]
    if isinstance(message, Append):
        fields: Sequence[object] = (
            *(message.term, message.round, message.now_ms),
            *(message.commit, message.previous_index, message.previous_term),
            _pack_entries(message.entries),
        )
    else:
        fields = [getattr(message, name) for name in message.__slots__]
    body: bytes = msgpack.packb((number, *fields))
    if len(body) > MAX_FRAME_BYTES:
        raise BadFrame(
            f"{type(message).__name__} of {len(body)} bytes; {MAX_FRAME_BYTES} are allowed"
        )
    return header(WIRE_VERSION, len(body), zlib.crc32(body)) + body


def header(version: int, length: int, checksum: int) -> bytes:
    """What stands before the body of a frame."""
    head = _HEADER.pack(version, length, checksum)
    return head + _CHECK.pack(zlib.crc32(head))


class Frames:
    """A stream of bytes, cut into messages."""

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int = MAX_HELLO_BYTES) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, received: bytes) -> Iterator[Message]:
        """Yield the messages that `received` completes. After a BadFrame the stream is useless.

        The limit is read anew before each frame, so that the handshake may raise it between two.
        """
        buffer = self._buffer
        buffer += received
        start = 0
        try:
            while len(buffer) > start:
                version = buffer[start]
                if version != WIRE_VERSION:
                    raise BadFrame(f"wire version {version}; this node speaks {WIRE_VERSION}")
                begins = start + _HEADER_BYTES
                if len(buffer) < begins:
                    break
                _, length, checksum = _HEADER.unpack_from(buffer, start)
                if buffer[start:begins] != header(version, length, checksum):
                    raise BadFrame("a header whose checksum does not fit")
                if length > self.limit:
                    raise BadFrame(f"frame of {length} bytes; {self.limit} are allowed")
                end = begins + length
                if len(buffer) < end:
                    break
                body = bytes(memoryview(buffer)[begins:end])
                start = end
                if zlib.crc32(body) != checksum:
                    raise BadFrame("a frame whose checksum does not fit")
                yield decode(body)
        finally:
            del buffer[:start]


def decode(body: bytes) -> Message:
    """The message in a frame's body, every field checked. Raises BadFrame."""
    number, *fields = _fields(body)
    shape = _SHAPES.get(number) if type(number) is int else None
    if shape is None:
        raise BadFrame(f"unknown message {number!r:.40}")
    message, checks = shape
    if len(fields) != len(checks):
        raise BadFrame(f"{message.__name__} with {len(fields)} fields; it has {len(checks)}")
    try:
        checked = [check(field) for check, field in zip(checks, fields, strict=True)]
    except BadFrame as error:
        raise BadFrame(f"{message.__name__}: {error}") from None
    if message is Append:
        checked[6] = _unpack_entries(checked[6], checked[4] + 1)
    made: Message = message(*checked)
    return made


def _fields(body: bytes) -> list[Any]:
    """The array's elements. Containers in it are refused by the limits before they are built."""
    # The header by hand: msgpack's own reader holds it to `max_array_len` in its Python form only.
    count = body[0] - _ARRAY if body else 0
    if not 1 <= count <= _MAX_FIELDS:
        raise BadFrame(f"a message of {count} elements")
    unpacker = msgpack.Unpacker(
        None, max_buffer_size=len(body), max_array_len=0, max_map_len=0, max_ext_len=0
    )
    unpacker.feed(memoryview(body)[1:])
    try:
        fields = [unpacker.unpack() for _ in range(count)]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise BadFrame(f"not msgpack: {error!s:.100}") from None
    if unpacker.tell() != len(body) - 1:
        raise BadFrame("bytes after the message")
    return fields


def _integer(field: object) -> int:
    if type(field) is not int or not 0 <= field <= _MAX_INTEGER:
        raise BadFrame(f"{field!r:.40} is not a number of 0 to 2^63-1")
    return field


def _boolean(field: object) -> bool:
    if type(field) is not bool:
        raise BadFrame(f"{field!r:.40} is not true or false")
    return field


def _bytes(field: object) -> bytes:
    if type(field) is not bytes:
        raise BadFrame(f"{field!r:.40} is not bytes")
    return field


def _boot(field: object) -> bytes:
    if type(field) is not bytes or len(field) != BOOT_BYTES:
        raise BadFrame(f"a boot number is {BOOT_BYTES} bytes")
    return field


def _name(field: object) -> str:
    if type(field) is not str or not _NAME.fullmatch(field):
        raise BadFrame(f"{field!r:.80} is not a name (1-{MAX_NAME} of A-Z a-z 0-9 . _ -)")
    return field


def _founding(field: object) -> str:
    return "" if field == "" else _name(field)


def _sentence(field: object) -> str:
    if type(field) is not str:
        raise BadFrame(f"{field!r:.40} is not text")
    return field


def _pack_entries(entries: tuple[Entry, ...]) -> bytes:
    if len(entries) > MAX_ENTRIES:
        raise BadFrame(f"{len(entries)} entries in one message; {MAX_ENTRIES} are allowed")
    parts = []
    for command, _, term in entries:
        parts.append(_ENTRY.pack(term, len(command)))
        parts.append(command)
    return b"".join(parts)


def _unpack_entries(packed: bytes, index: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    at = 0
    while at < len(packed):
        if len(packed) - at < _ENTRY.size:
            raise BadFrame("Append: an entry is cut off")
        term, length = _ENTRY.unpack_from(packed, at)
        at += _ENTRY.size
        if not 0 < length <= len(packed) - at:
            raise BadFrame(f"Append: an entry of {length} bytes with {len(packed) - at} left")
        if term > _MAX_INTEGER or index > _MAX_INTEGER:
            raise BadFrame("Append: an entry's term or index is too large")
        entries.append((packed[at : at + length], index, term))
        if len(entries) > MAX_ENTRIES:
            raise BadFrame(f"Append: more than {MAX_ENTRIES} entries")
        at += length
        index += 1
    return tuple(entries)


_Check: TypeAlias = Callable[[object], Any]
_STANDING: Final[tuple[_Check, ...]] = (_integer, _integer, _integer)  # term, round, now_ms
_SHAPES: Final[dict[int, tuple[type[Any], tuple[_Check, ...]]]] = {
    1: (Hello, (_name, _name, _name, _boot, _integer, _bytes, _bytes, _founding)),
    2: (Welcome, (_boot, _bytes, _bytes, _founding)),
    3: (Refused, (_sentence, _boolean)),
    10: (PreVote, (_integer, _integer, _integer)),
    11: (PreVoteReply, (_integer, _integer, _boolean)),
    12: (RequestVote, (_integer, _integer, _integer, _boolean)),
    13: (VoteReply, (_integer, _boolean)),
    14: (TimeoutNow, (_integer,)),
    20: (Append, (*_STANDING, _integer, _integer, _integer, _bytes)),
    21: (AppendReply, (*_STANDING, _boolean, _integer)),
    22: (SnapshotPiece, (*_STANDING, _integer, _integer, _integer, _boolean, _bytes)),
    23: (SnapshotReply, (*_STANDING, _integer, _integer, _integer)),
}
_NUMBERS: Final[dict[type[Any], int]] = {shape[0]: number for number, shape in _SHAPES.items()}
