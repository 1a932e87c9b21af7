"""coordinator/admission.py: what waits is bounded in time, and what can be done is done.

The log is played by a queue that applies so many a second, in groups, each after its sync.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

import pytest

from coordinator.admission import (
    LEAST,
    LONGEST_REST_S,
    TARGET_S,
    Admission,
    Rests,
)

GROUP_S = 0.01
ADDRESS = "10.0.0.1"
SECONDS = 8.0


class Played(NamedTuple):
    """What came of it, after the first quarter: shares of what was offered, waits in seconds."""

    per_s: float
    refused: float
    longest_s: float


class Everyone(Admission):
    """The rule broken: everybody is let in."""

    def admits(self, now_s: float) -> bool:  # noqa: ARG002
        return True


def play(admission: Admission, *, capacity: float, offered: float) -> Played:
    """`offered` a second, evenly; what waits is applied in order, every `GROUP_S`."""
    waiting: deque[float] = deque()
    due = done = 0.0
    asked = refused = applied = 0
    longest_s = 0.0
    for turn in range(round(SECONDS / GROUP_S)):
        now = turn * GROUP_S
        counted = now >= SECONDS / 4
        due += offered * GROUP_S
        for _ in range(int(due)):
            due -= 1
            asked += counted
            if admission.admits(now):
                admission.beginning(ADDRESS)
                waiting.append(now)
            else:
                refused += counted
        done = min(done + capacity * GROUP_S, len(waiting) + 1)
        for _ in range(min(int(done), len(waiting))):
            done -= 1
            began = waiting.popleft()
            admission.begun(ADDRESS, now + GROUP_S)
            applied += counted
            longest_s = max(longest_s, (now + GROUP_S - began) if counted else 0.0)
    return Played(applied / (SECONDS * 0.75), refused / max(1, asked), longest_s)


@pytest.mark.parametrize("capacity", [2_000.0, 10_000.0, 30_000.0])
@pytest.mark.parametrize("factor", [1.5, 2.0, 5.0])
def test_over_capacity_as_much_is_done_and_nobody_waits_long(
    capacity: float, factor: float
) -> None:
    played = play(Admission(), capacity=capacity, offered=factor * capacity)
    assert played.per_s >= 0.98 * capacity
    assert played.longest_s <= max(1.5 * TARGET_S, LEAST / capacity) + 2 * GROUP_S
    assert played.refused == pytest.approx(1 - 1 / factor, abs=0.02)


def test_without_the_rule_the_wait_grows_without_bound() -> None:
    played = play(Everyone(), capacity=2_000.0, offered=4_000.0)
    assert played.longest_s > SECONDS / 3
    assert played.refused == 0


@pytest.mark.parametrize("factor", [0.1, 0.5, 0.9])
def test_below_capacity_nobody_is_refused(factor: float) -> None:
    played = play(Admission(), capacity=10_000.0, offered=factor * 10_000.0)
    assert played.refused == 0


def test_a_slow_log_is_no_reason_to_close() -> None:
    """As many as `LEAST` may wait, however slow it is."""
    played = play(Admission(), capacity=100.0, offered=1_000.0)
    assert played.per_s == pytest.approx(100.0, rel=0.02)
    assert played.longest_s <= LEAST / 100.0 + 0.1


def test_an_idle_node_takes_a_burst_and_no_more() -> None:
    admission = Admission(least=10)
    for _ in range(10):
        assert admission.admits(1_000.0)
        admission.beginning(ADDRESS)
    assert not admission.admits(1_000.0)
    admission.begun(ADDRESS, 1_000.0)
    assert admission.admits(1_000.0)


def test_while_the_log_stands_still_what_it_did_before_counts_no_more() -> None:
    admission = Admission(target_s=1.0, least=10)
    for _ in range(100):
        admission.beginning(ADDRESS)
        admission.begun(ADDRESS, 5.0)
    for _ in range(50):
        admission.beginning(ADDRESS)
    assert admission.admits(5.5)  # a hundred were applied within the last second
    assert not admission.admits(7.5)  # and none within this one
    assert admission.waiting == 50


def test_a_faster_log_makes_room_for_more() -> None:
    admission = Admission(target_s=1.0, least=10)
    allowed = []
    for second in range(1, 5):
        while admission.admits(float(second)):
            admission.beginning(ADDRESS)
        allowed.append(admission.waiting)
        for _ in range(admission.waiting):
            admission.begun(ADDRESS, second + 0.5)
            if admission.admits(second + 0.5):
                admission.beginning(ADDRESS)
        for _ in range(admission.waiting):
            admission.begun(ADDRESS, second + 0.6)
    assert allowed == sorted(allowed)
    assert allowed[-1] > allowed[0]


def test_what_the_log_would_not_take_is_no_sign_of_its_speed() -> None:
    admission = Admission(target_s=1.0, least=10)
    for _ in range(100):
        admission.beginning(ADDRESS)
        admission.begun(ADDRESS, 5.0, applied=False)
    for _ in range(10):
        admission.beginning(ADDRESS)
    assert not admission.admits(5.5)


def test_of_an_address_of_which_nothing_waits_nothing_is_kept() -> None:
    """Else each that ever came would take memory for as long as this node leads."""
    admission = Admission()
    for number in range(3):
        admission.beginning(f"10.0.0.{number}")
        admission.begun(f"10.0.0.{number}", 5.0)
    assert not admission._waiting_of


def test_what_a_leadership_left_waiting_is_forgotten() -> None:
    admission = Admission(least=3)
    for _ in range(3):
        admission.beginning(ADDRESS)
    assert not admission.admits(1.0)
    admission.forget()
    assert admission.admits(1.0)
    assert admission.waiting == 0


def refusals_per_s(connections: int, rests: Rests, seconds: float = 20.0) -> float:
    """How many are refused by whom each connection asks again as soon as it is read again."""
    due = [(0.0, number) for number in range(connections)]
    refused = 0
    while due[0][0] < seconds:
        now_s, number = heapq.heappop(due)
        refused += 1
        heapq.heappush(due, (now_s + rests.rest_s(now_s) + 1e-6, number))
    return refused / seconds


@pytest.mark.parametrize("connections", [1, 50, 250, 5_000])
def test_there_are_no_more_refusals_a_second_than_the_node_has_time_for(connections: int) -> None:
    """Or, where thousands ask all the time, as they can have with the longest rest."""
    at_first = connections / 20.0  # spread over the seconds that are played
    most = max(250, connections / LONGEST_REST_S)
    assert refusals_per_s(connections, Rests(per_s=250)) <= most + 1 + at_first


def test_nobody_rests_for_ever() -> None:
    rests = Rests(per_s=10)
    assert max(rests.rest_s(5.0) for _ in range(1_000)) == pytest.approx(LONGEST_REST_S)


def test_a_single_refusal_rests_hardly_at_all() -> None:
    rests = Rests(per_s=250)
    assert rests.rest_s(1.0) == rests.rest_s(2.0) == pytest.approx(1 / 250)
