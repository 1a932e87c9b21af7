"""Whether one more transaction may begin, and how soon who was refused may ask again. Pure.

A node that is asked for more than it can do does no more by beginning the rest: everybody is late,
and each costs more, the more are under way. So only so many wait at a time for their `Begin` to be
applied (the room), and who finds no room waits outside, in the order in which they came. There no
more wait than were applied within the last `TARGET_S`. Then whoever is let in begins within about
that long (Little's law), at any speed of the machine, and whoever is not is told so at once.

Rules
- Only the wait for the log counts, which is this node's own: a slow participant does not make it
  long, and transactions that wait for one do not take the room of others.
- The room is small where the node has no time left, and grows where it has: then the log waits for
  disks or networks, and more can share an entry.
- `LEAST` may wait outside in any case, so that a node that was idle takes a burst, and one whose
  log does not move at the moment (an election, a slow disk) is not closed altogether. What they
  sent is bounded in bytes, too.
- A batch is many clients that wait as one, so it can be made to wait (`WaitingLine`). While others
  come alone, its elements begin piece by piece, and only while less waits before them than is
  applied within `IN_TURN_S`: who comes alone finds no more than that before it. Batches take turns,
  a piece each, so that one of a thousand elements holds up no other.
- One client with many connections is a crowd: while other addresses come too, one that asked for
  more than as many at a time stands in the same line, where addresses take turns. A client is an
  address, for nothing else tells who asks; all behind one proxy are one.
- It is asked for new transactions only. Repeats of known ids, ends, inquiries and an operator's
  calls are never refused for load.

Times are seconds of any clock that only grows. Every `TARGET_S` a span ends. How many were applied
"lately" is counted in two, the present one and the one before; of the latter the part that still
lies within `TARGET_S`.
"""

from __future__ import annotations

import enum
import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

TARGET_S = 0.25
"""Long enough for a sync that takes ten times as long as usual, short enough that a client which is
let in has its answer well before it asks another node (2 s)."""

LEAST = 1_024
"""A burst, or as many clients that each wait for their answer, is never refused at an idle node. A
batch of the largest size is less."""

OUTSIDE_BYTES = 64 * 1024 * 1024
"""Who waits outside or in line is in no record yet, so `Capacity` does not count its payloads: what
was sent by all that are in no batch is no more than this and one body. `LEAST` bodies of 64 KiB
find place. (Those of batches count as held until the answer, see `http_connection`.)"""

ROOM_LEAST = 64
ROOM_MOST = 1_024
"""The leader's CPU time for a transaction, of that with 1,024 at a time: 0.94 with 256 clients,
0.92 with 1,024, 0.9 with 2,000 connections that ask for three times what can be done (in turn).
With 32, fewer share a sync than could: 1.07."""

BUSY = 0.6
"""The part of a processor that the node's thread has where there is no time left: the rest goes to
other processes of the machine. A leader that waits for disks or networks has less to do."""

IN_TURN_S = 0.0025
IN_TURN_LEAST = 32
"""While others come alone, no more of what stood in the line may wait for the log than is applied
within `IN_TURN_S`, or `IN_TURN_LEAST`. Measured in the leader's CPU time while a transaction of
others was under way beside four batches of 500: p99 480 ms without this, 65 with 32, 55 with 8, and
45 where there was no batch at all. Fewer share a sync: with 8, a crowd of 64 clients does 0.6 of
what it would do."""

ALONE_S = 10.0
"""So long after the last transaction that came alone, in no batch and no crowd, what stands in line
shares the node with nobody and begins as much as any: with few under way at a time each costs up to
a third more. So long is a crowd one after it last asked for too much."""

TURN = 8
"""Elements that may begin from one address before the next has its turn, or one piece."""

LINE_S = 1.0
"""No more elements of one address may stand in the line than begin within this time in its turns
(`LEAST` in any case): what would wait longer is refused when it comes."""

TURNED_AWAY_PER_S = 250
LONGEST_REST_S = 5.0
"""A refusal costs a tenth of a transaction, nearly all of it HTTP. Programs that ask again at once
would leave the node little time for those it has let in. So a connection that got a refusal is not
read for a while, as long as it takes that there are no more than so many refusals a second: a few
per cent of the node's time. `Retry-After` says how long, in whole seconds. The rest has an end, for
what shares the connection waits with it, such as inquiries and repeats; 5,000 connections that ask
all the time are refused 1,000 times a second then, which takes a twentieth of the node's time."""


class Admission:
    """`beginning` and `begun` for each transaction let in; `forget` when leadership ends."""

    def __init__(
        self,
        *,
        target_s: float = TARGET_S,
        least: int = LEAST,
        spent_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`spent_s`: the processor's time that this thread has taken."""
        self._target_s = target_s
        self._least = least
        self._spent_s = spent_s
        self.forget()

    def forget(self) -> None:
        """Nothing waits any more, and nothing is known of how fast it goes."""
        self.waiting = 0
        self._room = ROOM_LEAST
        self._was_full = False
        self._waiting_in_turn = 0
        self._waiting_of: dict[str, int] = {}  # by address, of what did not stand in the line
        self._came_alone_s = -math.inf
        self._crowds: dict[str, float] = {}
        """By address, when it last asked for too much; longest ago first."""
        self._last_address: str | None = None
        self._address_changed_s = -math.inf
        self._span_began_s = 0.0
        self._in_span = 0
        self._in_span_before = 0
        self._spent_before_s = self._spent_s()

    def has_room(self) -> bool:
        """May one more begin?"""
        return self.waiting < self._room

    def may_wait(self, others: int, now_s: float) -> bool:
        """May one more wait outside, besides those others?"""
        return others < self._least or others < self._lately(now_s)

    def is_crowd(self, now_s: float, address: str, *, in_line: bool, outside: int) -> bool:
        """Is a transaction from there, which is in no batch, to stand in line?

        `in_line`: others from there do already. `outside`: so many from there wait for room.
        """
        if address != self._last_address:
            if self._last_address is not None:
                self._address_changed_s = now_s
            self._last_address = address
        if now_s - self._address_changed_s < ALONE_S:
            asked = self._waiting_of.get(address, 0) + outside
            if in_line or not self._is_little(asked, now_s):
                self._note_crowd(address, now_s)
                return True
            if now_s - self._crowds.get(address, -math.inf) < ALONE_S:
                return True
        self._crowds.pop(address, None)
        self._came_alone_s = now_s
        return False

    def _note_crowd(self, address: str, now_s: float) -> None:
        """Remember the crowd, and forget those that are none any more: they may never ask again."""
        self._crowds.pop(address, None)
        self._crowds[address] = now_s
        while now_s - self._crowds[first := next(iter(self._crowds))] >= ALONE_S:
            del self._crowds[first]

    def has_room_in_turn(self, now_s: float, promised: int = 0) -> bool:
        """May some more begin of what stands in line, besides what was promised?

        However many come otherwise, they go on beside them.
        """
        waiting = self._waiting_in_turn + promised
        if now_s - self._came_alone_s >= ALONE_S:
            return waiting < self._room
        return self._is_little(waiting, now_s)

    def _is_little(self, waiting: int, now_s: float) -> bool:
        return waiting < IN_TURN_LEAST or waiting < self.begun_within(IN_TURN_S, now_s)

    def begun_within(self, seconds: float, now_s: float) -> float:
        """About how many begin in so long a time, at the present speed of the log."""
        return self._lately(now_s) * seconds / self._target_s

    def beginning(self, address: str | None) -> None:
        """One more waits for its `Begin` to be applied; `address`: None if it stood in line."""
        self.waiting += 1
        self._was_full = self._was_full or self.waiting >= self._room
        if address is None:
            self._waiting_in_turn += 1
        else:
            self._waiting_of[address] = self._waiting_of.get(address, 0) + 1

    def begun(self, address: str | None, now_s: float, *, applied: bool = True) -> None:
        """One of them waits no more. What the log would not take is no sign of its speed."""
        assert self.waiting > 0
        self.waiting -= 1
        if address is None:
            assert self._waiting_in_turn > 0
            self._waiting_in_turn -= 1
        elif self._waiting_of[address] == 1:
            del self._waiting_of[address]
        else:
            self._waiting_of[address] -= 1
        if applied:
            self._next_span(now_s)
            self._in_span += 1

    def _lately(self, now_s: float) -> float:
        """About how many were applied within the last `target_s`."""
        self._next_span(now_s)
        passed = (now_s - self._span_began_s) / self._target_s
        return self._in_span + self._in_span_before * (1 - passed)

    def _next_span(self, now_s: float) -> None:
        """Begin a new span if this one is over."""
        passed_s = now_s - self._span_began_s
        if passed_s < self._target_s:
            return
        self._fit_room(passed_s)
        whole = passed_s < 2 * self._target_s  # else nothing happened in the span before this one
        self._in_span_before = self._in_span if whole else 0
        self._in_span = 0
        self._span_began_s = self._span_began_s + self._target_s if whole else now_s

    def _fit_room(self, passed_s: float) -> None:
        """More room where it was full and the node had time left, less where it had none."""
        spent_s = self._spent_s()
        if spent_s - self._spent_before_s > BUSY * passed_s:
            self._room = max(ROOM_LEAST, self._room // 2)
        elif self._was_full:
            self._room = min(ROOM_MOST, self._room * 2)
        self._spent_before_s = spent_s
        self._was_full = False


class WayIn(enum.Enum):
    """Whether a transaction may begin."""

    AT_ONCE = "at once"
    IN_ORDER = "when those that came before it have begun"
    IN_TURN = "when it has stood in line"
    REFUSED = "not now: more is asked for than the node can do"


# Looked up once: 90 ns each time.
_AT_ONCE, _IN_ORDER, _REFUSED = WayIn.AT_ONCE, WayIn.IN_ORDER, WayIn.REFUSED


@dataclass(frozen=True, slots=True, eq=False)
class Queued:
    """A batch that stands in the line; a transaction that came alone is a batch of one.

    `piece`: how many elements it begins next. `left`: how many have not begun. `tell` is called
    when its turn has come. `size`: of what was sent, in bytes, if it is counted here.
    """

    address: str
    piece: int
    left: int
    tell: Callable[[], None]
    size: int = 0


class WaitingLine:
    """Who waits for room. Those that came alone begin first, in the order in which they came. Of
    batches and crowds addresses take turns; what came from one address goes in its order.

    A batch waits for its next piece. When it has begun that, it stands at the end again, so batches
    of one address take turns, too. Whoever is told of its turn has a promise of room until it
    leaves, which it does as it begins. So one piece too many may begin, but no promise is broken.
    The owner calls `call` whenever there may be room.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._queues: OrderedDict[str, dict[Queued, None]] = OrderedDict()
        """By address; whose turn it is comes first."""
        self._turn_left = TURN
        """How much of its turn the first of the addresses has left, in elements."""
        self._promised: dict[Queued, None] = {}
        self._left: Counter[str] = Counter()
        """Elements of all that wait, by address."""
        self._alone: deque[tuple[str, int, Callable[[], object]]] = deque()
        """Whence those that came alone are, the size of what they sent, and what begins them."""
        self._bytes = 0
        """Of what was sent by all that wait."""
        self._alone_of: Counter[str] = Counter()
        """How many of them there are, by address."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._alone) + sum(map(len, self._queues.values()))

    def way_in(self, now_s: float, address: str) -> WayIn:
        """Of a transaction that is in no batch, and comes from that address."""
        in_line, outside = address in self._queues, self._alone_of[address]
        if self._admission.is_crowd(now_s, address, in_line=in_line, outside=outside):
            return _REFUSED if self.is_too_long(now_s, address) else WayIn.IN_TURN
        if not self._alone and self._admission.has_room():
            return _AT_ONCE
        if self._bytes >= OUTSIDE_BYTES:
            return _REFUSED
        return _IN_ORDER if self._admission.may_wait(len(self._alone), now_s) else _REFUSED

    def wait_alone(self, address: str, size: int, begin: Callable[[], object]) -> None:
        """`begin` is called when there is room, within `call`: it must not call that itself.

        `size`: of what was sent, in bytes.
        """
        self._alone.append((address, size, begin))
        self._bytes += size
        self._alone_of[address] += 1

    def is_too_long(self, now_s: float, address: str) -> bool:
        """Whether what comes now from there is to be refused."""
        if self._bytes >= OUTSIDE_BYTES:
            return True
        left = self._left[address]
        share = self._admission.begun_within(LINE_S, now_s) / max(1, len(self._queues))
        return left >= LEAST and left >= share

    def wait(self, queued: Queued, now_s: float) -> None:
        """Stand in line; it may be told at once."""
        self._queues.setdefault(queued.address, {})[queued] = None
        self._left[queued.address] += queued.left
        self._bytes += queued.size
        self.call(now_s)

    def call(self, now_s: float) -> None:
        """Begin, or tell, those for whom there is room."""
        while self._alone and self._admission.has_room():
            address, size, begin = self._alone.popleft()
            self._bytes -= size
            self._alone_of[address] -= 1
            if not self._alone_of[address]:
                del self._alone_of[address]
            begin()
        promised = sum([queued.piece for queued in self._promised])
        while self._queues and self._admission.has_room_in_turn(now_s, promised):
            address, queue = next(iter(self._queues.items()))
            queued = next(iter(queue))
            self._promised[queued] = None
            promised += queued.piece
            self._turn_left -= queued.piece
            if self._turn_left <= 0:
                self._queues.move_to_end(address)
                self._turn_left = TURN
            self._take_out(queued)
            queued.tell()

    def leave(self, queued: Queued, now_s: float) -> None:
        """Begin what was promised, or wait no more."""
        if queued in self._promised:
            del self._promised[queued]
            self.call(now_s)
        else:
            self._take_out(queued)

    def _take_out(self, queued: Queued) -> None:
        self._left[queued.address] -= queued.left
        self._bytes -= queued.size
        queue = self._queues[queued.address]
        del queue[queued]
        if not queue:
            del self._left[queued.address]
            if queued.address == next(iter(self._queues)):
                self._turn_left = TURN
            del self._queues[queued.address]


class Rests:
    """How long the connection of each refusal is left unread, for few of them in a second."""

    def __init__(self, *, per_s: float = TURNED_AWAY_PER_S) -> None:
        self._each_s = 1 / per_s
        self._next_s = 0.0

    def rest_s(self, now_s: float) -> float:
        """How long the connection of one that is refused now is to be left unread."""
        self._next_s = min(max(self._next_s, now_s) + self._each_s, now_s + LONGEST_REST_S)
        return self._next_s - now_s
