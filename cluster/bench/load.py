"""The load of a measurement: begins transactions as fast, or as often, as it is told.

It shares the machine with what it measures, so it is lean: connections are bare protocols, a
request is a few prepared pieces around new ids, an answer is searched, not decoded. And it is
honest:

- Every answer must name the id that was asked for and an outcome that its votes allow; one that
  does not counts as wrong. An abort that no vote asked for is allowed (a timeout, a change of
  leader), and counted apart.
- In an open loop (`rate`) a latency counts from when the request was meant to start, not from when
  a connection was free for it.
- A request that fails in an unknown way is asked again with the same ids, at another node, as the
  client library does; its latency goes on counting. A 429 is an answer: refused.

    python -m cluster.bench.load       reads a Load as a line of JSON from standard input

It answers with a line when it begins to measure, with one when that is over (`seconds` have passed;
if they are 0, another line has come), and with a line of figures (`Tally`) when what was under way
then has been answered.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit

from cluster.bench.connection import Connection
from cluster.bench.report import GROWTH
from cluster.bench.requests import Load, Request, RequestMaker
from participants import event_loop, process

GIVE_UP_S = 30.0
_AGAIN_S = 0.02
_REFUSED_PAUSE_S = 0.05
_TICK_S = 0.001
_LAG_EVERY_S = 0.02
_OPEN = [
    b'{"error":{"code":"%s"' % code
    for code in (b"outcome_unknown", b"no_leader", b"not_leader", b"draining")
]
"""What an element of a batch is answered that may have been done, or may be yet."""
_REFUSED = (b'{"error":{"code":"at_capacity"', b'{"error":{"code":"overloaded"')
_STEP = math.log(GROWTH)
"""A latency is counted as the number of its step, each a hundredth above the one before."""


@dataclass(slots=True)
class Tally:
    """What came of it, within the time of measuring. Counts are of transactions.

    `accepted`: begun, with `wait` none. `unsent`: of an open loop, given up because no connection
    was free, or still waiting for one at the end. `latencies`: how many requests took about
    `1.01 ** step` microseconds until the outcome, by step; `refusals`: until they were refused,
    likewise.
    """

    committed: int = 0
    aborted: int = 0
    aborted_unasked: int = 0
    accepted: int = 0
    wrong: int = 0
    refused: int = 0
    failed: int = 0
    asked_again: int = 0
    unsent: int = 0
    seconds: float = 0.0
    longest_ms: float = 0.0
    loop_lag_ms: float = 0.0
    latencies: dict[int, int] = field(default_factory=dict)
    refusals: dict[int, int] = field(default_factory=dict)
    first_wrong: str = ""


def main() -> None:
    fields = json.loads(sys.stdin.readline())
    fields["nodes"], fields["participants"] = tuple(fields["nodes"]), tuple(fields["participants"])
    load = Load(**fields)
    process.prepare_to_serve()
    tally = event_loop.run(run_load(load, _say_begun, _say_over, told_to_stop=_a_line_came))
    print(json.dumps(asdict(tally)), flush=True)
    sys.stdin.read()  # until nobody needs this process any more: what it used is read of the system


def _say_begun() -> None:
    print('{"measuring":true}', flush=True)


def _say_over() -> None:
    print('{"measuring":false}', flush=True)


async def _a_line_came() -> None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), came.set)
    await came.wait()
    loop.remove_reader(sys.stdin.fileno())


async def run_load(
    load: Load,
    begun: Callable[[], None] = lambda: None,
    over: Callable[[], None] = lambda: None,
    told_to_stop: Callable[[], Awaitable[None]] | None = None,
) -> Tally:
    """Warm up, call `begun`, measure, call `over`, and wait for what is under way.

    `told_to_stop`: returns when it shall end, if `load` says neither how long nor how many.
    """
    crowd = _Crowd(load)
    return await crowd.run(begun, over, told_to_stop)


def _count(steps: dict[int, int], took: float) -> None:
    step = int(math.log(took * 1e6) / _STEP)
    steps[step] = steps.get(step, 0) + 1


def _retry_after_s(head: bytes) -> float:
    at = head.find(b"\r\nRetry-After: ")
    return float(head[at + 15 : head.index(b"\r\n", at + 2)]) if at >= 0 else 0.0


# --- all of them ------------------------------------------------------------------------------


class _Crowd:
    """The clients of one process."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._make = RequestMaker(load)
        self._loop = asyncio.get_running_loop()
        self._clock = time.perf_counter
        self._leader = load.nodes[0]
        self._others = itertools.cycle(load.nodes)
        self._idle: deque[Connection] = deque()
        self._waiting: deque[Request] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[Connection] = set()
        self._measure_from = math.inf
        self._measure_to = math.inf
        self._begun = 0
        self._under_way = 0
        self._over = False
        self._first_ended = asyncio.Event()
        self._ended = self._loop.create_future()
        self.tally = Tally()

    async def run(
        self,
        begun: Callable[[], None],
        over: Callable[[], None],
        told_to_stop: Callable[[], Awaitable[None]] | None,
    ) -> Tally:
        load = self._load
        for _ in range(load.clients):
            await self._connect(self._leader)
        await self._first()
        if load.rate:
            self._loop.call_soon(self._tick, self._clock())
        else:
            for _ in range(load.clients):
                if self._left():
                    self._waiting.append(self._new(self._clock()))
            self._pump()
        await asyncio.sleep(load.warm_up_s)
        begun()
        self._measure_from = self._clock()
        self._watch_lag(self._loop.time())
        if load.most:
            if self._under_way:
                await self._ended
            over()
        else:
            if load.seconds:
                await asyncio.sleep(load.seconds)
            else:
                assert told_to_stop is not None
                await told_to_stop()
            self._measure_to = self._clock()
            over()
            self._over = True
            self.tally.unsent += load.batch * len(self._waiting)
            self._under_way -= len(self._waiting)
            self._waiting.clear()
            if self._under_way:
                await self._ended
        self.tally.seconds = min(self._clock(), self._measure_to) - self._measure_from
        await self._close()
        return self.tally

    async def _first(self) -> None:
        """One transaction alone finds the leader, and lets it hear what the participants offer."""
        self._under_way += 1
        self._begun += 1
        self._waiting.append(self._make(self._clock(), 1))
        self._pump()
        await self._first_ended.wait()

    # --- sending ---

    def _new(self, started: float) -> Request:
        batch = self._left()
        self._under_way += 1
        self._begun += batch
        return self._make(started, batch)

    def _left(self) -> int:
        """How many transactions the next request may begin."""
        batch, most = self._load.batch, self._load.most
        return min(batch, most - self._begun) if most else batch

    def _tick(self, due: float) -> None:
        """An open loop: requests begin when it is their time, whatever became of those before."""
        if self._over:
            return
        now = self._clock()
        while due <= now:
            self._waiting.append(self._new(due))
            due += 1 / self._load.rate
        self._pump()
        self._loop.call_later(_TICK_S, self._tick, due)

    def _pump(self) -> None:
        if self._load.patience_s:
            self._give_up_late()
        while self._waiting and self._idle:
            request = self._waiting.popleft()
            request.sent = True
            self._idle.popleft().send(request)

    def _give_up_late(self) -> None:
        """Those that were due too long ago, and were never sent."""
        now = self._clock()
        oldest = now - self._load.patience_s
        while self._waiting and self._waiting[0].started < oldest and not self._waiting[0].sent:
            request = self._waiting.popleft()
            self._under_way -= 1
            if now >= self._measure_from:
                self.tally.unsent += len(request.ids)

    def _again(self, request: Request, after_s: float) -> None:
        """The same request: what became of it is not known, and the ids make it the same one."""
        if self._clock() - request.started > GIVE_UP_S:
            self.tally.failed += len(request.ids)
            self._end()
            return
        if self._clock() >= self._measure_from:
            self.tally.asked_again += 1
        self._loop.call_later(after_s, self._wait, request)

    def _wait(self, request: Request) -> None:
        self._waiting.append(request)
        self._pump()

    # --- answers ---

    def answered(
        self, connection: Connection, request: Request, status: int, head: bytes, body: bytes
    ) -> None:
        rest_s = _retry_after_s(head) if status != 503 else 0.0
        if status in (200, 202):
            self._use_again(connection, rest_s)
            if self._is_open(body):
                self._again(request, _AGAIN_S)
            else:
                self._check(request, body)
                self._end()
            return
        if status == 307:
            location = head.split(b"Location: ", 1)[1].split(b"\r\n", 1)[0].decode("ascii")
            self._leader = location.removesuffix("/v1/transactions")
        self._use_again(connection, rest_s)
        if status == 429:
            self._refused(request)
            self._loop.call_later(_REFUSED_PAUSE_S, self._end)
        elif status in (307, 503):
            self._again(request, 0.0 if status == 307 else _AGAIN_S)
        else:
            self._wrong(request, f"{status} {body[:500]!r}")
            self._end()

    def lost(self, connection: Connection, request: Request | None) -> None:
        """The node went away, perhaps with our request."""
        if connection not in self._connections:
            return  # we closed it
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.url == self._leader:
            self._leader = next(self._others)
        self._spawn(self._leader)
        if request is not None:
            self._again(request, _AGAIN_S)

    def _is_open(self, body: bytes) -> bool:
        """Whether an outcome is still to be told, of one transaction at least."""
        if self._load.wait != "none" and b'"outcome":null' in body:
            return True
        return b'{"error":{' in body and any(code in body for code in _OPEN)

    def _check(self, request: Request, body: bytes) -> None:
        ids = request.ids
        committed = body.count(b'"outcome":"committed"')
        aborted = body.count(b'"outcome":"aborted"')
        accepted = body.count(b'"outcome":null')
        refused = sum(body.count(code) for code in _REFUSED)
        if committed > request.commits or committed + aborted + accepted + refused != len(ids):
            self._wrong(request, body[:500].decode("utf-8", "replace"))
            return
        if not refused and (ids[0] not in body or ids[-1] not in body):
            self._wrong(request, f"answered for another: {body[:500]!r}")
            return
        now = self._clock()
        if self._measure_from <= now <= self._measure_to:
            tally = self.tally
            tally.committed += committed
            tally.aborted += aborted
            tally.accepted += accepted
            tally.refused += refused
            tally.aborted_unasked += max(0, request.commits - committed - accepted - refused)
            took = now - request.started
            _count(tally.latencies, took)
            tally.longest_ms = max(tally.longest_ms, took * 1000)

    def _refused(self, request: Request) -> None:
        now = self._clock()
        if self._measure_from <= now <= self._measure_to:
            self.tally.refused += len(request.ids)
            _count(self.tally.refusals, now - request.started)

    def _wrong(self, request: Request, why: str) -> None:
        self.tally.wrong += len(request.ids)
        self.tally.first_wrong = self.tally.first_wrong or why

    def _end(self) -> None:
        """A request is done; in a closed loop the next one begins."""
        self._under_way -= 1
        if not self._first_ended.is_set():
            self._first_ended.set()
            return
        if not self._left():
            self._over = True
        if not self._over:
            if not self._load.rate:
                self._waiting.append(self._new(self._clock()))
        elif not self._under_way and not self._ended.done():
            self._ended.set_result(None)
        self._pump()

    # --- connections ---

    def _use_again(self, connection: Connection, rest_s: float = 0.0) -> None:
        """When it has rested, if it leads to the leader; else have one that does in its place."""
        if rest_s:
            self._loop.call_later(rest_s, self._rested, connection)
        elif connection.url == self._leader:
            self._idle.append(connection)
        else:
            connection.request = None
            self._connections.discard(connection)
            connection.close()
            self._spawn(self._leader)

    def _rested(self, connection: Connection) -> None:
        if connection in self._connections:  # else it was lost meanwhile, or all is over
            self._use_again(connection)
            self._pump()

    def _spawn(self, url: str) -> None:
        task = self._loop.create_task(self._connect(url))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, url: str) -> None:
        parts = urlsplit(url)
        while True:
            try:
                make = functools.partial(Connection, self, url)
                _, connection = await self._loop.create_connection(
                    make,
                    parts.hostname or "",
                    parts.port or 80,
                    local_addr=(self._load.address, 0) if self._load.address else None,
                )
                break
            except OSError:
                await asyncio.sleep(_AGAIN_S)
                url = next(self._others)
                parts = urlsplit(url)
        self._connections.add(connection)
        self._idle.append(connection)
        self._pump()

    async def _close(self) -> None:
        self._over = True
        if not self._ended.done():
            self._ended.set_result(None)
        for task in list(self._tasks):
            task.cancel()
        connections, self._connections = list(self._connections), set()
        for connection in connections:
            connection.close()
        await asyncio.sleep(0)

    def _watch_lag(self, due: float) -> None:
        if self._over:
            return
        now = self._loop.time()
        self.tally.loop_lag_ms = max(self.tally.loop_lag_ms, (now - due) * 1000)
        self._loop.call_at(now + _LAG_EVERY_S, self._watch_lag, now + _LAG_EVERY_S)


if __name__ == "__main__":
    main()
