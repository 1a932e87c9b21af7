"""The finished transactions, as bytes: by id, by number, by when each may be forgotten. Pure.

A snapshot is written by a thread while the table goes on changing. Transactions lie in blocks, in
the order in which they began. Taking a view seals the blocks and hands them out; the first write to
a block after that copies this one block. What finishes or is forgotten lies in few blocks, so this
costs little, and a block is a piece of a snapshot as it is.

The branches of a block stand in the order in which the log brought them, everything else in that of
the sequence numbers: the same log gives the same bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from coordinator.indexes import Timeline

BLOCK = 256
"""Transactions of a block: about 48 KB with three branches each."""

SHARDS = 1024
"""The ids are in so many dicts: growing one of all ids would stall the loop for 50 ms at a million,
growing one of a thousand takes some microseconds.
"""

NEVER = (1 << 63) - 1
"""The time at which what was resolved by hand may be forgotten."""

_HEAD = struct.Struct(">qqH")
"""What a record begins with: sequence number, when it may be forgotten, which of its block's
branches are its own.
"""


class Found(NamedTuple):
    """A finished transaction, packed as `packed.pack_finished` and `Branches.packed` do it."""

    id: str
    sequence: int
    branches: bytes
    packed: bytes


Sealed: TypeAlias = tuple[tuple[bytes, ...], tuple[str | None, ...], tuple[bytes | None, ...]]
"""A block that nobody writes to: distinct branches; ids and records by slot, None where nothing is.

Plain tuples, which the collector gives up looking at when it has seen what is in them.
"""


class Block:
    """A run of sequence numbers that is being written to."""

    __slots__ = ("branches", "count", "ids", "records")

    def __init__(self, sealed: Sealed | None = None) -> None:
        branches, ids, records = sealed or ((), (None,) * BLOCK, (None,) * BLOCK)
        self.branches, self.ids, self.records = list(branches), list(ids), list(records)
        self.count = BLOCK - self.ids.count(None)

    def sealed(self) -> Sealed:
        return tuple(self.branches), tuple(self.ids), tuple(self.records)


class Table:
    """See the file's docstring."""

    def __init__(self) -> None:
        self._blocks: dict[int, Sealed] = {}
        self._open: dict[int, Block] = {}  # no number is in both
        # All shards are one empty dict at first, replaced when it is to be written to.
        self._shards: list[dict[str, bytes]] = [{}] * SHARDS
        self._timeline = Timeline()
        self._count = 0
        self.bytes = 0
        """Of the records and the branches, as they are packed."""

    def __len__(self) -> int:
        return self._count

    def get(self, transaction_id: str) -> Found | None:
        record = self._shards[zlib.crc32(transaction_id.encode()) % SHARDS].get(transaction_id)
        if record is None:
            return None
        sequence, _, place = _HEAD.unpack_from(record)
        number = sequence // BLOCK
        block = self._open.get(number)
        branches = self._blocks[number][0] if block is None else block.branches
        return Found(transaction_id, sequence, branches[place], record[_HEAD.size :])

    def put(
        self, transaction_id: str, sequence: int, forget_ms: int, branches: bytes, packed: bytes
    ) -> None:
        """Add a transaction, which is not there yet. `forget_ms`: NEVER, or from when on it may
        go.
        """
        number, slot = divmod(sequence, BLOCK)
        block = self._block(number)
        known = block.branches
        if branches in known:
            place = known.index(branches)
        else:
            place = len(known)
            known.append(branches)
            self.bytes += len(branches)
        record = _HEAD.pack(sequence, forget_ms, place) + packed
        assert block.ids[slot] is None, (transaction_id, block.ids[slot])
        block.ids[slot], block.records[slot] = transaction_id, record
        block.count += 1
        if block.count == BLOCK:
            self._blocks[number] = self._open.pop(number).sealed()
        self._index(transaction_id, sequence, forget_ms, record)

    def _block(self, number: int) -> Block:
        """The block, to be written to."""
        block = self._open.get(number)
        if block is None:
            sealed = self._blocks.pop(number, None)
            block = self._open[number] = Block(sealed)
        return block

    def _index(self, transaction_id: str, sequence: int, forget_ms: int, record: bytes) -> None:
        number = zlib.crc32(transaction_id.encode()) % SHARDS
        if not self._shards[number]:
            self._shards[number] = {}
        self._shards[number][transaction_id] = record
        if forget_ms != NEVER:
            self._timeline.add(forget_ms, sequence)
        self._count += 1
        self.bytes += len(record)

    def forget_before(self, horizon_ms: int) -> int:
        """Remove what may be forgotten before the time; how many went."""
        gone = self._timeline.take_before(horizon_ms)
        for sequence in gone:
            self._remove(sequence)
        return len(gone)

    def _remove(self, sequence: int) -> None:
        number, slot = divmod(sequence, BLOCK)
        block = self._block(number)
        transaction_id, record = block.ids[slot], block.records[slot]
        assert transaction_id is not None, sequence
        assert record is not None, sequence
        block.ids[slot] = block.records[slot] = None
        block.count -= 1
        self.bytes -= len(record)
        if not block.count:
            self.bytes -= sum(map(len, block.branches))
            del self._open[number]
        del self._shards[zlib.crc32(transaction_id.encode()) % SHARDS][transaction_id]
        self._count -= 1

    def horizon_after(self, count: int) -> int:
        """The horizon that would forget about the `count` oldest; 0: there are none."""
        return self._timeline.time_after(count)

    def newest_first(self, before: int) -> Iterator[Found]:
        """Those whose sequence number is below `before`; the table must not change meanwhile."""
        for number in sorted([*self._blocks, *self._open], reverse=True):
            if number * BLOCK >= before:
                continue
            block = self._open.get(number)
            branches, ids, records = self._blocks[number] if block is None else block.sealed()
            for slot in range(min(BLOCK, before - number * BLOCK) - 1, -1, -1):
                transaction_id, record = ids[slot], records[slot]
                if transaction_id is None or record is None:
                    continue
                sequence, _, place = _HEAD.unpack_from(record)
                yield Found(transaction_id, sequence, branches[place], record[_HEAD.size :])

    # --- snapshots ---

    def view(self) -> dict[int, Sealed]:
        """The blocks as they are now; nobody writes to them any more. The dict is the caller's."""
        for number, block in self._open.items():
            self._blocks[number] = block.sealed()
        self._open.clear()
        return dict(self._blocks)

    def load(self, number: int, block: Sealed) -> None:
        """Add a block out of a view. Raises whatever bytes that are no block of ours lead to."""
        branches, ids, records = block
        if number in self._blocks or not len(ids) == len(records) == BLOCK:
            raise ValueError(f"block {number} is there twice, or is none")
        for slot, (transaction_id, record) in enumerate(zip(ids, records, strict=True)):
            if transaction_id is None or record is None:
                continue
            sequence, forget_ms, place = _HEAD.unpack_from(record)
            if sequence != number * BLOCK + slot or place >= len(branches):
                raise ValueError(f"record {slot} of block {number} says {sequence}, {place}")
            self._index(transaction_id, sequence, forget_ms, record)
        self._blocks[number] = block
        self.bytes += sum(map(len, branches))

    def is_whole(self) -> bool:
        """Whether no id is there twice."""
        return sum(map(len, self._shards)) == self._count

    def release(self) -> Iterator[None]:
        """Let go of everything little by little: a million at once would be a stall.

        For a table that is not used any more; it is empty when the iterator has ended.
        """
        self._timeline = Timeline()
        for parts in (self._blocks, self._open):
            while parts:
                parts.popitem()
                yield
        while self._shards:
            self._shards.pop()
            yield
