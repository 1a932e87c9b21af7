"""coordinator/admission.py: what waits is bounded in time, and what can be done is done.

The log is played by a queue that applies so many a second, in groups, each after its sync.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

import pytest

from coordinator.admission import (
    ALONE_S,
    BATCH_LEAST,
    LEAST,
    LONGEST_REST_S,
    TARGET_S,
    Admission,
    Line,
    Place,
    Rests,
)

GROUP_S = 0.01
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
                admission.beginning()
                waiting.append(now)
            else:
                refused += counted
        done = min(done + capacity * GROUP_S, len(waiting) + 1)
        for _ in range(min(int(done), len(waiting))):
            done -= 1
            began = waiting.popleft()
            admission.begun(now + GROUP_S)
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
        admission.beginning()
    assert not admission.admits(1_000.0)
    admission.begun(1_000.0)
    assert admission.admits(1_000.0)


def test_while_the_log_stands_still_what_it_did_before_counts_no_more() -> None:
    admission = Admission(target_s=1.0, least=10)
    for _ in range(100):
        admission.beginning()
        admission.begun(5.0)
    for _ in range(50):
        admission.beginning()
    assert admission.admits(5.5)  # a hundred were applied within the last second
    assert not admission.admits(7.5)  # and none within this one
    assert admission.waiting == 50


def test_a_faster_log_makes_room_for_more() -> None:
    admission = Admission(target_s=1.0, least=10)
    allowed = []
    for second in range(1, 5):
        while admission.admits(float(second)):
            admission.beginning()
        allowed.append(admission.waiting)
        for _ in range(admission.waiting):
            admission.begun(second + 0.5)
            if admission.admits(second + 0.5):
                admission.beginning()
        for _ in range(admission.waiting):
            admission.begun(second + 0.6)
    assert allowed == sorted(allowed)
    assert allowed[-1] > allowed[0]


def test_what_a_leadership_left_waiting_is_forgotten() -> None:
    admission = Admission(least=3)
    for _ in range(3):
        admission.beginning()
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
    at_first = connections / 20.0  # spread over the seconds that are played
    assert refusals_per_s(connections, Rests(per_s=250)) <= 251 + at_first


def test_nobody_rests_for_ever() -> None:
    rests = Rests(per_s=10)
    assert max(rests.rest_s(5.0) for _ in range(1_000)) == pytest.approx(LONGEST_REST_S)


def test_a_single_refusal_rests_hardly_at_all() -> None:
    rests = Rests(per_s=250)
    assert rests.rest_s(1.0) == rests.rest_s(2.0) == pytest.approx(1 / 250)


# --- the line of batches --------------------------------------------------------------------------


class Told:
    """Batches in a line, by name, and in which order they were told."""

    def __init__(self, admission: Admission) -> None:
        self.line = Line(admission)
        self.names: list[str] = []

    def wait(self, name: str, *, piece: int = 8, left: int = 8, now_s: float = 0.0) -> int:
        place = Place(piece, left, lambda: self.names.append(name))
        return self.line.wait(place, now_s)


def mixed(now_s: float = 0.0) -> Admission:
    """One that sees transactions come alone."""
    admission = Admission()
    admission.came_alone(now_s)
    return admission


def fill(admission: Admission, count: int) -> None:
    """So many of batches wait for the log."""
    for _ in range(count):
        admission.beginning(in_batch=True)


def test_who_waits_is_told_as_soon_as_enough_has_begun_and_in_order() -> None:
    admission = mixed()
    fill(admission, BATCH_LEAST)
    told = Told(admission)
    told.wait("a")
    told.wait("b")
    told.line.call(0.0)
    assert told.names == []
    admission.begun(0.0, in_batch=True)
    told.line.call(0.0)
    assert told.names == ["a"]
    assert len(told.line) == 1


def test_what_was_promised_is_counted_until_it_begins() -> None:
    admission = mixed()
    told = Told(admission)
    numbers = [told.wait(name, piece=BATCH_LEAST // 2) for name in "abcd"]
    assert told.names == ["a", "b"]
    told.line.leave(numbers[0], 0.0)  # and begins a piece: for a moment there is room for one more
    fill(admission, BATCH_LEAST // 2)
    assert told.names == ["a", "b", "c"]
    told.line.leave(numbers[1], 0.0)
    fill(admission, BATCH_LEAST // 2)
    told.line.leave(numbers[2], 0.0)
    assert told.names == ["a", "b", "c"]


def test_who_leaves_gives_back_its_place_or_its_promise() -> None:
    admission = mixed()
    told = Told(admission)
    promised = told.wait("a", piece=BATCH_LEAST)
    waiting = told.wait("b")
    told.wait("c")
    told.line.leave(waiting, 0.0)
    assert told.names == ["a"]
    told.line.leave(promised, 0.0)
    assert told.names == ["a", "c"]
    assert told.line.left == 0


def test_whoever_begins_a_piece_stands_at_the_end_again() -> None:
    admission = mixed()
    fill(admission, BATCH_LEAST - 1)  # room for one piece at a time
    told = Told(admission)
    waiting = {name: told.wait(name) for name in "abc"}
    for _ in range(5):
        name = told.names[-1]
        number = waiting.pop(name)
        waiting[name] = told.wait(name)
        told.line.leave(number, 0.0)
    assert "".join(told.names) == "abcabc"


class Shut(Admission):
    """No batch begins anything."""

    def has_room_for_batches(self, now_s: float, promised: int = 0) -> bool:  # noqa: ARG002
        return False


def test_the_line_is_too_long_when_it_holds_more_than_begins_within_its_time() -> None:
    told = Told(Shut())
    told.wait("a", left=LEAST - 1)
    assert not told.line.is_too_long(0.0)
    told.wait("b", left=1)
    assert told.line.is_too_long(0.0)


def test_a_fast_node_has_a_longer_line() -> None:
    admission = Shut()
    for _ in range(2 * LEAST):  # within a quarter of a second: eight times as many in two seconds
        admission.beginning()
        admission.begun(5.0)
    told = Told(admission)
    told.wait("a", left=2 * LEAST)
    assert not told.line.is_too_long(5.1)
    assert told.line.is_too_long(9.0)  # and has become slow


def test_beside_those_that_come_alone_batches_begin_few_at_a_time_and_else_as_many_as_any() -> None:
    admission = Admission()
    admission.came_alone(10.0)
    fill(admission, BATCH_LEAST)
    assert not admission.has_room_for_batches(10.0 + ALONE_S / 2)
    assert admission.has_room_for_batches(10.0 + ALONE_S)
    admission.came_alone(20.0)
    assert not admission.has_room_for_batches(20.0)
    assert admission.admits(20.0)


def test_many_that_come_alone_do_not_keep_batches_from_beginning() -> None:
    admission = mixed()
    for _ in range(10 * BATCH_LEAST):
        admission.beginning()
    assert admission.has_room_for_batches(0.0)
    fill(admission, BATCH_LEAST)
    assert not admission.has_room_for_batches(0.0)


class Unlined(Admission):
    """The rule broken: batches begin like any others."""

    def has_room_for_batches(self, now_s: float, promised: int = 0) -> bool:
        return self.admits(now_s) and not promised


@pytest.mark.parametrize(("kind", "most_s"), [(Admission, 0.04), (Unlined, None)])
def test_who_comes_alone_does_not_wait_for_whole_batches(
    kind: type[Admission], most_s: float | None
) -> None:
    """Four batches all the time, and one transaction alone in every tenth of a second."""
    admission, now_s, capacity = kind(), 0.0, 40  # in each group
    told = Told(admission)
    queue: deque[tuple[str, float]] = deque()
    numbers = {name: told.wait(name) for name in "abcd"}
    waits_s = []
    for turn in range(1_000):
        now_s = turn * GROUP_S
        if turn % 10 == 0:
            admission.came_alone(now_s)
            assert admission.admits(now_s)
            admission.beginning()
            queue.append(("alone", now_s))
        while told.names:
            name = told.names.pop(0)
            number = numbers[name]
            told.line.leave(number, now_s)
            for _ in range(8):
                admission.beginning(in_batch=True)
                queue.append((name, now_s))
            numbers[name] = told.wait(name, now_s=now_s)
        for _ in range(min(capacity, len(queue))):
            name, since_s = queue.popleft()
            admission.begun(now_s, in_batch=name != "alone")
            if name == "alone":
                waits_s.append(now_s + GROUP_S - since_s)
        told.line.call(now_s)
    assert len(waits_s) > 90
    if most_s is None:
        assert max(waits_s) > 0.2
    else:
        assert max(waits_s) <= most_s
