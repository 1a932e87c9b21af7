"""However many branches fail, their leader is not kept busy by calling them again."""

from __future__ import annotations

import asyncio

from coordinator.plan import Wait
from coordinator.retries import BROUGHT_FORWARD, RETRIES_PER_S, Retries
from participants.contract import Operation, Vote, Voted
from tests.builders import plan
from tests.driver_rig import Rig, down, play, yes_to_all


def test_who_failed_waits_longer_the_more_do() -> None:
    retries: Retries[str, str] = Retries()
    waits = [retries.failed(f"branch-{number}", "t") for number in range(10 * RETRIES_PER_S)]
    assert waits[0] <= 0.01
    assert waits[-1] == 10
    retries.called("branch-0")
    assert retries.failed("branch-0", "t") == 10


def test_who_is_called_waits_no_more() -> None:
    retries: Retries[str, str] = Retries()
    for name in ("a", "b", "c"):
        retries.failed(name, f"of {name}")
    retries.called("a")
    retries.called("stranger")
    assert len(retries) == 2
    assert retries.brought_forward() == ["of b", "of c"]
    assert retries.brought_forward() == []


def test_who_waited_longest_is_brought_forward() -> None:
    retries: Retries[int, int] = Retries()
    for number in range(9):
        retries.failed(number, number)
    retries.called(0)
    retries.failed(0, 0)
    assert retries.brought_forward() == [1, 2][:BROUGHT_FORWARD]
    assert len(retries) == 9 - BROUGHT_FORWARD


def test_a_thousand_services_that_are_down_are_called_as_often_as_two_hundred() -> None:
    async def scene(rig: Rig) -> None:
        many = 5 * RETRIES_PER_S
        votes = Voted(Vote.YES)
        rig.gateway.script = lambda call: votes if call.operation is Operation.PREPARE else down()
        for number in range(many):
            rig.driver.submit(plan(f"t-{number}", of=1), Wait.NONE)
        await asyncio.sleep(30)
        before = len(rig.gateway.calls)
        await asyncio.sleep(20)
        assert 0.9 <= (len(rig.gateway.calls) - before) / (20 * RETRIES_PER_S) <= 1.1
        rig.gateway.script = yes_to_all
        await asyncio.sleep(1)
        assert rig.driver.live_count == 0, "they were brought forward: else it had taken 5 s"

    play(scene)


def test_what_failed_is_forgotten_with_the_leadership() -> None:
    async def scene(rig: Rig) -> None:
        votes = Voted(Vote.YES)
        rig.gateway.script = lambda call: votes if call.operation is Operation.PREPARE else down()
        for number in range(5 * RETRIES_PER_S):
            rig.driver.submit(plan(f"t-{number}", of=1), Wait.NONE)
        await asyncio.sleep(10)
        rig.gateway.calls.clear()
        rig.fail_over()
        await asyncio.sleep(0.1)
        first = {call.transaction_id for call in rig.gateway.calls}
        assert len(first) == 5 * RETRIES_PER_S, "the first try of the next leader is at once"

    play(scene)
