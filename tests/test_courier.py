"""The courier over real sockets, behind a gateway: what all that a participant may do becomes."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from typing import Any

import pytest

from coordinator import participant_connections, resolver
from coordinator.courier import Answer, Delivery, _Errand
from coordinator.gateway import Gateway
from coordinator.participant_connection import Broken, Connection, Origin
from coordinator.participant_connections import Connections
from coordinator.settings import Timings
from participants.contract import (
    DECLARATION_HEADER,
    Acknowledged,
    Failed,
    Operation,
    Vote,
    Voted,
    Working,
)
from tests.calling import ask, call_for, failed, run
from tests.stubs import (
    Behaviour,
    Received,
    Stub,
    answer,
    answer_and_close,
    bound_socket,
    close,
    endless,
    hang,
    in_turn,
    reset,
    response,
    send,
    url_of,
)

PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK
YES, NO = answer(b"true"), answer(b"false")
DECLARED = {DECLARATION_HEADER: "1; repeatable-prepare; inquiry; batch=/batch"}


def answer_to(
    behaviour: Behaviour, operation: Operation = PREPARE, *, within: float = 20.0
) -> Answer:
    """What a call to a participant that behaves so becomes; commits are given up after a moment."""
    given: list[Answer] = []

    async def scenario(gateway: Gateway) -> None:
        async with Stub(behaviour) as stub:
            given.append(await ask(gateway, stub.url, operation, within=within))

    run(scenario, timings=Timings(call_timeout_ms=1_000))
    return given[0]


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (YES, Voted(Vote.YES)),
        (NO, Voted(Vote.NO, "the participant answered false")),
        (answer(b'{"vote":"read_only"}'), Voted(Vote.READ_ONLY)),
        (answer(b'{"vote":"no","reason":"sold out"}'), Voted(Vote.NO, "sold out")),
        (answer(b'{"reason":"taken"}', 409), Voted(Vote.NO, "taken")),
        (answer(b"", 425, {"Retry-After": "3"}), Working(3_000)),
        (answer(b"", 202), Working(None)),
    ],
)
def test_a_prepare_is_answered_as_the_contract_says(behaviour: Behaviour, expected: Answer) -> None:
    assert answer_to(behaviour) == expected


def test_the_end_of_the_connection_may_end_an_answer_without_a_length() -> None:
    async def old(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\ntrue")
        writer.close()

    assert answer_to(old) == Voted(Vote.YES)


@pytest.mark.parametrize(
    ("behaviour", "operation", "acknowledged"),
    [
        (answer(b""), COMMIT, True),
        (answer(b"", 204), COMMIT, True),
        (answer(b"<html>done</html>"), COMMIT, True),
        (answer(b"x" * 10_000_000), COMMIT, True),
        (answer(b"false"), COMMIT, True),
        (answer(b"", 404), ROLLBACK, True),
        (answer(b"", 404), COMMIT, False),
        (answer(b"", 409), COMMIT, False),
        (answer(b"oops", 500), COMMIT, False),
        (answer(b"", 302, {"Location": "/elsewhere"}), COMMIT, False),
        (answer(b'{"transaction_id":"another"}'), COMMIT, False),
        (answer(b'{"answers":["committed another/1"]}', 200, DECLARED), COMMIT, False),
        (answer(b"x" * 10_000_000, 200, DECLARED), COMMIT, False),
        (answer(b"<html>done</html>", 200, DECLARED), COMMIT, True),
        (close, COMMIT, False),
        (reset, ROLLBACK, False),
        (hang, COMMIT, False),
    ],
)
def test_a_commit_or_rollback_is_acknowledged_by_any_2xx_that_is_meant_for_it(
    behaviour: Behaviour, operation: Operation, acknowledged: bool
) -> None:
    assert isinstance(answer_to(behaviour, operation), Acknowledged if acknowledged else Failed)


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        (answer(b"it broke", 500), "answered 500"),
        (answer(b"<html><body>true</body></html>"), "without a vote"),
        (answer(b'{"vote":"yes","transaction_id":"another"}'), "another transaction"),
        (answer(b"true" + b" " * 10_000_000), "more than 65536 bytes"),
        (answer(gzip.compress(b"true"), headers={"Content-Encoding": "gzip"}), "without a vote"),
        (endless(response(b"")[:15] + b"\r\n\r\n", b"x" * 50_000), "more than 65536 bytes"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X-Bomb: " + b"x" * 500 + b"\r\n"), "not HTTP"),
        (endless(b"HTTP/1.1 200 OK\r\nX-Bomb: ", b"x" * 5_000), "not HTTP"),
        (send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "not HTTP"),
        (send(b"\x00\x01\x02\xff" * 100 + b"\r\n\r\n"), "not HTTP"),
        (send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\ntrue\r\n"), "HTTP"),
    ],
)
def test_a_useless_answer_to_a_prepare_is_a_failure_that_may_have_arrived(
    behaviour: Behaviour, says: str
) -> None:
    given = failed(answer_to(behaviour))
    assert says in given.what
    assert "\n" not in given.what
    assert given.arrived
    assert not given.broken


@pytest.mark.parametrize("behaviour", [close, reset], ids=["close", "reset"])
def test_a_connection_that_ends_without_an_answer_is_broken(behaviour: Behaviour) -> None:
    given = failed(answer_to(behaviour))
    assert given.arrived
    assert given.broken
    assert not given.answered


def test_a_connection_that_ends_in_the_middle_of_an_answer_is_broken() -> None:
    async def half(_received: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\ntrue")
        writer.close()

    given = failed(answer_to(half))
    assert (given.arrived, given.broken) == (True, True)


@pytest.mark.parametrize(
    "behaviour",
    [
        hang,
        endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.02),
        endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", 0.02),
    ],
    ids=["silence", "a body that drips", "a head that drips"],
)
def test_what_does_not_end_is_ended_by_the_deadline(behaviour: Behaviour) -> None:
    given = failed(answer_to(behaviour, within=0.3))
    assert given == Failed("no answer in time", arrived=True)


def test_interim_responses_without_end_are_ended_before_the_deadline() -> None:
    given = failed(answer_to(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0), within=30.0))
    assert "interim responses" in given.what
    assert given.arrived


def test_a_redirect_is_not_followed() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as elsewhere, Stub(NO) as stub:
            stub.behaviour = answer(b"", 302, {"Location": f"{elsewhere.url}/prepare"})
            assert "302" in failed(await ask(gateway, stub.url)).what
            assert elsewhere.received == []

    run(scenario)


def test_a_cookie_is_not_kept() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(answer(b"true", headers={"Set-Cookie": "a=b"})) as stub:
            await ask(gateway, stub.url)
            await ask(gateway, stub.url)
            assert all("cookie" not in received.headers for received in stub.received)

    run(scenario)


def test_a_request_is_json_and_carries_the_trace() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            call, answered = call_for(stub.url)
            call.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            gateway.begin(call)
            sent_s = call.sent_s
            await answered
            assert call.sent_s == sent_s is not None
            await ask(gateway, stub.url)
            first, second = stub.received
            assert first.path == "/prepare"
            assert first.body == json.loads(call.body)
            assert first.headers["content-type"] == "application/json"
            assert first.headers["content-length"] == str(len(call.body))
            assert first.headers["user-agent"].startswith("assent")
            assert first.headers["traceparent"] == call.traceparent
            assert "traceparent" not in second.headers

    run(scenario)


# --- before anything is sent ----------------------------------------------------------------------


def test_what_surely_was_not_sent_has_not_arrived() -> None:
    async def scenario(gateway: Gateway) -> None:
        with bound_socket() as held:
            for url in (
                url_of(held),  # refused
                "http://participant.invalid",  # RFC 2606: no such name, ever
                "http://" + "a" * 80 + ".invalid",
                "http://",
                "http://[::1",
                "ftp://127.0.0.1",
                "http://127.0.0.1:99999",
                "not a url at all",
                "",
            ):
                for operation in (PREPARE, COMMIT):
                    given = failed(await ask(gateway, url, operation))
                    assert not given.arrived, (url, given)
                    assert not given.broken

    run(scenario)


def test_a_name_that_is_looked_up_for_ever_delays_no_other_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = threading.Event()
    look_up = resolver._addresses

    def silent(host: str, port: int) -> Any:
        if host == "silent.invalid":
            answers.wait(30)
        return look_up(host, port)

    monkeypatch.setattr(resolver, "_addresses", silent)

    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            waiting = [call_for(f"http://silent.invalid:{port}") for port in range(1, 21)]
            for call, _ in waiting:
                gateway.begin(call)
            by_name = stub.url.replace("127.0.0.1", "localhost")
            assert await ask(gateway, by_name) == Voted(Vote.YES)
            assert not any(answered.done() for _, answered in waiting)
            await gateway.stop()  # which waits for no name server either
            assert all(isinstance(answered.result(), Failed) for _, answered in waiting)

    try:
        run(scenario)
    finally:
        answers.set()


def test_an_end_goes_again_once_though_the_next_connection_has_been_used_too() -> None:
    """When all places are taken the next is one that another message has left."""

    async def scenario(gateway: Gateway) -> None:
        told: list[Delivery] = []
        courier = gateway._courier
        call, _ = call_for("http://127.0.0.1:1", COMMIT)
        errand = _Errand(courier, (call,), call.body, 1_000, call.end_s, told.append)
        courier._errands[errand] = None
        errand.left = errand.over_used = errand.again = True
        courier.failed(errand, Broken(begun=False))
        assert errand.dialing is None
        assert [failed(given).broken for each in told for given in each.answers] == [True]

    run(scenario)


def test_a_gateway_that_stops_closes_what_is_kept_and_leaves_no_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(participant_connections, "IDLE_S", 3_600)

    async def scenario(gateway: Gateway) -> None:
        ended: asyncio.Queue[bytes] = asyncio.Queue()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response(b"true"))
            while await reader.read(1_000):
                pass
            ended.put_nowait(b"")
            writer.close()

        server = await asyncio.start_server(serve, sock=(listener := bound_socket()))
        for operation in (PREPARE, COMMIT):
            assert not isinstance(await ask(gateway, url_of(listener), operation), Failed)
        courier = gateway._courier
        kept = [*courier._to_prepare._open, *courier._to_end._open]
        assert all(connection._timer for connection in kept)
        await gateway.stop()
        assert [connection._timer for connection in kept] == [None, None]
        await ended.get()
        await ended.get()
        server.close()
        await server.wait_closed()

    run(scenario)


def test_a_failed_tls_handshake_has_not_arrived() -> None:
    async def scenario(gateway: Gateway) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)
            writer.write(b"HTTP/1.1 400 This is not TLS\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        given = failed(await ask(gateway, url_of_server(server).replace("http:", "https:")))
        assert given.what.startswith("TLS failed")
        assert not given.arrived
        server.close()
        await server.wait_closed()

    run(scenario)


def test_a_participant_that_does_not_read_holds_nothing_after_the_deadline() -> None:
    async def scenario(gateway: Gateway) -> None:
        may_read = asyncio.Event()
        read: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await may_read.wait()
            count = 0
            try:
                while piece := await reader.read(65_536):
                    count += len(piece)
            except ConnectionError:
                pass
            writer.close()
            read.set_result(count)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        body = (
            b'"' + b"x" * 30_000_000 + b'"'
        )  # more than the kernel takes for a reader that sleeps
        call, answered = call_for(url_of_server(server), within=0.5, body=body)
        gateway.begin(call)
        assert failed(await answered).arrived
        may_read.set()
        assert await read < len(body)  # what was still to be sent was thrown away
        server.close()
        await server.wait_closed()

    run(scenario)


def url_of_server(server: asyncio.Server) -> str:
    return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


# --- connections that are used again --------------------------------------------------------------


def test_a_connection_is_used_again() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            for _ in range(20):
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
            assert stub.connections < 20

    run(scenario)


def test_a_server_that_closes_after_every_answer_fails_no_prepare() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(answer_and_close(b"true")) as stub:
            for count in range(1, 101):
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
                assert len(stub.received) == count

    run(scenario)


def test_a_connection_that_ends_at_the_last_moment_is_not_used_for_a_prepare(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end is in the kernel, and the event loop has had no chance to see it."""

    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            is_quiet = Connection.is_quiet
            ended: list[bool] = []

            def hang_up_first(connection: Connection) -> bool:
                stub.hang_up()
                assert connection.is_open
                ended.append(True)
                return is_quiet(connection)

            monkeypatch.setattr(Connection, "is_quiet", hang_up_first)
            while not ended:
                stub.received.clear()
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
                assert len(stub.received) == 1

    run(scenario)


def test_a_message_whose_new_connection_ends_before_it_has_not_arrived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Connections.made

    async def ended(connections: Connections, origin: Origin) -> Connection:
        connection = await made(connections, origin)
        connection.abort()
        return connection

    async def scenario(gateway: Gateway) -> None:
        async with Stub(YES) as stub:
            with monkeypatch.context() as patch:
                patch.setattr(Connections, "made", ended)
                assert not failed(await ask(gateway, stub.url)).arrived
            assert await ask(gateway, stub.url) == Voted(Vote.YES)
            assert len(stub.received) == 1

    run(scenario)


def test_a_kept_connection_is_quiet_only_while_it_brings_nothing() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        _, connection = await loop.create_connection(
            lambda: Connection(loop, lambda _: ended.set()), sock=ours
        )
        with theirs:
            connection.used = True
            assert connection.is_quiet()
            theirs.send(b"x")
            assert connection.is_open  # the event loop has not read it yet
            assert not connection.is_quiet()
            await ended.wait()
            assert not connection.is_open
            assert not connection.is_quiet()

    asyncio.run(main())


def test_a_prepare_that_may_have_arrived_is_never_sent_twice() -> None:
    async def scenario(gateway: Gateway) -> None:
        for ending in (close, reset):
            async with Stub(in_turn(YES, ending, YES)) as stub:
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
                given = failed(await ask(gateway, stub.url))
                assert (given.arrived, given.broken) == (True, True)
                assert len(stub.received) == 2

    run(scenario)


def test_a_commit_whose_reused_connection_breaks_is_sent_again_at_once() -> None:
    async def scenario(gateway: Gateway) -> None:
        for ending in (close, reset):
            connections: list[int] = []
            while len(connections) < 3 or connections[0] != connections[1]:  # until it was reused
                async with Stub(in_turn(answer(b""), ending, answer(b""))) as stub:
                    assert await ask(gateway, stub.url, COMMIT) == Acknowledged()
                    given = await ask(gateway, stub.url, COMMIT)
                    connections = [received.connection for received in stub.received]
                    assert isinstance(given, Acknowledged) or len(connections) == 2
            assert given == Acknowledged()

    run(scenario)


def test_a_commit_whose_new_connection_breaks_has_failed() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(close) as stub:
            failed(await ask(gateway, stub.url, COMMIT))
            assert len(stub.received) == 1

    run(scenario)


def test_an_answer_that_nobody_asked_for_is_not_taken_for_a_vote() -> None:
    """A participant that answers twice: its second "true" must not become the next branch's YES."""

    async def scenario(gateway: Gateway) -> None:
        for look_early in (True, False):
            now, sent = asyncio.Event(), asyncio.Event()

            async def twice(
                _received: Received,
                writer: asyncio.StreamWriter,
                now: asyncio.Event = now,
                sent: asyncio.Event = sent,
            ) -> None:
                writer.write(response(b"true"))
                await now.wait()
                writer.write(response(b"true"))
                sent.set()

            async with Stub(in_turn(twice, NO)) as stub:
                assert await ask(gateway, stub.url) == Voted(Vote.YES)
                now.set()
                await sent.wait()
                if look_early:  # the event loop has read it; else it is only in the kernel
                    for _ in range(10):
                        await asyncio.sleep(0)
                given = await ask(gateway, stub.url)
                assert isinstance(given, Voted)
                assert given.vote is Vote.NO
                assert len(stub.received) == 2

    run(scenario)


def test_two_answers_in_one_packet_are_not_two_votes() -> None:
    async def scenario(gateway: Gateway) -> None:
        async with Stub(in_turn(send(response(b"true") * 2), NO)) as stub:
            await ask(gateway, stub.url)
            given = await ask(gateway, stub.url)
            assert isinstance(given, Voted)
            assert given.vote is Vote.NO

    run(scenario)


def test_a_message_that_was_given_up_while_its_connection_was_made_never_leaves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was said not to have arrived: a prepare that came after that would be rolled back by
    nobody."""
    real = Connections.made

    async def scenario(gateway: Gateway) -> None:
        may_go = asyncio.Event()

        async def slowly(connections: Connections, origin: Origin) -> Connection:
            await may_go.wait()
            return await real(connections, origin)

        monkeypatch.setattr(Connections, "made", slowly)
        async with Stub(YES) as stub:
            assert not failed(await ask(gateway, stub.url, within=0.02)).arrived
            may_go.set()
            assert await ask(gateway, stub.url) == Voted(Vote.YES)
            assert len(stub.received) == 1

    run(scenario)
