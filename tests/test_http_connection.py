"""Bytes of HTTP become requests, wherever they are split, and nothing else does."""

from __future__ import annotations

import gzip
import json
import logging
import zlib
from random import Random

import pytest

from coordinator.api_errors import not_leader
from coordinator.api_requests import error_answer
from coordinator.http_connection import HEADERS, LINE_BYTES, REQUESTS_PER_TURN
from tests.connection_rig import LIMIT, Read, Rig, read, run


def get(path: str = "/now", *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join((f"GET {path} HTTP/{version}", "Host: h", *lines, "", "")).encode()


def post(body: bytes, path: str = "/now", *lines: str) -> bytes:
    """With a length, if `lines` say nothing of its transfer."""
    if not any(line.startswith("Transfer-Encoding") for line in lines):
        lines = (f"Content-Length: {len(body)}", *lines)
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: h", *lines, "", "")).encode() + body


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


CHUNKED = "Transfer-Encoding: chunked"
GZIP = "Content-Encoding: gzip"
EXPECTS = "Expect: 100-continue"

SPLIT = {
    "a body with a length": post(b"hello", "/now?a=1&b=%20#c", "X: y"),
    "a body in chunks": post(chunks(b"he", b"l", b"lo"), "/now", CHUNKED),
    "a trailer": post(chunks(b"hello")[:-2] + b"A: b\r\n\r\n", "/now", CHUNKED),
    "an empty body": post(b""),
    "an empty body in chunks": post(chunks(), "/now", CHUNKED),
    "a packed body": post(gzip.compress(b"hello"), "/now", GZIP),
    "a body too large": post(b"x" * (LIMIT + 1)),
    "a body nobody wants": post(b"hello", "/bodiless"),
    "an expectation": post(b"hello", "/now", EXPECTS),
    "a strange expectation": post(b"hello", "/now", "Expect: wonders"),
    "a head": get().replace(b"GET", b"HEAD"),
    "an old client": get(version="1.0"),
    "an old client that stays": get("/now", "Connection: keep-alive", version="1.0"),
    "as to a proxy": get("http://elsewhere/now?q"),
    "nothing": b"\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "a damaged package": post(b"hello", "/now", GZIP),
    "a package cut short": post(gzip.compress(b"hello")[:-1], "/now", GZIP),
    "a package and more": post(gzip.compress(b"hello") + b"x", "/now", GZIP),
}


@pytest.mark.parametrize("what", SPLIT)
def test_an_answer_does_not_depend_on_where_the_bytes_are_split(what: str) -> None:
    """Another request follows each, and a third that is answered later."""
    sent = SPLIT[what] + post(b"second", "/now?2") + get("/later?3")
    texts = set()

    async def test(rig: Rig) -> None:
        for at in (*range(1, len(sent)), None):
            rig.connection, rig.wire = rig.connect()
            pieces = (sent[:at], sent[at:]) if at else (sent[i : i + 1] for i in range(len(sent)))
            for piece in pieces:
                rig.feed(piece)
            await rig.turn()
            rig.api.go_on()
            await rig.turn()
            texts.add(rig.wire.written.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b""))

    run(test)
    assert len({drop_dates(text) for text in texts}) == 1


def drop_dates(text: bytes) -> bytes:
    return b"\r\n".join(line for line in text.split(b"\r\n") if not line.startswith(b"Date: "))


def test_requests_in_any_pieces_are_answered_in_their_order() -> None:
    random = Random(7)
    sent = b"".join(
        random.choice((get, post_some, post_later))(f"/now?{number}") for number in range(60)
    )

    async def test(rig: Rig) -> None:
        for _ in range(20):
            rig.connection, rig.wire = rig.connect()
            left = sent
            while left or len(rig.answers()) < 60:
                if not rig.wire.is_paused:
                    size = random.choice((1, 10, 100, 1_000, 10_000))
                    rig.feed(left[:size])
                    left = left[size:]
                if random.random() < 0.5:
                    rig.api.go_on()
                    await rig.turn()
            assert [answer.asked[2] for answer in rig.answers()] == [str(n) for n in range(60)]

    run(test)


def post_some(path: str) -> bytes:
    return post(chunks(b"some", b"body"), path, CHUNKED)


def post_later(path: str) -> bytes:
    return post(b"later" * 20, path.replace("now", "later"))


@pytest.mark.parametrize(
    ("sent", "asked"),
    [
        (get("/now?a=%20b#c", "X: y"), ["GET", "/now", "a=%20b", "y", ""]),
        (get("http://elsewhere/now?q"), ["GET", "/now", "q", None, ""]),
        (post(b"hello"), ["POST", "/now", "", None, "hello"]),
        (post(chunks(b"he", b"llo"), "/now", CHUNKED), ["POST", "/now", "", None, "hello"]),
        (post(b"hello", "/bodiless"), ["POST", "/bodiless", "", None, ""]),
        (post(gzip.compress(b"hello"), "/now", GZIP), ["POST", "/now", "", None, "hello"]),
        (
            post(zlib.compress(b"hello"), "/now", "Content-Encoding: deflate"),
            ["POST", "/now", "", None, "hello"],
        ),
    ],
)
def test_a_request_is_read_as_it_is_meant(sent: bytes, asked: list[str | None]) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(sent)
        await rig.turn()
        (answer,) = rig.answers()
        assert (answer.status, answer.asked) == (200, asked)
        assert "connection" not in answer.headers
        assert not rig.wire.is_closing()

    run(test)


# --- requests ahead


def test_what_is_sent_ahead_waits_unread() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/later?0"))
        rig.feed(get("/now?1"))
        assert rig.wire.is_paused
        rig.feed(get("/now?2"))  # was on its way already
        assert len(rig.api.asked) == 1
        rig.api.go_on()
        await rig.turn()
        assert [answer.asked[2] for answer in rig.answers()] == ["0", "1", "2"]
        assert not rig.wire.is_paused

    run(test)


def test_nothing_more_is_read_before_all_that_was_is_answered() -> None:
    """Else the parser would be given more with each answer than an answer takes out of it."""

    async def test(rig: Rig) -> None:
        rig.feed(get("/later") * 3)
        rig.feed(get("/later") * 3)
        for answered in range(1, 7):
            assert rig.wire.is_paused
            rig.api.go_on()
            await rig.turn()
            assert len(rig.answers()) == answered
        assert not rig.wire.is_paused

    run(test)


def test_a_turn_of_the_loop_answers_only_so_many() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get() * (3 * REQUESTS_PER_TURN))
        assert len(rig.answers()) == REQUESTS_PER_TURN
        await rig.turn()
        assert len(rig.answers()) == 3 * REQUESTS_PER_TURN
        rig.feed(get())
        assert len(rig.answers()) == 3 * REQUESTS_PER_TURN + 1

    run(test)


# --- bodies


def test_a_body_is_read_only_where_it_is_needed() -> None:
    """It is thrown away as it comes; none of it is kept."""

    async def test(rig: Rig) -> None:
        rig.api.refuses = error_answer(not_leader("http://there/now", "n2"))
        rig.feed(b"POST /now HTTP/1.1\r\nHost: h\r\nContent-Length: 16000000\r\n\r\n")
        assert [answer.status for answer in rig.answers()] == [307]
        for _ in range(1_000):
            rig.feed(b"x" * 16_000)
            assert kept(rig) == 0
        rig.api.refuses = None
        rig.feed(post(b"next"))
        assert [answer.status for answer in rig.answers()] == [307, 200]

    run(test)


def kept(rig: Rig) -> int:
    """So many bytes of a body are held."""
    return len(rig.connection._body) + getattr(rig.connection._payload, "_size", 0)


@pytest.mark.parametrize("path", ["/now", "/bodiless"])
def test_a_body_beyond_the_limit_is_not_kept(path: str) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"", path, CHUNKED))
        for _ in range(100):
            rig.feed(chunks(b"x" * LIMIT)[:-5])
            assert kept(rig) <= LIMIT
        rig.feed(b"0\r\n\r\n" + get())
        first, second = rig.answers()
        assert first.status == (413 if path == "/now" else 200)
        assert second.status == 200

    run(test)


def test_a_body_announced_too_large_is_not_waited_for() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"x" * (LIMIT + 1))[:-LIMIT])
        (answer,) = rig.answers()
        assert (answer.status, answer.code) == (413, "body_too_large")

    run(test)


def test_a_word_is_given_to_who_waits_for_it() -> None:
    async def test(rig: Rig) -> None:
        head, body = post(b"hello", "/now", EXPECTS)[:-5], b"hello"
        rig.feed(head)
        assert rig.wire.written == b"HTTP/1.1 100 Continue\r\n\r\n"
        rig.feed(body)
        assert [answer.status for answer in rig.answers()] == [100, 200]
        rig.feed(head + body)
        rig.feed(post(gzip.compress(b"hello"), "/now", EXPECTS, GZIP))
        await rig.turn()
        assert [answer.status for answer in rig.answers()] == [100, 200, 200, 200]
        rig.feed(head.replace(b"1.1", b"1.0"))  # which knows no such word
        assert len(rig.answers()) == 4

    run(test)


def test_a_refusal_is_the_word_for_who_waits() -> None:
    async def test(rig: Rig) -> None:
        rig.api.refuses = error_answer(not_leader("http://there/now", "n2"))
        rig.feed(post(b"hello", "/now", EXPECTS)[:-5])
        assert [answer.status for answer in rig.answers()] == [307]

    run(test)


def test_a_packed_body_is_measured_unpacked() -> None:
    async def test(rig: Rig) -> None:
        for size, status in ((LIMIT, 200), (LIMIT + 1, 413), (10_000_000, 413)):
            packed = gzip.compress(b" " * size)
            rig.feed(post(chunks(packed), "/now", GZIP, CHUNKED))
            await rig.turn()
            assert rig.answers()[-1].status == status

    run(test)


@pytest.mark.parametrize("packing", ["br", "x-gzip", "gzip, gzip", "compress"])
def test_a_body_that_is_packed_in_an_unknown_way_is_not_read_as_it_is(packing: str) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"{}", "/now", f"Content-Encoding: {packing}"))
        rig.feed(post(chunks(b"{}"), "/now", CHUNKED, "Content-Encoding: Identity"))
        await rig.turn()
        refused, read = rig.answers()
        assert (refused.status, refused.code) == (415, "unsupported_media_type")
        assert packing in json.loads(refused.body)["error"]["message"]
        assert read.status == 200

    run(test)


# --- what is no HTTP, or means two things

HUGE = "x" * (LINE_BYTES + 1)
REFUSED = {
    "bytes": bytes(range(128, 256)) * 4,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
    "no target": b"CONNECT \r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a path too long": get("/" + HUGE),
    "a header too long": get("/now", f"A: {HUGE}"),
    "too many headers": get("/now", *(f"A{n}: b" for n in range(HEADERS + 1))),
    "a head without end": b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 1_000_000,
    "a header in two lines": get("/now", "A: b\r\n c"),
    "a space before the colon": get("/now", "A : b"),
    "a bare line feed": b"GET /now HTTP/1.1\nHost: h\n\n",
    "a bare return": get("/now", "A: b\rB: c"),
    "a NUL": get("/now", "A: b\0c"),
    "no host": b"GET /now HTTP/1.1\r\n\r\n",
    "two hosts": get("/now", "Host: i"),
    "length and chunks": post(chunks(b"x"), "/now", CHUNKED, "Content-Length: 3"),
    "chunks and length": post(chunks(b"x"), "/now", "Content-Length: 3", CHUNKED),
    "two lengths": post(b"xx", "/now", "Content-Length: 1"),
    "a length twice": post(b"xx", "/now", "Content-Length: 2"),
    "two lengths in one": get("/now", "Content-Length: 2, 2"),
    "a length with a sign": get("/now", "Content-Length: +2"),
    "a length below nothing": get("/now", "Content-Length: -2"),
    "a length in hex": get("/now", "Content-Length: 0x2"),
    "a length beyond all": get("/now", "Content-Length: 99999999999999999999999"),
    "chunks not at last": post(chunks(b"x"), "/now", "Transfer-Encoding: chunked, gzip"),
    "chunked twice": post(chunks(b"x"), "/now", CHUNKED, CHUNKED),
    "hidden chunks": post(chunks(b"x"), "/now", "Transfer-Encoding: xchunked"),
    "a chunk with a sign": post(b"+1\r\nx\r\n0\r\n\r\n", "/now", CHUNKED),
    "a chunk in no hex": post(b"g\r\nx\r\n0\r\n\r\n", "/now", CHUNKED),
    "a chunk beyond all": post(b"f" * 20 + b"\r\nx", "/now", CHUNKED),
    "a chunk longer than it says": post(b"1\r\nxx\r\n0\r\n\r\n", "/now", CHUNKED),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("before", [b"", get(), get("/later")])
def test_what_is_no_http_ends_the_connection(
    what: str, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """After the answers to what came before it; and nothing after it is looked at."""

    async def test(rig: Rig) -> None:
        rig.feed(before + REFUSED[what] + b"\r\n\r\n")
        rig.feed(get())
        rig.api.go_on()
        await rig.turn()
        *good, refused = rig.answers()
        assert [answer.status for answer in good] == [200] * bool(before)
        assert (refused.status, refused.code) == (400, "bad_request")
        assert refused.headers["connection"] == "close"
        assert len(json.loads(refused.body)["error"]["message"]) < 300
        assert len(rig.api.asked) == len(good)
        assert rig.wire.is_half_closed
        assert not rig.wire.is_paused
        rig.ends()
        await rig.turn()
        assert rig.is_gone

    with caplog.at_level(logging.INFO):
        run(test)
    assert caplog.records == []


def test_a_body_that_is_damaged_after_its_answer_has_none_of_its_own() -> None:
    async def test(rig: Rig) -> None:
        rig.api.refuses = error_answer(not_leader("http://there/now", "n2"))
        rig.feed(post(b"5\r\nhello\r\n", "/now", CHUNKED))
        rig.feed(b"not a chunk\r\n" + get())
        assert [answer.status for answer in rig.answers()] == [307]
        assert rig.wire.is_half_closed

    run(test)


@pytest.mark.parametrize(
    "first",
    [
        get("/now", "Connection: close"),
        get("/now", "Connection: Upgrade", "Upgrade: websocket"),
        get("/now", "Connection: Upgrade", "Upgrade: h2c"),
        b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n",
        get(version="1.0"),
    ],
)
def test_what_follows_a_last_request_is_none(first: bytes) -> None:
    async def test(rig: Rig) -> None:
        for connection in range(1, 3):
            if connection == 1:
                rig.feed(first + get("/now?hidden"))
            else:
                rig.connection, rig.wire = rig.connect()
                rig.feed(first)
                rig.feed(get("/now?hidden"))
            (answer,) = rig.answers()
            assert answer.headers["connection"] == "close"
            assert len(rig.api.asked) == connection
            await rig.pass_s(60)
            assert rig.is_gone

    run(test)


def test_garbage_of_any_kind_is_answered_or_waited_for_and_harms_nobody() -> None:
    random = Random(11)
    seeds = [*SPLIT.values(), *(each for each in REFUSED.values() if len(each) < 20_000)]

    async def test(rig: Rig) -> None:
        for _ in range(3_000):
            rig.connection, rig.wire = rig.connect()
            sent = bytearray(random.choice(seeds) + random.choice(seeds))
            for _ in range(random.randrange(4)):
                at = random.randrange(len(sent))
                sent[at : at + random.randrange(3)] = random.randbytes(random.randrange(3))
            while sent and not rig.wire.is_paused:
                size = random.choice((1, 7, 50, 5_000))
                rig.feed(bytes(sent[:size]))
                del sent[:size]
            rig.api.go_on()
            await rig.turn()
            answers: list[Read] = read_all(rig.wire.written)
            assert all(100 <= answer.status < 500 for answer in answers)
            rig.ends()
        await rig.pass_s(3_700)
        assert not rig.common.connections

    run(test)


def read_all(written: bytes) -> list[Read]:
    """As `read`; where the request may have been a HEAD, its answer has no body."""
    try:
        return read(written)
    except AssertionError:
        return [Read(int(head[:3]), {}, b"") for head in written.split(b"HTTP/1.1 ")[1:]]


# --- answers


@pytest.mark.parametrize(
    ("sent", "said", "stays"),
    [
        (get(), None, True),
        (get("/now", "Connection: close"), "close", False),
        (get(version="1.0"), "close", False),
        (get("/now", "Connection: keep-alive", version="1.0"), "keep-alive", True),
    ],
)
def test_a_connection_stays_as_long_as_the_client_asked(
    sent: bytes, said: str | None, stays: bool
) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(sent)
        (answer,) = rig.answers()
        assert answer.headers.get("connection") == said
        await rig.turn()
        assert rig.is_gone is not stays

    run(test)


def test_a_head_is_answered_without_the_body_and_with_its_length() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get())
        (answer,) = rig.answers()
        rig.feed(get().replace(b"GET", b"HEAD"))
        written = rig.wire.written.partition(answer.body)[2]
        assert (
            f"Content-Length: {len(answer.body) + 1}\r\n\r\n".encode() in written
        )  # HEAD: one more
        assert written.endswith(b"\r\n\r\n")

    run(test)


def test_a_head_that_was_asked_for_before_is_forgotten() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get().replace(b"GET", b"HEAD"))
        rig.wire.written = b""
        rig.feed(b"hello\r\n\r\n")
        (answer,) = rig.answers()
        assert (answer.status, answer.code) == (400, "bad_request")

    run(test)


def test_an_answer_with_a_header_that_is_two_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/two-headers"))
        assert rig.wire.written == b""
        await rig.turn()
        assert rig.is_gone

    run(test)
    assert "defect" in caplog.text


@pytest.mark.parametrize("path", ["/now", "/later", "/rests", "/nowhere"])
def test_an_answer_has_the_name_of_its_request_and_the_next_one_has_not(path: str) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get(path, "assent-request: first.1"))
        await rig.turn()
        rig.api.go_on()
        await rig.pass_s(10)
        rig.feed(get("/now"))
        rig.feed(get("/now", "Assent-Request: third"))
        names = [answer.headers.get("assent-request") for answer in rig.answers()]
        assert names == ["first.1", None, "third"]

    run(test)


def test_of_a_body_that_is_refused_the_name_is_said_too() -> None:
    async def test(rig: Rig) -> None:
        rig.feed(post(b"x" * (LIMIT + 1), "/now", "Assent-Request: large"))
        (answer,) = rig.answers()
        assert (answer.status, answer.headers["assent-request"]) == (413, "large")

    run(test)


@pytest.mark.parametrize("name", ["x" * 65, "a\tb", "\u00e4"])
def test_a_name_that_cannot_be_said_again_is_none(name: str) -> None:
    async def test(rig: Rig) -> None:
        rig.feed(get("/now", f"Assent-Request: {name}"))
        (answer,) = rig.answers()
        assert answer.status == 200
        assert "assent-request" not in answer.headers

    run(test)
