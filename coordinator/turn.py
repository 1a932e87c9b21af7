"""A place in the line of those that wait for room, and a future for its turn."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from coordinator.admission import Queued, WaitingLine
from coordinator.api_errors import at_capacity
from coordinator.live import Waiting
from coordinator.patience import Patience

ROOM_WITHIN_S = 2.0
"""How long anybody waits for a turn. The line is kept shorter, so this ends a wait only when the
log stands still."""


class Turn:
    """Stands in `line` from when it is made until `leave`.

    Whoever waits for `has_come` then leaves and begins in one step of the event loop: once it has
    left, the room that it was promised counts as taken only by what it has begun.
    """

    def __init__(
        self, line: WaitingLine, address: str, piece: int = 1, left: int = 1, size: int = 0
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.has_come: asyncio.Future[bool] = self._loop.create_future()
        self._line = line
        self._queued = Queued(address, piece, left, self._tell, size)
        line.wait(self._queued, self._loop.time())

    def leave(self) -> None:
        self._line.leave(self._queued, self._loop.time())

    def _tell(self) -> None:
        if not self.has_come.done():
            self.has_come.set_result(True)


def begun_in_turn(
    line: WaitingLine,
    address: str,
    size: int,
    patience: Patience,
    begin: Callable[[Waiting], object],
) -> Waiting:
    """A future that `begin` is given when its turn in the line has come; if that takes too long, it
    ends as a refusal. `size`: of what was sent, in bytes."""
    turn = Turn(line, address, size=size)
    future: Waiting = asyncio.get_running_loop().create_future()
    patience.bound(turn.has_come, ROOM_WITHIN_S)
    turn.has_come.add_done_callback(functools.partial(_turn_has_come, turn, begin, future))
    return future


def _turn_has_come(
    turn: Turn,
    begin: Callable[[Waiting], object],
    future: Waiting,
    has_come: asyncio.Future[bool],
) -> None:
    turn.leave()
    if future.done():
        return  # who asked has gone
    if has_come.cancelled():
        future.set_exception(at_capacity())
        future.exception()  # who asked may go meanwhile
    else:
        begin(future)
