"""The conversations under way, joined to the gateway, the log and the clock.

What to say to a branch is `conversation`'s to know; here it is said: actions become calls,
proposals and timers, and what comes of them goes back in. All of it runs as callbacks on the event
loop's thread: a transaction costs no task of its own.

An answer that comes for a transaction no longer in hand does nothing: the transaction is finished,
or leadership has ended and whoever leads next has it.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
from collections.abc import Callable
from random import Random

from coordinator.alarms import NEVER_S
from coordinator.bell import Bell
from coordinator.commands import Acknowledge, Command, Decide, encode
from coordinator.conversation import (
    Action,
    Conversation,
    ProposeDecision,
    SendEnd,
    SendPrepare,
    WithdrawPrepare,
)
from coordinator.facts import Mode, Transaction, outstanding
from coordinator.gateway import Call, Gateway
from coordinator.leg import Leg
from coordinator.live import Live
from coordinator.log import Overloaded, ReplicatedLog
from coordinator.machine import Applied
from coordinator.moves import Refusal
from coordinator.retries import Retries
from coordinator.settings import Timings
from coordinator.steps import Steps
from participants.contract import (
    Acknowledged,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    Voted,
    encode_json,
    end_body,
    prepare_body,
    rfc3339,
)

LOG = logging.getLogger("assent.talks")

PROPOSE_AGAIN_S = 0.05
WAKE_AGAIN_S = 1.0

ACKNOWLEDGE_PATIENCE_S = 0.05
"""An acknowledgement that is lost with its leader costs a repeat, and nobody waits for it, as a
rule. A transaction's state shows its end as late as that; a client that asks one thing after
another proposes sooner."""

LET_GO_AT_ONCE = 250
"""Transactions of an ended leadership in a turn of the event loop: some 3 ms. 50,000 in one took
0.6 s, in which this node answered nobody, the next leader's messages among them."""

_PREPARE, _INTERACTIVE = Operation.PREPARE, Mode.INTERACTIVE  # looked up once: 90 ns each time


class Talks:
    """`lives`: the transactions in this leader's hands, by id."""

    def __init__(
        self,
        log: ReplicatedLog,
        gateway: Gateway,
        *,
        now_ms: Callable[[], int],
        random: Random,
        timings: Timings,
        coordinators: tuple[str, ...],
        steps: Steps,
    ) -> None:
        self.lives: dict[str, Live] = {}
        self._log = log
        self._gateway = gateway
        self._now_ms = now_ms
        self._random = random
        self._timings = timings
        self._coordinators = encode_json(list(coordinators))
        self._steps = steps
        self._bell = Bell(self._wake)
        self._retries: Retries[Leg, Live] = Retries()
        self._loop = asyncio.get_running_loop()

    def adopt(self, live: Live) -> None:
        """Have it in hand from now on."""
        self.lives[live.id] = live

    def drop_all(self, error: Callable[[str], Exception]) -> None:
        """Leadership has ended: forget all at once; withdraw what has not left, and tell those who
        wait, piece by piece.

        What leaves meanwhile is what a deposed leader may say at any time (PROTOCOL, section 1).
        """
        dropped = collections.deque(self.lives.values())
        self.lives = {}
        self._bell.silence()
        self._bell = Bell(self._wake)
        self._retries = Retries()
        self._let_go_of_some(dropped, error)

    def _let_go_of_some(
        self, dropped: collections.deque[Live], error: Callable[[str], Exception]
    ) -> None:
        for _ in range(min(len(dropped), LET_GO_AT_ONCE)):
            live = dropped.popleft()
            self._let_go_of(live)
            live.fail(error(live.id))
        if dropped:
            self._loop.call_soon(self._let_go_of_some, dropped, error)

    def drop(self, live: Live) -> None:
        """Have it in hand no more; withdraw what has not left."""
        del self.lives[live.id]
        self._bell.clear(live)
        if self._retries and live.conversation is not None:
            for leg in live.conversation.legs:
                self._retries.called(leg)
        self._let_go_of(live)

    def _let_go_of(self, live: Live) -> None:
        for call in live.calls():
            self._gateway.withdraw(call)
        live.prepares.clear()  # a call that is still under way knows `live`: no circle
        live.ends.clear()

    def hurry(self, live: Live) -> None:
        """Call again at once whoever is waited for."""
        if live.conversation is not None:
            for participant in live.conversation.transaction.branches.participants:
                self._gateway.wake(participant)
            self._perform(live, live.conversation.hurry(self._loop.time()))

    def roll_back(self, live: Live, reason: str) -> None:
        """Its client asks for it."""
        if live.conversation is not None:
            self._perform(live, live.conversation.roll_back(reason))

    def begin(self, live: Live, transaction: Transaction, *, took_over: bool) -> None:
        """Converse with its branches: `Begin` is under way or applied, or it was unfinished."""
        if not took_over:
            self._steps.began(transaction)
        now_s = self._loop.time()
        now_ms = self._now_ms()
        expires_s = now_s + (transaction.deadline_ms - now_ms) / 1000
        # Whichever clock was wrong, that of whoever began it or this one: no more than the whole.
        reckoned_ms = max(now_ms, transaction.created_ms)
        live.conversation = Conversation(
            transaction,
            self._timings,
            deadline_s=now_s + (transaction.deadline_ms - reckoned_ms) / 1000,
            expires_s=expires_s,
            took_over=took_over,
        )
        self._perform(live, live.conversation.start(now_s))

    def _perform(self, live: Live, actions: list[Action]) -> None:
        """Take the actions, then see to it that the conversation is woken in time."""
        conversation = live.conversation
        assert conversation is not None
        sent: list[Leg] = []
        operation = _PREPARE  # all that one turn of a conversation sends is of one kind
        for action in actions:  # eight a transaction: `match` takes 1.5 us for them, this 0.6
            if isinstance(action, SendPrepare):
                sent.append(self._send_prepare(live, conversation, action.position))
            elif isinstance(action, SendEnd):
                operation = action.operation
                sent.append(self._send_end(live, conversation, action.position, operation))
            elif isinstance(action, WithdrawPrepare):
                self._withdraw_prepare(live, action.position)
            elif isinstance(action, ProposeDecision):
                self._steps.voted(live.id, conversation.legs)
                decide = Decide(live.epoch, self._now_ms(), live.id, *action)
                self._propose_for(live, action, decide)
            else:
                self._steps.acknowledged(conversation.transaction, action.branches)
                acknowledge = Acknowledge(live.epoch, self._now_ms(), live.id, action.branches)
                patience_s = 0.0 if live.end_is_awaited else ACKNOWLEDGE_PATIENCE_S
                self._propose_for(live, action, acknowledge, patience_s=patience_s)
        if sent:
            self._steps.sent(live.id, operation, sent)
        self._arm(live, conversation)

    def _send_prepare(self, live: Live, conversation: Conversation, position: int) -> Leg:
        transaction, leg = conversation.transaction, conversation.legs[position]
        branch, payload = leg.branch, transaction.payloads[position]
        body = prepare_body(
            live.id,
            branch.branch_id,
            payload,
            transaction.fingerprint,
            rfc3339(transaction.deadline_ms),
            self._coordinators,
            # Who was given something to do does that now.
            transaction.mode is _INTERACTIVE and payload == b"null",
        )
        call = Call(
            transaction.branches.participants[position],
            _PREPARE,
            branch.prepare_url,
            live.id,
            branch.branch_id,
            body,
            conversation.deadline_s,
            functools.partial(self._prepare_answered, live, position),
            live.traceparent,
            branch.repeatable,
            branch.url is not None,
        )
        live.prepares[position] = call
        self._gateway.begin(call)
        return leg

    def _send_end(
        self, live: Live, conversation: Conversation, position: int, operation: Operation
    ) -> Leg:
        transaction, leg = conversation.transaction, conversation.legs[position]
        if leg.attempts > 1:
            self._retries.called(leg)
        # I5: the decision that this call carries out is applied here, so a quorum holds it.
        assert transaction.outcome is not None
        branch = leg.branch
        call = Call(
            transaction.branches.participants[position],
            operation,
            branch.url_of(operation),
            live.id,
            branch.branch_id,
            end_body(live.id, branch.branch_id),
            NEVER_S,
            functools.partial(self._end_answered, live, position),
            live.traceparent,
            shares=branch.url is not None,
        )
        live.ends[position] = call
        self._gateway.begin(call)
        return leg

    def _withdraw_prepare(self, live: Live, position: int) -> None:
        call = live.prepares.get(position)
        if call is not None and self._gateway.withdraw(call):
            what = "it was decided before its turn came"
            not_sent = Failed(what, arrived=call.perhaps_arrived)
            self._loop.call_soon(self._prepare_answered, live, position, not_sent)

    def _prepare_answered(
        self, live: Live, position: int, answer: PrepareAnswer | EndAnswer
    ) -> None:
        conversation = live.conversation
        if self.lives.get(live.id) is not live or conversation is None:
            return
        live.prepares.pop(position, None)
        assert not isinstance(answer, Acknowledged)
        leg = conversation.legs[position]
        if not isinstance(answer, Voted):
            self._steps.prepare_failed(live.id, leg.branch.name, answer)
        now_s = self._loop.time()
        actions = conversation.prepare_answered(position, answer, now_s, self._random.random())
        if (
            actions
            or leg.called_again_s is not None
            or conversation.transaction.outcome is not None
        ):
            self._go_on(live, leg, actions, now_s)  # else it goes on waiting for the other votes

    def _end_answered(self, live: Live, position: int, answer: PrepareAnswer | EndAnswer) -> None:
        conversation = live.conversation
        if self.lives.get(live.id) is not live or conversation is None:
            return
        call = live.ends.pop(position)
        assert isinstance(answer, (Acknowledged, Failed))
        leg = conversation.legs[position]
        least_s = 0.0
        if isinstance(answer, Failed):
            self._steps.end_failed(live.id, call.operation, leg, answer)
            least_s = self._retries.failed(leg, live)
        now_s = self._loop.time()
        sent_s = now_s if call.sent_s is None else call.sent_s
        jitter = self._random.random()
        actions = conversation.end_answered(position, answer, sent_s, now_s, jitter, least_s)
        self._go_on(live, leg, actions, now_s)
        if leg.acknowledged and leg.attempts > 1:
            for waiting in self._retries.brought_forward():
                self.hurry(waiting)

    def _go_on(self, live: Live, leg: Leg, actions: list[Action], now_s: float) -> None:
        """What an answer of this branch led to: mostly nothing, while others are waited for."""
        if leg.called_again_s is not None:
            self._steps.retry_planned(live.id, leg.branch.name, leg.called_again_s - now_s)
        if actions:
            self._perform(live, actions)
        else:
            assert live.conversation is not None
            self._arm(live, live.conversation)

    def _arm(self, live: Live, conversation: Conversation) -> None:
        """An alarm that rings too early is harmless: it is only moved when it would be late."""
        due_s = conversation.due_s
        if due_s < live.alarm_s and not conversation.is_finished:
            self._set_alarm(live, due_s)

    def _set_alarm(self, live: Live, due_s: float) -> None:
        live.alarm_s = due_s
        self._bell.set(live, due_s)

    def _wake(self, live: Live) -> None:
        live.alarm_s = NEVER_S
        if self.lives.get(live.id) is not live or live.conversation is None:
            return
        now_s = self._loop.time()
        try:
            self._perform(live, live.conversation.woken(now_s))
        except Exception:
            self._set_alarm(live, now_s + WAKE_AGAIN_S)  # its deadline must not be lost
            raise

    def _propose_for(
        self, live: Live, action: Action, command: Command, *, patience_s: float = 0.0
    ) -> None:
        done = functools.partial(self._applied, live, action)
        self._log.propose(encode(command), live.epoch, done, patience_s=patience_s)

    def _applied(self, live: Live, action: Action, result: object) -> None:
        if self.lives.get(live.id) is not live or live.conversation is None:
            return
        match result:
            case Applied(transaction=transaction):
                self.record_changed(transaction)
            case Overloaded():
                conversation = live.conversation
                conversation.not_proposed(action, self._loop.time(), PROPOSE_AGAIN_S)
                self._arm(live, conversation)
            case Refusal() if result is not Refusal.STALE_EPOCH:
                self._steps.write()  # what led to it comes first
                LOG.error("%s: %s was refused: %s", live.id, type(action).__name__, result.value)
            case _:
                pass  # leadership has ended, or is about to: the next leader goes on

    def record_changed(self, transaction: Transaction) -> None:
        live = self.lives.get(transaction.id)
        if live is None or live.conversation is None:
            return
        conversation, now_s = live.conversation, self._loop.time()
        if not conversation.transaction.closed:
            live.started_s = now_s  # until now its client had it in hand
        if transaction.outcome is not None and conversation.transaction.outcome is None:
            self._steps.decided(transaction, now_s - live.started_s)
        if transaction.finished_ms is not None:  # in the log before anyone is told
            self._steps.finished(transaction, now_s - live.started_s)
        actions = conversation.applied(transaction, now_s)
        live.tell(transaction)
        if actions:
            self._perform(live, actions)
        if transaction.finished_ms is not None:
            self.drop(live)
        elif transaction.resolutions:
            self._withdraw_ended_by_hand(live, transaction)

    def _withdraw_ended_by_hand(self, live: Live, transaction: Transaction) -> None:
        for position, call in list(live.ends.items()):
            if not outstanding(transaction) >> position & 1 and self._gateway.withdraw(call):
                self._end_answered(live, position, Failed("ended by hand"))
