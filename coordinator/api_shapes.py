"""What a client may ask over HTTP, out of decoded JSON. Pure.

An unknown field is refused, for a misspelt `timeout_ms` that is ignored surprises later. Every
refusal is an ApiError that names the field by its path. What is read can be stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from coordinator import ids
from coordinator.api_errors import ApiError, bad_field, clock_unsettled, too_large
from coordinator.api_fields import (
    MAX_URL_CHARS,
    Known,
    is_deeper,
    listed,
    object_of,
    one_of,
    place_of,
    text_field,
    url_field,
    whole_number,
)
from coordinator.facts import (
    Effect,
    Mode,
    Outcome,
    participant_of,
)
from coordinator.plan import Awaited, Plan, Planned, Wait
from coordinator.settings import Limits, Timings
from participants.contract import BadMessage, encode_json, fingerprint

MAX_AHEAD_MS = 300_000
"""How far ahead an id's time may be: or it could not be forgotten in time (PROTOCOL, 9)."""

MAX_NAME_CHARS = 200
MAX_ACTOR_CHARS = 200
MAX_METADATA_DEPTH = 32
"""Every answer decodes and encodes it again; what only just could be read could not be shown."""

MAX_PAYLOAD_DEPTH = 100
"""A participant decodes it in one batch with others: where its decoder refuses it, all are refused
(Python's does at a depth of some 950)."""

MAX_RESOLVE_REASON_CHARS = 1_000
DEFAULT_PAGE = 100

_SUBMISSION_FIELDS: Known = dict.fromkeys(
    ("id", "mode", "participants", "timeout_ms", "wait", "metadata")
)
_PARTICIPANT_FIELDS: Known = dict.fromkeys(
    ("name", "url", "prepare", "commit", "rollback", "payload")
)
_USUAL_FIELDS: Known = dict.fromkeys(("name", "url", "payload"))
_RESOLVE_FIELDS: Known = dict.fromkeys(("outcome", "branch_id", "effect", "actor", "reason"))
_EXPLICIT = ("prepare", "commit", "rollback")
_ONE_SHOT, _ONE_SHOT_WORD = Mode.ONE_SHOT, Mode.ONE_SHOT.value  # looked up once


# --- reading a transaction ------------------------------------------------------------------------


class Submission(NamedTuple):
    """One transaction as asked for. `named`: the client gave the id."""

    plan: Plan
    wait: Wait
    named: bool

    @property
    def awaited(self) -> Awaited:
        plan, wait, named = self
        return Awaited(plan.id, plan.fingerprint, plan.mode, wait, named)


def read_submission(
    value: Any,
    *,
    limits: Limits,
    timings: Timings,
    make_id: Callable[[], str],
    traceparent: str | None = None,
    address: str | None = None,
) -> Submission:
    """A transaction out of decoded JSON (`Submission` of /openapi.json); raises ApiError.

    `address`: as `Plan` has it.
    """
    if isinstance(value, dict) and "transactions" in value:
        raise bad_field("transactions", "must be the only field, and written without escapes")
    fields = object_of(value, "body", _SUBMISSION_FIELDS)
    mode = one_of(fields, "mode", Mode, _ONE_SHOT)
    branches: tuple[Planned, ...]
    payloads: tuple[bytes, ...]
    transaction_id = _read_new_id(fields)
    id_ = transaction_id or make_id()
    if mode is _ONE_SHOT:
        branches, payloads = _read_participants(fields, limits)
        digest = _digest(branches, payloads)
        default_ms, default_wait = timings.default_timeout_ms, Wait.DECISION
    else:
        _refuse_one_shot_fields(fields)
        branches, payloads = (), ()
        digest = fingerprint(mode.value, (), id_)
        default_ms, default_wait = timings.interactive_timeout_ms, Wait.NONE
    metadata = _read_metadata(fields, limits)
    size = len(metadata) + sum(map(len, payloads))
    if size > limits.body_bytes:
        raise too_large("The transaction, as JSON in ASCII,", size, limits.body_bytes)
    timeout_ms = whole_number(
        fields, "timeout_ms", default_ms, timings.min_timeout_ms, timings.max_timeout_ms
    )
    wait = one_of(fields, "wait", Wait, default_wait)
    plan = Plan(
        id_,
        digest,
        mode,
        branches,
        payloads,
        timeout_ms,
        metadata,
        traceparent,
        address,
    )
    return Submission(plan, wait, transaction_id is not None)


def require_not_ahead(
    transaction_id: str,
    *,
    now_ms: Callable[[], int],
    is_known: Callable[[str], bool],
    is_settled: Callable[[], bool],
) -> None:
    """Refuses an id whose time lies too far ahead for it, or its refusal, to be forgotten in time.

    Not a known one: of what has begun a refusal would be no answer, and this clock may be behind.
    And for good only by a clock that the other nodes' agree with: else it is not the client's that
    is wrong, and what is asked again comes to a leader with a better one.
    """
    time_ms = ids.time_of(transaction_id)
    if time_ms is None or time_ms <= now_ms() + MAX_AHEAD_MS or is_known(transaction_id):
        return
    if not is_settled():
        raise clock_unsettled()
    raise bad_field("id", "its time lies more than 5 minutes ahead; set the client's clock")


def _digest(branches: tuple[Planned, ...], payloads: tuple[bytes, ...]) -> str:
    asked = zip(branches, payloads, strict=True)
    return fingerprint(
        _ONE_SHOT_WORD,
        [
            (name, prepare_url, commit_url, rollback_url, payload)
            for (name, _, prepare_url, commit_url, rollback_url), payload in asked
        ],
    )


def _refuse_one_shot_fields(fields: Mapping[str, Any]) -> None:
    for name, instead in (
        ("participants", "enlist them one by one"),
        ("wait", "say so at its end"),
    ):
        if name in fields:
            raise bad_field(name, f"is not for an interactive transaction; {instead}")


def _read_new_id(fields: Mapping[str, Any]) -> str | None:
    if "id" not in fields:
        return None
    given = fields["id"]
    if not ids.is_valid_id(given):
        raise bad_field("id", ids.ID_RULE)
    return given


def _read_participants(
    fields: Mapping[str, Any], limits: Limits
) -> tuple[tuple[Planned, ...], tuple[bytes, ...]]:
    """Where the branches are wanted, and what each is asked."""
    values = fields.get("participants")
    if not isinstance(values, list) or not values:
        raise bad_field("participants", "must be a list of at least one participant")
    if len(values) > limits.branches:
        raise bad_field(
            "participants", f"has {len(values)} elements, at most {limits.branches} are taken"
        )
    branches = tuple(
        [_usual_place(v) or _any_place(v, f"participants[{i}]") for i, v in enumerate(values)]
    )
    seen: dict[str, int] = {}
    for position, branch in enumerate(branches):
        first = seen.setdefault(branch.name, position)
        if first != position:
            raise bad_field(
                f"participants[{position}].name",
                f"is {branch.name!r}, like that of participants[{first}]; give each one a name",
            )
    return branches, tuple([_read_payload(v, i) for i, v in enumerate(values)])


def read_participant(value: Any) -> tuple[Planned, bytes]:
    """One that is enlisted: where, and what it is asked; raises ApiError."""
    return _usual_place(value) or _any_place(value, "body"), _read_payload(value, None)


def _read_payload(value: Mapping[str, Any], position: int | None) -> bytes:
    try:
        encoded = encode_json(value.get("payload"))
        if is_deeper(encoded, MAX_PAYLOAD_DEPTH):
            raise BadMessage(f"is nested more than {MAX_PAYLOAD_DEPTH} deep")
    except BadMessage as error:
        where = "" if position is None else f"participants[{position}]."
        raise bad_field(f"{where}payload", str(error)) from None
    return encoded


def _usual_place(value: Any) -> Planned | None:
    """What `_any_place` would say of a participant with name and `url`, if that is in order.

    Remembered, for transactions name the same few again and again: a fifth of the time.
    """
    if not isinstance(value, dict) or not value.keys() <= _USUAL_FIELDS.keys():
        return None
    name, url = value.get("name"), value.get("url")
    if not isinstance(url, str) or len(url) > MAX_URL_CHARS:
        return None
    if isinstance(name, str):
        return _remembered_place(name, url) if len(name) <= MAX_NAME_CHARS else None
    return None if "name" in value else _remembered_place(None, url)


@functools.lru_cache(maxsize=1024)
def _remembered_place(name: str | None, url: str) -> Planned | None:
    fields = {"url": url} if name is None else {"name": name, "url": url}
    try:
        return _any_place(fields, "")
    except ApiError:
        return None


def _any_place(value: Any, path: str) -> Planned:
    fields = object_of(value, path, _PARTICIPANT_FIELDS)
    prefix = "" if path == "body" else f"{path}."
    explicit = [name for name in _EXPLICIT if name in fields]
    url: str | None = None
    if "url" in fields:
        if explicit:
            raise bad_field(prefix + explicit[0], "cannot be given together with url")
        url = url_field(fields, "url", prefix).rstrip("/")
        if "?" in url:
            raise bad_field(prefix + "url", "must have no query; give prepare, commit and rollback")
        prepare_url, commit_url, rollback_url = (f"{url}/{name}" for name in _EXPLICIT)
    elif explicit:
        prepare_url, commit_url, rollback_url = (url_field(fields, n, prefix) for n in _EXPLICIT)
    else:
        raise bad_field(prefix + "url", "is missing (or else prepare, commit and rollback)")
    if "name" in fields:
        name = text_field(fields, "name", MAX_NAME_CHARS, prefix)
    else:
        name = place_of(participant_of(url, prepare_url))
    return Planned(name, url, prepare_url, commit_url, rollback_url)


def _read_metadata(fields: Mapping[str, Any], limits: Limits) -> bytes:
    if "metadata" not in fields:
        return b"{}"
    value = fields["metadata"]
    if not isinstance(value, dict):
        raise bad_field("metadata", "must be an object")
    try:
        encoded = encode_json(value)
    except BadMessage as error:
        raise bad_field("metadata", str(error)) from None
    if is_deeper(encoded, MAX_METADATA_DEPTH):
        raise bad_field("metadata", f"is nested more than {MAX_METADATA_DEPTH} deep")
    if len(encoded) > limits.metadata_bytes:
        raise bad_field(
            "metadata", f"has {len(encoded)} bytes, at most {limits.metadata_bytes} are taken"
        )
    return encoded


# --- reading what an operator asks ----------------------------------------------------------------


class ResolveRequest(NamedTuple):
    """`outcome` for the whole transaction, or `branch_id` and `effect` for one branch of it."""

    outcome: Outcome | None
    branch_id: str | None
    effect: Effect | None
    actor: str
    reason: str


def read_resolve(value: Any) -> ResolveRequest:
    """The body of a resolve out of decoded JSON; raises ApiError."""
    fields = object_of(value, "body", _RESOLVE_FIELDS)
    actor = text_field(fields, "actor", MAX_ACTOR_CHARS)
    reason = text_field(fields, "reason", MAX_RESOLVE_REASON_CHARS)
    if "outcome" in fields:
        for name in ("branch_id", "effect"):
            if name in fields:
                raise bad_field(name, "cannot be given together with outcome")
        outcome = one_of(fields, "outcome", Outcome, Outcome.ABORT)
        return ResolveRequest(outcome, None, None, actor, reason)
    if "branch_id" not in fields:
        raise bad_field("outcome", 'is missing: "abort", or else branch_id and effect')
    branch_id = fields["branch_id"]
    if not ids.is_valid_id(branch_id):
        raise bad_field("branch_id", ids.ID_RULE)
    if "effect" not in fields:
        raise bad_field("effect", f"is missing: one of {listed(Effect)}")
    return ResolveRequest(
        None, branch_id, one_of(fields, "effect", Effect, Effect.UNKNOWN), actor, reason
    )
