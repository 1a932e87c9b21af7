"""participants/interactive.py: a participant is enlisted once, by whichever node answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from participants import interactive
from participants.contract import TRANSACTION_HEADER
from participants.interactive import (
    REMEMBERED_S,
    Enlister,
    EnlistSettings,
    NotEnlisted,
    WorkRefused,
    read_enlisted,
    transaction_id_of,
)
from tests.participant_rig import serving

NODES = ("http://n1", "http://n2", "http://n3")
URL = "http://me:9010/seats"
Answer = tuple[int, bytes]


def enlisted(branch_id: str = "1", id_: str = "t", **more: Any) -> Answer:
    answer = {"transaction_id": id_, "branch_id": branch_id, "state": "active"} | more
    return 201, json.dumps(answer).encode()


def error(status: int, code: str = "not_allowed", message: str = "no, and why") -> Answer:
    return status, json.dumps({"error": {"code": code, "message": message, "details": {}}}).encode()


class Nodes:
    """Answers by node, one after the other, the last for ever; an exception is raised, a number of
    seconds is waited for."""

    def __init__(self, **answers: list[Answer | Exception | float]) -> None:
        self.answers = {f"http://{name}": list(given) for name, given in answers.items()}
        self.asked: list[str] = []
        self.bodies: list[tuple[str, Any]] = []

    async def __call__(self, node: str, id_: str, body: bytes) -> Answer:
        self.asked.append(node.removeprefix("http://"))
        self.bodies.append((id_, json.loads(body)))
        answers = self.answers[node]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        await asyncio.sleep(answer if isinstance(answer, float) else 0)
        if isinstance(answer, Exception):
            raise answer
        return enlisted() if isinstance(answer, float) else answer


def made(nodes: Nodes, *, named: str | None = None, **settings: float) -> Enlister:
    given = EnlistSettings(NODES[: len(nodes.answers)], URL, named, **settings)
    return Enlister(given, random=Random(1), call=nodes)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


# --- what an answer means -------------------------------------------------------------------------


def test_the_branch_is_read_of_an_answer_about_this_transaction() -> None:
    assert read_enlisted(*enlisted("3"), "t") == "3"
    assert read_enlisted(*enlisted("3", "another"), "t") is None


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413])
def test_what_a_coordinator_refuses_in_its_own_words_is_final(status: int) -> None:
    with pytest.raises(WorkRefused, match="no, and why"):
        read_enlisted(*error(status), "t")


@pytest.mark.parametrize(
    "answer",
    [
        error(429, "at_capacity"),
        error(408, "body_timeout"),
        error(503, "no_leader"),
        error(500, "internal_error"),
        (404, b"<html>not here</html>"),
        (404, b'{"error": "not here"}'),
        (409, b"[" * 100_000),
        (200, enlisted()[1]),
        (307, b""),
        (201, b""),
        (201, b"[]"),
        (201, b'{"transaction_id": "t"}'),
        (201, b'{"transaction_id": "t", "branch_id": ""}'),
        (201, b'{"transaction_id": "t", "branch_id": 1}'),
        (201, b'{"branch_id": "1"}'),
    ],
)
def test_what_is_no_answer_says_nothing(answer: Answer) -> None:
    assert read_enlisted(*answer, "t") is None


# --- who is asked ---------------------------------------------------------------------------------


def test_what_is_asked_is_the_same_each_time() -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[TimeoutError(), enlisted()])
        assert await made(nodes).branch_of("t") == "1"
        assert nodes.bodies == [("t", {"url": URL})] * 2
        named = Nodes(n1=[enlisted()])
        enlister = made(named, named="seats")
        await enlister.branch_of("t")
        await enlister.branch_of("t", "other")
        assert [body["name"] for _, body in named.bodies] == ["seats", "other"]

    run(scenario())


def test_another_node_is_asked_after_silence_and_after_what_is_no_answer() -> None:
    async def scenario() -> None:
        nodes = Nodes(
            n1=[aiohttp.ClientConnectionError("gone")],
            n2=[error(503, "no_leader"), error(429, "at_capacity"), enlisted("7")],
            n3=[30.0],
        )
        assert await made(nodes, try_s=0.01).branch_of("t") == "7"
        assert nodes.asked == ["n1", "n2", "n3"] * 2 + ["n1", "n2"]

    run(scenario())


def test_the_node_that_answered_is_asked_first_the_next_time() -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[ConnectionResetError()], n2=[enlisted(id_="a"), enlisted(id_="b")])
        enlister = made(nodes)
        for id_ in "ab":
            await enlister.branch_of(id_)
        assert nodes.asked == ["n1", "n2", "n2"]

    run(scenario())


def test_a_refusal_is_not_asked_again_nor_elsewhere_and_not_remembered() -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[error(404, "unknown_transaction"), enlisted()], n2=[enlisted("2")])
        enlister = made(nodes)
        with pytest.raises(WorkRefused):
            await enlister.branch_of("t")
        assert nodes.asked == ["n1"]
        assert await enlister.branch_of("t") == "1", "its client has opened it since"

    run(scenario())


def test_when_the_time_is_over_nothing_was_done_and_it_may_be_asked_again() -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[30.0], n2=[error(503, "no_leader", "no leader is known")])
        enlister = made(nodes, timeout_s=0.2, try_s=0.01)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        with pytest.raises(NotEnlisted, match=r"within 0\.2 s .*: nothing was done; ask again"):
            await enlister.branch_of("t")
        assert loop.time() - began_s >= 0.2
        assert nodes.asked.count("n1") > 1
        nodes.answers["http://n1"] = [enlisted()]
        assert await enlister.branch_of("t") == "1"

    run(scenario())


def test_a_node_has_longer_with_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is slow would be cut off each time else, and asked once more beside all others."""
    given: list[float] = []
    timeout = asyncio.timeout

    def noted(seconds: float) -> Any:
        given.append(seconds)
        return timeout(0.001)

    async def scenario() -> None:
        enlister = made(Nodes(n1=[30.0]), timeout_s=1.0, try_s=0.1)
        with monkeypatch.context() as patch:
            patch.setattr("participants.interactive.asyncio.timeout", noted)
            with pytest.raises(NotEnlisted):
                await enlister.branch_of("t")

    run(scenario())
    assert given[:3] == [0.1, 0.2, 0.4]
    assert max(given) <= 1.0


# --- what is remembered ---------------------------------------------------------------------------


def test_who_asks_at_the_same_time_shares_the_answer_and_may_go_away() -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[0.05])
        enlister = made(nodes)
        tasks = [asyncio.create_task(enlister.branch_of("t")) for _ in range(5)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        assert await asyncio.gather(*tasks[1:]) == ["1"] * 4
        assert tasks[0].cancelled()
        assert nodes.asked == ["n1", "n1"], "who went away has taken its question with it"
        assert len(enlister._asking) == 0

    run(scenario())


def test_transactions_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        async def call(_: str, id_: str, __: bytes) -> Answer:
            if id_ == "slow":
                await asyncio.Event().wait()
            return enlisted(id_=id_)

        enlister = Enlister(EnlistSettings(NODES, URL), random=Random(1), call=call)
        slow = asyncio.create_task(enlister.branch_of("slow"))
        await asyncio.sleep(0)
        assert await enlister.branch_of("t") == "1"
        slow.cancel()

    run(scenario())


def test_what_is_known_is_not_asked_again_until_an_id_may_stand_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        nodes = Nodes(n1=[enlisted("1"), enlisted("4")])
        enlister = made(nodes)
        loop, began_s = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        for after_s, branch_id in ((0, "1"), (REMEMBERED_S - 1, "1"), (REMEMBERED_S + 1, "4")):
            monkeypatch.setattr(loop, "time", lambda at_s=began_s + after_s: at_s)
            assert await enlister.branch_of("t") == branch_id
        monkeypatch.undo()
        assert len(nodes.asked) == 2

    run(scenario())


def test_only_so_many_are_remembered_the_oldest_is_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interactive, "MAX_REMEMBERED", 2)

    async def scenario() -> None:
        asked: list[str] = []

        async def call(_: str, id_: str, __: bytes) -> Answer:
            asked.append(id_)
            return enlisted(id_=id_)

        enlister = Enlister(EnlistSettings(NODES, URL), random=Random(1), call=call)
        for id_ in "abcbca":
            await enlister.branch_of(id_)
        assert asked == ["a", "b", "c", "a"]
        assert len(enlister._known) == 2

    run(scenario())


# --- over HTTP ------------------------------------------------------------------------------------


def node_of(answer: Callable[[web.Request], Coroutine[Any, Any, web.Response]]) -> web.Application:
    application = web.Application()
    application.router.add_post("/v1/transactions/{id}/branches", answer)
    return application


def test_a_followers_redirect_is_followed_with_the_body() -> None:
    heard: list[Any] = []

    async def leads(request: web.Request) -> web.Response:
        heard.append((request.match_info["id"], request.content_type, await request.json()))
        status, body = enlisted("5", request.match_info["id"])
        return web.Response(status=status, body=body)

    async def scenario() -> None:
        async with serving(node_of(leads)) as leader:

            async def follows(request: web.Request) -> web.Response:
                location = {"Location": f"{leader}{request.path_qs}"}
                return web.Response(status=307, headers=location)

            async with serving(node_of(follows)) as follower:
                settings = EnlistSettings(("http://127.0.0.1:1", f"{follower}/"), URL)
                enlister = Enlister(settings, random=Random(1))
                assert await enlister.branch_of("a:b.c") == "5"
                await enlister.close()
        assert heard == [("a:b.c", "application/json", {"url": URL})]

    run(scenario())


def test_an_endless_answer_is_none() -> None:
    async def endless(_: web.Request) -> web.Response:
        return web.Response(status=201, body=enlisted()[1] + b" " * interactive.MAX_ANSWER_BYTES)

    async def scenario() -> None:
        async with serving(node_of(endless)) as url:
            enlister = Enlister(EnlistSettings((url,), URL, timeout_s=0.2), random=Random(1))
            with pytest.raises(NotEnlisted, match="answered 201"):
                await enlister.branch_of("t")
            await enlister.close()

    run(scenario())


def test_who_is_stopped_enlists_no_more() -> None:
    async def scenario() -> None:
        enlister = Enlister(EnlistSettings(NODES, URL), random=Random(1))
        await enlister.close()
        with pytest.raises(NotEnlisted, match="is stopped"):
            await enlister.branch_of("t")

    run(scenario())


# --- settings and the header ----------------------------------------------------------------------


@pytest.mark.parametrize("coordinators", [(), "http://n1:8101"])
def test_somebody_must_be_asked(coordinators: Any) -> None:
    with pytest.raises(ValueError, match="coordinators"):
        EnlistSettings(coordinators, URL)


def test_the_header_names_the_transaction() -> None:
    request = make_mocked_request("POST", "/", headers={TRANSACTION_HEADER: "t-1"})
    assert transaction_id_of(request) == "t-1"
    assert TRANSACTION_HEADER == "Assent-Transaction-Id"


@pytest.mark.parametrize(
    ("headers", "why"),
    [({}, "is missing"), ({TRANSACTION_HEADER: "a/b"}, "must be 1 to 64 characters")],
)
def test_a_request_of_no_transaction_is_told_so(headers: dict[str, str], why: str) -> None:
    with pytest.raises(web.HTTPBadRequest) as refused:
        transaction_id_of(make_mocked_request("POST", "/", headers=headers))
    assert refused.value.content_type == "application/json"
    told = json.loads(refused.value.text or "")["error"]
    assert told["code"] == "bad_transaction_id"
    assert f"{TRANSACTION_HEADER} {why}" in told["message"]
