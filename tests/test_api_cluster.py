"""The calls about the cluster: who leads, and how that is changed by whoever operates it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from coordinator.log import FateUnknown, NotHandedOver, NotLeader
from tests.api_rig import api_node, error_of, run

LEADER = "/v1/cluster/leader"


@pytest.mark.parametrize("body", [b"", b"{}", b'{"node":null}', b'{"node":"n2"}'])
def test_who_leads_now_is_told_by_who_led(body: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with api_node() as node:
            node.log.successor = "n2"
            status, answer, _ = await node.request("POST", LEADER, body=body)
            assert (status, answer["self"], answer["leader"]) == (200, "n1", "n2")
            _, shown = await node.get("/v1/cluster")
            assert answer == shown
            assert node.log.handed_to == ["n2" if b"n2" in body else None]

    with caplog.at_level(logging.INFO, "assent.api"):
        run(test())
    whom = "n2" if b"n2" in body else "whoever lacks least"
    asked, done = caplog.messages
    assert asked == f"leadership goes from n1 to {whom}: 127.0.0.1 asks for it"
    assert done == "leadership went from n1 to n2"


def test_who_leads_already_and_is_named_leads_on_after_a_barrier() -> None:
    async def test() -> None:
        async with api_node() as node:
            before = node.log.barriers
            status, answer = await node.post(LEADER, {"node": "n1"})
            assert (status, answer["leader"], node.log.handed_to) == (200, "n1", [])
            assert node.log.barriers == before + 1
            node.log.barrier_error = NotLeader("deposed")
            status, answer = await node.post(LEADER, {"node": "n1"})
            assert (status, error_of(answer)["code"]) == (503, "no_leader")

    run(test())


def test_a_transfer_that_fails_says_why_and_what_next_and_the_leader_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        async with api_node() as node:
            node.log.successor = NotHandedOver("n2 does not answer")
            status, answer = await node.post(LEADER, {"node": "n2"})
            error = error_of(answer)
            assert (status, error["code"]) == (409, "not_handed_over")
            assert error["message"].startswith("Node n1 leads on: n2 does not answer; ")
            assert error["details"] == {"leader": "n1"}
            await node.passes()

    run(test())
    assert "leadership stays at n1: n2 does not answer" in caplog.text


def test_once_a_third_leads_the_call_is_the_thirds() -> None:
    """It hands over to the one that was named; without a name nothing is left to do."""

    async def test() -> None:
        async with api_node() as node:
            node.apis["n3"] = "http://127.0.0.1:8103"
            node.log.successor = "n3"
            status, answer, headers = await node.request("POST", LEADER, body=b'{"node":"n2"}')
            assert (status, error_of(answer)["code"]) == (307, "not_leader")
            assert headers["Location"] == "http://127.0.0.1:8103" + LEADER

    run(test())


@pytest.mark.parametrize("error", [None, FateUnknown("the node stops")])
def test_leadership_that_went_nobody_knows_where_is_to_be_asked_for_again(error: Any) -> None:
    async def test() -> None:
        async with api_node() as node:
            node.log.successor = error
            status, answer, headers = await node.request("POST", LEADER, body=b'{"node":"n2"}')
            assert (status, error_of(answer)["code"]) == (503, "no_leader")
            assert headers["Retry-After"] == "1"

    run(test())


def test_who_goes_away_asks_no_more() -> None:
    """So that what is proposed waits no longer for the transfer than its asker."""

    async def test() -> None:
        async with api_node() as node:
            given_up = asyncio.Event()

            async def forever(to: str | None = None, timeout_s: float = 2.0) -> str:
                del to, timeout_s
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up.set()
                raise AssertionError

            node.log.transfer_leadership = forever  # type: ignore[method-assign]
            asking = asyncio.create_task(node.post(LEADER, {}))
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await given_up.wait()

    run(test())
