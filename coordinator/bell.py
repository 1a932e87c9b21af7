"""A queue of alarms, and the one timer that rings them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from coordinator.alarms import NEVER_S, Alarms

Item = TypeVar("Item")

LOG = logging.getLogger("assent.bell")


class Bell(Generic[Item]):
    """`woken` is called on the event loop with each item whose time has come."""

    def __init__(self, woken: Callable[[Item], None]) -> None:
        self._alarms: Alarms[Item] = Alarms()
        self.clear = self._alarms.clear
        self._woken = woken
        self._timer: asyncio.Handle | None = None
        self._rings_s = NEVER_S  # kept here, for not every handle of uvloop has `when`

    def __len__(self) -> int:
        """How many are to be woken."""
        return len(self._alarms)

    def set(self, item: Item, due_s: float) -> None:
        """Wake `item` then, and no more at the time that was set before."""
        self._alarms.set(item, due_s)
        if due_s < self._rings_s:
            self._arm()

    def _arm(self) -> None:
        next_s = self._alarms.next_s()
        if next_s < self._rings_s:
            self.silence()
            self._rings_s = next_s
            self._timer = asyncio.get_running_loop().call_at(next_s, self._ring)

    def silence(self) -> None:
        """Do not ring until another is set."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_s = None, NEVER_S

    def _ring(self) -> None:
        """One that raises must not keep the others from being woken."""
        self._timer, self._rings_s = None, NEVER_S
        for item in self._alarms.take_due(asyncio.get_running_loop().time()):
            try:
                self._woken(item)
            except Exception:
                LOG.exception("%s could not be woken", item)
        self._arm()
