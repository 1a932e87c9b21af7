"""The load of a measurement: a process that begins transactions as fast, or as often, as it is told.

It shares the machine with what it measures, so it is lean: connections are bare protocols, a
request is a few prepared pieces around new ids, an answer is searched, not decoded. And it is
honest:

- Every answer must name the id that was asked for and the outcome that its votes give; one that
  does not counts as wrong.
- In an open loop (`rate`) a latency counts from when the request was meant to start, not from when
  a connection was free for it.
- A request that fails in an unknown way is asked again with the same ids, at another node, as the
  client library does; its latency goes on counting. A 429 is an answer: refused.

    python -m cluster.bench_load       reads a Load as a line of JSON from standard input

It answers with a line when it begins to measure, and with a line of figures (`Tally`) at the end.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any
from urllib.parse import urlsplit

KINDS = 256
"""Different requests that are prepared where votes differ; each is sent again and again."""

GIVE_UP_S = 30.0
_AGAIN_S = 0.02
_REFUSED_PAUSE_S = 0.05
_TICK_S = 0.001
_LAG_EVERY_S = 0.02
_GROWTH = math.log(1.01)
"""Latencies are counted by steps of one hundredth."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to do. `nodes` and `participants` are URLs; shares are from 0 to 1.

    `clients`: connections, each with one request under way. `rate`: requests per second for an open
    loop; 0: each client asks again as soon as it is answered. `batch`: transactions in one request.
    `no_share`: of the transactions, in which one branch votes NO. `read_only_share`: of the
    branches. `most`: end after so many transactions (0: when the time is over).
    """

    nodes: tuple[str, ...]
    participants: tuple[str, ...]
    clients: int = 64
    rate: float = 0.0
    batch: int = 1
    no_share: float = 0.0
    read_only_share: float = 0.0
    payload_bytes: int = 0
    warm_up_s: float = 1.0
    seconds: float = 5.0
    most: int = 0
    seed: int = 1


@dataclass(slots=True)
class Tally:
    """What came of it, within the time of measuring. Counts are of transactions.

    `latencies`: how many requests took about `1.01 ** step` microseconds, by step.
    """

    committed: int = 0
    aborted: int = 0
    wrong: int = 0
    refused: int = 0
    failed: int = 0
    asked_again: int = 0
    seconds: float = 0.0
    longest_ms: float = 0.0
    loop_lag_ms: float = 0.0
    latencies: dict[int, int] = field(default_factory=dict)
    first_wrong: str = ""


def main() -> None:
    fields = json.loads(sys.stdin.readline())
    fields["nodes"], fields["participants"] = tuple(fields["nodes"]), tuple(fields["participants"])
    gc.freeze()
    tally = _runner()(run_load(Load(**fields), begun=_say_begun))
    print(json.dumps(asdict(tally)), flush=True)


def _runner() -> Any:
    """What runs a coroutine: uvloop's where it is installed, for it takes less from the others."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return asyncio.run
    return uvloop.run


def _say_begun() -> None:
    print('{"measuring":true}', flush=True)


async def run_load(load: Load, begun: Any = lambda: None) -> Tally:
    """Warm up, call `begun`, measure, and wait for what is under way."""
    crowd = _Crowd(load)
    return await crowd.run(begun)


# --- requests ---------------------------------------------------------------------------------


class _Kind:
    """A prepared transaction: what stands before and after its id, and how it must end."""

    __slots__ = ("commits", "tail")

    def __init__(self, load: Load, random: Random) -> None:
        refuses = random.random() < load.no_share
        who = random.randrange(len(load.participants))
        participants = []
        for position, url in enumerate(load.participants):
            payload: dict[str, Any] = {"n": position}
            if refuses and position == who:
                payload["vote"] = "no"
            elif random.random() < load.read_only_share:
                payload["vote"] = "read_only"
            if load.payload_bytes:
                payload["text"] = "x" * load.payload_bytes
            participants.append({"name": f"p{position + 1}", "url": url, "payload": payload})
        text = json.dumps({"participants": participants}, separators=(",", ":"))
        self.tail = b'",' + text[1:].encode("ascii")
        self.commits = not refuses


class _Request:
    """One request: the bytes, the ids in it, how many of them must commit, when it began."""

    __slots__ = ("body", "commits", "ids", "started")

    def __init__(self, body: bytes, ids: Sequence[bytes], commits: int, started: float) -> None:
        self.body = body
        self.ids = ids
        self.commits = commits
        self.started = started


class _Maker:
    """Makes requests. Ids are UUIDv7 (`coordinator.ids`) with a counter where chance would be."""

    def __init__(self, load: Load) -> None:
        random = Random(load.seed)
        shares = load.no_share or load.read_only_share
        self._kinds = [_Kind(load, random) for _ in range(KINDS if shares else 1)]
        self._next_kind = itertools.cycle(self._kinds).__next__
        self._batch = load.batch
        self._number = random.getrandbits(44) << 4
        self._salt = f"8{random.getrandbits(12):03x}"

    def __call__(self, started: float) -> _Request:
        millisecond = f"{time.time_ns() // 1_000_000:012x}"
        prefix = f"{millisecond[:8]}-{millisecond[8:]}-7000-{self._salt}-"
        ids, parts, commits = [], [], 0
        for _ in range(self._batch):
            self._number = (self._number + 1) & 0xFFFFFFFFFFFF
            one = f"{prefix}{self._number:012x}".encode("ascii")
            kind = self._next_kind()
            ids.append(one)
            parts.append(b'{"id":"' + one + kind.tail)
            commits += kind.commits
        body = parts[0] if self._batch == 1 else b'{"transactions":[' + b",".join(parts) + b"]}"
        return _Request(body, ids, commits, started)


# --- connections ------------------------------------------------------------------------------


class _Connection(asyncio.Protocol):
    """One connection to the node at `url`, with at most one request under way."""

    def __init__(self, crowd: _Crowd, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self._crowd = crowd
        self._head = (
            f"POST /v1/transactions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("ascii")
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._needed = 0
        self.request: _Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, request: _Request) -> None:
        assert self._transport is not None
        self.request = request
        body = request.body
        self._transport.write(self._head + b"%d\r\n\r\n" % len(body) + body)

    def data_received(self, received: bytes) -> None:
        buffer = self._buffer + received if self._buffer else received
        if len(buffer) < self._needed:
            self._buffer = buffer
            return
        end = buffer.find(b"\r\n\r\n")
        length = -1 if end < 0 else _content_length(buffer, end)
        if length < 0 or len(buffer) < end + 4 + length:
            self._buffer = buffer
            self._needed = 0 if length < 0 else end + 4 + length
            return
        self._buffer, self._needed = b"", 0
        request, self.request = self.request, None
        if request is not None:
            self._crowd.answered(self, request, int(buffer[9:12]), buffer[: end + 4], buffer[end:])

    def connection_lost(self, _: Exception | None) -> None:
        request, self.request = self.request, None
        self._crowd.lost(self, request)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _content_length(buffer: bytes, end: int) -> int:
    at = buffer.find(b"Content-Length: ", 0, end)
    if at < 0:
        raise AssertionError(f"an answer without Content-Length: {buffer[:end]!r}")
    return int(buffer[at + 16 : buffer.index(b"\r\n", at)])


# --- all of them ------------------------------------------------------------------------------


class _Crowd:
    """The clients of one process."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._make = _Maker(load)
        self._loop = asyncio.get_running_loop()
        self._clock = time.perf_counter
        self._leader = load.nodes[0]
        self._others = itertools.cycle(load.nodes)
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[_Request] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: set[_Connection] = set()
        self._measure_from = math.inf
        self._measure_to = math.inf
        self._begun = 0
        self._under_way = 0
        self._over = False
        self._ended = self._loop.create_future()
        self.tally = Tally()

    async def run(self, begun: Any) -> Tally:
        load = self._load
        for _ in range(load.clients):
            await self._connect(self._leader)
        self._waiting.append(self._new(self._clock()))  # finds the leader
        self._pump()
        if load.rate:
            self._loop.call_soon(self._tick, self._clock())
        else:
            for _ in range(load.clients - 1):
                self._waiting.append(self._new(self._clock()))
            self._pump()
        await asyncio.sleep(load.warm_up_s)
        begun()
        self._measure_from = self._clock()
        self._watch_lag(self._loop.time())
        if load.most:
            await self._ended
        else:
            self._measure_to = self._measure_from + load.seconds
            await asyncio.sleep(load.seconds)
            self._over = True
            if self._under_way:
                await self._ended
        self.tally.seconds = min(self._clock(), self._measure_to) - self._measure_from
        await self._close()
        return self.tally

    # --- sending ---

    def _new(self, started: float) -> _Request:
        self._under_way += 1
        self._begun += self._load.batch
        return self._make(started)

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
        while self._waiting and self._idle:
            self._idle.popleft().send(self._waiting.popleft())

    def _again(self, request: _Request, after_s: float) -> None:
        """The same request: what became of it is not known, and the ids make it the same one."""
        if self._clock() - request.started > GIVE_UP_S:
            self.tally.failed += len(request.ids)
            self._end(request)
            return
        if self._clock() >= self._measure_from:
            self.tally.asked_again += 1
        self._loop.call_later(after_s, self._wait, request)

    def _wait(self, request: _Request) -> None:
        self._waiting.append(request)
        self._pump()

    # --- answers ---

    def answered(
        self, connection: _Connection, request: _Request, status: int, head: bytes, body: bytes
    ) -> None:
        if status == 200:
            if connection.url == self._leader:
                self._idle.append(connection)
            else:
                self._move(connection)
            self._check(request, body)
            self._end(request)
            return
        if status == 307:
            location = head.split(b"Location: ", 1)[1].split(b"\r\n", 1)[0].decode("ascii")
            self._leader = location.removesuffix("/v1/transactions")
        self._move(connection)
        if status == 429:
            self.tally.refused += len(request.ids)
            self._loop.call_later(_REFUSED_PAUSE_S, self._end, request)
        elif status in (307, 503):
            self._again(request, 0.0 if status == 307 else _AGAIN_S)
        else:
            self._wrong(request, f"{status} {body[:500]!r}")
            self._end(request)

    def lost(self, connection: _Connection, request: _Request | None) -> None:
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

    def _check(self, request: _Request, body: bytes) -> None:
        ids = request.ids
        committed = body.count(b'"outcome":"committed"')
        aborted = body.count(b'"outcome":"aborted"')
        if committed != request.commits or committed + aborted != len(ids):
            self._wrong(request, body[:500].decode("utf-8", "replace"))
            return
        if ids[0] not in body or ids[-1] not in body:
            self._wrong(request, f"answered for another: {body[:500]!r}")
            return
        now = self._clock()
        if self._measure_from <= now <= self._measure_to:
            tally = self.tally
            tally.committed += committed
            tally.aborted += aborted
            took = now - request.started
            step = int(math.log(took * 1e6) / _GROWTH)
            tally.latencies[step] = tally.latencies.get(step, 0) + 1
            tally.longest_ms = max(tally.longest_ms, took * 1000)

    def _wrong(self, request: _Request, why: str) -> None:
        self.tally.wrong += len(request.ids)
        self.tally.first_wrong = self.tally.first_wrong or why

    def _end(self, request: _Request) -> None:
        """This request is done; in a closed loop the next one begins."""
        self._under_way -= 1
        most = self._load.most
        if most and self._begun >= most:
            self._over = True
        if not self._over:
            if not self._load.rate:
                self._waiting.append(self._new(self._clock()))
            self._pump()
        elif not self._under_way and not self._ended.done():
            self._ended.set_result(None)

    # --- connections ---

    def _move(self, connection: _Connection) -> None:
        """Use it again if it leads to the leader; else have one that does in its place."""
        if connection.url == self._leader:
            self._idle.append(connection)
        else:
            connection.request = None
            self._connections.discard(connection)
            connection.close()
            self._spawn(self._leader)

    def _spawn(self, url: str) -> None:
        task = self._loop.create_task(self._connect(url))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, url: str) -> None:
        parts = urlsplit(url)
        while True:
            try:
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self, url), parts.hostname, parts.port
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
