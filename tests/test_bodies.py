"""coordinator/bodies.py, as connections use it: what is held of bodies, and whose turn it is."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from coordinator import api_fields, api_interactive, api_shapes, http_connection
from coordinator.api_requests import Later, Request
from coordinator.bodies import LARGE_BYTES, Bodies
from tests.api_rig import answered, api_node
from tests.connection_rig import BODIES, LIMIT, Rig, read, run
from tests.test_http_connection import GZIP, post

PATH = "/v1/transactions"


def test_all_bodies_together_have_a_bound() -> None:
    """Or as many clients as like would have a node hold 16 MiB for each, for half a minute."""

    async def test(rig: Rig) -> None:
        most = BODIES // (LIMIT - 1)
        others = []
        for _ in range(most):
            rig.connection, rig.wire = rig.connect()
            others.append((rig.connection, rig.wire))
            rig.feed(post(b"x" * LIMIT)[:-1])
            assert not rig.answers()
        assert rig.common.bodies.held == most * (LIMIT - 1)
        rig.connection, rig.wire = rig.connect()
        rig.feed(post(b"x" * LIMIT)[:-1])
        (refused,) = rig.answers()
        assert (refused.status, refused.code) == (429, "overloaded")
        assert refused.headers["retry-after"] == "1"
        rig.feed(b"x" + post(b"whole"))  # which is not held
        assert [answer.status for answer in rig.answers()] == [429, 200]
        (_, first), (second, wire) = others[:2]
        first.abort()  # it goes away
        await rig.turn()
        second.data_received(b"x")  # it ends
        assert [answer.status for answer in read(wire.written)] == [200]
        assert rig.common.bodies.held == (most - 2) * (LIMIT - 1)
        rig.feed(post(b"x" * LIMIT)[:-1])
        rig.feed(b"x")
        assert rig.answers()[-1].status == 200

    run(test)


def test_who_goes_before_its_turn_holds_up_nobody() -> None:
    async def scenario() -> None:
        bodies = Bodies(1)
        turns = [bodies.turn() for _ in range(4)]
        turns[0].cancel()
        turns[2].cancel()
        async with asyncio.timeout(10):
            await turns[1]
            await turns[3]
            await bodies.turn()

    asyncio.run(scenario())


def test_a_packed_body_counts_as_what_it_is_unpacked() -> None:
    async def test(rig: Rig) -> None:
        assert rig.common.bodies.take(BODIES - LIMIT)
        rig.feed(post(gzip.compress(b" " * LIMIT), "/now", GZIP))
        await rig.turn()
        assert [answer.code for answer in rig.answers()] == ["overloaded"]
        rig.common.bodies.give_back(LIMIT)
        rig.feed(post(gzip.compress(b" " * LIMIT), "/now", GZIP))
        await rig.turn()
        assert rig.answers()[-1].status == 200
        rig.common.bodies.give_back(BODIES - 2 * LIMIT)

    run(test)


def test_a_batch_is_held_until_its_answer_and_what_is_smaller_only_until_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test(rig: Rig) -> None:
        for size in (100, 101):
            rig.feed(post(b"x" * size, "/later")[:-1])
            rig.feed(b"x")
            assert rig.common.bodies.held == (101 if size == 101 else 0)
            rig.api.go_on()
            await rig.turn()
            assert rig.answers()[-1].status == 200
            assert rig.common.bodies.held == 0

    monkeypatch.setattr(http_connection, "BATCH_BYTES", 100)
    run(test)


@pytest.mark.parametrize(("packed", "together"), [(True, True), (True, False), (False, False)])
def test_of_packed_and_large_bodies_one_is_looked_at_in_two_turns(
    monkeypatch: pytest.MonkeyPatch, *, packed: bool, together: bool
) -> None:
    """Whether they come over one connection or many. Large ones over one do not come at once."""

    async def test(rig: Rig) -> None:
        body = b"x" * 101
        request = post(gzip.compress(body), "/now", GZIP) if packed else post(body)
        for _ in range(5):
            if not together:
                rig.connection, rig.wire = rig.connect()
            rig.feed(request[:-1])
            rig.feed(request[-1:])
        asked = []
        while len(rig.api.asked) < 5:
            before = len(rig.api.asked)
            await asyncio.sleep(0)
            asked.append(len(rig.api.asked) - before)
            assert len(asked) < 100
        assert max(first + second for first, second in pairwise(asked)) == 1

    monkeypatch.setattr(http_connection, "LARGE_BYTES", 100)
    run(test)


# --- large ones at the API ------------------------------------------------------------------------


@pytest.mark.parametrize("enlists", [False, True])
def test_a_large_body_is_decoded_in_one_turn_and_read_in_another(
    monkeypatch: pytest.MonkeyPatch, *, enlists: bool
) -> None:
    async def test() -> None:
        turn = 0
        done: list[tuple[str, int]] = []

        def noted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
            def note(*given: Any, **named: Any) -> Any:
                done.append((name, turn))
                return work(*given, **named)

            return note

        monkeypatch.setattr(api_fields, "decode_json", noted("decoded", api_fields.decode_json))
        reads = (
            (api_interactive, "read_participant") if enlists else (api_shapes, "read_submission")
        )
        monkeypatch.setattr(*reads, noted("read", getattr(*reads)))
        async with api_node() as node:
            if enlists:
                await node.post(PATH, {"id": "t", "mode": "interactive"})
                done.clear()
            for name, payload in (("small", ""), ("large", "x" * LARGE_BYTES)):
                participant = node.service(name=name, payload=payload)
                asked = participant if enlists else {"participants": [participant]}
                path = f"{PATH}/t/branches" if enlists else PATH
                body = json.dumps(asked).encode()
                answer = node.api.respond(Request("POST", path, "", {}, body))
                assert isinstance(answer, Later)
                while not answer.future.done():
                    await asyncio.sleep(0)
                    turn += 1
                shown = json.loads(answer.made(answer.future).body)
                assert shown["state"] == "active" if enlists else shown["outcome"] == "committed"
        assert [name for name, _ in done] == ["decoded", "read"] * 2
        small, large = done[:2], done[2:]
        assert small[0][1] == small[1][1]
        assert large[0][1] + 1 == large[1][1]

    asyncio.run(test())


def test_who_gave_no_id_with_a_large_body_is_sent_to_the_leader_of_the_moment_when_it_is_read() -> (
    None
):
    async def test() -> None:
        async with api_node() as node:
            payload = "x" * LARGE_BYTES
            body = json.dumps({"participants": [node.service(payload=payload)]}).encode()
            answer = node.api.respond(Request("POST", PATH, "", {}, body))
            node.log.follow("n2")
            assert (await answered(answer)).status == 307
            node.log.lead()
            await node.passes()
            assert node.machine.unfinished_count + node.machine.remembered_count == 1

    asyncio.run(test())


def test_a_client_that_does_not_wait_for_its_large_transaction_ends_only_its_waiting() -> None:
    async def test() -> None:
        async with api_node() as node:
            payload = "x" * LARGE_BYTES
            given = {"id": "t-1", "participants": [node.service("slow", payload=payload)]}
            answer = node.api.respond(Request("POST", PATH, "", {}, json.dumps(given).encode()))
            assert isinstance(answer, Later)
            await node.services.until_called("slow", "prepare")
            answer.future.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer.future
            node.services.go_on()
            _, shown = await node.get(f"{PATH}/t-1?wait_ms=60000")
            assert shown["state"] == "committed"

    asyncio.run(test())


def test_a_client_that_goes_away_before_its_body_s_turn_is_not_served() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(gzip.compress(b"x"), "/now", GZIP))
        rig.wire.abort()
        await rig.turn()
        assert not rig.api.asked

    run(test)
