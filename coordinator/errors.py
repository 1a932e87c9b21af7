"""What can go wrong for the one who asks the coordinator. Shown as HTTP by `api`.

    CoordinatorError
    ├── Conflict           the id stands for other content
    ├── Expired            the id's time lies before what is remembered
    ├── UnknownTransaction no record of the id
    ├── AtCapacity         too many unfinished transactions: later
    ├── Draining           this node is stopping: ask another
    ├── NotInteractive     only the coordinator ends a one-shot transaction
    └── NotAllowed         the transaction's state does not allow it

What the log itself refuses is a `coordinator.log.LogError`.
"""

from __future__ import annotations

from typing import Any


class CoordinatorError(Exception):
    """Definite: nothing was changed by the request. `details` are named values for the client."""

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.details = details


class Conflict(CoordinatorError):
    """The same id was begun with other content."""


class Expired(CoordinatorError):
    """The id carries a time before the horizon: whether it ever ran is no longer known."""


class UnknownTransaction(CoordinatorError):
    """No such transaction is remembered, which does not mean that it aborted."""


class AtCapacity(CoordinatorError):
    """A limit of unfinished transactions, or of refusals per second, is reached."""


class Draining(CoordinatorError):
    """The node is stopping and takes no new transactions."""


class NotInteractive(CoordinatorError):
    """A one-shot transaction: its client neither enlists participants nor ends it."""


class NotAllowed(CoordinatorError):
    """For example: an abort of what has committed, or a branch that is not there."""


def unknown(transaction_id: str) -> UnknownTransaction:
    return UnknownTransaction(
        f"transaction {transaction_id} is not remembered, which does not mean that it aborted: "
        "check the id, or ask the participants",
        id=transaction_id,
    )


def expired(transaction_id: str) -> Expired:
    return Expired(
        f"id {transaction_id} is older than what is remembered: look at the services themselves",
        id=transaction_id,
    )
