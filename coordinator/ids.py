"""Ids of transactions: which ones are valid, how one is made, and which time one carries. Pure.

A client makes the id before it sends, so that asking again is the same transaction. An id is 1 to
64 characters of `A-Z a-z 0-9 . _ : -`, but neither `.` nor `..`, which URL libraries take out of
the path of `GET /v1/transactions/..`. The client library makes UUIDv7 (RFC 9562, section 5.7):
their first 48 bits are the time in milliseconds since 1970, so an id too old to be remembered can
be told from a new one, and is refused for ever instead of being run twice (PROTOCOL, section 9).

Clock and randomness come from outside, so that a simulation makes the same ids from the same seed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from random import Random
from typing import TypeGuard

MAX_ID_CHARS = 64
MAX_STEP_BACK_MS = 60_000
"""Well below the five minutes by which an id's time may be ahead of the coordinator's clock."""

ID_RULE = f"must be 1 to {MAX_ID_CHARS} characters of A-Z a-z 0-9 . _ : -, and not . or .."

_VALID = re.compile(rf"(?!\.{{1,2}}\Z)[A-Za-z0-9._:-]{{1,{MAX_ID_CHARS}}}")
_UUID7 = re.compile(r"([0-9a-f]{8})-([0-9a-f]{4})-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_RANDOM_BITS = 74
_STEP_BITS = 32
_TIME_LIMIT = 1 << 48


def is_valid_id(text: object) -> TypeGuard[str]:
    """Whether `text` may name a transaction."""
    return isinstance(text, str) and _VALID.fullmatch(text) is not None


@functools.lru_cache(maxsize=4096)
def time_of(transaction_id: str) -> int | None:
    """The time that the id carries, in ms since 1970; None unless it is a UUIDv7 in canonical form.

    Canonical is lower case with four hyphens. Another spelling is an id like any other: valid,
    timeless. Remembered: asked for four times in a transaction's short life.
    """
    match = _UUID7.fullmatch(transaction_id)
    return None if match is None else int(match[1] + match[2], 16)


class IdMaker:
    """Makes UUIDv7 that grow strictly: two ids of one maker sort in the order in which they were
    made.

    In one millisecond, or when the clock steps back a little, the random part is advanced by a
    random step (RFC 9562, section 6.2, method 2), so that the next id cannot be guessed from the
    last. A clock that is set back further is followed instead: ids that stayed ahead of it would be
    refused as coming from the future.
    """

    def __init__(self, now_ms: Callable[[], int], random: Random) -> None:
        self._now_ms = now_ms
        self._random = random
        self._last_ms = -1
        self._last_bits = 0

    def __call__(self) -> str:
        now_ms = self._now_ms()
        if now_ms > self._last_ms or now_ms < self._last_ms - MAX_STEP_BACK_MS:
            self._last_ms = now_ms
            self._last_bits = self._random.getrandbits(_RANDOM_BITS)
        else:
            self._last_bits += 1 + self._random.getrandbits(_STEP_BITS)
            if self._last_bits >> _RANDOM_BITS:  # no room in this millisecond: borrow from the next
                self._last_ms += 1
                self._last_bits = self._random.getrandbits(_RANDOM_BITS)
        return _canonical(self._last_ms, self._last_bits)


def _canonical(now_ms: int, random_bits: int) -> str:
    assert 0 <= now_ms < _TIME_LIMIT
    high, low = random_bits >> 62, random_bits & ((1 << 62) - 1)
    number = now_ms << 80 | 7 << 76 | high << 64 | 0b10 << 62 | low
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
