"""The log line, and the count, for every step of a transaction.

One place, so that a step is worded once, costs nothing when nobody listens, and always carries the
transaction's id: in the text for people, and as a field (`transaction`) for machines.
"""

from __future__ import annotations

import logging
from typing import Protocol

from coordinator.facts import Outcome, Transaction, Vote
from participants.contract import EndAnswer, Failed, Operation, PrepareAnswer, Voted, Working

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

    def sent(self, transaction_id: str, operation: Operation, name: str, attempt: int) -> None:
        if attempt > 1:
            self.observer.retried(operation)
        if LOG.isEnabledFor(logging.INFO):
            if attempt > 1:
                self._say(transaction_id, "%s sent to %s, try %d", operation, name, attempt)
            else:
                self._say(transaction_id, "%s sent to %s", operation, name)

    def prepare_answered(self, transaction_id: str, name: str, answer: PrepareAnswer) -> None:
        match answer:
            case Voted(vote=vote, reason=reason):
                self.observer.voted(vote)
                if LOG.isEnabledFor(logging.INFO):
                    why = f": {reason}" if reason else ""
                    self._say(transaction_id, "%s voted %s%s", name, vote, why)
            case Working():
                if LOG.isEnabledFor(logging.INFO):
                    self._say(transaction_id, "%s is still working", name)
            case Failed(what=what):
                self._warn(transaction_id, "prepare at %s failed: %s", name, what)

    def end_answered(
        self, transaction_id: str, operation: Operation, name: str, answer: EndAnswer, attempt: int
    ) -> None:
        if isinstance(answer, Failed):
            said = (operation, name, attempt, answer.what)
            self._warn(transaction_id, "%s at %s failed, try %d: %s", *said)
        elif LOG.isEnabledFor(logging.INFO):
            self._say(transaction_id, "%s acknowledged %s", name, operation)

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
