"""Calls of the client library, begun at a given rate whatever became of those before.

What a program sees that uses the library as it is meant to be used: a call either gives the outcome
or has failed. A call that gives an outcome which its votes forbid is wrong, and noted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cluster.client import Client, ClientError

MOST_UNDER_WAY = 2_000
"""Calls at one time; those that would be more are not begun, and counted."""


@dataclass(slots=True)
class Called:
    """What came of it since it was last asked. Times are of the event loop's clock, in seconds."""

    calls: int = 0
    committed: int = 0
    aborted: int = 0
    unsent: int = 0
    slowest_s: float = 0.0
    failed: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Callers:
    """Use as `async with`: calls begin inside, and have all ended after it."""

    def __init__(
        self,
        nodes: Sequence[str],
        participants: Sequence[str],
        *,
        rate: float,
        no_share: float = 0.0,
        deadline: float = 30.0,
    ) -> None:
        self.called = Called()
        self._client = Client(list(nodes))
        self._participants = participants
        self._rate = rate
        self._no_share = no_share
        self._random = Random(1)
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[asyncio.Task[None], float] = {}
        self._mark = 0.0
        self._next_commit_s: float | None = None
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Callers:
        self._tick(self._loop.time())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._under_way)
        await self._client.close()

    def mark(self, now: float) -> None:
        """From now on, the next commit and the slowest call are looked for anew."""
        self._mark = now
        self._next_commit_s = None
        self.called.slowest_s = 0.0

    async def recovered(self, timeout: float) -> float | None:
        """Seconds from the mark to the first commit of a call that was begun after it.

        Returns when all calls from before the mark have ended, too. None: not within `timeout`.
        """
        try:
            async with asyncio.timeout(timeout):
                while self._next_commit_s is None or self._before_mark():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return None
        return self._next_commit_s

    def _before_mark(self) -> bool:
        return any(began < self._mark for began in self._under_way.values())

    def _tick(self, due: float) -> None:
        now = self._loop.time()
        while due <= now:
            self._begin()
            due += 1 / self._rate
        self._timer = self._loop.call_at(due, self._tick, due)

    def _begin(self) -> None:
        if len(self._under_way) >= MOST_UNDER_WAY:
            self.called.unsent += 1
            return
        began = self._loop.time()
        refuses = self._random.random() < self._no_share
        task = self._loop.create_task(self._call(began, refuses=refuses))
        self._under_way[task] = began
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._changed.set()

    async def _call(self, began: float, *, refuses: bool) -> None:
        called = self.called
        called.calls += 1
        who = self._random.randrange(len(self._participants)) if refuses else -1
        participants: list[dict[str, Any]] = [
            {
                "name": f"p{position + 1}",
                "url": url,
                "payload": {"vote": "no"} if position == who else {"n": position},
            }
            for position, url in enumerate(self._participants)
        ]
        try:
            answer = await self._client.submit(participants, deadline=self._deadline)
        except ClientError as error:
            called.failed.append(f"{type(error).__name__}: {error}")
            return
        now = self._loop.time()
        called.slowest_s = max(called.slowest_s, now - began)
        if answer.aborted:
            called.aborted += 1
            return
        called.committed += 1
        if refuses:
            called.wrong.append(f"{answer.id} is committed, and one of its branches voted NO")
        if began >= self._mark and self._next_commit_s is None:
            self._next_commit_s = now - self._mark
