"""The queue before a participant: order, room, and the closed lane that only probes."""

from __future__ import annotations

from random import Random

from coordinator.lane import Backoff, Impression, Lane

SERVED, REFUSED, UNREACHED = Impression.SERVED, Impression.REFUSED, Impression.UNREACHED


class Longest(Random):
    """Draws the longest pause every time, so that a test can tell what it is."""

    def uniform(self, _a: float, b: float) -> float:
        return b


def lane(room: int = 4, *, backs_off: bool = True, random: Random | None = None) -> Lane[int]:
    backoff = Backoff(0.05, 2.0) if backs_off else None
    return Lane(room=room, backoff=backoff, random=random or Longest())


def filled(count: int, room: int = 4, *, backs_off: bool = True) -> Lane[int]:
    queue = lane(room, backs_off=backs_off)
    for item in range(count):
        queue.put(item)
    return queue


def taken(queue: Lane[int], now: float = 0.0) -> list[int]:
    items: list[int] = []
    while (item := queue.take(now)) is not None:
        items.append(item)
    return items


def test_first_come_first_served_and_never_more_than_there_is_room() -> None:
    queue = filled(6)
    assert taken(queue) == [0, 1, 2, 3]
    queue.finished([SERVED], 0.0)
    assert taken(queue) == [4]
    assert (queue.under_way, len(queue)) == (4, 1)


def test_who_is_withdrawn_is_never_taken() -> None:
    queue = filled(3, room=1)
    assert taken(queue) == [0]
    assert queue.withdraw(1)
    assert not queue.withdraw(1)
    assert not queue.withdraw(0)  # under way
    queue.finished([SERVED], 0.0)
    assert taken(queue) == [2]


def test_who_is_put_back_waits_before_those_who_came_later() -> None:
    queue = filled(4)
    first = queue.take_all(0.0, 2)
    queue.put_back(first)
    assert (queue.under_way, list(queue)) == (0, [0, 1, 2, 3])
    assert queue.withdraw(1)
    assert taken(queue) == [0, 2, 3]


def test_a_participant_that_cannot_be_reached_closes_the_lane_at_once() -> None:
    queue = filled(10)
    taken(queue)
    queue.finished([UNREACHED], 1.0)
    assert queue.closed
    assert taken(queue, 1.0) == []
    assert queue.next_at() == 1.05


def test_only_one_probe_goes_per_pause_and_the_pause_doubles_to_its_maximum() -> None:
    queue = filled(100, room=50)
    taken(queue)
    for _ in range(50):
        queue.finished([UNREACHED], 0.0)
    pauses: list[float] = []
    now = 0.0
    for _ in range(10):
        at = queue.next_at()
        assert at is not None
        pauses.append(round(at - now, 6))
        now = at
        assert len(taken(queue, now)) == 1
        queue.finished([UNREACHED], now)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 2.0]


def test_probes_that_hang_leave_nothing_to_look_for() -> None:
    """When each that there is room for is under way, only the end of one makes another possible."""
    queue = filled(10, room=1)
    taken(queue)
    queue.finished([UNREACHED], 0.0)
    assert taken(queue, 0.05) == [1]
    assert queue.next_at() is None


def test_the_failures_of_calls_sent_before_it_closed_do_not_lengthen_the_pause() -> None:
    queue = filled(100, room=50)
    taken(queue)
    queue.finished([UNREACHED], 0.0)
    before = queue.next_at()
    for _ in range(49):
        queue.finished([UNREACHED], 0.01)
    assert queue.next_at() == before


def test_a_probe_that_hangs_does_not_hold_up_the_next_one() -> None:
    queue = filled(10, room=4)
    taken(queue)
    for _ in range(4):
        queue.finished([UNREACHED], 0.0)
    assert taken(queue, 0.05) == [4]
    assert taken(queue, 0.1) == []
    assert taken(queue, 0.16) == [5]
    assert queue.under_way == 2


def test_anything_served_opens_the_lane_and_it_drains_at_full_room() -> None:
    queue = filled(10)
    taken(queue)
    for _ in range(4):
        queue.finished([UNREACHED], 0.0)
    assert taken(queue, 0.05) == [4]
    queue.finished([SERVED], 0.06)
    assert not queue.closed
    assert taken(queue, 0.06) == [5, 6, 7, 8]


def test_the_pause_starts_anew_after_the_participant_has_served() -> None:
    queue = filled(100, room=1)
    now = 0.0
    for _ in range(8):
        assert len(taken(queue, now)) == 1
        queue.finished([UNREACHED], now)
        at = queue.next_at()
        assert at is not None
        now = at
    taken(queue, now)
    queue.finished([SERVED], now)
    taken(queue, now)
    queue.finished([UNREACHED], now)
    assert queue.next_at() == now + 0.05


def test_waking_lets_one_probe_go_at_once() -> None:
    queue = filled(10)
    taken(queue)
    for _ in range(4):
        queue.finished([UNREACHED], 0.0)
    queue.wake(0.01)
    assert queue.next_at() == 0.01
    assert taken(queue, 0.01) == [4]


def test_a_few_refusals_do_not_close_the_lane_but_a_long_row_of_them_does() -> None:
    queue = filled(100, room=1)
    for _ in range(31):
        assert len(taken(queue)) == 1
        queue.finished([REFUSED], 0.0)
    assert not queue.closed
    taken(queue)
    queue.finished([REFUSED], 0.0)
    assert queue.closed


def test_refusals_between_which_something_is_served_never_close_the_lane() -> None:
    queue = filled(400, room=1)
    for position in range(300):
        assert len(taken(queue)) == 1
        queue.finished([SERVED if position % 20 == 0 else REFUSED], 0.0)
    assert not queue.closed


def test_while_it_answers_with_refusals_the_pause_stays_short() -> None:
    queue = filled(100, room=1)
    now = 0.0
    for _ in range(8):  # out of reach for a while: the pause is long now
        taken(queue, now)
        queue.finished([UNREACHED], now)
        now = queue.next_at() or now
    for _ in range(10):
        assert len(taken(queue, now)) == 1
        queue.finished([REFUSED], now)
        at = queue.next_at()
        assert at is not None
        assert at - now <= 0.05 + 1e-9
        now = at
    assert queue.closed


def test_a_lane_without_backoff_never_closes() -> None:
    queue = filled(100, room=1, backs_off=False)
    for _ in range(100):
        assert len(taken(queue)) == 1
        queue.finished([UNREACHED], 0.0)
    assert not queue.closed
    assert queue.forget_at() == 0.0


def test_the_pauses_are_spread_over_their_whole_length() -> None:
    drawn: list[float] = []
    random = Random(7)
    for _ in range(200):
        queue = lane(random=random)
        queue.put(1)
        queue.put(2)
        queue.take(0.0)
        queue.finished([UNREACHED], 0.0)
        drawn.append(queue.next_at() or 0.0)
    assert min(drawn) < 0.01
    assert max(drawn) > 0.04
    assert max(drawn) <= 0.05


def test_a_lane_in_use_is_not_forgotten_and_a_closed_one_only_after_a_while() -> None:
    queue = filled(1)
    assert queue.forget_at() is None
    taken(queue)
    assert queue.forget_at() is None
    queue.finished([UNREACHED], 1.0)
    assert queue.next_at() is None
    forget_at = queue.forget_at()
    assert forget_at is not None
    assert forget_at > 1.0 + 2.0
