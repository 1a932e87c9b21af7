"""What a client sends and sends again until its transactions are decided. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cluster.client.answers import (
    BadAnswer,
    ClientError,
    Expired,
    Transaction,
    forgotten_since,
    read_error,
    read_transaction,
    refused,
)

TRANSACTIONS = "/v1/transactions"
_DEFINITE = {
    "transaction_id_conflict": 409,
    "not_allowed": 409,
    "transaction_id_expired": 410,
    "body_too_large": 413,
}
"""Statuses of the errors that an element of a batch may carry, where it is not 400."""
_CROWDED = frozenset(("at_capacity", "overloaded"))
_AGAIN = _CROWDED | {
    "outcome_unknown", "no_leader", "not_leader", "clock_unsettled", "draining", "internal_error"
}  # fmt: skip
"""Errors of an element of a batch after which the same element is sent again."""


def path_of(id: str) -> str:
    """Where the API has that transaction."""
    return f"{TRANSACTIONS}/{quote(id, safe='')}"


@dataclass(frozen=True, slots=True)
class Open:
    """An element of a batch has no outcome yet. `crowded`: the node asks for a pause."""

    why: str
    crowded: bool = False


class Submission:
    """What runs one transaction, from its first sending to its last, and where it is sent.
    `is_repeat`: it was sent before, and perhaps done."""

    path = TRANSACTIONS

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = dict(body)
        self.is_repeat = False

    @property
    def id(self) -> str:
        return str(self._body["id"])

    @property
    def wait(self) -> object:
        return self._body.get("wait", "decision")

    def encoded(self) -> bytes:
        return json.dumps(self._body).encode()

    def again(self) -> bytes:
        """The body of a repeat. It waits for the decision only, else a participant that is down
        would keep a decision that is known from the client."""
        self.is_repeat = True
        return json.dumps(_for_decision(self._body)).encode()


class End(Submission):
    """What asks for the end of an interactive transaction; `how`: commit or rollback.

    A repeat from the first on: what it ends has begun, and anybody who knows its id may have ended
    it.
    """

    def __init__(self, id: str, how: str, wait: str) -> None:
        super().__init__({"wait": wait})
        self._id = id
        self.path = f"{path_of(id)}/{how}"
        self.is_repeat = True

    @property
    def id(self) -> str:
        return self._id


class Batch:
    """The bodies of several transactions, sent in one request. `is_repeat`: see Submission."""

    def __init__(self, bodies: Sequence[Mapping[str, Any]], *, is_repeat: bool) -> None:
        self._bodies = bodies
        self.is_repeat = is_repeat

    def encoded(self) -> bytes:
        return json.dumps({"transactions": self._bodies}).encode()

    def again(self) -> bytes:
        """The body of a repeat, which waits for decisions only; see Submission."""
        self.is_repeat = True
        return json.dumps({"transactions": [_for_decision(body) for body in self._bodies]}).encode()


def _for_decision(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**body, "wait": "decision"} if body.get("wait") == "completion" else body


def elements(answer: Any, sent: int) -> list[Any]:
    """The answers to a batch of so many transactions; raises BadAnswer."""
    entries = answer.get("transactions") if isinstance(answer, dict) else None
    if not isinstance(entries, list) or len(entries) != sent:
        raise BadAnswer("answered a batch without an answer to each of its transactions")
    return entries


def element_answer(
    entry: Any, body: Mapping[str, Any], *, is_repeat: bool = False
) -> Transaction | ClientError | Open:
    """What an element of a batch was answered; Open: it is to be sent again."""
    id = str(body["id"])
    try:
        if isinstance(entry, dict) and "error" in entry:
            refusal = read_error(400, entry, id)
            if refusal.code in _AGAIN:
                return Open(str(refusal), crowded=refusal.code in _CROWDED)
            refusal = read_error(_DEFINITE.get(refusal.code, 400), entry)
            if is_repeat and isinstance(refusal, Expired):
                return forgotten_since(id, refusal)
            return refusal
        transaction = read_transaction(entry, id)
    except BadAnswer as error:
        return Open(str(error))
    if transaction.outcome is None and body.get("wait") != "none":
        if transaction.state == "refused":
            return refused(transaction.id)
        return Open(f"the transaction is {transaction.state}")
    return transaction
