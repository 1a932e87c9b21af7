"""Whether one more transaction may begin, and how soon who was refused may ask again. Pure.

A queue at a node that is asked for more than it can do only makes everybody late: it does not help
it to do more. So the queue is kept as short as its time: no more may wait for their `Begin` to be
applied than were applied within the last `TARGET_S`; then whoever is let in waits about that long
(Little's law), at any speed of the machine, and whoever is not is told so at once.

Rules
- Only the wait for the log counts, which is this node's own: a slow participant does not make it
  long, and transactions that wait for one do not take the room of others.
- `LEAST` may wait in any case, so that a node that was idle takes a burst, and one whose log does
  not move at the moment (an election, a slow disk) is not closed altogether.
- A batch is many clients that wait as one, so it can be made to wait (`Line`). While others come
  alone, its elements begin piece by piece, and only while less waits before them than is applied
  within `BATCH_TARGET_S`: who comes alone finds no more than that before it. Batches take turns, a
  piece each, so that one of a thousand elements holds up no other.
- It is asked for new transactions only. Repeats of known ids, ends, inquiries and an operator's
  calls are never refused for load.

Times are seconds of any clock that only grows. Counted is in two neighbouring spans of `TARGET_S`,
the older of which weighs as much as of it is still within the last one.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

TARGET_S = 0.25
"""Long enough for a sync that takes ten times as long as usual, short enough that a client which is
let in has its answer well before it asks another node (2 s): the wait for the log is about a third
of the time until the decision."""

LEAST = 1_024
"""A burst, or as many clients that each wait for their answer, is never refused at an idle node. A
batch of the largest size is less."""

BATCH_TARGET_S = 0.0025
BATCH_LEAST = 8
"""Of what batches begin while others come alone, no more may wait for the log than is applied
within this time, or so many. Measured in the leader's CPU time while a transaction of others was
under way beside four batches of 500: p99 480 ms without this, 65 with 32, 55 with 8, and 45 where
there was no batch at all."""

ALONE_S = 1.0
"""So long after the last transaction that came alone, batches share the node with nobody and begin
as much as any: with few under way at a time each costs a third more."""

LINE_S = 1.0
"""No more elements may stand in the line of batches than begin within this time (`LEAST` in any
case): a batch that would wait longer is refused when it comes."""

TURNED_AWAY_PER_S = 250
LONGEST_REST_S = 30.0
"""A refusal costs a tenth of a transaction, nearly all of it HTTP. Programs that ask again at once
would leave the node little time for those it has let in. So a connection that got a refusal is not
read for a while, as long as it takes that there are no more than so many refusals a second: a few
per cent of the node's time. `Retry-After` says how long, in whole seconds."""


class Admission:
    """`beginning` and `begun` for each transaction let in; `forget` when leadership ends."""

    def __init__(self, *, target_s: float = TARGET_S, least: int = LEAST) -> None:
        self._target_s = target_s
        self._least = least
        self.forget()

    def forget(self) -> None:
        """Nothing waits any more, and nothing is known of how fast it goes."""
        self.waiting = 0
        self._waiting_of_batches = 0
        self._came_alone_s = -math.inf
        self._span_began_s = 0.0
        self._in_span = 0
        self._in_span_before = 0

    def admits(self, now_s: float) -> bool:
        """May one more begin?"""
        return self.waiting < self._least or self.waiting < self._lately(now_s)

    def came_alone(self, now_s: float) -> None:
        """A transaction was asked for that is in no batch."""
        self._came_alone_s = now_s

    def has_room_for_batches(self, now_s: float, promised: int = 0) -> bool:
        """May a batch begin some more, besides what batches were promised?

        However many come alone, batches go on beside them.
        """
        waiting = self._waiting_of_batches + promised
        if now_s - self._came_alone_s >= ALONE_S:
            return waiting < self._least or waiting < self._lately(now_s)
        return waiting < BATCH_LEAST or waiting < self.begun_within(BATCH_TARGET_S, now_s)

    def begun_within(self, seconds: float, now_s: float) -> float:
        """About how many begin in so long a time, at the present speed of the log."""
        return self._lately(now_s) * seconds / self._target_s

    def beginning(self, *, in_batch: bool = False) -> None:
        """One more waits for its `Begin` to be applied."""
        self.waiting += 1
        if in_batch:
            self._waiting_of_batches += 1

    def begun(self, now_s: float, *, applied: bool = True, in_batch: bool = False) -> None:
        """One of them waits no more. What the log would not take is no sign of its speed."""
        assert self.waiting > 0
        self.waiting -= 1
        if in_batch:
            assert self._waiting_of_batches > 0
            self._waiting_of_batches -= 1
        if applied:
            self._turn(now_s)
            self._in_span += 1

    def _lately(self, now_s: float) -> float:
        """About how many were applied within the last `target_s`."""
        self._turn(now_s)
        passed = (now_s - self._span_began_s) / self._target_s
        return self._in_span + self._in_span_before * (1 - passed)

    def _turn(self, now_s: float) -> None:
        """Begin a new span if this one is over."""
        passed_s = now_s - self._span_began_s
        if passed_s < self._target_s:
            return
        whole = passed_s < 2 * self._target_s  # else nothing happened in the span before this one
        self._in_span_before = self._in_span if whole else 0
        self._in_span = 0
        self._span_began_s = self._span_began_s + self._target_s if whole else now_s


class Place(NamedTuple):
    """Of a batch in the line: its next piece, and all of it that has not begun, in elements."""

    piece: int
    left: int
    tell: Callable[[], None]


class Line:
    """The batches that wait for room, first come, first served; each for its next piece.

    Whoever has begun a piece stands at the end again, so they take turns. Told that it is its turn,
    a batch has a promise until it leaves, which it does as it begins the piece. So a piece more
    than there is room for may begin, and no promise is lost. `call` when there may be room.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._waiting: OrderedDict[int, Place] = OrderedDict()
        self._promised: dict[int, int] = {}  # the elements of a piece, by number of the place
        self._last_number = 0
        self.left = 0
        """Elements of all that wait."""

    def __len__(self) -> int:
        """How many batches wait."""
        return len(self._waiting)

    def is_too_long(self, now_s: float) -> bool:
        """Whether a batch that comes now is to be refused."""
        return self.left >= LEAST and self.left >= self._admission.begun_within(LINE_S, now_s)

    def wait(self, place: Place, now_s: float) -> int:
        """Stand in line; it may be told at once. Returns the number with which to leave."""
        self._last_number += 1
        self._waiting[self._last_number] = place
        self.left += place.left
        self.call(now_s)
        return self._last_number

    def call(self, now_s: float) -> None:
        """Tell those for whom there is room."""
        while self._waiting and self._admission.has_room_for_batches(
            now_s, sum(self._promised.values())
        ):
            number, place = self._waiting.popitem(last=False)
            self.left -= place.left
            self._promised[number] = place.piece
            place.tell()

    def leave(self, number: int, now_s: float) -> None:
        """Begin what was promised, or wait no more."""
        place = self._waiting.pop(number, None)
        if place is not None:
            self.left -= place.left
        elif self._promised.pop(number, 0):
            self.call(now_s)


class Rests:
    """How long the connection of each refusal is left unread, for few of them in a second."""

    def __init__(
        self, *, per_s: float = TURNED_AWAY_PER_S, longest_s: float = LONGEST_REST_S
    ) -> None:
        self._each_s = 1 / per_s
        self._longest_s = longest_s
        self._next_s = 0.0

    def rest_s(self, now_s: float) -> float:
        """Of one that is refused now."""
        self._next_s = min(max(self._next_s, now_s) + self._each_s, now_s + self._longest_s)
        return self._next_s - now_s
