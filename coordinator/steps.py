"""The log line, and the count, for every step of a transaction.

One place, so that a step is worded once, costs nothing when nobody listens, and always carries the
transaction's id. A phase is one line and not one per branch: seven are easier to read than fifteen.

What is said within a hundredth of a second is one record (`Lines`), which the log's handler writes
as a line each, with the time at which it was said: a record of its own for each line costs some
15 us, a third of all that the leader does for a transaction; a line of a record costs one. And
nobody's answer waits for it. A warning is written at once, behind what was said before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TypeAlias

from coordinator.facts import Outcome, Transaction
from coordinator.leg import Leg
from participants.contract import Failed, Operation, Working

LOG = logging.getLogger("assent.transaction")

_COMMIT = Outcome.COMMIT  # looked up once: 90 ns each time
_now_ns = time.time_ns

WRITE_WITHIN_S = 0.01
"""A node that is killed takes with it what it has said since."""

Line: TypeAlias = tuple[int, str, str]
"""One step of one transaction: when (Unix time, in nanoseconds), its id, and the step in words."""


class Lines(tuple[Line, ...]):
    """The message of a record that is several lines; `cluster/logs.py` writes each as one."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(f"{id_} {text}" for _, id_, text in self)


class Observer:
    """What may be counted of the steps; this one counts nothing. Durations are in seconds."""

    def turned_away(self) -> None:
        pass

    def began(self) -> None:
        pass

    def decided(self, outcome: Outcome, seconds: float) -> None:
        pass

    def finished(self, outcome: Outcome, seconds: float) -> None:
        pass

    def retried(self, operation: Operation) -> None:
        pass

    def took_over(self, count: int) -> None:
        pass


class Steps:
    """Says and counts what happens to transactions, on the event loop."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.observer = observer or Observer()
        self._unwritten: list[Line] = []

    def began(self, transaction: Transaction) -> None:
        self.observer.began()
        names = transaction.branches.names
        self._say(transaction.id, f"begun with {names}" if names else "begun, and open")

    def enlisted(self, transaction_id: str, name: str) -> None:
        self._say(transaction_id, f"{name} enlisted")

    def ending(self, transaction_id: str) -> None:
        self._say(transaction_id, "its client asks for the end")

    def sent(self, transaction_id: str, operation: Operation, legs: Sequence[Leg]) -> None:
        """Messages have gone to these branches; the first tries of a phase share a line."""
        first = ", ".join([leg.branch.name for leg in legs if leg.attempts == 1])
        if first:
            self._say(transaction_id, f"{operation} sent to {first}")
        for leg in legs:
            if leg.attempts > 1:
                self.observer.retried(operation)
                again = f"{operation} sent to {leg.branch.name}, try {leg.attempts}"
                self._say(transaction_id, again)

    def prepare_failed(self, transaction_id: str, name: str, answer: Working | Failed) -> None:
        """A prepare was answered, and not with a vote; votes are said together, by `voted`."""
        if isinstance(answer, Working):
            self._say(transaction_id, f"{name} is still working")
        else:
            self._warn(transaction_id, f"prepare at {name} failed: {answer.what}")

    def voted(self, transaction_id: str, legs: Sequence[Leg]) -> None:
        """The votes with which the decision is proposed."""
        self._say(transaction_id, "voted: " + ", ".join([_vote_of(leg) for leg in legs]))

    def end_failed(
        self, transaction_id: str, operation: Operation, leg: Leg, failed: Failed
    ) -> None:
        what = f"{operation} at {leg.branch.name} failed, try {leg.attempts}: {failed.what}"
        self._warn(transaction_id, what)

    def acknowledged(self, transaction: Transaction, branches: int) -> None:
        """These branches have finished the outcome; a bit each."""
        what = "commit" if transaction.outcome is _COMMIT else "rollback"
        names = [b.name for i, b in enumerate(transaction.branches) if branches >> i & 1]
        self._say(transaction.id, f"{what} acknowledged by {', '.join(names)}")

    def retry_planned(self, transaction_id: str, name: str, delay_s: float) -> None:
        self._say(transaction_id, f"{name} is called again in {max(0.0, delay_s):.3f} s")

    def decided(self, transaction: Transaction, seconds: float) -> None:
        assert transaction.outcome is not None
        self.observer.decided(transaction.outcome, seconds)
        why = f": {transaction.reason}" if transaction.reason else ""
        self._say(transaction.id, f"decided {transaction.outcome}{why}")

    def finished(self, transaction: Transaction, seconds: float) -> None:
        assert transaction.outcome is not None
        self.observer.finished(transaction.outcome, seconds)
        outcome = "committed" if transaction.outcome is _COMMIT else "aborted"
        self._say(transaction.id, f"finished, {outcome} at every participant")

    def took_over(self, epoch: int, count: int) -> None:
        self.observer.took_over(count)
        self.write()
        LOG.info("leading in epoch %d: taking over %d unfinished transactions", epoch, count)

    def resolved(self, transaction_id: str, what: str, actor: str, reason: str) -> None:
        self._warn(transaction_id, f"{what} by hand by {actor}: {reason}")

    def write(self) -> None:
        """Write what was said; it happens by itself soon."""
        if self._unwritten:
            lines, self._unwritten = Lines(self._unwritten), []
            LOG.info(lines)

    def _say(self, transaction_id: str, text: str) -> None:
        """If anybody listens."""
        if not self._unwritten:
            if not LOG.isEnabledFor(logging.INFO):
                return
            asyncio.get_running_loop().call_later(WRITE_WITHIN_S, self.write)
        self._unwritten.append((_now_ns(), transaction_id, text))

    def _warn(self, transaction_id: str, text: str) -> None:
        self.write()
        LOG.warning(Lines([(_now_ns(), transaction_id, text)]))


def _vote_of(leg: Leg) -> str:
    if leg.vote is None:
        return f"{leg.branch.name} has not"
    said = f"{leg.branch.name} {leg.vote}"
    return f"{said} ({leg.reason})" if leg.reason else said
