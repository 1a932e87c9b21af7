"""Whatever a connection waits for has an end, and nobody's going away harms more than himself."""

from __future__ import annotations

import pytest

from coordinator.admission import TURNED_AWAY_PER_S, Rests
from coordinator.api_connection import (
    BODY_TIMEOUT_S,
    HALF_CLOSED_S,
    HEAD_TIMEOUT_S,
    HELD_BACK_S,
    IDLE_S,
    KEEP_S,
    LINGER_S,
    LOOKED_AT,
    SEND_TIMEOUT_S,
)
from tests.connection_rig import HIGH_WATER, LARGE, Rig, read, run
from tests.test_http_connection import CHUNKED, get, post

GRAIN_S = 0.01
"""More than alarms may be late."""


# --- the ends of waiting


@pytest.mark.parametrize("sent", [b"", get()])
def test_an_idle_connection_is_closed_after_a_long_time(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        await rig.pass_s(KEEP_S - 1)
        rig.feed(sent)
        await rig.pass_s(0.9)
        assert not rig.is_gone
        if sent:  # it was not idle
            await rig.pass_s(KEEP_S - 1)
            assert not rig.is_gone
        await rig.pass_s(0.1 + GRAIN_S)
        assert rig.is_gone
        assert len(rig.answers()) == bool(sent)

    run(test)


def test_a_head_is_waited_for_only_so_long_however_often_a_byte_comes() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get())
        for byte in get()[:15]:
            rig.feed(bytes([byte]))
            await rig.pass_s(HEAD_TIMEOUT_S / 16)
        assert len(rig.answers()) == 1
        await rig.pass_s(HEAD_TIMEOUT_S / 16 + GRAIN_S)
        _, late = rig.answers()
        assert (late.status, late.code) == (408, "head_timeout")
        assert late.headers["connection"] == "close"
        rig.feed(get()[15:])
        assert len(rig.answers()) == 2

    run(test)


@pytest.mark.parametrize("more", [CHUNKED, "Content-Length: 20"])
def test_a_body_is_waited_for_only_so_long_however_often_a_byte_comes(more: str) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"", "/now", CHUNKED).replace(CHUNKED.encode(), more.encode()))
        for _ in range(15):
            rig.feed(b"1\r\nx\r\n" if more == CHUNKED else b"x")
            await rig.pass_s(BODY_TIMEOUT_S / 16)
        assert not rig.answers()
        await rig.pass_s(BODY_TIMEOUT_S / 16 + GRAIN_S)
        (late,) = rig.answers()
        assert (late.status, late.code) == (408, "body_timeout")
        assert late.headers["connection"] == "close"
        assert not rig.api.asked

    run(test)


def test_what_is_in_time_is_not_bothered_by_the_times_of_what_was_before() -> None:
    async def test(rig: Rig) -> None:
        for _ in range(5):
            rig.feed(post(b"hello")[:20])
            await rig.pass_s(HEAD_TIMEOUT_S - 1)
            rig.feed(post(b"hello")[20:-2])
            await rig.pass_s(BODY_TIMEOUT_S - 1)
            rig.feed(b"lo" + get("/later"))
            await rig.pass_s(10 * KEEP_S)  # the API ends its waits itself
            rig.api.go_on()
            await rig.pass_s(KEEP_S - 1)
        assert [answer.status for answer in rig.answers()] == [200] * 10

    run(test)


def test_a_body_that_nobody_needs_is_read_only_so_long() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"x" * 10, "/bodiless")[:-1])
        assert len(rig.answers()) == 1
        await rig.pass_s(LINGER_S - 1)
        assert not rig.is_gone
        await rig.pass_s(1 + GRAIN_S)
        assert rig.is_gone

    run(test)


def test_a_last_answer_before_the_end_of_its_body_is_waited_with() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"hello", "/bodiless", "Connection: close")[:-1])
        (answer,) = rig.answers()
        assert answer.headers["connection"] == "close"
        assert rig.wire.is_half_closed
        await rig.turn()
        assert not rig.is_gone
        await rig.pass_s(LINGER_S + GRAIN_S)
        assert rig.is_gone

    run(test)


def test_after_an_error_the_client_has_time_to_read_it() -> None:
    """Closed with unread bytes, the connection would be reset, and the answer lost."""

    async def test(rig: Rig) -> None:
        rig.feed(b"hello\r\n\r\n")
        assert rig.wire.is_half_closed
        rig.feed(b"more")
        await rig.pass_s(LINGER_S - 1)
        rig.feed(get())
        assert not rig.is_gone
        await rig.pass_s(1 + GRAIN_S)
        assert rig.is_gone
        assert len(rig.answers()) == 1

    run(test)


# --- clients that go


def test_what_a_client_waited_for_is_let_go_of_when_it_is_gone() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/later"))
        ((_, future),) = rig.api.under_way
        rig.connection.connection_lost(ConnectionResetError())
        await rig.turn()
        assert future.cancelled()
        assert rig.is_gone
        assert rig.wire.written == b""

    run(test)


def test_an_answer_that_comes_as_the_client_goes_is_nobody_s() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/later"))
        rig.api.go_on()
        rig.connection.connection_lost(None)
        await rig.turn()
        assert rig.wire.written == b""

    run(test)


@pytest.mark.parametrize(
    "sent", [get("/later"), get() * 40, get("/rests"), get("/large"), get()[:9]]
)
def test_nothing_is_written_to_a_connection_that_broke(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.wire.client_reads = b"large" not in sent
        rig.feed(sent)
        written = len(rig.wire.written)
        rig.wire.breaks()
        rig.api.go_on()
        await rig.turn()
        if rig.wire.unsent:
            rig.wire.take(rig.wire.unsent)
        await rig.pass_s(KEEP_S)
        assert len(rig.wire.written) == written
        rig.connection.connection_lost(ConnectionResetError())

    run(test)


def test_a_request_behind_one_whose_answer_broke_the_connection_is_not_begun() -> None:
    async def test(rig: Rig) -> None:
        write = rig.wire.write

        def break_(data: bytes | bytearray | memoryview) -> None:
            write(data)
            rig.wire.breaks()

        rig.wire.write = break_  # type: ignore[method-assign]
        rig.feed(get() * 2)
        assert len(rig.api.asked) == 1
        rig.connection.connection_lost(ConnectionResetError())

    run(test)


def test_a_client_that_sends_nothing_more_is_answered() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/later?1") + get("/now?2") + get("/later?3"))
        rig.ends()
        for _ in range(2):
            assert not rig.is_gone
            rig.api.go_on()
            await rig.turn()
        assert [answer.asked[2] for answer in rig.answers()] == ["1", "2", "3"]
        assert rig.is_gone

    run(test)


def test_a_client_that_sends_nothing_more_is_answered_only_for_a_while() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/later"))
        ((_, future),) = rig.api.under_way
        rig.ends()
        await rig.pass_s(HALF_CLOSED_S - 1)
        assert not rig.is_gone
        await rig.pass_s(1 + GRAIN_S)
        assert rig.is_gone
        assert future.cancelled()

    run(test)


@pytest.mark.parametrize("sent", [b"", get(), get()[:10], post(b"hello", "/bodiless")[:-1]])
def test_a_client_that_ends_and_waits_for_nothing_is_gone(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(sent)
        rig.ends()
        await rig.turn()
        assert rig.is_gone

    run(test)


def test_a_body_that_breaks_off_is_answered() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"hello")[:-1])
        rig.ends()
        (answer,) = rig.answers()
        assert (answer.status, answer.code) == (400, "unreadable_body")
        await rig.turn()
        assert rig.is_gone
        assert not rig.api.asked

    run(test)


# --- clients that do not read


def test_nothing_is_answered_while_the_client_does_not_take_what_it_has() -> None:
    async def test(rig: Rig) -> None:
        rig.wire.client_reads = False
        rig.feed(get("/large") * 5)
        rig.feed(get("/large"))
        assert rig.wire.is_paused
        for answered in range(1, 7):
            await rig.turn()
            assert len(rig.api.asked) == answered
            assert rig.wire.unsent < HIGH_WATER + 2 * LARGE
            rig.wire.take(rig.wire.unsent)
        assert len(rig.answers()) == 6
        assert not rig.wire.is_paused

    run(test)


@pytest.mark.parametrize("last", ["Connection: close", "A: b"])
def test_a_client_may_read_slowly_but_not_stop(last: str) -> None:
    async def test(rig: Rig) -> None:
        rig.wire.client_reads = False
        rig.feed(get("/large", last))
        for _ in range(10):
            await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
            rig.wire.take(100)
        assert not rig.wire.is_aborted
        await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
        await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
        assert rig.wire.is_aborted
        assert rig.is_gone

    run(test)


def test_how_slow_a_client_is_is_judged_anew_each_time() -> None:
    async def test(rig: Rig) -> None:
        rig.wire.client_reads = False
        rig.feed(get("/large"))
        rig.wire.take(LARGE - HIGH_WATER - 1)
        await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
        rig.wire.take(rig.wire.unsent)
        rig.feed(get("/large"))
        await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
        assert not rig.wire.is_aborted
        await rig.pass_s(SEND_TIMEOUT_S + GRAIN_S)
        assert rig.wire.is_aborted

    run(test)


# --- rests


def test_a_connection_that_was_refused_for_load_is_not_read_for_a_while() -> None:
    async def test(rig: Rig) -> None:
        rig.common.rests = Rests(per_s=0.5)
        rig.feed(get() + get("/rests") + get())
        rig.feed(get())
        _, refused = rig.answers()
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        assert rig.wire.is_paused
        await rig.pass_s(1.9)
        assert len(rig.answers()) == 2
        await rig.pass_s(0.1 + GRAIN_S)
        assert [answer.status for answer in rig.answers()] == [200, 429, 200, 200]
        assert not rig.wire.is_paused

    run(test)


@pytest.mark.parametrize("last", ["Connection: close", "A: b"])
@pytest.mark.parametrize("half_closed", [False, True])
def test_a_refusal_that_is_a_connection_s_first_answer_is_held_back(
    last: str, *, half_closed: bool
) -> None:
    """Or who opens a connection for each request would be refused as often as he likes."""

    async def test(rig: Rig) -> None:
        rig.common.rests = Rests(per_s=1 / (HELD_BACK_S + 2))
        rig.feed(get("/rests", last) + get())
        if half_closed:
            rig.ends()
        await rig.pass_s(HELD_BACK_S - GRAIN_S)
        assert not rig.answers()
        await rig.pass_s(2 * GRAIN_S)
        (refused,) = rig.answers()
        assert (refused.status, refused.headers["retry-after"]) == (429, "2")
        if last == "Connection: close":
            assert rig.is_gone
            return
        await rig.pass_s(1.9 - GRAIN_S)
        assert len(rig.answers()) == 1
        await rig.pass_s(0.1 + 2 * GRAIN_S)
        assert [answer.status for answer in rig.answers()] == [429, 200]
        assert rig.is_gone is half_closed

    run(test)


def test_one_refusal_now_and_then_is_hardly_held_back() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/rests") + get())
        await rig.pass_s(1 / TURNED_AWAY_PER_S + GRAIN_S)
        assert [answer.status for answer in rig.answers()] == [429, 200]

    run(test)


def test_a_refusal_that_is_held_back_leaves_when_the_server_stops() -> None:
    async def test(rig: Rig) -> None:
        rig.common.rests = Rests(per_s=0.1)
        rig.feed(get("/rests"))
        rig.connection.end()
        (refused,) = rig.answers()
        assert (refused.status, refused.headers["connection"]) == (429, "close")
        await rig.turn()
        assert rig.is_gone

    run(test)


# --- the end of the server


@pytest.mark.parametrize(
    "sent", [b"", get(), get()[:10], get("/rests"), post(b"hello", "/bodiless")[:-1], b"\0"]
)
def test_who_waits_for_nothing_is_closed_at_once_when_the_server_stops(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(sent)
        lost = rig.connection.end()
        await rig.turn()
        assert rig.is_gone
        assert lost.done()

    run(test)


@pytest.mark.parametrize("sent", [get("/later"), post(b"hello", "/later")])
def test_a_request_under_way_is_answered_when_the_server_stops(sent: bytes) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(sent[:-1])
        if sent.startswith(b"GET"):
            rig.feed(sent[-1:])
        lost = rig.connection.end()
        rig.feed(sent[-1:] + get())
        rig.api.go_on()
        await rig.turn()
        (answer,) = rig.answers()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await rig.turn()
        assert lost.done()

    run(test)


def test_a_connection_that_is_made_while_the_server_stops_is_closed() -> None:
    async def test(rig: Rig) -> None:
        rig.common.is_stopping = True
        connection, wire = rig.connect()
        assert wire.is_closing()
        await rig.turn()
        assert connection not in rig.common.connections

    run(test)


# --- many


def test_one_timer_serves_all_connections() -> None:
    async def test(rig: Rig) -> None:
        loop = rig.loop
        connections = [rig.connect() for _ in range(1_000)]
        for number, (connection, _) in enumerate(connections):
            connection.data_received(get() if number % 2 else get()[:5])
        timers = [t for t in loop._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
        assert len(timers) == 1
        await rig.pass_s(HEAD_TIMEOUT_S + GRAIN_S)
        assert {wire.written[:12] for _, wire in connections[::2]} == {b"HTTP/1.1 408"}
        assert {wire.written[:12] for _, wire in connections[1::2]} == {b"HTTP/1.1 200"}
        await rig.pass_s(KEEP_S)
        assert not rig.common.connections

    run(test)


# --- how many there may be


def test_one_connection_too_many_takes_the_place_of_one_that_is_idle() -> None:
    async def test(rig: Rig) -> None:
        rig.common.most = 3
        rig.feed(get("/later"))  # the first one is busy
        idle, _ = rig.connect()
        await rig.pass_s(IDLE_S)
        young, _ = rig.connect()
        newcomer, wire = rig.connect()
        await rig.turn()
        assert list(rig.common.connections) == [young, newcomer, rig.connection]
        assert idle not in rig.common.connections
        newcomer.data_received(get())
        assert [answer.status for answer in read(wire.written)] == [200]
        rig.api.go_on()
        await rig.turn()
        assert len(rig.answers()) == 1

    run(test)


def test_a_connection_for_which_none_can_make_room_is_refused() -> None:
    async def test(rig: Rig) -> None:
        rig.common.most = 2
        rig.feed(get("/later"))
        answered, _ = rig.connect()
        await rig.pass_s(IDLE_S)
        answered.data_received(get())  # its client may be about to ask again
        refused, wire = rig.connect()
        refused.data_received(get())  # as it came: it is too late to be read
        await rig.turn()
        assert list(rig.common.connections) == [rig.connection, answered]
        (answer,) = read(wire.written)
        assert (answer.status, answer.code) == (429, "overloaded")
        assert answer.headers["connection"] == "close"
        assert "retry-after" in answer.headers
        rig.api.go_on()
        await rig.turn()
        assert len(rig.answers()) == 1

    run(test)


def test_of_many_connections_others_are_looked_at_with_each_that_comes() -> None:
    async def test(rig: Rig) -> None:
        rig.common.most = LOOKED_AT + 1
        busy = [rig.connect()[0] for _ in range(LOOKED_AT - 1)]
        idle, _ = rig.connect()
        for connection in (rig.connection, *busy):
            connection.data_received(get("/later"))
        await rig.pass_s(IDLE_S)
        rig.connect()
        await rig.turn()
        assert len(rig.common.connections) == LOOKED_AT + 1  # refused: none of those was idle
        newcomer, _ = rig.connect()
        await rig.turn()
        assert newcomer in rig.common.connections
        assert idle not in rig.common.connections

    run(test)
