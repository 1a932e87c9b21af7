"""What a Driver stands on, as little as will do: a loop, a log and a gateway that only write down
what is asked of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any, cast

from coordinator.commands import Command, decode
from coordinator.facts import Outcome, Transaction
from coordinator.gateway import Call
from coordinator.log import NotLeader
from coordinator.steps import Steps
from participants.contract import Operation

MOST_TIMERS = 50


class Promise:
    """A future without a loop."""

    def __init__(self) -> None:
        self._result: object = None
        self._error: BaseException | None = None
        self._done = False

    def set_result(self, result: object) -> None:
        self._result, self._done = result, True

    def set_exception(self, error: BaseException) -> None:
        self._error, self._done = error, True

    def done(self) -> bool:
        return self._done

    def exception(self) -> BaseException | None:
        return self._error

    def outcome(self) -> Outcome | None:
        """The outcome that whoever waits for a transaction was told."""
        return self._result.outcome if isinstance(self._result, Transaction) else None

    def __await__(self) -> Generator[Promise, None, Any]:
        if not self._done:
            yield self
        if self._error is not None:
            raise self._error
        return self._result


class Timer:
    def __init__(self, when_s: float, act: Callable[[], object]) -> None:
        self._when_s = when_s
        self.act = act
        self.cancelled = False

    def when(self) -> float:
        return self._when_s

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """As much of an event loop as a Driver uses."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s
        self._soon: deque[Timer] = deque()
        self._timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def create_future(self) -> Promise:
        return Promise()

    def call_soon(self, function: Callable[..., object], *arguments: object) -> Timer:
        timer = Timer(self.now_s, lambda: function(*arguments))
        self._soon.append(timer)
        return timer

    def call_at(self, when_s: float, function: Callable[..., object], *args: object) -> Timer:
        timer = Timer(when_s, lambda: function(*args))
        self._timers.append(timer)
        return timer

    def fire(self, before_s: float) -> None:
        """Everything that is due within the instant happens."""
        for _ in range(MOST_TIMERS):
            if self._soon:
                timer = self._soon.popleft()
            else:
                due = [t for t in self._timers if t.when() < before_s and not t.cancelled]
                if not due:
                    return
                timer = min(due, key=Timer.when)
                self._timers.remove(timer)
                self.now_s = max(self.now_s, timer.when())
            if not timer.cancelled:
                timer.act()
        raise AssertionError("it never comes to rest")


@contextmanager
def running(loop: Loop) -> Generator[None, None, None]:
    asyncio._set_running_loop(cast(asyncio.AbstractEventLoop, loop))
    try:
        yield
    finally:
        asyncio._set_running_loop(None)


class Log:
    """Writes down what is proposed. Whoever was deposed never gets its barrier."""

    def __init__(self, epoch: int, current: bool) -> None:
        self.on_leadership: Callable[[int | None], None] = lambda _epoch: None
        self._epoch = epoch
        self._current = current
        self.proposed: list[tuple[Command, Callable[[object], None]]] = []

    @property
    def epoch(self) -> int | None:
        return self._epoch

    @property
    def leader(self) -> str | None:
        return "node"

    def takes(self, size: int) -> bool:
        del size
        return True

    def propose(
        self,
        command: bytes,
        epoch: int,
        done: Callable[[object], None],
        *,
        patience_s: float = 0.0,
    ) -> None:
        del patience_s  # any order of entries is explored
        assert epoch == self._epoch
        self.proposed.append((decode(command), done))

    def barrier(self) -> asyncio.Future[None]:
        passed = Promise()
        if self._current:
            passed.set_result(None)
        else:
            passed.set_exception(NotLeader("another leads"))
        return cast("asyncio.Future[None]", passed)

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        raise NotImplementedError  # the driver asks for none


class Gateway:
    """Calls leave at once; prepares may be made to wait in their lane until `leave`."""

    def __init__(self, loop: Loop, plain: frozenset[str], calls_wait: bool) -> None:
        self._loop = loop
        self._plain = plain
        self._calls_wait = calls_wait
        self.waiting: list[Call] = []
        self.left: list[Call] = []

    def begin(self, call: Call) -> None:
        if call.operation is Operation.PREPARE and self._calls_wait:
            self.waiting.append(call)
            return
        self._leaves(call)

    def thawed(self, call: Call, *, waits: bool) -> None:
        """This call was begun earlier than now."""
        for calls in (self.waiting, self.left):
            if call in calls:
                calls.remove(call)
        if waits:
            self.waiting.append(call)

    def leave(self, call: Call) -> None:
        self.waiting.remove(call)
        self._leaves(call)

    def _leaves(self, call: Call) -> None:
        call.sent_s = self._loop.now_s
        self.left.append(call)

    def withdraw(self, call: Call) -> bool:
        if call in self.waiting:
            self.waiting.remove(call)
            return True
        return False

    def repeatable(self, participants: Iterable[str]) -> tuple[bool, ...]:
        return tuple(each not in self._plain for each in participants)


class NoJitter:
    def random(self) -> float:
        return 0.0


class SilentSteps(Steps):
    def _warn(self, transaction_id: str, text: str) -> None:
        pass
