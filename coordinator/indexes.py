"""What is derived from the transactions, so that nothing has to be searched. Pure.

Nothing here is in a snapshot: `Indexes.of` makes it again from the table.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import Generic, TypeVar

from coordinator.facts import Transaction, outstanding
from coordinator.ids import time_of
from coordinator.table import Table

Value = TypeVar("Value")

SHARED_VALUES = 10_000
UNUSED_RUN = 1_000


class Indexes:
    """Derived from the transactions alone, so they are in no snapshot.

    `finished` is ordered by the time before which a transaction may be forgotten: its end or the
    time in its id, whichever is later. What was resolved by hand is not in it.
    """

    def __init__(self) -> None:
        self.unfinished: dict[str, int] = {}  # its sequence number, in the order of beginning
        self.by_sequence: dict[int, str] = {}
        self.backlog: dict[str, int] = {}
        self._finished: list[tuple[int, str]] = []

    @classmethod
    def of(cls, table: Table[Transaction]) -> Indexes:
        self = cls()
        for transaction in sorted(table.values(), key=lambda t: t.sequence):
            self._add(transaction)
        self._finished.sort()
        return self

    def _add(self, transaction: Transaction) -> None:
        self.by_sequence[transaction.sequence] = transaction.id
        if transaction.finished_ms is None:
            self.unfinished[transaction.id] = transaction.sequence
            self._count(transaction, _unsettled(transaction), +1)
        elif not transaction.resolutions:
            self._finished.append((_forgettable_at(transaction), transaction.id))

    def changed(self, before: Transaction | None, after: Transaction) -> None:
        was = 0 if before is None or before.finished_ms is not None else _unsettled(before)
        now = 0 if after.finished_ms is not None else _unsettled(after)
        if was != now:
            self._count(after, was & ~now, -1)
            self._count(after, now & ~was, +1)
        if before is None:
            self.by_sequence[after.sequence] = after.id
        if after.finished_ms is None:
            self.unfinished[after.id] = after.sequence
        elif before is None or before.finished_ms is None:
            self.unfinished.pop(after.id, None)
            if not after.resolutions:
                bisect.insort(self._finished, (_forgettable_at(after), after.id))

    def removed(self, transaction: Transaction) -> None:
        del self.by_sequence[transaction.sequence]

    def _count(self, transaction: Transaction, branches: int, step: int) -> None:
        for position, branch in enumerate(transaction.branches if branches else ()):
            if branches >> position & 1:
                participant = branch.participant
                count = self.backlog.get(participant, 0) + step
                if count:
                    self.backlog[participant] = count
                else:
                    self.backlog.pop(participant, None)

    def take_before(self, horizon_ms: int) -> list[str]:
        end = bisect.bisect_left(self._finished, (horizon_ms, ""))
        gone = [transaction_id for _, transaction_id in self._finished[:end]]
        del self._finished[:end]
        return gone

    def horizon_after(self, count: int) -> int:
        if count <= 0 or not self._finished:
            return 0
        return self._finished[min(count, len(self._finished)) - 1][0] + 1

    def newest_first(self, before: int, *, unfinished_only: bool) -> Iterator[str]:
        """The ids of transactions whose sequence number is below `before`.

        Numbers are dense but for the oldest: what is forgotten goes roughly in order, and leaves a
        few old ones behind (unfinished, or resolved by hand). After a run of unused numbers only
        those are left, and they come first in `by_sequence`.
        """
        if unfinished_only:
            for unfinished_id, number in reversed(self.unfinished.items()):
                if number < before:
                    yield unfinished_id
            return
        unused = 0
        for sequence in range(before - 1, 0, -1):
            transaction_id = self.by_sequence.get(sequence)
            if transaction_id is not None:
                unused = 0
                yield transaction_id
                continue
            unused += 1
            if unused == UNUSED_RUN:
                old = itertools.takewhile(lambda s: s < sequence, self.by_sequence)  # noqa: B023
                yield from [self.by_sequence[s] for s in reversed(list(old))]
                return


class Shared(Generic[Value]):
    """One object for equal values: a million transactions at the same services share their
    branches.
    """

    def __init__(self) -> None:
        self._known: dict[Value, Value] = {}

    def __call__(self, value: Value) -> Value:
        if len(self._known) >= SHARED_VALUES:
            self._known.clear()
        return self._known.setdefault(value, value)


def _unsettled(transaction: Transaction) -> int:
    """The branches that a participant still has work for: all while undecided."""
    if transaction.outcome is None:
        return (1 << len(transaction.branches)) - 1
    return outstanding(transaction)


def _forgettable_at(transaction: Transaction) -> int:
    assert transaction.finished_ms is not None
    return max(transaction.finished_ms, time_of(transaction.id) or 0)
