"""Enlisting: before a participant works in an interactive transaction, the coordinator knows of it.

Rules (PROTOCOL, section 8):
- The branch's id comes from the coordinator, and nothing is done before it is there: only who is
  enlisted hears the outcome.
- Enlisting may be repeated: the same name and URL is the same branch. So after silence, and after
  what is no answer, each node is asked in turn until the time is over. Nothing was done then.
- What a coordinator refuses in its own words is final: WorkRefused.
- What is remembered saves asking again, no more; and not longer than any transaction may last, for
  an id may then come to stand for another.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any
from weakref import WeakValueDictionary

import aiohttp
from aiohttp import web
from yarl import URL

from participants.contract import TRANSACTION_HEADER, BadMessage, encode_json
from participants.endpoints import error_body
from participants.messages import read_transaction_id
from participants.streams import read_within

MAX_REMEMBERED = 10_000
"""Branches that are not asked about again."""
REMEMBERED_S = 3_600
"""As long as any transaction may last."""
MAX_PAUSE_S = 1.0
"""Between two rounds of the nodes."""
MAX_ANSWER_BYTES = 64 * 1024

ASK_AGAIN = (408, 429)
"""What a coordinator answers to a request that it may take later."""

EnlistNode = Callable[[str, str, bytes], Awaitable[tuple[int, bytes]]]
"""Enlist at one node: (its base URL, transaction id, body) → (status, body) of its answer."""


class WorkError(Exception):
    """Nothing was done.

    WorkError
    ├── WorkRefused   the transaction does not take this work, now or later; the text says why
    └── NotEnlisted   no coordinator has answered in time; ask again
    """


class WorkRefused(WorkError):
    """Its end has begun, its work so far was lost, or the coordinator does not know it."""


class NotEnlisted(WorkError):
    """Perhaps the coordinator knows the branch all the same. Then it is asked for its vote, and
    without work it says NO."""


@dataclass(frozen=True, slots=True)
class EnlistSettings:
    """`coordinators`: base URLs of the nodes. `url`: at which they reach this participant, with the
    path that it is mounted at. `name`: of its branches; None: the URL's host, port and path.

    `timeout_s`: until when one of them has to have answered. `try_s`: how long one may take before
    another is asked, doubled with each round.
    """

    coordinators: tuple[str, ...]
    url: str
    name: str | None = None
    timeout_s: float = 10.0
    try_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.coordinators or isinstance(self.coordinators, str):
            raise ValueError("EnlistSettings: coordinators must be the URLs of one node or more")


def transaction_id_of(request: web.Request) -> str:
    """The interactive transaction that a request belongs to, by its header; raises HTTPBadRequest,
    which aiohttp answers with."""
    value = request.headers.get(TRANSACTION_HEADER)
    try:
        return read_transaction_id(value)
    except BadMessage as error:
        what = f"the header {TRANSACTION_HEADER} {'is missing' if value is None else error}"
        body = json.dumps(error_body("bad_transaction_id", f"{what}; nothing was changed"))
        raise web.HTTPBadRequest(text=body, content_type="application/json") from None


class Enlister:
    """Enlists one participant, once in each transaction. `call`: how, if not over HTTP."""

    def __init__(
        self, settings: EnlistSettings, *, random: Random, call: EnlistNode | None = None
    ) -> None:
        self._settings = settings
        self._random = random
        self._over_http = _HttpEnlisting()
        self._call = call or self._over_http.call
        self._nodes = list(settings.coordinators)
        """The one that answered last comes first."""
        self._known: OrderedDict[tuple[str, str | None], tuple[str, float]] = OrderedDict()
        """(transaction id, name) → (branch id, until when by the loop's clock)."""
        self._asking: WeakValueDictionary[tuple[str, str | None], asyncio.Lock] = (
            WeakValueDictionary()
        )
        """Many pieces of work that come at once ask once."""

    async def close(self) -> None:
        await self._over_http.close()

    async def branch_of(self, transaction_id: str, name: str | None = None) -> str:
        """The id of the branch that this participant has, from now on at the latest.

        Raises WorkRefused or NotEnlisted.
        """
        key = (transaction_id, name or self._settings.name)
        known = self._remembered(key)
        if known is not None:
            return known
        until_s = asyncio.get_running_loop().time() + self._settings.timeout_s
        async with self._asking.setdefault(key, asyncio.Lock()):
            known = self._remembered(key)
            if known is None:
                known = await self._enlist(*key, until_s)
                self._remember(key, known)
            return known

    async def _enlist(self, transaction_id: str, name: str | None, until_s: float) -> str:
        settings, loop = self._settings, asyncio.get_running_loop()
        body = encode_json({"url": settings.url} | ({} if name is None else {"name": name}))
        last = ""
        for number in itertools.count():
            for node in tuple(self._nodes):
                left_s = until_s - loop.time()
                if left_s <= 0:
                    raise NotEnlisted(
                        f"no coordinator has enlisted this service in {transaction_id} within "
                        f"{settings.timeout_s:g} s{last}: nothing was done; ask again"
                    )
                try:
                    async with asyncio.timeout(min(left_s, settings.try_s * 2 ** min(number, 10))):
                        status, answer = await self._call(node, transaction_id, body)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                    last = f" ({node}: {error!r})"
                    continue
                branch_id = read_enlisted(status, answer, transaction_id)
                if branch_id is not None:
                    self._nodes.remove(node)
                    self._nodes.insert(0, node)
                    return branch_id
                last = f" ({node} answered {status}: {answer[:120].decode('utf-8', 'replace')!r})"
            most_s = min(MAX_PAUSE_S, 0.05 * 2 ** min(number, 10), max(0, until_s - loop.time()))
            await asyncio.sleep(self._random.uniform(most_s / 2, most_s))
        raise AssertionError("there is always another round")

    def _remembered(self, key: tuple[str, str | None]) -> str | None:
        branch_id, until_s = self._known.get(key, (None, 0.0))
        return branch_id if asyncio.get_running_loop().time() < until_s else None

    def _remember(self, key: tuple[str, str | None], branch_id: str) -> None:
        self._known[key] = branch_id, asyncio.get_running_loop().time() + REMEMBERED_S
        self._known.move_to_end(key)
        if len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


def read_enlisted(status: int, body: bytes, transaction_id: str) -> str | None:
    """The branch's id in an answer; None: it is none, and is asked for again. Raises WorkRefused,
    which only a coordinator's own words are, and no proxy's page."""
    answer = _object(body)
    if status == 201:
        branch_id = answer.get("branch_id")
        is_ours = answer.get("transaction_id") == transaction_id
        return branch_id if is_ours and isinstance(branch_id, str) and branch_id else None
    error = answer.get("error")
    words = error.get("message") if isinstance(error, dict) else None
    if 400 <= status < 500 and status not in ASK_AGAIN and isinstance(words, str):
        raise WorkRefused(words)
    return None


def _object(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


class _HttpEnlisting:
    """Enlists at a node over HTTP; follows redirects, as a follower answers with 307."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._is_closed = False

    async def close(self) -> None:
        self._is_closed = True
        if self._session is not None:
            await self._session.close()

    async def call(self, node: str, transaction_id: str, body: bytes) -> tuple[int, bytes]:
        if self._is_closed:
            raise NotEnlisted("this participant is stopped: nothing was done")
        if self._session is None:
            self._session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        url = URL(f"{node.rstrip('/')}/v1/transactions/{transaction_id}/branches", encoded=True)
        headers = {"Content-Type": "application/json"}
        async with self._session.post(url, data=body, headers=headers) as response:
            answer = await read_within(response.content, MAX_ANSWER_BYTES)
            return response.status, answer or b""
