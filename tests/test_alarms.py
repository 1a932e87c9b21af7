"""One queue of times for all transactions."""

from __future__ import annotations

import math
from random import Random

from coordinator.alarms import EMPTY_KEPT, GRAIN_S, NEVER_S, Alarms


def test_nothing_rings_early_and_nothing_more_than_a_grain_late() -> None:
    alarms: Alarms[int] = Alarms()
    draw = Random(1)
    times = [draw.uniform(0, 100) for _ in range(1_000)]
    for item, due_s in enumerate(times):
        alarms.set(item, due_s)
    rung = []
    while (now_s := alarms.next_s()) != NEVER_S:
        assert alarms.take_due(now_s - 1e-9) == []
        for item in alarms.take_due(now_s):
            assert times[item] <= now_s < times[item] + GRAIN_S
            rung.append(item)
    assert sorted(rung) == list(range(1_000))
    assert [math.ceil(times[i] / GRAIN_S) for i in rung] == sorted(
        math.ceil(time / GRAIN_S) for time in times
    )


def test_of_several_times_only_the_last_counts() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 1.0)
    alarms.set("a", 3.0)
    alarms.set("b", 3.0)
    alarms.set("b", 2.0)
    assert len(alarms) == 2
    assert alarms.take_due(1.5) == []
    assert alarms.take_due(10.0) == ["b", "a"]
    assert alarms.next_s() == NEVER_S


def test_what_is_due_together_comes_in_the_order_in_which_it_was_set() -> None:
    alarms: Alarms[str] = Alarms()
    for item in "cab":
        alarms.set(item, 1.0)
    assert alarms.take_due(alarms.next_s()) == ["c", "a", "b"]


def test_what_was_cleared_or_has_rung_leaves_nothing_behind() -> None:
    alarms: Alarms[int] = Alarms()
    for item in range(1_000):
        alarms.set(item, 10.0 + item / 100)
        alarms.clear(item)
        alarms.clear(item)
    alarms.set(7, 1.0)
    assert alarms.next_s() == 1.0
    assert alarms.take_due(2.0) == [7]
    alarms.clear(7)
    assert alarms.next_s() == NEVER_S
    assert len(alarms) == len(alarms._buckets) == len(alarms._grains) == 0


def test_alarms_of_hours_ahead_that_were_cleared_leave_nothing_behind_either() -> None:
    alarms: Alarms[int] = Alarms()
    alarms.set(-1, 1.0)
    for item in range(50_000):
        alarms.set(item, 3_600.0 + item / 100)
        alarms.clear(item)
    assert len(alarms._buckets) == len(alarms._grains) < 2 * EMPTY_KEPT
    alarms.set(7, 3_605.0)
    assert alarms.take_due(4_000.0) == [-1, 7]
