"""One commit as a conversation: what one leadership says to the branches of one transaction. Pure.

It is told what happened (an answer came, a command was applied, time passed) and answers with the
actions to take. It holds no clock, no socket and no log: `now_s` is any clock that only grows, and
`jitter` a random number in [0, 1).

Rules (PROTOCOL):
  section 3   a plain branch is asked once, unless it said "still working"; commit and rollback
              leave only after the decision is applied
  section 2   the first NO, failure or timeout proposes the decision; nobody waits for the rest
  section 6   a rollback of a plain branch whose prepare may be under way counts only if it was sent
              after that prepare was answered, or after `expires_at` and the grace
  section 7   a new leadership carries on from the record: this same code, told `took_over`

    start ─▶ preparing ─votes─▶ ProposeDecision ─applied─▶ phase two ─▶ acknowledged, finished

An interactive transaction is open first: branches come, until its client ends it. Then the rest
goes as ever, but that every branch hears of a rollback, for it has worked before anybody asked it.

Every method but those that call branches costs the same for 3 branches and for 256, and those call
few at a time: the other branches are due at once, and called in the next turns of the event loop,
between which the transactions beside this one have theirs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from coordinator.alarms import NEVER_S
from coordinator.facts import Mode, Outcome, Transaction, outstanding
from coordinator.leg import Fate, Leg
from coordinator.settings import Timings
from participants.contract import (
    Acknowledged,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    Vote,
    Voted,
    Working,
)

ACKNOWLEDGE_WITHIN_S = 0.2
"""Acknowledgements wait for those of the other branches, to share one command, but no longer."""

CALLS_AT_ONCE = 32
"""Calls with which a phase begins: usual transactions have no more branches than that."""

CALLS_PER_TURN = 2
"""Calls of one transaction in a turn of the event loop after those. A request of its own for each,
with its answer, costs some 150 us; a transaction of others needs some 16 turns until its decision,
and each of them is longer by what a huge one does in it."""

MAX_REASON_CHARS = 500


class SendPrepare(NamedTuple):
    position: int


class WithdrawPrepare(NamedTuple):
    """The prepare is not wanted any more, if it has not left yet."""

    position: int


class SendEnd(NamedTuple):
    """Send commit or rollback."""

    position: int
    operation: Operation


class ProposeDecision(NamedTuple):
    votes: tuple[Vote, ...]
    vote_reasons: tuple[str | None, ...]
    reason: str | None


class ProposeAcknowledgement(NamedTuple):
    branches: int


Action = SendPrepare | WithdrawPrepare | SendEnd | ProposeDecision | ProposeAcknowledgement

# Some hundreds of different ones, made again and again.
_send_prepare = functools.cache(SendPrepare)
_send_end = functools.cache(SendEnd)

# Looked up once: finding a member of an enum costs 90 ns in Python 3.11.
_NO = Vote.NO
_COMMIT, _ROLLBACK = Operation.COMMIT, Operation.ROLLBACK
_COMMITTED = Outcome.COMMIT
_FATE_UNKNOWN, _FATE_KNOWN, _NOTHING_HELD = Fate


class Conversation:
    """One transaction, one leadership. Every method returns the actions to take, in order."""

    def __init__(
        self,
        transaction: Transaction,
        timings: Timings,
        *,
        deadline_s: float,
        expires_s: float,
        took_over: bool,
    ) -> None:
        """`deadline_s`: decided by then; `expires_s`: until then participants take a prepare."""
        self.transaction = transaction
        self._outstanding = outstanding(transaction)  # which branches must acknowledge, a bit each
        # While it was open nobody sent a prepare: they leave when `Close` is applied.
        self._took_over = took_over and transaction.closed
        self.legs = [Leg(b, perhaps_sent=self._took_over) for b in transaction.branches]
        self._timings = timings
        self.deadline_s = deadline_s
        self._expires_s = expires_s
        interactive = transaction.mode is Mode.INTERACTIVE
        self._no_promise = _FATE_KNOWN if interactive else _NOTHING_HELD
        """What is known of a branch that voted NO, or was never asked."""
        self._decision: ProposeDecision | None = None  # proposed; what is applied may differ
        self._propose_again_s = NEVER_S
        self._votes_missing = len(self.legs)
        self._ends_under_way = 0
        self._unproposed = 0  # acknowledgements heard but not proposed, a bit each
        self._acknowledge_by_s = NEVER_S
        self._next_call_s = NEVER_S  # no leg's next call is due earlier
        self._more_due = False  # calls are due that the last turn had no room for

    # --- what is known of it ---

    @property
    def is_finished(self) -> bool:
        return self.transaction.finished_ms is not None

    @property
    def due_s(self) -> float:
        """When `woken` must be called at the latest; NEVER_S: not before something else happens."""
        if self.transaction.outcome is not None:
            call_s, acknowledge_s = self._next_call_s, self._acknowledge_by_s
            return call_s if call_s < acknowledge_s else acknowledge_s
        if self._decision is not None:
            return self._propose_again_s  # nobody is called any more before it is applied
        return min(self._next_call_s, self.deadline_s)

    # --- what happens to it ---

    def start(self, now_s: float) -> list[Action]:
        """`Begin` is applied, or this leadership found the transaction unfinished.

        If every branch is repeatable it may start once `Begin` is proposed.
        """
        if self.transaction.outcome is not None:
            return self._phase_two(now_s)
        if now_s >= self.deadline_s:
            return self._decide(self._timeout_reason())
        if not self.transaction.closed:
            return []  # open: its client ends it, or the deadline does
        if self._took_over and not all(leg.branch.repeatable for leg in self.legs):
            return self._decide(
                "the leader changed, and a participant cannot be asked for its vote twice"
            )
        return self._ask_all(now_s)

    def _ask_all(self, now_s: float) -> list[Action]:
        if not self.legs:
            return self._decide(None)
        actions: list[Action] = []
        for position, leg in enumerate(self.legs):
            if position < CALLS_AT_ONCE:
                self._prepare(position, actions)
            else:
                self._call_again(leg, now_s)
        return actions

    def applied(self, transaction: Transaction, now_s: float) -> list[Action]:
        """A command changed the record: a branch came, the client wants the end, a decision,
        acknowledgements, an operator's resolution.
        """
        before, self.transaction = self.transaction, transaction
        if transaction.outcome is None:
            return self._went_on(before, now_s)
        self._outstanding = outstanding(transaction)
        return self._phase_two(now_s) if before.outcome is None else []

    def _went_on(self, before: Transaction, now_s: float) -> list[Action]:
        for branch in self.transaction.branches[len(self.legs) :]:
            self.legs.append(Leg(branch, perhaps_sent=False))
            self._votes_missing += 1
        if not self.transaction.closed or before.closed:
            return []
        if self._decision is not None or now_s >= self.deadline_s:
            return []  # a prepare would leave between this and the decision that is proposed
        return self._ask_all(now_s)

    def roll_back(self, reason: str) -> list[Action]:
        """Its client asks for it. What is proposed, or decided, comes first."""
        is_late = self._decision is not None or self.transaction.outcome is not None
        return [] if is_late else self._decide(reason)

    def prepare_answered(
        self, position: int, answer: PrepareAnswer, now_s: float, jitter: float
    ) -> list[Action]:
        """A prepare was answered, or failed to be."""
        leg = self.legs[position]
        leg.preparing = False
        if self._decision is not None or self.transaction.outcome is not None:
            return self._late_answer(leg, position, answer, now_s)
        match answer:
            case Voted():
                return self._voted(leg, answer.vote, answer.reason)
            case Working(retry_after_ms=retry_after_ms):
                leg.working += 1
                initial_ms = self._timings.working_initial_ms
                wait_ms = retry_after_ms or _doubled(
                    initial_ms, leg.working, self._timings.retry_max_ms
                )
                self._call_again(leg, now_s + wait_ms / 1000)
                return []
            case Failed():
                return self._prepare_failed(leg, answer, now_s, jitter)

    def end_answered(
        self,
        position: int,
        answer: EndAnswer,
        sent_s: float,
        now_s: float,
        jitter: float,
        least_s: float = 0.0,
    ) -> list[Action]:
        """A commit or rollback that was sent at `sent_s` was answered, or failed to be; then it is
        sent again, but not within `least_s`."""
        leg = self.legs[position]
        leg.ending = False
        self._ends_under_way -= 1
        match answer:
            case Acknowledged():
                leg.last_error = None
                if self._counts(position, sent_s):
                    self._heard(position)
                else:
                    self._call_again(leg, self._when_it_counts(leg, now_s))
            case Failed(what=what):
                leg.last_error = what
                wait_ms = _doubled(
                    self._timings.retry_initial_ms, leg.attempts, self._timings.retry_max_ms
                )
                self._call_again(leg, now_s + max(least_s, jitter * wait_ms / 1000))
        return self._acknowledge(now_s)

    def woken(self, now_s: float) -> list[Action]:
        """Time has passed: do what is due."""
        if self.transaction.outcome is None:
            if self._decision is not None:
                if now_s < self._propose_again_s:
                    return []
                self._propose_again_s = NEVER_S
                return [self._decision]
            if now_s >= self.deadline_s:
                return self._decide(self._timeout_reason())
        actions: list[Action] = []
        if self._next_call_s <= now_s:
            self._make_due_calls(now_s, actions)
        if self._acknowledge_by_s <= now_s:
            actions += self._acknowledge(now_s)
        return actions

    def hurry(self, now_s: float) -> list[Action]:
        """An operator asks to call again now whoever is waited for."""
        for leg in self.legs:
            if leg.called_again_s is not None:
                self._call_again(leg, now_s)
        return self.woken(now_s)

    def not_proposed(self, action: Action, now_s: float, wait_s: float) -> None:
        """The log took no proposal just now: propose again after `wait_s`."""
        if isinstance(action, ProposeDecision):
            self._propose_again_s = now_s + wait_s
        elif isinstance(action, ProposeAcknowledgement):
            self._unproposed |= action.branches
            self._acknowledge_by_s = now_s + wait_s

    def _call_again(self, leg: Leg, at_s: float) -> None:
        leg.called_again_s = at_s
        self._next_call_s = min(self._next_call_s, at_s)

    def _make_due_calls(self, now_s: float, actions: list[Action]) -> None:
        self._next_call_s, self._more_due = NEVER_S, False
        for position, leg in enumerate(self.legs):
            if leg.called_again_s is None:
                continue
            if leg.called_again_s > now_s:
                self._next_call_s = min(self._next_call_s, leg.called_again_s)
                continue
            if len(actions) >= CALLS_PER_TURN:
                self._next_call_s, self._more_due = leg.called_again_s, True  # now is a grain late
                return
            leg.called_again_s = None
            if self.transaction.outcome is None:
                self._prepare(position, actions)
            else:
                self._end(position, actions)

    # --- phase one ---

    def _prepare(self, position: int, actions: list[Action]) -> None:
        leg = self.legs[position]
        # I7: a plain branch may work twice if it is asked twice.
        assert leg.branch.repeatable or leg.working or not leg.perhaps_sent, leg.branch
        assert self.transaction.outcome is None
        leg.perhaps_sent = leg.preparing = True
        leg.prepares += 1
        leg.attempts += 1
        actions.append(_send_prepare(position))

    def _voted(self, leg: Leg, vote: Vote, reason: str | None) -> list[Action]:
        assert leg.vote is None, leg.branch
        leg.vote, leg.reason, leg.last_error = vote, reason, None
        leg.fate = self._no_promise if vote is _NO else _FATE_KNOWN
        self._votes_missing -= 1
        if vote is _NO:
            return self._decide(f"{leg.branch.name} voted no: {reason}")
        return [] if self._votes_missing else self._decide(None)

    def _prepare_failed(
        self, leg: Leg, failed: Failed, now_s: float, jitter: float
    ) -> list[Action]:
        leg.last_error = failed.what
        if not failed.arrived and self._is_only_prepare(leg):
            leg.perhaps_sent = False
        elif leg.branch.repeatable and (failed.broken or not failed.arrived):
            wait_ms = _doubled(
                self._timings.retry_initial_ms, leg.attempts, self._timings.retry_max_ms
            )
            self._call_again(leg, now_s + jitter * wait_ms / 1000)
            return []
        self._learn_fate(leg, failed)
        return self._decide(f"{leg.branch.name} failed to prepare: {failed.what}")

    def _is_only_prepare(self, leg: Leg) -> bool:
        """Whether the prepare that was just answered is the only one that anybody ever sent."""
        return leg.prepares == 1 and not self._took_over

    def _learn_fate(self, leg: Leg, answer: PrepareAnswer) -> None:
        """What an answer without a vote, or one that came too late, tells of the prepares sent."""
        match answer:
            case Voted(vote=Vote.NO):
                leg.fate = self._no_promise
            case Voted():
                leg.fate = _FATE_KNOWN
            case Failed(answered=True) if not leg.working:
                leg.fate = _FATE_KNOWN
            case Failed(arrived=False) if self._is_only_prepare(leg):
                leg.fate = self._no_promise
            case _:
                # Once "still working", only a vote ends it: an error says nothing of the work begun
                # before, and what that reserves may come after a rollback.
                return
        leg.too_early = leg.ending

    def _decide(self, reason: str | None) -> list[Action]:
        """Propose the decision with the votes that are in; the machine derives the outcome."""
        assert self._decision is None
        votes = tuple([_vote_of(leg) for leg in self.legs])
        reasons = tuple([leg.reason for leg in self.legs])
        cut = None if reason is None else reason[:MAX_REASON_CHARS]
        self._decision = ProposeDecision(votes, reasons, cut)
        return [self._decision]

    def _timeout_reason(self) -> str:
        if not self.transaction.closed:
            return "the deadline passed before the client ended the transaction"
        timeout_ms = self.transaction.deadline_ms - self.transaction.created_ms
        missing = [leg for leg in self.legs if leg.vote is None]
        names = ", ".join(
            f"{leg.branch.name} ({leg.last_error})" if leg.last_error else leg.branch.name
            for leg in missing
        )
        return f"timed out after {timeout_ms} ms without the vote of {names}"

    # --- phase two ---

    def _phase_two(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        self._next_call_s = NEVER_S
        self._more_due = False
        calls = 0
        for position, leg in enumerate(self.legs):
            leg.attempts, leg.called_again_s = 0, None
            if leg.preparing:
                actions.append(WithdrawPrepare(position))
            if not self._outstanding >> position & 1:
                continue
            if leg.fate is _NOTHING_HELD:
                self._heard(position)
            elif calls < CALLS_AT_ONCE:
                calls += 1
                self._end(position, actions)
            else:
                self._call_again(leg, now_s)
                self._more_due = True
        return actions + self._acknowledge(now_s)

    def _heard(self, position: int) -> None:
        """The branch has finished the outcome."""
        self.legs[position].acknowledged = True
        self.legs[position].called_again_s = None
        self._unproposed |= 1 << position

    def _end(self, position: int, actions: list[Action]) -> None:
        leg = self.legs[position]
        if leg.ending or leg.acknowledged or not self._outstanding >> position & 1:
            return
        # I5: nothing irrevocable leaves before the entry that justifies it is durable.
        assert self.transaction.outcome is not None
        commits = self.transaction.outcome is _COMMITTED
        leg.ending, leg.too_early = True, False
        leg.attempts += 1
        self._ends_under_way += 1
        actions.append(_send_end(position, _COMMIT if commits else _ROLLBACK))

    def _late_answer(
        self, leg: Leg, position: int, answer: PrepareAnswer, now_s: float
    ) -> list[Action]:
        """A vote that comes after the decision: too late to count, but the prepare is over now."""
        self._learn_fate(leg, answer)
        if leg.fate is _FATE_UNKNOWN or leg.branch.repeatable:
            return []  # of the SDK's branches a tombstone makes the order harmless
        if leg.acknowledged or not self._outstanding >> position & 1:
            return []  # or the decision is not applied yet: phase two will see the fate
        if leg.fate is _NOTHING_HELD:
            self._heard(position)
            return self._acknowledge(now_s)
        leg.called_again_s = None
        actions: list[Action] = []
        self._end(position, actions)
        return actions

    def _counts(self, position: int, sent_s: float) -> bool:
        """Whether an acknowledgement of a call sent at `sent_s` ends the branch (section 6)."""
        leg = self.legs[position]
        if leg.branch.repeatable or self.transaction.votes[position] is not Vote.UNKNOWN:
            return True
        if leg.fate is not _FATE_UNKNOWN and not leg.too_early:
            return True  # not told by times: in a millisecond many things happen in some order
        return sent_s >= self._expires_s + self._timings.grace_ms / 1000

    def _when_it_counts(self, leg: Leg, now_s: float) -> float:
        if leg.fate is not _FATE_UNKNOWN:
            return now_s
        return max(now_s, self._expires_s + self._timings.grace_ms / 1000)

    def _acknowledge(self, now_s: float) -> list[Action]:
        """Propose what was heard, all in one, once nothing more is about to be heard."""
        unproposed = self._unproposed & self._outstanding
        if not unproposed:
            self._acknowledge_by_s = NEVER_S
            return []
        if self._ends_under_way or self._more_due:
            self._acknowledge_by_s = min(self._acknowledge_by_s, now_s + ACKNOWLEDGE_WITHIN_S)
            if now_s < self._acknowledge_by_s:
                return []
        self._acknowledge_by_s = NEVER_S
        self._unproposed = 0
        return [ProposeAcknowledgement(unproposed)]


def _vote_of(leg: Leg) -> Vote:
    if leg.vote is not None:
        return leg.vote
    return Vote.UNKNOWN if leg.perhaps_sent else Vote.UNSENT


def _doubled(initial_ms: int, times: int, most_ms: int) -> int:
    """The pause after the `times`-th failure in a row."""
    return min(most_ms, initial_ms << min(times - 1, 20))
