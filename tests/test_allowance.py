"""coordinator/allowance.py: so many per second, and as many at once."""

from __future__ import annotations

from coordinator.allowance import Allowance


def taken(allowance: Allowance, now_s: float, tries: int = 100) -> int:
    return sum(allowance.take(now_s) for _ in range(tries))


def test_as_many_as_a_second_allows_may_come_at_once() -> None:
    assert taken(Allowance(10), 1_000.0) == 10


def test_what_was_used_comes_back_with_time() -> None:
    allowance = Allowance(10)
    taken(allowance, 1_000.0)
    assert taken(allowance, 1_000.5) == 5
    assert taken(allowance, 1_000.5) == 0


def test_a_long_quiet_time_saves_nothing_up() -> None:
    allowance = Allowance(10)
    taken(allowance, 1_000.0)
    assert taken(allowance, 9_000.0) == 10
