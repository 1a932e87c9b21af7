"""One leader, frozen and thawed: the project's own Driver, run for one event at a time.

A leader between two events is a `Live`, a value that can be hashed. To take a step, a Driver is
made around it, on a loop, a log and a gateway that only write down what is asked of them
(`stand_ins.py`); the real method runs; and what is left is frozen again. So everything that a
leader does here is done by `driver`, `talks`, `live`, `conversation` and `inquiry`.

Time has two instants: before the deadline, and after `expires_at` and the grace. A timer that is
due within the instant fires at once. Pauses have no length, so how often a call was tried is left
out, and so is whatever cannot matter any more (`_leg_left`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, NamedTuple, cast

from coordinator.commands import (
    Acknowledge,
    Begin,
    Command,
    Decide,
    Enlist,
    Epoch,
    Forget,
    Resolve,
)
from coordinator.conversation import Action, Conversation, ProposeAcknowledgement, ProposeDecision
from coordinator.driver import Driver
from coordinator.errors import CoordinatorError
from coordinator.facts import Outcome, Transaction
from coordinator.gateway import Gateway as RealGateway
from coordinator.leg import Fate, Leg
from coordinator.live import Live as DriverLive
from coordinator.log import LogError
from coordinator.machine import Machine, Result
from coordinator.plan import Plan, Wait
from coordinator.settings import Limits, Timings
from coordinator.talks import Talks
from participants.contract import (
    Acknowledged,
    Decision,
    Failed,
    Operation,
    PrepareAnswer,
    Vote,
)
from tests.builders import uuid7
from tests.model.stand_ins import Gateway, Log, Loop, NoJitter, Promise, SilentSteps, running

BEGUN_MS = 1_700_000_000_000
TIMEOUT_MS = 5_000
GRACE_MS = 10_000
ID = uuid7(BEGUN_MS, Random(0))

TIMINGS = Timings(grace_ms=GRACE_MS)
EARLY_S, DEADLINE_S, LATE_S = 5.0, 10.0, 30.0
SENT_S = 1.0
MOST_TIMERS = 50


class LegState(NamedTuple):
    """What is left of a `conversation.Leg`, and of the calls under way for it."""

    vote: Vote | None
    perhaps_sent: bool
    prepares: int
    preparing: bool
    waits: bool  # the prepare is in the gateway's lane: it has not left yet
    working: bool
    ending: bool
    sent_late: bool  # the commit or rollback under way was sent after `expires_at` and the grace
    too_early: bool  # ... was begun before the fate of the prepare was known
    fate: Fate
    acknowledged: bool
    called_at_grace: bool


class Talk(NamedTuple):
    """What is left of a `conversation.Conversation`."""

    transaction: Transaction
    took_over: bool
    decision: tuple[Vote, ...] | None  # proposed, not applied
    unproposed: int
    legs: tuple[LegState, ...]


class Live(NamedTuple):
    """A transaction in a leader's hands; `talk` is None until its Begin is applied."""

    fingerprint: str
    epoch: int
    talk: Talk | None


class Sent(NamedTuple):
    """A call that left."""

    participant: str
    operation: Operation
    body: bytes


class Effect(NamedTuple):
    """What came of an event. `told`: what the client who waits here was told, once decided."""

    live: Live | None
    sent: tuple[Sent, ...] = ()
    proposed: tuple[Command, ...] = ()
    told: tuple[str, Outcome] | None = None  # and what it had asked for
    answer: Decision | None = None  # to an inquiry


class Node:
    """A leader, thawed. `machine` None: the event must not look at the machine."""

    def __init__(
        self,
        live: Live | None,
        machine: Machine | None,
        epoch: int,
        *,
        late: bool,
        plain: frozenset[str],
        calls_wait: bool = False,
        current: bool = True,
        reduced: bool = True,
    ) -> None:
        self.late = late
        self._reduced = reduced
        self._loop = Loop(LATE_S if late else EARLY_S)
        self.log = Log(epoch, current)
        self.gateway = Gateway(self._loop, plain, calls_wait)
        with running(self._loop):
            self.driver = Driver(
                self.log,
                cast(Machine, machine),
                cast(RealGateway, self.gateway),
                now_ms=lambda: BEGUN_MS + round((self._loop.now_s - EARLY_S) * 1000),
                random=cast(Random, NoJitter()),
                limits=Limits(),
                timings=TIMINGS,
                coordinators=("http://coordinator",),
                steps=SilentSteps(),
            )
        self._client = Promise()
        self._thawed: DriverLive | None = None
        if live is not None:
            self._thawed = self._thaw(live)

    @property
    def talks(self) -> Talks:
        return self.driver._talks

    @property
    def live(self) -> DriverLive:
        assert self._thawed is not None
        return self._thawed

    @property
    def talk(self) -> Conversation:
        assert self.live.conversation is not None
        return self.live.conversation

    # --- events -----------------------------------------------------------------------------------

    def lead(self) -> Effect:
        """A new leadership begins."""
        return self._run(lambda: self.driver.lead(self.log.epoch))

    def submit(self, plan: Plan) -> tuple[Effect, Outcome | None]:
        """A client asks; with what it is told at once."""
        asked: list[Promise] = []

        def ask() -> None:
            asked.append(cast(Promise, self.driver.submit(plan, Wait.DECISION)))

        effect = self._run(ask)
        return effect, asked[0].outcome()

    def prepare_leaves(self, position: int) -> Effect:
        return self._run(lambda: self.gateway.leave(self.live.prepares[position]))

    def prepare_answered(self, position: int, answer: PrepareAnswer) -> Effect:
        return self._run(lambda: self.live.prepares[position].done(answer))

    def end_answered(self, position: int, answer: Acknowledged | Failed) -> Effect:
        return self._run(lambda: self.live.ends[position].done(answer))

    def woken(self) -> Effect:
        """Time has passed: timers that have become due fire."""
        if self.live.conversation is None:
            return self._run(lambda: None)  # its timer is set once its Begin is applied
        return self._run(lambda: self.talks._arm(self.live, self.talk))

    def applied(self, command: Command, result: Result) -> Effect:
        """A proposal of this leader has been applied: the log tells whoever proposed it."""
        live = self.live
        match command:
            case Begin(branches=branches):
                participants = list(branches.participants)
                self.driver._capacity.beginning(participants)  # as when it was proposed
                self.driver._admission.beginning(None)
                return self._run(lambda: self.driver._begun(live, None, participants, result))
            case Decide(votes=votes, vote_reasons=reasons, reason=reason):
                action: Action = ProposeDecision(votes, reasons, reason)
            case Acknowledge(branches=bits):
                action = ProposeAcknowledgement(bits)
            case _:
                raise AssertionError(command)
        return self._run(lambda: self.talks._applied(live, action, result))

    def inquired(self, branch_id: str, fingerprint: str, refused: Result | None = None) -> Effect:
        """A participant asks. `refused`: what came of the Refuse that was proposed for it."""
        return self._asked(self.driver.inquire(ID, branch_id, fingerprint), refused)

    def abort_by_hand(self, resolved: Result | None = None) -> Effect:
        """An operator aborts. `resolved`: what came of the Resolve that was proposed for it."""
        asking = self.driver.resolve(
            ID, branch_id=None, effect=None, actor="operator", reason="by hand"
        )
        return self._asked(asking, resolved)

    def _asked(self, asking: Coroutine[Any, Any, object], result: Result | None) -> Effect:
        """Run what is `async` up to its proposal; with a result, past it.

        What follows a proposal depends on its result only, so it may be run again from the start.
        """
        answers: list[object] = []

        def ask() -> None:
            try:
                asking.send(None)
                if result is None:
                    return
                _, done = self.log.proposed.pop()
                done(result)
                asking.send(None)
            except StopIteration as finished:
                answers.append(finished.value)
            except (LogError, CoordinatorError):
                pass
            else:
                raise AssertionError("it waits for more than one proposal")
            finally:
                asking.close()

        effect = self._run(ask)
        answer = answers[0] if answers else None
        return effect._replace(answer=answer if isinstance(answer, Decision) else None)

    # --- thawing and freezing ---------------------------------------------------------------------

    def _thaw(self, live: Live) -> DriverLive:
        thawed = DriverLive(ID, live.fingerprint, live.epoch, 0.0)
        thawed.wait(Wait.DECISION, cast("asyncio.Future[Transaction]", self._client))
        self.talks.lives[ID] = thawed
        if live.talk is not None:
            thawed.conversation = self._thaw_talk(live.talk, thawed)
        return thawed

    def _thaw_talk(self, talk: Talk, live: DriverLive) -> Conversation:
        # A decided transaction has no payloads any more, but prepares that were begun before have.
        payloads = talk.transaction.payloads or (b"null",) * len(talk.transaction.branches)
        asked = talk.transaction._replace(payloads=payloads)
        conversation = Conversation(
            asked,
            TIMINGS,
            deadline_s=DEADLINE_S,
            expires_s=DEADLINE_S,
            took_over=talk.took_over,
        )
        if talk.decision is not None:
            reasons = (None,) * len(talk.decision)
            conversation._decision = ProposeDecision(talk.decision, reasons, None)
        conversation._unproposed = talk.unproposed
        for position, (leg, state) in enumerate(zip(conversation.legs, talk.legs, strict=True)):
            self._thaw_leg(leg, state)
            if state.preparing:
                self.talks._send_prepare(live, conversation, position)
                self.gateway.thawed(live.prepares[position], waits=state.waits)
            if state.ending:
                commits = talk.transaction.outcome is Outcome.COMMIT
                operation = Operation.COMMIT if commits else Operation.ROLLBACK
                self.talks._send_end(live, conversation, position, operation)
                call = live.ends[position]
                self.gateway.thawed(call, waits=False)
                call.sent_s = LATE_S if state.sent_late else SENT_S
            if leg.called_again_s is not None:
                conversation._call_again(leg, leg.called_again_s)
        conversation._votes_missing = sum(leg.vote is None for leg in conversation.legs)
        conversation._ends_under_way = sum(leg.ending for leg in conversation.legs)
        conversation.transaction = talk.transaction
        return conversation

    @staticmethod
    def _thaw_leg(leg: Leg, state: LegState) -> None:
        leg.vote, leg.perhaps_sent, leg.prepares = state.vote, state.perhaps_sent, state.prepares
        leg.preparing, leg.ending, leg.working = state.preparing, state.ending, int(state.working)
        leg.attempts = 1
        leg.fate, leg.acknowledged = state.fate, state.acknowledged
        leg.too_early = state.too_early
        if state.called_at_grace:
            leg.called_again_s = DEADLINE_S + GRACE_MS / 1000

    def _run(self, act: Callable[[], object]) -> Effect:
        with running(self._loop):
            act()
            self._loop.fire(before_s=math.inf if self.late else DEADLINE_S)
        live = self.talks.lives.get(ID)
        outcome = self._client.outcome()
        told = None if outcome is None else (self.live.fingerprint, outcome)
        return Effect(
            live=None if live is None else self._freeze(live),
            sent=tuple(Sent(c.participant, c.operation, c.body) for c in self.gateway.left),
            proposed=tuple(_timeless(command) for command, _ in self.log.proposed),
            told=told,
        )

    def _freeze(self, live: DriverLive) -> Live:
        conversation = live.conversation
        if conversation is None:
            return Live(live.fingerprint, live.epoch, None)
        decided = conversation.transaction.outcome is not None
        legs = tuple(
            self._freeze_leg(live, position, leg) for position, leg in enumerate(conversation.legs)
        )
        if self._reduced:
            branches = conversation.transaction.branches
            legs = tuple(
                _leg_left(leg, repeatable=branch.repeatable, decided=decided)
                for leg, branch in zip(legs, branches, strict=True)
            )
        proposed = None if decided else conversation._decision
        talk = Talk(
            conversation.transaction,
            conversation._took_over and not decided,
            None if proposed is None else proposed.votes,
            conversation._unproposed,
            legs,
        )
        return Live(live.fingerprint, live.epoch, talk)

    def _freeze_leg(self, live: DriverLive, position: int, leg: Leg) -> LegState:
        prepare, end = live.prepares.get(position), live.ends.get(position)
        assert leg.preparing == (prepare is not None)
        assert leg.ending == (end is not None)
        assert leg.called_again_s in (None, DEADLINE_S + GRACE_MS / 1000), leg.called_again_s
        sent_s = 0.0 if end is None or end.sent_s is None else end.sent_s
        return LegState(
            vote=leg.vote,
            perhaps_sent=leg.perhaps_sent,
            prepares=min(leg.prepares, 2),
            preparing=leg.preparing,
            waits=prepare is not None and prepare in self.gateway.waiting,
            working=leg.working > 0,
            ending=leg.ending,
            sent_late=sent_s >= LATE_S,
            too_early=leg.ending and leg.too_early,
            fate=leg.fate,
            acknowledged=leg.acknowledged,
            called_at_grace=leg.called_again_s is not None,
        )


def _leg_left(state: LegState, *, repeatable: bool, decided: bool) -> LegState:
    """The same without what cannot matter any more, so that fewer states differ.

    - A prepare that left may have been tried once or twice: it is asked only of one that did not.
    - Once it is decided, the vote is in the record. What an SDK branch then says to a prepare is
      not listened to (`Conversation._late_answer`), nor is it asked when its rollback was sent
      (`_counts`).
    - Of an SDK branch's fate only NOTHING_HELD is ever asked for, and only when it is decided.
    """
    if not state.waits:
        state = state._replace(prepares=2)
    if decided:
        state = state._replace(vote=None, perhaps_sent=False)
    if repeatable:
        if decided or state.fate is Fate.KNOWN:
            state = state._replace(fate=Fate.UNKNOWN)
        if decided and not state.waits:
            state = state._replace(preparing=False)
        state = state._replace(sent_late=False, too_early=False)
    return state


def _timeless(command: Command) -> Command:
    """The command as if proposed at the beginning, and without its texts: nobody acts on either."""
    match command:
        case Begin():
            return command._replace(now_ms=BEGUN_MS, deadline_ms=BEGUN_MS + TIMEOUT_MS)
        case Decide(votes=votes):
            return command._replace(now_ms=BEGUN_MS, vote_reasons=(None,) * len(votes), reason=None)
        case Acknowledge() | Resolve() | Epoch() | Enlist() | Forget():
            return command._replace(now_ms=BEGUN_MS)
        case _:
            return command._replace(now_ms=BEGUN_MS)
