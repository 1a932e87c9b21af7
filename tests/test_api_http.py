"""What is no HTTP is answered in the API's own shape, and fills no log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from coordinator.api_http import Runner, answer_errors
from tests.api_rig import error_of, run

NO_HTTP = {
    "no request line": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
    "another version": b"GET / HTTP/9.9\r\n\r\n",
    "a header without a colon": b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    "a long header": b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
    "a long path": b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length that is none": b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    "a second request that is none": b"GET / HTTP/1.1\r\nHost: h\r\n\r\nhello\r\n\r\n",
}


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({})

    application = web.Application(middlewares=[answer_errors])
    application.router.add_get("/", answer)
    runner = Runner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        await web.SockSite(runner, listening).start()
        yield listening.getsockname()[:2]
    finally:
        await runner.cleanup()
        listening.close()


@pytest.mark.parametrize("what", NO_HTTP)
def test_what_is_no_http_is_answered_in_the_one_shape(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(NO_HTTP[what])
            answered = await reader.read()  # to the end: the connection is closed
            writer.close()
            head, body = answered.rsplit(b"\r\n\r\n", 1)
            assert re.search(rb"HTTP/1\.[01] 400 Bad Request", head)
            assert b"application/json" in head
            error = error_of(json.loads(body))
            assert error["code"] == "bad_request"
            assert len(error["message"]) < 300

    with caplog.at_level(logging.DEBUG):
        run(test())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_the_runner_serves_as_any_other() -> None:
    async def test() -> None:
        async with serving() as (host, port):
            reader, writer = await asyncio.open_connection(host, port)
            for _ in range(2):
                writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
                assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
                await reader.readuntil(b"\r\n\r\n{}")
            writer.close()

    run(test())
