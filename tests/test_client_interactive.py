"""cluster/client/interactive.py: a transaction that its client ends, against small nodes."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from cluster.client import (
    BadAnswer,
    BadRequest,
    Client,
    Conflict,
    Expired,
    OutcomeUnknown,
    Refused,
    SyncClient,
    Unavailable,
    UnknownTransaction,
)
from cluster.client.answers import read_enlisted, read_lifetime_s, read_transaction
from cluster.client.calls import HttpAnswer, NoAnswer
from cluster.client.dialogue import DEADLINE
from cluster.client.interactive import ROLLBACK_S, InteractiveTransaction
from coordinator.ids import time_of
from tests.fake_nodes import (
    FOREVER,
    Answer,
    FakeNode,
    asking,
    breaks_off,
    fails,
    hangs,
    redirects_to,
    run,
    shown,
    until,
)
from tests.skipped_time import run_skipping

PATH = "/v1/transactions"
STOCK = "http://127.0.0.1:9"


def active(id: str) -> dict[str, Any]:
    """As a node shows it whose clock is decades behind."""
    times = {"created_at": "1970-01-01T00:00:01.000Z", "expires_at": "1970-01-01T00:01:01.000Z"}
    return shown(id, None, "active") | {"branches": []} | times


def branch(id: str, name: str) -> dict[str, Any]:
    return {
        "transaction_id": id,
        "branch_id": "1",
        "name": name,
        "url": STOCK,
        "vote": None,
        "reason": None,
        "state": "active",
    }


def told(path: str, body: Any) -> tuple[int, dict[str, Any]]:
    """What a sound node answers."""
    _, id, how = [*path.removeprefix(PATH).split("/"), "", ""][:3]
    match how:
        case "commit":
            return 200, shown(id, "committed", "committing")
        case "rollback":
            return 200, shown(id, "aborted")
        case "branches":
            return 201, branch(id, body.get("name", "127.0.0.1:9"))
        case _:
            return 201, active(body["id"])


async def sound(request: web.Request, body: Any) -> web.StreamResponse:
    status, answer = told(request.path, body)
    return web.json_response(answer, status=status)


def says(answer: Any, status: int = 200) -> Answer:
    async def answered(_: web.Request, __: Any) -> web.StreamResponse:
        return web.json_response(answer, status=status)

    return answered


def run_sound(test: Callable[[list[FakeNode]], Any], nodes: int = 1) -> None:
    async def whole(fakes: list[FakeNode]) -> None:
        for fake in fakes:
            fake.usual = sound
        await test(fakes)

    run(whole, nodes)


def asked(node: FakeNode) -> list[str]:
    """What the node was asked to do, by the end of the path; `begin` where it has none."""
    return [
        path.removeprefix(PATH).rpartition("/")[2] or "begin"
        for method, path, _ in node.requests
        if method == "POST"
    ]


class Mishap(Exception):
    """What goes wrong in a block."""


async def goes_wrong(_: InteractiveTransaction) -> None:
    raise Mishap


async def left_by(
    kind: type[Exception],
    client: Client,
    work: Callable[[InteractiveTransaction], Awaitable[object]],
) -> tuple[InteractiveTransaction, Any]:
    """A block in which `work` is done, and the exception by which it is left."""
    order: InteractiveTransaction | None = None

    async def block() -> None:
        nonlocal order
        async with client.transaction(id="order-17") as order:
            await work(order)

    with pytest.raises(kind) as caught:
        await block()
    assert order is not None
    return order, caught.value


# --- a block --------------------------------------------------------------------------------------


def test_a_block_that_is_left_in_order_commits() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            async with client.transaction(timeout_s=30.5, metadata={"a": "b"}) as order:
                assert (order.result.state, order.result.outcome) == ("active", None)
                enlisted = await order.enlist(STOCK, name="stock", payload={"sku": "A"})
                assert (enlisted.name, enlisted.branch_id) == ("stock", "1")
            assert order.result.committed
        assert time_of(order.id) is not None
        assert order.headers == {"Assent-Transaction-Id": order.id}
        begin = {"id": order.id, "mode": "interactive", "timeout_ms": 30_500}
        assert nodes[0].requests == [
            ("POST", PATH, begin | {"metadata": {"a": "b"}}),
            (
                "POST",
                f"{PATH}/{order.id}/branches",
                {"url": STOCK, "name": "stock", "payload": {"sku": "A"}},
            ),
            ("POST", f"{PATH}/{order.id}/commit", {"wait": "decision"}),
        ]

    run_sound(test)


def test_a_block_that_is_left_by_an_exception_rolls_back_and_the_exception_goes_on() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            order, _ = await left_by(Mishap, client, goes_wrong)
        assert order.result.aborted
        assert asked(nodes[0]) == ["begin", "rollback"]
        assert nodes[0].bodies()[0].keys() == {"id", "mode"}, "the rest is left to the node"

    run_sound(test)


def test_a_block_that_is_cancelled_rolls_back() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            orders: list[InteractiveTransaction] = []

            async def works_for_ever() -> None:
                async with client.transaction() as order:
                    orders.append(order)
                    await asyncio.sleep(FOREVER)

            working = asyncio.create_task(works_for_ever())
            await until(lambda: bool(orders))
            working.cancel()
            with pytest.raises(asyncio.CancelledError):
                await working
        assert orders[0].result.aborted
        assert asked(nodes[0]) == ["begin", "rollback"]

    run_sound(test)


def test_an_abort_at_its_end_is_an_answer() -> None:
    async def aborted(request: web.Request, _: Any) -> web.StreamResponse:
        answer = shown(request.path.split("/")[3], "aborted") | {"reason": "stock voted no"}
        return web.json_response(answer)

    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client, client.transaction(id="order-17") as order:
            nodes[0].usual = aborted
        assert (order.id, order.result.outcome) == ("order-17", "aborted")
        assert order.result.reason == "stock voted no"

    run_sound(test)


@pytest.mark.parametrize("how", ["commit", "rollback"])
def test_an_end_that_is_asked_for_by_hand_is_the_end(how: str) -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            async with client.transaction() as order:
                ended = await getattr(order, how)()
                assert ended is order.result

            async def ends_and_goes_wrong(another: InteractiveTransaction) -> None:
                await getattr(another, how)(wait="none")
                raise Mishap

            await left_by(Mishap, client, ends_and_goes_wrong)
        assert asked(nodes[0]) == ["begin", how] * 2
        assert order.result.outcome == ("committed" if how == "commit" else "aborted")

    run_sound(test)


def test_an_end_of_which_nothing_was_heard_is_not_followed_by_another() -> None:
    """It may commit: a rollback would let chance decide."""

    async def test(nodes: list[FakeNode]) -> None:
        async def commits_unheard(order: InteractiveTransaction) -> None:
            nodes[0].usual = fails(503, "no_leader")
            await order.commit(deadline=0.1)

        async with asking(*nodes) as client:
            order, unknown = await left_by(OutcomeUnknown, client, commits_unheard)
            assert unknown.transaction_id == order.id
            assert "rollback" not in asked(nodes[0])
            nodes[0].usual = sound
            assert order.result.outcome is None
            assert (await order.commit()).committed

    run_sound(test)


def test_an_end_that_was_refused_is_none() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async def is_refused(order: InteractiveTransaction) -> None:
            nodes[0].script = [fails(400, "bad_request", field="wait")]
            await order.commit(wait="soon")

        async with asking(*nodes) as client:
            await left_by(BadRequest, client, is_refused)
        assert asked(nodes[0]) == ["begin", "commit", "rollback"]

    run_sound(test)


def test_a_rollback_that_cannot_be_told_is_logged_and_does_not_hide_the_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Network:
        def __init__(self) -> None:
            self.is_up = True

        async def send(
            self, method: str, url: str, body: bytes | None, timeout: float
        ) -> HttpAnswer:
            del method
            if self.is_up:
                status, answer = told(url.removeprefix("http://n1:1"), json.loads(body or b"{}"))
                return HttpAnswer(status, {}, json.dumps(answer).encode())
            await asyncio.sleep(timeout)
            raise NoAnswer("the network is down")

        async def close(self) -> None: ...

    async def test() -> None:
        network = Network()
        loop = asyncio.get_running_loop()

        async def loses_the_network(_: InteractiveTransaction) -> None:
            network.is_up = False
            raise Mishap

        async with Client("n1:1", exchange=network) as client:
            began = loop.time()
            await left_by(Mishap, client, loses_the_network)
            assert loop.time() - began == pytest.approx(ROLLBACK_S)

    with caplog.at_level(logging.WARNING):
        run_skipping(test())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "transaction order-17 was not rolled back, its deadline ends it" in caplog.text


def test_a_client_that_is_closed_within_the_block_does_not_hide_the_exception() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:

            async def closes_and_goes_wrong(_: InteractiveTransaction) -> None:
                await client.close()
                raise Mishap

            await left_by(Mishap, client, closes_and_goes_wrong)
        async with asking(*nodes) as client:
            with pytest.raises(RuntimeError, match="closed"):
                async with client.transaction():
                    await client.close()

    run_sound(test)


# --- asked until it is answered -------------------------------------------------------------------


@pytest.mark.parametrize("lost", [breaks_off, hangs, fails(500, "internal_error")])
def test_every_call_is_asked_again_with_the_same_words(lost: Answer) -> None:
    async def test(nodes: list[FakeNode]) -> None:
        first, second = nodes
        async with asking(first, second, timeout=0.3) as client:

            async def at_first_lost() -> None:
                client._nodes.leads(first.url)
                first.script = [lost]
                second.script = [fails(503, "no_leader"), redirects_to(first)]

            await at_first_lost()
            order = await client.begin()
            await at_first_lost()
            await order.enlist(STOCK, name="stock")
            await at_first_lost()
            await order.commit()
            await at_first_lost()
            await order.rollback()
        bodies: dict[str, list[Any]] = {}
        for node in nodes:
            for method, path, body in node.requests:
                if method == "POST":
                    bodies.setdefault(path, []).append(body)
        assert len(bodies) == 4
        assert all(len(sent) >= 3 for sent in bodies.values())
        for sent in bodies.values():
            assert all(body == sent[0] for body in sent)

    run_sound(test, nodes=2)


def test_an_end_without_an_outcome_is_asked_for_again() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            order = await client.begin(id="a")
            nodes[0].script = [says(shown("a", None), 202)]
            assert (await order.commit()).committed
            nodes[0].script = [says(shown("a", None), 202)]
            assert (await order.commit(wait="none")).outcome is None
            assert order.result.state == "preparing"
        assert [body.get("wait") for body in nodes[0].bodies()[1:]] == [
            "decision",
            "decision",
            "none",
        ]

    run_sound(test)


def test_completion_is_followed_until_everybody_has_acknowledged() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            order = await client.begin(id="a")
            nodes[0].script = [
                breaks_off,
                says(shown("a", "committed", "committing")),
                says(shown("a", "committed")),
            ]
            assert (await order.commit(wait="completion")).finished
            assert order.result.finished
        assert [body["wait"] for body in nodes[0].bodies()[1:]] == ["completion", "decision"]

    run_sound(test)


def test_what_began_while_its_client_asked_may_be_over_when_it_is_told() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            nodes[0].script = [breaks_off, says(shown("a", "aborted"))]
            order = await client.begin(id="a")
            assert order.result.aborted
            nodes[0].script = [fails(410, "transaction_id_expired")]
            with pytest.raises(Expired):
                await client.begin(id="b")

    run_sound(test)


@pytest.mark.parametrize(
    ("timeout_s", "lasts_s", "deadline", "waits_s"),
    [(None, 60.0, None, 60.0 + DEADLINE), (5.0, 5.0, None, 5.0 + DEADLINE), (None, 60.0, 7.0, 7.0)],
)
def test_an_end_is_waited_for_until_its_deadline_and_more_whatever_the_nodes_clock_says(
    timeout_s: float | None, lasts_s: float, deadline: float | None, waits_s: float
) -> None:
    class Network:
        async def send(
            self, method: str, url: str, body: bytes | None, timeout: float
        ) -> HttpAnswer:
            del method, timeout
            asked = json.loads(body or b"{}")
            if not url.endswith(PATH):
                await asyncio.sleep(1.0)
                raise NoAnswer("gone")
            times = {"expires_at": f"1970-01-01T00:0{lasts_s // 60:.0f}:{lasts_s % 60 + 1:02.0f}Z"}
            answer = active(asked["id"]) | times
            return HttpAnswer(201, {}, json.dumps(answer).encode())

        async def close(self) -> None: ...

    async def test() -> None:
        loop = asyncio.get_running_loop()
        async with Client("n1:1", exchange=Network()) as client:
            order = await client.begin(timeout_s=timeout_s)
            began = loop.time()
            with pytest.raises(OutcomeUnknown) as caught:
                await order.commit(deadline=deadline)
            assert caught.value.transaction_id == order.id
            assert loop.time() - began == pytest.approx(waits_s)
            again = loop.time()
            with pytest.raises(OutcomeUnknown):
                await order.rollback()
            left_s = max(0.0, began + lasts_s - again)
            assert loop.time() - again == pytest.approx(left_s + DEADLINE)

    run_skipping(test())


def test_what_is_not_told_before_the_deadline_is_said_with_its_id() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            order = await client.begin(id="order-17")
            nodes[0].usual = fails(503, "no_leader")
            with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9 is enlisted.*order-17"):
                await order.enlist(STOCK, deadline=0.1)
            with pytest.raises(Unavailable, match="whether transaction order-18 has begun"):
                await client.begin(id="order-18", deadline=0.1)

    run_sound(test)


# --- refusals, and answers that are none ----------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", BadRequest),
        (404, "unknown_transaction", UnknownTransaction),
        (409, "not_allowed", Conflict),
        (410, "transaction_id_expired", Expired),
    ],
)
def test_a_refusal_to_enlist_is_raised_at_once(status: int, code: str, kind: type[Refused]) -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async def is_refused(order: InteractiveTransaction) -> None:
            nodes[0].script = [fails(status, code)]
            await order.enlist(STOCK)

        async with asking(*nodes) as client:
            _, refusal = await left_by(kind, client, is_refused)
            assert refusal.code == code
        assert asked(nodes[0]) == ["begin", "branches", "rollback"]

    run_sound(test)


@pytest.mark.parametrize("code", ["unknown_transaction", "transaction_id_expired"])
def test_what_has_begun_and_was_forgotten_may_have_committed(code: str) -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            order = await client.begin(id="order-17")
            nodes[0].usual = fails(404 if code == "unknown_transaction" else 410, code)
            with pytest.raises(OutcomeUnknown, match=code) as caught:
                await order.commit()
            assert (caught.value.transaction_id, caught.value.for_good) == ("order-17", True)
            assert len(nodes[0].bodies()) == 2

    run_sound(test)


def test_an_id_that_is_refused_is_not_begun_and_has_no_outcome() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        refused = says(shown("order-17", None, "refused"))
        async with asking(*nodes) as client:
            order = await client.begin(id="order-17")
            nodes[0].usual = refused
            for asks in (client.begin(id="order-17"), order.commit()):
                with pytest.raises(OutcomeUnknown) as caught:
                    await asks
                assert caught.value.for_good

    run_sound(test)


def test_a_proxys_refusal_is_none_once_it_has_begun() -> None:
    async def forbids(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(text="forbidden", status=403)

    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client, client.transaction() as order:
            nodes[0].script = [forbids]
            await order.enlist(STOCK)
            nodes[0].script = [forbids]
        assert order.result.committed
        assert asked(nodes[0]) == ["begin", "branches", "branches", "commit", "commit"]

    run_sound(test)


def test_an_answer_about_another_transaction_is_none() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            nodes[0].script = [says(active("another"), 201)]
            with pytest.raises(BadAnswer, match="answered about 'another'"):
                await client.begin(id="a")
            order = await client.begin(id="a")
            nodes[0].script = [says(branch("another", "stock"), 201)]
            with pytest.raises(BadAnswer, match="'stock' in 'another' is enlisted"):
                await order.enlist(STOCK, name="stock")
            nodes[0].script = [says(branch("a", "log"), 201)]
            with pytest.raises(BadAnswer, match="'log' in 'a' is enlisted"):
                await order.enlist(STOCK, name="stock")
            nodes[0].script = [fails(409, "not_allowed", id="another")]
            with pytest.raises(BadAnswer, match="refused 'another'"):
                await order.enlist(STOCK)
            for ends in (order.commit, order.rollback):
                nodes[0].script = [says(shown("another", "committed"))]
                with pytest.raises(OutcomeUnknown, match="answered about 'another'") as caught:
                    await ends()
                assert caught.value.transaction_id == "a"
            assert order.result.outcome is None

    run_sound(test)


@pytest.mark.parametrize("wrong", ["soon", "2026-01-01T00:00:00", ""])
def test_a_deadline_that_is_no_time_is_a_bad_answer(wrong: str) -> None:
    transaction = read_transaction(active("a") | {"expires_at": wrong})
    with pytest.raises(BadAnswer, match="as created_at and expires_at"):
        read_lifetime_s(transaction)


def test_how_long_it_may_last_is_never_negative_and_nothing_where_it_is_not_told() -> None:
    for expires_at, lasts_s in (
        ("1970-01-01T00:00:31.500Z", 30.5),
        ("1970-01-01T00:00:00Z", 0.0),
        (None, 0.0),
    ):
        transaction = read_transaction(active("a") | {"expires_at": expires_at})
        assert read_lifetime_s(transaction) == lasts_s


@pytest.mark.parametrize("field", ["transaction_id", "branch_id", "name", "state"])
def test_a_branch_without_what_it_is_known_by_is_a_bad_answer(field: str) -> None:
    whole = branch("a", "stock")
    assert read_enlisted(whole, "a", None).name == "stock"
    for wrong in ({key: whole[key] for key in whole if key != field}, whole | {field: 7}):
        with pytest.raises(BadAnswer, match=re.escape(field)):
            read_enlisted(wrong, "a", None)


# --- without await --------------------------------------------------------------------------------


def in_a_thread(test: Callable[[FakeNode], None], nodes: list[FakeNode]) -> Any:
    return asyncio.get_running_loop().run_in_executor(None, test, nodes[0])


def test_the_synchronous_twin_commits_and_rolls_back_likewise() -> None:
    def work(node: FakeNode) -> None:
        with SyncClient(node.url) as client:
            with client.transaction(id="a", timeout_s=30) as order:
                assert order.headers == {"Assent-Transaction-Id": "a"}
                assert order.enlist(STOCK, name="stock").name == "stock"
            assert order.result.committed
            with pytest.raises(Mishap), client.transaction() as order:
                raise Mishap
            assert order.result.aborted
            order = client.begin(id="b")
            assert order.id == "b"
            assert order.commit(wait="none").committed
            with client.begin() as order:
                assert order.rollback().aborted
            node.script = [fails(409, "transaction_id_conflict")]
            with pytest.raises(Conflict):
                client.begin(id="a")

    async def test(nodes: list[FakeNode]) -> None:
        await in_a_thread(work, nodes)
        assert asked(nodes[0]) == [
            *("begin", "branches", "commit"),
            *("begin", "rollback"),
            *("begin", "commit"),
            *("begin", "rollback"),
            "begin",
        ]

    run_sound(test)


def test_a_synchronous_client_that_is_closed_within_the_block_does_not_hide_the_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def work(node: FakeNode) -> None:
        def closes_and_goes_wrong() -> None:
            client = SyncClient(node.url)
            with client.transaction(id="order-17"):
                client.close()
                raise Mishap

        with pytest.raises(Mishap):
            closes_and_goes_wrong()
        client = SyncClient(node.url)
        with pytest.raises(RuntimeError, match="closed"), client.transaction():
            client.close()
        client = SyncClient(node.url)
        with client.transaction() as order:
            order.commit()
            client.close()

    async def test(nodes: list[FakeNode]) -> None:
        await in_a_thread(work, nodes)

    run_sound(test)
    assert "transaction order-17 was not rolled back" in caplog.text
