"""An event loop without a selector: time jumps to the next timer, and processes can die.

Rules
- Every callback belongs to the process in whose context it was scheduled (`PROCESS`), or to none.
  When a process is killed no callback, task step or `finally` of it ever runs again. When it is
  stopped (SIGSTOP) its callbacks are put aside and run, in order, when it goes on.
- A job for a thread runs at a drawn later time, its result comes at another: between them anything
  may happen, a kill too.
- Equal times are served in the order in which they were asked for.

What cannot be expressed so is an error here: a real socket, a signal, a subprocess.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, Protocol

WINDOW_S = 0.1
MAX_IN_WINDOW = 10_000
"""Callbacks in so much time: more is a livelock, or a storm of messages that beget messages. Of
250 seeds the busiest window of a run had 350 in the middle, and 1,070 at the most."""
_TICK_S = 1e-7
"""The least by which time goes on, as it does for every program: a pause that rounding has made a
hair too short is not repeated for ever."""
MAX_CALLS = 3_000_000
"""Callbacks in one run."""


class Stuck(RuntimeError):
    """Virtual time stands still, or nearly, or nothing is left to happen."""


class Process:
    """One start of a program. `owner` is whoever the world takes it for."""

    __slots__ = ("alive", "deferred", "name", "number", "owner", "paused")

    def __init__(self, name: str, number: int, owner: Any) -> None:
        self.name = name
        self.number = number
        self.owner = owner
        self.alive = True
        self.paused = False
        self.deferred: list[Call] = []


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)


class Call:
    """A callback that waits for its time or its turn; in the place of asyncio's `TimerHandle`."""

    __slots__ = ("_when", "args", "callback", "context", "is_timer", "process")

    def __init__(
        self, when: float, callback: Callable[..., Any], args: tuple[Any, ...], context: Context
    ) -> None:
        self.callback: Callable[..., Any] | None = callback
        self.args = args
        self.context = context
        self.process = context.get(PROCESS)
        self._when = when
        self.is_timer = False

    def cancel(self) -> None:
        self.callback = None
        self.args = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self._when


class Network(Protocol):
    """What the loop asks for connections."""

    async def create_connection(
        self, factory: Callable[[], asyncio.BaseProtocol], host: Any, port: Any, sock: Any
    ) -> tuple[asyncio.Transport, asyncio.BaseProtocol]: ...

    async def create_server(
        self, factory: Callable[[], asyncio.BaseProtocol], host: Any, port: Any
    ) -> asyncio.AbstractServer: ...


class SimLoop(asyncio.BaseEventLoop):
    """See the file's docstring. `random` draws how long threads take."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.now = 0.0
        self.calls = 0
        self.network: Network
        self.thread_mean_s = 0.001
        self._stopping = False
        self._random = random
        self._due: deque[Call] = deque()
        self._timers: list[tuple[float, int, Call]] = []
        self._sequence = 0
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Call:
        context = copy_context() if context is None else context  # an empty one is false
        call = Call(self.now, callback, args, context)
        self._due.append(call)
        return call

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> Call:
        return self.call_soon(callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> Call:
        context = copy_context() if context is None else context
        call = Call(when, callback, args, context)
        call.is_timer = True
        self._sequence += 1
        heapq.heappush(self._timers, (when, self._sequence, call))
        return call

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: Context | None = None,
    ) -> Call:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def resume(self, process: Process) -> None:
        """SIGCONT: what was put aside runs, before anything that comes from now on.

        What came to it goes before its timers, as in a loop that comes back from its selector.
        """
        process.paused = False
        self._due.extend(sorted(process.deferred, key=lambda call: call.is_timer))
        process.deferred = []

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        del executor
        future = self.create_future()
        draw = self._random
        process = PROCESS.get()
        mean_s = self.thread_mean_s + (getattr(process.owner, "slow_s", 0.0) if process else 0.0)

        def settle(result: Any, error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            result, error = None, None
            try:
                result = func(*args)
            except Exception as failure:
                error = failure
            self.call_later(draw.expovariate(4.0) * mean_s, settle, result, error)

        self.call_later(draw.expovariate(1.0) * mean_s, work)
        return future

    async def create_connection(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **named: Any
    ) -> Any:
        return await self.network.create_connection(protocol_factory, host, port, named.get("sock"))

    async def create_server(
        self, protocol_factory: Any, host: Any = None, port: Any = None, **_: Any
    ) -> Any:
        return await self.network.create_server(protocol_factory, host, port)

    def _run_once(self) -> None:
        """All that happens until the loop is stopped: `BaseEventLoop.run_forever` calls it."""
        due = self._due
        window_began, window_ends = self.calls, self.now + WINDOW_S
        while not self._stopping:
            if not due:
                self._let_time_pass()
                if self.now >= window_ends:
                    window_began, window_ends = self.calls, self.now + WINDOW_S
            call = due.popleft()
            callback = call.callback
            if callback is None:
                continue
            process = call.process
            if process is not None:
                if not process.alive:
                    continue
                if process.paused:
                    process.deferred.append(call)
                    continue
            self.calls += 1
            in_window = self.calls - window_began
            if in_window > MAX_IN_WINDOW or self.calls > MAX_CALLS:
                who = getattr(callback, "__self__", callback)
                raise Stuck(
                    f"{in_window} callbacks in the {WINDOW_S} s before {self.now:.6f}, "
                    f"{self.calls} in all, the last of {who!r}"
                )
            try:
                call.context.run(callback, *call.args)
            except (SystemExit, KeyboardInterrupt, Stuck):
                raise
            except BaseException as error:
                if process is None or process.alive:  # else it was killed in this very callback
                    message = f"{callback!r} failed"
                    self.call_exception_handler({"message": message, "exception": error})

    def _let_time_pass(self) -> None:
        """On to the next timer; what is due then is due."""
        timers = self._timers
        while timers and timers[0][2].callback is None:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing is left to happen")
        now = self.now = max(self.now + _TICK_S, timers[0][0])
        while timers and timers[0][0] <= now:
            self._due.append(heapq.heappop(timers)[2])

    def _process_events(self, event_list: list[Any]) -> None:
        raise NotImplementedError

    def _write_to_self(self) -> None:
        """Nobody waits in a selector."""
