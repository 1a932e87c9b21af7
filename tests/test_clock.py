"""participants/clock.py: nothing seems older than it is, whatever is done to the wall clock."""

from __future__ import annotations

from random import Random

import pytest

from participants.clock import LeastClock, wall_clock_ms

DAY_MS = 86_400_000
WINDOW_MS = 100_000


def looked(*looks: tuple[float, float]) -> LeastClock:
    """(the wall clock, the clock that only grows)"""
    clock = LeastClock(WINDOW_MS)
    for wall_ms, grown_ms in looks:
        clock.look(wall_ms, grown_ms)
    return clock


def test_the_wall_clock_is_in_milliseconds() -> None:
    assert wall_clock_ms() == pytest.approx(1_790_000_000_000, rel=0.2)


def test_a_clock_that_nobody_sets_is_believed_to_the_second() -> None:
    clock = looked(*((DAY_MS + at, at) for at in range(0, 10 * WINDOW_MS, 777)))
    assert (
        DAY_MS + 10 * WINDOW_MS - 1_000 <= clock.now_ms(10 * WINDOW_MS) <= DAY_MS + 10 * WINDOW_MS
    )


def test_a_clock_that_was_set_ahead_is_not_believed_within_the_window() -> None:
    clock = looked((DAY_MS, 0), (2 * DAY_MS, 10_000), (2 * DAY_MS + 90_000, 100_000))
    assert clock.now_ms(100_000) == DAY_MS + 100_000
    clock.look(2 * DAY_MS + 90_001, 100_001)
    assert clock.now_ms(100_001) == 2 * DAY_MS + 90_001  # nobody saw it otherwise since


def test_one_that_was_behind_for_a_moment_counts_no_longer_than_the_window() -> None:
    clock = looked((DAY_MS, 0), (0, 10_000), (DAY_MS + 20_000, 20_000))
    assert clock.now_ms(20_000) == 10_000
    clock.look(DAY_MS + 110_000, 110_000)
    assert clock.now_ms(110_000) == 100_000
    clock.look(DAY_MS + 111_000, 111_000)
    assert clock.now_ms(111_000) == DAY_MS + 111_000


@pytest.mark.parametrize("seed", range(20))
def test_nothing_that_was_stamped_within_the_window_seems_older_than_it_is(seed: int) -> None:
    draw = Random(seed)
    clock, lead_ms, stamps = LeastClock(WINDOW_MS), float(DAY_MS), list[tuple[float, float]]()
    at_ms = 0.0
    for _ in range(2_000):
        at_ms += draw.uniform(0, 2_000)
        if draw.random() < 0.1:
            lead_ms += draw.choice((-DAY_MS, -500, 500, DAY_MS))
        clock.look(at_ms + lead_ms, at_ms)
        stamps.append((at_ms, at_ms + lead_ms))
        for stamped_ms, stamp_ms in stamps[-100:]:
            if at_ms - stamped_ms <= WINDOW_MS:
                assert clock.now_ms(at_ms) - stamp_ms <= at_ms - stamped_ms


def test_a_clock_that_runs_fast_costs_no_memory() -> None:
    clock = looked(*((at * 1.001, at) for at in range(0, 2_000_000, 10)))
    assert len(clock._leads) <= 2
