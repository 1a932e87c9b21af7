"""Who may be called next: the queue before one participant, and when it is left alone. Pure.

Rules
- First come, first served; at most `room` calls are under way, of those taken one by one. How many
  share a request, and how many requests there are, the owner says. Who waits may be withdrawn.
- A lane that paces itself closes when its participant does not serve: at once when it cannot be
  reached, after many refusals in a row when it answers but does nothing of what is asked.
- Through a closed lane one call goes per pause, as a probe; everybody else waits here, where
  waiting costs nothing. So a participant that is down for an hour with twenty thousand unfinished
  branches is called about once a second, not twenty thousand times.
- The pause doubles while it cannot be reached, up to a maximum, with full jitter (uniform between
  nothing and the pause), so that several lanes do not call in step. While it answers with
  refusals the pause stays short: a few branches that are refused for ever must not hold up the
  others behind them.
- Anything served opens the lane, and the queue drains as fast as `room` allows.

How it works: the owner calls `take` until it gives nothing, sends what it got, tells `finished`
how each went, and looks again at `next_at`. Times are seconds of the owner's clock; nothing here
reads a clock.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Generic, TypeVar

Item = TypeVar("Item")

_REFUSALS_IN_A_ROW = 32
"""How many answered failures in a row close a lane. Some branches may be refused for ever while
all others are served; a whole backlog that is refused must not be sent round and round at full
speed."""


class Impression(enum.Enum):
    """What one call says of the participant as a whole.

    SERVED: it did what was asked. REFUSED: it answered, and did not. UNREACHED: it gave no
    answer, or a proxy gave one in its place.
    """

    SERVED = "served"
    REFUSED = "refused"
    UNREACHED = "unreached"


_SERVED = Impression.SERVED  # looked up once: 90 ns each time


@dataclass(frozen=True, slots=True)
class Backoff:
    """The pause between two probes, in seconds: the first, and the longest."""

    initial_s: float
    maximum_s: float


class Lane(Generic[Item]):
    """One queue. Without a `backoff` it never closes: everything is tried, `room` at a time."""

    __slots__ = (
        "_backoff",
        "_pause_s",
        "_probe_at_s",
        "_random",
        "_refusals",
        "_room",
        "_waiting",
        "closed",
        "under_way",
    )

    def __init__(self, *, room: int, backoff: Backoff | None, random: Random) -> None:
        self.under_way = 0
        self.closed = False
        self._room = room
        self._backoff = backoff
        self._random = random
        self._waiting: OrderedDict[Item, None] = OrderedDict()
        self._refusals = 0
        self._pause_s = 0.0
        self._probe_at_s = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def __iter__(self) -> Iterator[Item]:
        """Those who wait, first come first."""
        return iter(self._waiting)

    def __contains__(self, item: object) -> bool:
        return item in self._waiting

    def put(self, item: Item) -> None:
        assert item not in self._waiting
        self._waiting[item] = None

    def withdraw(self, item: Item) -> bool:
        """Whether `item` was still waiting; it will then never be taken."""
        if item not in self._waiting:
            return False
        del self._waiting[item]
        return True

    def take(self, now_s: float) -> Item | None:
        """The next one to be sent now, which is then under way; None when nobody may go."""
        if not self._waiting or self.under_way >= self._room:
            return None
        if self.closed:
            if now_s < self._probe_at_s:
                return None
            self._plan_probe(now_s, self._pause_s * 2)
        self.under_way += 1
        return self._waiting.popitem(last=False)[0]

    def take_all(self, now_s: float, most: int) -> list[Item]:
        """Those to be sent now in one request, at most `most`; only a probe if it is closed."""
        if self.closed:
            probe = self.take(now_s)
            return [] if probe is None else [probe]
        if len(self._waiting) <= most:
            items = list(self._waiting)
            self._waiting.clear()
        else:
            items = [self._waiting.popitem(last=False)[0] for _ in range(most)]
        self.under_way += len(items)
        return items

    def finished(self, impressions: Sequence[Impression], now_s: float) -> None:
        """Those that were under way have ended, one after the other; what each says."""
        self.under_way -= len(impressions)
        assert self.under_way >= 0
        for impression in impressions:
            if impression is _SERVED:
                self.closed = False
                self._refusals = 0
            elif self._backoff is not None:
                self._not_served(impression, self._backoff, now_s)

    def put_back(self, items: Sequence[Item]) -> None:
        """Those were under way, and wait again, before all others: it was not their turn."""
        self.under_way -= len(items)
        for item in reversed(items):
            self._waiting[item] = None
            self._waiting.move_to_end(item, last=False)

    def wake(self, now_s: float) -> None:
        """Let the next probe go at once."""
        self._probe_at_s = now_s

    def next_at(self) -> float | None:
        """When to look again though nothing ends before: the next probe's time, or None."""
        if self.closed and self._waiting and self.under_way < self._room:
            return self._probe_at_s
        return None

    def forget_at(self) -> float | None:
        """From when on nothing is lost by forgetting this lane; None while it is in use.

        A closed lane outlives its queue for a while: calls that failed come again after their own
        pause, and must find it closed.
        """
        if self._waiting or self.under_way:
            return None
        if self.closed and self._backoff is not None:
            return self._probe_at_s + 2 * self._backoff.maximum_s
        return 0.0

    def _not_served(self, impression: Impression, backoff: Backoff, now_s: float) -> None:
        if impression is Impression.REFUSED:
            self._refusals += 1
            if self.closed:  # it answers, so the pauses become short again
                self._pause_s = backoff.initial_s
                self._probe_at_s = min(
                    self._probe_at_s, now_s + self._random.uniform(0, self._pause_s)
                )
                return
            if self._refusals < _REFUSALS_IN_A_ROW:
                return
        if not self.closed:
            self.closed = True
            self._plan_probe(now_s, backoff.initial_s)

    def _plan_probe(self, now_s: float, pause_s: float) -> None:
        """Counted from when a probe is sent, not from its end: one that hangs holds up nobody."""
        assert self._backoff is not None
        self._pause_s = min(pause_s, self._backoff.maximum_s)
        self._probe_at_s = now_s + self._random.uniform(0, self._pause_s)
