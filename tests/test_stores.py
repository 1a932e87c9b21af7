"""The stores: what was performed is kept whole, what failed is not there at all."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import pytest

from participants import sqlite_file, sqlite_store
from participants.branch import ENDED, Branch, State
from participants.contract import BranchKey
from participants.memory_store import MemoryStore
from participants.sqlite_store import SqliteStore
from participants.store import BranchRecord, LocalTransaction, StoreRefused, StoreUnavailable

Store = MemoryStore | SqliteStore
Local = LocalTransaction[Any]
Work = Callable[[Local], Any]
S = TypeVar("S", bound=Store)


def record(transaction_id: str, state: State, at_ms: int = 0) -> BranchRecord:
    return BranchRecord(transaction_id, "1", Branch(state, "f"), b'{"n":1}', ("http://n1",), at_ms)


async def find(store: Store, transaction_id: str) -> Any:
    (found,) = await store.perform([lambda local: local.find(transaction_id, "1")])
    return found


def keep(transaction_id: str, state: State, at_ms: int = 0) -> Work:
    return lambda local: local.keep(record(transaction_id, state, at_ms))


def put(key: str, value: int) -> Work:
    """A change of the resource's own, in either store."""

    def work(local: Local) -> None:
        if isinstance(local, MemoryStore):
            local.resource[key] = value
        else:
            local.resource.execute("INSERT OR REPLACE INTO own VALUES (?, ?)", (key, value))

    return work


async def own(store: Store) -> dict[str, int]:
    if isinstance(store, MemoryStore):
        return dict(store.table)
    return dict(await store.read(lambda file: file.execute("SELECT * FROM own").fetchall()))


def create(transaction: Any) -> None:
    if isinstance(transaction, sqlite3.Connection):
        transaction.execute("CREATE TABLE IF NOT EXISTS own (key TEXT PRIMARY KEY, value INTEGER)")


@contextlib.asynccontextmanager
async def opened(store: S) -> AsyncIterator[S]:
    await store.open(create)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else sqlite(tmp_path)


def sqlite(directory: Path, **options: Any) -> SqliteStore:
    return SqliteStore(directory / "store.sqlite", owner="test", **options)


def both(*works: Work) -> Work:
    def work(local: Local) -> None:
        for one in works:
            one(local)

    return work


def failing(error: Exception) -> Work:
    def work(_: Local) -> None:
        raise error

    return work


# --- what every store promises ------------------------------------------------------------------


def test_a_record_is_found_as_it_was_kept(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            kept = record("t1", State.PREPARED, 5)
            await store.perform([lambda local: local.keep(kept)])
            found, absent = await store.perform(
                [lambda local: local.find("t1", "1"), lambda local: local.find("t1", "2")]
            )
            assert found == kept
            assert absent is None

    asyncio.run(scenario())


def test_one_piece_of_work_that_fails_does_not_undo_another(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            broken = ValueError("broken")
            results = await store.perform(
                [
                    both(keep("t1", State.PREPARED), put("a", 1)),
                    both(keep("t2", State.PREPARED), put("b", 2), failing(broken)),
                    both(keep("t3", State.PREPARED), put("c", 3)),
                ]
            )
            assert results == [None, broken, None]
            assert [r.transaction_id for r in await store.in_doubt(10)] == ["t1", "t3"]
            assert await own(store) == {"a": 1, "c": 3}

    asyncio.run(scenario())


def test_a_failure_leaves_what_was_there_before_as_it_was(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            await store.perform([both(keep("t1", State.PREPARED), put("a", 1))])
            await store.perform(
                [both(put("a", 2), keep("t1", State.COMMITTED), put("a", 3), failing(OSError()))]
            )
            assert await own(store) == {"a": 1}
            assert await find(store, "t1") == record("t1", State.PREPARED)
            assert [r.transaction_id for r in await store.in_doubt(10)] == ["t1"]
            assert await store.ended(0, 10) == []

    asyncio.run(scenario())


def test_what_was_put_into_the_memory_store_from_outside_stays_whatever_work_fails() -> None:
    async def scenario() -> None:
        async with opened(MemoryStore()) as store:
            store.table["a"] = 1
            await store.perform([failing(OSError()), put("b", 2)])
            assert await own(store) == {"a": 1, "b": 2}

    asyncio.run(scenario())


def interrupted_at(step: int, work: Callable[[], Any]) -> bool:
    """Whether Ctrl-C came: before the given line or call of the memory store that `work` gets to.

    Python looks for signals between any two of its instructions.
    """
    left = step
    ours = {MemoryStore.keep.__code__.co_filename}

    def look(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in ours:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return look

    sys.settrace(look)
    try:
        work()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize(
    ("first", "state"),
    [
        (State.PREPARED, State.PREPARED),
        (State.PREPARED, State.COMMITTED),
        (State.ACTIVE, State.PREPARED),
        (State.ACTIVE, State.ROLLED_BACK),
    ],
)
@pytest.mark.parametrize("ending", [(), (failing(OSError()),)])
def test_an_interrupt_leaves_a_piece_of_work_of_the_memory_store_whole_or_not_there(
    first: State, state: State, ending: tuple[Work, ...]
) -> None:
    """It runs in the thread that signals come to."""

    async def scenario(step: int) -> bool:
        store = MemoryStore()
        await store.perform([both(keep("t1", first, 1), put("a", 1))])
        work = both(put("a", 2), keep("t1", state, 2), put("b", 3), *ending)

        def perform() -> None:
            with contextlib.suppress(StopIteration):
                store.perform([work]).send(None)

        interrupted = interrupted_at(step, perform)
        await store.perform([failing(OSError())])  # which takes back no more than its own
        found = store.find("t1", "1")
        may_be = [({"a": 1}, record("t1", first, 1))]
        if not ending:
            may_be.append(({"a": 2, "b": 3}, record("t1", state, 2)))
        assert (await own(store), found) in may_be
        waiting = [r for r in (found,) if r is not None and r.branch.state not in ENDED]
        assert await store.in_doubt(10) == waiting
        assert len(await store.ended(0, 10)) == 1 - len(waiting)
        return interrupted

    async def at_every_step() -> None:
        step = 1
        while await scenario(step):
            step += 1
        assert step > 50

    asyncio.run(at_every_step())


def test_undo_takes_back_the_work_so_far_and_what_follows_is_kept(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            await store.perform(
                [both(put("a", 1), lambda local: local.undo(), keep("t1", State.ROLLED_BACK))]
            )
            assert await own(store) == {}
            assert [e.transaction_id for e in await store.ended(0, 10)] == ["t1"]

    asyncio.run(scenario())


def test_the_longest_prepared_is_the_first_in_doubt(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            for number in range(5):
                await store.perform([keep(f"t{number}", State.PREPARED, 100 + number)])
            await store.perform([keep("t0", State.COMMITTED, 200)])
            assert [r.transaction_id for r in await store.in_doubt(3)] == ["t1", "t2", "t3"]

    asyncio.run(scenario())


def test_who_has_promised_comes_before_who_has_only_worked(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            for number, state in enumerate((State.ACTIVE, State.PREPARED) * 3):
                await store.perform([keep(f"t{number}", state, 100 + number)])
            waiting = [r.transaction_id for r in await store.in_doubt(9)]
            assert waiting == ["t1", "t3", "t5", "t0", "t2", "t4"]
            assert [r.transaction_id for r in await store.in_doubt(4)] == waiting[:4]
            assert len(await store.in_doubt(3)) == 3
            await store.perform([keep("t0", State.PREPARED, 200), keep("t2", State.ROLLED_BACK)])
            waiting = [r.transaction_id for r in await store.in_doubt(9)]
            assert waiting == ["t1", "t3", "t5", "t0", "t4"]
            counts = await store.count()
            assert (counts[State.ACTIVE], counts[State.PREPARED]) == (1, 4)
            assert await store.drop_tombstones(10**13) >= 0
            assert len(await store.in_doubt(9)) == 5

    asyncio.run(scenario())


def test_a_store_says_whether_work_can_be_lost_while_its_mark_is_known(tmp_path: Path) -> None:
    """SQLite keeps both or neither, for ever; what is in memory goes with its store."""
    assert sqlite(tmp_path).incarnation == sqlite(tmp_path).incarnation
    assert MemoryStore().incarnation != MemoryStore().incarnation


def test_tombstones_are_listed_in_the_order_in_which_branches_ended(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            await store.perform([keep("t2", State.COMMITTED, 8), keep("t1", State.ROLLED_BACK, 9)])
            await store.perform([keep("t0", State.COMMITTED, 7)])
            ended = await store.ended(0, 10)
            assert [(e.transaction_id, e.branch_id, e.state, e.ended_at_ms) for e in ended] == [
                ("t2", "1", State.COMMITTED, 8),
                ("t1", "1", State.ROLLED_BACK, 9),
                ("t0", "1", State.COMMITTED, 7),
            ]
            assert await store.ended(ended[0].number, 1) == [ended[1]]

    asyncio.run(scenario())


def test_only_old_tombstones_are_dropped_and_never_a_prepared_branch(store: Store) -> None:
    async def scenario() -> None:
        async with opened(store):
            await store.perform(
                [
                    keep("prepared", State.PREPARED, 10),
                    keep("old", State.COMMITTED, 20),
                    keep("older", State.ROLLED_BACK, 10),
                    keep("young", State.COMMITTED, 30),
                ]
            )
            assert await store.drop_tombstones(30) == 2
            assert [e.transaction_id for e in await store.ended(0, 10)] == ["young"]
            assert [r.transaction_id for r in await store.in_doubt(10)] == ["prepared"]
            (gone,) = await store.perform([lambda local: local.find("old", "1")])
            assert gone is None
            counts = await store.count()
            assert counts[State.PREPARED] == counts[State.COMMITTED] == 1
            assert counts[State.ROLLED_BACK] == 0
            assert set(counts) == set(State) - {State.ABSENT}

    asyncio.run(scenario())


def test_dropping_goes_through_all_of_them_piece_by_piece(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_DROPPED", 3)

    async def scenario() -> None:
        async with opened(store):
            await store.perform([keep(f"t{n}", State.COMMITTED, n) for n in range(10)])
            assert await store.drop_tombstones(8) == 8
            assert [e.transaction_id for e in await store.ended(0, 10)] == ["t8", "t9"]

    asyncio.run(scenario())


def test_a_look_at_what_is_in_doubt_reads_no_payloads(tmp_path: Path) -> None:
    """Inquiry looks every second, and thousands of large ones would be gigabytes."""

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            kept = record("t1", State.PREPARED)._replace(payload=b'{"large":1}')
            await store.perform([lambda local: local.keep(kept)])
            assert await store.in_doubt(10) == [kept._replace(payload=b"null")]
            assert await find(store, "t1") == kept

    asyncio.run(scenario())


def test_what_ended_while_the_clock_was_ahead_does_not_keep_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_DROPPED", 3)

    async def scenario() -> None:
        async with opened(store):
            times = [1_000] * 5 + list(range(10))
            await store.perform([keep(f"t{n}", State.COMMITTED, at) for n, at in enumerate(times)])
            assert await store.drop_tombstones(8) == 8
            left = [e.ended_at_ms for e in await store.ended(0, 20)]
            assert left == [1_000] * 5 + [8, 9]

    asyncio.run(scenario())


def test_what_ended_while_the_clock_was_behind_is_younger_than_what_ended_before_it(
    store: Store,
) -> None:
    """The process that saw that clock may be gone, and with it what it knew of it."""

    async def scenario() -> None:
        async with opened(store):
            times = [5, 50, 3, 60]
            await store.perform([keep(f"t{n}", State.COMMITTED, at) for n, at in enumerate(times)])
            assert await store.drop_tombstones(30) == 1
            assert [e.ended_at_ms for e in await store.ended(0, 10)] == [50, 3, 60]
            assert await store.drop_tombstones(51) == 2
            assert [e.ended_at_ms for e in await store.ended(0, 10)] == [60]
            await store.perform(
                [keep("first", State.COMMITTED, 4), keep("last", State.COMMITTED, 3)]
            )
            assert await store.drop_tombstones(51) == 0

    asyncio.run(scenario())


def test_tombstones_that_cannot_be_dropped_now_are_a_refusal_for_now(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path, busy_timeout_ms=1)) as store:
            await store.perform([keep(f"t{n}", State.COMMITTED, n) for n in range(3)])
            other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
            with contextlib.closing(other):
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(StoreUnavailable, match="locked"):
                    await store.drop_tombstones(8)
            assert len(await store.ended(0, 10)) == 3

    asyncio.run(scenario())


def test_what_is_asked_of_tombstones_never_looks_at_every_row() -> None:
    """There are seven days of them, and messages wait meanwhile."""
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        for statement in sqlite_file._SCHEMA:
            file.execute(statement)
        for asked, values in (
            (sqlite_file._LAST, ()),
            (sqlite_file._NEWEST, ()),
            (sqlite_file._ENDED, (0, 10)),
            (sqlite_file._DROP, (0, 0, 10)),
        ):
            plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {asked}", values)]
            looked = [step for step in plan if step.startswith(("SEARCH", "SCAN"))]
            assert looked
            assert all("INDEX assent_tombstones" in step for step in looked), plan


def test_who_is_in_doubt_is_found_without_a_look_at_every_row() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as file:
        for statement in (*sqlite_file._SCHEMA, sqlite_file._ADDED):
            file.execute(statement)
        for asked, index in (
            (sqlite_file._PREPARED, "assent_in_doubt"),
            (sqlite_file._ACTIVE, "assent_active"),
        ):
            plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {asked}", (10,))]
            assert len(plan) == 1, "nothing is sorted"
            assert f"USING INDEX {index}" in plan[0]


def test_a_file_of_before_is_opened_and_gets_what_has_been_added(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([both(keep("t1", State.PREPARED, 1), put("a", 1))])
        with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as file:
            file.execute("DROP INDEX assent_active")
            made = [name for (name,) in file.execute("SELECT name FROM sqlite_master")]
            assert "assent_active" not in made
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep("t2", State.ACTIVE, 2)])
            assert [r.transaction_id for r in await store.in_doubt(9)] == ["t1", "t2"]
            names = await store.read(
                lambda f: f.execute("SELECT name FROM sqlite_master").fetchall()
            )
            assert ("assent_active",) in names

    asyncio.run(scenario())


def test_a_number_is_never_given_twice(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep(f"t{n}", State.COMMITTED, 1) for n in range(3)])
            last = (await store.ended(0, 10))[-1].number
            await store.drop_tombstones(1_000)
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep("next", State.COMMITTED, 2)])
            assert [e.transaction_id for e in await store.ended(last, 10)] == ["next"]

    asyncio.run(scenario())


# --- SQLite ---------------------------------------------------------------------------------------


def test_everything_is_there_after_opening_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([both(keep("t1", State.PREPARED, 7), put("a", 1))])
            await store.perform([keep("t2", State.COMMITTED, 8)])
            (last,) = await store.ended(0, 10)
        async with opened(sqlite(tmp_path)) as store:
            assert await find(store, "t1") == record("t1", State.PREPARED, 7)
            (doubtful,) = await store.in_doubt(10)
            assert doubtful == record("t1", State.PREPARED, 7)._replace(payload=b"null")
            assert await own(store) == {"a": 1}
            await store.perform([keep("t3", State.COMMITTED, 9)])
            (next_one,) = await store.ended(last.number, 10)
            assert next_one.transaction_id == "t3"

    asyncio.run(scenario())


def test_the_file_is_synced_at_each_end_of_a_local_transaction(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            (settings,) = await store.perform(
                [
                    lambda local: (
                        local.resource.execute("PRAGMA journal_mode").fetchone()[0],
                        local.resource.execute("PRAGMA synchronous").fetchone()[0],
                    )
                ]
            )
            assert settings == ("wal", 2)  # 2: FULL

    asyncio.run(scenario())


def test_a_store_that_is_closed_is_one_file_and_has_no_threads(tmp_path: Path) -> None:
    """A copy of it that leaves out what SQLite keeps beside it must have everything."""

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep("t1", State.PREPARED)])
            threads = [one for one in threading.enumerate() if one.name.startswith("test-store")]
            assert len(threads) == 2
        assert sorted(os.listdir(tmp_path)) == ["store.sqlite", "store.sqlite-lock"]
        assert not any(thread.is_alive() for thread in threads)

    asyncio.run(scenario())


def test_who_reads_beside_the_writing_cannot_write(tmp_path: Path) -> None:
    """It would be kept outside of any local transaction, and answered by nobody."""

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep("t1", State.PREPARED)])
            with pytest.raises(StoreUnavailable, match="readonly"):
                await store.read(lambda file: file.execute("DELETE FROM assent_branches"))
            assert len(await store.in_doubt(10)) == 1

    asyncio.run(scenario())


def test_what_is_counted_is_looked_at_piece_by_piece(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be millions of branches; whoever is in doubt is not to wait for all of them."""
    monkeypatch.setattr(sqlite_store, "MAX_COUNTED", 3)
    pieces = note_pieces(monkeypatch)

    async def scenario() -> None:
        async with opened(store):
            await store.perform([keep(f"t{n}", State.COMMITTED) for n in range(10)])
            await store.perform([both(*[keep_branch(n) for n in range(2, 9)])])
            await store.perform([keep("t5", State.PREPARED)])
            assert await store.count() == {
                State.ACTIVE: 0, State.PREPARED: 1, State.COMMITTED: 9, State.ROLLED_BACK: 7
            }  # fmt: skip
            assert isinstance(store, MemoryStore) or pieces == [3, 3, 3, 3, 3, 2]

    asyncio.run(scenario())


def keep_branch(number: int) -> Work:
    """Another one of `t1`."""
    rolled_back = BranchRecord("t1", f"{number}", Branch(State.ROLLED_BACK))
    return lambda local: local.keep(rolled_back)


def note_pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many branches a SqliteStore counts at a time from now on."""
    pieces: list[int] = []
    read_count = sqlite_file.read_count

    def noted(file: sqlite3.Connection, after: BranchKey, most: int) -> Any:
        counted = read_count(file, after, most)
        pieces.append(sum(counted[0].values()))
        return counted

    monkeypatch.setattr(sqlite_file, "read_count", noted)
    return pieces


def test_who_asks_for_the_count_while_it_is_made_shares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who ask every few seconds, and give up, would never be done with."""
    pieces = note_pieces(monkeypatch)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([keep("t1", State.PREPARED)])
            impatient, *others = [asyncio.create_task(store.count()) for _ in range(6)]
            await asyncio.sleep(0)
            impatient.cancel()
            counts = await asyncio.gather(*others)
            assert [each[State.PREPARED] for each in counts] == [1] * 5
            assert pieces == [1]
            await store.perform([keep("t2", State.PREPARED)])
            assert (await store.count())[State.PREPARED] == 2

    asyncio.run(scenario())


def test_only_so_many_questions_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_QUESTIONS", 3)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            asked = [store.read(lambda _: 1) for _ in range(5)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert answers[:3] == [1, 1, 1]
            assert all(isinstance(answer, StoreUnavailable) for answer in answers[3:])
            assert await store.read(lambda _: 2) == 2

    asyncio.run(scenario())


def test_a_question_that_breaks_off_does_not_keep_the_next_from_what_is_new(
    tmp_path: Path,
) -> None:
    """It had begun a local transaction of its own; inquiries would see nothing of what follows."""

    def broken(file: sqlite3.Connection) -> None:
        file.execute("BEGIN")
        file.execute("SELECT * FROM own").fetchall()
        raise LookupError("a mistake")

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            with pytest.raises(LookupError):
                await store.read(broken)
            await store.perform([keep("t1", State.PREPARED)])
            assert [record.transaction_id for record in await store.in_doubt(10)] == ["t1"]

    asyncio.run(scenario())


def test_the_log_that_grew_while_somebody_read_becomes_small_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "LOG_BYTES", 1 << 16)
    log = tmp_path / "store.sqlite-wal"

    def large(name: str) -> Work:
        kept = BranchRecord(name, "1", Branch(State.PREPARED), b'"%b"' % (b"x" * 1_000_000))
        return lambda local: local.keep(kept)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            backup = sqlite3.connect(store.path, isolation_level=None)
            with contextlib.closing(backup):
                backup.execute("BEGIN")
                backup.execute("SELECT * FROM own").fetchall()
                for number in range(10):
                    await store.perform([large(f"t{number}")])
                assert log.stat().st_size > 10_000_000
            for number in range(3):
                await store.perform([keep(f"u{number}", State.PREPARED)])
            assert log.stat().st_size <= 1 << 16

    asyncio.run(scenario())


def test_another_process_is_waited_for_as_long_as_was_said(tmp_path: Path) -> None:
    def patience(file: sqlite3.Connection) -> int:
        (timeout_ms,) = file.execute("PRAGMA busy_timeout").fetchone()
        return int(timeout_ms)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path, busy_timeout_ms=300)) as store:
            assert await store.perform([lambda local: patience(local.resource)]) == [300]
            assert await store.read(patience) == 300

    asyncio.run(scenario())


def test_the_directories_above_the_file_are_made(tmp_path: Path) -> None:
    file = tmp_path / "var" / "lib" / "store.sqlite"

    async def scenario() -> None:
        async with opened(SqliteStore(file, owner="test")):
            assert file.is_file()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("most", "sizes", "groups"),
    [
        (1_000, [1] * 50, 1),
        (3, [2, 1, 1], 2),
        (3, [5, 1, 2], 2),
        (3, [1, 3, 4], 3),
    ],
)
def test_what_waits_shares_a_local_transaction_as_far_as_it_may(
    most: int, sizes: list[int], groups: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_GROUP", most)
    monkeypatch.setattr(sqlite_file, "GROUP_S", 60)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store, asyncio.timeout(30):
            ends: list[str] = []
            release = threading.Event()

            def watch(local: Local) -> None:
                local.resource.set_trace_callback(
                    lambda sql: ends.append(sql) if sql == "COMMIT" else None
                )

            await store.perform([watch])
            ends.clear()
            first = asyncio.create_task(store.perform([lambda _: release.wait(30)]))
            await asyncio.sleep(0)
            rest = [
                asyncio.create_task(store.perform([put(f"k{n}.{i}", i) for i in range(size)]))
                for n, size in enumerate(sizes)
            ]
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(first, *rest)
            assert len(await own(store)) == sum(sizes)
            assert len(ends) == 1 + groups, "one for the first, which all others waited for"

    asyncio.run(scenario())


def test_who_works_long_does_not_keep_those_before_from_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "GROUP_S", 0)  # each piece of work takes too long

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store, asyncio.timeout(30):
            begins, release = threading.Event(), threading.Event()

            def slow(_: Local) -> str:
                begins.set()
                return "slow" if release.wait(10) else "nobody had his answer before"

            busy = asyncio.create_task(store.perform([lambda _: begins.wait(30)]))
            await asyncio.sleep(0)
            quick = asyncio.create_task(store.perform([put("k", 1)]))
            both = asyncio.create_task(store.perform([put("l", 2), slow, put("m", 3)]))
            after = asyncio.create_task(store.perform([put("n", 4)]))
            await asyncio.sleep(0)
            begins.set()
            await busy
            await quick
            assert not both.done()
            release.set()
            assert (await both)[1] == "slow"
            await after
            assert len(await own(store)) == 4
            assert store._waiting_works == 0, "else the bound on them drifts"

    asyncio.run(scenario())


def test_what_is_left_of_a_group_comes_before_what_came_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "GROUP_S", 0)

    async def scenario() -> None:
        done: list[str] = []
        async with opened(sqlite(tmp_path)) as store, asyncio.timeout(30):
            release = threading.Event()

            def first(_: Local) -> None:
                release.wait(30)
                done.append("first")

            works = [first, *(lambda _, what=what: done.append(what) for what in ("2nd", "3rd"))]
            group = asyncio.create_task(store.perform(works))
            await asyncio.sleep(0)
            later = asyncio.create_task(store.perform([lambda _: done.append("later")]))
            await asyncio.sleep(0)
            release.set()
            await asyncio.gather(group, later)
        assert done == ["first", "2nd", "3rd", "later"]

    asyncio.run(scenario())


def test_what_is_left_of_a_group_is_refused_by_a_store_that_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "GROUP_S", 0)

    async def scenario() -> None:
        store = sqlite(tmp_path)
        async with asyncio.timeout(30):
            await store.open(lambda _: None)
            release = threading.Event()
            works = [lambda _: release.wait(30), put("k", 1), put("l", 2)]
            performed = asyncio.create_task(store.perform(works))
            await asyncio.sleep(0)
            closing = asyncio.create_task(store.close())
            await asyncio.sleep(0)
            release.set()
            await closing
            first, *others = await performed
            assert first is True
            assert [type(other) for other in others] == [StoreUnavailable] * 2

    asyncio.run(scenario())


def test_each_caller_gets_the_results_of_its_own_works_and_one_that_went_away_keeps_no_other(
    tmp_path: Path,
) -> None:
    def returning(number: int) -> Work:
        return lambda _: number

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store, asyncio.timeout(30):
            release = threading.Event()
            first = asyncio.create_task(store.perform([lambda _: release.wait(30)]))
            await asyncio.sleep(0)
            callers = [
                asyncio.create_task(store.perform([returning(10 * n + i) for i in range(size)]))
                for n, size in enumerate((2, 1, 3))
            ]
            await asyncio.sleep(0)
            callers[1].cancel()
            release.set()
            assert await first == [True]
            assert await callers[0] == [0, 1]
            assert await callers[2] == [20, 21, 22]
            assert store._waiting_works == 0

    asyncio.run(scenario())


def test_too_much_waiting_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "MAX_WAITING", 2)

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            release = threading.Event()
            first = asyncio.create_task(store.perform([lambda _: release.wait(30)]))
            await asyncio.sleep(0)
            waiting = asyncio.create_task(store.perform([put("a", 1), put("b", 2)]))
            await asyncio.sleep(0)
            (refused,) = await store.perform([put("c", 3)])
            assert isinstance(refused, StoreUnavailable)
            release.set()
            await asyncio.gather(first, waiting)
            assert await own(store) == {"a": 1, "b": 2}

    asyncio.run(scenario())


def test_a_locked_file_is_a_refusal_for_now_and_keeps_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path, busy_timeout_ms=50)) as store:
            other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
            with contextlib.closing(other):
                other.execute("BEGIN IMMEDIATE")
                results = await store.perform([put("a", 1), keep("t1", State.PREPARED)])
                assert all(isinstance(result, StoreUnavailable) for result in results)
                other.execute("ROLLBACK")
            assert await own(store) == {}
            assert await store.perform([put("a", 2)]) == [None]
            assert await own(store) == {"a": 2}

    asyncio.run(scenario())


def test_a_locked_file_is_waited_for_once_and_not_by_each_piece_of_work(tmp_path: Path) -> None:
    """A thousand of them, one after the other, would hold the store up for half an hour."""

    async def scenario() -> None:
        async with opened(sqlite(tmp_path, busy_timeout_ms=1)) as store:
            begun: list[str] = []

            def watch(local: Local) -> None:
                local.resource.set_trace_callback(
                    lambda sql: begun.append(sql) if sql.startswith("BEGIN") else None
                )

            await store.perform([watch])
            begun.clear()
            other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
            with contextlib.closing(other):
                other.execute("BEGIN IMMEDIATE")
                await store.perform([put("a", 1), put("b", 2), put("c", 3)])
            assert begun == ["BEGIN IMMEDIATE"]

    asyncio.run(scenario())


def test_a_full_disk_keeps_nothing_of_the_group_and_ends_with_the_fullness(tmp_path: Path) -> None:
    def fill(local: Local) -> None:
        local.resource.execute("INSERT INTO own VALUES (zeroblob(1000000), 1)")

    def limit_pages(pages: int) -> Work:
        return lambda local: local.resource.execute(f"PRAGMA max_page_count = {pages}").fetchone()

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            await store.perform([limit_pages(40)])
            results = await store.perform([both(keep("t1", State.PREPARED), fill)])
            assert isinstance(results[0], StoreUnavailable)
            assert "full" in str(results[0])
            assert await own(store) == {}
            assert await store.in_doubt(10) == []
            await store.perform([limit_pages(1_000_000)])
            assert await store.perform([both(keep("t1", State.PREPARED), fill)]) == [None]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "ending",
    [
        lambda local: local.resource.commit(),
        lambda local: local.resource.rollback(),
        lambda local: local.resource.close(),
        lambda local: local.resource.executescript("SELECT 1"),
        lambda local: local.resource.__enter__(),
        lambda local: local.resource.execute("ROLLBACK"),
        lambda local: local.resource.execute("RELEASE assent_work"),
    ],
)
def test_the_resource_cannot_end_the_local_transaction(ending: Work, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            results = await store.perform(
                [
                    both(keep("t1", State.PREPARED), put("a", 1)),
                    both(keep("t2", State.PREPARED), put("b", 1), ending),
                    both(keep("t3", State.PREPARED), put("c", 1)),
                ]
            )
            assert isinstance(results[1], Exception)
            assert (results[0], results[2]) == (None, None)
            assert await own(store) == {"a": 1, "c": 1}
            assert [r.transaction_id for r in await store.in_doubt(10)] == ["t1", "t3"]

    asyncio.run(scenario())


def test_the_resource_may_have_its_rows_as_it_likes(tmp_path: Path) -> None:
    def as_dicts(file: sqlite3.Connection) -> None:
        file.row_factory = lambda cursor, row: dict(
            zip((column[0] for column in cursor.description), row, strict=True)
        )

    def create_with_dicts(transaction: sqlite3.Connection) -> None:
        as_dicts(transaction)
        create(transaction)

    async def scenario() -> None:
        store = sqlite(tmp_path)
        await store.open(create_with_dicts)
        await store.perform([keep("t1", State.PREPARED), keep("t2", State.COMMITTED)])
        assert await store.perform([lambda local: local.find("t1", "1")]) == [
            record("t1", State.PREPARED)
        ]
        assert await store.perform(
            [lambda local: local.resource.execute("SELECT 1 AS a").fetchall()]
        ) == [[{"a": 1}]]
        await store.read(as_dicts)
        (doubtful,) = await store.in_doubt(9)
        assert doubtful == record("t1", State.PREPARED)._replace(payload=b"null")
        assert [ended.transaction_id for ended in await store.ended(0, 9)] == ["t2"]
        assert (await store.count())[State.COMMITTED] == 1
        await store.close()

    asyncio.run(scenario())


def test_a_local_transaction_that_is_begun_again_is_told_from_the_stores_own(
    tmp_path: Path,
) -> None:
    def begins_again(local: Local) -> None:
        local.resource.execute("COMMIT")
        local.resource.execute("BEGIN")

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            for work in (begins_again, both(begins_again, failing(ValueError("and fails")))):
                (result,) = await store.perform([work])
                assert isinstance(result, StoreUnavailable)
                assert "take COMMIT or ROLLBACK out of it" in str(result)

    asyncio.run(scenario())


def test_savepoints_of_the_resources_own_do_not_stand_in_the_way_of_an_undo(
    tmp_path: Path,
) -> None:
    """One that is left open when the work fails: under the store's name it was gone back to, and
    what came before it was kept of work that had failed."""

    def opens_savepoint(local: Local) -> None:
        put("a", 1)(local)
        local.resource.execute("SAVEPOINT work")
        put("b", 2)(local)

    def undoes(local: Local) -> None:
        local.undo()

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            works = [
                both(opens_savepoint, failing(ValueError("no"))),
                both(opens_savepoint, undoes),
            ]
            failed, undone = await store.perform(works)
            assert isinstance(failed, ValueError)
            assert undone is None
            assert await own(store) == {}

    asyncio.run(scenario())


def test_the_resource_cannot_change_how_the_store_reads_text(tmp_path: Path) -> None:
    def as_bytes(local: Local) -> None:
        local.resource.text_factory = bytes

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            refused, kept = await store.perform([as_bytes, keep("t1", State.PREPARED)])
            assert isinstance(refused, sqlite3.ProgrammingError)
            assert kept is None
            assert await store.perform([lambda local: local.find("t1", "1")]) == [
                record("t1", State.PREPARED)
            ]

    asyncio.run(scenario())


def test_a_constraint_that_fails_at_the_end_is_the_fault_of_one(tmp_path: Path) -> None:
    def add_constrained(local: Local) -> None:
        local.resource.execute("PRAGMA defer_foreign_keys = ON")
        local.resource.execute("INSERT INTO child VALUES ('nobody')")

    def create_constrained(transaction: sqlite3.Connection) -> None:
        create(transaction)
        transaction.execute("CREATE TABLE child (parent TEXT REFERENCES own (key))")

    async def scenario() -> None:
        store = sqlite(tmp_path)
        await store.open(create_constrained)
        results = await store.perform([put("a", 1), add_constrained, put("b", 2)])
        assert (results[0], results[2]) == (None, None)
        assert isinstance(results[1], StoreUnavailable)
        assert await own(store) == {"a": 1, "b": 2}
        await store.close()

    asyncio.run(scenario())


def test_the_resources_own_mistake_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            (result,) = await store.perform(
                [lambda local: local.resource.execute("SELECT * FROM nowhere")]
            )
            assert isinstance(result, sqlite3.OperationalError)

    asyncio.run(scenario())


def test_what_the_machine_is_to_blame_for_is_no_answer_of_the_resource(tmp_path: Path) -> None:
    """Asked again it may be well; the resource's own mistakes stay its own."""
    broken = sqlite3.OperationalError("disk I/O error")
    broken.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    behind = sqlite3.OperationalError("database is locked")
    behind.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    taken = sqlite3.IntegrityError("UNIQUE constraint failed")
    taken.sqlite_errorcode = sqlite3.SQLITE_CONSTRAINT_UNIQUE

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            results = await store.perform(
                [put("a", 1), *[failing(error) for error in (broken, behind, taken)]]
            )
            assert results[0] is None
            assert isinstance(results[1], StoreUnavailable)
            assert isinstance(results[2], StoreUnavailable)
            assert results[3] is taken
            assert await own(store) == {"a": 1}

    asyncio.run(scenario())


def test_a_resource_that_would_end_the_process_fails_alone(store: Store) -> None:
    def leaves(_: Local) -> None:
        sys.exit("enough")

    async def scenario() -> None:
        async with opened(store), asyncio.timeout(30):
            before, left, after = await store.perform(
                [put("a", 1), both(put("b", 2), leaves), put("c", 3)]
            )
            assert (before, after) == (None, None)
            assert isinstance(left, RuntimeError)
            assert "SystemExit" in str(left)
            assert await store.perform([put("d", 4)]) == [None]
            assert await own(store) == {"a": 1, "c": 3, "d": 4}

    asyncio.run(scenario())


def test_a_failure_that_undid_the_work_of_others_is_never_their_success(tmp_path: Path) -> None:
    """As SQLite does when the disk is full: the whole local transaction is gone."""

    def undoes_all(local: Local) -> None:
        local.resource.execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            before, undone, after = await store.perform([put("a", 1), undoes_all, put("c", 3)])
            assert isinstance(undone, StoreUnavailable)
            assert "full" in str(undone), "and it was not the resource that ended it"
            kept = {key for key, result in (("a", before), ("c", after)) if result is None}
            assert set(await own(store)) == kept == {"a", "c"}, "they are carried out again, alone"

    asyncio.run(scenario())


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_bytes(b"this is a diary, and no database at all" * 100)
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="not a sound SQLite database"):
        asyncio.run(sqlite(tmp_path).open(create))
    assert path.read_bytes() == before


def test_a_strangers_database_is_refused_and_left_alone_unless_adopted(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("CREATE TABLE theirs (a)")
    before = path.read_bytes()
    with pytest.raises(StoreRefused, match="something else"):
        asyncio.run(sqlite(tmp_path).open(create))
    assert path.read_bytes() == before

    async def scenario() -> None:
        async with opened(sqlite(tmp_path, adopt=True)) as store:
            assert await store.perform([keep("t1", State.PREPARED)]) == [None]
        async with opened(sqlite(tmp_path)) as store:  # from now on it is ours as well
            assert len(await store.in_doubt(10)) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ("UPDATE assent_format SET version = 99", "run the newer program"),
        ("DELETE FROM assent_format", "does not say whose it is"),
        ("UPDATE assent_format SET owner = 'another'", "belongs to 'another'"),
    ],
)
def test_a_newer_file_and_another_services_file_are_refused(
    change: str, match: str, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)):
            pass
        with contextlib.closing(sqlite3.connect(tmp_path / "store.sqlite")) as file, file:
            file.execute(change)
        with pytest.raises(StoreRefused, match=match):
            await sqlite(tmp_path).open(create)

    asyncio.run(scenario())


def test_the_name_of_a_new_file_is_synced_before_anything_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can cut the power, so the call to the system is held itself."""
    synced: list[int] = []
    real = os.fsync

    def spy(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    directory = tmp_path.stat().st_ino

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)):
            assert synced == [directory]

    asyncio.run(scenario())


def test_a_second_opener_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(sqlite(tmp_path)):
            with pytest.raises(StoreRefused, match="another process"):
                await sqlite(tmp_path).open(create)
        async with opened(sqlite(tmp_path)):
            pass

    asyncio.run(scenario())


def test_a_second_opener_is_refused_by_whatever_link_it_comes(tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(tmp_path / "store.sqlite")

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)):
            with pytest.raises(StoreRefused, match="another process"):
                await SqliteStore(tmp_path / "link.sqlite", owner="test").open(create)

    asyncio.run(scenario())


@pytest.mark.parametrize("replaced", [False, True])
def test_nothing_is_kept_in_a_file_that_is_gone(replaced: bool, tmp_path: Path) -> None:
    """It was kept, where nobody would ever find it: a commit was acknowledged, and lost."""
    path, aside = tmp_path / "store.sqlite", tmp_path / "aside"
    calls = []

    def counted(_: Local) -> None:
        calls.append("once")

    async def scenario() -> None:
        async with opened(sqlite(tmp_path)) as store:
            assert await store.perform([put("a", 1)]) == [None]
            path.rename(aside)
            if replaced:
                path.write_bytes(aside.read_bytes())
            results = await store.perform([counted, put("c", 3)])
            assert all(isinstance(result, StoreUnavailable) for result in results)
            assert "replaced or deleted" in str(results[0])
            assert calls == ["once"]
            aside.replace(path)
            assert await store.perform([put("d", 4)]) == [None]

    asyncio.run(scenario())


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    store = SqliteStore(tmp_path / "taken" / "store.sqlite", owner="test")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        asyncio.run(store.open(create))


def test_a_store_that_cannot_be_read_is_not_open_and_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"

    def create_and_move(file: sqlite3.Connection) -> None:
        create(file)
        path.rename(tmp_path / "moved")

    async def scenario() -> None:
        store = sqlite(tmp_path)
        with pytest.raises(StoreUnavailable, match=r"cannot be opened: unable to open"):
            await store.open(create_and_move)
        assert isinstance((await store.perform([put("a", 1)]))[0], StoreUnavailable)
        async with opened(sqlite(tmp_path)):
            pass

    asyncio.run(scenario())


def test_a_store_whose_file_cannot_be_opened_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.mkdir()

    async def scenario() -> None:
        with pytest.raises(StoreUnavailable, match=r"cannot be opened: unable to open"):
            await sqlite(tmp_path).open(create)
        path.rmdir()
        async with opened(sqlite(tmp_path)):
            pass

    asyncio.run(scenario())


def test_a_store_that_is_closed_or_not_open_refuses(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = sqlite(tmp_path)
        assert isinstance((await store.perform([put("a", 1)]))[0], StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await store.in_doubt(1)
        await sqlite(tmp_path).close()
        async with opened(store):
            pass
        assert isinstance((await store.perform([put("a", 1)]))[0], StoreUnavailable)
        with pytest.raises(StoreUnavailable):
            await store.in_doubt(1)

    asyncio.run(scenario())


def test_closing_ends_what_is_under_way_and_refuses_what_waits(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = sqlite(tmp_path)
        await store.open(create)
        release = threading.Event()

        def slowly(local: Local) -> None:
            release.wait(30)
            put("a", 1)(local)

        first = asyncio.create_task(store.perform([slowly]))
        await asyncio.sleep(0)
        second = asyncio.create_task(store.perform([put("b", 2)]))
        await asyncio.sleep(0)
        closing = asyncio.create_task(store.close())
        await asyncio.sleep(0)
        release.set()
        await closing
        assert await first == [None]
        assert isinstance((await second)[0], StoreUnavailable)
        async with opened(sqlite(tmp_path)) as again:
            assert await own(again) == {"a": 1}

    asyncio.run(scenario())
