"""HTTP as messages: the same exceptions, repeats and connections as with aiohttp; and campaigns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.checker import Violation
from tests.simulation import campaign as campaign_module
from tests.simulation import cli
from tests.simulation.campaign import MAX_LISTED, Campaign
from tests.simulation.light_client import LightConnector, LightSession
from tests.simulation.light_server import serving
from tests.simulation.loop import SimLoop
from tests.simulation.network import SimNetwork
from tests.simulation.run import Result
from tests.test_simulation import Pair, in_process, run

URL = "http://127.0.0.2:80"


class Web(Pair):
    """A client and a server; `asked` counts what the server was asked."""

    def __init__(self, loop: SimLoop, *, keep_s: float = 15.0) -> None:
        super().__init__(loop)
        self.network.serving = serving
        self.loop = loop
        self.keep_s = keep_s
        self.asked = 0

    async def serve(self) -> None:
        async def answer(request: web.Request) -> web.Response:
            self.asked += 1
            if request.path == "/there":
                raise web.HTTPTemporaryRedirect("/echo?redirected=1")
            if request.path == "/slow":
                await asyncio.sleep(5)
            text = f"{request.method} {request.path_qs} {await request.text()}"
            return web.Response(text=text, headers={"X-Length": str(request.content_length)})

        application = web.Application()
        application.router.add_route("*", "/{path:echo|slow|there}", answer)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.2", 80).start()

    async def asks(self, program: Callable[[LightSession], Awaitable[Any]]) -> None:
        """Serve, then run `program` on the client's machine."""

        async def asking() -> None:
            session = LightSession(connector=LightConnector(keepalive_timeout=self.keep_s))
            await program(session)
            await session.close()

        await in_process(self.loop, self.server, self.serve())
        await in_process(self.loop, self.client, asking())
        self.server.alive = True  # the end of the test: let all that is left of it end in order
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    def kill(self) -> None:
        self.server.alive = False
        self.far.hang_up(self.server, silently=False, draw=Random(3))


async def ask(session: LightSession, method: str, path: str, **named: Any) -> tuple[int, str]:
    async with session.request(method, URL + path, **named) as response:
        return response.status, (await response.read()).decode()


def test_a_request_reaches_the_handler_and_its_answer_comes_back() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Web(loop)

        async def program(session: LightSession) -> None:
            assert await ask(session, "POST", "/echo?a=1", data=b"body") == (
                200,
                "POST /echo?a=1 body",
            )
            assert await ask(session, "GET", "/there") == (200, "GET /echo?redirected=1 ")
            assert (await ask(session, "GET", "/there", allow_redirects=False))[0] == 307
            assert (await ask(session, "GET", "/nowhere"))[0] == 404

        await pair.asks(program)
        assert pair.network.connections == 1, "the connection is kept"

    run(main)


def test_a_connection_that_was_idle_for_too_long_is_not_used_again() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Web(loop, keep_s=1.0)

        async def program(session: LightSession) -> None:
            await ask(session, "GET", "/echo")
            await asyncio.sleep(0.5)
            await ask(session, "GET", "/echo")
            assert pair.network.connections == 1
            await asyncio.sleep(2)
            assert not pair.near.endpoints
            await ask(session, "GET", "/echo")
            assert pair.network.connections == 2

        await pair.asks(program)

    run(main)


def test_a_request_under_way_fails_when_the_server_dies() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Web(loop)
        loop.call_at(2.0, pair.kill)

        async def program(session: LightSession) -> None:
            with pytest.raises((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError)):
                await ask(session, "POST", "/slow", data=b"once")
            with pytest.raises(aiohttp.ClientConnectorError):
                await ask(session, "POST", "/echo", data=b"again")

        await pair.asks(program)
        assert pair.asked == 1

    run(main)


def test_only_what_may_be_repeated_is_sent_again_over_a_new_connection() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Web(loop)

        def break_all() -> None:
            for endpoint in pair.network.endpoints():
                endpoint.reset()

        async def program(session: LightSession) -> None:
            loop.call_later(2, break_all)
            assert (await ask(session, "GET", "/slow"))[0] == 200
            assert pair.asked == 2
            loop.call_later(2, break_all)
            with pytest.raises(aiohttp.ClientConnectionError):
                await ask(session, "POST", "/slow", data=b"once")
            assert pair.asked == 3

        await pair.asks(program)

    run(main)


def test_a_request_ends_with_its_time_and_so_does_its_connection() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Web(loop)

        async def program(session: LightSession) -> None:
            began = loop.time()
            with pytest.raises(TimeoutError):
                await ask(session, "GET", "/slow", timeout=aiohttp.ClientTimeout(total=1))
            assert loop.time() - began == pytest.approx(1, abs=0.01)
            await asyncio.sleep(0.1)
            assert not pair.near.endpoints

        await pair.asks(program)

    run(main)


@pytest.mark.parametrize("url", ["ftp://127.0.0.2/", "http://", "not a url", "http://a:b:c/"])
def test_a_url_that_is_none_is_refused_as_aiohttp_refuses_it(url: str) -> None:
    async def main(loop: SimLoop) -> None:
        loop.network = SimNetwork(loop, Random(1))
        with pytest.raises((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError)):
            await LightSession().get(url)

    run(main)


# --- campaigns ------------------------------------------------------------------------------------


def result(seed: int, *texts: str) -> Result:
    violations = tuple(Violation("I1", "t", 1.0, text) for text in texts)
    counts = {"kills": 2, "power losses": 1}
    return Result(seed, "", violations, 10.0, 0.5, 7, 9, counts, float(seed))


def test_a_campaign_adds_up_and_does_not_grow(tmp_path: Path) -> None:
    campaign = Campaign("0-499", 1, tmp_path / "row.json")
    for seed in range(500):
        campaign.add(result(seed, "split"))
    campaign.save()
    row = json.loads((tmp_path / "row.json").read_text())
    assert (row["seeds"], row["seeds with violations"]) == (500, 500)
    assert (row["simulated s"], row["cpu s"], row["longest settle s"]) == (5000.0, 250.0, 499.0)
    assert row["counts"] == {"kills": 1000, "power losses": 500}
    assert len(row["violations"]) == MAX_LISTED
    assert "processes ended 1500, of them by power loss 500" in campaign.summary()


def test_a_campaign_names_the_commit_that_it_began_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_module, "_commit", lambda: "first")
    campaign = Campaign("0-0", 1, None)
    monkeypatch.setattr(campaign_module, "_commit", lambda: "second")
    assert campaign.row()["commit"] == "first"


def test_a_seed_that_breaks_the_simulation_counts_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: int) -> Result:
        raise RuntimeError("broken")

    monkeypatch.setattr(cli, "run_seed", fails)
    assert cli.main(["run", "--seeds", "7"]) == 1
    printed = capsys.readouterr().out
    assert "python -m tests.simulation replay --seed 7 -v" in printed
    assert "RuntimeError('broken')" in printed
