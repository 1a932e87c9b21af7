"""The one timer that rings a queue of alarms, on either event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

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
        bell: Bell[str] = Bell(rung.put_nowait)
        for item, delay_s in (("c", 0.06), ("a", 0.0), ("b", 0.03), ("never", 100.0)):
            bell.set(item, loop.time() + delay_s)
        assert [await rung.get() for _ in range(3)] == ["a", "b", "c"]
        bell.silence()

    run(scene())


def test_what_is_past_already_rings_and_may_be_set_over(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        rung: list[str] = []
        bell: Bell[str] = Bell(rung.append)
        bell.set("past", loop.time() - 5.0)
        bell.set("before", loop.time() - 10.0)
        bell.set("later", loop.time() + 100.0)
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

        bell: Bell[str] = Bell(ring)
        now_s = loop.time()
        for item in ("bad", "same grain"):
            bell.set(item, now_s)
        bell.set("later", now_s + 0.03)
        assert [await rung.get() for _ in range(2)] == ["same grain", "later"]

    run(scene())
    assert "bad could not be woken" in caplog.text
