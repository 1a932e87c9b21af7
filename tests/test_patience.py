"""Waiting has an end: in time it gives what came, after it None."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from coordinator.alarms import GRAIN_S
from coordinator.patience import Patience


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock leaps to the next timer."""

    now = 1_000.0

    def time(self) -> float:
        return self.now


def run(test: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(test)


def loop() -> Clock:
    present = asyncio.get_running_loop()
    assert isinstance(present, Clock)
    return present


def timers() -> list[asyncio.TimerHandle]:
    """That the loop has, and that were not cancelled."""
    scheduled: list[asyncio.TimerHandle] = loop()._scheduled  # type: ignore[attr-defined]
    return [timer for timer in scheduled if not timer.cancelled()]


def waits(
    patience: Patience, future: asyncio.Future[int], seconds: float
) -> asyncio.Task[int | None]:
    async def wait() -> int | None:
        return await patience.settled(future, seconds)

    return asyncio.create_task(wait())


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_is_there_is_given_at_once_and_what_comes_in_time_when_it_comes() -> None:
    async def test() -> None:
        patience = Patience()
        there: asyncio.Future[int] = loop().create_future()
        there.set_result(1)
        assert await patience.settled(there, -1) == 1
        coming: asyncio.Future[int] = loop().create_future()
        waiting = waits(patience, coming, 10)
        loop().now += 9.9
        await turn()
        coming.set_result(2)
        assert await waiting == 2
        failing: asyncio.Future[int] = loop().create_future()
        failing.set_exception(ZeroDivisionError())
        with pytest.raises(ZeroDivisionError):
            await patience.settled(failing, 10)

    run(test())


def test_what_does_not_come_is_given_up_neither_early_nor_much_too_late() -> None:
    async def test() -> None:
        patience = Patience()
        times = (3_600.0, 0.3, 1.0, 7.77)
        futures: list[asyncio.Future[int]] = [loop().create_future() for _ in times]
        tasks = [
            waits(patience, future, seconds) for future, seconds in zip(futures, times, strict=True)
        ]
        await turn()
        start = loop().now
        for seconds, task, future in sorted(
            zip(times, tasks, futures, strict=True), key=lambda each: each[0]
        ):
            loop().now = max(loop().now, start + seconds - GRAIN_S)
            await turn()
            assert not task.done()
            loop().now = start + seconds + GRAIN_S
            await turn()
            assert task.done(), seconds
            assert task.result() is None
            assert future.cancelled()

    run(test())


def test_whoever_is_cancelled_himself_is_told_so() -> None:
    async def test() -> None:
        patience = Patience()
        future: asyncio.Future[int] = loop().create_future()
        waiting = waits(patience, future, 10)
        await turn()
        waiting.cancel()
        await turn()
        assert waiting.cancelled()
        assert future.cancelled()

    run(test())


def test_a_timer_serves_many_and_nothing_is_kept_of_those_who_are_done() -> None:
    async def test() -> None:
        patience = Patience()
        futures: list[asyncio.Future[int]] = [loop().create_future() for _ in range(1_000)]
        waiting = [waits(patience, future, 15) for future in futures]
        await turn()
        assert len(timers()) == 1
        for number, future in enumerate(futures):
            future.set_result(number)
        assert await asyncio.gather(*waiting) == list(range(1_000))
        assert len(patience._bell) == 0
        loop().now += 16
        await turn()
        assert timers() == []

    run(test())
