"""A leadership that is being handed over.

The successor is asked when it has everything, and again after a while if nothing came of it.
"""

from __future__ import annotations

import asyncio

from cluster.raft.core import RaftCore


class Transfer:
    """To the peer `to`, or to the one that lacks least; `done` resolves when leadership is lost."""

    def __init__(self, to: str | None, done: asyncio.Future[None]) -> None:
        self.to = to
        self.done = done
        self._asked_at = float("-inf")

    def try_on(self, core: RaftCore) -> None:
        """Ask the successor, unless it lacks something or was asked a moment ago."""
        if core.now() - self._asked_at < core.timings.heartbeat_ms / 1000:
            return
        connected = filter(core.is_connected, core.peers)
        to = self.to or max(connected, key=core.match_index, default=None)
        if to is not None and core.hand_over(to):
            self._asked_at = core.now()
