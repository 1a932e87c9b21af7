"""What comes over a connection to a participant, cut as it may be, becomes one reply."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pytest

from coordinator.participant_connection import (
    MOST_INTERIM,
    Broken,
    Connection,
    NoReply,
    NotHttp,
    TooLate,
    target_of,
)
from tests.skipped_time import run_skipping

TARGET = target_of("http://127.0.0.1:9001/prepare?a=b")
KEPT = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nAssent-Participant: 1\r\n\r\ntrue"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntr\r\n2;x=y\r\nue\r\n0\r\n\r\n"
)
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
TO_THE_END = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\ntrue"
OLD = b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\ntrue"
NOTHING = b"HTTP/1.1 204 No Content\r\n\r\n"


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes | None


class Wire(asyncio.Transport):
    """A transport that keeps what is written; `unsent`: bytes that the other end does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.closed = self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Told:
    """An asker, and what it was told; `free`: how often the connection said that it is free."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.errors: list[Exception] = []
        self.open_when_free: list[bool] = []
        self.wire = Wire()
        self.connection = Connection(asyncio.get_running_loop(), self.free)
        self.connection.connection_made(self.wire)

    def free(self, connection: Connection) -> None:
        self.open_when_free.append(connection.is_open)

    def replied(self, status: int, headers: Mapping[str, str], body: bytes | None) -> None:
        self.replies.append(Reply(status, headers, body))

    def failed(self, error: NoReply) -> None:
        self.errors.append(error)

    def ask(self, limit: int = 100, until_s: float = math.inf) -> None:
        self.connection.ask(TARGET, None, b"{}", limit, until_s, self)

    def receive(self, pieces: Iterable[bytes], *, ends: bool = False) -> None:
        for piece in pieces:
            self.connection.data_received(piece)
        if ends:
            self.connection.eof_received()
            self.connection.connection_lost(None)


def play(*pieces: bytes, ends: bool = False, limit: int = 100, unsent: int = 0) -> Told:
    """One exchange, in which these pieces come."""

    async def scene() -> Told:
        told = Told()
        told.ask(limit)
        told.wire.unsent = unsent
        told.receive(pieces, ends=ends)
        return told

    return asyncio.run(scene())


def cuts(whole: bytes) -> list[tuple[bytes, ...]]:
    """In one piece, in two at each place, and byte by byte."""
    in_two = [(whole[:at], whole[at:]) for at in range(1, len(whole))]
    return [(whole,), *in_two, tuple(bytes([each]) for each in whole)]


@pytest.mark.parametrize(
    ("whole", "ends", "body", "stays"),
    [
        (KEPT, False, b"true", True),
        (CHUNKED, False, b"true", True),
        (INTERIM + KEPT, False, b"true", True),
        (NOTHING, False, b"", True),
        (OLD, False, b"true", False),
        (KEPT.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), False, b"true", False),
        (TO_THE_END, True, b"true", False),
    ],
    ids=["length", "chunked", "interim", "no content", "HTTP/1.0", "close", "to the end"],
)
def test_a_reply_is_the_same_wherever_it_is_cut(
    whole: bytes, ends: bool, body: bytes, stays: bool
) -> None:
    for pieces in cuts(whole):
        told = play(*pieces, ends=ends)
        assert [reply.body for reply in told.replies] == [body], pieces
        assert told.errors == []
        assert told.open_when_free[0] is stays, pieces
        assert told.wire.is_closing() is not stays


def test_interim_responses_without_end_are_no_answer() -> None:
    """Each costs the event loop something, and no limit of bytes or time ends them soon enough."""
    once = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert play(once * MOST_INTERIM + KEPT).replies != []
    for pieces in ((once * (MOST_INTERIM + 1) + KEPT,), (once,) * (MOST_INTERIM + 1)):
        told = play(*pieces)
        (error,) = told.errors
        assert isinstance(error, NotHttp)
        assert told.replies == []
        assert told.wire.is_closing()


def test_headers_are_found_whatever_their_case() -> None:
    (reply,) = play(KEPT).replies
    assert reply.status == 200
    assert reply.headers.get("assent-participant") == "1"


def test_a_request_names_what_it_is_and_where_it_goes() -> None:
    async def scene() -> bytes:
        told = Told()
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        told.connection.ask(TARGET, trace, b'{"a":1}', 100, math.inf, told)
        return told.wire.written

    assert asyncio.run(scene()) == (
        b"POST /prepare?a=b HTTP/1.1\r\nHost: 127.0.0.1:9001\r\nUser-Agent: assent\r\n"
        b"Accept: application/json\r\nAccept-Encoding: identity\r\n"
        b"Content-Type: application/json\r\n"
        b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
        b'Content-Length: 7\r\n\r\n{"a":1}'
    )


def test_a_body_that_is_too_long_is_not_read_to_its_end() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"
    told = play(head, b"x" * 60, b"x" * 60)
    assert [reply.body for reply in told.replies] == [None]
    assert told.wire.aborted
    assert play(head, b"x" * 60).replies == []


@pytest.mark.parametrize("more", [KEPT, b"x"], ids=["an answer", "rubbish"])
def test_a_connection_that_brings_more_than_was_asked_for_is_not_used_again(more: bytes) -> None:
    later = play(KEPT, more)
    assert [reply.body for reply in later.replies] == [b"true"]
    assert later.wire.aborted
    at_once = play(KEPT + more)
    assert [reply.body for reply in at_once.replies] in ([b"true"], [])
    assert at_once.wire.aborted


def test_the_end_of_an_answer_that_nobody_asked_for_is_no_vote() -> None:
    """Its beginning came in one piece with the answer before, so that nothing could be seen."""

    async def scene() -> None:
        for at in range(1, len(KEPT)):
            told = Told()
            told.ask()
            told.receive([KEPT + KEPT[:at]])
            assert len(told.replies) == 1
            if told.connection.is_open:
                told.ask()
                told.receive([KEPT[at:]])
            assert len(told.replies) == 1, at
            assert told.wire.aborted

    asyncio.run(scene())


def test_who_has_not_taken_all_of_the_message_gets_no_other_one() -> None:
    told = play(KEPT, unsent=1)
    assert [reply.body for reply in told.replies] == [b"true"]
    assert told.open_when_free == [False]
    assert told.wire.aborted


@pytest.mark.parametrize(
    "bytes_",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\ntrue",
    ],
)
def test_what_is_no_http_fails_and_ends_the_connection(bytes_: bytes) -> None:
    told = play(bytes_)
    assert [type(error) for error in told.errors] == [NotHttp]
    assert told.replies == []
    assert told.wire.aborted


@pytest.mark.parametrize("came", [b"", KEPT[:10], KEPT[:-1], CHUNKED[:-4]])
def test_a_connection_that_ends_early_is_broken(came: bytes) -> None:
    told = play(*([came] if came else []), ends=True)
    (error,) = told.errors
    assert isinstance(error, Broken)
    assert error.begun is bool(came)
    assert told.replies == []


def test_who_aborts_is_told_no_more() -> None:
    async def scene() -> None:
        told = Told()
        told.ask()
        told.connection.abort()
        told.receive([KEPT], ends=True)
        assert told.wire.aborted
        assert (told.replies, told.errors) == ([], [])

    asyncio.run(scene())


def test_the_next_message_may_leave_as_soon_as_the_answer_is_told() -> None:
    async def scene() -> None:
        told = Told()
        told.ask()
        asked = told.replied

        def ask_again(*reply: Any) -> None:
            asked(*reply)
            if len(told.replies) == 1:
                told.ask()

        told.replied = ask_again  # type: ignore[assignment, method-assign]
        told.receive([KEPT, KEPT])
        assert len(told.replies) == 2
        assert told.connection.is_open

    asyncio.run(scene())


def test_an_exchange_ends_at_its_own_time_not_at_that_of_the_one_before() -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        told, start_s = Told(), loop.time()
        for within_s in (5.0, 2.0, 9.0):
            told.ask(until_s=start_s + within_s)
            if within_s < 9.0:
                told.receive([KEPT])
        await asyncio.sleep(8.9)
        assert (len(told.replies), told.errors) == (2, [])
        await asyncio.sleep(0.2)
        (error,) = told.errors
        assert isinstance(error, TooLate)
        assert told.wire.aborted
        assert told.open_when_free == [True, True, False]

    run_skipping(scene())


def test_an_exchange_that_has_less_time_than_the_one_before_is_not_too_late_for_it() -> None:
    async def scene() -> None:
        told, start_s = Told(), asyncio.get_running_loop().time()
        told.ask(until_s=start_s + 3_600.0)
        told.receive([KEPT])
        told.ask(until_s=start_s + 1.0)
        await asyncio.sleep(1.1)
        assert [type(error) for error in told.errors] == [TooLate]

    run_skipping(scene())


@pytest.mark.parametrize("asks", [False, True])
def test_what_is_over_or_lost_is_not_told_of_its_time(asks: bool) -> None:
    async def scene() -> None:
        told, start_s = Told(), asyncio.get_running_loop().time()
        told.ask(until_s=start_s + 1.0)
        if not asks:
            told.receive([KEPT])
            await asyncio.sleep(1.1)
            assert told.connection.is_open
        told.connection.connection_lost(None)
        await asyncio.sleep(1.1)
        assert [type(error) for error in told.errors] == [Broken] * asks

    run_skipping(scene())


@pytest.mark.parametrize(
    "url", ["", "http://", "ftp://h", "not a url", "http://h:99999", "http://" + "a" * 64 + ".x"]
)
def test_what_is_no_url_of_http_has_no_target(url: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        target_of(url)


def test_a_target_knows_its_origin() -> None:
    assert target_of("https://[::1]/a").origin == ("::1", 443, True)
    assert b"Host: [::1]\r\n" in target_of("https://[::1]/a").head
    assert target_of("http://h:81").path == "/"
