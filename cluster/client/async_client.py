"""The asyncio client: every call of the HTTP API as a method, tried until it is answered.

What is promised stands in `cluster.client`, through which it is imported.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import itertools
import json
import random as random_module
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any
from urllib.parse import quote, urlencode

from cluster.client.answers import (
    BadAnswer,
    ClientError,
    ClusterStatus,
    Expired,
    OutcomeUnknown,
    Page,
    Refused,
    Transaction,
    Unavailable,
    expired_since,
    read_cluster,
    read_decision,
    read_error,
    read_json,
    read_page,
    read_transaction,
    refused,
)
from cluster.client.calls import (
    AiohttpExchange,
    Call,
    Caller,
    Exchange,
    NoAnswer,
    Nodes,
    node_url,
    node_urls,
)
from cluster.client.submission import Batch, Open, Submission, element_answer, elements
from coordinator.ids import IdMaker
from participants.clock import wall_clock_ms

DEADLINE = 30.0
TIMEOUT = 2.0
"""In seconds: how long a call goes on asking, and how long one node may be silent."""
_POLL_SHARE = 0.75
"""A long poll asks the node to answer within this part of the time after which it counts as
silent."""
_CROWDED_PAUSE_S = 1.0
"""Added where an element of a batch was refused for load: an error in a batch has no header that
could say how long."""
_TRANSACTIONS = "/v1/transactions"
_CLUSTER = "/v1/cluster"


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
        self._timeout = timeout
        self._exchange = exchange or AiohttpExchange(chance)
        self._nodes = Nodes(node_urls(nodes), chance)
        self._caller = Caller(self._nodes, self._exchange, timeout=timeout, random=chance)
        self._new_id = IdMaker(now_ms or wall_clock_ms, chance)
        self._learning: asyncio.Task[None] | None = None
        self._learnt_from: str | None = None

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. What is under way at the cluster goes on there; calls that wait
        for it end with OutcomeUnknown or Unavailable, and later ones raise RuntimeError."""
        self._caller.close()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)
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
        until = self._begin(deadline)
        submission = Submission(self._with_id(body))
        last = "no answer yet"
        for failures in itertools.count():
            call = Call(
                *("POST", _TRANSACTIONS, submission.encoded()),
                again=submission.again,
                perhaps_done=submission.is_repeat,
            )
            try:
                transaction = read_transaction(
                    await self._json(call, until, submission.id), submission.id
                )
            except (NoAnswer, BadAnswer) as error:
                raise OutcomeUnknown(submission.id, str(error)) from None
            except Expired as error:
                if submission.is_repeat:
                    raise expired_since(submission.id, error) from None
                raise
            if transaction.outcome is not None:
                if submission.wait == "completion":
                    return await self._follow(transaction, until)
                return transaction
            if submission.wait == "none":
                return transaction
            if transaction.state == "refused":
                raise refused(transaction.id)
            last = f"the transaction is {transaction.state}"
            submission.is_repeat = True
            if not await self._rest(failures, until):
                break
        raise OutcomeUnknown(submission.id, last)

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
        until = self._begin(deadline)
        bodies = [self._with_id({"wait": wait} | dict(entry)) for entry in transactions]
        answers: dict[int, Transaction | ClientError] = {}
        reasons: dict[int, str] = {}
        failures = 0
        while left := [index for index in range(len(bodies)) if index not in answers]:
            batch = Batch([bodies[index] for index in left], is_repeat=failures > 0)
            call = Call(
                *("POST", _TRANSACTIONS, batch.encoded()),
                again=batch.again,
                perhaps_done=batch.is_repeat,
            )
            try:
                answer = await self._json(call, until)
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
                if not await self._rest(failures, until, crowded=crowded):
                    break
                failures += 1
        return [
            answers.get(index) or OutcomeUnknown(str(body["id"]), reasons.get(index, "no answer"))
            for index, body in enumerate(bodies)
        ]

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
        until = self._begin(deadline)
        path = f"{_TRANSACTIONS}/{quote(id, safe='')}"
        query = "?stale=true" if stale else ""
        transaction = read_transaction(
            await self._read(Call("GET", path + query, needs_leader=not stale), until), id
        )
        if wait_ms is None or stale:
            return transaction
        return await self._follow(transaction, min(until, _until(wait_ms / 1000)))

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
        path = f"{_TRANSACTIONS}?{query}" if query else _TRANSACTIONS
        return read_page(await self._read(Call("GET", path), self._begin(deadline)))

    async def decision(
        self, id: str, branch_id: str, fingerprint: str, *, deadline: float = DEADLINE
    ) -> str:
        """`commit`, `abort` or `pending`, for a participant that holds this branch prepared.

        Of an unknown id: `abort`, and from then on it cannot commit.
        """
        query = urlencode({"branch_id": branch_id, "fingerprint": fingerprint})
        call = Call("GET", f"{_TRANSACTIONS}/{quote(id, safe='')}/decision?{query}")
        answer = await self._read(call, self._begin(deadline))
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
        path = f"{_TRANSACTIONS}/{quote(id, safe='')}/resolve"
        call = Call("POST", path, json.dumps(body).encode())
        return read_transaction(await self._read(call, self._begin(deadline)), id)

    async def retry(self, id: str, *, deadline: float = DEADLINE) -> Transaction:
        """Call the participants that have not acknowledged now, not after the pause."""
        path = f"{_TRANSACTIONS}/{quote(id, safe='')}/retry"
        call = Call("POST", path, b"{}")
        return read_transaction(await self._read(call, self._begin(deadline)), id)

    async def cluster(self, *, deadline: float = DEADLINE) -> ClusterStatus:
        """The cluster as its leader sees it, for it knows how far the others are; without a leader
        that answers, as some node sees it. The nodes are known to this client from then on."""
        until = self._begin(deadline)
        call = Call("GET", _CLUSTER, needs_leader=False)
        status = read_cluster(await self._read(call, until))
        self._remember(status)
        others = [node.api for node in status.nodes if node.id == status.leader]
        if status.leader != status.self_id and others:
            with contextlib.suppress(NoAnswer, BadAnswer, ValueError):
                return await self._ask_about_cluster(node_url(others[0]), until)
        return status

    async def transfer_leadership(
        self, node: str | None = None, *, deadline: float = DEADLINE
    ) -> ClusterStatus:
        """Have `node` lead, or whoever lacks least; the cluster as the node sees it that led before
        (`self_id`). Nothing happens if `node` leads already. Raises Conflict if nobody takes over.
        """
        call = Call("POST", f"{_CLUSTER}/leader", json.dumps({"node": node}).encode())
        return read_cluster(await self._read(call, self._begin(deadline)))

    # --- within ---------------------------------------------------------------------------------

    def _begin(self, deadline: float) -> float:
        """When a call that begins now must end. Raises RuntimeError once the client is closed."""
        if self._caller.is_closed:
            raise RuntimeError("this client is closed")
        return _until(deadline)

    def _with_id(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return dict(body) if body.get("id") is not None else {**body, "id": self._new_id()}

    async def _json(self, call: Call, until: float, about: str | None = None) -> Any:
        """Decoded JSON of a 2xx. Raises NoAnswer, BadAnswer, Refused.

        `about`: the transaction's id; a refusal that names another one is BadAnswer.
        """
        answer = await self._caller.call(call, until)
        self._learn_nodes()
        decoded = read_json(answer.body)
        if answer.status >= 300:
            raise read_error(answer.status, decoded, about)
        if decoded is None:
            raise BadAnswer(f"answered {answer.status} without JSON")
        return decoded

    async def _read(self, call: Call, until: float) -> Any:
        """For what changes nothing when it is asked again. Raises Unavailable, BadAnswer,
        Refused."""
        try:
            return await self._json(call, until)
        except NoAnswer as error:
            raise Unavailable(str(error)) from None

    async def _follow(self, transaction: Transaction, until: float) -> Transaction:
        """Wait until everybody has acknowledged; at `until`, or unanswered, what was last known."""
        path = f"{_TRANSACTIONS}/{transaction.id}"
        loop = asyncio.get_running_loop()
        failures = 0
        while not transaction.finished and (left := until - loop.time()) > 0:
            wait_ms = max(1, int(1000 * min(left, self._timeout * _POLL_SHARE)))
            try:
                call = Call("GET", f"{path}?wait_ms={wait_ms}", perhaps_done=True)
                transaction = read_transaction(await self._json(call, until), transaction.id)
            except (NoAnswer, BadAnswer, Refused):
                break
            if transaction.finished or not await self._rest(failures, until):
                break
            failures += 1
        return transaction

    async def _rest(self, failures: int, until: float, *, crowded: bool = False) -> bool:
        """Pause before asking for the same once more; False when `until`, or the client's end,
        comes first."""
        pause = self._caller.pause(failures + 1) + (_CROWDED_PAUSE_S if crowded else 0.0)
        if asyncio.get_running_loop().time() + pause >= until:
            return False
        try:
            await self._caller.rest(pause)
        except NoAnswer:
            return False
        return True

    def _learn_nodes(self) -> None:
        """Ask a leader not asked before for all nodes, beside the caller's work.

        A client that was given one node would otherwise be lost with it.
        """
        busy = self._learning is not None and not self._learning.done()
        if not busy and self._nodes.leader not in (None, self._learnt_from):
            self._learnt_from = self._nodes.leader
            self._learning = asyncio.get_running_loop().create_task(self._ask_for_nodes())

    async def _ask_for_nodes(self) -> None:
        assert self._learnt_from is not None
        # Without an answer the nodes that were given have to do; the next leader is asked again.
        with contextlib.suppress(NoAnswer, BadAnswer):
            until = _until(self._timeout)
            self._remember(await self._ask_about_cluster(self._learnt_from, until))

    async def _ask_about_cluster(self, node: str, until: float) -> ClusterStatus:
        """What this very node says, asked once."""
        answer = await self._caller.once(Call("GET", _CLUSTER), node, until)
        return read_cluster(read_json(answer.body))

    def _remember(self, status: ClusterStatus) -> None:
        with contextlib.suppress(ValueError):  # an address that is none is of no use
            self._nodes.learn(node_urls([node.api for node in status.nodes]))


def _until(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
