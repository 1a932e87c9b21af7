"""One branch at a participant, as a table: what arrives, what is there, what follows. Pure.

Rules:
- Every cell of (Row, State) is written down in TABLE, which the SDK, the tests and the
  documentation use (PROTOCOL, section 4). A move that cannot be is refused, and nothing has
  changed.
- A prepared branch never ends because of time: there is no message that says "time has passed".
  Lateness only bars a prepare of a branch that is not there.
- NO is not remembered. Nobody was told anything on the strength of it.
- COMMITTED and ROLLED_BACK are tombstones: nothing leads out of them.

How it works: `cell_of(branch, message)` is the cell of the message's row. Where it asks the
resource for its vote (PREPARE, CHECK), `cell.voted(vote)` is the cell that follows. The caller
carries out the action, keeps the branch `after(branch, message, cell)`, and sends the answer, in
that order and in one local transaction.

Some plainness is for speed, as a participant meets this file with every message: what is made anew
for each is a named tuple (a frozen dataclass takes three times as long to make), and members of
enums are looked up once (Python 3.11 takes 90 ns for each look-up).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, assert_never

from participants.contract import Vote


class State(enum.StrEnum):
    """What a participant knows of a branch. ABSENT: nothing, there is no Branch."""

    ABSENT = "absent"
    ACTIVE = "active"
    PREPARED = "prepared"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"


ENDED = (State.COMMITTED, State.ROLLED_BACK)
"""The tombstones."""


class Branch(NamedTuple):
    """A branch that is there.

    `fingerprint`: of the prepare that it was prepared by; None if it never was (an empty rollback).
    `incarnation`: of the process that began its interactive work; None in a one-shot transaction.
    """

    state: State
    fingerprint: str | None = None
    incarnation: int | None = None


# --- what arrives -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DoWork:
    """Interactive: do a piece of work. `incarnation`: of the process that received this message."""

    incarnation: int


class DoPrepare(NamedTuple):
    """Promise. `late`: `expires_at` and the grace have passed. `incarnation`: only interactive."""

    fingerprint: str
    late: bool = False
    incarnation: int | None = None


class End(enum.StrEnum):
    """A message that ends the branch: a call, or the answer to the branch's own inquiry."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    ANSWERED_COMMIT = "answered_commit"
    ANSWERED_ABORT = "answered_abort"


Message = DoWork | DoPrepare | End


# --- what follows -------------------------------------------------------------------------------


class Action(enum.StrEnum):
    """What the resource has to do, before anything is kept or answered."""

    NOTHING = "nothing"
    WORK = "work"
    PREPARE = "prepare"  # do the work and vote; then `Cell.voted`
    CHECK = "check"  # vote on the interactive work done; then `Cell.voted`
    DISCARD = "discard"  # undo whatever prepare changed, as if it had not been asked
    COMMIT = "commit"
    ROLLBACK = "rollback"


class Answer(enum.StrEnum):
    """What the sender is told."""

    YES = "yes"
    NO = "no"
    READ_ONLY = "read_only"
    DONE = "done"
    REFUSED = "refused"  # interactive work, or a move that cannot be
    UNKNOWN_BRANCH = "unknown_branch"
    NOT_PREPARED = "not_prepared"
    ALREADY_COMMITTED = "already_committed"
    ALREADY_ROLLED_BACK = "already_rolled_back"


class Row(enum.StrEnum):
    """A message as the table knows it: the message, and what of the branch it depends on."""

    WORK = "do work"
    WORK_LOST = "do work, after a crash that lost the work so far"
    PREPARE = "prepare"
    PREPARE_OTHER = "prepare, of another content than the branch's"
    PREPARE_LATE = "prepare, after expires_at and the grace"
    PREPARE_INTERACTIVE = "prepare, interactive"
    PREPARE_LOST = "prepare, interactive, after a crash that lost the work"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    ANSWERED_COMMIT = "inquiry answered commit"
    ANSWERED_ABORT = "inquiry answered abort"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell. `answer` None: nobody waits, or the vote will be it. `to` None: unchanged."""

    action: Action
    answer: Answer | None
    to: State | None = None
    reason: str | None = None

    def voted(self, vote: Vote) -> Cell:
        """The cell that follows the resource's vote: YES, NO or READ_ONLY; KeyError: not asked."""
        return AFTER_VOTE[self.action][vote]


def cell_of(branch: Branch | None, message: Message) -> Cell:
    """What `message` asks of `branch` (None: absent). Never raises."""
    state = _ABSENT if branch is None else branch.state
    return TABLE[row_of(branch, message)][state]


def after(branch: Branch | None, message: Message, cell: Cell) -> Branch | None:
    """The branch to be kept when `cell` has been carried out. None: it is absent."""
    to = cell.to
    if to is None:
        return branch
    if isinstance(message, DoPrepare):
        return Branch(to, message.fingerprint, message.incarnation)
    if isinstance(message, DoWork):
        return Branch(to, incarnation=message.incarnation)
    if branch is None:
        return Branch(to)
    return Branch(to, branch.fingerprint, branch.incarnation)


def row_of(branch: Branch | None, message: Message) -> Row:
    """The row of the table for this message to this branch."""
    match message:
        case End():
            return _ROW_OF_END[message]
        case DoPrepare():
            if branch is not None and branch.fingerprint not in (None, message.fingerprint):
                return _PREPARE_OTHER
            if message.incarnation is None:
                return _PREPARE_LATE if message.late else _PREPARE
            lost = _work_is_lost(branch, message.incarnation)
            return Row.PREPARE_LOST if lost else Row.PREPARE_INTERACTIVE
        case DoWork():
            return Row.WORK_LOST if _work_is_lost(branch, message.incarnation) else Row.WORK
        case _:
            assert_never(message)


_ABSENT = State.ABSENT
_PREPARE, _PREPARE_OTHER, _PREPARE_LATE = Row.PREPARE, Row.PREPARE_OTHER, Row.PREPARE_LATE

# --- the table ----------------------------------------------------------------------------------

_IMPOSSIBLE = Cell(Action.NOTHING, Answer.REFUSED, reason="this cannot be asked of this branch")
_IGNORED = Cell(Action.NOTHING, None)
_WORKS = Cell(Action.WORK, Answer.DONE, State.ACTIVE)
_WORK_REFUSED = Cell(Action.NOTHING, Answer.REFUSED, reason="its end has begun")
_DONE = Cell(Action.NOTHING, Answer.DONE)
_STILL_YES = Cell(Action.NOTHING, Answer.YES)
_NO_FINISHED = Cell(Action.NOTHING, Answer.NO, reason="finished: this branch is committed")
_NO_ROLLED_BACK = Cell(Action.NOTHING, Answer.NO, reason="this branch is rolled back")
_NO_OTHER = Cell(
    Action.NOTHING, Answer.NO, reason="prepared already, by another request of this id"
)
_ROLLS_BACK = Cell(Action.ROLLBACK, Answer.DONE, State.ROLLED_BACK)
_LOST = "the service restarted, and its work for this branch was lost"

TABLE: Mapping[Row, Mapping[State, Cell]] = {
    Row.WORK: {
        State.ABSENT: _WORKS,
        State.ACTIVE: _WORKS,
        State.PREPARED: _WORK_REFUSED,
        State.COMMITTED: _WORK_REFUSED,
        State.ROLLED_BACK: _WORK_REFUSED,
    },
    # Half of the work would commit, if work went on after a crash as if nothing had happened.
    Row.WORK_LOST: {
        State.ABSENT: _IMPOSSIBLE,
        State.ACTIVE: Cell(Action.NOTHING, Answer.REFUSED, reason=_LOST),
        State.PREPARED: _IMPOSSIBLE,
        State.COMMITTED: _IMPOSSIBLE,
        State.ROLLED_BACK: _IMPOSSIBLE,
    },
    Row.PREPARE: {
        State.ABSENT: Cell(Action.PREPARE, None),
        State.ACTIVE: _IMPOSSIBLE,
        State.PREPARED: _STILL_YES,
        State.COMMITTED: _NO_FINISHED,
        State.ROLLED_BACK: _NO_ROLLED_BACK,
    },
    Row.PREPARE_OTHER: {
        State.ABSENT: _IMPOSSIBLE,
        State.ACTIVE: _IMPOSSIBLE,
        State.PREPARED: _NO_OTHER,
        State.COMMITTED: _NO_FINISHED,
        State.ROLLED_BACK: _NO_ROLLED_BACK,
    },
    Row.PREPARE_LATE: {
        State.ABSENT: Cell(
            Action.NOTHING,
            Answer.NO,
            reason="expired: expires_at has passed, by the clock of this service",
        ),
        State.ACTIVE: _IMPOSSIBLE,
        State.PREPARED: _STILL_YES,
        State.COMMITTED: _NO_FINISHED,
        State.ROLLED_BACK: _NO_ROLLED_BACK,
    },
    Row.PREPARE_INTERACTIVE: {
        State.ABSENT: Cell(Action.NOTHING, Answer.NO, reason="no work was done for this branch"),
        State.ACTIVE: Cell(Action.CHECK, None),
        State.PREPARED: _STILL_YES,
        State.COMMITTED: _NO_FINISHED,
        State.ROLLED_BACK: _NO_ROLLED_BACK,
    },
    Row.PREPARE_LOST: {
        State.ABSENT: _IMPOSSIBLE,
        State.ACTIVE: Cell(Action.ROLLBACK, Answer.NO, State.ROLLED_BACK, _LOST),
        State.PREPARED: _IMPOSSIBLE,
        State.COMMITTED: _IMPOSSIBLE,
        State.ROLLED_BACK: _IMPOSSIBLE,
    },
    Row.COMMIT: {
        # The participant lost what it promised, or forgot too early: never an acknowledgement.
        State.ABSENT: Cell(Action.NOTHING, Answer.UNKNOWN_BRANCH, reason="nothing is prepared"),
        State.ACTIVE: Cell(Action.NOTHING, Answer.NOT_PREPARED, reason="it was never prepared"),
        State.PREPARED: Cell(Action.COMMIT, Answer.DONE, State.COMMITTED),
        State.COMMITTED: _DONE,
        State.ROLLED_BACK: Cell(Action.NOTHING, Answer.ALREADY_ROLLED_BACK),
    },
    Row.ROLLBACK: {
        # An empty rollback leaves a tombstone, or the prepare that it overtook would be accepted.
        State.ABSENT: Cell(Action.NOTHING, Answer.DONE, State.ROLLED_BACK),
        State.ACTIVE: _ROLLS_BACK,
        State.PREPARED: _ROLLS_BACK,
        State.COMMITTED: Cell(Action.NOTHING, Answer.ALREADY_COMMITTED),
        State.ROLLED_BACK: _DONE,
    },
    Row.ANSWERED_COMMIT: {
        State.ABSENT: _IGNORED,
        State.ACTIVE: _IGNORED,
        State.PREPARED: Cell(Action.COMMIT, None, State.COMMITTED),
        State.COMMITTED: _IGNORED,
        State.ROLLED_BACK: _IGNORED,
    },
    Row.ANSWERED_ABORT: {
        State.ABSENT: _IGNORED,
        State.ACTIVE: Cell(Action.ROLLBACK, None, State.ROLLED_BACK),
        State.PREPARED: Cell(Action.ROLLBACK, None, State.ROLLED_BACK),
        State.COMMITTED: _IGNORED,
        State.ROLLED_BACK: _IGNORED,
    },
}

AFTER_VOTE: Mapping[Action, Mapping[Vote, Cell]] = {
    Action.PREPARE: {
        Vote.YES: Cell(Action.NOTHING, Answer.YES, State.PREPARED),
        Vote.NO: Cell(Action.DISCARD, Answer.NO),
        Vote.READ_ONLY: Cell(Action.DISCARD, Answer.READ_ONLY),
    },
    Action.CHECK: {
        Vote.YES: Cell(Action.NOTHING, Answer.YES, State.PREPARED),
        Vote.NO: Cell(Action.ROLLBACK, Answer.NO, State.ROLLED_BACK),
        # It is left out of phase two, so this is the last it hears: it must let go of its locks
        # now.
        Vote.READ_ONLY: Cell(Action.ROLLBACK, Answer.READ_ONLY, State.ROLLED_BACK),
    },
}
"""What follows a vote, by the action that asked for it."""

_ROW_OF_END = {
    End.COMMIT: Row.COMMIT,
    End.ROLLBACK: Row.ROLLBACK,
    End.ANSWERED_COMMIT: Row.ANSWERED_COMMIT,
    End.ANSWERED_ABORT: Row.ANSWERED_ABORT,
}


def _work_is_lost(branch: Branch | None, incarnation: int | None) -> bool:
    return (
        branch is not None
        and branch.state is State.ACTIVE
        and branch.incarnation not in (None, incarnation)
    )
