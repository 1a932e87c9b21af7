"""Reads that wait until the state is current."""

from __future__ import annotations

import asyncio

from cluster.raft.barriers import LOOK_AT, Barriers
from coordinator.log import NotLeader


def test_a_read_waits_for_a_round_that_began_after_it() -> None:
    async def scenario() -> None:
        barriers = Barriers()
        loop = asyncio.get_running_loop()
        first, second = loop.create_future(), loop.create_future()
        barriers.add(first)
        assert barriers.want_round
        barriers.round_begun(5, 100)
        barriers.add(second)
        assert not barriers.want_round, "one round at a time"
        barriers.settle(lambda number: number <= 4, 100)
        assert not first.done()
        barriers.settle(lambda number: number <= 5, 99)
        assert not first.done(), "what was committed then is not applied"
        barriers.settle(lambda number: number <= 5, 100)
        assert first.done()
        assert not second.done()
        assert barriers.want_round
        barriers.fail(NotLeader())
        assert isinstance(second.exception(), NotLeader)
        assert not barriers.want_round

    asyncio.run(scenario())


def test_a_read_that_nobody_waits_for_any_more_is_in_nobodys_way() -> None:
    async def scenario() -> None:
        barriers = Barriers()
        loop = asyncio.get_running_loop()
        gone, waits, late = (loop.create_future() for _ in range(3))
        barriers.add(gone)
        barriers.add(waits)
        gone.cancel()
        barriers.round_begun(5, 100)
        barriers.settle(lambda _: True, 100)
        assert waits.done()
        barriers.add(late)
        late.cancel()
        barriers.fail(NotLeader())

    asyncio.run(scenario())


def test_who_gave_up_is_let_go_of_though_no_round_begins() -> None:
    """A disk may hang for an hour, and clients that hear nothing ask again and again."""

    async def test() -> None:
        barriers = Barriers()
        patient = [asyncio.get_running_loop().create_future() for _ in range(2_000)]
        for each in patient:
            barriers.add(each)
        for _ in range(50_000):
            impatient = asyncio.get_running_loop().create_future()
            barriers.add(impatient)
            impatient.cancel()
        assert len(barriers) <= LOOK_AT + 3 * len(patient)
        barriers.round_begun(1, commit=0)
        barriers.settle(lambda _: True, applied=0)
        assert all(each.done() and not each.cancelled() for each in patient)

    asyncio.run(test())
