"""Who votes, as the log says.

Rules
- An entry of members carries all of them, so a configuration is read from one entry; nothing is
  added up, and cutting the log's tail takes back what the tail said.
- The latest configuration in the log counts, applied or not (Raft, section 6).
- One change at a time, of one voter: two majorities of neighbouring configurations always share a
  node. Who may propose a change, and when, is the core's business.
"""

from __future__ import annotations

from typing import Final

import msgpack

_VERSION: Final = 1


def encode_members(members: tuple[str, ...]) -> bytes:
    """The body of an entry that makes `members` the voters."""
    packed: bytes = msgpack.packb([_VERSION, sorted(members)])
    return packed


def decode_members(body: bytes) -> tuple[str, ...]:
    """The voters that an entry names. Raises ValueError for what is not such an entry."""
    fields = msgpack.unpackb(body)
    match fields:
        case [int(version), [*names]] if version == _VERSION and names:
            if all(isinstance(name, str) for name in names):
                return tuple(names)
    raise ValueError(f"not a list of members of version {_VERSION}")


class Configurations:
    """The configurations that a log holds, oldest first."""

    def __init__(self, members: tuple[str, ...], index: int = 0) -> None:
        """`members` count up to `index`: those of a snapshot that ends there, or the settings'."""
        self._known: list[tuple[int, tuple[str, ...]]] = [(index, tuple(sorted(members)))]

    @property
    def latest(self) -> tuple[str, ...]:
        return self._known[-1][1]

    @property
    def latest_index(self) -> int:
        """The entry that `latest` is from; or the index given at the start."""
        return self._known[-1][0]

    def at(self, index: int) -> tuple[str, ...]:
        """The voters once the entries up to `index` are applied."""
        return next(members for known, members in reversed(self._known) if known <= index)

    def add(self, index: int, members: tuple[str, ...]) -> None:
        """The entry at `index` was appended."""
        assert index > self._known[-1][0]
        self._known.append((index, tuple(sorted(members))))

    def truncate_from(self, index: int) -> None:
        """The entries from `index` on were removed."""
        while len(self._known) > 1 and self._known[-1][0] >= index:
            self._known.pop()


def is_one_change(before: tuple[str, ...], after: tuple[str, ...]) -> bool:
    """Do the two differ by one voter?"""
    return len(set(before) ^ set(after)) == 1
