"""The one shape of an error over HTTP, and which error each failure is shown as. Pure.

    {"error": {"code": "snake_case", "message": "what, which, what next", "details": {...}}}

A failure is definite (nothing was changed: 4xx, or 503 with a code that says so) or unknown, which
has one code of its own, `outcome_unknown`: ask again with the same id. All codes are in CODES.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coordinator import errors
from coordinator.log import LogError, NotHandedOver, NotLeader, Overloaded

CODES: Mapping[str, str] = {
    "bad_request": "400: a field or parameter, named in `details.field`, is not as it must be",
    "malformed_json": "400: the body is not JSON",
    "unreadable_body": "400: the body broke off, or its encoding is damaged",
    "interactive_not_supported": "400: interactive transactions are not served by this version",
    "cross_site": "403: a browser asked what only a program may, for it may change something",
    "not_found": "404: no such path",
    "unknown_transaction": "404: the id is not remembered, which does not mean that it aborted",
    "method_not_allowed": "405: the path is served with the methods in `Allow`",
    "body_timeout": "408: the body did not arrive in time",
    "head_timeout": "408: the head of the request did not arrive in time",
    "transaction_id_conflict": "409: the id stands for other content",
    "not_interactive": "409: a one-shot transaction is not ended or enlarged by its client",
    "not_allowed": "409: the transaction's state does not allow it",
    "not_handed_over": "409: no other node has taken over; the one that answers leads on",
    "transaction_id_expired": "410: the id's time is older than what is remembered",
    "body_too_large": "413: more than `details.limit_bytes`",
    "unsupported_media_type": "415: the body's content type is not JSON, or its encoding unknown",
    "expectation_failed": "417: the header `Expect` asks for something else than 100-continue",
    "at_capacity": "429: too many transactions wait to begin, or are unfinished; nothing was begun",
    "overloaded": "429 (503 where nothing is begun): too much waits already; nothing was changed",
    "internal_error": "500: the node failed; its log says how",
    "not_leader": "307: `Location` names the same call at the leader",
    "no_leader": "503: no leader is known; ask again, here or at another node",
    "outcome_unknown": "503: it may have happened or not; ask again with the id in `details.id`",
    "clock_unsettled": "503: this node's clock was set, or is wrong; nothing was begun; ask again",
    "draining": "503: the node is stopping; nothing was begun; ask another node",
    "not_ready": "503: `checks` says why",
}

RETRY_AFTER = {"Retry-After": "1"}


class ApiError(Exception):
    """An answer that is an error. `headers` are added to the answer."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        **details: Any,
    ) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`, also what stands in a batch in the place of an answer."""
        error = {"code": self.code, "message": self.message, "details": self.details}
        return {"error": error}


def bad_field(field: str, what: str) -> ApiError:
    """400 for one field or parameter; `field` is its path, such as `participants[0].url`."""
    return ApiError(400, "bad_request", f"{field}: {what}", field=field)


def too_large(what: str, size: int, limit: int) -> ApiError:
    return ApiError(
        413,
        "body_too_large",
        f"{what} has {size} bytes, at most {limit} are taken; send less, or in several requests.",
        limit_bytes=limit,
    )


def unreadable() -> ApiError:
    what = "The body broke off, or its encoding is damaged; send it again."
    return ApiError(400, "unreadable_body", what)


def at_capacity() -> ApiError:
    return ApiError(
        429,
        "at_capacity",
        "This node is asked for more than it can do; nothing was begun; ask again later.",
        headers=RETRY_AFTER,
    )


def overloaded(status: int = 429) -> ApiError:
    what = "Too much waits at this node already; nothing was changed; ask again later."
    return ApiError(status, "overloaded", what, headers=RETRY_AFTER)


def no_leader() -> ApiError:
    return ApiError(
        503,
        "no_leader",
        "No leader is known at present; ask again, here or at another node.",
        headers=RETRY_AFTER,
    )


def clock_unsettled() -> ApiError:
    return ApiError(
        503,
        "clock_unsettled",
        "The id's time lies more than 5 minutes ahead of this node's clock, which was set just now "
        "or disagrees with the other nodes'; nothing was begun; ask again.",
        headers=RETRY_AFTER,
    )


def outcome_unknown(transaction_id: str) -> ApiError:
    return ApiError(
        503,
        "outcome_unknown",
        f"Whether transaction {transaction_id} was begun, and its outcome, is not known here; "
        "ask again with this id, at any node.",
        headers=RETRY_AFTER,
        id=transaction_id,
    )


def not_leader(location: str, leader: str) -> ApiError:
    return ApiError(
        307,
        "not_leader",
        f"Node {leader} leads; send the same request to the address in Location.",
        headers={"Location": location},
        leader=leader,
    )


def not_handed_over(why: NotHandedOver, node: str) -> ApiError:
    return ApiError(
        409,
        "not_handed_over",
        f"Node {node} leads on: {why}; see in GET /v1/cluster who is alive and what each lacks, "
        "then ask again or name another node.",
        leader=node,
    )


def refusal(error: errors.CoordinatorError) -> ApiError:
    """How a refusal of the coordinator is shown."""
    status, code = _REFUSALS[type(error)]
    headers = RETRY_AFTER if status in (429, 503) else None
    return ApiError(status, code, str(error), headers=headers, **error.details)


_REFUSALS: Mapping[type[errors.CoordinatorError], tuple[int, str]] = {
    errors.Conflict: (409, "transaction_id_conflict"),
    errors.Expired: (410, "transaction_id_expired"),
    errors.UnknownTransaction: (404, "unknown_transaction"),
    errors.AtCapacity: (429, "at_capacity"),
    errors.Draining: (503, "draining"),
    errors.NotAllowed: (409, "not_allowed"),
}


def log_refusal(error: LogError, transaction_id: str | None, *, named: bool = True) -> ApiError:
    """How a refusal of the log is shown. `transaction_id`: what was to be changed; None: nothing.

    `named`: the client itself gave the id. If not, whatever happened is told as unknown together
    with the id: the client has never seen it, and asking again without it would run the work twice.
    """
    if isinstance(error, Overloaded):
        return overloaded(503 if transaction_id is None else 429)
    if transaction_id is None or (isinstance(error, NotLeader) and named):
        return no_leader()
    return outcome_unknown(transaction_id)
