"""Calling participants through a real gateway, for the tests of what stands behind it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coordinator.courier import Answer
from coordinator.gateway import Call, Gateway
from coordinator.settings import Limits, Timings
from participants.contract import Failed, Operation, end_body, prepare_body


def run(
    scenario: Callable[[Gateway], Awaitable[None]],
    *,
    limits: Limits | None = None,
    timings: Timings | None = None,
) -> None:
    """Run a scenario; afterwards no task is left, and the event loop has nothing to complain of."""
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        gateway = Gateway(limits=limits or Limits(), timings=timings or Timings())
        await gateway.start()
        try:
            async with asyncio.timeout(60):
                await scenario(gateway)
        finally:
            await gateway.stop()
        assert gateway.waiting() == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}
        gc.collect()

    asyncio.run(main())
    assert complaints == []


def call_for(
    url: str,
    operation: Operation = Operation.PREPARE,
    *,
    transaction_id: str = "t1",
    within: float = 20.0,
    body: bytes | None = None,
) -> tuple[Call, asyncio.Future[Answer]]:
    """A call, and the future of its answer; a second answer would be an error in the event loop."""
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()
    if body is None:
        body = end_body(transaction_id, "1")
        if operation is Operation.PREPARE:
            expires_at = "2030-01-01T00:00:00.000Z"
            body = prepare_body(transaction_id, "1", b"{}", "f", expires_at, b"[]")
    call = Call(
        participant=url,
        operation=operation,
        url=f"{url}/{operation}",
        transaction_id=transaction_id,
        branch_id="1",
        body=body,
        end_s=loop.time() + within,
        done=answered.set_result,
    )
    return call, answered


async def ask(
    gateway: Gateway, url: str, operation: Operation = Operation.PREPARE, *, within: float = 20.0
) -> Answer:
    call, answered = call_for(url, operation, within=within)
    gateway.begin(call)
    assert not answered.done()
    return await answered


def failed(given: Answer) -> Failed:
    assert isinstance(given, Failed), given
    assert 0 < len(given.what) <= 600
    return given


def count_pumps(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often any lane is looked at from now on: a loop that spins shows here."""
    pumps = 0
    original = Gateway._pump

    def counted(gateway: Gateway, door: Any) -> None:
        nonlocal pumps
        pumps += 1
        original(gateway, door)

    monkeypatch.setattr(Gateway, "_pump", counted)
    return lambda: pumps
