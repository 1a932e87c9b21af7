"""How much more may be begun."""

from __future__ import annotations

import pytest

from coordinator.capacity import Capacity
from coordinator.errors import AtCapacity
from coordinator.indexes import Payloads
from coordinator.settings import Limits

NOTHING = Payloads()


def test_what_is_recorded_and_what_is_being_begun_count_together() -> None:
    capacity = Capacity(Limits(unfinished=100, unfinished_per_participant=3))
    here, there = "http://here", "http://there"
    capacity.beginning([here])
    capacity.check([here, there], 1, {here: 1}, NOTHING)
    with pytest.raises(AtCapacity, match="3 branches are unfinished at http://here"):
        capacity.check([there, here], 1, {here: 2}, NOTHING)
    capacity.check([there], 1, {here: 2}, NOTHING)
    capacity.begun([here])
    capacity.check([here], 1, {here: 2}, NOTHING)


def test_the_number_of_transactions_is_limited_whatever_their_participants() -> None:
    capacity = Capacity(Limits(unfinished=2, unfinished_per_participant=3))
    capacity.check(["http://a"], 1, {}, NOTHING)
    with pytest.raises(AtCapacity, match="2 transactions are unfinished"):
        capacity.check(["http://a"], 2, {}, NOTHING)


def test_with_leadership_goes_what_was_being_begun() -> None:
    capacity = Capacity(Limits(unfinished_per_participant=1))
    capacity.beginning(["http://a"])
    capacity.clear()
    capacity.check(["http://a"], 0, {}, NOTHING)


def test_the_size_of_what_is_undecided_is_limited_and_so_is_each_participants_share() -> None:
    capacity = Capacity(Limits(body_bytes=10, undecided_bytes=100))
    held = Payloads()
    held.bytes, held.bytes_for = 99, {"http://a": 20, "http://b": 19}
    capacity.check(["http://b", "http://c"], 1, {}, held)
    with pytest.raises(AtCapacity, match="20 bytes are undecided at http://a"):
        capacity.check(["http://b", "http://a"], 1, {}, held)
    held.bytes = 100
    with pytest.raises(AtCapacity, match="100 bytes are undecided: "):
        capacity.check(["http://c"], 1, {}, held)
