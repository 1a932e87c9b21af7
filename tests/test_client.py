"""The client library against small nodes in this process that answer what a test tells them to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable
from random import Random
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
    TooLarge,
    Transaction,
    Unavailable,
    UnknownTransaction,
)
from cluster.client.calls import AiohttpExchange, HttpAnswer, NoAnswer, node_urls
from cluster.client.submission import Open, element_answer, elements
from coordinator.ids import time_of
from tests.fake_nodes import (
    FOREVER,
    ORDER,
    Answer,
    FakeNode,
    asking,
    breaks_off,
    fails,
    hangs,
    node_beside,
    redirects_to,
    run,
    shown,
    until,
)
from tests.skipped_time import run_skipping

DEADLINES = (0.3, 3.0, 30.0)
"""A busy machine may need longer for its first answer."""


async def unknown_for(
    client: Client, why: str, id: str, before: Callable[[], None] = lambda: None
) -> None:
    """Its outcome stays unknown, with these words."""
    for deadline in DEADLINES:
        before()
        with pytest.raises(OutcomeUnknown) as caught:
            await client.submit(ORDER, id=id, deadline=deadline)
        if why in str(caught.value):
            return
    raise AssertionError(caught.value)


# --- one transaction ------------------------------------------------------------------------------


def test_the_outcome_and_the_branches_are_told() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER, metadata={"a": "b"}, timeout_ms=500)
        assert answer.committed
        assert not answer.aborted
        assert answer.branches[0].name == "stock"
        assert answer.raw["id"] == answer.id
        (body,) = nodes[0].bodies()
        assert body["participants"] == ORDER
        assert body["timeout_ms"] == 500
        assert body["metadata"] == {"a": "b"}

    run(test)


def test_an_abort_is_an_answer_and_nothing_is_tried_again() -> None:
    async def aborted(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "aborted") | {"reason": "out of stock"})

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = aborted
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER)
        assert answer.aborted
        assert answer.reason == "out of stock"
        assert len(nodes[0].bodies()) == 1

    run(test)


def test_the_id_is_made_before_sending_and_is_the_same_in_every_repeat() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [breaks_off, fails(500, "internal_error"), fails(503, "no_leader")]
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER)
        ids = [body["id"] for body in nodes[0].bodies()]
        assert len(ids) == 4
        assert set(ids) == {answer.id}
        assert time_of(answer.id) is not None

    run(test)


def test_what_the_caller_does_not_give_is_left_to_the_node() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(nodes[0]) as client:
            await client.submit(ORDER)
        (body,) = nodes[0].bodies()
        assert set(body) == {"participants", "wait", "id"}

    run(test, nodes=1)


def test_who_waits_for_the_decision_does_not_wait_for_the_end() -> None:
    async def decided(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "committed", state="committing"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = decided
        async with asking(nodes[0]) as client:
            assert (await client.submit(ORDER)).state == "committing"
        assert len(nodes[0].requests) == 1

    run(test, nodes=1)


def test_an_id_that_the_caller_gives_is_kept() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER, id="order-17")
        assert answer.id == "order-17"

    run(test)


# --- finding the leader ---------------------------------------------------------------------------


def test_a_redirect_is_followed_with_the_body_and_the_leader_remembered() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        follower, leader = nodes
        follower.usual = redirects_to(leader)
        async with asking(follower) as client:
            for _ in range(3):
                assert (await client.submit(ORDER)).committed
            assert client.leader == leader.url
        assert len(follower.requests) == 1
        assert [body["participants"] for body in leader.bodies()] == [ORDER] * 3

    run(test)


def test_the_death_of_the_leader_is_not_a_failure() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        first, second, third = nodes
        asked = asyncio.Event()

        async def dies_while_asked(_: web.Request, __: Any) -> web.StreamResponse:
            asked.set()
            await asyncio.sleep(FOREVER)
            raise AssertionError

        first.script = [dies_while_asked]
        # The others believe in the dead leader for a while, then elect one.
        second.script = [redirects_to(first), fails(503, "no_leader")]
        second.usual = redirects_to(third)
        third.script = [redirects_to(first), fails(503, "no_leader")]
        async with asking(*nodes) as client:
            client._nodes.leads(first.url)
            submission = asyncio.create_task(client.submit(ORDER))
            await asked.wait()
            await first.die()
            answer = await submission
        assert answer.committed
        sent = {body["id"] for node in nodes for body in node.bodies()}
        assert sent == {answer.id}
        assert client.leader == third.url

    run(test, nodes=3)


def test_a_client_that_was_given_one_node_learns_the_others() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        first, second = nodes
        async with asking(first) as client:
            assert (await client.submit(ORDER)).committed
            assert client._dialogue._learning is not None
            await client._dialogue._learning
            await first.die()
            assert (await client.submit(ORDER)).committed
        assert len(second.bodies()) == 1

    run(test)


def test_a_silent_node_is_left_for_another_with_the_same_id() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        silent, other = nodes
        silent.usual = hangs
        async with asking(silent, other, timeout=0.2) as client:
            client._nodes.leads(silent.url)
            answer = await client.submit(ORDER)
        assert answer.committed
        assert {body["id"] for body in silent.bodies()} == {answer.id}
        assert {body["id"] for body in other.bodies()} == {answer.id}

    run(test)


@pytest.mark.parametrize("location", ["http://[::1", "", "file:///etc/passwd", "http://a:b@c:1/"])
def test_a_redirect_to_nowhere_is_no_answer_and_another_node_is_asked(location: str) -> None:
    async def astray(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": location})

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = astray
        async with asking(*nodes) as client:
            client._nodes.leads(nodes[0].url)
            answer = await client.submit(ORDER)
        assert answer.committed
        assert [len(node.bodies()) for node in nodes] == [1, 1]

    run(test)


def test_redirects_in_a_circle_end_at_the_deadline() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = redirects_to(nodes[1])
        nodes[1].usual = redirects_to(nodes[0])
        async with asking(*nodes) as client:
            with pytest.raises(OutcomeUnknown):
                await client.submit(ORDER, deadline=0.5)
        # It rests between the rounds instead of asking as fast as it can.
        assert len(nodes[0].requests) + len(nodes[1].requests) < 200

    run(test)


# --- definite and unknown -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", BadRequest),
        (404, "unknown_transaction", UnknownTransaction),
        (409, "transaction_id_conflict", Conflict),
        (410, "transaction_id_expired", Expired),
        (413, "body_too_large", TooLarge),
    ],
)
def test_what_is_definite_is_raised_at_once(status: int, code: str, kind: type[Refused]) -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = fails(status, code, field="id")
        async with asking(nodes[0]) as client:
            with pytest.raises(kind) as caught:
                await client.submit(ORDER, id="order-17")
        assert caught.value.code == code
        assert caught.value.details == {"field": "id"}
        assert str(caught.value) == f"it is {code}"
        assert len(nodes[0].requests) == 1

    run(test)


def test_a_proxys_refusal_does_not_end_what_was_perhaps_done_before() -> None:
    async def lost_its_way(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(text="404 page not found", status=404)

    async def test(nodes: list[FakeNode]) -> None:
        async with asking(nodes[0]) as client:
            nodes[0].script = [breaks_off, lost_its_way]
            assert (await client.submit(ORDER, id="order-17")).committed
            assert len(nodes[0].requests) == 3
        async with asking(nodes[0]) as client:
            nodes[0].usual = lost_its_way

            def breaks_off_once() -> None:
                nodes[0].script = [breaks_off]

            await unknown_for(client, "404 page not found", "order-18", breaks_off_once)
            with pytest.raises(UnknownTransaction):  # nothing has reached a node
                await client.submit(ORDER, id="order-19")

    run(test)


def test_a_proxys_refusal_does_not_end_what_a_node_has_begun() -> None:
    """A node said that it runs, or how it ended; what the proxy says then tells nothing of that."""

    async def forbids(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(text="forbidden", status=403)

    async def begun(_: web.Request, body: Any) -> web.StreamResponse:
        if "transactions" in body:
            first, *others = [entry["id"] for entry in body["transactions"]]
            answers = [shown(first, "committed"), *(shown(id, None) for id in others)]
            return web.json_response({"transactions": answers})
        return web.json_response(shown(body["id"], None), status=202)

    async def decided(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "committed", state="committing"))

    async def test(nodes: list[FakeNode]) -> None:
        node = nodes[0]
        async with asking(node) as client:
            node.script = [begun, forbids]
            assert (await client.submit(ORDER)).committed
            node.script = [begun, forbids]
            answers = await client.submit_many([{"participants": ORDER}] * 2)
            assert [getattr(answer, "outcome", None) for answer in answers] == ["committed"] * 2
            node.script = [decided, forbids]
            assert (await client.submit(ORDER, wait="completion")).finished

    run(test)


def test_a_refusal_of_the_rest_of_a_batch_hides_no_outcome() -> None:
    async def half(_: web.Request, body: Any) -> web.StreamResponse:
        first, second = (entry["id"] for entry in body["transactions"])
        return web.json_response({"transactions": [shown(first, "committed"), shown(second, None)]})

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [half, fails(413, "body_too_large")]
        async with asking(nodes[0]) as client:
            first, second = await client.submit_many([{"participants": ORDER}] * 2)
        assert isinstance(first, Transaction)
        assert first.committed
        assert isinstance(second, OutcomeUnknown)

    run(test)


def test_a_refusal_while_the_end_is_waited_for_does_not_hide_the_outcome() -> None:
    """A node whose transactions may last a second at most refuses to wait for longer."""

    async def decided(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "committed", state="committing"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [decided, fails(400, "bad_request", field="wait_ms")]
        async with asking(nodes[0]) as client:
            assert (await client.submit(ORDER, wait="completion")).committed

    run(test)


def test_who_does_not_speak_as_a_node_is_not_taken_for_the_leader() -> None:
    """Another program has a node's address now: the next call asks another node."""

    async def web_server(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(text="404 page not found", status=404)

    async def test(nodes: list[FakeNode]) -> None:
        stranger, node = nodes
        stranger.usual = web_server
        async with asking(stranger, node) as client:
            client._nodes.leads(stranger.url)
            with pytest.raises(UnknownTransaction):
                await client.submit(ORDER)
            assert client.leader is None
            for _ in range(2):  # in turn
                with contextlib.suppress(UnknownTransaction):
                    await client.submit(ORDER)
            assert client.leader == node.url

    run(test)


def test_an_id_that_expires_while_its_client_asks_may_have_run() -> None:
    def element(code: str) -> Answer:
        async def answer(_: web.Request, __: Any) -> web.StreamResponse:
            error = {"code": code, "message": code, "details": {}}
            return web.json_response({"transactions": [{"error": error}]})

        return answer

    async def test(nodes: list[FakeNode]) -> None:
        expired = fails(410, "transaction_id_expired")
        async with asking(nodes[0]) as client:
            nodes[0].script = [breaks_off, expired]
            with pytest.raises(OutcomeUnknown) as caught:
                await client.submit(ORDER, id="order-17")
            assert (caught.value.transaction_id, caught.value.for_good) == ("order-17", True)
            nodes[0].script = [element("outcome_unknown"), element("transaction_id_expired")]
            (told,) = await client.submit_many([{"id": "order-18", "participants": ORDER}])
            assert isinstance(told, OutcomeUnknown)
            assert told.for_good
            nodes[0].script = [element("transaction_id_expired")]
            (told,) = await client.submit_many([{"id": "order-19", "participants": ORDER}])
            assert isinstance(told, Expired)
        async with asking(nodes[0]) as client:  # asked again before there was any answer
            nodes[0].script = [breaks_off, element("transaction_id_expired")]
            (told,) = await client.submit_many([{"id": "order-20", "participants": ORDER}])
            assert isinstance(told, OutcomeUnknown)
            assert told.for_good

    run(test)


def test_at_the_deadline_the_outcome_is_unknown_and_the_id_is_told() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = fails(503, "no_leader")
        async with asking(nodes[0]) as client:
            with pytest.raises(OutcomeUnknown) as caught:
                await client.submit(ORDER, id="order-17", deadline=0.3)
            assert caught.value.transaction_id == "order-17"
            with pytest.raises(Unavailable):
                await client.get("order-17", deadline=0.1)

    run(test)


def test_a_full_cluster_is_asked_again_when_it_said() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [fails(429, "at_capacity", headers={"Retry-After": "1"})]
        async with asking(nodes[0]) as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert (await client.submit(ORDER)).committed
            assert loop.time() - began >= 1.0
        assert len(nodes[0].requests) == 2

    run(test)


def test_an_answer_that_is_no_transaction_leaves_the_outcome_unknown() -> None:
    async def html(_: web.Request, __: Any) -> web.StreamResponse:
        return web.Response(text="<html>It works!</html>", content_type="text/html")

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = html
        async with asking(nodes[0]) as client:
            with pytest.raises(OutcomeUnknown):
                await client.submit(ORDER)

    run(test)


async def about_another(_: web.Request, body: Any) -> web.StreamResponse:
    if isinstance(body, dict) and "transactions" in body:
        others = [shown("another", "committed") for _ in body["transactions"]]
        return web.json_response({"transactions": others})
    return web.json_response(shown("another", "committed"))


def test_an_answer_about_another_transaction_is_none() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = about_another
        async with asking(nodes[0]) as client:
            with pytest.raises(OutcomeUnknown, match="answered about 'another'") as caught:
                await client.submit(ORDER, id="a")
            assert caught.value.transaction_id == "a"
            for asked in (
                client.get("a"),
                client.retry("a"),
                client.resolve("a", actor="ada", reason="lost", outcome="abort"),
            ):
                with pytest.raises(BadAnswer, match="answered about 'another'"):
                    await asked

    run(test)


def test_an_answer_to_another_request_is_none_however_alike() -> None:
    """A proxy that has lost its way gives the answer to one request to the next."""
    names: list[str] = []

    async def late(request: web.Request, _: Any) -> web.StreamResponse:
        names.append(request.headers["Assent-Request"])
        old = {"Assent-Request": names[-2] if len(names) > 1 else "0"}
        return web.json_response(shown("a", None, "preparing"), headers=old)

    async def in_time(request: web.Request, _: Any) -> web.StreamResponse:
        names.append(request.headers["Assent-Request"])
        now = {"Assent-Request": names[-1]}
        return web.json_response(shown("a", "committed"), headers=now)

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [late, late, in_time]
        async with asking(nodes[0]) as client:
            assert (await client.get("a")).outcome == "committed"
        assert len(set(names)) == len(names) == 3
        nodes[0].usual = late
        async with asking(nodes[0]) as client:
            await unknown_for(client, "the answer to another request", "a")

    run(test, nodes=1)


def test_a_refusal_of_another_transaction_refuses_nothing() -> None:
    async def expired(_: web.Request, body: Any) -> web.StreamResponse:
        details = {"id": "another" if body["id"] == "a" else body["id"]}
        error = {"code": "transaction_id_expired", "message": "too old", "details": details}
        return web.json_response({"error": error}, status=410)

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = expired
        async with asking(nodes[0]) as client:
            with pytest.raises(OutcomeUnknown, match="refused 'another'"):
                await client.submit(ORDER, id="a")
            with pytest.raises(Expired):
                await client.submit(ORDER, id="b")

    run(test)


def test_what_is_followed_is_the_transaction_that_was_begun() -> None:
    async def decided(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], "committed", state="committing"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [decided]
        nodes[0].usual = about_another
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER, id="a", wait="completion")
        assert (answer.id, answer.state) == ("a", "committing")

    run(test)


def test_an_answer_about_another_transaction_in_a_batch_is_asked_for_again() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [about_another]
        async with asking(nodes[0]) as client:
            answers = await client.submit_many([{"participants": ORDER, "id": id} for id in "ab"])
            assert [isinstance(one, Transaction) and one.id for one in answers] == ["a", "b"]
            assert len(nodes[0].bodies()) == 2
            nodes[0].usual = about_another
            for deadline in DEADLINES:
                (answer,) = await client.submit_many([{"participants": ORDER}], deadline=deadline)
                assert isinstance(answer, OutcomeUnknown)
                if "another" in str(answer):
                    break
            assert "another" in str(answer)

    run(test)


def test_a_refused_id_has_no_outcome_and_is_not_asked_for_again() -> None:
    async def refused(_: web.Request, __: Any) -> web.StreamResponse:
        return web.json_response(shown("order-17", None, state="refused"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = refused
        async with asking(nodes[0]) as client:
            with pytest.raises(OutcomeUnknown) as caught:
                await client.submit(ORDER, id="order-17")
            assert caught.value.for_good
            assert caught.value.transaction_id == "order-17"
            assert len(nodes[0].requests) == 1
            answer = await client.get("order-17", wait_ms=10_000)
        assert answer.state == "refused"
        assert len(nodes[0].requests) == 2, "nothing more will happen to it"

    run(test)


# --- waiting --------------------------------------------------------------------------------------


def test_an_answer_without_an_outcome_is_asked_for_again() -> None:
    async def not_yet(_: web.Request, body: Any) -> web.StreamResponse:
        return web.json_response(shown(body["id"], None), status=202)

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [not_yet]
        async with asking(nodes[0]) as client:
            assert (await client.submit(ORDER)).committed
            nodes[0].script = [not_yet]
            assert (await client.submit(ORDER, wait="none")).outcome is None
        assert [body["wait"] for body in nodes[0].bodies()] == ["decision", "decision", "none"]

    run(test)


def test_completion_is_followed_until_everybody_has_acknowledged() -> None:
    async def decided(request: web.Request, body: Any) -> web.StreamResponse:
        id = body["id"] if body else request.path.split("/")[-1]
        return web.json_response(shown(id, "committed", state="committing"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [breaks_off, decided, decided]
        async with asking(nodes[0]) as client:
            answer = await client.submit(ORDER, wait="completion")
            assert answer.finished
            waits = [body["wait"] for body in nodes[0].bodies()]
            assert waits == ["completion", "decision"]
            assert all("wait_ms=" in path for method, path, _ in nodes[0].requests[2:])
            nodes[0].usual = decided
            for deadline in DEADLINES:
                with contextlib.suppress(OutcomeUnknown):
                    answer = await client.submit(ORDER, wait="completion", deadline=deadline)
                    break
            assert answer.committed
            assert not answer.finished

    run(test)


# --- many in one request --------------------------------------------------------------------------


def test_a_batch_is_one_request_with_answers_in_its_order() -> None:
    async def mixed(_: web.Request, body: Any) -> web.StreamResponse:
        conflict = {"code": "transaction_id_conflict", "message": "other", "details": {}}
        return web.json_response(
            {
                "transactions": [
                    shown(body["transactions"][0]["id"], "committed"),
                    shown(body["transactions"][1]["id"], "aborted"),
                    {"error": conflict},
                ]
            }
        )

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = mixed
        async with asking(nodes[0]) as client:
            first, second, third = await client.submit_many(
                [{"participants": ORDER}, {"participants": ORDER, "id": "b"}, {"participants": []}]
            )
            assert await client.submit_many([]) == []
        assert isinstance(first, Transaction)
        assert first.committed
        assert isinstance(second, Transaction)
        assert (second.id, second.outcome) == ("b", "aborted")
        assert isinstance(third, Conflict)
        assert len(nodes[0].requests) == 1

    run(test)


def test_only_what_is_open_in_a_batch_is_sent_again_under_the_same_ids() -> None:
    async def partly(_: web.Request, body: Any) -> web.StreamResponse:
        unknown = {"code": "outcome_unknown", "message": "?", "details": {}}
        ids = [entry["id"] for entry in body["transactions"]]
        answers = [shown(ids[0], "committed"), {"error": unknown}, shown(ids[2], None)]
        return web.json_response({"transactions": answers})

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [partly]
        async with asking(nodes[0]) as client:
            answers = await client.submit_many([{"participants": ORDER}] * 3)
        assert all(isinstance(answer, Transaction) and answer.committed for answer in answers)
        first, second = ([entry["id"] for entry in b["transactions"]] for b in nodes[0].bodies())
        assert second == first[1:]

    run(test)


def test_a_batch_that_is_repeated_waits_for_decisions_only() -> None:
    """A participant that is down must not keep decisions that are known from the client."""

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].script = [breaks_off]
        async with asking(nodes[0]) as client:
            await client.submit_many([{"participants": ORDER}], wait="completion")
        waits = [body["transactions"][0]["wait"] for body in nodes[0].bodies()]
        assert waits == ["completion", "decision"]

    run(test, nodes=1)


def test_what_any_node_happens_to_know_is_not_all_asked_of_the_leader() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        async with asking(*nodes) as client:
            client._nodes.leads(nodes[0].url)
            for _ in range(2):
                await client.get("a", stale=True)
            assert [len(node.requests) for node in nodes] == [1, 1]
            for _ in range(2):
                await client.get("a")
            assert [len(node.requests) for node in nodes] == [3, 1]

    run(test)


def test_a_batch_whose_end_is_not_known_at_the_deadline_says_which() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = fails(503, "no_leader")
        async with asking(nodes[0]) as client:
            answers = await client.submit_many([{"participants": ORDER, "id": "a"}], deadline=0.2)
        (answer,) = answers
        assert isinstance(answer, OutcomeUnknown)
        assert answer.transaction_id == "a"

    run(test)


def test_a_batch_that_is_refused_as_a_whole_is_raised() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = fails(413, "body_too_large")
        async with asking(nodes[0]) as client:
            with pytest.raises(TooLarge):
                await client.submit_many([{"participants": ORDER}])

    run(test)


# --- the other calls ------------------------------------------------------------------------------


def test_reads_and_an_operators_requests_have_the_paths_of_the_api() -> None:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        if request.path.endswith("/decision"):
            return web.json_response({"decision": "abort"})
        if request.path == "/v1/transactions":
            return web.json_response({"transactions": [shown("a", None)], "next_after": "cursor"})
        return web.json_response(shown(request.path.split("/")[3], "committed"))

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = answer
        async with asking(nodes[0]) as client:
            assert (await client.get("a")).id == "a"
            assert (await client.get("a:b", stale=True)).committed
            page = await client.list(state="committing", limit=5, after="x y")
            assert (page.transactions[0].id, page.next_after) == ("a", "cursor")
            assert await client.decision("a", "1", "f" * 64) == "abort"
            await client.resolve("a", actor="ada", reason="lost", outcome="abort")
            await client.resolve("a", actor="ada", reason="x", branch_id="1", effect="unknown")
            await client.retry("a")
            await client.list()
            status = await client.cluster()
        assert (status.leader, status.term) == ("n0", 3)
        assert nodes[0].requests == [
            ("GET", "/v1/transactions/a", None),
            ("GET", "/v1/transactions/a:b?stale=true", None),
            ("GET", "/v1/transactions?state=committing&limit=5&after=x+y", None),
            ("GET", f"/v1/transactions/a/decision?branch_id=1&fingerprint={'f' * 64}", None),
            (
                "POST",
                "/v1/transactions/a/resolve",
                {"actor": "ada", "reason": "lost", "outcome": "abort"},
            ),
            (
                "POST",
                "/v1/transactions/a/resolve",
                {"actor": "ada", "reason": "x", "branch_id": "1", "effect": "unknown"},
            ),
            ("POST", "/v1/transactions/a/retry", {}),
            ("GET", "/v1/transactions", None),
        ]

    run(test)


def test_the_leaders_view_of_the_cluster_is_waited_for_until_the_deadline_only() -> None:
    class Network:
        async def send(
            self, method: str, url: str, body: bytes | None, timeout: float
        ) -> HttpAnswer:
            del method, body, timeout
            if url.startswith("http://n2"):
                await asyncio.sleep(FOREVER)
            nodes = [{"id": name, "api": f"http://{name}:1"} for name in ("n1", "n2")]
            status = {"cluster": "test", "self": "n1", "leader": "n2", "term": 3, "nodes": nodes}
            return HttpAnswer(200, {}, json.dumps(status).encode())

        async def close(self) -> None:
            """Nothing is open."""

    async def test() -> None:
        async with Client(["n1:1"], exchange=Network()) as client:
            assert (await client.cluster(deadline=0.05)).self_id == "n1"

    run_skipping(test())


@pytest.mark.parametrize(
    "nodes",
    [
        *([], "", "http://", "127.0.0.1:x", "127.0.0.1:0", "ftp://a:1", "http://[::1"),
        *("http://a/b", "http://a?b", "http://a#b", "http://a..b:1", f"http://{'a' * 64}:1"),
    ],
)
def test_nodes_that_are_none_are_refused(nodes: str | list[str]) -> None:
    with pytest.raises(ValueError, match="node"):
        Client(nodes)


def test_nodes_may_be_given_in_a_text() -> None:
    assert node_urls("a:1, https://b:2/,,a:1,") == ("http://a:1", "https://b:2")


@pytest.mark.parametrize("node", ["ada:secret@127.0.0.1:8101", "http://ada:secret@127.0.0.1/x"])
def test_a_nodes_address_with_a_password_is_refused_and_the_password_not_repeated(
    node: str,
) -> None:
    with pytest.raises(ValueError, match=r"127\.0\.0\.1.*no user or password") as caught:
        Client(node)
    assert "secret" not in str(caught.value)


# --- the end of a client --------------------------------------------------------------------------


def test_close_ends_the_calls_under_way_and_refuses_later_ones() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = hangs
        client = Client(nodes[0].url, timeout=FOREVER)
        calls = [
            asyncio.create_task(client.submit(ORDER, id="a", deadline=FOREVER)),
            asyncio.create_task(client.get("a", deadline=FOREVER)),
        ]
        await until(lambda: len(nodes[0].requests) == 2)
        await client.close()
        unknown, unavailable = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(unknown, OutcomeUnknown)
        assert unknown.transaction_id == "a"
        assert isinstance(unavailable, Unavailable)
        with pytest.raises(RuntimeError, match="closed"):
            await client.submit(ORDER)
        with pytest.raises(RuntimeError, match="closed"):
            await client.cluster()
        assert len(nodes[0].requests) == 2, "nothing was asked, over no new connection"

    run(test)


def test_close_ends_a_pause_between_two_calls() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = overloaded
        client = Client(nodes[0].url)
        call = asyncio.create_task(client.submit(ORDER, deadline=FOREVER))
        await until(lambda: len(nodes[0].requests) == 1)
        await client.close()
        with pytest.raises(OutcomeUnknown, match="closed"):
            await call
        assert len(nodes[0].requests) == 1

    async def overloaded(_: web.Request, __: Any) -> web.StreamResponse:
        return web.json_response({}, status=429, headers={"Retry-After": "60"})

    run(test)


def test_a_client_says_so_if_it_is_used_on_another_event_loop() -> None:
    async def submit(client: Client) -> Transaction:
        return await client.submit(ORDER)

    with node_beside() as node, asyncio.Runner() as first, asyncio.Runner() as second:
        client = Client(node.url)
        assert first.run(submit(client)).committed
        with pytest.raises(RuntimeError, match="make one in each"):
            second.run(submit(client))
        assert len(node.bodies()) == 1
        assert first.run(submit(client)).committed
        first.run(client.close())


# --- the synchronous twin -------------------------------------------------------------------------


def test_a_repeat_that_is_due_when_the_client_is_closed_opens_no_connections() -> None:
    """Nobody would close them."""

    async def test(nodes: list[FakeNode]) -> None:
        exchange = AiohttpExchange(Random(7))
        await exchange.close()
        with pytest.raises(NoAnswer, match="closed"):
            await exchange.send("GET", nodes[0].url, None, 30.0)
        assert exchange._session is None
        assert nodes[0].requests == []

    run(test)


def test_the_synchronous_twin_serves_several_threads() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = redirects_to(nodes[1])
        outcomes: list[str | None] = []

        def work() -> None:
            with SyncClient(nodes[0].url) as client:

                def submit() -> None:
                    outcomes.append(client.submit(ORDER).outcome)

                threads = [threading.Thread(target=submit) for _ in range(4)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                assert client.get("a").committed
                nodes[1].script = [about_another]
                with pytest.raises(BadAnswer, match="'another'"):
                    client.get("a")
                nodes[1].usual = fails(409, "transaction_id_conflict")
                with pytest.raises(Conflict):
                    client.submit(ORDER, id="a")
            with pytest.raises(RuntimeError, match="closed"):
                client.get("a")

        await asyncio.get_running_loop().run_in_executor(None, work)
        assert outcomes == ["committed"] * 4

    run(test)


def test_closing_the_synchronous_twin_ends_the_calls_of_other_threads() -> None:
    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = hangs
        client = SyncClient(nodes[0].url, timeout=FOREVER)
        ends: list[BaseException] = []

        def submit() -> None:
            try:
                client.submit(ORDER, deadline=FOREVER)
            except OutcomeUnknown as error:
                ends.append(error)

        threads = [threading.Thread(target=submit, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        await until(lambda: len(nodes[0].requests) == 2)
        for _ in range(2):
            await asyncio.to_thread(client.close)
        for thread in threads:
            await asyncio.to_thread(thread.join, 30.0)
        assert len(ends) == 2
        with pytest.raises(RuntimeError, match="closed"):
            client.get("a")

    run(test)


def test_a_forked_process_is_told_to_make_its_own_sync_client() -> None:
    with SyncClient("127.0.0.1:1") as client:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:  # it must end here, whatever happens: it is a copy of the test run
            try:
                signal.alarm(60)  # the default action: a wait without end becomes a failure
                client._lock.acquire()  # as another thread may have at the fork
                client.submit(ORDER)
            except RuntimeError as error:
                client.close()
                os.write(writes, str(error).encode())
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as said:
            assert said.read() == "this client was made before the fork: make one in each process"
        assert os.waitpid(child, 0) == (child, 0)


# --- answers that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"transactions": {}}, {"transactions": []}, {"transactions": [1, 2]}]
)
def test_a_batch_that_is_not_answered_element_by_element_has_no_answer(answer: Any) -> None:
    with pytest.raises(BadAnswer):
        elements(answer, 1)


def test_an_element_whose_id_is_refused_is_not_sent_again() -> None:
    told = element_answer(shown("order-17", None, state="refused"), {"id": "order-17"})
    assert isinstance(told, OutcomeUnknown)
    assert told.for_good
    assert isinstance(element_answer(shown("another", "committed"), {"id": "order-17"}), Open)
    error = {"code": "transaction_id_expired", "message": "old", "details": {"id": "order-17"}}
    assert isinstance(element_answer({"error": error}, {"id": "another"}), Open)
    assert isinstance(element_answer({"error": error}, {"id": "order-17"}), Expired)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"decision": "maybe"},
        {"decision": None},
        ["commit"],
        {"decision": "commit", "id": "another", "branch_id": "1"},
        {"decision": "commit", "id": "order-17", "branch_id": "2"},
    ],
)
def test_only_a_decision_answers_an_inquiry(answer: Any) -> None:
    async def says(_: web.Request, __: Any) -> web.StreamResponse:
        return web.json_response(answer)

    async def test(nodes: list[FakeNode]) -> None:
        nodes[0].usual = says
        async with asking(nodes[0]) as client:
            with pytest.raises(BadAnswer):
                await client.decision("order-17", "1", "f")

    run(test, nodes=1)
