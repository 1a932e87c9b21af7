"""What every call of a client has in common: ask, and ask again, until it can be told.

A `Call` goes through the `Caller` until there is a final answer. Here it is read as JSON, what runs
a transaction is sent until its outcome is known, and the nodes are learnt by the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from random import Random
from typing import Any

from cluster.client.answers import (
    BadAnswer,
    ClusterStatus,
    Expired,
    OutcomeUnknown,
    Refused,
    Transaction,
    Unavailable,
    UnknownTransaction,
    forgotten_since,
    read_cluster,
    read_error,
    read_json,
    read_transaction,
    refused,
)
from cluster.client.calls import Call, Caller, Exchange, NoAnswer, Nodes, node_url, node_urls
from cluster.client.submission import Submission, path_of

DEADLINE = 30.0
"""In seconds: how long a call goes on asking, unless its caller says otherwise."""
CLUSTER = "/v1/cluster"
_POLL_SHARE = 0.75
"""A long poll asks the node to answer within this part of the time after which it counts as
silent."""
_CROWDED_PAUSE_S = 1.0
"""Added where an element of a batch was refused for load: an error in a batch has no header that
could say how long."""


class Dialogue:
    """Of one client with the cluster. Times are the event loop's, in seconds."""

    def __init__(self, nodes: Nodes, exchange: Exchange, *, timeout: float, random: Random) -> None:
        self._nodes = nodes
        self._timeout = timeout
        self._caller = Caller(nodes, exchange, timeout=timeout, random=random)
        self._learning: asyncio.Task[None] | None = None
        self._learnt_from: str | None = None

    async def close(self) -> None:
        """End what is under way; see `Caller.close`."""
        self._caller.close()
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.gather(self._learning, return_exceptions=True)

    def until(self, deadline: float) -> float:
        """When a call that begins now must end. Raises RuntimeError once the client is closed."""
        if self._caller.is_closed:
            raise RuntimeError("this client is closed")
        return from_now(deadline)

    async def json(self, call: Call, until: float, about: str | None = None) -> Any:
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

    async def read(self, call: Call, until: float) -> Any:
        """For what changes nothing when it is asked again. Raises Unavailable, BadAnswer,
        Refused."""
        try:
            return await self.json(call, until)
        except NoAnswer as error:
            raise Unavailable(str(error)) from None

    async def outcome(self, submission: Submission, until: float) -> Transaction:
        """Send it until its outcome is known, or what it waits for is there. Raises Refused,
        OutcomeUnknown."""
        last = "no answer yet"
        for failures in itertools.count():
            call = Call(
                *("POST", submission.path, submission.encoded()),
                again=submission.again,
                perhaps_done=submission.is_repeat,
            )
            try:
                transaction = read_transaction(
                    await self.json(call, until, submission.id), submission.id
                )
            except (NoAnswer, BadAnswer) as error:
                raise OutcomeUnknown(submission.id, str(error)) from None
            except (Expired, UnknownTransaction) as error:
                if submission.is_repeat:
                    raise forgotten_since(submission.id, error) from None
                raise
            if transaction.outcome is not None:
                if submission.wait == "completion":
                    return await self.follow(transaction, until)
                return transaction
            if submission.wait == "none":
                return transaction
            if transaction.state == "refused":
                raise refused(transaction.id)
            last = f"the transaction is {transaction.state}"
            submission.is_repeat = True
            if not await self.rest(failures, until):
                break
        raise OutcomeUnknown(submission.id, last)

    async def follow(self, transaction: Transaction, until: float) -> Transaction:
        """Wait until everybody has acknowledged; at `until`, or unanswered, what was last known."""
        path = path_of(transaction.id)
        loop = asyncio.get_running_loop()
        failures = 0
        while not transaction.finished and (left := until - loop.time()) > 0:
            wait_ms = max(1, int(1000 * min(left, self._timeout * _POLL_SHARE)))
            try:
                call = Call("GET", f"{path}?wait_ms={wait_ms}", perhaps_done=True)
                transaction = read_transaction(await self.json(call, until), transaction.id)
            except (NoAnswer, BadAnswer, Refused):
                break
            if transaction.finished or not await self.rest(failures, until):
                break
            failures += 1
        return transaction

    async def rest(self, failures: int, until: float, *, crowded: bool = False) -> bool:
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

    # --- the nodes ------------------------------------------------------------------------------

    async def cluster(self, until: float) -> ClusterStatus:
        """See `Client.cluster`."""
        status = read_cluster(await self.read(Call("GET", CLUSTER, needs_leader=False), until))
        self._remember(status)
        others = [node.api for node in status.nodes if node.id == status.leader]
        if status.leader != status.self_id and others:
            with contextlib.suppress(NoAnswer, BadAnswer, ValueError):
                return await self._ask_about_cluster(node_url(others[0]), until)
        return status

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
            until = from_now(self._timeout)
            self._remember(await self._ask_about_cluster(self._learnt_from, until))

    async def _ask_about_cluster(self, node: str, until: float) -> ClusterStatus:
        """What this very node says, asked once."""
        answer = await self._caller.once(Call("GET", CLUSTER), node, until)
        return read_cluster(read_json(answer.body))

    def _remember(self, status: ClusterStatus) -> None:
        with contextlib.suppress(ValueError):  # an address that is none is of no use
            self._nodes.learn(node_urls([node.api for node in status.nodes]))


def from_now(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
