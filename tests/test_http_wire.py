"""Answers as bytes, and what a compressed body becomes."""

from __future__ import annotations

import gzip
import zlib

import pytest

from coordinator.api_errors import ApiError
from coordinator.api_requests import Answer, json_answer
from coordinator.http_wire import answer_bytes, decompressed

SUNDAY = 784_111_777
"""06 Nov 1994, 08:49:37: the example of RFC 9110."""


def test_an_answer_is_one_piece() -> None:
    answer = json_answer(200, {"a": 1})._replace(headers={"Location": "http://h/é"})
    assert answer_bytes(answer, SUNDAY) == (
        b"HTTP/1.1 200 OK\r\n"
        b"Content-Type: application/json\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Location: http://h/\xc3\xa9\r\n"
        b"Content-Length: 7\r\n"
        b"\r\n"
        b'{"a":1}'
    )


def test_the_date_is_that_of_the_answer() -> None:
    first, second = (answer_bytes(Answer(404, b""), SUNDAY + passed) for passed in (0, 1))
    assert first.replace(b"49:37", b"49:38") == second
    assert first.startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_a_head_has_the_length_of_the_body_that_it_has_not() -> None:
    whole, head = (
        answer_bytes(Answer(200, b"hello"), SUNDAY, connection="close", without_body=without)
        for without in (False, True)
    )
    assert whole == head + b"hello"
    assert b"Connection: close\r\nContent-Length: 5\r\n\r\n" in head


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "a\x7f"])
def test_a_header_cannot_be_two(value: str) -> None:
    with pytest.raises(ValueError, match="control characters"):
        answer_bytes(Answer(307, b"", headers={"Location": value}), SUNDAY)


def raw_deflate(body: bytes) -> bytes:
    packing = zlib.compressobj(wbits=-15)
    return packing.compress(body) + packing.flush()


PACKED = {
    "gzip": gzip.compress(b"hello" * 20),
    "deflate": zlib.compress(b"hello" * 20),
    "deflate, raw": raw_deflate(b"hello" * 20),
}


@pytest.mark.parametrize("how", PACKED)
def test_a_body_is_unpacked_as_it_was(how: str) -> None:
    encoding, packed = how.split(",", maxsplit=1)[0], PACKED[how]
    assert decompressed(packed, encoding, 100) == b"hello" * 20
    for size, code in ((99, "body_too_large"), (0, "body_too_large")):
        assert refusal_of(packed, encoding, size) == code
    for damaged in (packed[:-1], packed + b"x", packed + packed, b"\x78" + packed[5:]):
        assert refusal_of(damaged, encoding, 1_000) == "unreadable_body"


def test_an_unknown_encoding_is_said_to_be_one() -> None:
    assert refusal_of(b"x", "br", 100) == "unsupported_media_type"


def test_no_more_is_unpacked_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    class Watched:
        def __init__(self, format_: int) -> None:
            self._real = make(format_)

        def decompress(self, body: bytes, limit: int) -> bytes:
            nonlocal most
            plain = self._real.decompress(body, limit)
            most = max(most, len(plain))
            return plain

    make = zlib.decompressobj
    monkeypatch.setattr("coordinator.http_wire.zlib.decompressobj", Watched)
    assert refusal_of(gzip.compress(b" " * 10_000_000), "gzip", 1_000) == "body_too_large"
    assert 0 < most <= 1_001


def refusal_of(body: bytes, encoding: str, limit: int) -> str:
    with pytest.raises(ApiError) as refused:
        decompressed(body, encoding, limit)
    return refused.value.code
