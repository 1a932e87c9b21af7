"""The SDK over real HTTP: each effect happens once, whatever repeats, overtakes or fails."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from participants.branch import State
from participants.clock import LeastClock
from participants.contract import MAX_REASON_CHARS, Vote
from participants.memory_store import MemoryStore, MemoryTable
from participants.sdk import Participant, ParticipantSettings, Refused, Resource, Work
from participants.sqlite_store import SqliteStore
from tests.participant_rig import (
    FAR_AWAY,
    LONG_AGO,
    QUIET,
    Ledger,
    Rig,
    calling,
    end_message,
    prepare_message,
    run,
    until,
)

# --- the branch table, over HTTP ----------------------------------------------------------------


def test_a_branch_is_prepared_and_committed(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        prepared = await r.call.prepare("t1", {"n": 1})
        assert (prepared.status, prepared.body["vote"]) == (200, "yes")
        assert await r.states() == {"prepared": 1}
        committed = await r.call.commit("t1")
        assert (committed.status, committed.body["state"]) == (200, "committed")
        assert await r.ledger() == ["prepare t1/1", "commit {'n': 1} t1/1"]

    run(scenario, tmp_path)


def test_every_message_may_be_repeated_and_works_once(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        for _ in range(3):
            assert (await r.call.prepare("t1")).body["vote"] == "yes"
            assert (await r.call.prepare("t2")).body["vote"] == "yes"
        for _ in range(3):
            assert (await r.call.commit("t1")).status == 200
            assert (await r.call.rollback("t2")).status == 200
        assert r.resource.calls == ["prepare", "prepare", "commit None", "rollback None"]

    run(scenario, tmp_path)


def test_a_late_prepare_finds_the_branch_over(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.rollback("overtaken")).status == 200
        await r.call.prepare("finished")
        await r.call.commit("finished")
        for transaction_id in ("overtaken", "finished"):
            late = await r.call.prepare(transaction_id)
            assert (late.status, late.body["vote"]) == (200, "no")
            assert late.body["reason"]
        assert r.resource.calls == ["prepare", "commit None"]
        assert await r.states() == {"committed": 1, "rolled_back": 1}

    run(scenario, tmp_path)


def test_a_commit_of_what_is_not_there_is_no_acknowledgement(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        unknown = await r.call.commit("t1")
        assert (unknown.status, unknown.code) == (404, "unknown_branch")
        assert await r.states() == {}
        assert (await r.call.prepare("t1")).body["vote"] == "yes", "404 has left nothing behind"

    run(scenario, tmp_path)


def test_an_end_is_never_changed_into_the_other(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1")
        await r.call.commit("t1")
        refused = await r.call.rollback("t1")
        assert (refused.status, refused.code) == (409, "already_committed")
        await r.call.rollback("t2")
        refused = await r.call.commit("t2")
        assert (refused.status, refused.code) == (409, "already_rolled_back")
        assert await r.states() == {"committed": 1, "rolled_back": 1}

    run(scenario, tmp_path)


def test_another_request_under_the_same_id_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1", "first", fingerprint="one")
        assert (await r.call.prepare("t1", "second", fingerprint="two")).body["vote"] == "no"
        assert (await r.call.prepare("t1", "first", fingerprint="one")).body["vote"] == "yes"
        await r.call.commit("t1")
        assert await r.ledger() == ["prepare t1/1", "commit 'first' t1/1"]

    run(scenario, tmp_path)


def test_branches_of_one_transaction_are_apart(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1", branch_id="1")
        await r.call.prepare("t1", branch_id="2")
        await r.call.commit("t1", "1")
        assert await r.states() == {"prepared": 1, "committed": 1}

    run(scenario, tmp_path)


# --- votes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "vote", "reason"),
    [("refuse", "no", "sold out"), ("no", "no", "refused, no reason given")],
)
def test_a_no_says_why_and_keeps_nothing(
    payload: str, vote: str, reason: str, tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        answer = await r.call.prepare("t1", payload)
        assert (answer.status, answer.body["vote"]) == (200, vote)
        assert answer.body["reason"] == reason
        assert await r.ledger() == []
        assert await r.states() == {}
        assert (await r.call.prepare("t1", "yes")).body["vote"] == "yes", "NO is not remembered"

    run(scenario, tmp_path)


def test_a_long_reason_is_cut_before_it_makes_the_answer_too_long(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        answer = await r.call.prepare("t1", "explain")
        assert len(answer.body["reason"]) == MAX_REASON_CHARS

    run(scenario, tmp_path)


def test_a_read_only_branch_leaves_nothing(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.prepare("t1", "read")).body["vote"] == "read_only"
        assert await r.ledger() == []
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_prepare_is_accepted_until_it_expires_and_the_grace_is_over(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        # The clock of this participant stands at 100 s after 1970; the grace is 5 s.
        in_time = await r.call.prepare("t1", expires_at="1970-01-01T00:01:35.000Z")
        assert in_time.body["vote"] == "yes"
        late = await r.call.prepare("t2", expires_at="1970-01-01T00:01:34.999Z")
        assert late.body["vote"] == "no"
        assert "expired" in late.body["reason"]
        assert "by the clock of this service" in late.body["reason"]
        assert r.resource.calls == ["prepare"]

    run(scenario, tmp_path, now_ms=lambda: 100_000)


def test_a_prepared_branch_never_ends_because_of_time(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1", expires_at=FAR_AWAY)
        repeated = await r.call.prepare("t1", expires_at=LONG_AGO)
        assert repeated.body["vote"] == "yes"
        assert (await r.call.commit("t1")).status == 200

    run(scenario, tmp_path)


# --- failures of the resource -------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["raise", "nothing"])
def test_a_prepare_that_fails_keeps_nothing(payload: str, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        failed = await r.call.prepare("t1", payload)
        assert (failed.status, failed.code) == (500, "resource_failed")
        assert await r.ledger() == []
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_commit_or_rollback_that_fails_leaves_the_branch_prepared(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1")
        await r.call.prepare("t2")
        r.resource.fails = 2
        assert (await r.call.commit("t1")).code == "resource_failed"
        assert (await r.call.rollback("t2")).code == "resource_failed"
        assert await r.states() == {"prepared": 2}
        assert await r.ledger() == ["prepare t1/1", "prepare t2/1"]
        assert (await r.call.commit("t1")).status == 200
        assert (await r.call.rollback("t2")).status == 200
        assert len(await r.ledger()) == 4

    run(scenario, tmp_path)


def test_a_store_that_cannot_write_is_a_503_and_nothing_has_changed(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1")
        with contextlib.closing(sqlite3.connect(r.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for refused in (
                await r.call.prepare("t2"),
                await r.call.commit("t1"),
                await r.call.rollback("t1"),
            ):
                assert (refused.status, refused.code) == (503, "store_unavailable")
        assert await r.states() == {"prepared": 1}
        assert await r.ledger() == ["prepare t1/1"]
        assert (await r.call.commit("t1")).status == 200

    run(scenario, tmp_path)


def test_async_functions_are_refused_when_the_participant_is_made() -> None:
    class Wrong(Ledger):
        async def prepare(self, work: Any, payload: Any) -> Vote:  # type: ignore[override]
            raise NotImplementedError

    class NeverCreates(Ledger):
        async def create(self, transaction: Any) -> None:  # type: ignore[override]
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Wrong\.prepare is async"):
        Participant(Wrong(), SqliteStore(Path("unused"), owner="unused"))
    with pytest.raises(TypeError, match=r"NeverCreates\.create is async"):
        Participant(NeverCreates(), SqliteStore(Path("unused"), owner="unused"))


@pytest.mark.parametrize("operation", ["commit", "rollback"])
def test_what_nobody_runs_is_no_end_of_a_branch(operation: str, tmp_path: Path) -> None:
    """As a decorated function that is async within, or one with a `yield`: nothing was done, and
    the branch counted as ended."""

    async def never_runs() -> None:
        raise NotImplementedError

    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1")
        right = getattr(r.resource, operation)
        for wrong in (lambda _: never_runs(), lambda _: (n for n in range(3))):
            setattr(r.resource, operation, wrong)
            refused = await getattr(r.call, operation)("t1")
            assert (refused.status, refused.code) == (500, "resource_failed")
            assert "which nobody runs" in str(refused.body)
        assert await r.states() == {"prepared": 1}
        setattr(r.resource, operation, lambda work: right(work) or "as anything else")
        assert (await getattr(r.call, operation)("t1")).status == 200

    run(scenario, tmp_path)


# --- at the same time ---------------------------------------------------------------------------


def test_two_prepares_of_one_branch_at_once_work_once(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        first = asyncio.create_task(r.call.prepare("t1", "wait"))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, r.resource.entered.wait, 30)
        second = asyncio.create_task(r.call.prepare("t1", "wait"))
        r.resource.release.set()
        assert (await first).body["vote"] == (await second).body["vote"] == "yes"
        assert r.resource.calls == ["prepare"]

    run(scenario, tmp_path)


def test_a_rollback_that_comes_while_the_prepare_works_undoes_it(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        preparing = asyncio.create_task(r.call.prepare("t1", "wait"))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, r.resource.entered.wait, 30)
        rolling_back = asyncio.create_task(r.call.rollback("t1"))
        r.resource.release.set()
        assert (await preparing).body["vote"] == "yes"
        assert (await rolling_back).status == 200
        assert await r.states() == {"rolled_back": 1}
        assert r.resource.calls == ["prepare", "rollback 'wait'"]

    run(scenario, tmp_path)


def test_a_sender_that_goes_away_does_not_stop_the_work_or_the_others(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        gone = asyncio.create_task(r.call.prepare("t1", "wait"))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, r.resource.entered.wait, 30)
        other = asyncio.create_task(r.call.prepare("t2"))
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        r.resource.release.set()
        assert (await other).body["vote"] == "yes"
        assert (await r.call.prepare("t1", "wait")).body["vote"] == "yes"
        assert r.resource.calls == ["prepare", "prepare"]

    run(scenario, tmp_path)


def test_many_branches_at_once_each_work_once(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        names = [f"t{n}" for n in range(100)]
        twice = [r.call.prepare(name) for name in names for _ in range(2)]
        assert {a.body["vote"] for a in await asyncio.gather(*twice)} == {"yes"}
        twice = [r.call.commit(name) for name in names for _ in range(2)]
        assert {a.status for a in await asyncio.gather(*twice)} == {200}
        assert sorted(r.resource.calls) == ["commit None"] * 100 + ["prepare"] * 100

    run(scenario, tmp_path)


# --- what it remembers --------------------------------------------------------------------------


def test_prepared_and_ended_branches_outlive_a_restart(tmp_path: Path) -> None:
    async def before(r: Rig) -> None:
        await r.call.prepare("prepared", {"n": 1})
        await r.call.prepare("committed")
        await r.call.commit("committed")
        await r.call.rollback("rolled back")

    async def after(r: Rig) -> None:
        assert (await r.call.commit("committed")).status == 200
        assert (await r.call.prepare("rolled back")).body["vote"] == "no"
        assert (await r.call.commit("prepared")).status == 200
        assert r.resource.calls == ["commit {'n': 1}"]

    run(before, tmp_path)
    run(after, tmp_path)


TOMBSTONES = ParticipantSettings(
    tombstones_kept_ms=60_000, sweep_every_s=0.02, inquiry=QUIET.inquiry
)


class Grown:
    """What a loop's clock is patched with: time passes as it is told. The wall clock is set by
    `ahead_ms`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = 1_000_000
        self.ahead_ms = 0
        self._looks = 0
        look = LeastClock.look

        def looked(clock: LeastClock, wall_ms: float, _grown_ms: float) -> None:
            look(clock, wall_ms, self.ms)
            self._looks += 1

        now_ms = LeastClock.now_ms
        monkeypatch.setattr(LeastClock, "look", looked)
        monkeypatch.setattr(LeastClock, "now_ms", lambda clock, _: now_ms(clock, self.ms))

    def wall_ms(self) -> int:
        return self.ms + self.ahead_ms

    @contextlib.contextmanager
    def set_to(self, ahead_ms: int) -> Iterator[None]:
        before, self.ahead_ms = self.ahead_ms, ahead_ms
        try:
            yield
        finally:
            self.ahead_ms = before

    async def two_sweeps(self) -> None:
        """After what was set before."""
        seen = self._looks

        async def looked_often() -> bool:
            return self._looks > seen + 12

        await until(looked_often)


def test_tombstones_are_dropped_when_they_are_old_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Grown(monkeypatch)

    async def scenario(r: Rig) -> None:
        await r.call.rollback("young")
        grown.ms += 60_000
        await r.call.rollback("younger")
        await grown.two_sweeps()
        assert await r.states() == {"rolled_back": 2}
        grown.ms += 1_001
        await grown.two_sweeps()
        (kept,) = await r.store.ended(0, 10)
        assert kept.transaction_id == "younger"

    run(scenario, tmp_path, settings=TOMBSTONES, now_ms=grown.wall_ms)


def test_a_tombstone_is_as_old_as_the_end_however_long_the_branch_was_in_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a commit that is repeated finds nothing, and its transaction never ends."""
    grown = Grown(monkeypatch)

    async def scenario(r: Rig) -> None:
        await r.call.prepare("t1")
        grown.ms += 120_000
        await r.call.commit("t1")
        await r.call.rollback("t2")  # the newest is never dropped
        await grown.two_sweeps()
        assert await r.states() == {"committed": 1, "rolled_back": 1}

    run(scenario, tmp_path, settings=TOMBSTONES, now_ms=grown.wall_ms)


def test_no_tombstone_is_dropped_by_a_clock_that_was_set_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else what is repeated finds nothing: its work is done twice, or a commit is answered 404, and
    its transaction never ends.
    """
    grown = Grown(monkeypatch)

    async def scenario(r: Rig) -> None:
        await r.call.rollback("t1")
        await r.call.rollback("t2")  # the newest is never dropped
        for _ in range(3):  # at each look, and nobody sees that it is right in between
            grown.ahead_ms += 86_400_000
            grown.ms += 10_000
            await grown.two_sweeps()
        assert await r.states() == {"rolled_back": 2}
        assert caplog.text.count("the clock was set ahead") == 1
        grown.ms += 60_000
        await grown.two_sweeps()
        assert await r.states() == {"rolled_back": 1}

    run(scenario, tmp_path, settings=TOMBSTONES, now_ms=grown.wall_ms)


def test_what_had_ended_before_the_start_is_not_dropped_by_a_clock_that_was_right_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a day ahead at the start and at each sweep, and right while a message is received."""
    grown = Grown(monkeypatch)
    receives = Participant.receive

    async def receive(participant: Participant[Any], messages: Any) -> Any:
        with grown.set_to(0):
            return await receives(participant, messages)

    monkeypatch.setattr(Participant, "receive", receive)

    async def before(r: Rig) -> None:
        await r.call.rollback("t1")

    async def after(r: Rig) -> None:
        await r.call.rollback("t2")
        await grown.two_sweeps()
        assert await r.states() == {"rolled_back": 2}

    run(before, tmp_path, settings=TOMBSTONES, now_ms=grown.wall_ms)
    grown.ahead_ms = 86_400_000
    slow = replace(TOMBSTONES, sweep_every_s=0.2)  # not before the message has come
    run(after, tmp_path, settings=slow, now_ms=grown.wall_ms)


def test_a_clock_that_is_behind_only_while_a_branch_ends_makes_its_tombstone_no_older(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = Grown(monkeypatch)
    performs = SqliteStore.perform

    def done_behind(work: Any, local: Any) -> Any:
        with grown.set_to(-86_400_000):
            return work(local)

    async def perform(store: SqliteStore, works: Any) -> Any:
        return await performs(store, [partial(done_behind, work) for work in works])

    monkeypatch.setattr(SqliteStore, "perform", perform)

    async def scenario(r: Rig) -> None:
        await r.call.rollback("t1")
        await r.call.rollback("t2")  # the newest is never dropped
        await grown.two_sweeps()
        assert await r.states() == {"rolled_back": 2}

    run(scenario, tmp_path, settings=TOMBSTONES, now_ms=grown.wall_ms)


def test_a_sweep_of_tombstones_that_fails_in_any_way_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drop, failures = SqliteStore.drop_tombstones, [ZeroDivisionError("once")]
    swept = asyncio.Event()

    async def fails_once(store: SqliteStore, ended_before_ms: int) -> int:
        if failures:
            raise failures.pop()
        swept.set()
        return await drop(store, ended_before_ms)

    monkeypatch.setattr(SqliteStore, "drop_tombstones", fails_once)

    async def scenario(_: Rig) -> None:
        await swept.wait()

    run(scenario, tmp_path, settings=replace(QUIET, sweep_every_s=0.01))
    assert "ZeroDivisionError" in caplog.text


def test_the_default_keeps_tombstones_for_seven_days() -> None:
    assert ParticipantSettings().tombstones_kept_ms == 7 * 86_400_000


class Counter(Resource[MemoryTable]):
    def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:
        work.transaction["reserved"] = work.transaction.get("reserved", 0) + payload
        if work.transaction["reserved"] > 10:
            raise Refused("no more than 10")
        return Vote.YES

    def commit(self, work: Work[MemoryTable]) -> None:
        work.transaction["sold"] = work.transaction.get("sold", 0) + work.payload
        self.rollback(work)

    def rollback(self, work: Work[MemoryTable]) -> None:
        work.transaction["reserved"] -= work.payload


def test_the_memory_store_serves_a_resource_too() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        async with calling(Participant(Counter(), store, QUIET).application()) as call:
            assert (await call.prepare("t1", 8)).body["vote"] == "yes"
            assert (await call.prepare("t2", 5)).body["vote"] == "no"
            assert (await call.prepare("t3", 2)).body["vote"] == "yes"
            await call.commit("t1")
            await call.rollback("t3")
            assert dict(store.table) == {"reserved": 0, "sold": 8}

    asyncio.run(scenario())


class Careless(Resource[MemoryTable]):
    """Changes every payload that it gets."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:
        payload["seats"].append("prepare")
        self._look(work)
        return Vote.YES

    def commit(self, work: Work[MemoryTable]) -> None:
        self._look(work)
        if len(self.seen) < 3:
            raise RuntimeError("not now")

    def rollback(self, work: Work[MemoryTable]) -> None:
        raise NotImplementedError

    def _look(self, work: Work[MemoryTable]) -> None:
        payload = work.payload
        self.seen.append(list(payload["seats"]))
        payload["seats"].append("changed")


def test_the_resource_sees_the_trace_that_a_message_belongs_to() -> None:
    """In the header of a call, in a field of a message of a batch; None where there is none."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    seen: list[tuple[str, str, str | None]] = []

    class Traced(Resource[MemoryTable]):
        def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:  # noqa: ARG002
            seen.append(("prepare", work.transaction_id, work.traceparent))
            return Vote.YES

        def commit(self, work: Work[MemoryTable]) -> None:
            seen.append(("commit", work.transaction_id, work.traceparent))

        def rollback(self, work: Work[MemoryTable]) -> None:
            seen.append(("rollback", work.transaction_id, work.traceparent))

    async def scenario() -> None:
        participant = Participant(Traced(), MemoryStore(), QUIET)
        async with calling(participant.application()) as call:
            for id in ("t1", "t2"):
                await call.post("prepare", prepare_message(id), traceparent=trace)
            await call.post("commit", end_message("t1"), traceparent=trace)
            await call.post("rollback", end_message("t2"))
            alone = {"operation": "prepare", **prepare_message("t3")}
            traced = {"operation": "prepare", "traceparent": trace, **prepare_message("t4")}
            await call.post("batch", {"messages": [alone, traced]}, traceparent=trace)
        assert seen == [
            ("prepare", "t1", trace),
            ("prepare", "t2", trace),
            ("commit", "t1", trace),
            ("rollback", "t2", None),
            ("prepare", "t3", None),
            ("prepare", "t4", trace),
        ]

    asyncio.run(scenario())


def test_a_resource_that_changes_its_payload_changes_no_other_call_s() -> None:
    async def scenario() -> None:
        resource = Careless()
        async with calling(Participant(resource, MemoryStore(), QUIET).application()) as call:
            assert (await call.prepare("t1", {"seats": ["7a"]})).body["vote"] == "yes"
            assert (await call.commit("t1")).code == "resource_failed"
            assert (await call.commit("t1")).status == 200
        assert resource.seen == [["7a"]] * 3

    asyncio.run(scenario())


def test_every_step_is_logged_in_its_order_those_of_a_batch_in_one_record(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        def message(operation: str, transaction_id: str, payload: Any = None) -> dict[str, Any]:
            return {"operation": operation, **prepare_message(transaction_id, payload)}

        batch = [
            message("prepare", "t1"),
            message("prepare", "t2", "refuse"),
            message("prepare", "t6", "forge"),
            message("commit", "t1"),
            message("commit", "t3"),
            message("rollback", "t4"),
        ]
        await r.call.post("batch", {"messages": batch})
        r.resource.fails = 1
        await r.call.prepare("t5", "read")
        await r.call.prepare("t7")
        await r.call.commit("t7")

    with caplog.at_level("INFO", logger="assent.participant"):
        run(scenario, tmp_path)
    records = [record.getMessage() for record in caplog.records]
    lines = [line for record in records for line in record.splitlines()]
    assert lines == [
        "prepare t1/1: yes",
        "prepare t2/1: no (sold out)",
        "prepare t6/1: no (sold out\\ncommit t9/1: committed)",
        "commit t1/1: committed",
        "commit t3/1: unknown_branch",
        "rollback t4/1: rolled_back",
        "prepare t5/1: read_only",
        "prepare t7/1: yes",
        "commit t7/1 failed in the resource",
        "commit t7/1: resource_failed",
    ]
    assert records[0].startswith("\n".join(lines[:6]))


def test_every_state_is_counted() -> None:
    counts = asyncio.run(MemoryStore().count())
    assert set(counts) == set(State) - {State.ABSENT}
