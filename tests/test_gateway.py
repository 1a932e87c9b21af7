"""The gateway over real sockets: who waits for whom, who is left alone, and what it remembers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from random import Random

import pytest

from coordinator.courier import Answer
from coordinator.gateway import Gateway
from coordinator.lane import Backoff
from coordinator.settings import Limits, Timings
from participants.contract import (
    DECLARATION_HEADER,
    PLAIN,
    Acknowledged,
    Declaration,
    Failed,
    Operation,
    Vote,
    Voted,
)
from tests.calling import ask, call_for, count_pumps, failed, run
from tests.stubs import (
    Behaviour,
    Stub,
    answer,
    bound_socket,
    close,
    hang,
    per_operation,
    reset,
    url_of,
)

PREPARE, COMMIT = Operation.PREPARE, Operation.COMMIT
YES = answer(b"true")
SDK = Declaration(repeatable_prepare=True, inquiry=True, batch_path="/batch")


# --- what a participant says of itself ------------------------------------------------------------


def test_a_participant_is_plain_until_it_has_declared_itself() -> None:
    async def scenario(gateway: Gateway) -> None:
        headers = {DECLARATION_HEADER: SDK.header()}
        async with Stub(answer(b"", 404, headers)) as stub, Stub(YES) as plain:
            assert gateway.declarations.of(stub.url) is PLAIN
            await ask(gateway, stub.url)
            await ask(gateway, plain.url)
            assert gateway.declarations.of(stub.url) == SDK
            assert gateway.declarations.of(plain.url) is PLAIN

    run(scenario)


def test_the_last_word_counts_and_a_failure_in_between_says_nothing() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(answer(b"true", headers={DECLARATION_HEADER: SDK.header()})) as stub:
            await ask(gateway, stub.url)
            for silent in (answer(b"bad gateway", 502), answer(b"it broke", 500), close):
                stub.behaviour = silent
                await ask(gateway, stub.url)
                assert gateway.declarations.of(stub.url) == SDK
            stub.behaviour = YES  # the service was replaced by a plain one
            await ask(gateway, stub.url)
            assert gateway.declarations.of(stub.url) is PLAIN

    run(scenario)


def test_only_so_many_declarations_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.declarations._MOST", 2)

    async def scenario(gateway: Gateway) -> None:
        async with Stub(answer(b"true", headers={DECLARATION_HEADER: SDK.header()})) as stub:
            urls = [f"{stub.url}/{name}" for name in "abc"]
            for url in urls:
                await ask(gateway, url)
            assert [gateway.declarations.of(url) == SDK for url in urls] == [False, True, True]

    run(scenario)


# --- lanes ----------------------------------------------------------------------------------------


def test_a_participant_that_hangs_delays_no_other_and_not_its_own_commits() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(per_operation(prepare=hang)) as hanging, Stub(YES) as well:
            calls = [call_for(hanging.url)[0] for _ in range(50)]
            for call in calls:
                call.done = lambda _answer: None
                gateway.begin(call)
            await hanging.until_received(4)
            assert await ask(gateway, well.url) == Voted(Vote.YES)
            assert await ask(gateway, well.url, COMMIT) == Acknowledged()
            assert await ask(gateway, hanging.url, COMMIT) == Acknowledged()
            assert gateway.waiting() == {hanging.url: 46}

    run(scenario, limits=Limits(calls_per_participant=4))


def test_no_more_calls_are_under_way_than_the_limit_and_all_are_made_in_order() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            pairs = [call_for(stub.url, transaction_id=f"t{n}") for n in range(100)]
            for call, _ in pairs:
                gateway.begin(call)
            answers = await asyncio.gather(*(answered for _, answered in pairs))
            assert set(answers) == {Voted(Vote.YES)}
            assert stub.most_under_way <= 5
            assert stub.connections <= 100
            sent = [call.sent_s for call, _ in pairs]
            assert sent == sorted(sent, key=lambda at: at or 0.0)

    run(scenario, limits=Limits(calls_per_participant=5))


def test_a_prepare_that_still_waits_at_its_deadline_is_answered_unsent() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            first, _ = call_for(stub.url)
            first.done = lambda _answer: None
            gateway.begin(first)
            second, answered = call_for(stub.url, transaction_id="t2", within=0.1)
            gateway.begin(second)
            assert not failed(await answered).arrived
            assert second.sent_s is None
            assert [received.body["transaction_id"] for received in stub.received] in ([], ["t1"])
            assert gateway.waiting() == {}
            assert gateway._expiries == {}

    run(scenario, limits=Limits(calls_per_participant=1))


def test_a_prepare_whose_deadline_has_passed_is_not_sent_though_there_is_room() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            assert not failed(await ask(gateway, stub.url, within=-1.0)).arrived
            assert stub.received == []

    run(scenario)


def test_a_prepare_has_until_its_own_deadline_and_a_commit_the_time_of_a_try() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            for operation in (PREPARE, COMMIT):
                call, answered = call_for(stub.url, operation, within=20.0)
                deadline = call.end_s
                gateway.begin(call)
                await answered
                assert call.sent_s is not None
                until = deadline if operation is PREPARE else call.sent_s + 3.0
                assert call.end_s == pytest.approx(until)

    run(scenario, timings=Timings(call_timeout_ms=3_000))


@pytest.mark.parametrize(
    ("operation", "within", "repeatable", "waited_s"),
    [
        (PREPARE, 20.0, True, 10.0),
        (PREPARE, 5.0, True, None),
        (PREPARE, 20.0, False, None),
        (COMMIT, 5.0, True, 15.0),
    ],
)
def test_only_a_prepare_that_may_go_twice_is_given_up_before_its_time(
    monkeypatch: pytest.MonkeyPatch,
    operation: Operation,
    within: float,
    repeatable: bool,
    waited_s: float | None,
) -> None:
    """None: until its deadline."""

    async def scenario(gateway: Gateway) -> None:
        untils: list[float] = []
        monkeypatch.setattr(gateway._courier, "carry", lambda _, until, __: untils.append(until))
        call, _ = call_for("http://p", operation, within=within)
        call.repeatable = repeatable
        deadline = call.end_s
        gateway.begin(call)
        await asyncio.sleep(0)
        assert call.sent_s is not None
        assert untils == [deadline if waited_s is None else call.sent_s + waited_s]

    run(scenario, timings=Timings(call_timeout_ms=15_000))


def test_a_commit_leaves_behind_the_answer_that_is_due_a_prepare_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario(gateway: Gateway) -> None:
        order: list[str] = []
        monkeypatch.setattr(
            gateway._courier, "carry", lambda call, _, __: order.append(call.operation)
        )
        for operation in (PREPARE, COMMIT):
            asyncio.get_running_loop().call_soon(order.append, "answer")
            gateway.begin(call_for("http://p", operation)[0])
            await asyncio.sleep(0)
        assert order == ["prepare", "answer", "answer", "commit"]

    run(scenario)


def test_a_commit_that_hangs_has_failed_and_is_not_sent_again_by_the_gateway() -> None:
    """When it goes again is for the transaction's conversation to say."""

    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            assert failed(await ask(gateway, stub.url, COMMIT)).arrived
            assert gateway.waiting() == {}
            assert len(stub.received) == 1

    run(scenario, timings=Timings(call_timeout_ms=50))


def test_a_withdrawn_call_is_neither_sent_nor_answered() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            pairs = [call_for(stub.url, transaction_id=f"t{n}", within=1.0) for n in range(3)]
            for call, _ in pairs:
                gateway.begin(call)
            await stub.until_received(1)
            assert not gateway.withdraw(pairs[0][0])  # under way
            assert gateway.withdraw(pairs[1][0])
            assert not gateway.withdraw(pairs[1][0])
            stub.behaviour = YES
            await pairs[0][1]
            failed(await pairs[2][1])  # its deadline is the same as the first one's
            assert not pairs[1][1].done()
            assert "t1" not in [received.body["transaction_id"] for received in stub.received]

    run(scenario, limits=Limits(calls_per_participant=1))


def test_of_a_prepare_that_hangs_after_its_decision_nothing_is_kept_but_its_place() -> None:
    """It may be under way for an hour, and nobody counts its payload once it is decided."""

    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            call, answered = call_for(stub.url, within=1.0)
            gateway.begin(call)
            await stub.until_received(1)
            assert not gateway.withdraw(call)
            assert call.body == b""
            assert [errand.body for errand in gateway._courier._errands] == [b""]
            assert stub.received[0].body["transaction_id"] == "t1"
            failed(await answered)

    run(scenario)


def test_what_is_withdrawn_after_its_answer_was_not_waiting() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            call, answered = call_for(stub.url)
            gateway.begin(call)
            await answered
            await asyncio.sleep(0)
            assert gateway._doors == {}, "nothing is kept of its lane"
            assert not gateway.withdraw(call)

    run(scenario)


def test_done_may_begin_and_withdraw_calls_of_the_same_lane() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            first, waiting = call_for(stub.url)[0], call_for(stub.url)
            next_one = call_for(stub.url)

            def done(_answer: Answer) -> None:
                assert gateway.withdraw(waiting[0])
                gateway.begin(next_one[0])

            first.done = done
            gateway.begin(first)
            gateway.begin(waiting[0])
            assert await next_one[1] == Voted(Vote.YES)
            assert not waiting[1].done()
            assert len(stub.received) == 2
            await asyncio.sleep(0)
            assert gateway._doors == {}  # nothing is kept of a lane that is not in use

    run(scenario, limits=Limits(calls_per_participant=1))


def test_metrics_are_told_of_every_answer() -> None:
    async def scenario(gateway: Gateway) -> None:
        told: list[tuple[Operation, Answer, bool]] = []
        gateway.on_answers = lambda calls, given, seconds: told.append(
            (calls[0].operation, given[0], seconds > 0)
        )
        async with Stub(YES) as stub:
            await ask(gateway, stub.url)
            await ask(gateway, stub.url, COMMIT)
            late = await ask(gateway, stub.url, within=-1.0)
        assert told == [
            (PREPARE, Voted(Vote.YES), True),
            (COMMIT, Acknowledged(), True),
            (PREPARE, late, False),
        ]

    run(scenario)


def test_a_host_that_hangs_under_many_names_has_a_share_of_the_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And neither its commits nor others wait for it, and what waited goes within its time."""
    monkeypatch.setattr("coordinator.courier.most_connections", lambda: 32)

    async def scenario(gateway: Gateway) -> None:
        async with Stub(per_operation(prepare=hang)) as hanging, Stub(YES) as well:
            calls = [call_for(f"{hanging.url}/{n}", transaction_id=f"t{n}") for n in range(40)]
            for call, _ in calls:
                gateway.begin(call)
            assert await ask(gateway, well.url) == Voted(Vote.YES)
            assert await ask(gateway, f"{hanging.url}/1", COMMIT) == Acknowledged()
            late = await ask(gateway, f"{hanging.url}/late", within=0.2)
            assert failed(late) == Failed("no connection in time", arrived=False)
            assert hanging.most_under_way <= 5  # a fourth of those for prepares, and the commit
            hanging.behaviour = YES
            hanging.hang_up()
            answers = await asyncio.gather(*[answered for _, answered in calls])
            assert sum(answer == Voted(Vote.YES) for answer in answers) == 36

    run(scenario)


def test_three_hosts_that_hang_hold_up_no_fourth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has all that it may have under way, for as long as its transactions last."""
    monkeypatch.setattr("coordinator.courier.most_connections", lambda: 32)

    async def scenario(gateway: Gateway) -> None:
        async with contextlib.AsyncExitStack() as stack:
            hangs = per_operation(prepare=hang)
            hanging = [await stack.enter_async_context(Stub(hangs)) for _ in range(3)]
            well = await stack.enter_async_context(Stub(YES))
            for stub in hanging:
                for n in range(40):
                    call, _ = call_for(stub.url, transaction_id=f"t{n}")
                    gateway.begin(call)
                await stub.until_received(4)
            for _ in range(50):
                assert await ask(gateway, well.url) == Voted(Vote.YES)
            for stub in (*hanging, well):
                assert await ask(gateway, stub.url, COMMIT) == Acknowledged()
            assert [stub.most_under_way for stub in hanging] == [5] * 3, "the commit beside"

    run(scenario, limits=Limits(calls_per_participant=8))


# --- a participant that is down -------------------------------------------------------------------


class Backlog:
    """Commits that are begun again a moment after they failed, as the driver does it."""

    def __init__(self, gateway: Gateway, url: str, count: int) -> None:
        self.failures = 0
        self.left = count
        self.more_failures = asyncio.Event()
        self.drained = asyncio.Event()
        self._gateway = gateway
        for number in range(count):
            self._begin(url, number)

    def _begin(self, url: str, number: int) -> None:
        call, answered = call_for(url, COMMIT, transaction_id=f"t{number}")
        answered.add_done_callback(lambda future: self._after(future.result(), url, number))
        self._gateway.begin(call)

    def _after(self, given: Answer, url: str, number: int) -> None:
        if isinstance(given, Acknowledged):
            self.left -= 1
            if not self.left:
                self.drained.set()
            return
        self.failures += 1
        self.more_failures.set()
        if self._gateway._open:
            asyncio.get_running_loop().call_later(0.05, self._begin, url, number)

    async def until_failures(self, count: int) -> None:
        while self.failures < count:
            self.more_failures.clear()
            await self.more_failures.wait()


@pytest.mark.parametrize(
    "behaviour",
    [reset, answer(b"nobody is here", 503), answer(b"it broke", 500)],
    ids=["reset", "503", "500"],
)
def test_a_backlog_for_a_participant_that_is_down_costs_nearly_nothing_and_then_drains(
    behaviour: Behaviour,
) -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(behaviour) as stub, Stub(YES) as well:
            backlog = Backlog(gateway, stub.url, 2_000)
            await backlog.until_failures(4)  # the first one, and some probes
            for _ in range(20):  # meanwhile others are served
                assert await ask(gateway, well.url, COMMIT) == Acknowledged()
            assert len(stub.received) < 200
            assert len(gateway._courier._errands) <= 2
            stub.behaviour = answer(b"")
            gateway.wake(stub.url)
            await backlog.drained.wait()
            assert stub.most_under_way <= 64
            assert backlog.failures < 200
        assert gateway.waiting() == {}

    run(scenario, limits=Limits(calls_per_participant=64))


@pytest.mark.parametrize(
    ("behaviour", "closes"),
    [
        (reset, True),
        (answer(b"bad gateway", 502), True),
        (answer(b"nobody is here", 503), True),
        (answer(b"too slow", 504), True),
        (answer(b"it broke", 500), False),
        (answer(b"", 404), False),
        (answer(b""), False),
    ],
)
def test_one_call_that_does_not_reach_the_participant_closes_its_lane(
    behaviour: Behaviour, closes: bool
) -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(behaviour) as stub:
            await ask(gateway, stub.url, COMMIT)
            door = gateway._doors.get((stub.url, False, True))
            assert (door is not None and door.lane.closed) == closes

    run(scenario)


def test_a_refused_backlog_drains_by_itself_when_the_participant_comes_up() -> None:
    async def scenario(gateway: Gateway) -> None:
        held = bound_socket()
        backlog = Backlog(gateway, url_of(held), 300)
        await backlog.until_failures(4)  # the first one, and some probes
        assert gateway.waiting()[url_of(held)] > 200
        async with Stub(answer(b""), listener=held) as stub:
            await backlog.drained.wait()
            assert len(stub.received) == 300

    run(scenario, limits=Limits(calls_per_participant=16))


def test_prepares_are_tried_although_the_lane_of_commits_is_closed() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(per_operation(prepare=YES, commit=reset)) as stub:
            backlog = Backlog(gateway, stub.url, 100)
            await backlog.until_failures(4)
            assert gateway.waiting()
            for _ in range(10):
                assert await ask(gateway, stub.url) == Voted(Vote.YES)

    run(scenario, limits=Limits(calls_per_participant=4))


def test_every_prepare_for_a_participant_that_is_down_is_tried_and_fails_fast() -> None:
    async def scenario(gateway: Gateway) -> None:
        with bound_socket() as held:
            pairs = [call_for(url_of(held), transaction_id=f"t{n}") for n in range(200)]
            for call, _ in pairs:
                gateway.begin(call)
            for call, answered in pairs:
                assert not failed(await answered).arrived
                assert call.sent_s is not None

    run(scenario, limits=Limits(calls_per_participant=1))


# --- the end --------------------------------------------------------------------------------------


def test_stop_answers_everything_promptly() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            pairs = [
                call_for(stub.url, operation)
                for operation in (PREPARE, PREPARE, PREPARE, COMMIT, COMMIT, COMMIT)
            ]
            for call, _ in pairs:
                gateway.begin(call)
            await stub.until_received(4)
            before = time.monotonic()
            await gateway.stop()
            assert time.monotonic() - before < 5.0
            given = [failed(answered.result()).arrived for _, answered in pairs]
            assert given == [True, True, False, True, True, False]
            call, answered = call_for(stub.url)
            gateway.begin(call)
            assert not failed(await answered).arrived

    run(scenario, limits=Limits(calls_per_participant=2))


def test_one_that_cannot_be_told_at_the_stop_keeps_no_other_from_being_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: Answer) -> None:
        raise RuntimeError("nobody listens")

    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            calls = [call_for(stub.url, transaction_id=each) for each in "abc"]
            for call, _ in calls:
                gateway.begin(call)
            calls[1][0].done = broken
            await stub.until_received(1)
            await gateway.stop()
            assert failed(calls[0][1].result()).arrived
            assert not failed(calls[2][1].result()).arrived

    run(scenario, limits=Limits(calls_per_participant=1))
    assert "nobody listens" in caplog.text


def test_what_is_withdrawn_during_the_stop_is_not_answered() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            calls = [call_for(stub.url, transaction_id=each) for each in "abc"]
            withdrawn: list[bool] = []
            calls[1][0].done = lambda _: withdrawn.append(gateway.withdraw(calls[2][0]))
            for call, _ in calls:
                gateway.begin(call)
            await stub.until_received(1)
            await gateway.stop()
            assert withdrawn == [True]
            assert not calls[2][1].done()

    run(scenario, limits=Limits(calls_per_participant=1))


def test_stop_answers_what_was_begun_in_the_same_instant() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            call, answered = call_for(stub.url)
            gateway.begin(call)
            await gateway.stop()
            assert not failed(await answered).arrived

    run(scenario)


# --- what must not be -----------------------------------------------------------------------------


def test_a_stranger_that_hangs_with_its_room_used_up_is_not_looked_at_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pumps = count_pumps(monkeypatch)

    async def scenario(gateway: Gateway) -> None:
        async with Stub(hang) as stub:
            for number in range(5):
                call = call_for(stub.url, transaction_id=f"t{number}")[0]
                call.done = lambda _answer: None
                gateway.begin(call)
            await stub.until_received(2)
            await asyncio.sleep(0.02)
            before = pumps()
            await asyncio.sleep(0.1)
            assert pumps() - before <= 5
            assert gateway.waiting() == {stub.url: 3}

    run(scenario, limits=Limits(calls_per_participant=2))


@pytest.mark.parametrize("status", [404, 409, 500])
def test_who_answers_at_all_is_no_stranger(status: int) -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(answer(b"", status)) as stub:
            assert stub.url not in gateway.declarations
            await ask(gateway, stub.url)
            assert stub.url in gateway.declarations
            assert gateway.declarations.of(stub.url) is PLAIN

    run(scenario)


def test_who_does_not_answer_stays_a_stranger() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(close) as stub:
            failed(await ask(gateway, stub.url, COMMIT))
            assert stub.url not in gateway.declarations

    run(scenario)


def test_answers_that_cannot_be_counted_are_told_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no room for one more number")

    async def scenario(gateway: Gateway) -> None:
        gateway.on_answers = broken
        async with Stub(YES) as stub:
            assert await ask(gateway, stub.url) == Voted(Vote.YES)
            assert await ask(gateway, stub.url, COMMIT) == Acknowledged()

    run(scenario)
    assert "could not be counted" in caplog.text


def test_a_call_whose_carrying_fails_in_an_unforeseen_way_has_failed_and_frees_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("what is this answer")

    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            with monkeypatch.context() as patch:
                patch.setattr("coordinator.courier._understood", broken)
                assert "unforeseen" in failed(await ask(gateway, stub.url)).what
            assert await ask(gateway, stub.url) == Voted(Vote.YES)

    run(scenario, limits=Limits(calls_per_participant=1))
    assert "what is this answer" in caplog.text


def test_a_closed_lane_pauses_as_long_as_the_settings_say() -> None:
    async def main() -> None:
        timings = Timings(retry_initial_ms=200, retry_max_ms=30_000)
        gateway = Gateway(limits=Limits(), timings=timings)
        assert gateway._new_door(("http://p", False, True)).lane._backoff == Backoff(0.2, 30.0)
        assert gateway._new_door(("http://p", True, True)).lane._backoff is None

    asyncio.run(main())


@pytest.mark.parametrize("shares", [True, False])
def test_an_operator_in_a_hurry_wakes_a_closed_lane(shares: bool) -> None:
    """That of branches with URLs of their own, too."""

    class Longest(Random):
        def uniform(self, _a: float, b: float) -> float:
            return b

    async def main() -> None:
        hour_ms = 3_600_000
        timings = Timings(retry_initial_ms=hour_ms, retry_max_ms=hour_ms)
        gateway = Gateway(limits=Limits(), timings=timings, random=Longest())
        await gateway.start()
        try:
            async with Stub(reset) as stub, asyncio.timeout(30):
                failing, failure = call_for(stub.url, COMMIT)
                failing.shares = shares
                gateway.begin(failing)
                assert isinstance(await failure, Failed)
                stub.behaviour = answer(b"")
                call, waiting = call_for(stub.url, COMMIT, within=-1.0)
                call.shares = shares
                gateway.begin(call)
                for _ in range(3):
                    await asyncio.sleep(0)
                assert gateway.waiting() == {stub.url: 1}, "a commit has no deadline before it goes"
                gateway.wake(stub.url)
                assert await waiting == Acknowledged()
        finally:
            await gateway.stop()

    asyncio.run(main())
