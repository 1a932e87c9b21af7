"""The one timer that rings a queue of alarms, on either event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from coordinator.alarms import Alarms
from coordinator.bell import Bell

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run(scene: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(scene)

    return run


def test_all_ring_in_their_order(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        rung: asyncio.Queue[str] = asyncio.Queue()
        alarms: Alarms[str] = Alarms()
        bell = Bell(alarms, rung.put_nowait)
        for item, delay_s in (("c", 0.06), ("a", 0.0), ("b", 0.03), ("never", 100.0)):
            alarms.set(item, loop.time() + delay_s)
            bell.arm()
        assert [await rung.get() for _ in range(3)] == ["a", "b", "c"]
        bell.silence()

    run(scene())


def test_what_is_past_already_rings_and_may_be_armed_over(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        rung: list[str] = []
        alarms: Alarms[str] = Alarms()
        bell = Bell(alarms, rung.append)
        alarms.set("past", loop.time() - 5.0)
        bell.arm()
        alarms.set("before", loop.time() - 10.0)
        bell.arm()
        alarms.set("later", loop.time() + 100.0)
        bell.arm()
        assert rung == [], "never from within"
        await asyncio.sleep(0.01)
        assert rung == ["before", "past"]
        bell.silence()

    run(scene())


def test_one_that_raises_keeps_no_other_from_being_woken(
    run: Callable[[Coroutine[Any, Any, None]], None], caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        rung: asyncio.Queue[str] = asyncio.Queue()

        def ring(item: str) -> None:
            if item == "bad":
                raise ValueError(item)
            rung.put_nowait(item)

        alarms: Alarms[str] = Alarms()
        bell = Bell(alarms, ring)
        now_s = loop.time()
        for item in ("bad", "same grain"):
            alarms.set(item, now_s)
        alarms.set("later", now_s + 0.03)
        bell.arm()
        assert [await rung.get() for _ in range(2)] == ["same grain", "later"]

    run(scene())
    assert "bad could not be woken" in caplog.text
