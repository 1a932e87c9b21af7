"""Inquiry: a branch that hears nothing asks the coordinator for its outcome.

Rules (PROTOCOL, section 5):
- Only "commit" and "abort" in an answer 200 end a branch. Everything else (404, errors, redirects
  to nowhere, pages, silence) says nothing, and the branch stays as it is.
- Asked about are branches that are prepared, and active ones, which have worked interactively and
  wait to be asked for their vote. Those "abort" frees, and "commit" cannot be their answer.
- The answer is obeyed through the same branch table as a call, in the same local transaction.
- A node that did not answer is passed over for a while, by all branches but one that tries it: the
  branches of a cluster that is gone do not hold up those of one that answers.
- Which branches are in doubt is read from the store, never remembered beside it. What is remembered
  is only when to ask again.

How it works: one task looks at the store now and then; a branch that has waited for `first_after_s`
is asked about, then again with exponential backoff and full jitter. What is found at the start was
left by an earlier process, and is asked about at once. The nodes named in the prepare, or where the
branch was enlisted, are asked in turn until one of them answers; a follower's 307 is followed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from urllib.parse import quote

import aiohttp
from yarl import URL

from participants.contract import BranchKey, Decision, fingerprint
from participants.store import BranchRecord, StoreError
from participants.streams import read_within

log = logging.getLogger("assent.participant")

MAX_WATCHED = 10_000
"""Branches in doubt that are looked after at a time, the longest prepared first."""
MAX_ANSWER_BYTES = 64 * 1024
MAX_NODES_ASKED = 16
MAX_SILENT_NODES = 1_000

AskNode = Callable[[str, BranchRecord], Awaitable[Decision | None]]
"""Ask one node (its base URL) about a branch. None: it said nothing that counts."""


@dataclass(frozen=True, slots=True)
class InquirySettings:
    """When and how to ask.

    `first_after_s`: most branches end long before; a coordinator that is alive tells them.
    `coordinators`: base URLs that are asked after those named in the prepare.
    """

    first_after_s: float = 5.0
    max_delay_s: float = 30.0
    timeout_s: float = 5.0
    concurrency: int = 16
    coordinators: tuple[str, ...] = ()


@dataclass(slots=True)
class _Asked:
    attempts: int = 0
    again_at_s: float = 0.0
    under_way: bool = False


class Inquirer:
    """Asks for every branch in doubt. `ask`: how to ask one node, if not over HTTP.

    `in_doubt`: the store's question (limit → records). `obey`: ends a branch as decided; may raise
    StoreError, and then the branch is asked about again.
    """

    def __init__(
        self,
        in_doubt: Callable[[int], Awaitable[list[BranchRecord]]],
        obey: Callable[[BranchRecord, Decision], Awaitable[None]],
        settings: InquirySettings,
        *,
        now_ms: Callable[[], int],
        random: Random,
        ask: AskNode | None = None,
    ) -> None:
        self._in_doubt = in_doubt
        self._obey = obey
        self._settings = settings
        self._now_ms = now_ms
        self._random = random
        self._ask = ask
        self._asked: dict[BranchKey, _Asked] = {}
        self._permits = asyncio.Semaphore(settings.concurrency)
        self._silent_until_s: dict[str, float] = {}
        """By node that did not answer when it was last asked."""
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        left_over = await self._due(minimum_age_ms=float("-inf"))
        self._watching = asyncio.create_task(self._watch(left_over), name="inquiry")

    async def stop(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self, due: list[BranchRecord]) -> None:
        first_after_ms = self._settings.first_after_s * 1000
        pause_s = min(1.0, max(0.02, self._settings.first_after_s / 4))
        async with _HttpAsking(self._settings.timeout_s) as over_http, asyncio.TaskGroup() as tasks:
            ask = self._ask or over_http.ask
            while True:
                for record in due:
                    tasks.create_task(self._inquire(ask, record))
                await asyncio.sleep(pause_s)
                try:
                    due = await self._due(first_after_ms)
                except Exception:
                    # Whatever it was: nobody else looks after the branches in doubt.
                    log.exception("cannot see which branches are in doubt, will look again")
                    due = []

    async def _due(self, minimum_age_ms: float) -> list[BranchRecord]:
        """The branches to ask about now; forgets those that are in doubt no longer."""
        try:
            records = await self._in_doubt(MAX_WATCHED)
        except StoreError as error:
            log.warning("cannot see which branches are in doubt, will look again: %s", error)
            return []
        now_s = asyncio.get_running_loop().time()
        now_ms = self._now_ms()
        watched: dict[BranchKey, _Asked] = {}
        due = []
        for record in records:
            key = (record.transaction_id, record.branch_id)
            asked = self._asked.get(key)
            if asked is None:
                # A clock that was set back must not silence a branch for ever: it is young, not
                # unborn.
                if 0 <= now_ms - record.changed_at_ms < minimum_age_ms:
                    continue
                asked = _Asked()
            watched[key] = asked
            if not asked.under_way and asked.again_at_s <= now_s:
                asked.under_way = True
                due.append(record)
        self._asked = watched
        return due

    async def _inquire(self, ask: AskNode, record: BranchRecord) -> None:
        asked = self._asked[record.transaction_id, record.branch_id]
        try:
            async with self._permits:
                decision = await self._ask_nodes(ask, record)
                if decision in (Decision.COMMIT, Decision.ABORT):
                    await self._obey(record, decision)
                    log.info("inquiry %s/%s: %s", record.transaction_id, record.branch_id, decision)
        except Exception as error:
            # Whatever it was, this branch is asked about again, and the others' inquiries go on.
            log.warning("inquiry %s/%s failed: %r", record.transaction_id, record.branch_id, error)
        finally:
            asked.attempts += 1
            asked.again_at_s = asyncio.get_running_loop().time() + self._delay_s(asked.attempts)
            asked.under_way = False

    def _delay_s(self, attempts: int) -> float:
        longest = self._settings.first_after_s * 2 ** min(attempts, 16)
        return self._random.uniform(0, min(self._settings.max_delay_s, longest))

    async def _ask_nodes(self, ask: AskNode, record: BranchRecord) -> Decision | None:
        """The first answer that is one; None if no node gave any."""
        nodes = list(dict.fromkeys(record.coordinators + self._settings.coordinators))
        if not nodes:
            log.warning(
                "%s/%s is in doubt, and no coordinator is known to ask",
                record.transaction_id,
                record.branch_id,
            )
        for node in nodes[:MAX_NODES_ASKED]:
            if self._is_passed_over(node):
                continue
            try:
                decision = await ask(node, record)
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                if node not in self._silent_until_s:  # once for each time that it is away
                    log.warning("%s does not answer inquiries, it is tried again: %r", node, error)
                self._pass_over(node)
                continue
            if self._silent_until_s.pop(node, None) is not None:
                log.info("%s answers inquiries again", node)
            if decision is not None:
                return decision
        return None

    def _is_passed_over(self, node: str) -> bool:
        """Whether it was silent just now; if it is time to try it again, this one branch does."""
        until_s = self._silent_until_s.get(node)
        if until_s is None:
            return False
        if asyncio.get_running_loop().time() < until_s:
            return True
        self._pass_over(node)
        return False

    def _pass_over(self, node: str) -> None:
        if len(self._silent_until_s) >= MAX_SILENT_NODES:
            self._silent_until_s.clear()
        now_s = asyncio.get_running_loop().time()
        self._silent_until_s[node] = now_s + self._settings.timeout_s


class _HttpAsking:
    """Asks a node over HTTP; follows redirects, as a follower answers with 307."""

    def __init__(self, timeout_s: float) -> None:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), timeout=aiohttp.ClientTimeout(total=timeout_s)
        )

    async def __aenter__(self) -> _HttpAsking:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, node: str, record: BranchRecord) -> Decision | None:
        transaction = quote(record.transaction_id, safe="")
        url = URL(f"{node.rstrip('/')}/v1/transactions/{transaction}/decision", encoded=True)
        query = {"branch_id": record.branch_id, "fingerprint": fingerprint_of(record)}
        async with self._session.get(url.with_query(query)) as response:
            if response.status != 200:
                log.debug("%s answered the inquiry with %d", node, response.status)
                return None
            body = await read_within(response.content, MAX_ANSWER_BYTES)
        if body is None:
            return None
        return read_decision(body, (record.transaction_id, record.branch_id))


def fingerprint_of(record: BranchRecord) -> str:
    """Of the transaction that the branch belongs to: known without a prepare where it worked before
    one came."""
    prepared_by = record.branch.fingerprint
    return prepared_by or fingerprint("interactive", (), record.transaction_id)


def read_decision(body: bytes, branch: BranchKey) -> Decision | None:
    """The decision in the body of an answer 200; None if it holds none, or another's."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict):
        return None
    transaction_id, branch_id = branch
    meant = {"id": transaction_id, "transaction_id": transaction_id, "branch_id": branch_id}
    if any(answer.get(name, value) != value for name, value in meant.items()):
        return None
    try:
        return Decision(str(answer.get("decision")))
    except ValueError:
        return None
