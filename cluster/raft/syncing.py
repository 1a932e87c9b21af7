"""Where the journal's syncs run: in place while the disk is quick, else in a thread.

Rules
- No step runs during a sync, so a follower's loop has next to nothing else to do. A thread costs as
  much processor time as the sync (measured: 217 against 107 us, eight switches of context against
  four), and who waits for the interpreter's lock is late besides.
- A leader has clients and participants to talk to while it syncs. It too syncs in place, but only
  where that takes no longer than one of its usual turns, and never while it writes to the same disk
  itself, a snapshot say: then a single sync took 60 ms where the average was below one.
- A disk is quick while its syncs take less than `quick_s` on the average of the latest ones. One
  that gets slow holds the loop up until the average says so; from then on only the log waits.
- The thread is the journal's own. asyncio looks up the names of peers in those of the loop, which
  a name server that is silent keeps for as long as it likes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

QUICK_S: Final = 0.01
"""Ten times what a good disk takes. A client that asks a follower is late by no more than that."""
LEADER_QUICK_S: Final = 0.001
"""A sync of a good disk takes a fifth of it (docs/performance.md, "Floor")."""
_LATEST: Final = 16


class Syncs:
    """The syncs of one journal, one at a time."""

    def __init__(
        self,
        quick_s: float = QUICK_S,
        leader_quick_s: float = LEADER_QUICK_S,
        *,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        """With 0 all run in a thread. Not by the loop's clock: uvloop's stands still."""
        self.quick_s = quick_s
        self.leader_quick_s = leader_quick_s
        self._now = now
        self._average_s = 0.0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")

    def run(
        self, job: Callable[[], None], *, leads: bool, disk_is_busy: bool = False
    ) -> asyncio.Future[None] | None:
        """Run `job` at once, and raise what it raises; or give the future of its end.

        `disk_is_busy`: other jobs of this node are at work in threads.
        """
        if self.is_quick(leads=leads, disk_is_busy=disk_is_busy):
            self._timed(job)
            return None
        return self.in_thread(lambda: self._timed(job))

    def in_thread(self, job: Callable[[], None]) -> asyncio.Future[None]:
        """Run `job` behind those that were begun before; the future of its end."""
        return asyncio.get_running_loop().run_in_executor(self._thread, job)

    def is_quick(self, *, leads: bool, disk_is_busy: bool = False) -> bool:
        """Whether `run` would run a job at once."""
        quick_s = self.quick_s
        if leads:
            quick_s = 0.0 if disk_is_busy else self.leader_quick_s
        return self._average_s < quick_s

    def _timed(self, job: Callable[[], None]) -> None:
        began = self._now()
        job()
        self._average_s += (self._now() - began - self._average_s) / _LATEST
