"""A place in the line of those that wait for room (`admission.Line`), and a future for its turn."""

from __future__ import annotations

import asyncio

from coordinator.admission import Line, Place

ROOM_WITHIN_S = 2.0
"""How long anybody waits for a turn. The line is kept shorter, so this ends a wait only when the
log stands still."""


class Turn:
    """Stands in `line` from when it is made until it leaves.

    What it was promised is to be begun before anybody else runs once it has left: so whoever waits
    for `has_come` leaves and begins in one go.
    """

    def __init__(self, line: Line, address: str, piece: int = 1, left: int = 1) -> None:
        self._loop = asyncio.get_running_loop()
        self.has_come: asyncio.Future[bool] = self._loop.create_future()
        self._line = line
        self._place = Place(address, piece, left, self._tell)
        line.wait(self._place, self._loop.time())

    def leave(self) -> None:
        self._line.leave(self._place, self._loop.time())

    def _tell(self) -> None:
        if not self.has_come.done():
            self.has_come.set_result(True)
