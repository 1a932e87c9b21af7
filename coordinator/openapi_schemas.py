"""The shapes of what the API takes and gives, as JSON Schema (2020-12), each with an example. Pure.

`openapi` refers to them by name; a test holds the examples, and real answers, against them.
"""

from __future__ import annotations

from typing import Any

from coordinator.api_errors import CODES
from coordinator.api_fields import MAX_URL_CHARS
from coordinator.api_shapes import (
    MAX_ACTOR_CHARS,
    MAX_NAME_CHARS,
    MAX_PAYLOAD_DEPTH,
    MAX_RESOLVE_REASON_CHARS,
)
from coordinator.facts import BranchState, Effect, Mode, State
from coordinator.plan import Wait
from coordinator.settings import Limits, Timings
from participants.contract import Decision

Schema = dict[str, Any]

ID_PATTERN = r"^(?!\.{1,2}$)[A-Za-z0-9._:-]{1,64}$"

TRANSACTION_EXAMPLE = {
    "id": "01981fa0-5f9e-7c1d-8a55-5a0c6a1d2b3e",
    "state": "committing",
    "outcome": "committed",
    "reason": None,
    "mode": "one_shot",
    "created_at": "2026-01-31T12:00:00.000Z",
    "expires_at": "2026-01-31T12:00:10.000Z",
    "decided_at": "2026-01-31T12:00:00.004Z",
    "finished_at": None,
    "branches": [
        {
            "branch_id": "1",
            "name": "inventory",
            "url": "http://127.0.0.1:9002",
            "vote": "yes",
            "reason": None,
            "state": "committing",
            "attempts": 1,
            "last_error": None,
        }
    ],
    "history": [],
    "metadata": {"action": "place-order"},
}

SUBMISSION_EXAMPLE = {
    "id": "01981fa0-5f9e-7c1d-8a55-5a0c6a1d2b3e",
    "participants": [
        {
            "name": "inventory",
            "url": "http://127.0.0.1:9002",
            "payload": {"sku": "A-1", "quantity": 2},
        }
    ],
    "timeout_ms": 10000,
    "wait": "decision",
    "metadata": {"action": "place-order"},
}

ERROR_EXAMPLE = {
    "error": {
        "code": "bad_request",
        "message": "participants[0].url: must begin with http:// or https:// and a host",
        "details": {"field": "participants[0].url"},
    }
}


def schemas(limits: Limits, timings: Timings) -> dict[str, Schema]:
    """Every schema by its name."""
    return {
        "Submission": _submission(limits, timings),
        "Opening": _opening(limits, timings),
        "Participant": _participant(),
        "Enlisted": _enlisted(),
        "Ending": _object(
            {"wait": _wait("Waited is until the deadline and 5 s more; then 202.")},
            optional=("wait",),
            example={"wait": "completion"},
        ),
        "Batch": _object(
            {
                "transactions": {
                    "type": "array",
                    "items": ref("Submission"),
                    "minItems": 1,
                    "maxItems": limits.batch_size,
                }
            },
            example={"transactions": [SUBMISSION_EXAMPLE]},
        ),
        "BatchAnswer": _object(
            {
                "transactions": {
                    "type": "array",
                    "items": {"oneOf": [ref("Transaction"), ref("Error")]},
                }
            },
            example={"transactions": [TRANSACTION_EXAMPLE, ERROR_EXAMPLE]},
        ),
        "Transaction": _transaction(),
        "Branch": _branch(),
        "Resolution": _resolution(),
        "Page": _page(),
        "Decision": _object(
            {
                "decision": {"enum": [d.value for d in Decision]},
                "id": _text("The transaction that was asked about."),
                "branch_id": _text("The branch that was asked about."),
            },
            example={"decision": "pending", "id": "order-17", "branch_id": "2"},
        ),
        "Resolve": _resolve(),
        "Cluster": _cluster(),
        "Health": _object({"status": {"const": "ok"}}, example={"status": "ok"}),
        "Readiness": _readiness(),
        "Error": _error(),
    }


def size_text(size: int) -> str:
    """`16 MiB`, or in bytes where it is no whole number of something larger."""
    for unit, bytes_ in (("MiB", 1024 * 1024), ("KiB", 1024)):
        if size % bytes_ == 0:
            return f"{size // bytes_} {unit}"
    return f"{size} bytes"


def ref(name: str) -> Schema:
    """The schema of that name, referred to."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(
    properties: dict[str, Schema],
    *,
    example: Any,
    optional: tuple[str, ...] = (),
    about: str | None = None,
    closed: bool = True,
) -> Schema:
    """An object that has these and no other fields, all of them unless they are `optional`."""
    schema: Schema = {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": not closed,
        "examples": [example],
    }
    return schema if about is None else {"description": about, **schema}


def _text(about: str | None = None, most: int | None = None) -> Schema:
    schema: Schema = {"type": "string"}
    if most is not None:
        schema |= {"minLength": 1, "maxLength": most}
    return schema if about is None else {**schema, "description": about}


def _text_or_null(about: str | None = None) -> Schema:
    schema: Schema = {"type": ["string", "null"]}
    return schema if about is None else {**schema, "description": about}


def _count(about: str, least: int = 0, most: int | None = None) -> Schema:
    schema: Schema = {"type": "integer", "minimum": least, "description": about}
    return schema if most is None else {**schema, "maximum": most}


_OR_NULL = {"type": ["integer", "null"]}


def _id(about: str) -> Schema:
    return {"type": "string", "pattern": ID_PATTERN, "description": about}


def _time(about: str) -> Schema:
    return {"type": ["string", "null"], "format": "date-time", "description": about}


def _submission(limits: Limits, timings: Timings) -> Schema:
    return _object(
        {
            "id": _new_id(),
            "mode": {"const": "one_shot"},
            "participants": {
                "type": "array",
                "items": ref("Participant"),
                "minItems": 1,
                "maxItems": limits.branches,
            },
            "timeout_ms": _timeout(timings, timings.default_timeout_ms),
            "wait": _wait(
                "`none`: when it is begun. Waited is for `timeout_ms` and 5 s more; then 202."
            ),
            "metadata": _metadata(limits),
        },
        optional=("id", "mode", "timeout_ms", "wait", "metadata"),
        example=SUBMISSION_EXAMPLE,
    )


def _opening(limits: Limits, timings: Timings) -> Schema:
    return _object(
        {
            "id": _new_id(),
            "mode": {"const": "interactive"},
            "timeout_ms": _timeout(timings, timings.interactive_timeout_ms),
            "metadata": _metadata(limits),
        },
        optional=("id", "timeout_ms", "metadata"),
        example={"mode": "interactive", "timeout_ms": 30_000},
    )


def _new_id() -> Schema:
    return _id(
        "Made by the client, so that asking again is the same transaction. A UUIDv7 is refused for "
        "ever once it is too old to be remembered. Left out: the node makes one, and a client that "
        "loses the answer cannot ask again."
    )


def _timeout(timings: Timings, default_ms: int) -> Schema:
    least, most = timings.min_timeout_ms, timings.max_timeout_ms
    return {
        **_count("All votes must be in by then, or it aborts.", least=least, most=most),
        "default": default_ms,
    }


def _wait(about: str) -> Schema:
    return {
        "enum": [w.value for w in Wait],
        "default": "decision",
        "description": "`decision`: the answer comes when the outcome is durable on a quorum. "
        f"`completion`: when every participant has acknowledged it. {about}",
    }


def _metadata(limits: Limits) -> Schema:
    what = f"Kept with the transaction and shown; at most {size_text(limits.metadata_bytes)}."
    return {"type": "object", "description": what}


def _participant() -> Schema:
    return _object(
        {
            "name": _text(
                "Unique in the transaction. Default: host, port and path.", MAX_NAME_CHARS
            ),
            "url": _text("`/prepare`, `/commit` and `/rollback` are appended.", MAX_URL_CHARS),
            "prepare": _text("With commit and rollback, in the place of url.", MAX_URL_CHARS),
            "commit": _text("See prepare.", MAX_URL_CHARS),
            "rollback": _text("See prepare.", MAX_URL_CHARS),
            "payload": {
                "description": "Any JSON, sent with prepare; nested at most "
                f"{MAX_PAYLOAD_DEPTH} deep."
            },
        },
        optional=("name", "url", "prepare", "commit", "rollback", "payload"),
        example=SUBMISSION_EXAMPLE["participants"][0],  # type: ignore[index]
    )


def _enlisted() -> Schema:
    branch = _branch()
    return _object(
        {
            "transaction_id": _id("The transaction's id."),
            "expires_at": _time("Until when all votes must be in."),
            **branch["properties"],
        },
        optional=("prepare", "commit", "rollback"),
        example={
            **TRANSACTION_EXAMPLE["branches"][0],  # type: ignore[dict-item,index]
            "transaction_id": TRANSACTION_EXAMPLE["id"],
            "expires_at": TRANSACTION_EXAMPLE["expires_at"],
            "vote": None,
            "state": "active",
            "attempts": 0,
        },
    )


def _transaction() -> Schema:
    return _object(
        {
            "id": _id("The transaction's id."),
            "state": {
                "enum": [s.value for s in State],
                "description": "`refused`: a participant asked about this id before anyone began "
                "it, so it cannot be begun any more.",
            },
            "outcome": {
                "enum": ["committed", "aborted", None],
                "description": "Final once it is not null.",
            },
            "reason": _text_or_null("Why it aborted."),
            "mode": {"enum": [m.value for m in Mode]},
            "created_at": _time("When it was begun."),
            "expires_at": _time("Until when all votes must be in."),
            "decided_at": _time("When it was decided."),
            "finished_at": _time("When the last participant acknowledged."),
            "branches": {"type": "array", "items": ref("Branch")},
            "history": {
                "type": "array",
                "items": ref("Resolution"),
                "description": "What operators did by hand.",
            },
            "metadata": {"type": "object"},
            "stale": {"const": True, "description": "Read without a barrier."},
        },
        optional=("stale",),
        example=TRANSACTION_EXAMPLE,
    )


def _branch() -> Schema:
    return _object(
        {
            "branch_id": _id("The branch's id within the transaction."),
            "name": _text(),
            "url": _text_or_null("Null where prepare, commit and rollback were given."),
            "prepare": _text(),
            "commit": _text(),
            "rollback": _text(),
            "vote": {"enum": ["yes", "no", "read_only", None]},
            "reason": _text_or_null("The participant's own words, or what went wrong."),
            "state": {"enum": [s.value for s in BranchState]},
            "attempts": _count(
                "Calls made in the present phase, by the present leader; 0 once the transaction is "
                "finished, for then nobody counts."
            ),
            "last_error": _text_or_null(
                "What the last failed call met, at the present leader; null once it is finished."
            ),
        },
        optional=("prepare", "commit", "rollback"),
        example=TRANSACTION_EXAMPLE["branches"][0],  # type: ignore[index]
    )


def _resolution() -> Schema:
    return _object(
        {
            "branch_id": _text_or_null("Null: the whole transaction was aborted."),
            "effect": {"enum": [*(e.value for e in Effect), None]},
            "actor": _text(),
            "reason": _text(),
            "at": _time("When."),
        },
        example={
            "branch_id": "1",
            "effect": "committed",
            "actor": "ada",
            "reason": "booked by hand, ticket 4711",
            "at": "2026-01-31T12:00:00.000Z",
        },
    )


def _page() -> Schema:
    return _object(
        {
            "transactions": {"type": "array", "items": ref("Transaction")},
            "next_after": _text_or_null(
                "Give it as `after` for the next page. A page may hold fewer than `limit`, even "
                "none, and still have a next one: the search is bounded. Null at the end."
            ),
            "backlog": {
                "type": "object",
                "additionalProperties": {"type": "integer"},
                "description": "Unfinished branches by participant, of all transactions: the 50 "
                "participants that have most, the most first.",
            },
            "oldest_in_doubt_ms": _count("Age of the oldest unfinished transaction; 0: none."),
            "stale": {"const": True},
        },
        optional=("stale",),
        example={
            "transactions": [TRANSACTION_EXAMPLE],
            "next_after": None,
            "backlog": {"http://127.0.0.1:9002": 1},
            "oldest_in_doubt_ms": 12,
        },
    )


def _resolve() -> Schema:
    actor = _text("Who does it.", MAX_ACTOR_CHARS)
    reason = _text("Why; kept for ever.", MAX_RESOLVE_REASON_CHARS)
    whole = _object(
        {"outcome": {"enum": ["abort", "commit"]}, "actor": actor, "reason": reason},
        about="Abort what is undecided. `commit` is always refused: only votes commit.",
        example={"outcome": "abort", "actor": "ada", "reason": "the service is gone for good"},
    )
    branch = _object(
        {
            "branch_id": _id("The branch."),
            "effect": {"enum": [e.value for e in Effect]},
            "actor": actor,
            "reason": reason,
        },
        about="Say what became of a branch that will never acknowledge.",
        example={
            "branch_id": "1",
            "effect": "committed",
            "actor": "ada",
            "reason": "booked by hand, ticket 4711",
        },
    )
    return {"oneOf": [whole, branch]}


def _cluster() -> Schema:
    example = {
        "id": "n1",
        "api": "http://127.0.0.1:8101",
        "raft": "127.0.0.1:7101",
        "role": "leader",
        "alive": True,
        "match_index": 42,
        "lag": 0,
    }
    node = _object(
        {
            "id": _text(),
            "api": _text("Where clients and participants reach it."),
            "raft": _text("Where the other nodes reach it."),
            "role": {"enum": ["leader", "follower"]},
            "alive": {
                "type": "boolean",
                "description": "The leader heard of it within an election timeout. Followers hear "
                "nothing of each other: of another follower a follower tells whether a connection "
                "stands, as it does to a process that hangs. Ask the leader.",
            },
            "match_index": _count("How much of the log it has; the leader knows.") | _OR_NULL,
            "lag": _count("How many entries it lacks; the leader knows.") | _OR_NULL,
        },
        example=example,
        closed=False,
    )
    return _object(
        {
            "cluster": _text_or_null("The cluster's id."),
            "self": _text("The node that answers."),
            "leader": _text_or_null("Null: none is known."),
            "term": _count("The log's term."),
            "nodes": {"type": "array", "items": node},
        },
        example={"cluster": "c-1", "self": "n1", "leader": "n1", "term": 3, "nodes": [example]},
        closed=False,
    )


def _readiness() -> Schema:
    check = _object(
        {"ok": {"type": "boolean"}, "detail": _text()},
        example={"ok": True, "detail": "n1 leads in term 3"},
    )
    return _object(
        {
            "ready": {"type": "boolean"},
            "checks": {"type": "object", "additionalProperties": check},
            "error": {"type": "object", "description": "With 503: as in every error."},
        },
        optional=("error",),
        example={"ready": True, "checks": {"leader": {"ok": True, "detail": "n1 in term 3"}}},
    )


def _error() -> Schema:
    codes = "\n".join(f"- `{code}`: {meaning}" for code, meaning in CODES.items())
    error = _object(
        {
            "code": {"enum": list(CODES), "description": codes},
            "message": _text("What, which, what next."),
            "details": {"type": "object"},
        },
        example=ERROR_EXAMPLE["error"],
    )
    return _object({"error": error}, example=ERROR_EXAMPLE)
