"""What a client is told: answers of the cluster as values, its refusals as exceptions. Pure.

    ClientError
    ├── Refused                 definite: the request was understood and not done
    │   ├── BadRequest          400: it has no sense; the message names the field
    │   ├── UnknownTransaction  404: not remembered, which does not mean that it aborted
    │   ├── Conflict            409: other content under this id, or a state that forbids it
    │   ├── Expired             410: the id is too old to be told from a forgotten one
    │   └── TooLarge            413
    ├── OutcomeUnknown          no outcome before the deadline: ask again with `transaction_id`
    ├── Unavailable             what can be asked again, or given up, without an answer in time
    └── BadAnswer               what answered does not speak as a node does

An abort is an answer, not an exception. What was refused may be tried again under a new id; but not
after Expired, for it may have run when the id was young, nor after OutcomeUnknown: then only the
same id is safe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

_Value = TypeVar("_Value")
_KINDS: dict[type, str] = {
    bool: "true or false",
    dict: "an object",
    int: "a whole number",
    list: "a list",
    str: "text",
}


class ClientError(Exception):
    """The base of everything that the client library raises about the cluster."""

    def __reduce__(self) -> tuple[Any, ...]:
        """As it is. Made anew of its text alone, as others are, it could not be unpickled, and what
        it says, id and all, would be lost between the processes of a pool."""
        return _without_init, (type(self), self.args), self.__dict__


def _without_init(kind: type[ClientError], args: tuple[Any, ...]) -> ClientError:
    return kind.__new__(kind, *args)


class Refused(ClientError):
    """Definite. `code` is the error's code, for example `transaction_id_conflict`."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = dict(details)


class BadRequest(Refused):
    """400, and any other refusal that has no class of its own."""


class UnknownTransaction(Refused):
    """404."""


class Conflict(Refused):
    """409."""


class Expired(Refused):
    """410."""


class TooLarge(Refused):
    """413."""


class OutcomeUnknown(ClientError):
    """The transaction may have committed, aborted, or not begun. `transaction_id` finds out, unless
    it is unknown `for_good`: the id is refused (PROTOCOL, section 5) or forgotten, and nobody will
    know more."""

    def __init__(self, transaction_id: str, why: str, *, for_good: bool = False) -> None:
        super().__init__(f"the outcome of transaction {transaction_id} is unknown: {why}")
        self.transaction_id = transaction_id
        self.for_good = for_good


def refused(transaction_id: str) -> OutcomeUnknown:
    """What an answer in the state `refused` means to whoever asked for that transaction."""
    why = "the id is refused: nothing runs under it, but it may have committed long ago"
    return OutcomeUnknown(transaction_id, why, for_good=True)


def forgotten_since(transaction_id: str, refusal: Expired | UnknownTransaction) -> OutcomeUnknown:
    """What they mean to a client that has sent the transaction before: it may have run."""
    return OutcomeUnknown(transaction_id, str(refusal), for_good=True)


class Unavailable(ClientError):
    """No node gave a usable answer before the deadline."""


class BadAnswer(ClientError):
    """A 2xx whose body is not what was asked for, or tells of another transaction: perhaps another
    program listens there."""


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Branch:
    """A transaction's part at one participant: `Branch` of /openapi.json."""

    branch_id: str
    name: str
    url: str | None
    vote: str | None
    reason: str | None
    state: str
    attempts: int
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction as a node tells it. Times are RFC 3339; `raw` is the answer as it came."""

    id: str
    state: str
    outcome: str | None
    reason: str | None
    created_at: str | None
    expires_at: str | None
    decided_at: str | None
    finished_at: str | None
    branches: tuple[Branch, ...]
    metadata: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    """What operators did to it by hand: `at`, `actor`, `reason`, and the branch, if it was one."""
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def committed(self) -> bool:
        return self.outcome == "committed"

    @property
    def aborted(self) -> bool:
        return self.outcome == "aborted"

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen: every participant has acknowledged the outcome, or the
        id is refused."""
        return self.state in ("committed", "aborted", "refused")


@dataclass(frozen=True, slots=True)
class Page:
    """A piece of a list, newest first. `next_after` asks for the next; None: this was the last."""

    transactions: tuple[Transaction, ...]
    next_after: str | None
    backlog: Mapping[str, int]
    """Unfinished branches by participant, the most first."""
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as one of them sees it. `lag` is in log entries, where it is known."""

    id: str
    api: str
    raft: str | None
    role: str | None
    alive: bool | None
    match_index: int | None
    lag: int | None


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster as the node `self_id` sees it; `leader` is a node's id, or None."""

    cluster: str
    self_id: str
    leader: str | None
    term: int | None
    nodes: tuple[NodeStatus, ...]
    raw: Mapping[str, Any] = field(repr=False)


def read_json(body: bytes) -> Any:
    """Decoded JSON, or None of what is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def read_transaction(answer: Any, asked: str | None = None) -> Transaction:
    """A transaction out of decoded JSON; raises BadAnswer, also if it is not the one asked for."""
    fields = _object(answer, "a transaction")
    id = _text(fields, "id")
    if asked is not None and id != asked:
        raise BadAnswer(f"asked about {asked}, answered about {id[:64]!r}")
    return Transaction(
        id=id,
        state=_text(fields, "state"),
        outcome=_outcome(fields),
        reason=_text_or_none(fields, "reason"),
        created_at=_text_or_none(fields, "created_at"),
        expires_at=_text_or_none(fields, "expires_at"),
        decided_at=_text_or_none(fields, "decided_at"),
        finished_at=_text_or_none(fields, "finished_at"),
        branches=tuple(_branch(entry) for entry in _optional(fields, "branches", list) or ()),
        metadata=_optional(fields, "metadata", dict) or {},
        history=tuple(
            _object(entry, "a history of objects")
            for entry in _optional(fields, "history", list) or ()
        ),
        raw=fields,
    )


def read_lifetime_s(transaction: Transaction) -> float:
    """From its begin to its deadline; raises BadAnswer where these are no times."""
    created_at, expires_at = transaction.created_at, transaction.expires_at
    if created_at is None or expires_at is None:  # an id that is refused has neither
        return 0.0
    try:
        lifetime = datetime.fromisoformat(expires_at) - datetime.fromisoformat(created_at)
    except (ValueError, TypeError):
        times = f"{created_at[:64]!r} and {expires_at[:64]!r}"
        raise BadAnswer(f"answered with {times} as created_at and expires_at") from None
    return max(0.0, lifetime.total_seconds())


def read_enlisted(answer: Any, id: str, name: str | None) -> Branch:
    """The branch that was enlisted out of decoded JSON; raises BadAnswer, also if it is another
    transaction's, or has another name than was given."""
    fields = _object(answer, "a branch")
    of, branch = _text(fields, "transaction_id"), _branch(fields)
    if (of, branch.name) != (id, branch.name if name is None else name):
        enlisted = f"{branch.name[:64]!r} in {of[:64]!r}"
        raise BadAnswer(f"asked to enlist in {id}, answered that {enlisted} is enlisted")
    return branch


def read_decision(answer: Any, id: str, branch_id: str) -> str:
    """`commit`, `abort` or `pending` out of decoded JSON; raises BadAnswer, also if it is about
    another branch."""
    fields = _object(answer, "a decision")
    named = fields.get("id", id), fields.get("branch_id", branch_id)
    if fields.get("decision") not in ("commit", "abort", "pending") or named != (id, branch_id):
        raise BadAnswer(f"answered an inquiry with {repr(answer)[:200]}")
    return str(fields["decision"])


def read_page(answer: Any) -> Page:
    """A page of a list out of decoded JSON; raises BadAnswer."""
    fields = _object(answer, "a list")
    backlog = _optional(fields, "backlog", dict) or {}
    return Page(
        transactions=tuple(read_transaction(entry) for entry in _list(fields, "transactions")),
        next_after=_text_or_none(fields, "next_after"),
        backlog={name: _optional(backlog, name, int) or 0 for name in backlog},
        raw=fields,
    )


def read_cluster(answer: Any) -> ClusterStatus:
    """The cluster's status out of decoded JSON; raises BadAnswer."""
    fields = _object(answer, "a cluster's status")
    return ClusterStatus(
        cluster=_text(fields, "cluster"),
        self_id=_text(fields, "self"),
        leader=_text_or_none(fields, "leader"),
        term=_optional(fields, "term", int),
        nodes=tuple(_node(entry) for entry in _list(fields, "nodes")),
        raw=fields,
    )


def is_refusal(answer: Any) -> bool:
    """Whether decoded JSON is an error as a node tells it, and not a proxy for example."""
    error = answer.get("error") if isinstance(answer, dict) else None
    return isinstance(error, dict) and isinstance(error.get("code"), str)


def read_error(status: int, answer: Any, asked: str | None = None) -> Refused:
    """The refusal that a status and a decoded body mean, also where the body has another shape.

    Raises BadAnswer if it names another transaction than the one asked about.
    """
    fields = answer["error"] if is_refusal(answer) else {}
    code = str(fields.get("code", f"http_{status}"))
    strange = f"answered {status}, and not as a node does: perhaps another program listens there"
    message = str(fields.get("message", strange))
    details = fields.get("details")
    named = details if isinstance(details, dict) else {}
    if asked is not None and named.get("id", asked) != asked:
        raise BadAnswer(f"asked about {asked}, refused {str(named['id'])[:64]!r}")
    kinds = {404: UnknownTransaction, 409: Conflict, 410: Expired, 413: TooLarge}
    return kinds.get(status, BadRequest)(status, code, message, named)


def _branch(entry: Any) -> Branch:
    fields = _object(entry, "a branch")
    return Branch(
        branch_id=_text(fields, "branch_id"),
        name=_text(fields, "name"),
        url=_text_or_none(fields, "url"),
        vote=_text_or_none(fields, "vote"),
        reason=_text_or_none(fields, "reason"),
        state=_text(fields, "state"),
        attempts=_optional(fields, "attempts", int) or 0,
        last_error=_text_or_none(fields, "last_error"),
    )


def _node(entry: Any) -> NodeStatus:
    fields = _object(entry, "a node")
    return NodeStatus(
        id=_text(fields, "id"),
        api=_text(fields, "api"),
        raft=_text_or_none(fields, "raft"),
        role=_text_or_none(fields, "role"),
        alive=_optional(fields, "alive", bool),
        match_index=_optional(fields, "match_index", int),
        lag=_optional(fields, "lag", int),
    )


def _outcome(fields: Mapping[str, Any]) -> str | None:
    outcome = _text_or_none(fields, "outcome")
    if outcome not in ("committed", "aborted", None):  # whatever it means, it is not known here
        raise BadAnswer(f"answered with {outcome[:64]!r} as outcome")
    return outcome


def _object(answer: Any, what: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise BadAnswer(f"answered with something that is not {what}")
    return answer


def _text(fields: Mapping[str, Any], name: str) -> str:
    return _given(name, _text_or_none(fields, name))


def _text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    return _optional(fields, name, str)


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    return _given(name, _optional(fields, name, list))


def _given(name: str, value: _Value | None) -> _Value:
    if value is None:
        raise BadAnswer(f"answered without {name}")
    return value


def _optional(fields: Mapping[str, Any], name: str, kind: type[_Value]) -> _Value | None:
    """The field's value, None where it is absent or null; raises BadAnswer of another kind's."""
    value = fields.get(name)
    # By its very type: a bool is an int, too, and JSON decoded has no other subclasses.
    if value is not None and type(value) is not kind:
        raise BadAnswer(f"answered with something as {name} that is not {_KINDS[kind]}")
    return value
