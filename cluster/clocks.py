"""The node's clock held against the other nodes', and leadership given up when it is wrong.

The leader's clock decides when ids expire, and what has expired never comes back (PROTOCOL, section
9). Nodes exchange their clocks with the heartbeats; nobody sets one.

Rules:
- a clock is sound within `MAX_OFFSET_MS` of the median of all clocks known, its own among them:
  else one wrong peer of two would make both good nodes hand leadership to each other for ever;
- where two clocks are in the middle (of two, of four) nobody can say which is right. So the clock
  is sound only if it agrees with both, and wrong only if it agrees with neither;
- a leader whose clock was wrong at several looks in a row hands over: one message that was long
  under way means nothing;
- only to a connected peer whose clock is well within the bound, so that it finds itself sound. If
  there is none it stays: it moves no horizon and says so in /readyz, which costs memory only;
- after a try it waits, whatever came of it;
- the median does not show a clock that all nodes share, as those on one host do. So it is noticed
  when a clock was set, that is, when it went on by more or less than time did, and for a while
  nothing is forgotten for its age (`coordinator.settings.Retention.steady_ms`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from cluster.raft.status import ReplicaStatus
from coordinator.log import LogError

LOG = logging.getLogger("assent.clocks")

MAX_OFFSET_MS: Final = 5_000
SUCCESSOR_OFFSET_MS: Final = MAX_OFFSET_MS // 2
SET_MS: Final = 1_000
"""Between two looks. A clock that is being slewed gains or loses half a millisecond in a second."""
LOOK_EVERY_S: Final = 1.0
SETTLED_S: Final = 5.0
"""After it was set: by then heartbeats have told how far it is from the others."""
LOOKS: Final = 3
"""In a row, before leadership is handed over."""
TRY_EVERY: Final = 10
"""Looks between two tries."""
TRANSFER_S: Final = 2.0


class Leadership(Protocol):
    """What is asked of the replica. `clock_offsets_ms`: peers' clocks less this node's own."""

    @property
    def epoch(self) -> int | None: ...
    @property
    def clock_offsets_ms(self) -> Mapping[str, int]: ...
    def status(self) -> ReplicaStatus: ...
    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str: ...


class ClockWatch:
    """Looks once a second, from `start` to `stop`; `is_sound` may be asked at any time."""

    def __init__(self, replica: Leadership, *, now_ms: Callable[[], int]) -> None:
        self._replica = replica
        self._now_ms = now_ms
        self._ahead_ms: float | None = None
        """The clock less the loop's, which nobody sets; None before the first look."""
        self._set_at_s = 0.0
        self._wrong_looks = 0
        self._tried_looks_ago = TRY_EVERY
        self._task: asyncio.Task[None] | None = None

    @property
    def offset_ms(self) -> int:
        """This clock less the median; of two clocks in the middle, less the one farther away."""
        return -max(middle_ms(self._replica.clock_offsets_ms), key=abs)

    def is_sound(self) -> bool:
        """Does this clock agree with the others?"""
        return abs(self.offset_ms) <= MAX_OFFSET_MS

    def is_settled(self) -> bool:
        """Does this clock agree with the others, as it is since it was last set?"""
        return self.is_sound() and self.steady_s() >= SETTLED_S

    def _is_wrong(self) -> bool:
        """Is it this clock, and not another one?"""
        middle = middle_ms(self._replica.clock_offsets_ms)
        return all(abs(offset) > MAX_OFFSET_MS for offset in middle)

    def steady_s(self) -> float:
        """For how long this clock has not been set; at most since it was first looked at."""
        now_s = asyncio.get_running_loop().time()
        before_ms, self._ahead_ms = self._ahead_ms, self._now_ms() - now_s * 1_000
        if before_ms is None or abs(self._ahead_ms - before_ms) > SET_MS:
            self._set_at_s = now_s
            if before_ms is not None:
                LOG.warning("this clock was set by %d ms", self._ahead_ms - before_ms)
        return now_s - self._set_at_s

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """May be called at any time, and again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """One look; hands leadership over if it is time for that."""
        self.steady_s()
        self._tried_looks_ago += 1
        if self._replica.epoch is None or not self._is_wrong():
            self._wrong_looks = 0
            return
        self._wrong_looks += 1
        if self._wrong_looks < LOOKS or self._tried_looks_ago < TRY_EVERY:
            return
        self._tried_looks_ago = 0
        to = self._successor()
        if to is None:
            LOG.warning("this clock is %d ms off; no peer has a better one", self.offset_ms)
            return
        LOG.warning("this clock is %d ms off: leadership goes to %s", self.offset_ms, to)
        try:
            await self._replica.transfer_leadership(to, TRANSFER_S)
        except LogError as error:
            LOG.warning("%s; trying again later", error)

    def _successor(self) -> str | None:
        """The connected peer whose clock is nearest to the median, if it is near enough."""
        offsets = self._replica.clock_offsets_ms
        low, high = middle_ms(offsets)
        near = [
            (max(abs(offsets[peer.node] - low), abs(offsets[peer.node] - high)), peer.node)
            for peer in self._replica.status().peers
            if peer.connected and peer.node in offsets
        ]
        distance, node = min(near, default=(MAX_OFFSET_MS, ""))
        return node if distance <= SUCCESSOR_OFFSET_MS else None


def middle_ms(offsets_ms: Mapping[str, int]) -> tuple[int, int]:
    """The median of these and of this node's own, 0: the two in the middle, or the one twice."""
    clocks = sorted([0, *offsets_ms.values()])
    return clocks[(len(clocks) - 1) // 2], clocks[len(clocks) // 2]
