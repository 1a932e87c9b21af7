"""What a client may ask over HTTP, out of decoded JSON, and what it is answered. Pure.

Reading: an unknown field is refused, for a misspelt `timeout_ms` that is ignored surprises later.
Every refusal is an ApiError that names the field by its path. What is read can be stored.

Showing: `show` makes the answer for one transaction, the same for every call that answers with one.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

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
    Resolution,
    State,
    Transaction,
    branch_state,
    participant_of,
    state_of,
)
from coordinator.packed import SHORT_BYTES
from coordinator.plan import Awaited, Plan, Planned, Wait
from coordinator.settings import Limits, Timings
from participants.contract import BadMessage, Vote, encode_json, fingerprint, rfc3339

if TYPE_CHECKING:  # for its type alone: this file is pure, that one is not
    from coordinator.live import Progress

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
_quoted = json.encoder.encode_basestring_ascii
_SAID = (Vote.YES, Vote.NO, Vote.READ_ONLY)
_ONE_SHOT = Mode.ONE_SHOT.value  # looked up once


# --- reading a transaction ------------------------------------------------------------------------


class Submission(NamedTuple):
    """One transaction as asked for. `named`: the client gave the id."""

    plan: Plan
    wait: Wait
    named: bool

    @property
    def awaited(self) -> Awaited:
        plan, wait, named = self
        return Awaited(plan.id, plan.fingerprint, wait, named)


def read_submission(
    value: Any,
    *,
    limits: Limits,
    timings: Timings,
    make_id: Callable[[], str],
    traceparent: str | None = None,
    address: str | None = None,
) -> Submission:
    """A one-shot transaction out of decoded JSON (`Submission` of /openapi.json); raises ApiError.

    `address`: as `Plan` has it.
    """
    if isinstance(value, dict) and "transactions" in value:
        raise bad_field("transactions", "must be the only field, and written without escapes")
    fields = object_of(value, "body", _SUBMISSION_FIELDS)
    _read_mode(fields)
    transaction_id = _read_new_id(fields)
    branches, payloads = _read_participants(fields, limits)
    metadata = _read_metadata(fields, limits)
    size = len(metadata) + sum(map(len, payloads))
    if size > limits.body_bytes:
        raise too_large("The transaction, as JSON in ASCII,", size, limits.body_bytes)
    timeout_ms = whole_number(
        fields, "timeout_ms", timings.default_timeout_ms, timings.min_timeout_ms,
        timings.max_timeout_ms,
    )  # fmt: skip
    wait = one_of(fields, "wait", Wait, Wait.DECISION)
    digest = fingerprint(
        _ONE_SHOT,
        [
            (name, prepare_url, commit_url, rollback_url, payload)
            for (name, _, prepare_url, commit_url, rollback_url), payload in zip(
                branches, payloads, strict=True
            )
        ],
    )
    plan = Plan(
        transaction_id or make_id(),
        digest,
        Mode.ONE_SHOT,
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


def interactive_not_supported() -> ApiError:
    return ApiError(
        400,
        "interactive_not_supported",
        "mode: interactive transactions are not served by this version; leave the field out "
        "and name all participants in this request.",
        field="mode",
    )


def _read_mode(fields: Mapping[str, Any]) -> None:
    if one_of(fields, "mode", Mode, Mode.ONE_SHOT) is Mode.INTERACTIVE:
        raise interactive_not_supported()


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


def _read_payload(value: Mapping[str, Any], position: int) -> bytes:
    try:
        encoded = encode_json(value.get("payload"))
    except BadMessage as error:
        raise bad_field(f"participants[{position}].payload", str(error)) from None
    if is_deeper(encoded, MAX_PAYLOAD_DEPTH):
        what = f"is nested more than {MAX_PAYLOAD_DEPTH} deep"
        raise bad_field(f"participants[{position}].payload", what)
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
    prefix = f"{path}."
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


# --- showing a transaction ------------------------------------------------------------------------


def show(transaction: Transaction, progress: tuple[Progress, ...] | None = None) -> str:
    """The JSON of a transaction in every answer. `progress`: what the present leader saw of it.

    Written piece by piece: made as a dict and then encoded, it costs three times as much.
    """
    state = state_of(transaction)
    outcome = None if transaction.outcome is None else _OUTCOMES[transaction.outcome]
    if state is State.REFUSED:
        outcome = None  # nobody knows
    expires_ms = None if transaction.is_refusal else transaction.deadline_ms
    if transaction.outcome is None or len(transaction.branches.packed) > SHORT_BYTES:
        branches = _show_branches(transaction, progress)
    else:
        branches = _remembered_branches(_standing(transaction), progress)
    history = ",".join([_show_resolution(resolution) for resolution in transaction.resolutions])
    return (
        f'{{"id":"{transaction.id}","state":"{state}","outcome":{_text(outcome)},'
        f'"reason":{_text(transaction.reason)},"mode":"{transaction.mode}",'
        f'"created_at":{_time(transaction.created_ms)},"expires_at":{_time(expires_ms)},'
        f'"decided_at":{_time(transaction.decided_ms)},'
        f'"finished_at":{_time(transaction.finished_ms)},'
        f'"branches":[{branches}],"history":[{history}],'
        f'"metadata":{transaction.metadata.decode("ascii")}}}'
    )


_OUTCOMES = {Outcome.COMMIT: "committed", Outcome.ABORT: "aborted"}


def _standing(transaction: Transaction) -> Transaction:
    """What the text of a decided transaction's branches is made of, without what is its alone: the
    same for many."""
    return Transaction(
        "",
        0,
        transaction.fingerprint and "-",
        transaction.mode,
        transaction.branches,
        (),
        b"",
        0,
        0,
        transaction.closed,
        transaction.votes,
        transaction.vote_reasons,
        transaction.outcome,
        None,
        None,
        transaction.acknowledged,
        transaction.resolutions,
    )


def _show_branches(transaction: Transaction, progress: tuple[Progress, ...] | None) -> str:
    branches = [
        _show_branch(transaction, position, progress[position] if progress else None)
        for position in range(len(transaction.branches))
    ]
    return ",".join(branches)


_remembered_branches = functools.lru_cache(maxsize=512)(_show_branches)
"""Nearly all transactions go to the same few participants and end alike: a third of the time."""


def _show_branch(transaction: Transaction, position: int, progress: Progress | None) -> str:
    heard, reason, attempts, last_error = progress or (None, None, 0, None)
    vote = heard
    if transaction.outcome is not None:
        vote, reason = transaction.votes[position], transaction.vote_reasons[position]
    said = vote if vote in _SAID else None
    state = branch_state(transaction, position, heard)
    return (
        f'{{{_show_place(*transaction.branches[position][:6])},"vote":{_text(said)},'
        f'"reason":{_text(reason)},"state":"{state}","attempts":{attempts},'
        f'"last_error":{_text(last_error)}}}'
    )


@functools.lru_cache(maxsize=1024)
def _show_place(
    branch_id: str, name: str, url: str | None, prepare: str, commit: str, rollback: str
) -> str:
    """What a branch's record says of its participant. Remembered: a cluster has few of them."""
    place = f'"branch_id":{_text(branch_id)},"name":{_text(name)},"url":{_text(url)}'
    if url is not None:
        return place
    calls = f'"prepare":{_text(prepare)},"commit":{_text(commit)},"rollback":{_text(rollback)}'
    return f"{place},{calls}"


def _show_resolution(resolution: Resolution) -> str:
    return (
        f'{{"branch_id":{_text(resolution.branch_id)},"effect":{_text(resolution.effect)},'
        f'"actor":{_text(resolution.actor)},"reason":{_text(resolution.reason)},'
        f'"at":{_time(resolution.at_ms)}}}'
    )


def _text(text: str | None) -> str:
    return "null" if text is None else _quoted(text)


def _time(unix_ms: int | None) -> str:
    return "null" if unix_ms is None else f'"{rfc3339(unix_ms)}"'
