"""Until a call is answered: who is asked next, after what pause, and which answer is the last."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import pytest
from aiohttp import web

from cluster.client import Client, OutcomeUnknown, Transaction
from cluster.client.calls import (
    AiohttpExchange,
    Call,
    Caller,
    HttpAnswer,
    NoAnswer,
    Nodes,
    Silence,
)
from tests.fake_nodes import FOREVER, ORDER, FakeNode, hangs, run, shown, until
from tests.skipped_time import run_skipping


class Scripted:
    """An `Exchange` that remembers whom it asked and how long each try might take."""

    def __init__(self, *answers: HttpAnswer | NoAnswer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.timeouts: list[float] = []

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpAnswer:
        del method, body
        self.asked.append(url.removesuffix("/x"))
        self.timeouts.append(timeout)
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    async def close(self) -> None: ...


def test_the_next_node_is_another_one_where_there_is_another() -> None:
    a, b = "http://a:1", "http://b:2"
    for seed in range(4):
        nodes = Nodes([a, b], Random(seed))
        assert [nodes.other_than(one) for one in (a, a, b, b, a)] == [b, b, a, a, b]
    assert Nodes([a], Random(1)).other_than(a) == a


def test_only_its_own_failure_makes_the_leader_forgotten() -> None:
    nodes = Nodes(["a:1"], Random(1))
    nodes.leads("http://new:1")
    nodes.failed("http://a:1")
    assert nodes.leader == "http://new:1"
    nodes.failed("http://new:1")
    assert nodes.leader is None
    assert {nodes.any() for _ in range(2)} == {"http://a:1", "http://new:1"}


def test_where_nodes_have_been_nobody_is_asked_any_more() -> None:
    """A client lives for months; each address that was left would cost a try at every failure."""
    nodes = Nodes(["a:1"], Random(1))
    for number in range(100):
        nodes.leads(f"http://b:{number}")
        nodes.learn([f"http://b:{number}", f"http://c:{number}"])
        nodes.failed(f"http://b:{number}")
    assert {nodes.any() for _ in range(10)} == {"http://a:1", "http://b:99", "http://c:99"}


def test_silence_is_told_from_a_connection_that_could_not_be_made() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = hangs
        exchange = AiohttpExchange(Random(1))
        with pytest.raises(Silence, match=r"no answer within 0\.0 s"):
            await exchange.send("GET", nodes[0].url + "/x", None, 0.02)
        await nodes[0].die()
        with pytest.raises(NoAnswer, match="cannot connect: Connect") as caught:
            await exchange.send("GET", nodes[0].url + "/x", None, FOREVER)
        assert not isinstance(caught.value, Silence)
        await exchange.close()

    run(test, nodes=1)


def test_a_try_that_was_met_with_silence_is_followed_by_a_longer_one() -> None:
    async def test() -> None:
        refused, silence = NoAnswer("no connection"), Silence("nothing")
        final = HttpAnswer(200, {}, b"{}")
        exchange = Scripted(refused, silence, refused, silence, silence, silence, final)
        nodes = Nodes(["a:1", "b:2"], Random(1))
        caller = Caller(nodes, exchange, timeout=2.0, random=Random(1))
        deadline = asyncio.get_running_loop().time() + 1_000
        assert await caller.call(Call("GET", "/x"), deadline) is final
        assert exchange.timeouts == [2, 2, 4, 4, 8, 8, 8]

    asyncio.run(test())


FINAL = HttpAnswer(200, {}, b"{}")
NOW, LATER = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:50:27 GMT"


def client_of(exchange: Scripted) -> Client:
    """It has asked its node for the others already."""
    client = Client("a:1", exchange=exchange, timeout=2.0, random=Random(1))
    client._dialogue._learnt_from = "http://a:1"
    return client


@contextmanager
def pauses_are_noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """And take no time."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "sleep", sleep)
        yield slept


def test_the_first_repeat_follows_at_once_and_later_ones_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        exchange = Scripted(*[NoAnswer("lost")] * 6, FINAL)
        caller = Caller(Nodes(["a:1"], Random(1)), exchange, timeout=2.0, random=Random(1))
        await caller.call(Call("GET", "/x"), asyncio.get_running_loop().time() + 1_000)
        assert caller.pause(1_000_000) <= 0.25

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    ceilings = [0.0, 0.025, 0.05, 0.1, 0.2, 0.25]
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, ceilings, strict=True))


def test_what_is_not_decided_yet_is_asked_for_after_growing_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def answer(outcome: str | None) -> HttpAnswer:
        return HttpAnswer(200, {}, json.dumps(shown("a", outcome)).encode())

    async def test() -> None:
        exchange = Scripted(*[answer(None)] * 4, answer("committed"))
        client = client_of(exchange)
        assert (await client.submit(ORDER, id="a", deadline=1_000)).committed
        await client.close()

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    ceilings = [0.025, 0.05, 0.1, 0.2]
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, ceilings, strict=True))


def test_what_is_not_decided_at_the_deadline_is_unknown_and_says_how_far_it_was() -> None:
    async def test() -> None:
        undecided = HttpAnswer(200, {}, json.dumps(shown("a", None)).encode())
        client = client_of(Scripted(*[undecided] * 20))
        with pytest.raises(OutcomeUnknown, match="preparing") as caught:
            await client.submit(ORDER, id="a", deadline=0.1)
        assert caught.value.transaction_id == "a"
        await client.close()

    run_skipping(test())


def answers_of(*elements: Any) -> HttpAnswer:
    return HttpAnswer(200, {}, json.dumps({"transactions": elements}).encode())


@pytest.mark.parametrize(("code", "extra"), [("at_capacity", 1.0), ("outcome_unknown", 0.0)])
def test_what_is_open_in_a_batch_is_sent_again_after_pauses_longer_where_one_was_refused_for_load(
    monkeypatch: pytest.MonkeyPatch, code: str, extra: float
) -> None:
    refused = {"error": {"code": code, "message": "later", "details": {}}}
    order = {"participants": ORDER}

    async def test() -> None:
        exchange = Scripted(
            answers_of(refused, shown("b", None)),
            answers_of(refused, shown("b", None)),
            answers_of(shown("a", "committed"), shown("b", "committed")),
        )
        client = client_of(exchange)
        answers = await client.submit_many(
            [order | {"id": "a"}, order | {"id": "b"}], deadline=1_000
        )
        assert [isinstance(one, Transaction) and one.committed for one in answers] == [True, True]
        await client.close()

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    ceilings = [0.025, 0.05]
    assert all(
        extra + most / 2 <= pause <= extra + most
        for pause, most in zip(slept, ceilings, strict=True)
    )


def test_a_batch_that_gets_no_answer_as_a_whole_leaves_the_outcome_of_each_unknown() -> None:
    async def test() -> None:
        order = {"participants": ORDER}
        client = client_of(Scripted(answers_of(1, 2, 3)))
        answers = await client.submit_many([order | {"id": "a"}, order | {"id": "b"}])
        unknown = [isinstance(one, OutcomeUnknown) and one.transaction_id for one in answers]
        assert unknown == ["a", "b"]
        assert all("without an answer to each" in str(one) for one in answers)
        await client.close()

    asyncio.run(test())


@pytest.mark.parametrize(
    ("status", "retry_after", "least", "most"),
    [
        (429, "2", 2.0, 2.5),
        (429, None, 1.0, 1.25),
        (503, "1", 0.0, 0.0),
        (503, "3", 3.0, 3.0),
        (503, "soon", 0.0, 0.0),
        (503, None, 0.0, 0.0),
    ],
)
def test_a_full_cluster_is_left_alone_as_long_as_it_said_and_one_without_a_leader_is_not(
    monkeypatch: pytest.MonkeyPatch, status: int, retry_after: str | None, least: float, most: float
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}

    async def test() -> None:
        exchange = Scripted(HttpAnswer(status, headers, b""), FINAL)
        caller = Caller(Nodes(["a:1"], Random(1)), exchange, timeout=2.0, random=Random(1))
        await caller.call(Call("GET", "/x"), asyncio.get_running_loop().time() + 1_000)

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    assert least <= slept[0] <= most


@pytest.mark.parametrize(
    ("status", "asked"),
    [
        (307, ["http://a:1", "http://b:2"]),
        (308, ["http://a:1", "http://b:2"]),
        (201, ["http://a:1"]),
        (302, ["http://a:1"]),
    ],
)
def test_only_what_keeps_method_and_body_is_followed(status: int, asked: list[str]) -> None:
    """What was begun may say where it is to be seen; to send it there again is another matter."""

    async def test() -> None:
        exchange = Scripted(HttpAnswer(status, {"Location": "http://b:2/x"}, b"{}"), FINAL)
        nodes = Nodes(["a:1"], Random(1))
        caller = Caller(nodes, exchange, timeout=2.0, random=Random(1))
        await caller.call(Call("POST", "/x"), asyncio.get_running_loop().time() + 1_000)
        assert exchange.asked == asked

    asyncio.run(test())


@pytest.mark.parametrize("first", [NoAnswer("lost"), HttpAnswer(503, {}, b"{}")], ids=str)
def test_a_nodes_own_refusal_is_final_whatever_came_before(first: HttpAnswer | NoAnswer) -> None:
    words = b'{"error": {"code": "transaction_id_conflict", "message": "other", "details": {}}}'

    async def test() -> None:
        refusal = HttpAnswer(409, {}, words)
        exchange = Scripted(first, HttpAnswer(409, {}, b"a proxy's"), refusal)
        caller = Caller(Nodes(["a:1"], Random(1)), exchange, timeout=2.0, random=Random(1))
        deadline = asyncio.get_running_loop().time() + 1_000
        assert await caller.call(Call("POST", "/x"), deadline) is refusal

    asyncio.run(test())


def test_no_pause_is_longer_than_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        exchange = Scripted(HttpAnswer(429, {"Retry-After": "60"}, b""), FINAL)
        caller = Caller(Nodes(["a:1"], Random(1)), exchange, timeout=2.0, random=Random(1))
        await caller.call(Call("GET", "/x"), asyncio.get_running_loop().time() + 30)

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    assert 0 < slept[0] <= 30


def test_after_a_failure_the_leader_that_another_call_has_found_is_asked() -> None:
    async def test() -> None:
        exchange = Scripted(NoAnswer("lost"), FINAL)
        nodes = Nodes(["a:1", "b:2", "c:3", "d:4"], Random(1))
        nodes.leads("http://c:3")
        caller = Caller(nodes, exchange, timeout=2.0, random=Random(1))
        while nodes.any() != "http://c:3":
            pass
        call = Call("GET", "/x", needs_leader=False)
        await caller.call(call, asyncio.get_running_loop().time() + 1_000)
        assert exchange.asked == ["http://d:4", "http://c:3"]

    asyncio.run(test())


def test_a_client_that_is_closed_asks_for_no_nodes_any_more() -> None:
    async def test() -> None:
        committed = HttpAnswer(200, {}, json.dumps(shown("a", "committed")).encode())
        client = Client("a:1", exchange=Scripted(committed), random=Random(1))
        await client.submit(ORDER, id="a")
        await client.close()
        assert client._dialogue._learning is not None
        assert client._dialogue._learning.done()

    asyncio.run(test())


def test_a_caller_that_is_closed_sends_nothing_more() -> None:
    async def test() -> None:
        exchange = Scripted(FINAL)
        caller = Caller(Nodes(["a:1"], Random(1)), exchange, timeout=2.0, random=Random(1))
        caller.close()
        deadline = asyncio.get_running_loop().time() + 1_000
        for asked in (
            caller.call(Call("GET", "/x"), deadline),
            caller.once(Call("GET", "/x"), "http://a:1", deadline),
            caller.rest(1_000),
        ):
            with pytest.raises(NoAnswer, match="closed"):
                await asked
        assert exchange.asked == []

    asyncio.run(test())


def test_what_any_node_may_answer_is_not_all_asked_of_the_leader() -> None:
    async def test() -> None:
        exchange = Scripted(FINAL, FINAL)
        nodes = Nodes(["a:1", "b:2"], Random(1))
        nodes.leads("http://a:1")
        caller = Caller(nodes, exchange, timeout=2.0, random=Random(1))
        for _ in range(2):
            call = Call("GET", "/x", needs_leader=False)
            await caller.call(call, asyncio.get_running_loop().time() + 1_000)
        assert set(exchange.asked) == {"http://a:1", "http://b:2"}
        assert nodes.leader == "http://a:1", "nor is the giver of such an answer taken for it"

    asyncio.run(test())


@pytest.mark.parametrize(
    ("answers", "asked", "pauses"),
    [
        ([HttpAnswer(307, {"Location": "http://a:1/x"}, b"")] * 10, 11, 2),
        ([HttpAnswer(408, {}, b"")], 2, 1),
        ([HttpAnswer(503, {"Retry-After": "99999"}, b"")], 2, 1),
        ([HttpAnswer(503, {"Retry-After": LATER, "Date": NOW}, b"")], 2, 1),
    ],
    ids=["redirects in a circle", "a request that took too long", "a pause without end", "a date"],
)
def test_what_is_no_final_answer_is_asked_again_after_a_bounded_pause(
    monkeypatch: pytest.MonkeyPatch, answers: list[HttpAnswer], asked: int, pauses: int
) -> None:
    async def test() -> None:
        exchange = Scripted(*answers, FINAL)
        caller = Caller(Nodes(["a:1", "b:2"], Random(1)), exchange, timeout=2.0, random=Random(1))
        deadline = asyncio.get_running_loop().time() + 1_000
        assert await caller.call(Call("GET", "/x"), deadline) is FINAL
        assert len(exchange.asked) == asked

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    assert len(slept) == pauses
    assert max(slept) <= 60
    assert (max(slept) >= 50) is any("Retry-After" in answer.headers for answer in answers)


def test_a_leader_that_is_full_is_still_the_one_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        full = HttpAnswer(429, {}, b"")
        exchange = Scripted(FINAL, full, full, FINAL)
        caller = Caller(Nodes(["a:1", "b:2"], Random(1)), exchange, timeout=2.0, random=Random(1))
        deadline = asyncio.get_running_loop().time() + 1_000
        for _ in range(2):
            await caller.call(Call("GET", "/x"), deadline)
        assert len(set(exchange.asked)) == 1

    with pauses_are_noted(monkeypatch):
        asyncio.run(test())


def test_the_deadline_ends_a_call_that_waits_for_a_free_connection() -> None:
    async def test() -> None:
        caller = Caller(Nodes(["a:1"], Random(1)), Scripted(), timeout=2.0, random=Random(1))
        with pytest.raises(NoAnswer, match="no final answer before the deadline"):
            await caller.call(Call("GET", "/x"), asyncio.get_running_loop().time() + 0.01)

    asyncio.run(test())


def test_waiting_for_a_free_connection_is_no_silence_of_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.client.calls._CONNECTIONS", 1)

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = hangs
        exchange = AiohttpExchange(Random(1))
        url = nodes[0].url + "/x"
        first = asyncio.create_task(exchange.send("GET", url, None, FOREVER))
        await until(lambda: bool(nodes[0].requests))
        second = asyncio.create_task(exchange.send("GET", url, None, 0.001))
        await asyncio.sleep(0.05)
        assert not second.done()
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await exchange.close()

    run(test)


def test_an_answer_without_end_is_none_and_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.client.calls._ANSWER_BYTES", 100_000)
    sent = 0

    async def endless(request: web.Request, _: Any) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 10_000)
            sent += 10_000

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = endless
        exchange = AiohttpExchange(Random(1))
        with pytest.raises(NoAnswer, match="longer than 100000 bytes"):
            await exchange.send("GET", nodes[0].url + "/x", None, FOREVER)
        await exchange.close()
        assert sent < 100_000_000, "what has been read, and what sockets hold"

    run(test, nodes=1)


# --- what a client follows ------------------------------------------------------------------------


def told(what: Any, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, {}, json.dumps(what).encode())


COMMITTING = told(shown("a", "committed", state="committing"))
FINISHED = told(shown("a", "committed"))


def test_the_end_is_waited_for_at_the_node_and_with_growing_pauses_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A node that answers at once, whatever it was asked for, is not asked all the time."""

    async def test() -> None:
        exchange = Scripted(*[COMMITTING] * 4, FINISHED)
        client = client_of(exchange)
        assert (await client.get("a", wait_ms=100_000, deadline=1_000)).finished
        path = "http://a:1/v1/transactions/a"
        assert exchange.asked == [path, *[f"{path}?wait_ms=1500"] * 4]
        await client.close()

    with pauses_are_noted(monkeypatch) as slept:
        asyncio.run(test())
    ceilings = [0.025, 0.05, 0.1]
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, ceilings, strict=True))


@pytest.mark.parametrize(("wait_ms", "deadline"), [(100, 1_000.0), (1_000_000, 0.1)])
def test_the_end_is_waited_for_no_longer_than_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, wait_ms: int, deadline: float
) -> None:
    async def test() -> None:
        exchange = Scripted(*[COMMITTING] * 20)
        client = client_of(exchange)
        async with asyncio.timeout(20):
            answer = await client.get("a", wait_ms=wait_ms, deadline=deadline)
        assert answer.state == "committing"
        waits = [int(url.split("wait_ms=")[1]) for url in exchange.asked if "wait_ms=" in url]
        assert all(1 <= wait <= 100 for wait in waits)
        await client.close()

    with pauses_are_noted(monkeypatch):
        asyncio.run(test())


@pytest.mark.parametrize(
    "then",
    [
        [],
        [told({"error": {"code": "unknown_transaction", "message": "?", "details": {}}}, 404)],
        [told(shown("another", "committed"))],
    ],
    ids=["silence", "forgotten", "another"],
)
def test_of_what_can_be_followed_no_further_the_last_that_was_known_is_told(
    then: list[HttpAnswer],
) -> None:
    async def test() -> None:
        client = client_of(Scripted(COMMITTING, *then))
        answer = await client.submit(ORDER, id="a", wait="completion", deadline=0.1)
        assert (answer.outcome, answer.state) == ("committed", "committing")
        await client.close()

    run_skipping(test())


def cluster_as_seen_by(node: str, leader: str | None, term: int) -> HttpAnswer:
    nodes = [{"id": "n1", "api": "http://a:1"}, {"id": "n2", "api": "http://b:2"}]
    return told({"cluster": "c", "self": node, "leader": leader, "term": term, "nodes": nodes})


@pytest.mark.parametrize(
    ("answers", "asked", "term"),
    [
        ([cluster_as_seen_by("n1", "n2", 3), cluster_as_seen_by("n2", "n2", 4)], ["a:1", "b:2"], 4),
        ([cluster_as_seen_by("n1", "n2", 3), NoAnswer("lost")], ["a:1", "b:2"], 3),
        ([cluster_as_seen_by("n1", "n2", 3), told(["?"])], ["a:1", "b:2"], 3),
        ([cluster_as_seen_by("n1", "n1", 3)], ["a:1"], 3),
        ([cluster_as_seen_by("n1", None, 3)], ["a:1"], 3),
        ([cluster_as_seen_by("n1", "n9", 3)], ["a:1"], 3),
    ],
    ids=["from the leader", "lost", "useless", "it leads itself", "nobody leads", "unknown leader"],
)
def test_the_cluster_is_told_as_its_leader_sees_it_where_that_answers(
    answers: list[HttpAnswer | NoAnswer], asked: list[str], term: int
) -> None:
    async def test() -> None:
        exchange = Scripted(*answers)
        client = Client("a:1", exchange=exchange, random=Random(1))
        assert (await client.cluster()).term == term
        assert exchange.asked == [f"http://{node}/v1/cluster" for node in asked]
        assert {client._nodes.any() for _ in range(2)} == {"http://a:1", "http://b:2"}
        assert client.leader is None, "who tells of the cluster need not lead it"
        await client.close()

    asyncio.run(test())


def test_an_address_that_is_none_keeps_nobody_from_the_clusters_status() -> None:
    async def test() -> None:
        nodes = [{"id": "n1", "api": "ftp://a"}]
        status = {"cluster": "c", "self": "n1", "leader": "n1", "term": 3, "nodes": nodes}
        client = client_of(Scripted(told(status)))
        assert (await client.cluster()).nodes[0].api == "ftp://a"
        await client.close()

    asyncio.run(test())


@pytest.mark.parametrize("known", [cluster_as_seen_by("n1", "n1", 3), NoAnswer("lost")])
def test_a_leader_is_asked_once_for_all_nodes_and_need_not_answer(
    known: HttpAnswer | NoAnswer,
) -> None:
    async def test() -> None:
        exchange = Scripted(FINISHED, known, FINISHED, FINISHED)
        client = Client("a:1", exchange=exchange, random=Random(1))
        for _ in range(3):
            await client.get("a")
            assert client._dialogue._learning is not None
            await client._dialogue._learning
        asked = [url.removeprefix("http://a:1/v1/") for url in exchange.asked]
        assert asked == ["transactions/a", "cluster", "transactions/a", "transactions/a"]
        await client.close()

    asyncio.run(test())


def test_who_is_closed_while_it_rests_tells_what_is_unknown() -> None:
    refused = {"error": {"code": "at_capacity", "message": "later", "details": {}}}

    async def test() -> None:
        client = client_of(Scripted(answers_of(refused)))
        call = asyncio.create_task(client.submit_many([{"participants": ORDER, "id": "a"}]))
        for _ in range(10):
            await asyncio.sleep(0)
        await client.close()
        (answer,) = await call
        assert isinstance(answer, OutcomeUnknown)
        assert answer.transaction_id == "a"

    asyncio.run(test())
