"""A participant's memory in a SQLite file, in the same local transactions as the resource's tables.

Rules:
- Write-ahead log with `synchronous=FULL`: what `perform` has returned survives kill -9 and power
  loss.
- All writing is done by one thread with one connection, one piece of work after the other.
- The file says which format it has and whose it is (`sqlite_file.py`).

How it works: `perform` puts its work into a queue; when the thread is free, all that waits goes to
it as one group with one sync, and the next group gathers meanwhile. A group ends early where its
pieces of work take long (`sqlite_file.GROUP_S`); what is left of it comes first then. Reading has a
connection and a thread of its own, which sees only what is synced.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from participants import sqlite_file
from participants.branch import State
from participants.contract import BranchKey
from participants.store import (
    BranchRecord,
    Ended,
    LocalTransaction,
    StoreUnavailable,
    in_front_of_the_young,
)

R = TypeVar("R")
Work = Callable[[LocalTransaction[sqlite3.Connection]], R]

MAX_WAITING = 20_000
"""Pieces of work that may wait for the thread; more are refused at once."""
MAX_GROUP = 1_000
"""Pieces of work in one local transaction: bounds how long the first waits for the last."""
MAX_DROPPED = 1_000
"""Tombstones looked at in one local transaction, so that messages hardly wait for it."""
MAX_QUESTIONS = 1_000
"""That may wait for the reading thread; more are refused at once."""
MAX_COUNTED = 100_000
"""Branches in one question: some 50 ms. There may be millions, and whoever is in doubt waits for
the same thread; and so long as one reads, the write-ahead log only grows."""


class SqliteStore:
    """Implements `Store[sqlite3.Connection]` over one file.

    `owner`: the service whose file it is. `adopt`: accept a database that has tables, but none of
    the store's, as when a service begins to use the package. `busy_timeout_ms`: how long to wait
    for another process that holds the file locked.
    """

    incarnation = 1
    """Of interactive work, for ever: the file loses none of it when the process dies."""

    def __init__(
        self, path: Path, *, owner: str, adopt: bool = False, busy_timeout_ms: int = 2_000
    ) -> None:
        self.path = path
        self._owner = owner
        self._adopt = adopt
        self._busy_timeout_s = busy_timeout_ms / 1000
        self._writer = ThreadPoolExecutor(1, thread_name_prefix=f"{owner}-store")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"{owner}-store-read")
        self._local: sqlite_file.Local | None = None
        self._reading: sqlite3.Connection | None = None
        self._waiting: deque[_Waiting] = deque()
        self._waiting_works = 0
        self._busy = False
        self._questions = 0
        self._counting: asyncio.Task[dict[State, int]] | None = None
        self._closing = False

    async def open(self, create: Callable[[sqlite3.Connection], None]) -> None:
        """Raises StoreError; the file is then free for another try."""
        loop = asyncio.get_running_loop()
        timeout_s = self._busy_timeout_s
        local = await loop.run_in_executor(
            self._writer,
            sqlite_file.open_writing,
            self.path,
            self._owner,
            self._adopt,
            timeout_s,
            create,
        )
        try:
            self._reading = await loop.run_in_executor(
                self._reader, sqlite_file.open_reading, self.path, timeout_s
            )
        except BaseException:
            await loop.run_in_executor(self._writer, local.close)
            raise
        self._local = local

    async def close(self) -> None:
        """Let the group under way end, refuse what waits, and close the file."""
        self._closing = True
        loop = asyncio.get_running_loop()
        if self._reading is not None:
            await loop.run_in_executor(self._reader, self._reading.close)
        if self._local is not None:
            await loop.run_in_executor(self._writer, self._local.close)
        self._reader.shutdown()
        self._writer.shutdown()

    async def perform(self, works: Sequence[Work[R]]) -> list[R | Exception]:
        if self._closing or self._local is None:
            return [StoreUnavailable(f"the store {self.path} is not open")] * len(works)
        if self._waiting_works + len(works) > MAX_WAITING:
            full = f"{self._waiting_works} pieces of work wait for the store {self.path} already"
            return [StoreUnavailable(full)] * len(works)
        waiting = _Waiting(works, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_works += len(works)
        if not self._busy:
            self._start_group()
        return await waiting.done

    async def read(self, question: Callable[[sqlite3.Connection], R]) -> R:
        """Ask the file, beside the writing; `question` runs in the reading thread."""
        reading = self._reading
        if reading is None or self._closing:
            raise StoreUnavailable(f"the store {self.path} is not open")
        if self._questions >= MAX_QUESTIONS:
            full = f"{self._questions} questions wait for the store {self.path} already"
            raise StoreUnavailable(full)
        self._questions += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._reader, _answer, question, reading)
        except sqlite3.Error as error:
            raise sqlite_file.unavailable(self.path, error) from error
        finally:
            self._questions -= 1

    async def in_doubt(self, limit: int) -> list[BranchRecord]:
        return await self.read(lambda file: sqlite_file.read_in_doubt(file, limit))

    async def ended(self, after: int, limit: int) -> list[Ended]:
        return await self.read(lambda file: sqlite_file.read_ended(file, after, limit))

    async def drop_tombstones(self, ended_before_ms: int) -> int:
        dropped_in_all, last = 0, 0
        newest_ms = await self.read(sqlite_file.read_newest_end_ms)
        while True:
            page = await self.ended(last, MAX_DROPPED)
            ends_ms = [each.ended_at_ms for each in page]
            count = in_front_of_the_young(ends_ms, ended_before_ms, newest_ms)
            if not count:
                return dropped_in_all
            after, last = last, page[count - 1].number

            def drop(
                local: LocalTransaction[sqlite3.Connection], after: int = after, last: int = last
            ) -> int:
                return sqlite_file.drop_tombstones(local.resource, ended_before_ms, after, last)

            (dropped,) = await self.perform([drop])
            if isinstance(dropped, Exception):
                raise dropped
            dropped_in_all += dropped

    async def count(self) -> dict[State, int]:
        """Who asks while it is being counted gets the same answer."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.get_running_loop().create_task(self._count())
        return dict(await asyncio.shield(self._counting))

    async def _count(self) -> dict[State, int]:
        counts: dict[State, int] = {s: 0 for s in State if s is not State.ABSENT}
        last: BranchKey | None = ("", "")
        while last is not None:
            count = functools.partial(sqlite_file.read_count, after=last, most=MAX_COUNTED)
            counted, last = await self.read(count)
            for state, number in counted.items():
                counts[state] += number
        return counts

    # --- groups, in the event loop --------------------------------------------------------------

    def _start_group(self) -> None:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and (not group or size + len(self._waiting[0].works) <= MAX_GROUP):
            waiting = self._waiting.popleft()
            size += len(waiting.works)
            group.append(waiting)
        self._waiting_works -= size
        self._busy = True
        works = [work for waiting in group for work in waiting.works]
        assert self._local is not None
        running = asyncio.get_running_loop().run_in_executor(
            self._writer, sqlite_file.carry_out, self.path, self._local, works
        )
        running.add_done_callback(lambda done: self._group_done(group, done))

    def _group_done(
        self, group: list[_Waiting], done: asyncio.Future[list[Any | Exception]]
    ) -> None:
        self._busy = False
        results = done.result()
        for waiting in group:
            results = waiting.take(results)
        unfinished = [waiting for waiting in group if waiting.works]
        self._waiting.extendleft(reversed(unfinished))
        self._waiting_works += sum([len(waiting.works) for waiting in unfinished])
        if self._waiting and self._closing:
            refusal = StoreUnavailable(f"the store {self.path} is being closed")
            for waiting in self._waiting:
                waiting.take([refusal] * len(waiting.works))
            self._waiting.clear()
        elif self._waiting:
            self._start_group()


def _answer(question: Callable[[sqlite3.Connection], R], reading: sqlite3.Connection) -> R:
    """In the reading thread. What the question has begun ends with it: later ones would see the
    file as it was then, and the write-ahead log would grow without end."""
    try:
        return question(reading)
    finally:
        if reading.in_transaction:
            reading.execute("ROLLBACK")


@dataclass(slots=True)
class _Waiting:
    """`works` are those that have no result yet."""

    works: Sequence[Work[Any]]
    done: asyncio.Future[list[Any | Exception]]
    results: list[Any | Exception] = field(default_factory=list)

    def take(self, results: list[Any | Exception]) -> list[Any | Exception]:
        """The first of them are its own; returns the rest."""
        own = len(self.works)
        self.results += results[:own]
        self.works = self.works[len(results[:own]) :]
        if not self.works and not self.done.done():  # its caller may have gone away
            self.done.set_result(self.results)
        return results[own:]
