"""The API's own description, OpenAPI 3.1: what GET /openapi.json answers. Pure.

A test compares it with the routes that are served, and real answers with its schemas.
"""

from __future__ import annotations

from typing import Any

from coordinator.api_shapes import DEFAULT_PAGE
from coordinator.openapi_schemas import ID_PATTERN, SUBMISSION_EXAMPLE, ref, schemas, size_text
from coordinator.settings import Limits, Timings

Operation = dict[str, Any]

_LEADER = " Needs the leader: another node answers 307 towards it, or 503 `no_leader`."
_ABOUT = """Atomic work across services by two-phase commit; the decisions are held by a quorum.

`committed` and `aborted` are final. No answer, a broken connection or 503 mean *unknown*: ask again
with the same id, at any node; it is never run twice. 404 of an id does not mean that it aborted.
Unknown fields and parameters are refused. Redirects (307) keep method and body. The header
`Assent-Request`, up to 64 printable ASCII characters, names a request; its answer repeats it."""


def document(limits: Limits, timings: Timings) -> dict[str, Any]:
    """The whole description of a node with these settings, ready to be written as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Assent", "version": "1", "description": _ABOUT},
        "paths": {
            "/v1/transactions": {"post": _submit(limits), "get": _list(limits)},
            "/v1/transactions/{id}": {"get": _get()},
            "/v1/transactions/{id}/decision": {"get": _decision()},
            "/v1/transactions/{id}/resolve": {"post": _resolve()},
            "/v1/transactions/{id}/retry": {"post": _retry()},
            "/v1/transactions/{id}/branches": {
                "post": _interactive("enlist", "Enlist a participant")
            },
            "/v1/transactions/{id}/commit": {
                "post": _interactive("commit", "End it, asking for commit")
            },
            "/v1/transactions/{id}/rollback": {
                "post": _interactive("rollback", "End it, rolling back")
            },
            "/v1/cluster": {"get": _cluster()},
            "/v1/cluster/leader": {"post": _transfer()},
            "/healthz": {"get": _plain("health", "Liveness: the process answers.", "Health")},
            "/readyz": {"get": _readyz()},
            "/metrics": {"get": _metrics()},
            "/openapi.json": {"get": _description()},
        },
        "components": {"schemas": schemas(limits, timings)},
    }


# --- calls ----------------------------------------------------------------------------------------


def _submit(limits: Limits) -> Operation:
    return {
        "operationId": "submit",
        "summary": "Run a one-shot transaction, or a batch of independent ones",
        "description": "Begin, prepare all participants at once, decide, answer. An abort is an "
        "answer, not an error. The same id with the same content is the same transaction. A "
        "request without an id is, once begun, never answered 307 but 503 `outcome_unknown` with "
        "`details.id`. In a batch each element has its own answer or error, in order." + _LEADER,
        "requestBody": {
            "required": True,
            "description": f"At most {size_text(limits.body_bytes)}; a batch "
            f"{size_text(limits.batch_body_bytes)}, beginning with the field transactions, and "
            "each of its elements as much as a single one.",
            "content": {
                "application/json": {
                    "schema": {"oneOf": [ref("Submission"), ref("Batch")]},
                    "examples": {
                        "one": {"value": SUBMISSION_EXAMPLE},
                        "batch": {"value": {"transactions": [SUBMISSION_EXAMPLE]}},
                    },
                }
            },
        },
        "responses": {
            "200": _answer(
                "What was waited for is there.",
                {"oneOf": [ref("Transaction"), ref("BatchAnswer")]},
            ),
            "202": _answer(
                "It is begun: `wait` was none, or ran out. Ask for the outcome with GET.",
                ref("Transaction"),
            ),
            **_errors("307", "400", "408", "409", "410", "413", "415", "417", "429", "503"),
        },
    }


def _get() -> Operation:
    return {
        "operationId": "get",
        "summary": "One transaction",
        "description": "Current: no answer is older than the question." + _LEADER,
        "parameters": [
            _ID,
            _query("wait_ms", _NUMBER, "Wait so long for its end, at most 60 s; then as it is."),
            _query("stale", _FLAG, "Answer at once, from this node, perhaps of some time ago."),
        ],
        "responses": {
            "200": _answer("The transaction.", ref("Transaction")),
            **_errors("307", "400", "404", "503"),
        },
    }


def _list(limits: Limits) -> Operation:
    return {
        "operationId": "list",
        "summary": "Transactions, newest first, and the backlog of each participant",
        "description": "Current, like GET of one." + _LEADER,
        "parameters": [
            _query("state", {"type": "string"}, "One or more states, separated by commas."),
            _query("participant", {"type": "string"}, "The name or URL of a branch."),
            _query("older_than_ms", _NUMBER, "Only those begun longer ago than this."),
            _query(
                "limit",
                {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": limits.page_size,
                    "default": min(DEFAULT_PAGE, limits.page_size),
                },
            ),
            _query("after", {"type": "string"}, "`next_after` of the page before."),
            _query("stale", _FLAG, "Answer at once, from this node."),
        ],
        "responses": {
            "200": _answer("A page.", ref("Page")),
            **_errors("307", "400", "503"),
        },
    }


def _decision() -> Operation:
    return {
        "operationId": "inquire",
        "summary": "A participant in doubt asks for the outcome of a branch that it holds prepared",
        "description": "Of an unknown id the answer is `abort`, and from then on no transaction "
        "of that id can commit." + _LEADER,
        "parameters": [
            _ID,
            _query("branch_id", _ID["schema"], required=True),
            _query("fingerprint", _ID["schema"], "As the prepare carried it.", required=True),
        ],
        "responses": {
            "200": _answer("Commit it, roll it back, or ask again later.", ref("Decision")),
            **_errors("307", "400", "403", "429", "503"),
        },
    }


def _resolve() -> Operation:
    return {
        "operationId": "resolve",
        "summary": "An operator aborts an undecided transaction, or ends a branch by hand",
        "description": "Kept for ever in the transaction's history, with actor and reason."
        + _LEADER,
        "parameters": [_ID],
        "requestBody": {"required": True, "content": _json(ref("Resolve"))},
        "responses": {
            "200": _answer("The transaction after it.", ref("Transaction")),
            **_errors("307", "400", "404", "408", "409", "413", "415", "417", "429", "503"),
        },
    }


def _retry() -> Operation:
    return {
        "operationId": "retry",
        "summary": "An operator has the participants called now, not after the pause",
        "description": "The body is empty or {}." + _LEADER,
        "parameters": [_ID],
        "responses": {
            "200": _answer("The transaction.", ref("Transaction")),
            **_errors("307", "400", "404", "408", "413", "415", "417", "503"),
        },
    }


def _interactive(operation_id: str, summary: str) -> Operation:
    return {
        "operationId": operation_id,
        "summary": f"{summary} (interactive transactions)",
        "description": "This version serves one-shot transactions only: 409 `not_interactive`.",
        "parameters": [_ID],
        "responses": _errors("307", "400", "404", "409", "503"),
    }


def _cluster() -> Operation:
    return {
        **_plain("cluster", "The cluster as this node sees it.", "Cluster"),
        "responses": {"200": _answer("As seen.", ref("Cluster")), **_errors("400")},
    }


def _transfer() -> Operation:
    node = {
        "type": ["string", "null"],
        "description": "Who is to lead; null, or absent: whoever lacks least.",
    }
    body = {"type": "object", "properties": {"node": node}, "additionalProperties": False}
    refused = "No other node has taken over in time; the one that answers leads on."
    return {
        "operationId": "transfer",
        "summary": "Have another node lead",
        "description": "Answered once it leads; if it leads already, nothing happens. What is "
        "under way goes on there." + _LEADER,
        "requestBody": {"required": False, "content": _json(body)},
        "responses": {
            "200": _answer("As the node that led before sees it.", ref("Cluster")),
            **_errors("307", "400", "408", "413", "415", "417", "503"),
            "409": _answer(refused, ref("Error")),
        },
    }


def _readyz() -> Operation:
    operation = _plain("readiness", "Readiness: a checklist.", "Readiness")
    operation["responses"]["503"] = _answer("Something is not ticked.", ref("Readiness"))
    return operation


def _metrics() -> Operation:
    return {
        "operationId": "metrics",
        "summary": "Figures for Prometheus; their names begin with assent_.",
        "responses": {
            "200": {"description": "Text.", "content": {"text/plain": {}}},
        },
    }


def _description() -> Operation:
    return {
        "operationId": "openapi",
        "summary": "This description.",
        "responses": {"200": _answer("OpenAPI 3.1.", {"type": "object"})},
    }


def _plain(operation_id: str, summary: str, schema: str) -> Operation:
    return {
        "operationId": operation_id,
        "summary": summary,
        "responses": {"200": _answer(summary, ref(schema))},
    }


# --- parts of calls -------------------------------------------------------------------------------

_NUMBER = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean", "default": False}
_ID: dict[str, Any] = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": ID_PATTERN},
}
_MEANINGS = {
    "307": "This node does not lead; `Location` is the same call at the leader heard of within an "
    "election timeout. One that hangs since then does not answer: ask another node, with the same "
    "id.",
    "400": "A field or parameter is not as it must be; `details.field` names it.",
    "403": "A browser asked, perhaps for a page of another site.",
    "404": "Not remembered, which does not mean that it aborted.",
    "408": "The body did not arrive in time.",
    "409": "The transaction's content or state does not allow it.",
    "410": "The id is older than what is remembered.",
    "413": "Too large.",
    "415": "The body is called something else than JSON, or its encoding is unknown.",
    "417": "`Expect` asks for something else than 100-continue.",
    "429": "At capacity, nothing was done; later.",
    "503": "Not now: `no_leader`, `outcome_unknown`, `clock_unsettled`, `draining` or "
    "`overloaded`; ask again.",
}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": _json(schema)}


def _errors(*statuses: str) -> dict[str, Any]:
    answers = {status: _answer(_MEANINGS[status], ref("Error")) for status in statuses}
    if "307" in answers:
        answers["307"]["headers"] = {"Location": {"schema": {"type": "string"}}}
    for status in ("429", "503"):
        if status in answers:
            answers[status]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return answers


def _query(
    name: str, schema: dict[str, Any], about: str | None = None, *, required: bool = False
) -> dict[str, Any]:
    parameter = {"name": name, "in": "query", "required": required, "schema": schema}
    return parameter if about is None else {**parameter, "description": about}
