"""What the journal's files mean: segments, groups, changes, and the log that they add up to. Pure.

A segment is a file of records (`cluster/storage/records.py`, numbered by the segment). The first
is a header: whose journal this is, which older segments are still needed, where the one before
ended, and the state of the log at its start. The others are groups. A group is everything that one
`Journal.write` wrote, and it is there wholly or not at all:

    body   = kind (G, or L: written while the journal ran without sync) | mark | changes
    mark   = segment (u64) | offset (u64): up to here all was synced when this record was written
    change = length of the payload (u32) | kind | payload
        A  index (u64) | term (u64) | command      an entry is appended
        T  index (u64)                             entries from index on are removed (Raft conflict)
        S  index (u64)                             entries below index are removed (compaction)
        R                                          all entries are removed (a snapshot is installed)
        V  term (u64) | 0 or 1 | voter             the term, and the vote in it if there is one
        C  index (u64)                             the commit index as far as it was known; a hint

`Log` is both what a running journal holds in memory and what reading a file gives: each change
has one meaning, written once.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgpack

Entry = tuple[bytes, int, int]
"""An entry of the log: (command, index, term), the order that PySyncObj uses."""

Position = tuple[int, int]
"""(segment number, offset in it). Positions compare as places in the journal."""

FORMAT = 1
"""Goes up with every change of the meaning of bytes; a journal of another format is refused."""

NOWHERE: Position = (0, 0)

_HEADER, _GROUP, _GROUP_WITHOUT_SYNC = b"H", b"G", b"L"
_MARK = struct.Struct("<cQQ")
_CHANGE = struct.Struct("<Ic")
_APPEND = struct.Struct("<IcQQ")
_INDEX = struct.Struct("<Q")
_INDEX_TERM = struct.Struct("<QQ")
_VOTE = struct.Struct("<QB")


class Malformed(Exception):
    """Well-checksummed bytes, or a sequence of changes, that no journal of this format has."""


class OtherFormat(Malformed):
    """A header of another format version."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first record of a segment."""

    format: int
    cluster: str
    node: str
    number: int
    oldest: int
    """The oldest segment that is still needed once this one is durable."""
    previous_end: int
    """The size of the segment before; 0 if there was none."""
    mark: Position
    without_sync: bool
    start: int | None
    next_index: int | None
    term: int
    vote: str | None
    commit_hint: int


@dataclass(frozen=True, slots=True)
class Group:
    """One record behind the header."""

    mark: Position
    without_sync: bool
    changes: bytes


class Log:
    """Entries, term and vote. A method does what it says, or nothing and raises Malformed."""

    __slots__ = ("commit_hint", "entries", "next_index", "start", "term", "vote")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.start: int | None = None
        """The index at which the log begins; None while it may begin anywhere."""
        self.next_index: int | None = None
        """The only index that the next entry may have; None while any will do."""
        self.term = 0
        self.vote: str | None = None
        self.commit_hint = 0

    def append(self, command: bytes, index: int, term: int) -> None:
        if index != self.next_index:
            if self.next_index is not None:
                raise Malformed(f"entry {index} where {self.next_index} belongs")
            self.start = index
        self.entries.append((command, index, term))
        self.next_index = index + 1

    def truncate_from(self, index: int) -> None:
        if self.next_index is None or index > self.next_index:
            raise Malformed(f"truncation from {index} of a log that ends before")
        if self.entries:
            del self.entries[max(0, index - self.entries[0][1]) :]
        self.next_index = index
        if self.start is not None and index < self.start:
            self.start = index

    def start_at(self, index: int) -> None:
        if self.start is None or self.next_index is None:
            raise Malformed(f"start at {index} of a log without entries")
        if not self.start <= index < self.next_index:
            raise Malformed(f"start at {index} outside of {self.start} to {self.next_index - 1}")
        if self.entries:
            del self.entries[: max(0, index - self.entries[0][1])]
        self.start = index

    def clear(self) -> None:
        self.entries = []
        self.start = self.next_index = None

    def set_vote(self, term: int, vote: str | None) -> None:
        if term < self.term:
            raise Malformed(f"term {term} after term {self.term}")
        if term == self.term and self.vote not in {None, vote}:
            raise Malformed(f"a vote for {vote} in term {term}, after one for {self.vote}")
        self.term, self.vote = term, vote

    def continue_from(self, header: Header) -> None:
        """Take over the state with which a segment begins, where those before it are gone.

        The log is a new one.
        """
        self.start, self.next_index = header.start, header.next_index
        self.term, self.vote, self.commit_hint = header.term, header.vote, header.commit_hint

    def agrees_with(self, header: Header) -> bool:
        """Does a segment begin with the state in which the one before it ended?"""
        return (self.start, self.next_index, self.term, self.vote) == (
            header.start,
            header.next_index,
            header.term,
            header.vote,
        )

    @property
    def whole(self) -> bool:
        """Are all entries from the start to the end there?"""
        begins_at = self.entries[0][1] if self.entries else self.next_index
        return self.start == begins_at


# --- writing


def encode_header(header: Header) -> bytes:
    """The body of a segment's first record."""
    fields = {name: getattr(header, name) for name in Header.__slots__}
    return _HEADER + bytes(msgpack.packb(fields))


def encode_group(changes: bytes, mark: Position, *, without_sync: bool) -> bytes:
    """The body of a group."""
    kind = _GROUP_WITHOUT_SYNC if without_sync else _GROUP
    return _MARK.pack(kind, *mark) + changes


def append_change(command: bytes, index: int, term: int) -> bytes:
    return _APPEND.pack(_INDEX_TERM.size + len(command), b"A", index, term) + command


def truncate_change(index: int) -> bytes:
    return _CHANGE.pack(_INDEX.size, b"T") + _INDEX.pack(index)


def start_change(index: int) -> bytes:
    return _CHANGE.pack(_INDEX.size, b"S") + _INDEX.pack(index)


def clear_change() -> bytes:
    return _CHANGE.pack(0, b"R")


def vote_change(term: int, vote: str | None) -> bytes:
    payload = _VOTE.pack(term, vote is not None) + (vote or "").encode()
    return _CHANGE.pack(len(payload), b"V") + payload


def commit_hint_change(index: int) -> bytes:
    return _CHANGE.pack(_INDEX.size, b"C") + _INDEX.pack(index)


# --- reading


def decode_body(body: bytes) -> Header | Group:
    """A header or a group; Malformed if it is neither."""
    kind = body[:1]
    if kind == _HEADER:
        return _decode_header(body)
    if kind not in {_GROUP, _GROUP_WITHOUT_SYNC} or len(body) < _MARK.size:
        raise Malformed(f"a record of the unknown kind {kind!r}")
    _, segment, offset = _MARK.unpack_from(body)
    return Group((segment, offset), kind == _GROUP_WITHOUT_SYNC, body[_MARK.size :])


def _decode_header(body: bytes) -> Header:
    try:
        fields = msgpack.unpackb(body[1:])
        if fields["format"] != FORMAT:
            raise OtherFormat(f"format {fields['format']}, this program writes {FORMAT}")
        fields["mark"] = tuple(fields["mark"])
        return Header(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise Malformed(f"a header that cannot be read: {error}") from error


def decode_changes(changes: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, payload) of each change of a group."""
    position = 0
    while position < len(changes):
        if position + _CHANGE.size > len(changes):
            raise Malformed("half a change")
        length, kind = _CHANGE.unpack_from(changes, position)
        position += _CHANGE.size
        payload = changes[position : position + length]
        if len(payload) != length:
            raise Malformed("half a change")
        yield kind, payload
        position += length


def appended_indexes(changes: bytes) -> list[int]:
    """The indexes of the entries that a group appends, in order."""
    return [
        _INDEX_TERM.unpack_from(payload)[0]
        for kind, payload in decode_changes(changes)
        if kind == b"A"
    ]


def apply_changes(log: Log, changes: Iterable[tuple[bytes, bytes]]) -> int:
    """Bring a log up to date; the highest index that was appended, 0 if none was."""
    highest = 0
    try:
        for kind, payload in changes:
            if kind == b"A":
                index, term = _INDEX_TERM.unpack_from(payload)
                log.append(payload[_INDEX_TERM.size :], index, term)
                highest = max(highest, index)
            else:
                _apply_rare_change(log, kind, payload)
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed(f"a change that cannot be read: {error}") from error
    return highest


def _apply_rare_change(log: Log, kind: bytes, payload: bytes) -> None:
    match kind:
        case b"T":
            log.truncate_from(*_INDEX.unpack(payload))
        case b"S":
            log.start_at(*_INDEX.unpack(payload))
        case b"R":
            log.clear()
        case b"V":
            term, voted = _VOTE.unpack_from(payload)
            log.set_vote(term, payload[_VOTE.size :].decode() if voted else None)
        case b"C":
            (log.commit_hint,) = _INDEX.unpack(payload)
        case _:
            raise Malformed(f"a change of the unknown kind {kind!r}")
