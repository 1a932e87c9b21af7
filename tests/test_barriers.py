"""Reads that wait until the state is current."""

from __future__ import annotations

import asyncio

from cluster.raft.barriers import LOOK_AT, Barriers
from coordinator.log import NotLeader


def test_a_read_waits_for_a_round_that_began_after_it_and_for_what_was_committed_then() -> None:
    async def test() -> None:
        barriers = Barriers()
        first, second = [asyncio.get_running_loop().create_future() for _ in range(2)]
        barriers.add(first)
        assert barriers.want_round
        barriers.round_begun(7, commit=3)
        barriers.add(second)
        assert not barriers.want_round, "the first is waited for"
        assert barriers.wait_for_answers
        barriers.settle(lambda number: number <= 7, applied=2)
        assert not first.done()
        barriers.settle(lambda number: number < 7, applied=3)
        assert not first.done()
        barriers.settle(lambda number: number <= 7, applied=3)
        assert first.done()
        assert not second.done()
        assert barriers.want_round

    asyncio.run(test())


def test_the_end_of_the_leadership_fails_all_of_them() -> None:
    async def test() -> None:
        barriers = Barriers()
        waiting = [asyncio.get_running_loop().create_future() for _ in range(2)]
        barriers.add(waiting[0])
        barriers.round_begun(7, commit=3)
        barriers.add(waiting[1])
        barriers.fail(NotLeader("it ends"))
        assert all(isinstance(each.exception(), NotLeader) for each in waiting)
        assert len(barriers) == 0

    asyncio.run(test())


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
