"""The reads that wait until the state of this node is current.

A read waits for a round that began after it was asked for, answered by a quorum, and until what was
committed then is applied (Raft thesis, section 6.4). All that wait share a round.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from coordinator.log import LogError

LOOK_AT: Final = 1_024
"""When so many wait for a round, those of them that gave up are let go of. No round begins while a
sync hangs, and clients that hear nothing ask again and again."""


@dataclass(frozen=True, slots=True)
class _Asked:
    round: int
    commit: int
    futures: list[asyncio.Future[None]]


class Barriers:
    """The reads that wait until the applied state is current."""

    def __init__(self) -> None:
        self._new: list[asyncio.Future[None]] = []
        self._look_at = LOOK_AT  # when so many are new
        self._asked: deque[_Asked] = deque()

    def add(self, future: asyncio.Future[None]) -> None:
        if len(self._new) >= self._look_at:
            self._new = [each for each in self._new if not each.done()]
            self._look_at = LOOK_AT + 2 * len(self._new)
        self._new.append(future)

    def __len__(self) -> int:
        """How many are kept, perhaps some that gave up among them."""
        return len(self._new) + sum(len(asked.futures) for asked in self._asked)

    @property
    def want_round(self) -> bool:
        """Are there reads that no round was begun for, and none that could be waited for first?"""
        return bool(self._new) and not self._asked

    @property
    def wait_for_answers(self) -> bool:
        """Are there reads whose round is not confirmed?"""
        return bool(self._asked)

    def round_begun(self, number: int, commit: int) -> None:
        """The leader has spoken to all since the new ones were asked for."""
        if self._new:
            self._asked.append(_Asked(number, commit, self._new))
            self._new = []

    def settle(self, is_confirmed: Callable[[int], bool], applied: int) -> None:
        """Resolve those whose round is confirmed and whose commit index is applied."""
        while self._asked and self._asked[0].commit <= applied:
            if not is_confirmed(self._asked[0].round):
                return
            for future in self._asked.popleft().futures:
                if not future.done():
                    future.set_result(None)

    def fail(self, error: LogError) -> None:
        """The leadership is over."""
        futures = [future for asked in self._asked for future in asked.futures] + self._new
        self._asked.clear()
        self._new = []
        for future in futures:
            fail_future(future, error)


def fail_future(future: asyncio.Future[None], error: LogError) -> None:
    """Fail it, and do not mind if nobody waits for it any more."""
    if not future.done():
        future.set_exception(error)
        future.exception()
