"""Syncs run in place where the disk is quick, and in a thread where it is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from cluster.raft.syncing import Syncs


class Disk:
    """Jobs that take as long as they are told, by a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.threads: list[int] = []

    def syncs(self, quick_s: float) -> Syncs:
        return Syncs(quick_s, quick_s / 10, now=lambda: self.now)

    def job(self, takes_s: float) -> Callable[[], None]:
        def work() -> None:
            self.now += takes_s
            self.threads.append(threading.get_ident())

        return work

    @property
    def last_in_place(self) -> bool:
        return self.threads[-1] == threading.get_ident()


async def sync(
    syncs: Syncs, disk: Disk, takes_s: float, *, leads: bool = False, disk_is_busy: bool = False
) -> bool:
    """One sync; whether it ran in place."""
    under_way = syncs.run(disk.job(takes_s), leads=leads, disk_is_busy=disk_is_busy)
    if under_way is not None:
        await under_way
    assert disk.last_in_place == (under_way is None)
    return under_way is None


def test_a_disk_that_is_quick_for_a_follower_may_be_slow_for_a_leader() -> None:
    async def scenario() -> None:
        disk = Disk()
        syncs = disk.syncs(0.01)
        assert await sync(syncs, disk, 0.0005)
        assert await sync(syncs, disk, 0.0005, leads=True)
        for _ in range(40):
            assert await sync(syncs, disk, 0.002)
        assert not await sync(syncs, disk, 0.002, leads=True)
        assert await sync(syncs, disk, 0.002)
        assert not await sync(disk.syncs(0.0), disk, 0.001)
        assert not await sync(disk.syncs(0.0), disk, 0.001, leads=True)

    asyncio.run(scenario())


def test_a_leader_that_writes_a_snapshot_meanwhile_syncs_in_a_thread() -> None:
    async def scenario() -> None:
        disk = Disk()
        syncs = disk.syncs(0.01)
        assert await sync(syncs, disk, 0.0001, leads=True)
        assert not await sync(syncs, disk, 0.0001, leads=True, disk_is_busy=True)
        assert await sync(syncs, disk, 0.0001, disk_is_busy=True), "a follower has nothing to do"
        assert await sync(syncs, disk, 0.0001, leads=True)

    asyncio.run(scenario())


def test_a_slow_disk_is_waited_for_in_a_thread_until_it_is_quick_again() -> None:
    async def scenario() -> None:
        disk = Disk()
        syncs = disk.syncs(0.01)
        assert await sync(syncs, disk, 0.1)
        assert await sync(syncs, disk, 0.1), "one slow sync makes no slow disk"
        assert not await sync(syncs, disk, 0.1)
        quick = [await sync(syncs, disk, 0.001) for _ in range(40)]
        assert quick == sorted(quick), "once it is quick, it stays so"
        assert not quick[0]
        assert quick[-1]

    asyncio.run(scenario())


def test_a_sync_in_a_thread_waits_for_no_name_that_is_looked_up() -> None:
    """asyncio looks names up in the loop's own threads, and nothing ends that."""

    async def scenario() -> None:
        answered = threading.Event()
        loop = asyncio.get_running_loop()
        lookups = [loop.run_in_executor(None, answered.wait) for _ in range(64)]
        try:
            disk = Disk()
            async with asyncio.timeout(10):
                assert not await sync(disk.syncs(0.0), disk, 0.001)
            assert not any(lookup.done() for lookup in lookups)
        finally:
            answered.set()
            await asyncio.wait(lookups)

    asyncio.run(scenario())


def test_a_sync_in_place_raises_what_its_job_raises() -> None:
    def fails() -> None:
        raise OSError("torn")

    async def scenario() -> None:
        with pytest.raises(OSError, match="torn"):
            Syncs().run(fails, leads=False)
        under_way = Syncs(0.0).run(fails, leads=False)
        assert under_way is not None
        with pytest.raises(OSError, match="torn"):
            await under_way

    asyncio.run(scenario())
