"""The JSON of a batch, one element after the other, each of them within bounds. Pure.

Decoding the dearest megabyte of JSON takes 60 ms, so a batch of sixteen, decoded as one, would keep
the event loop from everything else for a second: longer than followers wait for their leader.

Rules
- A step decodes one element, of at most `Limits.body_bytes`; one that is longer only where it holds
  few values, such as a long text, so that it can be told that it is too large in its own place.
- An element is first looked for within `SHORT_BYTES`: nearly all are shorter.
- What is wrong with the whole (its JSON, another field, the number of elements) is an ApiError.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

from coordinator.api_errors import ApiError, bad_field
from coordinator.api_fields import DECODER, cut, not_json
from coordinator.settings import Limits

SHORT_BYTES = 32 * 1024
"""At most 3 ms."""

FEW_VALUES = 50_000
"""At most 20 ms. Counted are commas and opened brackets, also those that stand in texts."""

FIELD = "transactions"
_BEGINS = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"transactions"[ \t\r\n]*:[ \t\r\n]*')
_SPACE = re.compile(rb"[ \t\r\n]*")


class Element(NamedTuple):
    """Not yet checked; `size` is in bytes of its JSON."""

    value: Any
    size: int


def is_batch(body: bytes) -> bool:
    """Whether the body asks for many transactions; told before decoding it: other limits."""
    return _BEGINS.match(body) is not None


def elements_of(body: bytes, limits: Limits) -> Iterator[Element]:
    """Of a body of which `is_batch` is true. Raises ApiError, perhaps not before the end: what has
    been given until then counts only if nothing is raised.
    """
    begins = _BEGINS.match(body)
    assert begins is not None
    at = begins.end()
    if body[at : at + 1] != b"[":
        raise bad_field(FIELD, "must be a list of at least one transaction")
    at = _after_space(body, at + 1)
    if body[at : at + 1] == b"]":
        raise bad_field(FIELD, "must be a list of at least one transaction")
    for position in range(limits.batch_size):
        element = _element(body, at, position, limits.body_bytes)
        yield element
        at = _after_space(body, at + element.size)
        sign = body[at : at + 1]
        if sign == b"]":
            _require_end(body, at + 1)
            return
        if sign != b",":
            raise not_json(f"Expecting ',' delimiter: byte {at}")
        at = _after_space(body, at + 1)
    raise bad_field(FIELD, f"has more elements than {limits.batch_size}, the most that are taken")


def _element(body: bytes, at: int, position: int, most_bytes: int) -> Element:
    for window in (SHORT_BYTES, max(most_bytes, SHORT_BYTES)):
        element = _first(body, at, window)
        if element is not None:
            return element
    rest = body[at:]
    if sum(rest.count(sign) for sign in (b",", b"[", b"{")) <= FEW_VALUES:
        element = _first(body, at, len(rest))
        assert element is not None
        return element
    what = f"transactions[{position}] has more than {most_bytes} bytes; send less."
    raise ApiError(413, "body_too_large", what, limit_bytes=most_bytes)


def _first(body: bytes, at: int, window: int) -> Element | None:
    """What stands at `at`, or None if it may go on behind the window."""
    is_all = at + window >= len(body)
    part = body[at : at + window]
    try:
        text, _ = codecs.utf_8_decode(part, "strict", is_all)
        value, end = DECODER.raw_decode(text)
    except json.JSONDecodeError as error:
        if not is_all:
            return None
        raise not_json(f"{error.msg}: byte {at + _size(text, error.pos)}") from None
    except UnicodeDecodeError as error:
        raise not_json(f"byte {at + error.start} is not UTF-8") from None
    except RecursionError:
        raise not_json("it is nested too deeply") from None
    except ValueError as error:
        raise not_json(str(error)) from None
    if not is_all and end > len(text) - 3 and isinstance(value, int | float):
        return None  # a number may go on: "1e+" was read as 1
    return Element(value, _size(text, end))


def _size(text: str, end: int) -> int:
    """In bytes."""
    return end if text.isascii() else len(text[:end].encode("utf-8"))


def _require_end(body: bytes, at: int) -> None:
    """Behind the list there is nothing more."""
    at = _after_space(body, at)
    sign = body[at : at + 1]
    if sign == b",":
        _refuse_field(body, _after_space(body, at + 1))
    if sign != b"}":
        raise not_json(f"Expecting ',' delimiter: byte {at}")
    at = _after_space(body, at + 1)
    if at < len(body):
        raise not_json(f"Extra data: byte {at}")


def _refuse_field(body: bytes, at: int) -> NoReturn:
    name = _first(body, at, SHORT_BYTES)
    if name is None or not isinstance(name.value, str):
        raise not_json(f"Expecting property name enclosed in double quotes: byte {at}")
    if name.value == FIELD:
        raise not_json(f"an object has a name twice: {FIELD}")
    raise bad_field(cut(name.value), f"unknown field; known here: {FIELD}")


def _after_space(body: bytes, at: int) -> int:
    found = _SPACE.match(body, at)
    assert found is not None
    return found.end()
