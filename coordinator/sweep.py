"""The leader's housekeeping: forgets what has been remembered long enough, and looks for the lost.

Rules (PROTOCOL, section 9): the horizon moves to now less the retention, or further when more than
`max_remembered` or `remembered_bytes` are remembered; in steps, so that no one command is long; and
only by a leader whose clock agrees with its peers', for the horizon never moves back. To now less
the retention it moves only by a clock that was not set for a while: if it was set wrong, all would
be forgotten at once, every id made by right clocks refused, and work under ids without a time done
again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from coordinator.commands import Forget, encode
from coordinator.driver import Driver
from coordinator.log import ReplicatedLog
from coordinator.machine import Forgot, Machine
from coordinator.settings import Retention

LOG = logging.getLogger("assent.sweep")

EVERY_S = 1.0
LOST_EVERY = 10
"""Sweeps between two searches for transactions without a conversation: the search looks at all."""

FORGET_AT_ONCE = 250
"""Transactions that one Forget removes, in a quarter of a millisecond on every node."""

LEAST_KEPT_MS = 10_000
"""However much is remembered: a client asks again within this time."""

HORIZON_STEP_MS = 60_000
"""When there is nothing to remove the horizon still moves, so that old ids are refused, but seldom.
"""


class Sweep:
    """Runs on every node; does its work on the one that leads."""

    def __init__(
        self,
        log: ReplicatedLog,
        machine: Machine,
        driver: Driver,
        *,
        now_ms: Callable[[], int],
        retention: Retention,
        clock_is_sound: Callable[[], bool],
        clock_is_steady: Callable[[], bool],
    ) -> None:
        self._log = log
        self._machine = machine
        self._driver = driver
        self._now_ms = now_ms
        self._retention = retention
        self._clock_is_sound = clock_is_sound
        self._clock_is_steady = clock_is_steady
        self._proposed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _run(self) -> None:
        count = 0
        while True:
            await asyncio.sleep(EVERY_S)
            count += 1
            try:
                self.sweep(search=count % LOST_EVERY == 0)
            except Exception:
                # Whatever it was: a node that does not forget any more grows without end.
                LOG.exception("a sweep failed, the next one will try again")
                self._proposed = False  # perhaps it was; twice does no harm

    def sweep(self, *, search: bool = True) -> None:
        """One sweep; harmless at any time and on any node."""
        if self._log.epoch is None:
            self._proposed = False
            return
        if search:
            self._driver.take_up_forgotten()
        if not self._proposed and self._clock_is_sound():
            self._forget(self._log.epoch)

    def _forget(self, epoch: int) -> None:
        horizon_ms = self._next_horizon_ms()
        if horizon_ms is None:
            return
        self._proposed = True
        self._log.propose(encode(Forget(epoch, self._now_ms(), horizon_ms)), epoch, self._forgot)

    def _next_horizon_ms(self) -> int | None:
        """How far the horizon should move now, None: not at all."""
        now_ms, machine = self._now_ms(), self._machine
        oldest_kept_ms = now_ms - self._retention.keep_ms
        excess = self._excess()
        step_ms = machine.horizon_that_forgets(FORGET_AT_ONCE)
        if excess > 0:
            # Never into what is new, however far ahead ids or a former leader's clock may be: an
            # id that was made just now must not be refused, and the horizon never moves back.
            wanted_ms = machine.horizon_that_forgets(min(excess, FORGET_AT_ONCE))
            capped_ms = min(wanted_ms, now_ms - LEAST_KEPT_MS)
            return capped_ms if capped_ms > machine.horizon_ms else None
        if not self._clock_is_steady():
            return None
        if step_ms and step_ms <= oldest_kept_ms:
            return step_ms
        has_old = 0 < machine.horizon_that_forgets(1) <= oldest_kept_ms
        if has_old or oldest_kept_ms - machine.horizon_ms >= HORIZON_STEP_MS:
            return oldest_kept_ms
        return None

    def _excess(self) -> int:
        """How many too many are remembered; if they are too large together, about how many."""
        count, size = self._machine.remembered_count, self._machine.remembered_bytes
        too_large = size - self._retention.remembered_bytes
        of_size = -(-too_large * count // size) if too_large > 0 else 0
        return max(of_size, count - self._retention.max_remembered)

    def _forgot(self, result: object) -> None:
        self._proposed = False
        if isinstance(result, Forgot) and result.forgotten:
            LOG.info(
                "forgot %d finished transactions; ids from before %d ms are refused",
                result.forgotten,
                result.horizon_ms,
            )
            if self._log.epoch is not None and self._clock_is_sound():
                self._forget(self._log.epoch)  # in steps until nothing is left to forget
