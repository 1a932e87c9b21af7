"""Interactive work at an SDK participant: kept with its mark, voted on, ended; or not there at all.

Who enlists is a coordinator that always does (`Willing`); `test_interactive.py` has the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from participants.branch import Branch, State
from participants.contract import TRANSACTION_HEADER, BadMessage, Decision, Vote, fingerprint
from participants.inquiry import InquirySettings
from participants.memory_store import MemoryStore, MemoryTable
from participants.sdk import (
    EnlistSettings,
    Participant,
    ParticipantSettings,
    Refused,
    Resource,
    Work,
    WorkRefused,
    transaction_id_of,
)
from participants.sqlite_store import SqliteStore
from participants.store import BranchRecord, StoreUnavailable
from tests.api_rig import ApiNode, api_node
from tests.participant_rig import (
    QUIET,
    Ledger,
    Rig,
    calling,
    prepare_message,
    rig,
    run,
    serving,
    until,
)

ENLIST = EnlistSettings(("http://n1:8101",), "http://me:9010/seats")
SETTINGS = ParticipantSettings(inquiry=QUIET.inquiry, enlist=ENLIST)
EAGER = ParticipantSettings(
    inquiry=InquirySettings(first_after_s=0.04, max_delay_s=0.1), enlist=ENLIST
)
Sql = sqlite3.Connection


class Willing:
    """A coordinator that enlists everybody, in the order in which they come."""

    def __init__(self) -> None:
        self.branches: dict[str, list[str]] = {}
        self.asked = 0

    async def __call__(self, _node: str, id_: str, body: bytes) -> tuple[int, bytes]:
        self.asked += 1
        name = str(json.loads(body).get("name"))
        known = self.branches.setdefault(id_, [])
        if name not in known:
            known.append(name)
        answer = {"transaction_id": id_, "branch_id": str(known.index(name) + 1)}
        return 201, json.dumps(answer).encode()


class Desk(Ledger):
    """A ledger that is asked for its vote on interactive work."""

    def __init__(self, vote: Vote | Exception = Vote.YES) -> None:
        super().__init__()
        self.vote: Any = vote

    def check(self, work: Work[Sql]) -> Vote:
        self._write(work, f"check {work.payload!r}")
        if isinstance(self.vote, Exception):
            raise self.vote
        return self.vote  # type: ignore[no-any-return]


def take(seat: str) -> Callable[[Work[Sql]], str]:
    """A piece of work."""

    def function(work: Work[Sql]) -> str:
        work.transaction.execute("INSERT INTO ledger VALUES (?)", (f"take {seat}",))
        return f"{seat} of {work.transaction_id}/{work.branch_id}"

    return function


def take_and_fail(work: Work[Sql]) -> None:
    take("8")(work)
    raise KeyError("broken")


def works(
    scenario: Callable[[Rig], Any],
    directory: Path,
    *,
    settings: ParticipantSettings = SETTINGS,
    **options: Any,
) -> None:
    run(scenario, directory, settings=settings, **({"enlist": Willing()} | options))


async def prepared(r: Rig, id_: str = "t", **more: Any) -> dict[str, Any]:
    answered = await r.call.prepare(id_, interactive=True, **more)
    assert answered.status == 200, answered
    return dict(answered.body)


# --- kept with its mark -------------------------------------------------------------------------


def test_work_is_kept_voted_on_and_committed(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert await r.participant.work("t", take("7")) == "7 of t/1"
        assert await r.states() == {"active": 1}
        assert await r.participant.work("t", take("8")) == "8 of t/1"
        assert await r.ledger() == ["take 7", "take 8"]
        assert (await prepared(r))["vote"] == "yes"
        assert await r.states() == {"prepared": 1}
        assert (await r.call.commit("t")).status == 200
        assert (await r.ledger())[2:] == ["check None t/1", "commit None t/1"]

    works(scenario, tmp_path, resource=Desk())


def test_work_is_rolled_back_whether_or_not_it_was_promised(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        for id_ in ("a", "b"):
            await r.participant.work(id_, take("7"))
        assert (await prepared(r, "b"))["vote"] == "yes"
        for id_ in ("a", "b", "a", "b"):
            assert (await r.call.rollback(id_)).status == 200
        assert await r.states() == {"rolled_back": 2}
        assert r.resource.calls == ["rollback None", "rollback None"]

    works(scenario, tmp_path)


def test_what_the_function_raises_undoes_its_work_and_the_mark(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with pytest.raises(KeyError, match="broken"):
            await r.participant.work("t", take_and_fail)
        assert (await r.ledger(), await r.states()) == ([], {})
        await r.participant.work("t", take("7"))
        with pytest.raises(KeyError, match="broken"):
            await r.participant.work("t", take_and_fail)
        assert (await r.ledger(), await r.states()) == (["take 7"], {"active": 1})

    works(scenario, tmp_path)


def test_an_exception_that_is_returned_is_a_result(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        error = ValueError("found")
        assert await r.participant.work("t", lambda _: error) is error
        assert await r.states() == {"active": 1}

    works(scenario, tmp_path)


async def is_async(_: Work[Sql]) -> None:
    raise NotImplementedError


def yields(_: Work[Sql]) -> Iterator[int]:
    yield 1


def hides_that_it_is_async(work: Work[Sql]) -> Any:
    return is_async(work)


@pytest.mark.parametrize("function", [is_async, partial(is_async)])
def test_an_async_function_is_refused_before_anybody_is_asked(
    function: Any, tmp_path: Path
) -> None:
    willing = Willing()

    async def scenario(r: Rig) -> None:
        with pytest.raises(TypeError, match="is async"):
            await r.participant.work("t", function)
        assert willing.asked == 0

    works(scenario, tmp_path, enlist=willing)


@pytest.mark.parametrize("function", [yields, hides_that_it_is_async])
def test_what_nobody_runs_is_no_work(function: Any, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with pytest.raises(Exception, match="which nobody runs"):
            await r.participant.work("t", function)
        assert await r.states() == {}

    works(scenario, tmp_path)


def test_a_store_that_cannot_write_says_so_and_keeps_nothing(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with sqlite3.connect(r.store.path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await r.participant.work("t", take("7"))
        other.close()
        assert (await r.ledger(), await r.states()) == ([], {})

    works(scenario, tmp_path)


def test_only_who_knows_where_to_enlist_works_and_only_under_an_id(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        with pytest.raises(RuntimeError, match="needs ParticipantSettings"):
            await r.participant.work("t", take("7"))

    async def malformed(r: Rig) -> None:
        with pytest.raises(BadMessage, match="1 to 64 characters"):
            await r.participant.work("..", take("7"))

    works(scenario, tmp_path, settings=QUIET)
    works(malformed, tmp_path)


def test_a_name_of_its_own_is_a_branch_of_its_own(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert await r.participant.work("t", take("7")) == "7 of t/1"
        assert await r.participant.work("t", take("8"), name="second") == "8 of t/2"
        await r.call.rollback("t", "2")
        assert await r.states() == {"active": 1, "rolled_back": 1}

    works(scenario, tmp_path)


def test_many_pieces_of_work_at_once_enlist_once(tmp_path: Path) -> None:
    willing = Willing()

    async def scenario(r: Rig) -> None:
        await asyncio.gather(*(r.participant.work("t", take(str(n))) for n in range(20)))
        await r.participant.work("t", take("20"))
        assert (len(await r.ledger()), willing.asked) == (21, 1)

    works(scenario, tmp_path, enlist=willing)


def test_work_is_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        await prepared(r)

    with caplog.at_level("INFO", logger="assent.participant"):
        works(scenario, tmp_path)
    assert caplog.text.index("work t/1: done") < caplog.text.index("prepare t/1: yes")


# --- the vote -----------------------------------------------------------------------------------


def test_who_has_not_worked_votes_no_and_may_work_yet(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        answer = await prepared(r)
        assert (answer["vote"], answer["reason"]) == ("no", "no work was done for this branch")
        assert await r.states() == {}
        await r.participant.work("t", take("7"))  # it was under way; the rollback comes
        await r.call.rollback("t")
        assert await r.states() == {"rolled_back": 1}

    works(scenario, tmp_path)


@pytest.mark.parametrize(
    ("vote", "said"),
    [
        (Refused("sold out"), {"vote": "no", "reason": "sold out"}),
        (Vote.NO, {"vote": "no", "reason": "refused, no reason given"}),
        (Vote.READ_ONLY, {"vote": "read_only"}),
    ],
)
def test_who_does_not_promise_lets_go_at_once_and_for_good(
    vote: Any, said: dict[str, str], tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        answer = await prepared(r)
        assert answer.items() >= said.items()
        assert await r.states() == {"rolled_back": 1}
        assert await r.ledger() == ["take 7", "rollback None t/1"], "what check wrote is undone"
        assert (await prepared(r))["vote"] == "no"
        assert (await r.call.commit("t")).code == "already_rolled_back"
        assert (await r.call.rollback("t")).status == 200
        with pytest.raises(WorkRefused, match="its end has begun"):
            await r.participant.work("t", take("8"))
        (ended,) = await r.store.ended(0, 10)
        assert ended.ended_at_ms > 0
        assert len(await r.ledger()) == 2

    works(scenario, tmp_path, resource=Desk(vote))


def test_a_check_that_fails_leaves_the_work_as_it_was(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        assert (await r.call.prepare("t", interactive=True)).code == "resource_failed"
        assert (await r.ledger(), await r.states()) == (["take 7"], {"active": 1})
        r.resource.fails = 1
        failed = await r.call.rollback("t")
        assert failed.code == "resource_failed"
        assert "the branch stays as it was" in failed.body["error"]["message"]
        assert await r.states() == {"active": 1}
        assert (await r.call.rollback("t")).status == 200
        assert await r.states() == {"rolled_back": 1}

    works(scenario, tmp_path, resource=Desk(KeyError("broken")))


def test_a_rollback_that_fails_after_a_no_keeps_the_work_until_it_is_told(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        r.resource.fails = 1
        assert (await r.call.prepare("t", interactive=True)).code == "resource_failed"
        assert await r.states() == {"active": 1}
        assert (await r.call.rollback("t")).status == 200

    works(scenario, tmp_path, resource=Desk(Vote.NO))


def test_a_promise_is_given_once_and_no_work_comes_after_it(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        for _ in range(3):
            assert (await prepared(r))["vote"] == "yes"
        assert r.resource.calls == ["check None"]
        with pytest.raises(WorkRefused, match="its end has begun"):
            await r.participant.work("t", take("8"))
        for _ in range(3):
            assert (await r.call.commit("t")).status == 200
        assert (await prepared(r))["reason"] == "finished: this branch is committed"
        with pytest.raises(WorkRefused, match="its end has begun"):
            await r.participant.work("t", take("9"))
        assert await r.ledger() == ["take 7", "check None t/1", "commit None t/1"]

    works(scenario, tmp_path, resource=Desk())


def test_a_rollback_that_overtakes_the_work_bars_it(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        assert (await r.call.rollback("t")).status == 200
        with pytest.raises(WorkRefused, match="its end has begun"):
            await r.participant.work("t", take("7"))
        assert await r.ledger() == []

    works(scenario, tmp_path)


def test_what_was_never_promised_cannot_be_committed_nor_prepared_otherwise(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        assert (await r.call.commit("t")).code == "not_prepared"
        assert (await r.call.prepare("t", "one-shot")).code == "refused"
        assert (await r.states(), r.resource.calls) == ({"active": 1}, [])

    works(scenario, tmp_path)


def test_another_requests_promise_under_the_id_is_not_committed_by_this_one(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.call.prepare("t", "first try", fingerprint="one-shot")
        answer = await prepared(r, fingerprint="interactive")
        assert (answer["vote"], await r.states()) == ("no", {"prepared": 1})

    works(scenario, tmp_path)


def test_a_resource_that_has_nothing_to_check_promises(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        assert (await prepared(r))["vote"] == "yes"
        assert (await r.states(), r.resource.calls) == ({"prepared": 1}, [])

    works(scenario, tmp_path)


# --- crashes ------------------------------------------------------------------------------------


def test_work_in_sqlite_outlives_the_process_and_commits(tmp_path: Path) -> None:
    async def before(r: Rig) -> None:
        await r.participant.work("t", take("7"))

    async def after(r: Rig) -> None:
        await r.participant.work("t", take("8"))
        assert (await prepared(r))["vote"] == "yes"

    async def at_last(r: Rig) -> None:
        assert (await r.call.commit("t")).status == 200
        assert await r.ledger() == ["take 7", "take 8", "commit None t/1"]

    for scenario in (before, after, at_last):
        works(scenario, tmp_path)


def test_work_that_was_lost_is_neither_gone_on_with_nor_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a store whose marks survive, and not all that the resource has changed."""

    async def before(r: Rig) -> None:
        for id_ in ("t", "u"):
            await r.participant.work(id_, take("7"))

    async def after(r: Rig) -> None:
        for id_ in ("t", "u"):
            with pytest.raises(WorkRefused, match="its work for this branch was lost"):
                await r.participant.work(id_, take("8"))
        answer = await prepared(r)
        assert answer["vote"] == "no"
        assert "was lost" in answer["reason"]
        assert (await r.call.rollback("u")).status == 200
        assert r.resource.calls == ["rollback None", "rollback None"], "check was not asked"
        assert await r.states() == {"rolled_back": 2}

    works(before, tmp_path, resource=Desk())
    monkeypatch.setattr(SqliteStore, "incarnation", SqliteStore.incarnation + 1)
    works(after, tmp_path, resource=Desk())


class Counter(Resource[MemoryTable]):
    """Ends what it has counted, in memory."""

    def prepare(self, work: Work[MemoryTable], payload: Any) -> Vote:
        raise NotImplementedError

    def commit(self, work: Work[MemoryTable]) -> None:
        work.transaction["sold"] = work.transaction.pop(work.transaction_id)

    def rollback(self, work: Work[MemoryTable]) -> None:
        work.transaction.pop(work.transaction_id, None)


def count(number: int) -> Callable[[Work[MemoryTable]], None]:
    def function(work: Work[MemoryTable]) -> None:
        work.transaction[work.transaction_id] = number

    return function


def test_work_in_memory_is_lost_with_the_store() -> None:
    def made(store: MemoryStore) -> Participant[MemoryTable]:
        return Participant(Counter(), store, SETTINGS, enlist=Willing())

    async def scenario() -> None:
        store = MemoryStore()
        for _ in range(2):  # a Participant goes, its store stays
            participant = made(store)
            async with calling(participant.application()):
                await participant.work("t", count(5))
        async with calling(made(store).application()) as call:
            assert (await call.prepare("t", interactive=True)).body["vote"] == "yes"
            await call.commit("t")
        assert dict(store.table) == {"sold": 5}

        lost = MemoryStore()
        participant = made(lost)
        async with calling(participant.application()):
            await participant.work("t", count(5))
        other = MemoryStore()
        other.keep(lost.find("t", "1") or BranchRecord("", "", Branch(State.ABSENT)))
        for kept, reason in ((other, "was lost"), (MemoryStore(), "no work was done")):
            async with calling(made(kept).application()) as call:
                answer = (await call.prepare("t", interactive=True)).body
                assert answer["vote"] == "no"
                assert reason in answer["reason"]

    asyncio.run(scenario())


# --- inquiry ------------------------------------------------------------------------------------


class Oracle:
    """What a node says to inquiries."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[BranchRecord] = []

    async def __call__(self, node: str, record: BranchRecord) -> Decision:
        assert node in ENLIST.coordinators
        self.asked.append(record)
        return self.decision

    async def was_asked_again(self) -> None:
        before = len(self.asked)

        async def asked() -> bool:
            return len(self.asked) > before + 1

        await until(asked)


def test_work_that_hears_nothing_waits_while_it_is_pending_and_is_freed_by_an_abort(
    tmp_path: Path,
) -> None:
    oracle = Oracle(Decision.PENDING)

    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        await oracle.was_asked_again()
        assert await r.states() == {"active": 1}
        oracle.decision = Decision.ABORT

        async def ended() -> bool:
            return await r.states() == {"rolled_back": 1}

        await until(ended)
        assert r.resource.calls == ["rollback None"]

    works(scenario, tmp_path, settings=EAGER, ask=oracle)


def test_commit_is_no_answer_to_who_has_promised_nothing(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    oracle = Oracle(Decision.COMMIT)

    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        await oracle.was_asked_again()
        assert (await r.states(), r.resource.calls) == ({"active": 1}, [])
        assert "commit is no answer to a branch that has promised nothing" in caplog.text
        assert (await prepared(r, coordinators=ENLIST.coordinators))["vote"] == "yes"

        async def ended() -> bool:
            return await r.states() == {"committed": 1}

        await until(ended)

    works(scenario, tmp_path, settings=EAGER, ask=oracle)


def test_after_a_restart_work_is_asked_about_where_it_was_enlisted(tmp_path: Path) -> None:
    oracle = Oracle(Decision.ABORT)

    async def before(r: Rig) -> None:
        await r.participant.work("t", take("7"))

    async def after(r: Rig) -> None:
        async def ended() -> bool:
            return await r.states() == {"rolled_back": 1}

        await until(ended)
        assert [record.coordinators for record in oracle.asked] == [ENLIST.coordinators]

    works(before, tmp_path)
    works(after, tmp_path, settings=QUIET, ask=oracle)


def test_the_fingerprint_that_is_asked_about_is_the_interactive_one(tmp_path: Path) -> None:
    asked: list[dict[str, str]] = []

    async def decide(request: web.Request) -> web.Response:
        asked.append(dict(request.query))
        return web.json_response({"decision": "abort"})

    async def whole() -> None:
        node = web.Application()
        node.router.add_get("/v1/transactions/{id}/decision", decide)
        async with serving(node) as url:
            enlist = EnlistSettings((url,), "http://me:9010/seats")
            settings = ParticipantSettings(inquiry=EAGER.inquiry, enlist=enlist)
            async with rig(tmp_path, settings, enlist=Willing()) as r:
                await r.participant.work("t", take("7"))

                async def ended() -> bool:
                    return await r.states() == {"rolled_back": 1}

                await until(ended)
        digest = fingerprint("interactive", (), "t")
        assert asked[0] == {"branch_id": "1", "fingerprint": digest}

    asyncio.run(whole())


# --- with a coordinator -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def desk_of(node: ApiNode, path: Path, desk: Desk) -> AsyncIterator[str]:
    """A service with a call of its own, `POST /hold`, which works; yields that call's URL."""
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    settings = ParticipantSettings(
        inquiry=QUIET.inquiry, enlist=EnlistSettings((node.url,), f"{url}/seats")
    )
    participant = Participant(desk, SqliteStore(path, owner=path.stem), settings)

    async def hold(request: web.Request) -> web.Response:
        id_ = transaction_id_of(request)
        try:
            return web.json_response(await participant.work(id_, take(await request.text())))
        except WorkRefused as refused:
            return web.json_response(str(refused), status=409)

    top = web.Application()
    top.router.add_post("/hold", hold)
    top.add_subapp("/seats", participant.application())
    runner = web.AppRunner(top, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        yield f"{url}/hold"
    finally:
        await runner.cleanup()


def test_two_services_work_in_one_transaction_that_its_client_ends(tmp_path: Path) -> None:
    async def whole() -> None:
        desks = [Desk(), Desk()]
        async with (
            api_node() as node,
            desk_of(node, tmp_path / "one.sqlite", desks[0]) as one,
            desk_of(node, tmp_path / "two.sqlite", desks[1]) as two,
        ):

            async def called(url: str, id_: str) -> tuple[int, Any]:
                headers = {TRANSACTION_HEADER: id_}
                async with node.session.post(url, data=b"7", headers=headers) as answer:
                    return answer.status, await answer.json()

            async def ended(id_: str, how: str) -> Any:
                path = f"/v1/transactions/{id_}/{how}"
                status, answer = await node.post(path, {"wait": "completion"})
                assert status == 200, answer
                return answer

            for id_ in ("good", "undone", "refused"):
                opening = {"id": id_, "mode": "interactive"}
                assert (await node.post("/v1/transactions", opening))[0] == 201
                assert await called(one, id_) == (200, f"7 of {id_}/1")
                assert await called(two, id_) == (200, f"7 of {id_}/2")
                assert await called(one, id_) == (200, f"7 of {id_}/1")
            assert (await ended("good", "commit"))["state"] == "committed"
            assert (await ended("undone", "rollback"))["state"] == "aborted"
            desks[1].vote = Refused("sold out")
            refused = await ended("refused", "commit")
            assert refused["state"] == "aborted"
            assert "sold out" in refused["reason"]
            for desk in desks:
                ends = [call for call in desk.calls if not call.startswith("check")]
                assert ends == ["commit None", "rollback None", "rollback None"]

            assert (await called(one, "good"))[0] == 409, "by its own tombstone"
            opening = {"id": "late", "mode": "interactive"}
            await node.post("/v1/transactions", opening)
            await ended("late", "commit")
            for id_, why in (("late", "has begun"), ("unknown", "is not remembered")):
                status, words = await called(one, id_)
                assert (status, why in words) == (409, True), words
            status, answer = await called(one, "a b")
            assert (status, answer["error"]["code"]) == (400, "bad_transaction_id")

    asyncio.run(asyncio.wait_for(whole(), 60))


def test_messages_of_interactive_branches_share_requests_with_others(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        await r.participant.work("t", take("7"))
        batch = [
            {"operation": "prepare", **prepare_message("t", interactive=True)},
            {"operation": "prepare", **prepare_message("u", interactive=True)},
            {"operation": "prepare", **prepare_message("v", "one-shot")},
        ]
        answers = (await r.call.post("batch", {"messages": batch})).body["answers"]
        assert (answers[0], answers[2]) == ("yes t/1", "yes v/1")
        assert answers[1]["body"]["vote"] == "no"

    works(scenario, tmp_path)
