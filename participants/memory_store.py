"""A memory that forgets what it promised when the process ends: for tests and benchmarks only.

Never for use: a prepared branch that is forgotten splits the transaction that it was prepared for.

The resource makes its changes through a MemoryTable, which the store can undo. Work is carried out
at once, in the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from participants.branch import ENDED, State
from participants.store import BranchRecord, Ended, LocalTransaction

R = TypeVar("R")
Key = tuple[str, str]


class MemoryTable(MutableMapping[str, Any]):
    """A mapping whose changes can be undone. Values are replaced, never changed in place."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._undo: list[Callable[[], object]] = []

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
            before = values[key]
            self._undo.append(lambda: values.__setitem__(key, before))
        else:
            self._undo.append(lambda: values.pop(key, None))


class MemoryStore:
    """Implements `Store[MemoryTable]`. It outlives a Participant object, not its process."""

    def __init__(self) -> None:
        self.table = MemoryTable()
        self._undo = self.table._undo
        self._prepared: dict[Key, BranchRecord] = {}
        self._others: dict[Key, BranchRecord] = {}
        self._ended: dict[int, BranchRecord] = {}
        self._last_number = 0

    async def open(self, create: Callable[[MemoryTable], None]) -> None:
        create(self.table)
        self._undo.clear()

    async def close(self) -> None:
        pass

    async def perform(
        self, works: Sequence[Callable[[LocalTransaction[MemoryTable]], R]]
    ) -> list[R | Exception]:
        results: list[R | Exception] = []
        for work in works:
            try:
                results.append(work(self))
            except Exception as error:
                self.undo()
                results.append(error)
            self._undo.clear()
        return results

    async def in_doubt(self, limit: int) -> list[BranchRecord]:
        return list(islice(self._prepared.values(), limit))

    async def ended(self, after: int, limit: int) -> list[Ended]:
        numbers = [number for number in self._ended if number > after][:limit]
        return [
            Ended(n, r.transaction_id, r.branch_id, r.branch.state, r.changed_at_ms)
            for n, r in ((number, self._ended[number]) for number in numbers)
        ]

    async def drop_tombstones(self, ended_before_ms: int) -> int:
        old = [n for n, r in self._ended.items() if r.changed_at_ms < ended_before_ms]
        for number in old:
            record = self._ended.pop(number)
            del self._others[record.transaction_id, record.branch_id]
        return len(old)

    async def count(self) -> dict[State, int]:
        counts: dict[State, int] = {s: 0 for s in State if s is not State.ABSENT}
        counts[State.PREPARED] = len(self._prepared)
        for record in self._others.values():
            counts[record.branch.state] += 1
        return counts

    # --- the local transaction ------------------------------------------------------------------

    @property
    def resource(self) -> MemoryTable:
        return self.table

    def find(self, transaction_id: str, branch_id: str) -> BranchRecord | None:
        key = (transaction_id, branch_id)
        return self._prepared.get(key) or self._others.get(key)

    def keep(self, record: BranchRecord) -> None:
        key = (record.transaction_id, record.branch_id)
        prepared, others, ended = self._prepared, self._others, self._ended
        was_prepared, was_other = prepared.pop(key, None), others.pop(key, None)
        if record.branch.state is State.PREPARED:
            prepared[key] = record
        else:
            others[key] = record
        if record.branch.state in ENDED:
            self._last_number += 1
            ended[self._last_number] = record
        number = self._last_number

        def undo() -> None:
            prepared.pop(key, None)
            others.pop(key, None)
            if record.branch.state in ENDED:
                ended.pop(number, None)
            if was_prepared is not None:
                prepared[key] = was_prepared
            if was_other is not None:
                others[key] = was_other

        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()
