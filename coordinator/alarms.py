"""Who is to be woken when: one queue of times for all transactions. Pure.

Nearly every transaction has a deadline that never comes, so setting and clearing must cost next to
nothing, and what was cleared must leave nothing behind. Times are rounded up to GRAIN_S, and all
that is due in the same grain lies in one bucket, in the order in which it was set. A timer of the
event loop for each transaction would not do: one that is cancelled stays in the loop's heap until
its time, so at full speed 100,000 dead ones would be compared with each other in Python.
"""

from __future__ import annotations

import heapq
import math
from typing import Generic, TypeVar

Item = TypeVar("Item")

EMPTY_KEPT = 4_096
"""Buckets beyond twice the alarms that are set, before the empty ones are cleared away."""

GRAIN_S = 1 / 256
"""A power of two, so that rounding up is exact: an alarm that rang a hair early would be set again
for the same grain, and a clock that stands still in between would never get past it."""
NEVER_S = math.inf


class Alarms(Generic[Item]):
    """Items (hashed by identity or value) and the time at which each is due, one at most.

    Times are seconds of the owner's clock. An alarm never rings early, and less than a grain late.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, dict[Item, None]] = {}
        self._grains: list[int] = []  # a heap; of every bucket, once
        self._grain_of: dict[Item, int] = {}

    def __len__(self) -> int:
        return len(self._grain_of)

    def set(self, item: Item, due_s: float) -> None:
        """Wake `item` at `due_s`, and no more at the time that was set before."""
        grain = math.ceil(due_s / GRAIN_S)
        before = self._grain_of.get(item)
        if before == grain:
            return
        if before is not None:
            del self._buckets[before][item]
        self._grain_of[item] = grain
        bucket = self._buckets.get(grain)
        if bucket is None:
            bucket = self._buckets[grain] = {}
            heapq.heappush(self._grains, grain)
        bucket[item] = None
        if len(self._grains) > EMPTY_KEPT + 2 * len(self._grain_of):
            self._clear_away()

    def clear(self, item: Item) -> None:
        """Do not wake it, if it was to be."""
        grain = self._grain_of.pop(item, None)
        if grain is not None:
            del self._buckets[grain][item]

    def _clear_away(self) -> None:
        """The buckets that are empty: of hours ahead, their time is long to come."""
        self._buckets = {grain: bucket for grain, bucket in self._buckets.items() if bucket}
        self._grains = list(self._buckets)
        heapq.heapify(self._grains)

    def next_s(self) -> float:
        """When `take_due` will have something to give; NEVER_S if nothing is set."""
        while self._grains:
            if self._buckets[self._grains[0]]:
                return self._grains[0] * GRAIN_S
            del self._buckets[heapq.heappop(self._grains)]
        return NEVER_S

    def take_due(self, now_s: float) -> list[Item]:
        """Those that are due, the earliest first; they are set no more."""
        due: list[Item] = []
        while self.next_s() <= now_s:
            for item in self._buckets.pop(heapq.heappop(self._grains)):
                del self._grain_of[item]
                due.append(item)
        return due
