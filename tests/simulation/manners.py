"""How services, and what stands in front of them, behave beside their contract.

| manner | what happens to a call |
|---|---|
| slow, hanging | it, or its answer, is late |
| error | it is answered 500 to 504, and nothing is done |
| lost answer | it is done, and the connection breaks |
| garbage | it is done, and answered with what is no answer |
| gave up | a proxy answers 502 to 504, or breaks the connection, and the call goes on behind it |
| refused end | for a while commits, rollbacks and batches are answered 404 or 409 |
| answered twice | the answer comes once more, for a request that nobody made |

A plain service says no more than `true`: a second one that came late would be taken for the vote of
another transaction, and nobody could tell. So only the SDK's answers, which carry their ids, come
again later; others come twice at once. The nodes' answers name what they are about, too, and come
again later (`light_server`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

HANGS_S = 30.0
TWICE = web.ResponseKey("comes again after so many seconds", float)
"""Set in a response; `light_server` sends it so."""


@dataclass(frozen=True, slots=True)
class Manners:
    """Shares of a service's calls, and times in seconds (drawn up to them, or around them)."""

    slow: float = 0.0
    slow_s: float = 0.0
    error: float = 0.0
    lost_answer: float = 0.0
    garbage: float = 0.0
    hanging: float = 0.0
    duplicate: float = 0.0
    duplicate_s: float = 0.0
    working: float = 0.0
    working_s: float = 0.0
    """A plain one answers a prepare "still working", and has done it so long after at most."""
    gave_up: float = 0.0
    goes_on_s: float = 0.0
    refused_end: float = 0.0
    refuses_s: float = 0.0
    twice: float = 0.0
    twice_s: float = 0.0


_STATUSES = (200, 202, 302, 307, 400, 403, 404, 418, 425, 429, 500, 503, 599)
_BODIES = (
    b"",
    b"<html>ok</html>",
    b'{"vote": "y',
    b"[]",
    b"null",
    b'"yes"',
    b"\xff\xfe\x00",
    b'{"vote": ["yes"]}',
    b'{"vote": "yes", "transaction_id": "another"}',
    b'{"transaction_id": 7, "state": "committed"}',
    b'{"results": [{}, 1]}',
    b"[" * 3_000,
    b"x" * 100_000,
)
"""None of them says yes or no to a prepare: a participant that lies about that breaks the contract.

A 2xx acknowledges an end, whatever its body is; it was carried out before this came in its place.
"""


class Front:
    """What stands before one start of a service's program: all its calls come through here.

    `is_plain`: who serves is not built on the SDK. `count`: told of what was done, by name.
    """

    def __init__(
        self,
        manners: Manners,
        draw: Random,
        *,
        is_plain: bool,
        faulty: Callable[[], bool],
        count: Callable[[str], None],
    ) -> None:
        self._manners = manners
        self._draw = draw
        self._is_plain = is_plain
        self._faulty = faulty
        self._count = count
        self._refuses_until = 0.0
        self._behind: set[asyncio.Task[None]] = set()

    def stand_before(self, application: web.Application) -> None:
        if self._manners != Manners():
            application.middlewares.append(self._middleware())

    def _middleware(self) -> Middleware:
        @web.middleware
        async def between(request: web.Request, handler: Handler) -> web.StreamResponse:
            return await self._between(request, handler)

        return between

    async def _between(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not self._faulty():
            return await handler(request)
        manners, draw = self._manners, self._draw
        if manners.slow and draw.random() < manners.slow:
            await asyncio.sleep(draw.random() * manners.slow_s)
        if manners.error and draw.random() < manners.error:
            return web.Response(status=draw.choice((500, 502, 503, 504)), text="no")
        if manners.gave_up and draw.random() < manners.gave_up:
            return await self._given_up(request, handler)
        if manners.refused_end and not request.path.endswith("/prepare"):
            refusal = await self._refused_end(request, handler)
            if refusal is not None:
                return refusal
        response = await handler(request)
        if manners.hanging and draw.random() < manners.hanging:
            await asyncio.sleep(HANGS_S)
        if manners.lost_answer and draw.random() < manners.lost_answer:
            _hang_up(request)
        elif response.status == 202:
            return response  # an error in its place would say that the work is over
        elif manners.garbage and draw.random() < manners.garbage:
            return self._nonsense(request)
        elif manners.twice and draw.random() < manners.twice:
            self._count("answers that came twice")
            late = not self._is_plain and draw.random() < 0.7
            response[TWICE] = draw.random() * manners.twice_s if late else 0.0
        return response

    async def _given_up(self, request: web.Request, handler: Handler) -> web.Response:
        """A proxy's answer; the call itself is done in its own time, and its answer is nobody's."""
        draw = self._draw
        await request.read()  # it has come whole; behind the answer nobody could read it any more
        self._count("calls that a proxy gave up")
        going_on = asyncio.create_task(self._go_on(request, handler))
        self._behind.add(going_on)
        going_on.add_done_callback(self._behind.discard)
        await asyncio.sleep(draw.random() * 0.1)
        if draw.random() < 0.3:
            _hang_up(request)
        return web.Response(status=draw.choice((502, 503, 504)), text="<html>gateway</html>")

    async def _go_on(self, request: web.Request, handler: Handler) -> None:
        await asyncio.sleep(self._draw.random() * self._manners.goes_on_s)
        await handler(request)
        self._count("calls done behind a proxy")

    async def _refused_end(self, request: web.Request, handler: Handler) -> web.Response | None:
        """404 or 409, for a while, as from one who has not found the service yet.

        A 404 says of a rollback that nothing is prepared. An SDK's branch inquires, if that is
        wrong; at a plain service it must be true.
        """
        draw, now = self._draw, asyncio.get_running_loop().time()
        if now >= self._refuses_until:
            if draw.random() >= self._manners.refused_end:
                return None
            self._refuses_until = now + draw.expovariate(1.0) * self._manners.refuses_s
        self._count("ends that were refused")
        status = draw.choice((404, 409))
        must_be_done = self._is_plain and status == 404 and request.path.endswith("/rollback")
        if must_be_done or draw.random() < 0.3:
            await handler(request)
        return web.Response(status=status, text="no such thing here")

    def _nonsense(self, request: web.Request) -> web.Response:
        """To a plain service's prepare no "still working": it would be asked for its vote again."""
        status = self._draw.choice(_STATUSES)
        if status in (202, 425) and self._is_plain and request.path.endswith("/prepare"):
            status = 201
        return web.Response(
            status=status,
            body=self._draw.choice(_BODIES),
            content_type=self._draw.choice(("application/json", "text/html")),
        )


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
