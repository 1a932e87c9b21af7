"""What is made of branches is remembered while they recur, and never more than some megabytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import _lru_cache_wrapper, partial
from typing import Any

import pytest

from coordinator import api_show, packed, plan
from coordinator.facts import Branch, Branches
from coordinator.packed import unpack_branches
from coordinator.plan import Planned, recorded
from participants.contract import Vote
from tests.builders import acknowledge, begin, decide, led_machine, record

LONGEST = 1_960
MOST_CHARS = 3_000_000
"""Of all that one cache holds."""
YES = Vote.YES


def planned(url: str, count: int) -> tuple[Planned, ...]:
    ends = ("prepare", "commit", "rollback")
    return tuple([Planned("a", url, *[f"{url}/{n}/{end}" for end in ends]) for n in range(count)])


def record_them(places: tuple[Planned, ...]) -> None:
    recorded(places, (True,) * len(places))


def unpack_them(places: tuple[Planned, ...]) -> None:
    unpack_branches(begun(places).packed)


def show_them(places: tuple[Planned, ...]) -> None:
    branches = begun(places)
    count = len(branches)
    machine = led_machine(begin(of=branches), decide((YES,) * count), acknowledge(2**count - 1))
    api_show.show(record(machine))


def begun(places: tuple[Planned, ...]) -> Branches:
    return Branches([Branch(str(number), *place, True) for number, place in enumerate(places, 1)])


CACHES: dict[str, tuple[_lru_cache_wrapper[Any], Callable[[tuple[Planned, ...]], None]]] = {
    "recorded": (plan._recorded_short, record_them),
    "unpacked": (packed._unpack_short, unpack_them),
    "shown": (api_show._remembered_branches, show_them),
}


def is_remembered(cache: str, places: tuple[Planned, ...]) -> bool:
    remembered, use = CACHES[cache]
    remembered.cache_clear()
    use(places)
    return remembered.cache_info().currsize > 0


@pytest.mark.parametrize("cache", CACHES)
def test_the_largest_branches_that_are_remembered_fill_no_memory(cache: str) -> None:
    most = CACHES[cache][0].cache_info().maxsize
    assert most is not None
    urls = partial("http://{:a<{}}".format, "host")
    assert is_remembered(cache, planned(urls(20), 10)), "usual ones are, or there is no use in it"
    assert not is_remembered(cache, planned(urls(LONGEST), 10))
    for count in (1, 3, 10, 30, 256):
        for length in range(4, LONGEST, 20):
            places = planned(urls(length), count)
            chars = sum([len(text) for place in places for text in map(str, place)])
            if most * chars <= MOST_CHARS:
                continue
            assert not is_remembered(cache, places), f"{count} branches, {chars} characters"
            break
