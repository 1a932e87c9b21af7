"""The log line, and the count, for every step of a transaction.

One place, so that a step is worded once, costs nothing when nobody listens, and always carries the
transaction's id: in the text for people, and as a field (`transaction`) for machines. A phase is
one line and not one per branch: a line costs some 5 us, and seven are easier to read than fifteen.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from coordinator.conversation import Leg
from coordinator.facts import Outcome, Transaction, Vote
from participants.contract import Failed, Operation, PrepareAnswer, Voted, Working

LOG = logging.getLogger("assent.transaction")


class Observer(Protocol):
    """Counts the steps; `coordinator/metrics.py` implements it. Durations are in seconds."""

    def began(self) -> None: ...
    def voted(self, vote: Vote) -> None: ...
    def decided(self, outcome: Outcome, seconds: float) -> None: ...
    def finished(self, outcome: Outcome, seconds: float) -> None: ...
    def retried(self, operation: Operation) -> None: ...
    def took_over(self, count: int) -> None: ...


class NoObserver:
    """Counts nothing."""

    def began(self) -> None:
        pass

    def voted(self, vote: Vote) -> None:
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
    """Says and counts what happens to transactions."""

    def __init__(self, observer: Observer | None = None) -> None:
        self.observer: Observer = observer or NoObserver()

    def began(self, transaction: Transaction) -> None:
        self.observer.began()
        if LOG.isEnabledFor(logging.INFO):
            names = ", ".join(branch.name for branch in transaction.branches)
            self._say(transaction.id, "begun with %s", names)

    def sent(self, transaction_id: str, operation: Operation, legs: Sequence[Leg]) -> None:
        """Messages have gone to these branches; the first tries of a phase share a line."""
        first = [leg.branch.name for leg in legs if leg.attempts == 1]
        if first and LOG.isEnabledFor(logging.INFO):
            self._say(transaction_id, "%s sent to %s", operation, ", ".join(first))
        for leg in legs:
            if leg.attempts > 1:
                self.observer.retried(operation)
                name, attempt = leg.branch.name, leg.attempts
                self._say(transaction_id, "%s sent to %s, try %d", operation, name, attempt)

    def prepare_answered(self, transaction_id: str, name: str, answer: PrepareAnswer) -> None:
        """Votes are said together, by `voted`; what is no vote at once."""
        match answer:
            case Voted(vote=vote):
                self.observer.voted(vote)
            case Working():
                self._say(transaction_id, "%s is still working", name)
            case Failed(what=what):
                self._warn(transaction_id, "prepare at %s failed: %s", name, what)

    def voted(self, transaction_id: str, legs: Sequence[Leg]) -> None:
        """The votes with which the decision is proposed."""
        if LOG.isEnabledFor(logging.INFO):
            votes = ", ".join(_vote_of(leg) for leg in legs)
            self._say(transaction_id, "voted: %s", votes)

    def end_failed(
        self, transaction_id: str, operation: Operation, leg: Leg, failed: Failed
    ) -> None:
        said = (operation, leg.branch.name, leg.attempts, failed.what)
        self._warn(transaction_id, "%s at %s failed, try %d: %s", *said)

    def acknowledged(self, transaction: Transaction, branches: int) -> None:
        """These branches have finished the outcome; a bit each."""
        if LOG.isEnabledFor(logging.INFO):
            names = [b.name for i, b in enumerate(transaction.branches) if branches >> i & 1]
            committed = transaction.outcome is Outcome.COMMIT
            what = "commit" if committed else "rollback"
            self._say(transaction.id, "%s acknowledged by %s", what, ", ".join(names))

    def retry_planned(self, transaction_id: str, name: str, delay_s: float) -> None:
        if LOG.isEnabledFor(logging.INFO):
            self._say(transaction_id, "%s is called again in %.3f s", name, max(0.0, delay_s))

    def decided(self, transaction: Transaction, seconds: float) -> None:
        assert transaction.outcome is not None
        self.observer.decided(transaction.outcome, seconds)
        if LOG.isEnabledFor(logging.INFO):
            why = f": {transaction.reason}" if transaction.reason else ""
            self._say(transaction.id, "decided %s%s", transaction.outcome, why)

    def finished(self, transaction: Transaction, seconds: float) -> None:
        assert transaction.outcome is not None
        self.observer.finished(transaction.outcome, seconds)
        if LOG.isEnabledFor(logging.INFO):
            outcome = "committed" if transaction.outcome is Outcome.COMMIT else "aborted"
            self._say(transaction.id, "finished, %s at every participant", outcome)

    def took_over(self, epoch: int, count: int) -> None:
        self.observer.took_over(count)
        LOG.info("leading in epoch %d: taking over %d unfinished transactions", epoch, count)

    def resolved(self, transaction_id: str, what: str, actor: str, reason: str) -> None:
        self._warn(transaction_id, "%s by hand by %s: %s", what, actor, reason)

    def _say(self, transaction_id: str, text: str, *values: object) -> None:
        LOG.info("%s " + text, transaction_id, *values, extra={"transaction": transaction_id})

    def _warn(self, transaction_id: str, text: str, *values: object) -> None:
        LOG.warning("%s " + text, transaction_id, *values, extra={"transaction": transaction_id})


def _vote_of(leg: Leg) -> str:
    if leg.vote is None:
        return f"{leg.branch.name} has not"
    return f"{leg.branch.name} {leg.vote}" + (f" ({leg.reason})" if leg.reason else "")
