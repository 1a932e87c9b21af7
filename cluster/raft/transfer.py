"""Leadership that is being handed over: to whom, what waits for that, and when it is done.

Rules
- One after the other: who asks meanwhile waits for his turn, and finds that it is done, perhaps.
- Only to a node that has answered within an election timeout: nothing waits for one that is down.
- What is proposed waits while the successor lacks little: it would never have everything. While it
  lacks more, the leader goes on as if nothing had been asked.
- The successor is asked when it has everything, and again after a while if nothing came of it.
- It is done when another node is heard of as leader: who asked wants to know which one it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from cluster.raft.core import RaftCore
from cluster.raft.state import NEVER, Role
from coordinator.log import NotHandedOver

LACKS_LITTLE: Final = 100
"""Entries. Under load a sound follower lacks one or two; these it gets in a moment."""


class Transfer:
    """What one replica hands over, or nothing; `hand_over` begins it, and `end` ends it."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._done: asyncio.Future[None] | None = None
        self._to: str | None = None
        self._asked_at = NEVER
        self._closed = False

    @property
    def is_under_way(self) -> bool:
        return self._done is not None

    async def hand_over(self, core: RaftCore, to: str | None, kick: Callable[[], None]) -> None:
        """To `to`, or to whoever lacks least, until `end`; nothing is handed over any more if
        another leads when its turn has come, or after `close`.

        `kick` has a step run. Whoever calls this bounds it. Raises NotHandedOver if nobody can take
        over as it looks now.
        """
        async with self._turn:
            if self._closed or core.role is not Role.LEADER:
                return
            self._to, self._asked_at = to, NEVER
            if self._successor(core) is None:
                raise NotHandedOver(f"{to} does not answer" if to else "no other node answers")
            self._done = asyncio.get_running_loop().create_future()
            kick()
            try:
                await self._done
            finally:
                self._done = None
                kick()

    def end(self) -> None:
        """Another node leads."""
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def close(self) -> None:
        """This node does nothing any more, nor for those whose turn has not come."""
        self._closed = True
        self.end()

    def holds_back(self, core: RaftCore) -> bool:
        """Whether what is proposed has to wait."""
        if self._done is None:
            return False
        to = self._successor(core)
        return to is not None and core.journal.last_index - core.match_index(to) <= LACKS_LITTLE

    def try_on(self, core: RaftCore) -> None:
        """Ask the successor, unless it lacks something or was asked a moment ago."""
        if core.now() - self._asked_at < core.timings.heartbeat_ms / 1000:
            return
        to = self._successor(core)
        if to is not None and core.hand_over(to):
            self._asked_at = core.now()

    def _successor(self, core: RaftCore) -> str | None:
        """Who is to lead, if anybody can."""
        silence_s = core.timings.election_max_ms / 1000
        able = [
            peer
            for peer in core.peers
            if self._to in (None, peer)
            and core.is_connected(peer)
            and core.now() - core.last_reply(peer) < silence_s
        ]
        return max(able, key=core.match_index, default=None)
