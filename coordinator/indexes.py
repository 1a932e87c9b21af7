"""What is derived from the transactions, so that nothing has to be searched. Pure.

Nothing here is in a snapshot: it is made again from the transactions.
"""

from __future__ import annotations

import bisect
from array import array

from coordinator.facts import Transaction, outstanding

_SECOND_BITS = 10
_SEQUENCE_BITS = 53
_SEQUENCE = (1 << _SEQUENCE_BITS) - 1
_WITHIN = (1 << _SECOND_BITS) - 1


class Timeline:
    """Sequence numbers in the order of their times.

    Kept as numbers of 64 bits, the time within 1,024 ms and the sequence number, sorted, in an
    array for each 1,024 ms: 8 bytes each, nothing to walk over for Python's collector, and what
    comes out of order moves no more than that one array.
    """

    def __init__(self) -> None:
        self._keys: dict[int, array[int]] = {}
        self._seconds: list[int] = []  # of `_keys`, in order

    def add(self, time_ms: int, sequence: int) -> None:
        assert sequence <= _SEQUENCE, sequence
        keys = self._keys.get(time_ms >> _SECOND_BITS)
        if keys is None:
            keys = self._keys[time_ms >> _SECOND_BITS] = array("q")
            bisect.insort(self._seconds, time_ms >> _SECOND_BITS)
        key = (time_ms & _WITHIN) << _SEQUENCE_BITS | sequence
        if not keys or key > keys[-1]:
            keys.append(key)
        else:
            bisect.insort(keys, key)

    def take_before(self, time_ms: int) -> list[int]:
        """Remove what lies before the time; the sequence numbers, oldest first."""
        end = bisect.bisect_right(self._seconds, time_ms >> _SECOND_BITS)
        taken: list[int] = []
        gone = 0
        for second in self._seconds[:end]:
            keys = self._keys[second]
            count = len(keys)
            if second == time_ms >> _SECOND_BITS:
                count = bisect.bisect_left(keys, (time_ms & _WITHIN) << _SEQUENCE_BITS)
            taken += [key & _SEQUENCE for key in keys[:count]]
            del keys[:count]
            if not keys:
                del self._keys[second]
                gone += 1
        del self._seconds[:gone]
        return taken

    def time_after(self, count: int) -> int:
        """The time before which about the `count` oldest lie; 0 if there are none."""
        if count <= 0 or not self._seconds:
            return 0
        for second in self._seconds:
            keys = self._keys[second]
            if count <= len(keys):
                return (second << _SECOND_BITS) + (keys[count - 1] >> _SEQUENCE_BITS) + 1
            count -= len(keys)
        newest = self._seconds[-1]
        return (newest << _SECOND_BITS) + (self._keys[newest][-1] >> _SEQUENCE_BITS) + 1


class Backlog:
    """Unfinished branches by participant."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def changed(self, before: Transaction | None, after: Transaction) -> None:
        """Counted are the branches that a participant still has work for: all while undecided."""
        everybody = (1 << len(after.branches)) - 1
        now = everybody if after.outcome is None else outstanding(after)
        if before is None:
            was = 0
        elif before.outcome is None:
            was = (1 << len(before.branches)) - 1
        else:
            was = outstanding(before)
        if was & ~now:
            self._count(after, was & ~now, -1)
        if now & ~was:
            self._count(after, now & ~was, +1)

    def _count(self, transaction: Transaction, branches: int, step: int) -> None:
        counts = self.counts
        for position, participant in enumerate(transaction.branches.participants):
            if branches >> position & 1:
                count = counts.get(participant, 0) + step
                if count:
                    counts[participant] = count
                else:
                    del counts[participant]


SMALL_BYTES = 4096
"""A transaction whose payloads are smaller together is counted for no participant: of 20,000, which
is what one may have unfinished, these are 80 MiB."""


class Payloads:
    """How many bytes of payloads are held until their decision: in all, and, of transactions that
    have many, by participant."""

    def __init__(self) -> None:
        self.bytes = 0
        self.bytes_for: dict[str, int] = {}

    def changed(self, before: Transaction | None, after: Transaction) -> None:
        was = () if before is None else before.payloads
        if was is after.payloads:
            return
        if before is not None and was:
            self._count(before, -1)
        if after.payloads:
            self._count(after, +1)

    def _count(self, transaction: Transaction, sign: int) -> None:
        size = sum(map(len, transaction.payloads))
        self.bytes += sign * size
        if size < SMALL_BYTES:
            return
        held = self.bytes_for
        participants = transaction.branches.participants
        for participant, payload in zip(participants, transaction.payloads, strict=True):
            held[participant] = held.get(participant, 0) + sign * len(payload)
            if not held[participant]:
                del held[participant]
