"""Answers as bytes of HTTP, and compressed bodies decompressed. Pure.

Head and body of an answer are one piece, so that they leave in one write.
"""

from __future__ import annotations

import functools
import re
import zlib
from email.utils import formatdate
from http import HTTPStatus

from coordinator.api_errors import ApiError, too_large, unreadable
from coordinator.api_requests import Answer

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What a client waits for that said `Expect: 100-continue`, as curl does with a large body."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_GZIP, _ZLIB, _RAW_DEFLATE = 31, 15, -15
"""How zlib calls the formats."""


def answer_bytes(
    answer: Answer, unix_s: int, *, connection: str | None = None, without_body: bool = False
) -> bytes:
    """`connection`: the header of this name; `without_body`: a HEAD is answered. Raises ValueError
    for a header that would be more than one.
    """
    head = _head(answer.status, answer.content_type, unix_s)
    if answer.headers:
        head += "".join(f"{name}: {_safe(value)}\r\n" for name, value in answer.headers.items())
    if connection is not None:
        head += f"Connection: {connection}\r\n"
    head += f"Content-Length: {len(answer.body)}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + (b"" if without_body else answer.body)


@functools.lru_cache(maxsize=64)
def _head(status: int, content_type: str, unix_s: int) -> str:
    """The same for all answers of a kind within a second."""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: {content_type}\r\nDate: {formatdate(unix_s, usegmt=True)}\r\n"
    )


def _safe(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError(f"control characters in a header: {value[:200]!r}")
    return value


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """`body` as it was before its `Content-Encoding`, at most `limit` bytes; raises ApiError.

    No more than `limit` is ever decompressed: a few kilobytes can stand for gigabytes.
    """
    match encoding:
        case "gzip":
            format_ = _GZIP
        case "deflate":  # what RFC 9110 calls so, or what some clients do
            format_ = _ZLIB if body[0] & 0x0F == zlib.DEFLATED else _RAW_DEFLATE
        case _:
            raise unknown_encoding(encoding)
    stream = zlib.decompressobj(format_)
    try:
        plain = stream.decompress(body, limit + 1)
    except zlib.error:
        raise unreadable() from None
    if len(plain) > limit:
        raise too_large("The body", len(plain), limit)
    if not stream.eof or stream.unused_data:
        raise unreadable()
    return plain


def unknown_encoding(encoding: str) -> ApiError:
    what = f"Content-Encoding {encoding[:100]} is not understood; send gzip, or JSON as it is."
    return ApiError(415, "unsupported_media_type", what)
