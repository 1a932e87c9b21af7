"""What an operator may set of the coordinator: limits, times, retention; with their reasons.

The machine reads none of these: what it needs travels in commands, or nodes that are set
differently would come to differ (PROTOCOL, section 2). Whoever begins, calls, refuses or forgets
reads them.

A value out of its range raises ValueError whose text begins with the field's name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

_KIB = 1024
_MIB = 1024 * _KIB
_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Limits:
    """What is refused, and from which size on. A limit that is met is an answer (400, 413, 429),
    never a queue that grows."""

    branches: int = 256
    """Of one transaction. Far more than any peer's users have; the record stays within one log
    entry."""

    body_bytes: int = 1 * _MIB
    """Of a request. Every byte of a payload is replicated to every node and synced: not for
    files."""

    batch_body_bytes: int = 16 * _MIB
    """Of a request with many transactions: 1,000 of them at 16 KiB each."""

    bodies_bytes: int = 256 * _MIB
    """Of bodies that are being read, and of batches until their answer, all connections together:
    16 of the largest at once, or a thousand clients that stop in the middle of theirs."""

    batch_size: int = 1_000
    """Transactions in one request. Beyond some hundreds there is no more to gain by sharing a
    request."""

    metadata_bytes: int = 4 * _KIB
    """Of a transaction's metadata as JSON: labels for people, kept as long as the transaction
    is."""

    answer_bytes: int = 64 * _KIB
    """Read of a participant's answer. A vote is some 100 bytes; more than this is an answer gone
    wrong."""

    page_size: int = 1_000
    """Most transactions in one page of a list, so that a listing cannot stall the event loop."""

    unfinished: int = 100_000
    """Transactions under way at one time. Some half a minute at full speed: above it only latency
    grows."""

    unfinished_per_participant: int = 20_000
    """A fifth of the above: a participant that is down for an hour must not use up everybody's
    room."""

    undecided_bytes: int = 1024 * _MIB
    """Of the payloads of undecided transactions, which every node holds in memory: where one has
    too little of it, all have. 100,000 usual ones are a twentieth of this. One participant may have
    a fifth, for the reason above."""

    calls_per_participant: int = 256
    """Requests under way to one participant. Most HTTP servers serve fewer at once; the rest would
    wait there, where nobody sees it, instead of here."""

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.batch_body_bytes < self.body_bytes:
            raise ValueError("batch_body_bytes: must not be less than body_bytes")
        if self.undecided_bytes < self.body_bytes:
            raise ValueError("undecided_bytes: must not be less than body_bytes")
        if self.bodies_bytes < 2 * self.batch_body_bytes:
            raise ValueError("bodies_bytes: must be at least twice batch_body_bytes")


@dataclass(frozen=True, slots=True)
class Timings:
    """How long is waited for what, in milliseconds."""

    call_timeout_ms: int = 5_000
    """One try of commit or rollback. Both are idempotent: giving up on a try costs a repeat, no
    more."""

    retry_initial_ms: int = 50
    """Before the second try of commit or rollback: a lost connection is mended at once, not in a
    second."""

    retry_max_ms: int = 2_000
    """The doubled pause grows to this, with full jitter: a participant that comes back is in use
    within two seconds, and one that stays down costs half a call a second for each branch."""

    working_initial_ms: int = 100
    """Before asking again a participant that answered "still working" without saying when;
    doubled."""

    grace_ms: int = 5_000
    """How far a participant's clock may differ. A rollback of a plain branch whose prepare may
    still be under way counts only when it was sent this long after `expires_at` (PROTOCOL, section
    6)."""

    default_timeout_ms: int = 10_000
    """Of a one-shot transaction that names none: time for a slow service, and locks held no
    longer."""

    interactive_timeout_ms: int = 60_000
    """Of an interactive one: its client works in between."""

    min_timeout_ms: int = 100
    """The least that a client may ask for: below, a busy network alone would abort."""

    max_timeout_ms: int = _HOUR_MS
    """The most: a transaction holds its participants' locks for so long."""

    def __post_init__(self) -> None:
        _all_positive(self)
        if self.retry_max_ms < self.retry_initial_ms:
            raise ValueError("retry_max_ms: must not be less than retry_initial_ms")
        for name in ("default_timeout_ms", "interactive_timeout_ms"):
            if not self.min_timeout_ms <= getattr(self, name) <= self.max_timeout_ms:
                raise ValueError(f"{name}: must lie between min_timeout_ms and max_timeout_ms")


@dataclass(frozen=True, slots=True)
class Retention:
    """For how long finished transactions are remembered."""

    keep_ms: int = 24 * _HOUR_MS
    """A client that asks again within a day gets the same answer; after it the id is refused."""

    max_remembered: int = 1_000_000
    """Memory is finite: at 15,000 transactions a second a day would be 1.3 billion of them."""

    remembered_bytes: int = 1024 * _MIB
    """So is that of long names and metadata. A million usual transactions are a fifth of it."""

    steady_ms: int = 600_000
    """So long the leader's clock must have run without being set before it makes anything forgotten
    for its age. A clock that all nodes of a host share may be wrong for a moment, after a pause of
    the host for example; what is forgotten by then never comes back."""

    def __post_init__(self) -> None:
        _all_positive(self)


def _all_positive(settings: Limits | Timings | Retention) -> None:
    for field in fields(settings):
        if getattr(settings, field.name) < 1:
            raise ValueError(f"{field.name}: must be at least 1")
