"""How many connections there may be, to one origin and in all, and who waits for a place. Pure.

Rules
- One origin has at most a share of all places: who hangs cannot have them all.
- First come, first served, of one origin; origins that wait take turns.
- Nobody waits for a place that is free and that its origin may have.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Origin = TypeVar("Origin", bound=Hashable)
Waiter = TypeVar("Waiter", bound=Hashable)

_SHARE = 4
"""An origin may have a fourth of the places, so that three that hang leave one to the others."""


class Places(Generic[Origin, Waiter]):
    """`most`: how many there are."""

    def __init__(self, most: int) -> None:
        self.most = max(1, most)
        self.most_of_one = max(1, most // _SHARE)
        self.taken = 0
        self._taken_by: dict[Origin, int] = {}
        self.waiting: OrderedDict[Origin, dict[Waiter, None]] = OrderedDict()
        """Who waits, by origin; empty if nobody does."""

    @property
    def is_wanted(self) -> bool:
        """Whether all are taken, and somebody waits."""
        return self.taken >= self.most and bool(self.waiting)

    def take(self, origin: Origin) -> bool:
        """Take a place, to be given back by `leave`; False if `origin` may have none now."""
        taken = self._taken_by.get(origin, 0)
        if self.taken >= self.most or taken >= self.most_of_one:
            return False
        self.taken += 1
        self._taken_by[origin] = taken + 1
        return True

    def wait(self, origin: Origin, waiter: Waiter) -> None:
        self.waiting.setdefault(origin, {})[waiter] = None

    def withdraw(self, origin: Origin, waiter: Waiter) -> None:
        """It waits no longer, if it did."""
        waiters = self.waiting.get(origin)
        if waiters is not None:
            waiters.pop(waiter, None)
            if not waiters:
                del self.waiting[origin]

    def next_of(self, origin: Origin) -> Waiter | None:
        """The first that waits for this origin, to be given something of the origin's; None if
        nobody does. It waits no more."""
        waiters = self.waiting.get(origin)
        if waiters is None:
            return None
        waiter = next(iter(waiters))
        self.withdraw(origin, waiter)
        if origin in self.waiting:
            self.waiting.move_to_end(origin)
        return waiter

    def leave(self, origin: Origin) -> Waiter | None:
        """Give a place of `origin` back. Returns who has got it and waits no more, if anybody."""
        self.taken -= 1
        self._taken_by[origin] -= 1
        if not self._taken_by[origin]:
            del self._taken_by[origin]
        for waiting in self.waiting:  # passes over those that have their share, which are few
            if self.take(waiting):
                return self.next_of(waiting)
        return None
