"""A log of one node in memory. Nothing in it survives.

It keeps the promises of `log.ReplicatedLog` that callers may rely on: `done` is never called from
within `propose`, commands are applied in order, and leadership can be taken away and given back.
"""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Callable

from coordinator.log import Done, FateUnknown, NotHandedOver, NotLeader, StateMachine


class MemoryLog:
    """Implements `log.ReplicatedLog`; `lead` and `stop_leading` play the election."""

    def __init__(self, machine: StateMachine, *, node: str = "n1") -> None:
        self.on_leadership: Callable[[int | None], None] = lambda _epoch: None
        self.leader: str | None = None
        self.applied: list[bytes] = []
        self._machine = machine
        self._node = node
        self._epoch: int | None = None
        self._queue: collections.deque[tuple[bytes, Done]] = collections.deque()
        self._barriers: list[asyncio.Future[None]] = []

    @property
    def epoch(self) -> int | None:
        return self._epoch

    def lead(self, now_ms: int = 0) -> int:
        """Begin a leadership; returns its epoch."""
        epoch = self._machine.epoch + 1
        self._apply(self._machine.epoch_command(epoch, self._node, now_ms))
        self._epoch, self.leader = epoch, self._node
        self.on_leadership(epoch)
        return epoch

    def stop_leading(self) -> None:
        """Lose leadership: what is under way is lost with it."""
        self._epoch = self.leader = None
        queue, self._queue = self._queue, collections.deque()
        for _, done in queue:
            done(FateUnknown("leadership ended"))
        for barrier in self._barriers:
            if not barrier.done():
                barrier.set_exception(NotLeader("leadership ended"))
                barrier.exception()
        self._barriers = []
        self.on_leadership(None)

    def takes(self, size: int) -> bool:
        del size
        return True

    def propose(self, command: bytes, epoch: int, done: Done, *, patience_s: float = 0.0) -> None:
        del patience_s  # entries cost nothing here
        loop = asyncio.get_running_loop()
        if epoch != self._epoch:
            loop.call_soon(done, NotLeader(f"epoch {epoch} is not led here"))
            return
        self._queue.append((command, done))
        if len(self._queue) == 1:
            loop.call_soon(self._drain)

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        del to, timeout_s
        raise NotHandedOver("no other node answers")

    def barrier(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._epoch is None:
            future.set_exception(NotLeader("this node does not lead"))
        else:
            self._barriers.append(future)
            loop.call_soon(self._pass, future)
        return future

    def _pass(self, barrier: asyncio.Future[None]) -> None:
        if barrier in self._barriers:
            self._barriers.remove(barrier)
        if not barrier.done():
            barrier.set_result(None)

    def _drain(self) -> None:
        while self._queue:
            command, done = self._queue.popleft()
            done(self._apply(command))

    def _apply(self, command: bytes) -> object:
        self.applied.append(command)
        return self._machine.apply(command)
