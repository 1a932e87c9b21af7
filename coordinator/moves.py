"""Which command may do what to a transaction, as one table. Pure.

The machine obeys this table, the tests walk every cell of it, and PROTOCOL section 2 is the same
table in words. `Epoch` and `Forget` are not about one transaction and are not in it.
"""

from __future__ import annotations

import enum

from coordinator.commands import (
    Acknowledge,
    Begin,
    Close,
    Command,
    Decide,
    Enlist,
    Refuse,
    Resolve,
)
from coordinator.facts import Outcome, Transaction


class Phase(enum.StrEnum):
    """Where an id stands, as far as commands care."""

    ABSENT = "absent"
    EXPIRED = "expired"  # absent, and the time in the id lies before the horizon
    REFUSED = "refused"
    OPEN = "open"
    UNDECIDED = "undecided"
    COMMITTING = "committing"
    ABORTING = "aborting"
    FINISHED = "finished"


class Move(enum.StrEnum):
    """What the machine does, if the command is not refused."""

    RECORD = "record the transaction"
    COMPARE = "return it if the fingerprint is the same, else refuse: conflict"
    ADD_BRANCH = "add the branch, or return it if it is there already"
    CLOSE = "enlisting ends"
    DECIDE = "fix the outcome that the votes give"
    RECORD_REFUSAL = "record an abort without branches, finished"
    ACKNOWLEDGE = "add the acknowledgements; finished when none is outstanding"
    RESOLVE_WHOLE = "abort by hand"
    RESOLVE_BRANCH = "mark the branch as ended by hand"
    UNCHANGED = "return what stands"


class Refusal(enum.Enum):
    """A command that was applied and changed nothing, because the state does not allow it."""

    STALE_EPOCH = "the epoch is over"
    UNKNOWN = "no such transaction"
    EXPIRED = "the id's time lies before what is remembered"
    CONFLICT = "the id stands for other content"
    CLOSED = "the end of the transaction has begun"
    UNDECIDED = "nothing is decided yet"
    NO_SUCH_BRANCH = "the transaction has no such branch"
    BRANCH_FINISHED = "the branch has finished already"


# Looked up once: finding a member of an enum costs 90 ns in Python 3.11.
_ABSENT, _EXPIRED, _REFUSED = Phase.ABSENT, Phase.EXPIRED, Phase.REFUSED
_OPEN, _UNDECIDED, _FINISHED = Phase.OPEN, Phase.UNDECIDED, Phase.FINISHED
_COMMITTING, _ABORTING = Phase.COMMITTING, Phase.ABORTING
_COMMIT = Outcome.COMMIT

MOVES: dict[type[Command], dict[Phase, Move | Refusal]] = {
    Begin: {
        _ABSENT: Move.RECORD,
        _EXPIRED: Refusal.EXPIRED,
        _REFUSED: Move.UNCHANGED,
        _OPEN: Move.COMPARE,
        _UNDECIDED: Move.COMPARE,
        _COMMITTING: Move.COMPARE,
        _ABORTING: Move.COMPARE,
        _FINISHED: Move.COMPARE,
    },
    Enlist: {
        _ABSENT: Refusal.UNKNOWN,
        _EXPIRED: Refusal.UNKNOWN,
        _REFUSED: Refusal.CLOSED,
        _OPEN: Move.ADD_BRANCH,
        _UNDECIDED: Refusal.CLOSED,
        _COMMITTING: Refusal.CLOSED,
        _ABORTING: Refusal.CLOSED,
        _FINISHED: Refusal.CLOSED,
    },
    Close: {
        _ABSENT: Refusal.UNKNOWN,
        _EXPIRED: Refusal.UNKNOWN,
        _REFUSED: Move.UNCHANGED,
        _OPEN: Move.CLOSE,
        _UNDECIDED: Move.UNCHANGED,
        _COMMITTING: Move.UNCHANGED,
        _ABORTING: Move.UNCHANGED,
        _FINISHED: Move.UNCHANGED,
    },
    Decide: {
        _ABSENT: Refusal.UNKNOWN,
        _EXPIRED: Refusal.UNKNOWN,
        _REFUSED: Move.UNCHANGED,
        _OPEN: Move.DECIDE,
        _UNDECIDED: Move.DECIDE,
        _COMMITTING: Move.UNCHANGED,
        _ABORTING: Move.UNCHANGED,
        _FINISHED: Move.UNCHANGED,
    },
    Refuse: {
        _ABSENT: Move.RECORD_REFUSAL,
        _EXPIRED: Refusal.EXPIRED,
        _REFUSED: Move.UNCHANGED,
        _OPEN: Move.UNCHANGED,
        _UNDECIDED: Move.UNCHANGED,
        _COMMITTING: Move.UNCHANGED,
        _ABORTING: Move.UNCHANGED,
        _FINISHED: Move.UNCHANGED,
    },
    Acknowledge: {
        _ABSENT: Refusal.UNKNOWN,
        _EXPIRED: Refusal.UNKNOWN,
        _REFUSED: Move.UNCHANGED,
        _OPEN: Refusal.UNDECIDED,
        _UNDECIDED: Refusal.UNDECIDED,
        _COMMITTING: Move.ACKNOWLEDGE,
        _ABORTING: Move.ACKNOWLEDGE,
        _FINISHED: Move.UNCHANGED,
    },
    Resolve: {
        _ABSENT: Refusal.UNKNOWN,
        _EXPIRED: Refusal.UNKNOWN,
        _REFUSED: Move.RESOLVE_BRANCH,
        _OPEN: Move.RESOLVE_WHOLE,
        _UNDECIDED: Move.RESOLVE_WHOLE,
        _COMMITTING: Move.RESOLVE_BRANCH,
        _ABORTING: Move.RESOLVE_BRANCH,
        _FINISHED: Move.RESOLVE_BRANCH,
    },
}


def phase_of(transaction: Transaction | None, *, expired: bool) -> Phase:
    """The phase of an id. `expired`: the id carries a time, and it lies before the horizon."""
    if transaction is None:
        return _EXPIRED if expired else _ABSENT
    if transaction.outcome is None:
        return _UNDECIDED if transaction.closed else _OPEN
    if transaction.finished_ms is None:
        return _COMMITTING if transaction.outcome is _COMMIT else _ABORTING
    return _REFUSED if transaction.is_refusal else _FINISHED
