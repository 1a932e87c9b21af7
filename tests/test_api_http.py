"""How the API is carried over HTTP: connections, bodies, and what is no HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast

import pytest
import uvloop

from coordinator import api_connection, api_http, courier
from coordinator.admission import Rests, WaitingLine
from coordinator.api import Api
from coordinator.api_connection import Common
from coordinator.api_http import Server
from coordinator.http_connection import HttpConnection
from coordinator.settings import Limits
from tests.api_rig import PATIENCE_S, ApiNode, Closed, api_node, error_of, run
from tests.connection_rig import LARGE, FakeApi, Wire, read
from tests.test_http_connection import get

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
async def connected(
    **more: Any,
) -> AsyncIterator[tuple[ApiNode, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A node that leads, and a connection to it."""
    async with api_node(**more) as node:
        host, port = node.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield node, reader, writer
        finally:
            writer.close()


async def read_answer(
    reader: asyncio.StreamReader, *, has_body: bool = True
) -> tuple[str, dict[str, str], bytes]:
    """(status line, headers by their names in lower case, body) of the next answer."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    length = int(headers["content-length"]) if has_body else 0
    return first, headers, await reader.readexactly(length)


def test_a_connection_that_was_refused_for_load_rests_before_it_is_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class LongRests(Rests):
        def rest_s(self, now_s: float) -> float:  # noqa: ARG002
            return 1.3

    monkeypatch.setattr(api_connection, "Rests", LongRests)

    async def test() -> None:
        async with connected() as (node, reader, writer):
            loop = asyncio.get_running_loop()
            node.driver.line = WaitingLine(Closed())
            body = json.dumps(node.body()).encode()
            head = f"POST /v1/transactions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}"
            began_s = loop.time()
            writer.write(get("/healthz") + f"{head}\r\n\r\n".encode() + body + get("/healthz"))
            assert "200" in (await read_answer(reader))[0]
            first, headers, _ = await read_answer(reader)
            assert ("429" in first, headers["retry-after"]) == (True, "2")
            assert "200" in (await read_answer(reader))[0]
            assert loop.time() - began_s >= 1.3

    run(test())


def test_who_is_refused_for_the_sake_of_one_participant_need_not_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoRests(Rests):
        def rest_s(self, now_s: float) -> float:
            raise AssertionError(now_s)

    monkeypatch.setattr(api_connection, "Rests", NoRests)

    async def test() -> None:
        limits = Limits(unfinished_per_participant=1)
        async with connected(limits=limits) as (node, reader, writer):
            await node.post("/v1/transactions", node.body("down", wait="none"))
            body = json.dumps(node.body("down")).encode()
            head = f"POST /v1/transactions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\n\r\n".encode() + body)
            assert "429" in (await read_answer(reader))[0]
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert "200" in (await read_answer(reader))[0]

    run(test())


def test_a_follower_says_where_the_leader_is_before_it_asks_for_a_large_body() -> None:
    async def test() -> None:
        async with connected() as (node, reader, writer):
            node.log.stop_leading()
            node.log.leader = "n2"
            head = "POST /v1/transactions HTTP/1.1\r\nHost: h\r\nContent-Length: 9000000"
            writer.write(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
            first, headers, _ = await read_answer(reader)
            assert "307" in first, "and not 100 Continue"
            assert headers["location"].startswith(node.apis["n2"])

    run(test())


@pytest.mark.parametrize("what", NO_HTTP)
def test_what_is_no_http_is_answered_in_the_one_shape(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with connected() as (_, reader, writer):
            writer.write(NO_HTTP[what])
            answered = await reader.read()  # to the end: the connection is closed
            head, body = answered.rsplit(b"\r\n\r\n", 1)
            assert re.search(rb"HTTP/1\.[01] 400 Bad Request", head)
            assert b"application/json" in head
            error = error_of(json.loads(body))
            assert error["code"] == "bad_request"
            assert len(error["message"]) < 300

    with caplog.at_level(logging.DEBUG):
        run(test())
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_connection_serves_many_requests_also_such_as_wait_in_line() -> None:
    async def test() -> None:
        async with connected() as (_, reader, writer):
            for _ in range(2):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" * 3)
                for _ in range(3):
                    first, headers, body = await read_answer(reader)
                    assert first == "HTTP/1.1 200 OK"
                    assert (headers["content-type"], body) == (
                        "application/json",
                        b'{"status":"ok"}',
                    )
                    assert "connection" not in headers
                    age = datetime.now(UTC) - parsedate_to_datetime(headers["date"])
                    assert abs(age.total_seconds()) < 60

    run(test())


@pytest.mark.parametrize(
    ("head", "stays", "said"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: close", False, "close"),
        (b"GET /healthz HTTP/1.0", False, "close"),
        (b"GET /healthz HTTP/1.0\r\nConnection: keep-alive", True, "keep-alive"),
        (b"GET http://elsewhere/healthz HTTP/1.1\r\nHost: elsewhere", True, None),
        (b"GET /healthz#part HTTP/1.1\r\nHost: h", True, None),
    ],
)
def test_a_connection_stays_as_long_as_the_client_asked(
    head: bytes, stays: bool, said: str | None
) -> None:
    async def test() -> None:
        async with connected() as (_, reader, writer):
            writer.write(head + b"\r\n\r\n")
            first, headers, _ = await read_answer(reader)
            assert (first, headers.get("connection")) == ("HTTP/1.1 200 OK", said)
            if stays:
                writer.write(head + b"\r\n\r\n")
                await read_answer(reader)
            else:
                assert await reader.read() == b""

    run(test())


def test_head_is_answered_without_the_body_and_with_its_length() -> None:
    async def test() -> None:
        async with connected() as (_, reader, writer):
            for _ in range(2):
                writer.write(b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                first, headers, _ = await read_answer(reader, has_body=False)
                assert (first, headers["content-length"]) == ("HTTP/1.1 200 OK", "15")

    run(test())


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_connection, "BODY_TIMEOUT_S", 0.01)

    async def test() -> None:
        async with connected() as (_, reader, writer):
            head = b"POST /v1/transactions HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n{"
            writer.write(head)
            first, headers, body = await read_answer(reader)
            assert (first, headers["connection"]) == ("HTTP/1.1 408 Request Timeout", "close")
            assert error_of(json.loads(body))["code"] == "body_timeout"

    run(test())


@pytest.mark.parametrize("leader", ["n2", None])
def test_a_node_that_does_not_lead_says_so_before_the_body_has_come(leader: str | None) -> None:
    async def test() -> None:
        async with connected() as (node, reader, writer):
            node.log.follow(leader)
            head = b"POST /v1/transactions HTTP/1.1\r\nHost: h\r\nContent-Length: 10000000\r\n\r\n"
            writer.write(head)
            first, _, _ = await read_answer(reader)
            assert first.split()[1] == ("307" if leader else "503")

    run(test())


def test_a_body_that_is_announced_too_large_is_not_waited_for() -> None:
    async def test() -> None:
        async with connected(limits=Limits(body_bytes=100, batch_body_bytes=200)) as (_, r, writer):
            for path, limit in (("", 200), ("/t-1/resolve", 100), ("/t-1/retry", 100)):
                head = f"POST /v1/transactions{path} HTTP/1.1\r\nHost: h\r\nContent-Length: "
                writer.write(f"{head}{limit + 1}\r\n\r\n".encode())
                first, _, body = await read_answer(r)
                assert first.startswith("HTTP/1.1 413")
                assert error_of(json.loads(body))["details"] == {"limit_bytes": limit}
                writer.write(b" " * (limit + 1))  # it is read and thrown away

    run(test())


def test_no_header_can_be_smuggled_into_an_answer() -> None:
    """The parser lets no control character pass; if one comes all the same, nothing is sent."""

    async def test() -> None:
        async with connected() as (node, reader, writer):
            node.apis["n2"] = "http://h\r\nSet-Cookie: a=b"
            node.log.follow("n2")
            writer.write(b"GET /v1/transactions HTTP/1.1\r\nHost: h\r\n\r\n")
            answered = await reader.read()
            assert b"Set-Cookie" not in answered

    run(test())


def test_a_client_that_is_gone_before_its_request_has_begun_does_no_harm() -> None:
    """A coroutine that is cancelled before its first step complains that it was never awaited."""

    async def test() -> None:
        async with api_node() as node:
            connection, wire = HttpConnection(Common(node.api, most=1)), Wire()
            connection.connection_made(wire)
            connection.data_received(get("/v1/transactions/t-1"))
            connection.connection_lost(None)
            for _ in range(5):
                await asyncio.sleep(0)
            assert wire.written == b""
            await node.passes()

    run(test())


@pytest.mark.parametrize(("files", "most"), [(64, 16), (400, 100), (1_024, 384), (20_000, 9_872)])
def test_clients_leave_files_to_participants_and_to_the_log(
    files: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle clients alone used up a node's files; it could not write its log then, and ended."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert api_http.most_clients() == most
    assert most + courier.most_connections() < files


# --- sockets, with both event loops


def run_fast(test: Coroutine[Any, Any, None], loop_factory: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(asyncio.wait_for(test, PATIENCE_S))


LOOPS = pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])


@asynccontextmanager
async def served(
    shutdown_timeout_s: float = PATIENCE_S,
) -> AsyncIterator[tuple[Server, FakeApi, int]]:
    """A server, its API, its port."""
    api = FakeApi()
    server = Server(cast("Api", api), shutdown_timeout_s=shutdown_timeout_s)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, api, port
    finally:
        await server.stop()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@LOOPS
def test_a_request_under_way_is_answered_when_the_server_stops(
    loop_factory: Callable[[], Any],
) -> None:
    async def test() -> None:
        async with served() as (server, api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/later"))
            await until(lambda: api.under_way)
            stopping = asyncio.create_task(server.stop())
            assert await idle.read() == b"", "at once"
            with pytest.raises(OSError, match=r"Connect call failed|refused"):
                await asyncio.open_connection("127.0.0.1", port)
            assert not stopping.done()
            api.go_on()
            first, headers, _ = await read_answer(reader)
            assert (first, headers["connection"]) == ("HTTP/1.1 200 OK", "close")
            assert await reader.read() == b""
            await stopping
            for each in (writer, idle_writer):
                each.close()

    run_fast(test(), loop_factory)


def test_what_has_arrived_when_the_server_stops_is_answered() -> None:
    async def test() -> None:
        async with served() as (server, api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get())
            await read_answer(reader)
            writer.write(get("/later"))  # it is in the server's kernel now
            stopping = asyncio.create_task(server.stop())
            await until(lambda: api.under_way)
            api.go_on()
            assert (await read_answer(reader))[0] == "HTTP/1.1 200 OK"
            await stopping
            writer.close()

    run(test())


@LOOPS
def test_a_server_that_stops_waits_only_so_long(loop_factory: Callable[[], Any]) -> None:
    async def test() -> None:
        async with served(shutdown_timeout_s=0.01) as (server, api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/later"))
            await until(lambda: api.under_way)
            ((_, future),) = api.under_way
            await server.stop()
            assert not server._common.connections
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            await until(future.cancelled)
            writer.close()

    run_fast(test(), loop_factory)


@LOOPS
def test_a_client_that_has_ended_its_direction_is_answered(
    loop_factory: Callable[[], Any],
) -> None:
    async def test() -> None:
        async with served() as (_, api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/later?1") + get("/later?2"))
            writer.write_eof()
            for _ in range(2):
                await until(lambda: api.under_way)
                api.go_on()
            answers = read(await reader.read())
            assert [answer.asked[2] for answer in answers] == ["1", "2"]
            writer.close()

    run_fast(test(), loop_factory)


@LOOPS
def test_what_a_client_waited_for_is_let_go_of_when_it_is_gone(
    loop_factory: Callable[[], Any],
) -> None:
    async def test() -> None:
        async with served() as (server, api, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(get("/later"))
            await until(lambda: api.under_way)
            ((_, future),) = api.under_way
            linger = struct.pack("ii", 1, 0)  # a reset, not an end
            client = writer.get_extra_info("socket")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            await until(lambda: not server._common.connections)
            await until(future.cancelled)

    run_fast(test(), loop_factory)


@LOOPS
def test_a_client_that_does_not_read_is_not_answered_for_ever(
    loop_factory: Callable[[], Any],
) -> None:
    async def test() -> None:
        async with served() as (server, api, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            asked = 400
            writer.write(get("/large") * asked)  # 40 MB
            await until(lambda: any(each._is_full for each in server._common.connections))
            for _ in range(100):
                await asyncio.sleep(0)
            assert 0 < len(api.asked) < asked
            (connection,) = server._common.connections
            assert connection._transport.get_write_buffer_size() < 300_000
            reader._transport.resume_reading()  # type: ignore[attr-defined]
            for _ in range(asked):
                first, _, body = await read_answer(reader)
                assert (first, len(body)) == ("HTTP/1.1 200 OK", LARGE)
            writer.close()

    run_fast(test(), loop_factory)


@LOOPS
def test_many_connections_are_served_beside_each_other(loop_factory: Callable[[], Any]) -> None:
    async def test() -> None:
        async with served() as (server, api, port):
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
            for number, (_, writer) in enumerate(connections):
                writer.write(get(f"/{'later' if number % 2 else 'now'}?{number}"))
            await until(lambda: len(api.asked) == 300)
            api.go_on()
            for number, (reader, writer) in enumerate(connections):
                _, _, body = await read_answer(reader)
                assert json.loads(body)["asked"][2] == str(number)
                writer.close()
            await until(lambda: not server._common.connections)

    run_fast(test(), loop_factory)


@LOOPS
def test_an_error_reaches_a_client_that_is_still_sending(loop_factory: Callable[[], Any]) -> None:
    """A connection closed with unread bytes is reset, and the answer thrown away with it."""

    async def test() -> None:
        async with served() as (_, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1_000_000)
            (answer,) = read(await reader.read())
            assert (answer.status, answer.code) == (400, "bad_request")
            writer.close()

    run_fast(test(), loop_factory)
