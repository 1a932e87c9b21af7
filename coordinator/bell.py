"""The one timer that rings a queue of alarms."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Generic, TypeVar

from coordinator.alarms import NEVER_S, Alarms

Item = TypeVar("Item")

LOG = logging.getLogger("assent.bell")


class Bell(Generic[Item]):
    """`woken` is called on the event loop with each item of `alarms` that is due."""

    def __init__(self, alarms: Alarms[Item], woken: Callable[[Item], None]) -> None:
        self._alarms = alarms
        self._woken = woken
        self._timer: asyncio.Handle | None = None
        self._rings_s = NEVER_S  # kept here: of a time that is past, uvloop gives a bare handle

    def arm(self) -> None:
        """Alarms were set: see to it that the earliest is not missed."""
        next_s = self._alarms.next_s()
        if next_s < self._rings_s:
            self.silence()
            self._rings_s = next_s
            self._timer = asyncio.get_running_loop().call_at(next_s, self._ring)

    def silence(self) -> None:
        """Do not ring until it is armed again."""
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
        self.arm()
