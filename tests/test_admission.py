"""coordinator/admission.py: what waits is bounded in time, and what can be done is done.

The log is played by a queue that applies so many a second, in groups, each after its sync.
"""

from __future__ import annotations

import functools
import heapq
from collections import deque
from typing import NamedTuple

import pytest

from coordinator.admission import (
    LEAST,
    LONGEST_REST_S,
    ROOM_LEAST,
    ROOM_MOST,
    TARGET_S,
    Admission,
    Rests,
    WaitingLine,
    WayIn,
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
    """The rule broken: whoever comes waits."""

    def may_wait(self, others: int, now_s: float) -> bool:  # noqa: ARG002
        return True


class Spent:
    """The processor's time of a thread, as it is told."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def play(admission: Admission, *, capacity: float, offered: float) -> Played:
    """`offered` a second, evenly; what began is applied in order, every `GROUP_S`."""
    line = WaitingLine(admission)
    waiting: deque[float] = deque()

    def begin(came_s: float) -> None:
        admission.beginning(ADDRESS)
        waiting.append(came_s)

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
            match line.way_in(now, ADDRESS):
                case WayIn.AT_ONCE:
                    begin(now)
                case WayIn.IN_ORDER:
                    line.wait_alone(ADDRESS, 100, functools.partial(begin, now))
                case _:
                    refused += counted
        done = min(done + capacity * GROUP_S, admission.waiting + 1)
        for _ in range(min(int(done), len(waiting))):
            done -= 1
            came_s = waiting.popleft()
            admission.begun(ADDRESS, now + GROUP_S)
            applied += counted
            longest_s = max(longest_s, (now + GROUP_S - came_s) if counted else 0.0)
        line.call(now + GROUP_S)
    return Played(applied / (SECONDS * 0.75), refused / max(1, asked), longest_s)


@pytest.mark.parametrize("capacity", [2_000.0, 10_000.0, 30_000.0])
@pytest.mark.parametrize("factor", [1.5, 2.0, 5.0])
def test_over_capacity_as_much_is_done_and_nobody_waits_long(
    capacity: float, factor: float
) -> None:
    played = play(Admission(), capacity=capacity, offered=factor * capacity)
    assert played.per_s >= 0.98 * capacity
    assert played.longest_s <= max(1.5 * TARGET_S, (LEAST + ROOM_MOST) / capacity) + 2 * GROUP_S
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
    assert played.longest_s <= (LEAST + ROOM_MOST) / 100.0 + 0.1


def test_an_idle_node_takes_a_burst_and_no_more() -> None:
    admission = Admission(least=10)
    line = WaitingLine(admission)
    for _ in range(ROOM_LEAST):
        assert line.way_in(0.0, ADDRESS) is WayIn.AT_ONCE
        admission.beginning(ADDRESS)
    for _ in range(10):
        assert line.way_in(0.0, ADDRESS) is WayIn.IN_ORDER
        line.wait_alone(ADDRESS, 100, functools.partial(admission.beginning, ADDRESS))
    assert line.way_in(0.0, ADDRESS) is WayIn.REFUSED
    admission.begun(ADDRESS, 0.0)
    line.call(0.0)
    assert line.way_in(0.0, ADDRESS) is WayIn.IN_ORDER


def most(admission: Admission, now_s: float) -> int:
    """How many may wait outside."""
    return next(count for count in range(10_000) if not admission.may_wait(count, now_s))


def test_as_many_may_wait_outside_as_were_applied_lately() -> None:
    """Of the span before the present one the part that is still within the time."""
    admission = Admission(target_s=2.0, least=10)
    for began_s, applied in ((10.0, 100), (12.0, 40)):
        for _ in range(applied):
            admission.beginning(ADDRESS)
            admission.begun(ADDRESS, began_s)
    assert [most(admission, now_s) for now_s in (12.0, 13.0, 13.5)] == [140, 90, 65]
    assert [most(admission, now_s) for now_s in (14.0, 15.0)] == [40, 20]
    assert most(admission, 19.0) == 10  # in any case


def test_after_a_pause_only_what_has_come_since_counts() -> None:
    admission = Admission(target_s=1.0, least=10)
    for began_s in (5.0, 9.0):
        for _ in range(50):
            admission.beginning(ADDRESS)
            admission.begun(ADDRESS, began_s)
    assert most(admission, 9.5) == 50


def test_what_the_log_would_not_take_is_no_sign_of_its_speed() -> None:
    admission = Admission(target_s=1.0, least=10)
    for _ in range(100):
        admission.beginning(ADDRESS)
        admission.begun(ADDRESS, 5.0, applied=False)
    assert not admission.may_wait(10, 5.5)


# --- how much room there is -----------------------------------------------------------------------


def spans(admission: Admission, spent: Spent, busy: float, *, full: bool) -> int:
    """How much room there is after ten spans in which the thread was that busy."""
    began_s = admission._span_began_s
    for span in range(1, 11):
        spent.s += busy * TARGET_S
        for _ in range(admission._room if full else admission._room // 2):
            admission.beginning(ADDRESS)
        for _ in range(admission.waiting):
            admission.begun(ADDRESS, began_s + span * TARGET_S)
    return admission._room


def test_there_is_more_room_where_the_node_has_time_left_and_it_is_used() -> None:
    spent = Spent()
    admission = Admission(spent_s=spent)
    assert spans(admission, spent, 0.3, full=False) == ROOM_LEAST
    assert spans(admission, spent, 0.3, full=True) == ROOM_MOST
    assert spans(admission, spent, 0.9, full=True) == ROOM_LEAST
    assert spans(admission, spent, 0.3, full=False) == ROOM_LEAST


def test_a_log_that_takes_long_is_kept_busy() -> None:
    """Each entry takes a fifth of a second, whatever is in it: with the least room at a time, no
    more than that came of it.
    """
    admission = Admission()
    line, waiting, applied = WaitingLine(admission), 0, 0
    for turn in range(50):
        now_s = turn * 0.2
        for _ in range(2_000):
            match line.way_in(now_s, ADDRESS):
                case WayIn.AT_ONCE:
                    admission.beginning(ADDRESS)
                case WayIn.IN_ORDER:
                    line.wait_alone(ADDRESS, 100, functools.partial(admission.beginning, ADDRESS))
        waiting = admission.waiting
        for _ in range(waiting):
            admission.begun(ADDRESS, now_s + 0.2)
        applied += waiting
        line.call(now_s + 0.2)
    assert waiting == ROOM_MOST
    assert applied > 40 * ROOM_MOST


def test_of_an_address_of_which_nothing_waits_nothing_is_kept() -> None:
    """Else each that ever came would take memory for as long as this node leads."""
    admission = Admission()
    for number in range(3):
        admission.beginning(f"10.0.0.{number}")
        admission.begun(f"10.0.0.{number}", 5.0)
    assert not admission._waiting_of


def test_what_a_leadership_left_waiting_is_forgotten() -> None:
    admission = Admission()
    for _ in range(ROOM_LEAST):
        admission.beginning(ADDRESS)
    assert not admission.has_room()
    admission.forget()
    assert admission.has_room()
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
