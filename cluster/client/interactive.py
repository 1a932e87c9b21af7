"""A transaction that its client ends: begin it, have services work for it, commit or roll back.

    async with client.transaction(timeout_s=30) as order:
        await session.post(url, json=work, headers=order.headers)
        await order.enlist("http://127.0.0.1:9002", payload={"sku": "A-1", "quantity": 2})
    order.result.committed

Rules. A service that is sent `headers` enlists itself under the id in them; others are enlisted
here, before they work. A block that is left in order commits, one that is left by an exception
rolls back, and the exception goes on. Once the end was asked for by hand, and not refused, leaving
the block does nothing more. That it aborted is an answer, which stands in `result`, no exception.

Every call may be repeated, so all are asked until they are answered, as everything is here. An end
that is not told by then is OutcomeUnknown; what else is not told is Unavailable and does no harm:
nothing commits without the end being asked for, and the deadline aborts it.

How long it may last is the difference of two times of one node, counted here from when its begin
was told: it does not matter whose clock is wrong.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from cluster.client.answers import (
    Branch,
    ClientError,
    Refused,
    Transaction,
    Unavailable,
    read_enlisted,
    read_lifetime_s,
    read_transaction,
    refused,
)
from cluster.client.calls import Call, NoAnswer
from cluster.client.dialogue import DEADLINE, Dialogue
from cluster.client.submission import TRANSACTIONS, End, path_of
from participants.contract import TRANSACTION_HEADER

_log = logging.getLogger(__name__)

ROLLBACK_S = 5.0
"""How long an exception waits for the rollback: an election, and a node that is silent. What is not
told by then its deadline does."""


class InteractiveTransaction:
    """One that was begun; `Client.begin` and `Client.transaction` make it.

    `result` is the transaction as it was last told: its `outcome` is None until the end is known.
    """

    def __init__(self, dialogue: Dialogue, begun: Transaction) -> None:
        self._dialogue = dialogue
        self._ends = asyncio.get_running_loop().time() + read_lifetime_s(begun)
        self.result = begun
        self.end_is_asked = False

    @property
    def id(self) -> str:
        return self.result.id

    @property
    def headers(self) -> dict[str, str]:
        """For the requests to services that are to work for it."""
        return {TRANSACTION_HEADER: self.id}

    async def enlist(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        payload: Any = None,
        prepare: str | None = None,
        commit: str | None = None,
        rollback: str | None = None,
        deadline: float = DEADLINE,
    ) -> Branch:
        """Have a participant take part that does not enlist itself; only when this has returned may
        it work. The same again is the same branch.

        `url`, or the three URLs `prepare`, `commit` and `rollback`. Raises Refused (Conflict: the
        end has begun, or the name is another's) or Unavailable.
        """
        given = {
            "url": url,
            "name": name,
            "payload": payload,
            "prepare": prepare,
            "commit": commit,
            "rollback": rollback,
        }
        body = {field: value for field, value in given.items() if value is not None}
        path = f"{path_of(self.id)}/branches"
        call = Call("POST", path, json.dumps(body).encode(), perhaps_done=True)
        until = self._dialogue.until(deadline)
        try:
            answer = await self._dialogue.json(call, until, self.id)
        except NoAnswer as error:
            whom = name or url or prepare
            raise Unavailable(
                f"it is unknown whether {whom} is enlisted in transaction {self.id}: {error}"
            ) from None
        return read_enlisted(answer, self.id, name)

    async def commit(self, *, wait: str = "decision", deadline: float | None = None) -> Transaction:
        """Ask for the end, and return it with its outcome, which may be an abort.

        `wait`: as of `Client.submit`. `deadline`: seconds; by default, as long as the transaction
        may last and `DEADLINE`. Raises OutcomeUnknown, Refused.
        """
        return await self._end("commit", wait, deadline)

    async def rollback(
        self, *, wait: str = "decision", deadline: float | None = None
    ) -> Transaction:
        """Likewise; of what has committed nothing is undone, and the outcome says so."""
        return await self._end("rollback", wait, deadline)

    async def _end(self, how: str, wait: str, deadline: float | None) -> Transaction:
        if deadline is None:
            deadline = max(0.0, self._ends - asyncio.get_running_loop().time()) + DEADLINE
        until = self._dialogue.until(deadline)
        self.end_is_asked = True
        try:
            self.result = await self._dialogue.outcome(End(self.id, how, wait), until)
        except Refused:  # definite: nobody has asked
            self.end_is_asked = False
            raise
        return self.result

    async def __aenter__(self) -> InteractiveTransaction:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del error, traceback
        if self.end_is_asked:
            return
        if kind is None:
            await self.commit()
            return
        try:
            await self.rollback(deadline=ROLLBACK_S)
        except (ClientError, RuntimeError) as failure:  # RuntimeError: the client is closed
            not_rolled_back(self.id, failure)


async def begin(
    dialogue: Dialogue,
    id: str,
    *,
    timeout_s: float | None,
    metadata: Mapping[str, Any] | None,
    deadline: float,
) -> InteractiveTransaction:
    """See `Client.begin`."""
    body: dict[str, Any] = {"id": id, "mode": "interactive"}
    if timeout_s is not None:
        body["timeout_ms"] = round(1000 * timeout_s)
    if metadata is not None:
        body["metadata"] = dict(metadata)
    call = Call("POST", TRANSACTIONS, json.dumps(body).encode())
    until = dialogue.until(deadline)
    try:
        begun = read_transaction(await dialogue.json(call, until, id), id)
    except NoAnswer as error:
        raise Unavailable(
            f"it is unknown whether transaction {id} has begun (its deadline will end it): {error}"
        ) from None
    if begun.state == "refused":
        raise refused(id)
    return InteractiveTransaction(dialogue, begun)


def not_rolled_back(id: str, failure: Exception) -> None:
    _log.warning("transaction %s was not rolled back, its deadline ends it: %s", id, failure)
