"""coordinator/admission.py: the line of batches and crowds; who has its turn, and when.

The log is played by a queue that applies so many in each group.
"""

from __future__ import annotations

import functools
from collections import deque

import pytest

from coordinator.admission import (
    ALONE_S,
    IN_TURN_LEAST,
    LEAST,
    OUTSIDE_BYTES,
    ROOM_LEAST,
    TURN,
    Admission,
    Queued,
    WaitingLine,
    WayIn,
)

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
GROUP_S = 0.01


class Told:
    """Those in a line, by name, and in which order they were told."""

    def __init__(self, admission: Admission) -> None:
        self.line = WaitingLine(admission)
        self.names: list[str] = []

    def wait(
        self, name: str, *, address: str = A, piece: int = 8, left: int = 8, now_s: float = 0.0
    ) -> Queued:
        place = Queued(address, piece, left, lambda: self.names.append(name))
        self.line.wait(place, now_s)
        return place


def asked(admission: Admission, address: str, now_s: float = 0.0, *, in_line: bool = False) -> bool:
    return admission.is_crowd(now_s, address, in_line=in_line, outside=0)


def mixed(now_s: float = 0.0) -> Admission:
    """One that sees transactions come alone."""
    admission = Admission()
    asked(admission, C, now_s)
    return admission


def fill(admission: Admission, count: int) -> None:
    """So many that stood in line wait for the log."""
    for _ in range(count):
        admission.beginning(None)


# --- whose turn it is -----------------------------------------------------------------------------


def test_who_waits_is_told_as_soon_as_enough_has_begun_and_in_order() -> None:
    admission = mixed()
    fill(admission, IN_TURN_LEAST)
    told = Told(admission)
    told.wait("a")
    told.wait("b")
    told.line.call(0.0)
    assert told.names == []
    admission.begun(None, 0.0)
    told.line.call(0.0)
    assert told.names == ["a"]
    assert len(told.line) == 1


def test_of_an_address_that_stands_in_line_no_more_nothing_is_kept() -> None:
    told = Told(mixed())
    for address in (A, B, C):
        told.line.leave(told.wait("x", address=address), 0.0)
    assert told.names == ["x"] * 3
    assert not told.line._left
    assert not told.line._queues
    assert not told.line._promised


def test_what_was_promised_is_counted_until_it_begins() -> None:
    admission = mixed()
    told = Told(admission)
    places = [told.wait(name, piece=IN_TURN_LEAST // 2) for name in "abcd"]
    assert told.names == ["a", "b"]
    told.line.leave(places[0], 0.0)  # and begins a piece: for a moment there is room for one more
    fill(admission, IN_TURN_LEAST // 2)
    assert told.names == ["a", "b", "c"]
    told.line.leave(places[1], 0.0)
    fill(admission, IN_TURN_LEAST // 2)
    told.line.leave(places[2], 0.0)
    assert told.names == ["a", "b", "c"]


def test_who_leaves_gives_back_its_place_or_its_promise() -> None:
    admission = mixed()
    told = Told(admission)
    promised = told.wait("a", piece=IN_TURN_LEAST)
    waiting = told.wait("b")
    told.wait("c")
    told.line.leave(waiting, 0.0)
    assert told.names == ["a"]
    told.line.leave(promised, 0.0)
    assert told.names == ["a", "c"]
    assert not told.line


def test_a_batch_that_begins_a_piece_stands_at_the_end_again() -> None:
    admission = mixed()
    fill(admission, IN_TURN_LEAST - 1)  # room for one piece at a time
    told = Told(admission)
    waiting = {name: told.wait(name) for name in "abc"}
    for _ in range(5):
        name = told.names[-1]
        place = waiting.pop(name)
        waiting[name] = told.wait(name)
        told.line.leave(place, 0.0)
    assert "".join(told.names) == "abcabc"


class Room(Admission):
    """So much is let in from the line, promises not counted."""

    def __init__(self, elements: int = 0) -> None:
        super().__init__()
        self.elements = elements
        self.promised = 0

    def has_room_in_turn(self, now_s: float, promised: int = 0) -> bool:  # noqa: ARG002
        return promised < self.elements


def order(*waiting: tuple[str, str, int]) -> str:
    """In which order those of (name, address, piece) are told when there is room for all."""
    admission = Room()
    told = Told(admission)
    for name, address, piece in waiting:
        told.wait(name, address=address, piece=piece)
    admission.elements = 1_000
    told.line.call(0.0)
    return "".join(told.names)


def test_addresses_take_turns_and_each_keeps_its_own_order() -> None:
    batches = [("a", A, 8), ("b", A, 8), ("c", A, 8), ("x", B, 8), ("y", B, 8), ("1", C, 8)]
    assert order(*batches) == "ax1byc"


def test_a_turn_is_as_many_elements_whether_they_came_together_or_alone() -> None:
    alone = [(name, A, 1) for name in "abcdefghij"]
    assert TURN == 8
    assert order(*alone, ("x", B, 8), ("y", B, 8)) == "abcdefghxijy"
    assert order(("x", B, 8), *alone, ("y", B, 8)) == "xabcdefghyij"


def test_what_is_left_of_a_turn_is_not_taken_along_by_the_next_address() -> None:
    admission = Room()
    told = Told(admission)
    first = [told.wait(str(number), address=A, piece=1) for number in range(3)]
    for name in "abcdefghij":
        told.wait(name, address=B, piece=1)
    told.wait("x", address=C, piece=8)
    admission.elements = 3  # the first three are told, and their address has no more
    told.line.call(0.0)
    assert told.names == ["0", "1", "2"]
    admission.elements = 1_000
    told.line.leave(first[0], 0.0)
    assert "".join(told.names[3:]) == "abcdefghxij"


@pytest.mark.parametrize("waiting", [1, 100, 1_000])
def test_who_asks_for_little_does_not_wait_for_all_that_another_address_has_waiting(
    waiting: int,
) -> None:
    admission = Room()
    told = Told(admission)
    for number in range(waiting):
        told.wait(str(number), address=A, piece=1)
    told.wait("x", address=B, piece=1)
    admission.elements = 1_000_000
    told.line.call(0.0)
    assert told.names.index("x") <= TURN


def test_those_that_came_alone_begin_in_their_order_and_before_the_line() -> None:
    admission = Admission()
    told = Told(admission)
    fill(admission, ROOM_LEAST)
    told.wait("batch")
    for name in "abc":
        assert told.line.way_in(0.0, A) is WayIn.IN_ORDER
        told.line.wait_alone(A, 100, functools.partial(told.names.append, name))
    told.line.call(0.0)
    assert told.names == []
    assert len(told.line) == 4
    admission.begun(None, 0.0)
    assert told.line.way_in(0.0, A) is WayIn.IN_ORDER  # others came before
    told.line.call(0.0)
    assert "".join(told.names) == "abc"
    assert told.line.way_in(0.0, A) is WayIn.AT_ONCE


# --- how long the line may be ---------------------------------------------------------------------


def test_the_line_is_too_long_when_it_holds_more_than_begins_within_its_time() -> None:
    told = Told(Room())
    told.wait("a", left=LEAST - 1)
    assert not told.line.is_too_long(0.0, A)
    told.wait("b", left=1)
    assert told.line.is_too_long(0.0, A)
    assert not told.line.is_too_long(0.0, B)  # that is not what B asked for


def test_a_fast_node_has_a_longer_line_and_many_addresses_share_it() -> None:
    admission = Room()
    for _ in range(2 * LEAST):  # within a quarter of a second: eight times as many in two seconds
        admission.beginning(A)
        admission.begun(A, 5.0)
    told = Told(admission)
    told.wait("a", left=5 * LEAST)
    assert not told.line.is_too_long(5.1, A)
    assert told.line.is_too_long(9.0, A)  # and has become slow
    told.wait("b", address=B)
    assert told.line.is_too_long(5.1, A)


# --- who stands in it -----------------------------------------------------------------------------


def test_beside_those_that_come_alone_few_begin_at_a_time_and_else_as_many_as_any() -> None:
    admission = Admission()
    asked(admission, C, 10.0)
    fill(admission, IN_TURN_LEAST)
    assert not admission.has_room_in_turn(10.0 + ALONE_S / 2)
    assert admission.has_room_in_turn(10.0 + ALONE_S)
    asked(admission, C, 30.0)
    assert not admission.has_room_in_turn(30.0)
    assert admission.has_room()


def test_many_that_come_alone_do_not_keep_those_in_line_from_beginning() -> None:
    admission = mixed()
    for _ in range(10 * IN_TURN_LEAST):
        admission.beginning(C)
    assert admission.has_room_in_turn(0.0)
    fill(admission, IN_TURN_LEAST)
    assert not admission.has_room_in_turn(0.0)


def ask_for(admission: Admission, address: str, count: int, now_s: float = 0.0) -> list[bool]:
    """That many at a time; whether each is to stand in line. Those that are not begin."""
    answers = []
    for _ in range(count):
        answers.append(asked(admission, address, now_s))
        if not answers[-1]:
            admission.beginning(address)
    return answers


def test_the_only_address_is_no_crowd_however_much_it_asks_for() -> None:
    admission = Admission()
    assert not any(ask_for(admission, A, 100))
    assert not any(ask_for(admission, A, 100, 2 * ALONE_S))


def test_beside_another_address_one_that_asks_for_much_at_a_time_is_a_crowd() -> None:
    admission = Admission()
    assert not any(ask_for(admission, A, 1) + ask_for(admission, B, 1))
    answers = ask_for(admission, A, 100)
    assert answers == [False] * (IN_TURN_LEAST - 1) + [True] * (101 - IN_TURN_LEAST)
    assert not any(ask_for(admission, B, 1))


def test_a_crowd_is_one_until_it_has_asked_for_little_for_a_while() -> None:
    admission = Admission()
    ask_for(admission, B, 1)
    assert ask_for(admission, A, 100)[-1]
    for _ in range(IN_TURN_LEAST):
        admission.begun(A, 1.0)
    now_s = 0.0
    for _ in range(4):
        now_s += 0.6 * ALONE_S
        asked(admission, B, now_s)
        assert asked(admission, A, now_s, in_line=True)
    asked(admission, B, now_s + 0.9 * ALONE_S)
    assert asked(admission, A, now_s + 0.9 * ALONE_S)
    assert not asked(admission, A, now_s + 1.1 * ALONE_S)


def test_of_a_crowd_that_is_none_any_more_nothing_is_kept() -> None:
    admission = mixed()
    assert ask_for(admission, A, IN_TURN_LEAST + 1)[-1]
    assert not asked(admission, A, 10 * ALONE_S)
    assert not admission._crowds


def test_when_the_others_have_gone_a_crowd_is_none() -> None:
    admission = Admission()
    ask_for(admission, B, 1)
    assert ask_for(admission, A, 100)[-1]
    assert not asked(admission, A, 1.1 * ALONE_S)


def test_crowds_that_never_come_again_are_let_go_of() -> None:
    """Else the memory of a leader would grow with the addresses that it has seen."""
    admission = Admission()
    seconds = 3 * round(ALONE_S)
    for second in range(seconds):
        assert asked(admission, f"10.0.1.{second}", second, in_line=True) is (second > 0)
    assert len(admission._crowds) == ALONE_S
    fresh = f"10.0.1.{seconds - 2}"
    assert asked(admission, fresh, seconds), "it asked for too much a moment ago"


def test_crowds_among_themselves_begin_as_much_as_any() -> None:
    """No throughput is given away where nobody has a use for it."""
    admission = Admission()
    ask_for(admission, B, 1)
    ask_for(admission, A, 100)
    ask_for(admission, B, 100)
    fill(admission, IN_TURN_LEAST)
    assert not admission.has_room_in_turn(0.5 * ALONE_S)
    for tenth in range(5, 20):
        for address in (A, B):
            assert asked(admission, address, tenth / 10 * ALONE_S, in_line=True)
    assert admission.has_room_in_turn(1.9 * ALONE_S)


def test_who_waits_outside_for_too_much_is_a_crowd_too() -> None:
    """Others have taken the room: of its own nothing waits for the log yet."""
    admission = Admission()
    told = Told(admission)
    for number in range(ROOM_LEAST):
        assert told.line.way_in(0.0, f"10.0.1.{number}") is WayIn.AT_ONCE
        admission.beginning(f"10.0.1.{number}")
    for _ in range(IN_TURN_LEAST):
        assert told.line.way_in(0.0, A) is WayIn.IN_ORDER
        told.line.wait_alone(A, 100, functools.partial(admission.beginning, A))
    assert told.line.way_in(0.0, A) is WayIn.IN_TURN
    assert told.line.way_in(0.0, B) is WayIn.IN_ORDER
    for number in range(ROOM_LEAST):
        admission.begun(f"10.0.1.{number}", 0.0)
    told.line.call(0.0)
    assert not told.line._alone_of  # nothing is kept of who has gone
    assert told.line.way_in(0.0, A) is WayIn.IN_TURN  # and all of it waits for the log now


def test_what_was_sent_by_those_outside_is_bounded() -> None:
    admission = Admission()
    told = Told(admission)
    for _ in range(ROOM_LEAST):
        admission.beginning(C)
    sizes = [1_000_000] * (OUTSIDE_BYTES // 1_000_000 + 1)  # the last reaches the bound
    for size in sizes:
        assert told.line.way_in(0.0, A) is WayIn.IN_ORDER
        told.line.wait_alone(A, size, lambda: None)
    assert len(told.line) < LEAST
    assert told.line.way_in(0.0, A) is WayIn.REFUSED
    admission.begun(C, 0.0)
    told.line.call(0.0)
    assert told.line._bytes == 0
    assert told.line.way_in(0.0, A) is WayIn.AT_ONCE


def test_what_was_sent_by_crowds_in_line_is_bounded_too() -> None:
    admission = Admission()
    told = Told(admission)
    asked(admission, A)
    asked(admission, B)  # another one, so that who asks for much is a crowd
    fill(admission, ROOM_LEAST)
    for _ in range(IN_TURN_LEAST):
        admission.beginning(A)
    places = []
    while told.line.way_in(0.0, A) is WayIn.IN_TURN:
        place = Queued(A, 1, 1, lambda: None, 1_000_000)
        told.line.wait(place, 0.0)
        places.append(place)
    assert len(places) == OUTSIDE_BYTES // 1_000_000 + 1 < LEAST
    assert told.line.way_in(0.0, A) is WayIn.REFUSED
    assert told.line.way_in(0.0, B) is WayIn.REFUSED
    told.line.leave(places[0], 0.0)
    assert told.line.way_in(0.0, A) is WayIn.IN_TURN
    for place in places[1:]:
        told.line.leave(place, 0.0)
    assert told.line._bytes == 0


# --- what it is good for --------------------------------------------------------------------------


class Unlined(Admission):
    """The rule broken: what stands in line begins like any other."""

    def has_room_in_turn(self, now_s: float, promised: int = 0) -> bool:  # noqa: ARG002
        return self.has_room() and not promised


class Untold(Admission):
    """The rule broken: no address is a crowd."""

    def is_crowd(self, now_s: float, address: str, *, in_line: bool, outside: int) -> bool:
        super().is_crowd(now_s, address, in_line=in_line, outside=outside)
        return False


def longest_wait_s(admission: Admission, *, clients: int) -> float:
    """Of one in every tenth of a second, beside as many clients of another address that ask again
    as soon as they are answered; the log applies 40 in each group.
    """
    told = Told(admission)
    queue: deque[tuple[str, str | None, float]] = deque()
    places: dict[str, Queued] = {}
    idle = [str(number) for number in range(clients)]
    waits_s = []

    def ask(name: str, address: str, now_s: float) -> None:
        match told.line.way_in(now_s, address):
            case WayIn.IN_TURN:
                places[name] = told.wait(name, address=address, piece=1, left=1, now_s=now_s)
            case WayIn.IN_ORDER:
                told.line.wait_alone(address, 100, functools.partial(begin, name, address, now_s))
            case _:
                begin(name, address, now_s)

    def begin(name: str, address: str, now_s: float) -> None:
        admission.beginning(address)
        queue.append((name, address, now_s))

    for turn in range(1_000):
        now_s = turn * GROUP_S
        if turn % 10 == 0:
            ask("alone", B, now_s)
        for name in idle:
            ask(name, A, now_s)
        idle = []
        while told.names:
            name = told.names.pop(0)
            told.line.leave(places.pop(name), now_s)
            admission.beginning(None)
            queue.append((name, None, now_s))
        for _ in range(min(40, len(queue))):
            name, address, since_s = queue.popleft()
            admission.begun(address, now_s)
            if name == "alone":
                waits_s.append(now_s + GROUP_S - since_s)
            else:
                idle.append(name)
        told.line.call(now_s)
    assert len(waits_s) > 90
    return max(waits_s[10:])


@pytest.mark.parametrize("clients", [64, 512, 1_000])
def test_who_asks_for_little_does_not_wait_for_a_crowd(clients: int) -> None:
    assert longest_wait_s(Admission(), clients=clients) <= 0.03


def test_without_the_rule_everybody_waits_for_it() -> None:
    assert longest_wait_s(Untold(), clients=512) > 0.1


@pytest.mark.parametrize(("kind", "most_s"), [(Admission, 0.04), (Unlined, None)])
def test_who_comes_alone_does_not_wait_for_whole_batches(
    kind: type[Admission], most_s: float | None
) -> None:
    """Four batches all the time, and one transaction alone in every tenth of a second."""
    admission, now_s, capacity = kind(), 0.0, 40  # in each group
    told = Told(admission)
    queue: deque[tuple[str, float]] = deque()
    places = {name: told.wait(name) for name in "abcd"}
    waits_s = []
    for turn in range(1_000):
        now_s = turn * GROUP_S
        if turn % 10 == 0:
            assert not asked(admission, C, now_s)
            assert admission.has_room()
            admission.beginning(C)
            queue.append(("alone", now_s))
        while told.names:
            name = told.names.pop(0)
            told.line.leave(places[name], now_s)
            for _ in range(8):
                admission.beginning(None)
                queue.append((name, now_s))
            places[name] = told.wait(name, now_s=now_s)
        for _ in range(min(capacity, len(queue))):
            name, since_s = queue.popleft()
            admission.begun(C if name == "alone" else None, now_s)
            if name == "alone":
                waits_s.append(now_s + GROUP_S - since_s)
        told.line.call(now_s)
    assert len(waits_s) > 90
    if most_s is None:
        assert max(waits_s) > 0.2
    else:
        assert max(waits_s) <= most_s
