"""Inquiry: a branch in doubt asks, obeys what is an answer, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from participants import inquiry
from participants.branch import Branch, State
from participants.contract import Decision
from participants.inquiry import (
    MAX_NODES_ASKED,
    Inquirer,
    InquirySettings,
    _Asked,
    read_decision,
)
from participants.sdk import ParticipantSettings
from participants.sqlite_store import SqliteStore
from participants.store import BranchRecord, StoreUnavailable
from tests.participant_rig import QUIET, Rig, rig, run, serving, until

EAGER = InquirySettings(first_after_s=0.04, max_delay_s=0.1, timeout_s=5.0)


class Node:
    """A tiny coordinator node: answers inquiries as it is told."""

    def __init__(self, answer: Callable[[web.Request], web.StreamResponse]) -> None:
        self.answer = answer
        self.asked: list[tuple[str, dict[str, str]]] = []

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/v1/transactions/{id}/decision", self._decide)
        return application

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.match_info["id"], dict(request.query)))
        return self.answer(request)


def decision(what: str) -> Callable[[web.Request], web.StreamResponse]:
    return lambda _: web.json_response({"decision": what})


def status(number: int) -> Callable[[web.Request], web.StreamResponse]:
    return lambda _: web.json_response({"decision": "abort"}, status=number)


def eager(**more: Any) -> ParticipantSettings:
    return ParticipantSettings(inquiry=EAGER, **more)


@pytest.mark.parametrize(("what", "state"), [("commit", "committed"), ("abort", "rolled_back")])
def test_a_branch_in_doubt_asks_and_obeys(what: str, state: str, tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        node = Node(decision(what))
        async with serving(node.application()) as url:
            await r.call.prepare("t1", {"n": 1}, fingerprint="abc", coordinators=[url])

            async def ended() -> bool:
                return await r.states() == {state: 1}

            await until(ended)
        assert node.asked[0] == ("t1", {"branch_id": "1", "fingerprint": "abc"})
        assert len(r.resource.calls) == 2, "the work was ended through the resource, once"

    run(scenario, tmp_path, settings=eager())


def test_pending_is_asked_again_until_it_is_decided(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        node = Node(decision("pending"))
        async with serving(node.application()) as url:
            await r.call.prepare("t1", coordinators=[url])

            async def asked_often() -> bool:
                return len(node.asked) >= 3

            await until(asked_often)
            assert await r.states() == {"prepared": 1}
            node.answer = decision("commit")

            async def ended() -> bool:
                return await r.states() == {"committed": 1}

            await until(ended)

    run(scenario, tmp_path, settings=eager())


def test_nobody_is_asked_twice_at_once_nor_before_the_pause_is_over() -> None:
    """Else all that are in doubt would ask one that hangs again, several times a second."""
    record = BranchRecord("t1", "1", Branch(State.PREPARED, "abc"), coordinators=NODES)
    asked: list[str] = []

    async def in_doubt(_: int) -> list[BranchRecord]:
        return [record]

    async def obey(*_: object) -> None:
        raise AssertionError("nothing was decided")

    async def ask(node: str, _: BranchRecord) -> Decision | None:
        asked.append(node)
        return None

    async def scenario() -> None:
        inquirer = Inquirer(
            in_doubt, obey, InquirySettings(), now_ms=lambda: 60_000, random=Random(1), ask=ask
        )
        assert await inquirer._due(5_000) == [record]
        assert await inquirer._due(5_000) == [], "it is under way"
        await inquirer._inquire(ask, record)
        assert asked == list(NODES[:MAX_NODES_ASKED]), "nor everybody that a caller has named"
        assert await inquirer._due(5_000) == [], "it was just asked"

    asyncio.run(scenario())


NODES = tuple(f"http://n{number}" for number in range(100))


def test_a_node_that_is_silent_is_tried_by_one_branch_at_a_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Thousands of branches of a cluster that is gone do not hold up those of one that answers, nor
    do they fill the log."""
    gone, there = "http://gone:1", "http://there:1"
    records = [
        BranchRecord(f"t{n}", "1", Branch(State.PREPARED, "abc"), coordinators=(gone, there))
        for n in range(50)
    ]
    asked: list[str] = []
    silent = {gone}

    async def in_doubt(_: int) -> list[BranchRecord]:
        return records

    async def obey(*_: object) -> None:
        pass

    async def ask(node: str, _: BranchRecord) -> Decision | None:
        asked.append(node)
        if node in silent:
            raise TimeoutError
        return Decision.COMMIT

    async def scenario() -> None:
        loop, now_s = asyncio.get_running_loop(), 1_000.0
        monkeypatch.setattr(loop, "time", lambda: now_s)
        settings = InquirySettings(timeout_s=5.0)
        inquirer = Inquirer(
            in_doubt, obey, settings, now_ms=lambda: 60_000, random=Random(1), ask=ask
        )
        due = await inquirer._due(5_000)
        for record in due[:20]:
            await inquirer._inquire(ask, record)
        assert (asked.count(gone), asked.count(there)) == (1, 20)
        now_s += 5.0
        for record in due[20:30]:
            await inquirer._inquire(ask, record)
        assert (asked.count(gone), asked.count(there)) == (2, 30), "one has tried it again"
        now_s += 5.0
        silent.clear()
        for record in due[30:]:
            await inquirer._inquire(ask, record)
        assert (asked.count(gone), asked.count(there)) == (22, 30), "it answers all"

    with caplog.at_level("INFO", logger="assent.participant"):
        asyncio.run(scenario())
    about = [record.getMessage() for record in caplog.records if gone in record.getMessage()]
    assert about == [
        f"{gone} does not answer inquiries, it is tried again: TimeoutError()",
        f"{gone} answers inquiries again",
    ]


def test_it_follows_a_followers_redirect_and_tries_the_other_nodes(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        leader = Node(decision("commit"))
        busy = Node(status(503))
        async with (
            serving(leader.application()) as leader_url,
            serving(busy.application()) as busy_url,
        ):

            def to_leader(request: web.Request) -> web.StreamResponse:
                return web.Response(
                    status=307, headers={"Location": f"{leader_url}{request.rel_url}"}
                )

            follower = Node(to_leader)
            async with serving(follower.application()) as follower_url:
                nobody = "http://127.0.0.1:1"
                nodes = [nobody, "not a URL", busy_url, follower_url]
                await r.call.prepare("t1", coordinators=nodes)

                async def ended() -> bool:
                    return await r.states() == {"committed": 1}

                await until(ended)
        assert busy.asked
        assert follower.asked
        assert leader.asked[0] == ("t1", {"branch_id": "1", "fingerprint": "f"})

    run(scenario, tmp_path, settings=eager())


@pytest.mark.parametrize(
    "answer",
    [
        status(404),
        status(500),
        status(202),
        lambda _: web.Response(text="<html>abort</html>", content_type="text/html"),
        lambda _: web.Response(body=b'{"decision": "abort"'),
        lambda _: web.json_response(["abort"]),
        lambda _: web.json_response({"decision": "maybe"}),
        lambda _: web.json_response({"decision": ["abort"]}),
        lambda _: web.json_response({"decision": "abort", "id": "another"}),
        lambda _: web.Response(body=b'{"decision":"abort"}' + b" " * 200_000),
        lambda _: web.Response(status=307, headers={"Location": "/nowhere"}),
        lambda request: web.Response(status=307, headers={"Location": str(request.rel_url)}),
    ],
)
def test_what_is_no_answer_leaves_the_branch_prepared(
    answer: Callable[[web.Request], web.StreamResponse], tmp_path: Path
) -> None:
    async def scenario(r: Rig) -> None:
        node = Node(answer)
        async with serving(node.application()) as url:
            await r.call.prepare("t1", coordinators=[url])

            async def asked_twice() -> bool:
                return len(node.asked) >= 2  # so the first answer has been read, and not obeyed

            await until(asked_twice)
            assert await r.states() == {"prepared": 1}
            assert r.resource.calls == ["prepare"]

    run(scenario, tmp_path, settings=eager())


def test_a_young_branch_is_left_to_the_coordinator(tmp_path: Path) -> None:
    """The clock stands still, so the branch stays young however long this takes."""

    async def scenario(r: Rig) -> None:
        node = Node(decision("abort"))
        old = Node(decision("commit"))
        async with serving(node.application()) as url, serving(old.application()) as old_url:
            await r.call.prepare("old", coordinators=[old_url])
            now[0] += 60_000
            await r.call.prepare("young", coordinators=[url])

            async def ended() -> bool:
                return await r.states() == {"prepared": 1, "committed": 1}

            await until(ended)
            assert node.asked == []

    now = [1_000_000]
    settings = ParticipantSettings(inquiry=InquirySettings(first_after_s=1.0, max_delay_s=1.0))
    run(scenario, tmp_path, settings=settings, now_ms=lambda: now[0])


def test_a_clock_that_is_set_back_silences_no_branch(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        node = Node(decision("commit"))
        async with serving(node.application()) as url:
            await r.call.prepare("t1", coordinators=[url])
            now[0] -= 3_600_000

            async def ended() -> bool:
                return await r.states() == {"committed": 1}

            await until(ended)

    now = [1_000_000_000]
    settings = ParticipantSettings(inquiry=InquirySettings(first_after_s=1.0, max_delay_s=1.0))
    run(scenario, tmp_path, settings=settings, now_ms=lambda: now[0])


def test_nodes_of_the_settings_are_asked_after_those_that_the_prepare_named(tmp_path: Path) -> None:
    named, settled = Node(status(503)), Node(decision("commit"))

    async def whole() -> None:
        async with serving(named.application()) as url, serving(settled.application()) as other:
            inquiry = replace(EAGER, coordinators=(other,))
            async with rig(tmp_path, ParticipantSettings(inquiry=inquiry)) as r:
                await r.call.prepare("t1", coordinators=[url])

                async def ended() -> bool:
                    return await r.states() == {"committed": 1}

                await until(ended)
        assert named.asked

    asyncio.run(whole())


def test_after_a_restart_it_asks_at_once(tmp_path: Path) -> None:
    node = Node(decision("commit"))

    async def whole() -> None:
        async with serving(node.application()) as url:
            async with rig(tmp_path, QUIET) as r:
                await r.call.prepare("t1", {"n": 1}, coordinators=[url])
                assert node.asked == []
            async with rig(tmp_path, QUIET) as r:  # which would ask an hour later, if it were young

                async def ended() -> bool:
                    return await r.states() == {"committed": 1}

                await until(ended)
                assert await r.ledger() == ["prepare t1/1", "commit {'n': 1} t1/1"]

    asyncio.run(whole())


def test_one_branch_that_cannot_be_ended_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario(r: Rig) -> None:
        node = Node(decision("commit"))
        r.resource.fails = 3
        async with serving(node.application()) as url:
            for number in range(5):
                await r.call.prepare(f"t{number}", coordinators=[url])

            async def ended() -> bool:
                return await r.states() == {"committed": 5}

            await until(ended)
        assert r.resource.fails == 0, "it did fail on the way"

    run(scenario, tmp_path, settings=eager())


def test_a_look_at_the_store_that_fails_in_any_way_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    in_doubt, failures = SqliteStore.in_doubt, [ZeroDivisionError("once")]

    async def fails_once(store: SqliteStore, limit: int) -> list[BranchRecord]:
        found = await in_doubt(store, limit)
        if found and failures:
            raise failures.pop()
        return found

    monkeypatch.setattr(SqliteStore, "in_doubt", fails_once)

    async def scenario(r: Rig) -> None:
        node = Node(decision("commit"))
        async with serving(node.application()) as url:
            await r.call.prepare("t1", coordinators=[url])

            async def ended() -> bool:
                return await r.states() == {"committed": 1}

            await until(ended)

    run(scenario, tmp_path, settings=eager())
    assert "ZeroDivisionError" in caplog.text


def test_the_coordinators_message_may_come_while_it_asks(tmp_path: Path) -> None:
    """The inquiry's answer is late: the branch has been rolled back meanwhile, and stays so."""

    async def whole() -> None:
        asking, answer = asyncio.Event(), asyncio.Event()
        obeyed = asyncio.Event()

        async def ask(_: str, __: BranchRecord) -> Decision:
            asking.set()
            await answer.wait()
            asyncio.get_running_loop().call_later(0, obeyed.set)
            return Decision.COMMIT

        async with rig(tmp_path, eager(), ask=ask) as r:
            await r.call.prepare("t1", coordinators=["somewhere"])
            await asking.wait()
            await r.call.rollback("t1")
            answer.set()
            await obeyed.wait()
            await r.call.prepare("t2")  # behind the obedience in the store's queue
            assert (await r.states())["rolled_back"] == 1
            assert r.resource.calls == ["prepare", "rollback None", "prepare"]

    asyncio.run(whole())


def test_only_a_decision_of_this_branch_is_read() -> None:
    branch = "t1", "2"
    assert read_decision(b'{"decision":"commit"}', branch) is Decision.COMMIT
    whole = b'{"decision":"commit","id":"t1","branch_id":"2"}'
    assert read_decision(whole, branch) is Decision.COMMIT
    assert read_decision(b'{"decision":"commit","id":"t2","branch_id":"2"}', branch) is None
    assert read_decision(b'{"decision":"commit","transaction_id":"t2"}', branch) is None
    assert read_decision(b'{"decision":"commit","id":"t1","branch_id":"1"}', branch) is None
    assert read_decision(b"[" * 100_000, branch) is None
    assert read_decision(b"", branch) is None


def test_a_branch_in_doubt_is_asked_about_more_seldom_and_never_too_seldom(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Longest(Random):
        def uniform(self, a: float, b: float) -> float:
            del a
            return b

    async def nothing(*_: object) -> Any:
        raise AssertionError

    settings = InquirySettings(first_after_s=1.0, max_delay_s=10.0)
    inquirer = Inquirer(nothing, nothing, settings, now_ms=lambda: 0, random=Longest())
    delays = [inquirer._delay_s(attempts) for attempts in (1, 2, 3, 4, 5, 100_000)]
    assert delays == [2.0, 4.0, 8.0, 10.0, 10.0, 10.0]

    async def silence(*_: object) -> None:
        """No node says anything."""

    def noted(attempts: int) -> float:
        counted.append(attempts)
        return 0.0

    async def scenario() -> None:
        inquirer._asked["t1", "1"] = _Asked()
        for _ in range(3):
            await inquirer._inquire(silence, record)

    counted: list[int] = []
    record = BranchRecord("t1", "1", Branch(State.PREPARED, "f"), b"{}", ("http://n1",), 0)
    monkeypatch.setattr(inquirer, "_delay_s", noted)
    asyncio.run(scenario())
    assert counted == [1, 2, 3]


@pytest.mark.parametrize(
    ("first_after_s", "pause_s"), [(0.01, 0.02), (2.0, 0.5), (5.0, 1.0), (600.0, 1.0)]
)
def test_the_store_is_looked_at_often_and_not_all_the_time(
    first_after_s: float, pause_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise asyncio.CancelledError

    async def nothing(_: int) -> list[BranchRecord]:
        return []

    async def obey(*_: object) -> None:
        raise AssertionError

    async def scenario() -> None:
        settings = InquirySettings(first_after_s=first_after_s)
        inquirer = Inquirer(nothing, obey, settings, now_ms=lambda: 0, random=Random(1))
        with monkeypatch.context() as patch:
            patch.setattr("participants.inquiry.asyncio.sleep", pause)
            await inquirer.start()
            await asyncio.wait({inquirer._watching})  # type: ignore[type-var]
        await inquirer.stop()

    asyncio.run(scenario())
    assert pauses[0] == pause_s


@pytest.mark.parametrize(
    ("age_ms", "is_due"), [(-1, True), (0, False), (4_999, False), (5_000, True)]
)
def test_a_branch_is_asked_about_from_its_age_on_and_when_it_seems_unborn(
    age_ms: int, is_due: bool
) -> None:
    prepared = BranchRecord("t1", "1", Branch(State.PREPARED, "f"), b"{}", (), 60_000)

    async def in_doubt(_: int) -> list[BranchRecord]:
        return [prepared]

    async def obey(*_: object) -> None:
        raise AssertionError

    async def scenario() -> None:
        inquirer = Inquirer(
            in_doubt, obey, QUIET.inquiry, now_ms=lambda: 60_000 + age_ms, random=Random(1)
        )
        assert await inquirer._due(5_000) == ([prepared] if is_due else [])

    asyncio.run(scenario())


def test_no_more_are_asked_about_at_a_time_than_the_settings_say() -> None:
    """Thousands that a cluster left behind would open as many connections to the next one."""
    records = [
        BranchRecord(f"t{n}", "1", Branch(State.PREPARED, "f"), b"{}", ("http://n1",), 0)
        for n in range(5)
    ]

    async def in_doubt(_: int) -> list[BranchRecord]:
        return records

    async def obey(*_: object) -> None:
        pass

    async def scenario() -> None:
        asked: list[str] = []
        answered = asyncio.Event()

        async def ask(_: str, record: BranchRecord) -> Decision:
            asked.append(record.transaction_id)
            await answered.wait()
            return Decision.COMMIT

        settings = InquirySettings(concurrency=2)
        inquirer = Inquirer(in_doubt, obey, settings, now_ms=lambda: 60_000, random=Random(1))
        due = await inquirer._due(5_000)
        tasks = [asyncio.create_task(inquirer._inquire(ask, record)) for record in due]
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(asked) == 2
        answered.set()
        await asyncio.gather(*tasks)
        assert len(asked) == 5

    asyncio.run(scenario())


def test_silent_nodes_are_remembered_beside_each_other_and_only_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inquiry, "MAX_SILENT_NODES", 2)

    async def nothing(*_: object) -> Any:
        raise AssertionError

    async def scenario() -> None:
        inquirer = Inquirer(nothing, nothing, QUIET.inquiry, now_ms=lambda: 0, random=Random(1))
        for node in "ab":
            inquirer._pass_over(node)
        assert [inquirer._is_passed_over(node) for node in "abc"] == [True, True, False]
        for node in "cde":
            inquirer._pass_over(node)
            assert inquirer._is_passed_over(node)
            assert len(inquirer._silent_until_s) <= 2

    asyncio.run(scenario())


def test_a_node_that_hangs_is_waited_for_no_longer_than_the_settings_say() -> None:
    async def scenario() -> None:
        async def hang(_: web.Request) -> web.StreamResponse:
            await asyncio.sleep(3_600)
            raise AssertionError

        application = web.Application()
        application.router.add_get("/v1/transactions/{id}/decision", hang)
        record = BranchRecord("t1", "1", Branch(State.PREPARED, "f"), b"{}", (), 0)
        async with serving(application) as url, inquiry._HttpAsking(0.1) as asking:
            with pytest.raises(TimeoutError):
                await asking.ask(url, record)

    asyncio.run(scenario())


def test_a_store_that_cannot_be_read_now_is_looked_at_later() -> None:
    async def in_doubt(_: int) -> list[BranchRecord]:
        raise StoreUnavailable("not now")

    async def obey(*_: object) -> None:
        raise AssertionError

    async def scenario() -> None:
        inquirer = Inquirer(in_doubt, obey, QUIET.inquiry, now_ms=lambda: 0, random=Random(1))
        assert await inquirer._due(5_000) == []

    asyncio.run(scenario())


def test_what_is_stopped_asks_nobody_any_more() -> None:
    async def nothing(_: int) -> list[BranchRecord]:
        return []

    async def obey(*_: object) -> None:
        raise AssertionError

    async def scenario() -> None:
        inquirer = Inquirer(nothing, obey, QUIET.inquiry, now_ms=lambda: 0, random=Random(1))
        await inquirer.stop()  # it may end before it has begun
        await inquirer.start()
        watching = inquirer._watching
        assert watching is not None
        await inquirer.stop()
        assert watching.done()

    asyncio.run(scenario())


def test_settings_say_when_to_ask() -> None:
    settings = InquirySettings()
    assert (settings.first_after_s, settings.max_delay_s) == (5.0, 30.0)
