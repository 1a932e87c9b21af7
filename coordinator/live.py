"""A transaction in the present leader's hands: its conversation, its calls, who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from coordinator.alarms import NEVER_S
from coordinator.conversation import Conversation
from coordinator.facts import Transaction
from coordinator.gateway import Call
from coordinator.plan import Wait
from participants.contract import Vote

Waiting = asyncio.Future[Transaction]

# Looked up once: 90 ns each time.
_NONE, _DECISION, _COMPLETION = Wait.NONE, Wait.DECISION, Wait.COMPLETION


LOOK_AT = 16
"""When so many wait for one transaction, those of them that gave up are let go of: usually one or
two wait and nothing is looked at, and sixteen futures are little to keep."""


class Progress(NamedTuple):
    """What the present leader knows of a branch beyond the record."""

    vote: Vote | None
    reason: str | None
    attempts: int
    last_error: str | None


class Live:
    """A transaction in this leader's hands.

    `conversation` is None until `Begin` is applied, or only proposed where it travels with the
    prepares (every participant can inquire).
    """

    __slots__ = (
        "_look_at",
        "_waiting",
        "alarm_s",
        "conversation",
        "ends",
        "epoch",
        "fingerprint",
        "id",
        "prepares",
        "started_s",
        "traceparent",
    )

    def __init__(self, transaction_id: str, fingerprint: str, epoch: int, started_s: float) -> None:
        self.id = transaction_id
        self.fingerprint = fingerprint
        self.epoch = epoch
        self.started_s = started_s
        self.conversation: Conversation | None = None
        self.traceparent: str | None = None
        self.alarm_s = NEVER_S  # when it is woken, as far as that is planned
        self.prepares: dict[int, Call] = {}
        self.ends: dict[int, Call] = {}
        self._waiting: list[tuple[Wait, Waiting]] = []
        self._look_at = LOOK_AT  # when so many wait

    @property
    def is_undecided(self) -> bool:
        """Whether it waits for its `Begin`, for votes, or for its decision to be applied; not where
        it is open, and waits for its client."""
        if self.conversation is None:
            return True
        transaction = self.conversation.transaction
        return transaction.outcome is None and transaction.closed

    @property
    def end_is_awaited(self) -> bool:
        """Whether anybody waits until the last branch has acknowledged."""
        return bool(self._waiting) and any(wait is _COMPLETION for wait, _ in self._waiting)

    def wait(self, wait: Wait, future: Waiting) -> None:
        """Give `future` the transaction once as much as `wait` says has been reached.

        Who gave up is let go of now and then: a client that asks again and again waits each time.
        """
        if len(self._waiting) >= self._look_at:
            self._waiting = [each for each in self._waiting if not each[1].done()]
            self._look_at = LOOK_AT + 2 * len(self._waiting)
        self._waiting.append((wait, future))

    def when_begun(self, then: Callable[[], None]) -> None:
        """Call `then` when the `Begin` is applied, or has come to nothing."""

        def told(future: Waiting) -> None:
            future.exception()  # what came of it `then` finds out by itself
            then()

        begun: Waiting = asyncio.get_running_loop().create_future()
        begun.add_done_callback(told)
        self.wait(_NONE, begun)

    def tell(self, transaction: Transaction) -> None:
        """Tell those who waited for as much as the record now says. I5: a quorum holds it."""
        if not self._waiting:
            return
        still: list[tuple[Wait, Waiting]] = []
        for waiting in self._waiting:
            wait, future = waiting
            if not is_reached(transaction, wait):
                still.append(waiting)
            elif not future.done():
                future.set_result(transaction)
        self._waiting = still

    def fail(self, error: Exception) -> None:
        """Tell all who wait that they will not learn it here."""
        for _, future in self._waiting:
            if not future.done():
                future.set_exception(error)
                future.exception()  # who waited may have gone: not an error of ours
        self._waiting = []

    def progress(self) -> tuple[Progress, ...] | None:
        """What this leader knows of each branch, in order; None while it has no conversation."""
        if self.conversation is None:
            return None
        return tuple(
            [
                Progress(leg.vote, leg.reason, leg.attempts, leg.last_error)
                for leg in self.conversation.legs
            ]
        )

    def calls(self) -> list[Call]:
        return [*self.prepares.values(), *self.ends.values()]


def is_reached(transaction: Transaction, wait: Wait) -> bool:
    """Whether the record says as much as `wait` asks for."""
    if wait is _DECISION:  # a refusal is decided and finished, too
        return transaction.outcome is not None
    return wait is _NONE or transaction.finished_ms is not None
