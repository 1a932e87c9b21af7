"""Calls that share a request: for participants that offer it, and only for them."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiohttp import web

from coordinator.courier import Answer
from coordinator.gateway import Call, Gateway
from coordinator.settings import Limits
from participants.contract import DECLARATION_HEADER, Acknowledged, Failed, Operation, Vote, Voted
from tests.calling import call_for, count_pumps, failed, run
from tests.stubs import bound_socket, url_of

BATCHES = {DECLARATION_HEADER: "1; repeatable-prepare; inquiry; batch=/seats/batch"}


class Batching:
    """Takes batches; `hold` keeps one until it is set, `refuses_with` a status refuses them."""

    def __init__(self) -> None:
        self.requests: list[list[tuple[str, str]]] = []
        self.hold: asyncio.Event | None = None
        self.arrived = asyncio.Condition()
        self.refuses_with: int | None = None
        self.refused = 0
        self.fill = ""
        self._port = 0

    async def __aenter__(self) -> Batching:
        application = web.Application()
        application.router.add_post("/seats/batch", self._batch)
        application.router.add_post("/seats/{operation}", self._one)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}/seats"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def until(self, requests: int) -> None:
        async with self.arrived:
            await self.arrived.wait_for(lambda: len(self.requests) >= requests)

    async def _note(self, messages: list[tuple[str, str]]) -> None:
        async with self.arrived:
            self.requests.append(messages)
            self.arrived.notify_all()

    async def _one(self, request: web.Request) -> web.Response:
        message = await request.json()
        operation = request.match_info["operation"]
        hold = self.hold
        await self._note([(operation, message["transaction_id"])])
        if hold is not None:
            await hold.wait()
        return web.json_response({"vote": "yes"}, headers=BATCHES)

    async def _batch(self, request: web.Request) -> web.Response:
        if self.refuses_with is not None:
            self.refused += 1
            return web.Response(status=self.refuses_with)
        messages = (await request.json())["messages"]
        hold = self.hold
        await self._note([(m["operation"], m["transaction_id"]) for m in messages])
        if hold is not None:
            await hold.wait()
        if self.refuses_with is not None:
            return web.Response(status=self.refuses_with)
        answers = [{"status": 200, "body": self.answer(m)} for m in messages]
        return web.json_response({"answers": answers}, headers=BATCHES)

    def answer(self, message: dict[str, str]) -> dict[str, str]:
        vote = "no" if message["transaction_id"].endswith("no") else "yes"
        answer = {"vote": vote, "transaction_id": message["transaction_id"], "branch_id": "1"}
        return {**answer, "fill": self.fill}


def begin(
    gateway: Gateway, url: str, operation: Operation, *ids: str
) -> list[asyncio.Future[Answer]]:
    calls: list[tuple[Call, asyncio.Future[Answer]]] = [
        call_for(url, operation, transaction_id=i) for i in ids
    ]
    for call, _ in calls:
        gateway.begin(call)
    return [answered for _, answered in calls]


async def learn(gateway: Gateway, participant: Batching) -> None:
    """One call, after which the gateway knows what the participant offers."""
    await asyncio.gather(*begin(gateway, participant.url, Operation.PREPARE, "first"))
    assert gateway.declarations.of(participant.url).batch_path == "/seats/batch"
    participant.requests.clear()


def test_what_is_asked_in_one_turn_of_the_loop_shares_a_request() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            ids = [f"t{n}" for n in range(20)]
            answers = await asyncio.gather(
                *begin(gateway, participant.url, Operation.PREPARE, *ids, "t-no")
            )
            assert participant.requests == [[("prepare", i) for i in (*ids, "t-no")]]
            assert answers[:20] == [Voted(Vote.YES)] * 20
            assert isinstance(answers[20], Voted)
            assert answers[20].vote is Vote.NO

    run(scenario)


def test_a_prepare_that_is_too_late_keeps_none_of_its_batch_from_leaving() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            late, told_late = call_for(participant.url, transaction_id="late", within=-1.0)
            others = [call_for(participant.url, transaction_id=each) for each in "ab"]
            for call in (others[0][0], late, others[1][0]):
                gateway.begin(call)
            for _, answered in others:
                assert await answered == Voted(Vote.YES)
            assert not failed(await told_late).arrived
            assert participant.requests == [[("prepare", "a"), ("prepare", "b")]]

    run(scenario)


def test_a_batch_has_as_long_as_the_most_patient_of_its_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is decided meanwhile is withdrawn by who decides it."""

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            untils: list[float] = []
            monkeypatch.setattr(
                gateway._courier, "carry_batch", lambda _, __, until, ___: untils.append(until)
            )
            calls = [
                call_for(participant.url, transaction_id=f"t{within}", within=within)[0]
                for within in (2.0, 8.0, 4.0)
            ]
            for call in calls:
                gateway.begin(call)
            await asyncio.sleep(0)
            assert untils == [calls[1].end_s]

    run(scenario)


def test_the_trace_of_each_message_travels_along() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            traces: dict[str, str | None] = {}
            honest = participant.answer

            def traced(message: dict[str, str]) -> dict[str, str]:
                traces[message["transaction_id"]] = message.get("traceparent")
                return honest(message)

            participant.answer = traced  # type: ignore[method-assign]
            calls = [call_for(participant.url, transaction_id=each) for each in "abc"]
            calls[0][0].traceparent, calls[1][0].traceparent = "00-a-b-01", "00-c-d-01"
            for call, _ in calls:
                gateway.begin(call)
            answers = await asyncio.gather(*[answered for _, answered in calls])
            assert answers == [Voted(Vote.YES)] * 3
            assert traces == {"a": "00-a-b-01", "b": "00-c-d-01", "c": None}

    run(scenario)


def test_a_burst_to_a_participant_never_heard_of_waits_for_what_it_says_of_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordinator.gateway._STRANGER_PATIENCE_S", 60.0)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            ids = [f"t{n}" for n in range(40)]
            answers = begin(gateway, participant.url, Operation.PREPARE, *ids)
            assert await asyncio.gather(*answers) == [Voted(Vote.YES)] * 40
            assert [len(request) for request in participant.requests] == [1, 39]

    run(scenario)


def test_who_does_not_answer_its_first_call_is_called_again_meanwhile() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            participant.hold = asyncio.Event()
            answers = begin(gateway, participant.url, Operation.PREPARE, "a", "b", "c")
            await participant.until(3)
            assert participant.requests == [[("prepare", each)] for each in "abc"]
            participant.hold.set()
            assert await asyncio.gather(*answers) == [Voted(Vote.YES)] * 3

    run(scenario)


def test_the_next_batch_gathers_while_one_is_under_way() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            first = begin(gateway, participant.url, Operation.COMMIT, "a", "b")
            await participant.until(1)
            held, participant.hold = participant.hold, None
            later = begin(gateway, participant.url, Operation.COMMIT, "c")
            later += begin(gateway, participant.url, Operation.ROLLBACK, "d")
            held.set()
            assert await asyncio.gather(*first, *later) == [Acknowledged()] * 4
            assert participant.requests == [
                [("commit", "a"), ("commit", "b")],
                [("commit", "c"), ("rollback", "d")],
            ]

    run(scenario)


def test_a_batch_that_hangs_does_not_hold_up_the_others() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            hanging = begin(gateway, participant.url, Operation.PREPARE, "a", "b")
            await participant.until(1)
            held, participant.hold = participant.hold, None
            others = await asyncio.gather(
                *begin(gateway, participant.url, Operation.PREPARE, "c", "d")
            )
            assert others == [Voted(Vote.YES)] * 2
            assert not any(answered.done() for answered in hanging)
            held.set()
            assert await asyncio.gather(*hanging) == [Voted(Vote.YES)] * 2

    run(scenario)


@pytest.mark.parametrize("status", [200, 400, 404, 413, 500])
@pytest.mark.parametrize("operation", [Operation.PREPARE, Operation.COMMIT])
def test_what_was_refused_as_a_batch_goes_singly_and_so_does_what_comes_after_it(
    operation: Operation, status: int
) -> None:
    """200 is that of a page which somebody else shows in the batch call's place."""

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.refuses_with = status
            served: Answer = Acknowledged()
            if operation is Operation.PREPARE:
                served = Voted(Vote.YES)
            for ids in ("abc", "de"):
                answers = begin(gateway, participant.url, operation, *ids)
                assert await asyncio.gather(*answers) == [served] * len(ids)
            assert sorted(participant.requests) == [[(operation.value, i)] for i in "abcde"]
            assert participant.refused == 1

    run(scenario)


def test_a_batch_is_no_larger_than_proxies_take_and_what_is_larger_goes_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordinator.gateway._BATCH_BYTES", 1_000)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            sizes = {"a": 400, "b": 600, "c": 1, "d": 1_500, "e": 1_500, "f": 500, "g": 500}
            answers = []
            for each, size in sizes.items():
                body = b'{"transaction_id":"%s","fill":"%s"}' % (each.encode(), b"x" * size)
                body = body[: size - 2] + b'"}' if size > 40 else body
                call, answered = call_for(participant.url, transaction_id=each, body=body)
                gateway.begin(call)
                answers.append(answered)
            assert await asyncio.gather(*answers) == [Voted(Vote.YES)] * len(sizes)
            ids = ["".join(i for _, i in request) for request in participant.requests]
            assert ids == ["ab", "c", "d", "e", "fg"]

    run(scenario)


def test_prepares_that_hang_are_asked_again_long_before_their_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else those to a machine that was switched off and on hold up all others until then."""
    monkeypatch.setattr("coordinator.gateway._TRY_S", 0.05)
    monkeypatch.setattr("coordinator.gateway._MOST_BESIDE", 1)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            hanging = begin(gateway, participant.url, Operation.PREPARE, "a", "b")
            await participant.until(1)
            held, participant.hold = participant.hold, None
            later = begin(gateway, participant.url, Operation.PREPARE, "c")
            assert await asyncio.gather(*hanging, *later) == [Voted(Vote.YES)] * 3
            assert participant.requests[0] == [("prepare", "a"), ("prepare", "b")]
            assert participant.requests[1] == [("prepare", i) for i in "abc"]
            held.set()

    run(scenario)


@pytest.mark.parametrize("beside", ["", "b"])
def test_a_plain_branch_that_hangs_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch, beside: str
) -> None:
    """Nor is its request given up for the sake of one that could be asked again."""
    monkeypatch.setattr("coordinator.gateway._TRY_S", 0.05)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as other, Batching() as participant:
            await learn(gateway, participant)
            participant.hold, other.hold = asyncio.Event(), asyncio.Event()
            plain, answered = call_for(participant.url, transaction_id="plain")
            plain.repeatable = False
            gateway.begin(plain)
            shares = begin(gateway, participant.url, Operation.PREPARE, *beside)
            again = begin(gateway, other.url, Operation.PREPARE, "again")
            await other.until(3)  # twice the time has passed
            assert participant.requests == [[("prepare", i) for i in ("plain", *beside)]]
            participant.hold.set()
            other.hold.set()
            assert await answered == Voted(Vote.YES)
            assert await asyncio.gather(*shares, *again) == [Voted(Vote.YES)] * (1 + len(beside))

    run(scenario)


def test_a_branch_with_urls_of_its_own_is_called_at_these() -> None:
    """The batch call's path is declared for the participant's place, and knows no queries."""

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            calls = [call_for(participant.url, Operation.COMMIT, transaction_id=i) for i in "abcd"]
            for call, _ in calls[2:]:
                call.url = f"{participant.url}/finish?now=1"
                call.shares = False
            for call, _ in calls:
                gateway.begin(call)
            answers = await asyncio.gather(*[answered for _, answered in calls])
            assert answers == [Acknowledged()] * 4
            assert sorted(participant.requests) == [
                [("commit", "a"), ("commit", "b")],
                [("finish", "c")],
                [("finish", "d")],
            ]

    run(scenario)


def test_an_answer_to_a_batch_that_is_far_too_long_is_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordinator.courier._BATCH_ANSWER_BYTES", 1_000)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            for filled, requests in ((900, ["ab"]), (1_200, ["ab", "a", "b"])):
                participant.requests.clear()
                participant.fill = "x" * filled
                answers = begin(gateway, participant.url, Operation.PREPARE, "a", "b")
                assert await asyncio.gather(*answers) == [Voted(Vote.YES)] * 2
                ids = ["".join(i for _, i in request) for request in participant.requests]
                assert sorted(ids, reverse=True) == sorted(requests, reverse=True)

    run(scenario, limits=Limits(answer_bytes=200))


def test_the_prepare_of_a_plain_branch_does_not_go_again_when_its_batch_was_refused() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.refuses_with = 404
            calls = [call_for(participant.url, transaction_id=each) for each in "abc"]
            calls[1][0].repeatable = False
            for call, _ in calls:
                gateway.begin(call)
            answers = await asyncio.gather(*[answered for _, answered in calls])
            assert "404" in failed(answers[1]).what
            assert failed(answers[1]).arrived
            assert answers[::2] == [Voted(Vote.YES)] * 2
            assert sorted(participant.requests) == [[("prepare", "a")], [("prepare", "c")]]

    run(scenario)


def test_what_may_have_arrived_in_a_refused_batch_is_not_said_never_to_have() -> None:
    """Else its branch would count as never asked, and need no rollback."""

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.refuses_with = 500
            with bound_socket() as nobody:
                calls = [call_for(participant.url, transaction_id=each) for each in "ab"]
                for call, _ in calls:
                    call.url = url_of(nobody)
                    gateway.begin(call)
                answers = await asyncio.gather(*[answered for _, answered in calls])
            assert participant.refused == 1
            assert [(failed(a).arrived, failed(a).broken) for a in answers] == [(True, True)] * 2

    run(scenario)


def test_a_participant_that_starts_again_is_sent_batches_at_once() -> None:
    async def scenario(gateway: Gateway) -> None:
        participant = Batching()
        async with participant:
            await learn(gateway, participant)
        answers = begin(gateway, participant.url, Operation.PREPARE, "a", "b")
        assert not any(failed(answer).arrived for answer in await asyncio.gather(*answers))
        async with participant:
            answers = begin(gateway, participant.url, Operation.PREPARE, "c", "d")
            assert await asyncio.gather(*answers) == [Voted(Vote.YES)] * 2
            assert participant.requests == [[("prepare", "c"), ("prepare", "d")]]

    run(scenario)


def test_an_answer_for_another_branch_is_a_failure_of_that_call_alone() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            honest = participant.answer

            def lying(message: dict[str, str]) -> dict[str, str]:
                answer = honest(message)
                if message["transaction_id"] == "b":
                    answer["transaction_id"] = "someone-else"
                return answer

            participant.answer = lying  # type: ignore[method-assign]
            answers = await asyncio.gather(
                *begin(gateway, participant.url, Operation.PREPARE, "a", "b")
            )
            assert answers[0] == Voted(Vote.YES)
            assert "another transaction" in failed(answers[1]).what

    run(scenario)


def test_a_prepare_that_waits_for_its_batch_can_be_withdrawn() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            call, answered = call_for(participant.url, Operation.PREPARE, transaction_id="a")
            gateway.begin(call)
            assert gateway.withdraw(call)
            await asyncio.gather(*begin(gateway, participant.url, Operation.PREPARE, "b"))
            assert not answered.done()
            assert json.dumps(participant.requests) == '[[["prepare", "b"]]]'

    run(scenario)


def test_a_prepare_that_is_withdrawn_while_it_hangs_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a leader that was deposed would go on asking for as long as its transactions last."""
    monkeypatch.setattr("coordinator.gateway._TRY_S", 0.05)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            call, answered = call_for(participant.url, transaction_id="a")
            gateway.begin(call)
            others = begin(gateway, participant.url, Operation.PREPARE, "b", "c")
            await participant.until(1)
            held, participant.hold = participant.hold, None
            assert not gateway.withdraw(call)
            assert failed(await answered).arrived
            assert await asyncio.gather(*others) == [Voted(Vote.YES)] * 2
            ids = ["".join(i for _, i in request) for request in participant.requests]
            assert ids == ["abc", "bc"]
            held.set()

    run(scenario)


def test_what_is_withdrawn_under_way_does_not_go_singly_when_its_batch_is_refused() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            call, answered = call_for(participant.url, Operation.COMMIT, transaction_id="a")
            gateway.begin(call)
            others = begin(gateway, participant.url, Operation.COMMIT, "b", "c")
            await participant.until(1)
            gateway.withdraw(call)
            participant.refuses_with, held, participant.hold = 404, participant.hold, None
            held.set()
            assert "404" in failed(await answered).what
            assert await asyncio.gather(*others) == [Acknowledged()] * 2
            assert sorted(participant.requests[1:]) == [[("commit", "b")], [("commit", "c")]]

    run(scenario)


def test_a_broken_batch_fails_each_of_its_calls() -> None:
    async def scenario(gateway: Gateway) -> None:
        participant = Batching()
        async with participant:
            await learn(gateway, participant)
        answers = await asyncio.gather(
            *begin(gateway, participant.url, Operation.PREPARE, "a", "b", "c")
        )
        assert [failed(answer).arrived for answer in answers] == [False] * 3
        assert all(isinstance(answer, Failed) for answer in answers)

    run(scenario)


@pytest.mark.parametrize("most_beside", [16, 1])
def test_a_closed_lane_whose_probe_is_under_way_is_not_looked_at_in_vain(
    monkeypatch: pytest.MonkeyPatch, most_beside: int
) -> None:
    """Its probe's time is past, and no batch may leave: a loop that looks at once spins."""
    monkeypatch.setattr("coordinator.gateway._MOST_BESIDE", most_beside)
    pumps = count_pumps(monkeypatch)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.refuses_with = 503
            await asyncio.gather(*begin(gateway, participant.url, Operation.COMMIT, "a", "b"))
            participant.hold = asyncio.Event()
            probing = begin(gateway, participant.url, Operation.COMMIT, "a", "b", "c")
            gateway.wake(participant.url)
            await participant.until(1)
            gateway.wake(participant.url)
            before = pumps()
            await asyncio.sleep(0.04)
            assert pumps() - before < 20
            participant.hold.set()
            participant.refuses_with = participant.hold = None
            assert await asyncio.gather(*probing) == [Acknowledged()] * 3

    run(scenario)


def test_a_participant_whose_batches_hang_gets_no_more_than_a_few_at_one_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("coordinator.gateway._BATCH_PATIENCE_S", 0.0)
    monkeypatch.setattr("coordinator.gateway._MOST_BESIDE", 3)

    async def scenario(gateway: Gateway) -> None:
        async with Batching() as participant:
            await learn(gateway, participant)
            participant.hold = asyncio.Event()
            hanging = []
            for number in range(6):
                pair = (f"a{number}", f"b{number}")
                hanging += begin(gateway, participant.url, Operation.PREPARE, *pair)
                await asyncio.sleep(0.01)
            assert len(participant.requests) == 3
            held, participant.hold = participant.hold, None
            held.set()
            assert await asyncio.gather(*hanging) == [Voted(Vote.YES)] * 12
            assert len(participant.requests) == 4, "the others shared the next one"

    run(scenario)
