"""What is known of a transaction: facts only. Pure.

The replicated machine stores these tuples and nothing else; states are derived from them here, so
the same truth is never kept twice. Facts are named tuples, not dataclasses: a machine makes several
per transaction, and a tuple is made in a fifth of the time and packed as it is.

    Transaction ──has──▶ Branch (1..256)      a vote each, once decided
                └─has──▶ Resolution (0..)     what an operator did by hand, kept for ever
"""

from __future__ import annotations

import enum
import functools
from typing import NamedTuple

import msgpack

from coordinator.ids import time_of
from participants.contract import Operation, Vote


class Mode(enum.StrEnum):
    ONE_SHOT = "one_shot"
    INTERACTIVE = "interactive"


class Outcome(enum.StrEnum):
    COMMIT = "commit"
    ABORT = "abort"


class Effect(enum.StrEnum):
    """What an operator says became of a branch at its participant."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    UNKNOWN = "unknown"


class State(enum.StrEnum):
    """A transaction's derived state. REFUSED: aborted before anyone began it, under an id without a
    time: it may have committed longer ago than is remembered (PROTOCOL, section 5).
    """

    ACTIVE = "active"
    PREPARING = "preparing"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ABORTING = "aborting"
    ABORTED = "aborted"
    REFUSED = "refused"


class BranchState(enum.StrEnum):
    ACTIVE = "active"
    PREPARING = "preparing"
    PREPARED = "prepared"
    COMMITTING = "committing"
    COMMITTED = "committed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    READ_ONLY = "read_only"
    NOT_PREPARED = "not_prepared"
    RESOLVED = "resolved"


# Looked up once: finding a member of an enum costs 90 ns in Python 3.11.
_PREPARE, _COMMIT = Operation.PREPARE, Operation.COMMIT


def participant_of(url: str | None, prepare_url: str) -> str:
    """The URL by which calls, limits and backlog of a branch there are counted."""
    return url or prepare_url


class Branch(NamedTuple):
    """A transaction's part at one participant.

    `repeatable`: when it was begun, the participant was known to be built on the SDK: its prepare
    may be sent again, and it inquires when it is in doubt. Otherwise it is a plain one.
    """

    branch_id: str
    name: str
    url: str | None
    prepare_url: str
    commit_url: str
    rollback_url: str
    repeatable: bool

    def url_of(self, operation: Operation) -> str:
        if operation is _COMMIT:
            return self.commit_url
        return self.prepare_url if operation is _PREPARE else self.rollback_url


def place_of(branch: Branch) -> tuple[str | None, ...]:
    """Where it is, whatever its number: name and URLs."""
    return branch[1:6]


class Branches(tuple[Branch, ...]):
    """The branches of a transaction, in their order, and what is made of all of them.

    Nearly all transactions are at the same few services, and their branches are one object
    (`plan.recorded`, `packed.unpack_branches`): each of these is made once for many.
    """

    @functools.cached_property
    def packed(self) -> bytes:
        """As a command and a finished transaction hold them."""
        packed: bytes = msgpack.packb(self)
        return packed

    @functools.cached_property
    def participants(self) -> tuple[str, ...]:
        """See `participant_of`; in the order of the branches."""
        return tuple([participant_of(branch.url, branch.prepare_url) for branch in self])

    @functools.cached_property
    def names(self) -> str:
        """Of all of them, for people."""
        return ", ".join([branch.name for branch in self])


class Resolution(NamedTuple):
    """What an operator did by hand. `branch_id` and `effect` are None for a forced abort of the
    whole.
    """

    branch_id: str | None
    effect: Effect | None
    actor: str
    reason: str
    at_ms: int


class Transaction(NamedTuple):
    """Everything recorded of one transaction. Times are Unix milliseconds, as their proposers read
    them.

    `payloads` are JSON, one for each branch; they are empty once the outcome is decided, for phase
    two names only ids. `acknowledged` is a bit per branch (bit 0 is the first). `fingerprint` is
    empty for a refused id. `votes` and `vote_reasons` have an element per branch once decided, and
    are empty before.
    """

    id: str
    sequence: int
    fingerprint: str
    mode: Mode
    branches: Branches
    payloads: tuple[bytes, ...]
    metadata: bytes
    created_ms: int
    deadline_ms: int
    closed: bool
    votes: tuple[Vote, ...] = ()
    vote_reasons: tuple[str | None, ...] = ()
    outcome: Outcome | None = None
    reason: str | None = None
    decided_ms: int | None = None
    acknowledged: int = 0
    resolutions: tuple[Resolution, ...] = ()
    finished_ms: int | None = None

    @property
    def is_refusal(self) -> bool:
        """Whether the id was refused (PROTOCOL, section 5) before anyone began it."""
        return not self.fingerprint


_WILLING = frozenset((Vote.YES, Vote.READ_ONLY))


def everyone_can_commit(votes: tuple[Vote, ...], branch_count: int) -> bool:
    """I3: commit only if every branch of the record voted YES or READ_ONLY."""
    return len(votes) == branch_count and _WILLING.issuperset(votes)


@functools.lru_cache(maxsize=1024)
def _voted_for_phase_two(votes: tuple[Vote, ...], mode: Mode) -> int:
    """The branches that must hear the outcome, a bit each.

    Remembered: asked several times a transaction, and nearly all transactions vote alike.
    """
    needed = {Vote.YES, Vote.UNKNOWN}
    if mode is Mode.INTERACTIVE:  # a branch that nobody asked, or that refused, has done work
        needed |= {Vote.NO, Vote.UNSENT}
    return sum(1 << position for position, vote in enumerate(votes) if vote in needed)


def outstanding(transaction: Transaction) -> int:
    """The branches that must still acknowledge, a bit each."""
    if transaction.outcome is None:
        return 0
    needed = _voted_for_phase_two(transaction.votes, transaction.mode) & ~transaction.acknowledged
    return needed & ~_ended_by_hand(transaction) if transaction.resolutions else needed


def is_ended_by_hand(transaction: Transaction, branch_id: str) -> bool:
    return resolution_of(transaction, branch_id) is not None


def resolution_of(transaction: Transaction, branch_id: str | None) -> Resolution | None:
    """What an operator did by hand to the branch, or (None) to the whole; None if nobody did."""
    for resolution in transaction.resolutions:
        if resolution.branch_id == branch_id:
            return resolution
    return None


def _ended_by_hand(transaction: Transaction) -> int:
    if not transaction.resolutions:
        return 0
    by_hand = {r.branch_id for r in transaction.resolutions}
    return sum(1 << i for i, b in enumerate(transaction.branches) if b.branch_id in by_hand)


def state_of(transaction: Transaction) -> State:
    match transaction.outcome:
        case None:
            return State.PREPARING if transaction.closed else State.ACTIVE
        case Outcome.COMMIT:
            return State.COMMITTING if transaction.finished_ms is None else State.COMMITTED
        case Outcome.ABORT if transaction.is_refusal and time_of(transaction.id) is None:
            return State.REFUSED
        case Outcome.ABORT:
            return State.ABORTING if transaction.finished_ms is None else State.ABORTED


def branch_state(transaction: Transaction, position: int, heard: Vote | None = None) -> BranchState:
    """The state of one branch. `heard` is the vote that the present leader has, while undecided."""
    if _ended_by_hand(transaction) >> position & 1:
        return BranchState.RESOLVED
    if transaction.outcome is None:
        return _undecided_state(transaction, heard)
    vote = transaction.votes[position]
    if vote is Vote.READ_ONLY:
        return BranchState.READ_ONLY
    done = bool(transaction.acknowledged >> position & 1)
    if transaction.outcome is Outcome.COMMIT:
        return BranchState.COMMITTED if done else BranchState.COMMITTING
    if not _voted_for_phase_two(transaction.votes, transaction.mode) >> position & 1:
        return BranchState.NOT_PREPARED
    return BranchState.ROLLED_BACK if done else BranchState.ROLLING_BACK


def _undecided_state(transaction: Transaction, heard: Vote | None) -> BranchState:
    match heard:
        case Vote.YES:
            return BranchState.PREPARED
        case Vote.READ_ONLY:
            return BranchState.READ_ONLY
        case Vote.NO | Vote.UNSENT:
            return BranchState.NOT_PREPARED
        case _:
            return BranchState.PREPARING if transaction.closed else BranchState.ACTIVE
