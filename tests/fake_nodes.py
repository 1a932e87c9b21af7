"""Small HTTP servers that answer as nodes do, or as a test tells them to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from random import Random
from typing import Any

from aiohttp import web

from cluster.client import Client

FOREVER = 3_600.0
ORDER = [{"name": "stock", "url": "http://127.0.0.1:9", "payload": {"quantity": 1}}]

Answer = Callable[[web.Request, Any], Awaitable[web.StreamResponse]]


class FakeNode:
    """A server whose answers come from `script`, one for each request, then from `usual`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any]] = []
        self.script: list[Answer] = []
        self.usual: Answer = committed
        self.known: list[str] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        application = web.Application()
        application.router.add_get("/v1/cluster", self._cluster)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def die(self) -> None:
        """Connections break; new ones are refused."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            for site in list(runner.sites):
                await site.stop()
            assert runner.server is not None
            for connection in list(runner.server.connections):
                if connection.transport is not None:
                    connection.transport.abort()
            await runner.cleanup()

    def bodies(self) -> list[Any]:
        return [body for method, _, body in self.requests if method == "POST"]

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.requests.append((request.method, request.path_qs, body))
        answer = self.script.pop(0) if self.script else self.usual
        return await answer(request, body)

    async def _cluster(self, _: web.Request) -> web.Response:
        nodes = [{"id": f"n{index}", "api": url} for index, url in enumerate(self.known)]
        status = {"cluster": "test", "self": "n0", "leader": "n0", "term": 3, "nodes": nodes}
        return web.json_response(status)


def shown(id: str, outcome: str | None, state: str | None = None) -> dict[str, Any]:
    return {
        "id": id,
        "state": state or outcome or "preparing",
        "outcome": outcome,
        "reason": None,
        "branches": [{"branch_id": "1", "name": "stock", "url": "http://x", "state": "prepared"}],
        "metadata": {},
    }


async def committed(request: web.Request, body: Any) -> web.StreamResponse:
    if isinstance(body, dict) and "transactions" in body:
        answers = [shown(entry["id"], "committed") for entry in body["transactions"]]
        return web.json_response({"transactions": answers})
    id = body["id"] if isinstance(body, dict) and "id" in body else request.path.split("/")[-1]
    return web.json_response(shown(id, "committed"))


def fails(
    status: int, code: str, *, headers: dict[str, str] | None = None, **details: Any
) -> Answer:
    async def answer(_: web.Request, __: Any) -> web.StreamResponse:
        error = {"code": code, "message": f"it is {code}", "details": details}
        return web.json_response({"error": error}, status=status, headers=headers)

    return answer


def redirects_to(node: FakeNode) -> Answer:
    async def answer(request: web.Request, _: Any) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": node.url + request.path_qs})

    return answer


async def hangs(_: web.Request, __: Any) -> web.StreamResponse:
    await asyncio.sleep(FOREVER)
    raise AssertionError


async def breaks_off(request: web.Request, _: Any) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


@asynccontextmanager
async def asking(*nodes: FakeNode, timeout: float = 30.0) -> AsyncIterator[Client]:
    async with Client([node.url for node in nodes], timeout=timeout, random=Random(7)) as client:
        yield client


@contextmanager
def node_beside() -> Iterator[FakeNode]:
    """A fake node on an event loop of its own thread: for programs that run a loop themselves."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    node = FakeNode()
    try:
        asyncio.run_coroutine_threadsafe(node.start(), loop).result(10)
        yield node
    finally:
        asyncio.run_coroutine_threadsafe(node.die(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def run(test: Callable[[list[FakeNode]], Awaitable[None]], nodes: int = 2) -> None:
    """Run `test` with so many fake nodes."""

    async def body() -> None:
        async with AsyncExitStack() as stack:
            fakes = [FakeNode() for _ in range(nodes)]
            for fake in fakes:
                await fake.start()
                stack.push_async_callback(fake.die)
            for fake in fakes:
                fake.known = [other.url for other in fakes]
            await test(fakes)

    asyncio.run(body())


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
