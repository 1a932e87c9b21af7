"""The wall clock in the unit of the protocol, Unix time in milliseconds; what to believe of it."""

from __future__ import annotations

import math
import time
from collections import deque

_GRAIN_MS = 1_000
"""Leads are kept in steps of so much: what differs by less costs no memory."""


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class LeastClock:
    """How late it is at least, by a wall clock that may have been set. Pure.

    Whoever looks gives the wall clock, and one that only grows and that nobody sets. By how much
    the former leads the latter changes when it is set, and the least lead that was seen within the
    last `window_ms` counts. So what was stamped with what a look saw is within that time never
    older by this clock than it is. One that was behind for a moment makes everything seem younger,
    for no longer than that.
    """

    def __init__(self, window_ms: int) -> None:
        self._window_ms = window_ms
        self._leads: deque[tuple[float, float]] = deque()
        """When a lead was seen last, and the lead; both grow."""

    def look(self, wall_ms: float, grown_ms: float) -> None:
        lead_ms = (wall_ms - grown_ms) // _GRAIN_MS * _GRAIN_MS
        while self._leads and self._leads[-1][1] >= lead_ms:
            self._leads.pop()
        self._leads.append((grown_ms, lead_ms))
        while self._leads[0][0] < grown_ms - self._window_ms:
            self._leads.popleft()

    def now_ms(self, grown_ms: float) -> int:
        """After the first look."""
        return math.floor(self._leads[0][1] + grown_ms)
