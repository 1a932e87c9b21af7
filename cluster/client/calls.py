"""How a client gets an answer out of a cluster of which any node may be dead, deposed or deaf.

One request is tried until a node gives a final answer or the deadline passes:

    answer                  what it means               what is done
    307                     that node follows           ask the node that it names
    429                     not done, too much at once  ask again after Retry-After
    5xx, 408                perhaps done                ask another node
    none, or no connection  perhaps done                ask another node, forget the leader
    anything else           final                       return it; its giver is the leader

A refusal that is not in a node's words comes from something before the nodes, a proxy that has lost
its way to them for example. It is final if it is all that was heard: nothing reached a node. After
a try that was perhaps done it says nothing of that one, and another node is asked. Who refused so
is not taken for the leader.

A node that says nothing within a try is not asked again with less patience: each try that ended so
doubles the next one's time, up to four times the first. Else a cluster that needs longer than a try
for what thousands ask of it at once would be asked again and again by all of them, and answer none.

That is safe because every request that changes something carries the id of its transaction. The
first repeat follows at once (an idle connection that the other side closed is no more than that),
later ones after a pause with jitter, doubled up to a quarter of a second: an election takes less
than one, and whoever waits longer waits for nothing. Therefore a `Retry-After: 1` of a 503, the
least that the header can say, is read as "soon"; one of a 429 is kept.

The network is reached through the `Exchange` only, time through the event loop, chance through the
given Random.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Protocol
from urllib.parse import urlsplit

import aiohttp

from cluster.client.answers import is_refusal, read_json
from coordinator.api_requests import REQUEST_HEADER
from participants.retry_after import retry_after_s
from participants.streams import read_within

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.025
_LAST_PAUSE_S = 0.25
_HOPS = 4
"""Redirects in a row: more than a leader and its two successors is a circle."""
_MAX_RETRY_AFTER_S = 60.0
_CLOSED = "the client was closed before there was an answer"
_CONNECTIONS = 1_024
"""Of one client to all nodes. Requests beyond it wait for a free connection."""
_ANSWER_BYTES = 64 << 20
"""Read of an answer at most: four times the largest batch, and what it is answered."""
_MOST_PATIENCE = 4
"""Times the first try's time. A leader that hangs is noticed by the first try, two nodes that do so
one after the other seldom happen."""


class NoAnswer(Exception):
    """Nothing usable came back; the text says what did. Whether the request arrived is unknown."""


class Silence(NoAnswer):
    """Nothing came within the time of a try."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """`headers` ignores the case of names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange(Protocol):
    """One HTTP request, one answer; the seam at which the network can be replaced."""

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpAnswer:
        """Follows no redirect. Raises NoAnswer; Silence when `timeout` seconds have passed since it
        could be sent."""

    async def close(self) -> None: ...


class AiohttpExchange:
    """The real network, with connections kept alive. Belongs to the event loop of its first
    `send`.

    Every request has a name, which its answer repeats: an answer to another one, which a proxy that
    has lost its way may give, is none. `random` draws the names.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop
        self._free = asyncio.Semaphore(_CONNECTIONS)
        """Waited for before a try's time begins: it says nothing of the node."""
        self._is_closed = False

    async def send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpAnswer:
        async with self._free:
            return await self._send(method, url, body, timeout)

    async def _send(self, method: str, url: str, body: bytes | None, timeout: float) -> HttpAnswer:
        if self._is_closed:  # by another task, while this one waited
            raise NoAnswer(_CLOSED)
        loop = asyncio.get_running_loop()
        if self._session is None:
            self._loop = loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"Content-Type": "application/json"},
            )
        elif self._loop is not loop:  # its connections belong there
            raise RuntimeError("this client is another event loop's: make one in each")
        name = f"{self._random.getrandbits(64):016x}"
        try:
            async with self._session.request(
                method,
                url,
                data=body,
                headers={REQUEST_HEADER: name},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                if response.headers.get(REQUEST_HEADER, name) != name:
                    response.close()  # its own may still be to come
                    raise NoAnswer("what came is the answer to another request")
                answer = await read_within(response.content, _ANSWER_BYTES)
                if answer is None:
                    response.close()
                    raise NoAnswer(f"its answer is longer than {_ANSWER_BYTES} bytes")
                return HttpAnswer(response.status, response.headers, answer)
        except TimeoutError:
            raise Silence(f"no answer within {timeout:.1f} s") from None
        except aiohttp.ClientConnectorError as error:
            raise NoAnswer(f"cannot connect: {error.os_error.strerror}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise NoAnswer(str(error) or type(error).__name__) from None

    async def close(self) -> None:
        self._is_closed = True
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()


class Nodes:
    """The nodes that are known, and which of them led last. Shared by all requests of a client."""

    def __init__(self, given: Iterable[str], random: Random) -> None:
        self._given = [node_url(text) for text in given]
        self._urls = list(self._given)
        if not self._urls:
            raise ValueError("nodes: name at least one, for example http://127.0.0.1:8101")
        self._next = random.randrange(len(self._urls))  # so that not every client asks the first
        self._leader: str | None = None

    @property
    def leader(self) -> str | None:
        return self._leader

    def any(self) -> str:
        """The next node in turn."""
        self._next += 1
        return self._urls[self._next % len(self._urls)]

    def other_than(self, url: str) -> str:
        """Another node, or the same one where it is the only one."""
        candidate = self.any()
        return self.any() if candidate == url else candidate

    def leads(self, url: str) -> None:
        if url not in self._urls:
            self._urls.append(url)
        self._leader = url

    def failed(self, url: str) -> None:
        if self._leader == url:
            self._leader = None

    def learn(self, urls: Iterable[str]) -> None:
        """The cluster has named its nodes: they are all, with those that were given. Where one has
        moved since, nobody is asked any more."""
        self._urls = list(dict.fromkeys((*self._given, *urls)))


@dataclass(frozen=True, slots=True)
class Call:
    """A request. `again`, where given, makes the body of a repeat. `perhaps_done`: what it asks for
    was begun, perhaps, by an earlier call."""

    method: str
    path: str
    body: bytes | None = None
    needs_leader: bool = True
    again: Callable[[], bytes] | None = None
    perhaps_done: bool = False


class Caller:
    """Sends calls to the cluster until they are answered, or until it is closed."""

    def __init__(self, nodes: Nodes, exchange: Exchange, *, timeout: float, random: Random) -> None:
        self._nodes = nodes
        self._exchange = exchange
        self._timeout = timeout
        self._random = random
        self._under_way: set[asyncio.Timeout] = set()
        self.is_closed = False

    def close(self) -> None:
        """Whatever is under way ends with NoAnswer; so does what is asked from now on."""
        self.is_closed = True
        under_way, self._under_way = self._under_way, set()
        for limit in under_way:
            limit.reschedule(asyncio.get_running_loop().time())

    async def call(self, call: Call, deadline: float) -> HttpAnswer:
        """The final answer to `call`. Raises NoAnswer at `deadline`, in the event loop's time."""
        async with self._unless_closed():
            return await self._call(call, deadline)

    async def once(self, call: Call, node: str, deadline: float) -> HttpAnswer:
        """What this very node answers, asked once. Raises NoAnswer, at `deadline` at the latest."""
        async with self._unless_closed():
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._exchange.send(
                        call.method, node + call.path, call.body, self._timeout
                    )
            except TimeoutError:
                raise NoAnswer("no answer before the deadline") from None

    async def rest(self, seconds: float) -> None:
        """A pause between two calls. Raises NoAnswer."""
        async with self._unless_closed():
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def _unless_closed(self) -> AsyncIterator[None]:
        if self.is_closed:
            raise NoAnswer(_CLOSED)
        try:
            async with asyncio.timeout(None) as limit:  # which `close` lets pass
                self._under_way.add(limit)
                try:
                    yield
                finally:
                    self._under_way.discard(limit)
        except TimeoutError:
            raise NoAnswer(_CLOSED) from None

    async def _call(self, call: Call, deadline: float) -> HttpAnswer:
        loop = asyncio.get_running_loop()
        node = (self._nodes.leader if call.needs_leader else None) or self._nodes.any()
        body, hops, failures, patience = call.body, 0, 0, 1
        perhaps_done = call.perhaps_done
        last = "not asked yet"
        while (left := deadline - loop.time()) > 0:
            answer: HttpAnswer | None = None
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await self._exchange.send(
                        call.method, node + call.path, body, min(self._timeout * patience, left)
                    )
                last = f"{node} answered {answer.status} {_start_of(answer.body)}"
            except TimeoutError:
                break
            except NoAnswer as error:
                last = f"{node}: {error}"
                if isinstance(error, Silence):
                    patience = min(2 * patience, _MOST_PATIENCE)
            if answer is not None:
                named = _redirect(answer)
                if named is not None and hops < _HOPS:
                    node, hops = named, hops + 1
                    continue
                if _is_final(answer):
                    is_strangers = _is_strangers_refusal(answer)
                    if is_strangers:
                        self._nodes.failed(node)
                    elif call.needs_leader:
                        self._nodes.leads(node)
                    if not (is_strangers and perhaps_done):
                        return answer
            _log.debug("%s %s again: %s", call.method, call.path, last)
            if call.again is not None:
                body = call.again()
            if answer is None or answer.status != 429:
                perhaps_done = True
                self._nodes.failed(node)
                node = self._nodes.leader or self._nodes.other_than(node)
            await asyncio.sleep(min(self._pause(answer, failures), deadline - loop.time()))
            hops, failures = 0, failures + 1
        raise NoAnswer(f"no final answer before the deadline; last: {last}")

    def _pause(self, answer: HttpAnswer | None, failures: int) -> float:
        """Seconds before the next try, after `failures` earlier ones."""
        asked = 0.0 if answer is None else retry_after_s(answer.headers) or 0.0
        asked = min(asked, _MAX_RETRY_AFTER_S)
        if answer is not None and answer.status == 429:
            return (asked or 1.0) * self._random.uniform(1.0, 1.25)
        if asked > 1.0:
            return asked
        return self.pause(failures)

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures before the last one: none, then a growing
        pause."""
        if failures == 0:
            return 0.0
        ceiling = min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10), _LAST_PAUSE_S)
        return ceiling * self._random.uniform(0.5, 1.0)


def node_url(text: str) -> str:
    """`http://host:port` of a node given so or as `host:port`; raises ValueError."""
    if "@" in text:  # what stands before it may be a password: it is not repeated
        where = text.rpartition("@")[2]
        raise ValueError(
            f"the node at {where!r}: its address has no user or password; leave it out"
        )
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        usable = usable and parts.path in ("", "/") and not (parts.query or parts.fragment)
        (parts.hostname or "").encode("idna")  # a name with a part that is empty or long is none
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"{text!r} is not a node's address, such as http://127.0.0.1:8101")
    return f"{parts.scheme}://{parts.netloc}"


def node_urls(text: str | Sequence[str]) -> tuple[str, ...]:
    """The nodes in a list, or in a text that separates them by commas; raises ValueError."""
    entries = text.split(",") if isinstance(text, str) else text
    return tuple(dict.fromkeys(node_url(entry.strip()) for entry in entries if entry.strip()))


def _is_final(answer: HttpAnswer) -> bool:
    return answer.status < 500 and answer.status not in (307, 308, 408, 429)


def _is_strangers_refusal(answer: HttpAnswer) -> bool:
    return answer.status >= 300 and not is_refusal(read_json(answer.body))


def _redirect(answer: HttpAnswer) -> str | None:
    """The node that a 307 names. Path and query stay: a node sends the same ones back."""
    if answer.status not in (307, 308):
        return None
    try:
        parts = urlsplit(answer.headers.get("Location", ""))
        return node_url(f"{parts.scheme}://{parts.netloc}")
    except ValueError:
        return None


def _start_of(body: bytes) -> str:
    return body[:200].decode("utf-8", "replace").strip()
