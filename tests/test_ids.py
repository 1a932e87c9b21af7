"""Ids: which are valid, that made ones carry their time and grow."""

from __future__ import annotations

import re
import uuid
from random import Random

import pytest

from coordinator.ids import IdMaker, is_valid_id, time_of
from coordinator.openapi_schemas import ID_PATTERN
from tests.builders import uuid7

NOW_MS = 1_767_225_600_123


def test_a_made_id_is_a_uuid_of_version_7_and_carries_its_time() -> None:
    for seed in range(200):
        made = uuid7(NOW_MS, Random(seed))
        parsed = uuid.UUID(made)
        assert str(parsed) == made
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert time_of(made) == NOW_MS
        assert is_valid_id(made)


@pytest.mark.parametrize("bit", range(74))
def test_every_random_bit_has_its_place_in_the_id(bit: int) -> None:
    class OneBit(Random):
        def getrandbits(self, _count: int, /) -> int:
            return 1 << bit

    number = uuid.UUID(IdMaker(lambda: NOW_MS, OneBit())()).int
    random_bits = (number >> 64 & 0xFFF) << 62 | number & ((1 << 62) - 1)
    assert random_bits == 1 << bit


def test_the_same_seed_makes_the_same_ids() -> None:
    assert uuid7(NOW_MS, Random(1)) == uuid7(NOW_MS, Random(1))
    assert uuid7(NOW_MS, Random(1)) != uuid7(NOW_MS, Random(2))


def test_ids_of_one_maker_grow_also_when_the_clock_steps_back() -> None:
    times = [NOW_MS] * 500 + [NOW_MS - 10_000] * 500 + [NOW_MS + 1] * 500
    clock = iter(times)
    make = IdMaker(lambda: next(clock), Random(3))
    made = [make() for _ in times]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert time_of(made[999]) == NOW_MS
    assert time_of(made[1000]) == NOW_MS + 1


def test_a_clock_that_is_set_back_far_is_followed() -> None:
    times = iter([NOW_MS, NOW_MS - 3_600_000, NOW_MS - 3_600_000])
    make = IdMaker(lambda: next(times), Random(3))
    make()
    second, third = make(), make()
    assert time_of(second) == NOW_MS - 3_600_000
    assert second < third


def test_a_full_millisecond_borrows_from_the_next() -> None:
    class Highest(Random):
        def getrandbits(self, count: int, /) -> int:
            return (1 << count) - 1

    make = IdMaker(lambda: NOW_MS, Highest())
    first, second = make(), make()
    assert first < second
    assert time_of(second) == NOW_MS + 1


@pytest.mark.parametrize(
    "text", ["a", "A-Z.0_9:x", "...", ".a", "..:", "x" * 64, str(uuid.uuid4())]
)
def test_valid_ids(text: str) -> None:
    assert is_valid_id(text)


@pytest.mark.parametrize(
    "text", ["", "x" * 65, "a b", "a/b", "é", "a\n", ".", "..", "\u0661", None, 7, b"a"]
)
def test_what_is_no_id(text: object) -> None:
    assert not is_valid_id(text)


@pytest.mark.parametrize("text", ["", "a", ".", "..", "...", "a b", "x" * 64, "x" * 65])
def test_the_api_describes_the_ids_that_it_takes(text: str) -> None:
    assert bool(re.search(ID_PATTERN, text)) == is_valid_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "order-17",
        str(uuid.UUID(int=0)),
        "9b9e1f3c-2f0b-4c57-9d5e-1f2f8b8a0c11",  # version 4
        "019B7C0B-0000-7000-8000-000000000000",  # upper case
        "019b7c0b000070008000000000000000",  # no hyphens
        "019b7c0b-0000-7000-c000-000000000000",  # another variant
        "019b7c0b-0000-7000-8000-000000000000x",
    ],
)
def test_only_a_uuid_of_version_7_in_canonical_form_carries_a_time(text: str) -> None:
    assert time_of(text) is None
