"""What stands before a simulated service: each of its manners is what it says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.simulation.light_client import LightConnector, LightSession
from tests.simulation.light_server import serving
from tests.simulation.loop import SimLoop
from tests.simulation.manners import Front, Manners
from tests.test_simulation import Pair, in_process, run


class Service(Pair):
    """A service with a front, and a client."""

    def __init__(self, loop: SimLoop, manners: Manners, *, is_plain: bool) -> None:
        super().__init__(loop)
        self.network.serving = serving
        self.loop = loop
        self.done: list[str] = []
        self.counts: Counter[str] = Counter()
        self.front = Front(
            manners,
            Random(1),
            is_plain=is_plain,
            faulty=lambda: True,
            count=lambda what: self.counts.update([what]),
        )

    async def serve(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            self.done.append(f"{request.path} {await request.text()}")
            return web.Response(text="true")

        application = web.Application()
        application.router.add_post("/{operation}", answer)
        self.front.stand_before(application)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.2", 80).start()

    async def asks(self, program: Callable[[LightSession], Awaitable[Any]]) -> None:
        async def asking() -> None:
            session = LightSession(connector=LightConnector())
            await program(session)
            await session.close()

        await in_process(self.loop, self.server, self.serve())
        await in_process(self.loop, self.client, asking())


async def post(session: LightSession, operation: str, text: str = "") -> int:
    url = f"http://127.0.0.2:80/{operation}"
    async with session.post(url, data=text.encode()) as response:
        return response.status


def fronted(
    manners: Manners,
    program: Callable[[Service, LightSession], Awaitable[None]],
    *,
    is_plain: bool = True,
) -> None:
    async def main(loop: SimLoop) -> None:
        service = Service(loop, manners, is_plain=is_plain)
        await service.asks(lambda session: program(service, session))

    run(main)


def test_behind_a_proxy_that_gave_up_the_call_goes_on() -> None:
    async def program(service: Service, session: LightSession) -> None:
        told = []
        for number in range(20):
            try:
                told.append(await post(session, "prepare", f"{number}"))
            except aiohttp.ClientConnectionError:
                told.append(0)
        assert set(told) == {0, 502, 503, 504}
        assert len(service.done) < 20
        await asyncio.sleep(9)
        assert sorted(service.done) == sorted(f"/prepare {number}" for number in range(20))

    fronted(Manners(gave_up=1.0, goes_on_s=8.0), program)


@pytest.mark.parametrize("is_plain", [True, False])
def test_ends_are_refused_and_a_404_to_a_plain_rollback_is_true(is_plain: bool) -> None:
    async def program(service: Service, session: LightSession) -> None:
        assert await post(session, "prepare") == 200
        missing = 0
        for number in range(30):
            status = await post(session, "rollback", f"{number}")
            assert status in (404, 409)
            if status == 404:
                missing += 1
                if is_plain:
                    assert service.done[-1] == f"/rollback {number}"
        assert 0 < missing < 30
        assert (len(service.done) - 1 < missing) is not is_plain

    fronted(Manners(refused_end=1.0, refuses_s=5.0), program, is_plain=is_plain)


def test_an_answer_of_a_plain_service_comes_twice_at_once_or_not_at_all() -> None:
    async def program(service: Service, session: LightSession) -> None:
        for _ in range(5):
            assert await post(session, "prepare") == 200
        assert service.counts["answers that came twice"] == 5
        assert service.network.connections == 1, "nothing came that nobody had asked for"

    fronted(Manners(twice=1.0, twice_s=5.0), program)


def test_an_answer_of_the_sdk_may_come_again_later() -> None:
    async def program(service: Service, session: LightSession) -> None:
        for _ in range(8):
            assert await post(session, "prepare") == 200
            await asyncio.sleep(6)
        assert service.counts["answers that came twice"] == 8
        assert service.network.connections > 1, "a connection that speaks unasked is not kept"

    fronted(Manners(twice=1.0, twice_s=5.0), program, is_plain=False)
