"""The SDK over real HTTP: each effect happens once, whatever repeats, overtakes or fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from participants import endpoints
from participants.branch import State
from participants.contract import (
    DECLARATION_HEADER,
    Acknowledged,
    Declaration,
    Failed,
    Operation,
    Vote,
    Voted,
    batch_body,
    encode_json,
    read_batch_answers,
    read_declaration,
)
from participants.memory_store import MemoryStore, MemoryTable
from participants.sdk import Participant, ParticipantSettings, Refused, Resource, Work
from participants.sqlite_store import SqliteStore
from tests.participant_rig import (
    FAR_AWAY,
    LONG_AGO,
    QUIET,
    Caller,
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

    with pytest.raises(TypeError, match=r"Wrong\.prepare is async"):
        Participant(Wrong(), SqliteStore(Path("unused"), owner="unused"))


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


# --- what is wrong with a message ---------------------------------------------------------------

DEEP = b'{"transaction_id":"t1","branch_id":"1","payload":' + b"[" * 100_000


@pytest.mark.parametrize("path", ["prepare", "commit", "rollback"])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"t1"',
        b"\xff\xfe",
        DEEP,
        b"1" * 5_000,
        b'{"transaction_id":"t1"}',
        b'{"transaction_id":1,"branch_id":"1"}',
        b'{"transaction_id":"\\ud800","branch_id":"1"}',
        b'{"transaction_id":"t1","branch_id":"\\u0000"}',
        json.dumps(prepare_message("t1") | {"transaction_id": ["t1"]}).encode(),
        json.dumps(prepare_message("x" * 300)).encode(),
    ],
)
def test_a_malformed_message_is_a_400_and_changes_nothing(
    path: str, body: bytes, tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        refused = await r.call.post(path, body)
        assert (refused.status, refused.code) == (400, "bad_message")
        assert set(refused.body["error"]) == {"code", "message", "details"}
        assert await r.states() == {}
        assert r.resource.calls == []

    run(scenario, tmp_path)


@pytest.mark.parametrize("number", [b"NaN", b"-Infinity", b"1e999"])
def test_a_payload_that_json_cannot_say_again_is_a_400(number: bytes, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        body = json.dumps(prepare_message("t1", "HERE")).encode().replace(b'"HERE"', number)
        refused = await r.call.post("prepare", body)
        assert (refused.status, refused.code) == (400, "bad_message")
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_body_that_is_too_large_is_a_413_announced_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_MESSAGE_BYTES", 10_000)

    async def scenario(r: Rig) -> None:
        large = json.dumps(prepare_message("t1", "x" * 20_000)).encode()

        async def unannounced() -> AsyncIterator[bytes]:
            yield large

        for data in (large, unannounced()):
            async with r.call.session.post(f"{r.call.url}/prepare", data=data) as response:
                assert response.status == 413
                assert (await response.json())["error"]["code"] == "too_large"
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_another_method_is_a_405(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        for path in ("/prepare", "/commit", "/rollback", "/batch"):
            assert (await r.call.get(path))["error"]["code"] == "method_not_allowed"

    run(scenario, tmp_path)


# --- the batch call -------------------------------------------------------------------------------


def in_batch(*messages: tuple[Operation, dict[str, Any]]) -> bytes:
    return batch_body((operation, encode_json(message)) for operation, message in messages)


PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK


def test_a_batch_answers_each_message_in_its_order(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t0")
        messages = [
            (PREPARE, prepare_message("t1", {"n": 1})),
            (COMMIT, end_message("t0")),
            (PREPARE, prepare_message("t2", "refuse")),
            (PREPARE, prepare_message("t3", "raise")),
            (COMMIT, end_message("unknown")),
            (ROLLBACK, end_message("t1")),
            (ROLLBACK, end_message("unknown")),
        ]
        answered = await r.call.post("batch", in_batch(*messages))
        asked = [(op, message["transaction_id"], message["branch_id"]) for op, message in messages]
        answers = read_batch_answers(answered.status, answered.text, asked)
        assert answers[:3] == [Voted(Vote.YES), Acknowledged(), Voted(Vote.NO, "sold out")]
        assert isinstance(answers[3], Failed)
        assert isinstance(answers[4], Failed)
        assert answers[5:] == [Acknowledged(), Acknowledged()]
        assert await r.states() == {"committed": 1, "rolled_back": 2}
        assert await r.ledger() == [
            "prepare t0/1",
            "prepare t1/1",
            "commit None t0/1",
            "rollback {'n': 1} t1/1",
        ]

    run(scenario, tmp_path)


def test_a_bad_message_in_a_batch_is_its_own_affair(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        body = {
            "messages": [
                {"operation": "prepare", **prepare_message("t1")},
                {"operation": "prepare", **prepare_message("t1")},
                {"operation": "begin", **prepare_message("t2")},
                {"operation": "prepare", **prepare_message("t3"), "expires_at": "soon"},
                None,
                {"operation": "rollback", **end_message("t4")},
            ]
        }
        answered = await r.call.post("batch", body)
        assert [a["status"] for a in answered.body["answers"]] == [200, 200, 400, 400, 400, 200]
        assert await r.states() == {"prepared": 1, "rolled_back": 1}

    run(scenario, tmp_path)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"messages":{}}', b'{"messages":'])
def test_a_batch_that_is_none_is_a_400(body: bytes, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.post("batch", body)).code == "bad_message"

    run(scenario, tmp_path)


def test_an_empty_batch_has_no_answers(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.post("batch", b'{"messages":[]}')).body == {"answers": []}

    run(scenario, tmp_path)


def test_a_batch_of_too_many_messages_is_a_413_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoints, "MAX_BATCH_MESSAGES", 2)

    async def scenario(r: Rig) -> None:
        messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(3)]
        assert (await r.call.post("batch", in_batch(*messages))).status == 413
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_store_that_cannot_write_says_so_to_each_message_of_a_batch(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with contextlib.closing(sqlite3.connect(r.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(3)]
            answered = await r.call.post("batch", in_batch(*messages))
        assert [a["status"] for a in answered.body["answers"]] == [503] * 3
        assert await r.states() == {}

    run(scenario, tmp_path)


def test_a_batch_is_synced_once(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        ends: list[str] = []

        def watch(local: Any) -> None:
            local.resource.set_trace_callback(
                lambda sql: ends.append(sql) if sql == "COMMIT" else None
            )

        await r.store.perform([watch])
        ends.clear()
        messages = [(PREPARE, prepare_message(f"t{n}")) for n in range(100)]
        await r.call.post("batch", in_batch(*messages))
        assert await r.states() == {"prepared": 100}
        assert len(ends) == 1

    run(scenario, tmp_path)


# --- where it is mounted, what it remembers -----------------------------------------------------


def test_it_can_be_mounted_in_a_teams_own_application(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = SqliteStore(tmp_path / "ledger.sqlite", owner="ledger")
        application = web.Application()
        participant = Participant(Ledger(), store, QUIET)
        application.add_subapp("/seats", participant.application())
        async with calling(application) as caller:
            seats = Caller(caller.session, f"{caller.url}/seats")
            assert (await seats.prepare("t1")).body["vote"] == "yes"
            assert (await seats.commit("t1")).status == 200
            async with caller.session.post(f"{caller.url}/seats/rollback", data=b"") as response:
                declared = read_declaration(response.headers[DECLARATION_HEADER])
            assert declared == Declaration(True, True, "/seats/batch")
            async with caller.session.post(
                f"{caller.url}{declared.batch_path}", data=b'{"messages":[]}'
            ) as response:
                assert response.status == 200

    asyncio.run(scenario())


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


def test_tombstones_are_dropped_when_they_are_old_and_not_before(tmp_path: Path) -> None:
    now = [1_000_000]
    settings = ParticipantSettings(
        tombstones_kept_ms=60_000, sweep_every_s=0.02, inquiry=QUIET.inquiry
    )

    async def scenario(r: Rig) -> None:
        await r.call.rollback("young")
        now[0] += 60_000
        await r.call.rollback("younger")

        async def swept() -> bool:
            return (await r.states()).get("rolled_back") == 1

        assert await r.states() == {"rolled_back": 2}
        now[0] += 1
        await until(swept)
        (kept,) = await r.store.ended(0, 10)
        assert kept.transaction_id == "younger"

    run(scenario, tmp_path, settings=settings, now_ms=lambda: now[0])


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


def test_every_state_is_counted() -> None:
    counts = asyncio.run(MemoryStore().count())
    assert set(counts) == set(State) - {State.ABSENT}
