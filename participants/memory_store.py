"""A memory that forgets what it promised when the process ends: for tests and benchmarks only.

Never for use: a prepared branch that is forgotten splits the transaction that it was prepared for.

The resource makes its changes through a MemoryTable, which the store can undo. Work is carried out
at once, in the event loop's thread, so that Ctrl-C may interrupt it anywhere: how a change is taken
back is written down before it is made, and may be done twice.

Interactive work is lost with the store, so each store is an incarnation of its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

from participants.branch import State
from participants.contract import BranchKey
from participants.store import (
    BranchRecord,
    Ended,
    LocalTransaction,
    as_exception,
    in_front_of_the_young,
)

R = TypeVar("R")
Undo = tuple[Callable[..., object], *tuple[Any, ...]]
"""A function that takes a change back, and its arguments."""
_PREPARED, _ACTIVE = State.PREPARED, State.ACTIVE


class MemoryTable(MutableMapping[str, Any]):
    """A mapping whose changes can be undone. Values are replaced, never changed in place."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._undo: list[Undo] = []

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._remember(key)
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        self._remember(key)
        del self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def _remember(self, key: str) -> None:
        values = self._values
        if key in values:
            self._undo.append((values.__setitem__, key, values[key]))
        else:
            self._undo.append((values.pop, key, None))


class MemoryStore:
    """Implements `Store[MemoryTable]`. It outlives a Participant object, not its process."""

    def __init__(self) -> None:
        self.table = MemoryTable()
        self.incarnation = secrets.randbits(62)
        self._undo = self.table._undo
        self._prepared: dict[BranchKey, BranchRecord] = {}
        self._active: dict[BranchKey, BranchRecord] = {}
        self._others: dict[BranchKey, BranchRecord] = {}
        self._ended: dict[int, BranchRecord] = {}
        self._last_number = 0
        self._is_torn = False
        """A piece of work is under way, or was interrupted: perhaps it is not all taken back."""

    async def open(self, create: Callable[[MemoryTable], None]) -> None:
        create(self.table)
        self._undo.clear()

    async def close(self) -> None:
        pass

    async def perform(
        self, works: Sequence[Callable[[LocalTransaction[MemoryTable]], R]]
    ) -> list[R | Exception]:
        results: list[R | Exception] = []
        if self._is_torn:
            self.undo()
        self._undo.clear()  # what was changed from outside stays
        for work in works:
            self._is_torn = True
            try:
                results.append(work(self))
                self._undo.clear()
            except KeyboardInterrupt:
                self.undo()
                raise
            except BaseException as raised:
                self.undo()
                results.append(as_exception(raised))
            self._is_torn = False
        return results

    async def in_doubt(self, limit: int) -> list[BranchRecord]:
        waiting = chain(self._prepared.values(), self._active.values())
        return list(islice(waiting, limit))

    async def ended(self, after: int, limit: int) -> list[Ended]:
        numbers = [number for number in self._ended if number > after][:limit]
        return [
            Ended(n, r.transaction_id, r.branch_id, r.branch.state, r.changed_at_ms)
            for n, r in ((number, self._ended[number]) for number in numbers)
        ]

    async def drop_tombstones(self, ended_before_ms: int) -> int:
        ended = self._ended.values()
        newest_ms = next((record.changed_at_ms for record in reversed(ended)), 0)
        ends_ms = (record.changed_at_ms for record in ended)
        count = in_front_of_the_young(ends_ms, ended_before_ms, newest_ms)
        first = islice(self._ended.items(), count)
        old = [number for number, record in first if record.changed_at_ms < ended_before_ms]
        for number in old:
            record = self._ended.pop(number)
            del self._others[record.transaction_id, record.branch_id]
        return len(old)

    async def count(self) -> dict[State, int]:
        counts: dict[State, int] = {s: 0 for s in State if s is not State.ABSENT}
        counts[_PREPARED] = len(self._prepared)
        counts[_ACTIVE] = len(self._active)
        for record in self._others.values():
            counts[record.branch.state] += 1
        return counts

    # --- the local transaction ------------------------------------------------------------------

    @property
    def resource(self) -> MemoryTable:
        return self.table

    def find(self, transaction_id: str, branch_id: str) -> BranchRecord | None:
        key = (transaction_id, branch_id)
        return self._prepared.get(key) or self._others.get(key) or self._active.get(key)

    def keep(self, record: BranchRecord) -> None:
        key = record[:2]
        prepared, others, active = self._prepared, self._others, self._active
        before = prepared.get(key) or others.get(key) or active.get(key)
        state = record.branch.state
        number = self._last_number = self._last_number + 1
        self._undo.append((self._take_back, key, before, number))
        if before is not None:
            prepared.pop(key, None)
            others.pop(key, None)
            active.pop(key, None)
        if state is _PREPARED:
            prepared[key] = record
        elif state is _ACTIVE:
            active[key] = record
        else:
            others[key] = self._ended[number] = record

    def undo(self) -> None:
        while self._undo:
            take_back, *arguments = self._undo[-1]
            take_back(*arguments)
            self._undo.pop()

    def _take_back(self, key: BranchKey, before: BranchRecord | None, number: int) -> None:
        self._prepared.pop(key, None)
        self._others.pop(key, None)
        self._active.pop(key, None)
        self._ended.pop(number, None)
        if before is not None:
            by_state = {_PREPARED: self._prepared, _ACTIVE: self._active}
            by_state.get(before.branch.state, self._others)[key] = before
