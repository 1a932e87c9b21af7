"""The bodies of requests that a node holds at once, and whose turn it is to be looked at.

Rules
- What has come of bodies takes no more memory than `most_bytes`, all connections together: a client
  that sends most of a body and then waits costs only what it sends.
- Bodies that are large or compressed are looked at one by one, each in two turns of the event loop:
  it is decoded in one and read in the other (`api_transactions`). A compressed kilobyte can become
  what takes most of a tenth of a second in each, and a client can send many at once.
"""

from __future__ import annotations

import asyncio
from collections import deque

LARGE_BYTES = 64 * 1024
"""A body of more waits for its turn, and is not decoded and read in one: the dearest JSON of this
size takes 8 ms to read."""


class Bodies:
    """What the connections of a server share of it."""

    def __init__(self, most_bytes: int) -> None:
        self.held = 0
        self._most_bytes = most_bytes
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_turning = False

    def take(self, size: int) -> bool:
        """Whether so much more may be held."""
        if self.held + size > self._most_bytes:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size
        assert self.held >= 0

    def turn(self) -> asyncio.Future[None]:
        """Done when it is this body's turn, which comes to one body in two turns of the loop."""
        loop = asyncio.get_running_loop()
        if not self._is_turning:
            self._is_turning = True
            loop.call_soon(self._next)
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        return turn

    def _next(self) -> None:
        if not self._waiting:
            self._is_turning = False
            return
        first = self._waiting.popleft()
        if not first.done():
            first.set_result(None)
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._next)
