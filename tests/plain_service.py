"""A participant that knows nothing of the SDK, in the process of the test."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp import web


class PlainService:
    """A participant with the three endpoints and nothing else, answering a bare true or false.

    It is what a team writes in an afternoon: what is prepared is held in a dict, and rollbacks of
    ids that it does not know are remembered, so that a late prepare finds them.
    """

    def __init__(self) -> None:
        self.prepares: Counter[str] = Counter()
        self.held: dict[str, Any] = {}
        self.ended: dict[str, str] = {}
        self.commits: Counter[str] = Counter()
        self.refuse: Callable[[Any], bool] = lambda payload: payload == "no"
        self.wrongs: list[str] = []
        self.waits: asyncio.Event | None = None
        self.asked = asyncio.Event()

    def effects(self) -> list[tuple[str, str]]:
        return [(id, "committed") for id, count in self.commits.items() for _ in range(count)] + [
            (id, "rolled_back") for id, effect in self.ended.items() if effect == "rolled_back"
        ]

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_post("/prepare", self._prepare)
        application.router.add_post("/commit", self._commit)
        application.router.add_post("/rollback", self._rollback)
        return application

    async def _prepare(self, request: web.Request) -> web.Response:
        message = await request.json()
        id = message["transaction_id"]
        self.prepares[id] += 1
        self.asked.set()
        if self.waits is not None:
            await self.waits.wait()
        if id in self.ended or self.refuse(message["payload"]):
            return web.json_response(False)
        self.held[id] = message["payload"]
        return web.json_response(True)

    async def _commit(self, request: web.Request) -> web.Response:
        id = (await request.json())["transaction_id"]
        if self.ended.get(id) != "committed":
            if self.held.pop(id, None) is None:
                self.wrongs.append(f"{id} is committed and was not prepared")
            self.ended[id] = "committed"
            self.commits[id] += 1
        return web.Response()

    async def _rollback(self, request: web.Request) -> web.Response:
        id = (await request.json())["transaction_id"]
        if self.ended.get(id) == "committed":
            self.wrongs.append(f"{id} is rolled back and was committed")
        self.held.pop(id, None)
        self.ended[id] = "rolled_back"
        return web.Response()


@contextlib.asynccontextmanager
async def serving(application: web.Application) -> AsyncIterator[str]:
    """Serve the application on a free port; gives its URL."""
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
