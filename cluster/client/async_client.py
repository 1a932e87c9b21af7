"""The asyncio client: every call of the HTTP API as a method, tried until it is answered.

What is promised stands in `cluster.client`, through which it is imported.
"""

from __future__ import annotations

import builtins
import json
import random as random_module
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from urllib.parse import urlencode

from cluster.client import interactive
from cluster.client.answers import (
    BadAnswer,
    ClientError,
    ClusterStatus,
    OutcomeUnknown,
    Page,
    Refused,
    Transaction,
    read_cluster,
    read_decision,
    read_page,
    read_transaction,
)
from cluster.client.calls import AiohttpExchange, Call, Exchange, NoAnswer, Nodes, node_urls
from cluster.client.dialogue import CLUSTER, DEADLINE, Dialogue, from_now
from cluster.client.interactive import InteractiveTransaction
from cluster.client.submission import (
    TRANSACTIONS,
    Batch,
    Open,
    Submission,
    element_answer,
    elements,
    path_of,
)
from coordinator.ids import IdMaker
from participants.clock import wall_clock_ms

TIMEOUT = 2.0
"""In seconds: how long one node may be silent."""


class Client:
    """The asyncio client. `nodes`: any of them, `host:port` or URL, a list or separated by commas.

    `timeout`: seconds of silence after which another node is asked. The rest are seams for tests
    and simulations: the source of chance, the wall clock in milliseconds, and the network.
    Raises ValueError on an address that is none.
    """

    def __init__(
        self,
        nodes: str | Sequence[str],
        *,
        timeout: float = TIMEOUT,
        random: Random | None = None,
        now_ms: Callable[[], int] | None = None,
        exchange: Exchange | None = None,
    ) -> None:
        # The system's own source by default: processes forked from one another must not make equal
        # ids.
        chance = random or random_module.SystemRandom()
        self._exchange = exchange or AiohttpExchange(chance)
        self._nodes = Nodes(node_urls(nodes), chance)
        self._dialogue = Dialogue(self._nodes, self._exchange, timeout=timeout, random=chance)
        self._new_id = IdMaker(now_ms or wall_clock_ms, chance)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. What is under way at the cluster goes on there; calls that wait
        for it end with OutcomeUnknown or Unavailable, and later ones raise RuntimeError."""
        await self._dialogue.close()
        await self._exchange.close()

    @property
    def leader(self) -> str | None:
        """The URL of the node that led when it was last heard of."""
        return self._nodes.leader

    # --- transactions ---------------------------------------------------------------------------

    async def submit(
        self,
        participants: Sequence[Mapping[str, Any]],
        *,
        id: str | None = None,
        timeout_ms: int | None = None,
        wait: str = "decision",
        metadata: Mapping[str, Any] | None = None,
        deadline: float = DEADLINE,
    ) -> Transaction:
        """Run one transaction and return its outcome.

        `participants`: `{"name", "url", "payload"}` each. `wait`: `decision`; `completion` (every
        participant has acknowledged, or the deadline has passed and the outcome is known); `none`
        (accepted; `outcome` is None if it has not ended yet). Raises Refused, OutcomeUnknown.
        """
        body: dict[str, Any] = {"participants": list(participants), "wait": wait}
        if id is not None:
            body["id"] = id
        if timeout_ms is not None:
            body["timeout_ms"] = timeout_ms
        if metadata is not None:
            body["metadata"] = dict(metadata)
        return await self.submit_body(body, deadline=deadline)

    async def submit_body(
        self, body: Mapping[str, Any], *, deadline: float = DEADLINE
    ) -> Transaction:
        """`submit` of a one-shot body as the HTTP API takes it; an id is added where it has
        none."""
        until = self._dialogue.until(deadline)
        return await self._dialogue.outcome(Submission(self._with_id(body)), until)

    async def submit_many(
        self,
        transactions: Iterable[Mapping[str, Any]],
        *,
        wait: str = "decision",
        deadline: float = DEADLINE,
    ) -> builtins.list[Transaction | ClientError]:
        """Run independent transactions in one request; bodies as in `submit_body`.

        Returns, in the same order, an outcome or the exception that `submit` would have raised.
        Those whose outcome stays open are sent again, all in one request. `completion` is waited
        for no longer than `timeout`, the decision until the deadline. Raises Refused when the
        request as a whole is refused, for example for its size.
        """
        until = self._dialogue.until(deadline)
        bodies = [self._with_id({"wait": wait} | dict(entry)) for entry in transactions]
        answers: dict[int, Transaction | ClientError] = {}
        reasons: dict[int, str] = {}
        failures = 0
        while left := [index for index in range(len(bodies)) if index not in answers]:
            batch = Batch([bodies[index] for index in left], is_repeat=failures > 0)
            call = Call(
                *("POST", TRANSACTIONS, batch.encoded()),
                again=batch.again,
                perhaps_done=batch.is_repeat,
            )
            try:
                answer = await self._dialogue.json(call, until)
                entries = elements(answer, len(left))
            except (NoAnswer, BadAnswer, Refused) as error:
                if isinstance(error, Refused) and not failures:
                    raise
                reasons.update((index, str(error)) for index in left)
                break
            crowded = False
            for index, entry in zip(left, entries, strict=True):
                answer = element_answer(entry, bodies[index], is_repeat=batch.is_repeat)
                if isinstance(answer, Open):
                    reasons[index] = answer.why
                    crowded = crowded or answer.crowded
                else:
                    answers[index] = answer
            if len(answers) < len(bodies):
                if not await self._dialogue.rest(failures, until, crowded=crowded):
                    break
                failures += 1
        return [
            answers.get(index) or OutcomeUnknown(str(body["id"]), reasons.get(index, "no answer"))
            for index, body in enumerate(bodies)
        ]

    async def begin(
        self,
        *,
        id: str | None = None,
        timeout_s: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        deadline: float = DEADLINE,
    ) -> InteractiveTransaction:
        """Begin a transaction that its client ends; what is returned may be used as a block, too.

        `timeout_s`: what is not ended by then aborts; by default as long as the cluster says. Under
        an `id` that has begun already: that transaction as it stands, perhaps with its outcome.
        Raises Refused, Unavailable, OutcomeUnknown (the id is refused).
        """
        return await interactive.begin(
            self._dialogue,
            self._new_id() if id is None else id,
            timeout_s=timeout_s,
            metadata=metadata,
            deadline=deadline,
        )

    @asynccontextmanager
    async def transaction(
        self,
        *,
        id: str | None = None,
        timeout_s: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        deadline: float = DEADLINE,
    ) -> AsyncIterator[InteractiveTransaction]:
        """`begin` and its block: left in order it commits, left by an exception it rolls back."""
        async with await self.begin(
            id=id, timeout_s=timeout_s, metadata=metadata, deadline=deadline
        ) as order:
            yield order

    async def get(
        self,
        id: str,
        *,
        wait_ms: int | None = None,
        stale: bool = False,
        deadline: float = DEADLINE,
    ) -> Transaction:
        """The transaction, current; `stale`: as any node happens to know it.

        `wait_ms`: wait so long for its end. Raises UnknownTransaction, Unavailable.
        """
        until = self._dialogue.until(deadline)
        path = path_of(id)
        query = "?stale=true" if stale else ""
        transaction = read_transaction(
            await self._dialogue.read(Call("GET", path + query, needs_leader=not stale), until), id
        )
        if wait_ms is None or stale:
            return transaction
        return await self._dialogue.follow(transaction, min(until, from_now(wait_ms / 1000)))

    async def list(
        self,
        *,
        state: str | None = None,
        participant: str | None = None,
        older_than_ms: int | None = None,
        limit: int | None = None,
        after: str | None = None,
        deadline: float = DEADLINE,
    ) -> Page:
        """Transactions, newest first; `after` is the `next_after` of the page before."""
        asked = {
            "state": state,
            "participant": participant,
            "older_than_ms": older_than_ms,
            "limit": limit,
            "after": after,
        }
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        path = f"{TRANSACTIONS}?{query}" if query else TRANSACTIONS
        return read_page(
            await self._dialogue.read(Call("GET", path), self._dialogue.until(deadline))
        )

    async def decision(
        self, id: str, branch_id: str, fingerprint: str, *, deadline: float = DEADLINE
    ) -> str:
        """`commit`, `abort` or `pending`, for a participant that holds this branch prepared.

        Of an unknown id: `abort`, and from then on it cannot commit.
        """
        query = urlencode({"branch_id": branch_id, "fingerprint": fingerprint})
        call = Call("GET", f"{path_of(id)}/decision?{query}")
        answer = await self._dialogue.read(call, self._dialogue.until(deadline))
        return read_decision(answer, id, branch_id)

    # --- the operator ---------------------------------------------------------------------------

    async def resolve(
        self,
        id: str,
        *,
        actor: str,
        reason: str,
        outcome: str | None = None,
        branch_id: str | None = None,
        effect: str | None = None,
        deadline: float = DEADLINE,
    ) -> Transaction:
        """Force an undecided transaction to abort (`outcome="abort"`), or say what became of a
        branch (`branch_id` and `effect`: committed, rolled_back, unknown)."""
        given = {"outcome": outcome, "branch_id": branch_id, "effect": effect}
        body = {"actor": actor, "reason": reason}
        body.update((name, value) for name, value in given.items() if value is not None)
        path = f"{path_of(id)}/resolve"
        call = Call("POST", path, json.dumps(body).encode())
        return read_transaction(await self._dialogue.read(call, self._dialogue.until(deadline)), id)

    async def retry(self, id: str, *, deadline: float = DEADLINE) -> Transaction:
        """Call the participants that have not acknowledged now, not after the pause."""
        path = f"{path_of(id)}/retry"
        call = Call("POST", path, b"{}")
        return read_transaction(await self._dialogue.read(call, self._dialogue.until(deadline)), id)

    async def cluster(self, *, deadline: float = DEADLINE) -> ClusterStatus:
        """The cluster as its leader sees it, for it knows how far the others are; without a leader
        that answers, as some node sees it. The nodes are known to this client from then on."""
        return await self._dialogue.cluster(self._dialogue.until(deadline))

    async def transfer_leadership(
        self, node: str | None = None, *, deadline: float = DEADLINE
    ) -> ClusterStatus:
        """Have `node` lead, or whoever lacks least; the cluster as the node sees it that led before
        (`self_id`). Nothing happens if `node` leads already. Raises Conflict if nobody takes over.
        """
        call = Call("POST", f"{CLUSTER}/leader", json.dumps({"node": node}).encode())
        return read_cluster(await self._dialogue.read(call, self._dialogue.until(deadline)))

    # --- within ---------------------------------------------------------------------------------

    def _with_id(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body) if body.get("id") is not None else {**body, "id": self._new_id()}
