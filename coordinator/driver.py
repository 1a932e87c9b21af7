"""The leader's side of every unfinished transaction: proposes, calls, waits, tells the client.

The rules are in `conversation` (what to say to a branch), `machine` (what a command does) and
`inquiry`; this file joins them to the log, the gateway and the clock. All of it runs on the event
loop's thread and as callbacks: a transaction costs no task of its own.

    submit ─▶ Begin proposed ─applied─▶ conversation ─actions─▶ gateway, log
                                             ▲                    │
                                             └────── answers ◀────┘

One conversation per transaction and leadership, ever (PROTOCOL, section 7). When leadership ends
they are dropped as they are: whoever leads next makes them again from the record.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from coordinator.allowance import Allowance
from coordinator.commands import Acknowledge, Begin, Command, Decide, Refuse, Resolve, encode
from coordinator.conversation import (
    NEVER_S,
    Action,
    Conversation,
    ProposeAcknowledgement,
    ProposeDecision,
    SendEnd,
    SendPrepare,
    WithdrawPrepare,
)
from coordinator.errors import (
    AtCapacity,
    Conflict,
    CoordinatorError,
    Draining,
    Expired,
    NotAllowed,
    UnknownTransaction,
)
from coordinator.facts import Effect, Outcome, Transaction, outstanding
from coordinator.gateway import Call, Gateway
from coordinator.inquiry import Decision, answer_inquiry
from coordinator.live import Live, Progress, Waiting, is_reached
from coordinator.log import FateUnknown, LogError, NotLeader, Overloaded, ReplicatedLog
from coordinator.machine import Applied, Machine
from coordinator.moves import Refusal
from coordinator.plan import Plan, Wait
from coordinator.settings import Limits, Timings
from coordinator.steps import Steps
from participants.contract import (
    Acknowledged,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    encode_json,
    end_body,
    prepare_body,
    rfc3339,
)

LOG = logging.getLogger("assent.driver")

TAKE_UP_AT_ONCE = 500
"""Transactions that a new leader takes up in one turn of the loop: some 20 ms of work."""

PROPOSE_AGAIN_S = 0.05
REFUSALS_PER_S = 1_000
"""Inquiries about unknown ids write to the log; a broken participant must not fill it."""


class Figures(NamedTuple):
    """For metrics and readiness. Ages in milliseconds; `backlog` counts unfinished branches."""

    leading: bool
    unfinished: int
    conversations: int
    remembered: int
    horizon_ms: int
    oldest_in_doubt_ms: int
    backlog: dict[str, int]


class Driver:
    """Drives transactions while this node leads. Made before the log starts, on its loop."""

    def __init__(
        self,
        log: ReplicatedLog,
        machine: Machine,
        gateway: Gateway,
        *,
        now_ms: Callable[[], int],
        random: Random,
        limits: Limits,
        timings: Timings,
        coordinators: tuple[str, ...],
        steps: Steps | None = None,
    ) -> None:
        self._log = log
        self._machine = machine
        self._gateway = gateway
        self._now_ms = now_ms
        self._random = random
        self._limits = limits
        self._timings = timings
        self._coordinators = encode_json(list(coordinators))
        self._steps = steps or Steps()
        self._lives: dict[str, Live] = {}
        self._beginning: collections.Counter[str] = collections.Counter()
        self._refusals = Allowance(REFUSALS_PER_S)
        self._taking_up: asyncio.Handle | None = None
        self._draining = False
        self._loop = asyncio.get_running_loop()

    # --- what clients, participants and operators ask ---

    def submit(self, plan: Plan, wait: Wait) -> Waiting:
        """Begin the transaction, or join it if it has begun: the same id is the same transaction.

        The future gives the transaction once it is begun, decided or finished, as `wait` says. It
        fails with Conflict, Expired, AtCapacity, Draining, NotLeader or Overloaded (nothing was
        begun), or with FateUnknown (ask again under the same id). Whoever waits may go away.
        """
        future: Waiting = self._loop.create_future()
        try:
            self._submit(plan, wait, future)
        except (CoordinatorError, LogError) as error:
            future.set_exception(error)
        return future

    def wait_for_end(self, transaction_id: str) -> Waiting:
        """A future that gives the transaction once it is finished; may fail like `submit`'s."""
        future: Waiting = self._loop.create_future()
        transaction = self._machine.get(transaction_id)
        live = self._lives.get(transaction_id)
        if transaction is not None and transaction.finished_ms is not None:
            future.set_result(transaction)
        elif live is not None:
            live.wait(Wait.COMPLETION, future)
        elif transaction is None:
            future.set_exception(_unknown(transaction_id))
        elif self._log.epoch is None:
            future.set_exception(NotLeader("this node does not lead"))
        else:
            self._take_up(transaction).wait(Wait.COMPLETION, future)
        return future

    def progress(self, transaction_id: str) -> tuple[Progress, ...] | None:
        """What this leader knows of each branch, in order; None if it does not drive the id."""
        live = self._lives.get(transaction_id)
        return None if live is None else live.progress()

    async def inquire(self, transaction_id: str, branch_id: str, fingerprint: str) -> Decision:
        """Answer a participant in doubt (PROTOCOL, section 5); raises LogError or AtCapacity."""
        await self._log.barrier()
        transaction = self._machine.get(transaction_id)
        if transaction is None:
            if transaction_id in self._lives:
                return Decision.PENDING  # its Begin is under way
            if self._machine.is_expired(transaction_id):
                return Decision.ABORT  # no Begin of it can ever come: nothing to write
            transaction = await self._refuse(transaction_id)
            if transaction is None:
                return Decision.ABORT
        return answer_inquiry(transaction, branch_id, fingerprint)

    async def resolve(
        self,
        transaction_id: str,
        *,
        branch_id: str | None,
        effect: Effect | None,
        actor: str,
        reason: str,
    ) -> Transaction:
        """An operator ends an undecided transaction, or a branch of a decided one, by hand.

        Raises UnknownTransaction, NotAllowed or a LogError.
        """
        epoch = self._leading()
        command = Resolve(epoch, self._now_ms(), transaction_id, branch_id, effect, actor, reason)
        result = await self._proposed(command, epoch)
        match result:
            case Applied(transaction=transaction, changed=changed):
                if branch_id is None and transaction.outcome is Outcome.COMMIT:
                    raise NotAllowed(f"{transaction_id} is committed: it cannot be aborted")
                if changed:
                    what = f"branch {branch_id} ended ({effect})" if branch_id else "aborted"
                    self._steps.resolved(transaction_id, what, actor, reason)
                    self._record_changed(transaction)
                return transaction
            case Refusal.UNKNOWN:
                raise _unknown(transaction_id)
            case Refusal() as refusal if refusal is not Refusal.STALE_EPOCH:
                raise NotAllowed(f"{transaction_id}, branch {branch_id}: {refusal.value}")
            case _:
                raise FateUnknown("leadership changed while it was resolved: ask again")

    def retry_now(self, transaction_id: str) -> Transaction:
        """Call again at once whoever is waited for; raises UnknownTransaction or NotLeader."""
        self._leading()
        transaction = self._machine.get(transaction_id)
        if transaction is None:
            raise _unknown(transaction_id)
        if transaction.finished_ms is None:
            live = self._lives.get(transaction_id) or self._take_up(transaction)
            for branch in transaction.branches:
                self._gateway.wake(branch.participant)
            if live.conversation is not None:
                self._perform(live, live.conversation.hurry(self._loop.time()))
        return transaction

    def figures(self) -> Figures:
        oldest = next(self._machine.unfinished(), None)
        return Figures(
            leading=self._log.epoch is not None,
            unfinished=self._machine.unfinished_count,
            conversations=len(self._lives),
            remembered=self._machine.remembered_count,
            horizon_ms=self._machine.horizon_ms,
            oldest_in_doubt_ms=max(0, self._now_ms() - oldest.created_ms) if oldest else 0,
            backlog=dict(self._machine.backlog()),
        )

    def drain(self) -> None:
        """Begin nothing new from now on; what is under way goes on."""
        self._draining = True

    @property
    def live_count(self) -> int:
        """Transactions in this leader's hands, those being begun included."""
        return len(self._lives)

    # --- leadership ---

    def lead(self, epoch: int | None) -> None:
        """This node leads in `epoch` from now on, or (None) no longer. Called by the log."""
        self._let_go()
        if epoch is not None:
            self._steps.took_over(epoch, self._machine.unfinished_count)
            ids = collections.deque(t.id for t in self._machine.unfinished())
            self._take_up_some(epoch, ids)

    def stop(self) -> None:
        """Drop everything; nothing recorded is lost."""
        self._let_go()

    def take_up_forgotten(self) -> int:
        """The sweep: unfinished transactions that no conversation has, which should be none."""
        if self._log.epoch is None or self._taking_up is not None:
            return 0
        ids = [t.id for t in self._machine.unfinished() if t.id not in self._lives]
        if ids:
            LOG.error("%d unfinished transactions had no conversation, first %s", len(ids), ids[0])
            self._take_up_some(self._log.epoch, collections.deque(ids))
        return len(ids)

    def _let_go(self) -> None:
        if self._taking_up is not None:
            self._taking_up.cancel()
            self._taking_up = None
        lives, self._lives = self._lives, {}
        self._beginning.clear()
        for live in lives.values():
            if live.timer is not None:
                live.timer.cancel()
            for call in live.calls():
                self._gateway.withdraw(call)
            error = FateUnknown(f"leadership ended while {live.id} was under way")
            live.fail(error)

    def _take_up_some(self, epoch: int, ids: collections.deque[str]) -> None:
        self._taking_up = None
        if self._log.epoch != epoch:
            return
        for _ in range(min(TAKE_UP_AT_ONCE, len(ids))):
            transaction = self._machine.get(ids.popleft())
            if transaction is None or transaction.finished_ms is not None:
                continue
            if transaction.id not in self._lives:
                self._take_up(transaction)
        if ids:
            self._taking_up = self._loop.call_soon(self._take_up_some, epoch, ids)

    def _take_up(self, transaction: Transaction) -> Live:
        """A conversation for what an earlier leadership left unfinished."""
        epoch = self._leading()
        now_s = self._loop.time()
        live = Live(transaction.id, transaction.fingerprint, epoch, now_s)
        self._lives[transaction.id] = live
        self._converse(live, transaction, took_over=True)
        return live

    def _leading(self) -> int:
        epoch = self._log.epoch
        if epoch is None:
            raise NotLeader("this node does not lead")
        return epoch

    # --- beginning ---

    def _submit(self, plan: Plan, wait: Wait, future: Waiting) -> None:
        epoch = self._leading()
        live = self._lives.get(plan.id)
        transaction = self._machine.get(plan.id)
        if live is None and transaction is None:
            live = self._begin(plan, epoch)
        if transaction is not None and transaction.is_refusal:
            future.set_result(transaction)
            return
        standing = live.fingerprint if live is not None else transaction and transaction.fingerprint
        if standing != plan.fingerprint:
            raise Conflict(f"id {plan.id} was begun with other content: use a new id", id=plan.id)
        if transaction is not None and is_reached(transaction, wait):
            future.set_result(transaction)
            return
        if live is None:
            assert transaction is not None
            live = self._take_up(transaction)
        live.wait(wait, future)

    def _begin(self, plan: Plan, epoch: int) -> Live:
        if self._draining:
            raise Draining("this node is stopping: ask another one")
        if self._machine.is_expired(plan.id):
            raise _expired(plan.id)
        self._check_capacity(plan)
        now_ms = self._now_ms()
        branches = tuple(
            planned.recorded(
                str(number),
                repeatable=not self._gateway.declaration(planned.participant).is_plain,
            )
            for number, planned in enumerate(plan.branches, 1)
        )
        command = Begin(
            epoch,
            now_ms,
            plan.id,
            plan.fingerprint,
            plan.mode,
            branches,
            now_ms + plan.timeout_ms,
            plan.metadata,
        )
        live = Live(plan.id, plan.fingerprint, epoch, self._loop.time())
        live.traceparent = plan.traceparent
        self._lives[plan.id] = live
        for branch in branches:
            self._beginning[branch.participant] += 1
        self._propose(command, epoch, functools.partial(self._begun, live, branches))
        return live

    def _check_capacity(self, plan: Plan) -> None:
        unfinished = max(len(self._lives), self._machine.unfinished_count)
        if unfinished >= self._limits.unfinished:
            raise AtCapacity(f"{unfinished} transactions are unfinished: try again later")
        backlog = self._machine.backlog()
        for planned in plan.branches:
            participant = planned.participant
            count = backlog.get(participant, 0) + self._beginning[participant]
            if count >= self._limits.unfinished_per_participant:
                raise AtCapacity(
                    f"{count} branches are unfinished at {participant}: try again later",
                    participant=participant,
                )

    def _begun(self, live: Live, branches: tuple[object, ...], result: object) -> None:
        if self._lives.get(live.id) is not live:
            return  # leadership ended; whoever waits has been told
        for branch in branches:
            self._count_begun(branch)
        match result:
            case Applied(transaction=transaction) if not transaction.is_refusal:
                self._steps.began(transaction)
                live.tell(transaction)
                self._converse(live, transaction, took_over=False)
                return
            case Applied(transaction=transaction):  # refused while our Begin was under way
                live.tell(transaction)
            case Refusal.CONFLICT:
                live.fail(Conflict(f"id {live.id} was begun with other content", id=live.id))
            case Refusal.EXPIRED:
                live.fail(_expired(live.id))
            case LogError():
                live.fail(result)
            case _:
                live.fail(NotLeader("leadership changed before it was begun"))
        del self._lives[live.id]

    def _count_begun(self, branch: object) -> None:
        participant = getattr(branch, "participant")  # noqa: B009
        self._beginning[participant] -= 1
        if not self._beginning[participant]:
            del self._beginning[participant]

    # --- the conversation ---

    def _converse(self, live: Live, transaction: Transaction, *, took_over: bool) -> None:
        now_s = self._loop.time()
        deadline_s = now_s + (transaction.deadline_ms - self._now_ms()) / 1000
        live.conversation = Conversation(
            transaction, self._timings, deadline_s=deadline_s, took_over=took_over
        )
        self._perform(live, live.conversation.start(now_s))

    def _perform(self, live: Live, actions: list[Action]) -> None:
        """Take the actions, then see to it that the conversation is woken in time."""
        conversation = live.conversation
        assert conversation is not None
        for action in actions:
            match action:
                case SendPrepare(position=position):
                    self._send_prepare(live, conversation, position)
                case SendEnd(position=position, operation=operation):
                    self._send_end(live, conversation, position, operation)
                case WithdrawPrepare(position=position):
                    self._withdraw_prepare(live, position)
                case ProposeDecision(votes=votes, vote_reasons=reasons, reason=reason):
                    now_ms = self._now_ms()
                    self._propose_for(
                        live, action, Decide(live.epoch, now_ms, live.id, votes, reasons, reason)
                    )
                case ProposeAcknowledgement(branches=branches):
                    now_ms = self._now_ms()
                    self._propose_for(
                        live, action, Acknowledge(live.epoch, now_ms, live.id, branches)
                    )
        self._arm(live, conversation)

    def _send_prepare(self, live: Live, conversation: Conversation, position: int) -> None:
        transaction, leg = conversation.transaction, conversation.legs[position]
        left_s = (transaction.deadline_ms - self._now_ms()) / 1000
        call = Call(
            participant=leg.branch.participant,
            operation=Operation.PREPARE,
            url=leg.branch.prepare_url,
            transaction_id=live.id,
            branch_id=leg.branch.branch_id,
            body=prepare_body(
                live.id,
                leg.branch.branch_id,
                leg.branch.payload,
                transaction.fingerprint,
                rfc3339(transaction.deadline_ms),
                self._coordinators,
            ),
            give_up_at=self._loop.time() + left_s,
            done=functools.partial(self._prepare_answered, live, position),
            traceparent=live.traceparent,
        )
        live.prepares[position] = call
        self._steps.sent(live.id, Operation.PREPARE, leg.branch.name, leg.attempts)
        self._gateway.begin(call)

    def _send_end(
        self, live: Live, conversation: Conversation, position: int, operation: Operation
    ) -> None:
        leg = conversation.legs[position]
        # I5: the decision that this call carries out is applied here, so a quorum holds it.
        assert conversation.transaction.outcome is not None
        call = Call(
            participant=leg.branch.participant,
            operation=operation,
            url=leg.branch.url_of(operation),
            transaction_id=live.id,
            branch_id=leg.branch.branch_id,
            body=end_body(live.id, leg.branch.branch_id),
            give_up_at=NEVER_S,
            done=functools.partial(self._end_answered, live, position),
            traceparent=live.traceparent,
        )
        live.ends[position] = call
        self._steps.sent(live.id, operation, leg.branch.name, leg.attempts)
        self._gateway.begin(call)

    def _withdraw_prepare(self, live: Live, position: int) -> None:
        call = live.prepares.get(position)
        if call is not None and self._gateway.withdraw(call):
            never_sent = Failed("it was decided before its turn came", arrived=False)
            self._loop.call_soon(self._prepare_answered, live, position, never_sent)

    def _prepare_answered(
        self, live: Live, position: int, answer: PrepareAnswer | EndAnswer
    ) -> None:
        conversation = live.conversation
        if self._lives.get(live.id) is not live or conversation is None:
            return
        live.prepares.pop(position, None)
        assert not isinstance(answer, Acknowledged)
        leg = conversation.legs[position]
        self._steps.prepare_answered(live.id, leg.branch.name, answer)
        now_s = self._loop.time()
        actions = conversation.prepare_answered(position, answer, now_s, self._random.random())
        if leg.called_again_s is not None:
            self._steps.retry_planned(live.id, leg.branch.name, leg.called_again_s - now_s)
        self._perform(live, actions)

    def _end_answered(self, live: Live, position: int, answer: PrepareAnswer | EndAnswer) -> None:
        conversation = live.conversation
        if self._lives.get(live.id) is not live or conversation is None:
            return
        call = live.ends.pop(position)
        assert isinstance(answer, Acknowledged | Failed)
        leg = conversation.legs[position]
        self._steps.end_answered(live.id, call.operation, leg.branch.name, answer, leg.attempts)
        now_s = self._loop.time()
        sent_s = now_s if call.sent_at is None else call.sent_at
        jitter = self._random.random()
        actions = conversation.end_answered(position, answer, sent_s, now_s, jitter)
        if leg.called_again_s is not None:
            self._steps.retry_planned(live.id, leg.branch.name, leg.called_again_s - now_s)
        self._perform(live, actions)

    def _arm(self, live: Live, conversation: Conversation) -> None:
        """A timer that fires too early is harmless, so it is only moved when it would be late."""
        if conversation.is_finished:
            return
        due_s = conversation.due_s
        if due_s == NEVER_S or (live.timer is not None and live.timer.when() <= due_s):
            return
        if live.timer is not None:
            live.timer.cancel()
        live.timer = self._loop.call_at(due_s, self._wake, live)

    def _wake(self, live: Live) -> None:
        live.timer = None
        if self._lives.get(live.id) is live and live.conversation is not None:
            self._perform(live, live.conversation.woken(self._loop.time()))

    # --- proposals and what came of them ---

    def _propose(self, command: Command, epoch: int, done: Callable[[object], None]) -> None:
        self._log.propose(encode(command), epoch, done)

    async def _proposed(self, command: Command, epoch: int) -> object:
        future: asyncio.Future[object] = self._loop.create_future()

        def done(result: object) -> None:
            if future.done():
                return
            if isinstance(result, LogError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._propose(command, epoch, done)
        return await future

    def _propose_for(self, live: Live, action: Action, command: Command) -> None:
        self._propose(command, live.epoch, functools.partial(self._applied, live, action))

    def _applied(self, live: Live, action: Action, result: object) -> None:
        if self._lives.get(live.id) is not live or live.conversation is None:
            return
        match result:
            case Applied(transaction=transaction):
                self._record_changed(transaction)
            case Overloaded():
                conversation = live.conversation
                conversation.not_proposed(action, self._loop.time(), PROPOSE_AGAIN_S)
                self._arm(live, conversation)
            case Refusal() if result is not Refusal.STALE_EPOCH:
                LOG.error("%s: %s was refused: %s", live.id, type(action).__name__, result.value)
            case _:
                pass  # leadership has ended, or is about to: the next leader goes on

    def _record_changed(self, transaction: Transaction) -> None:
        live = self._lives.get(transaction.id)
        if live is None or live.conversation is None:
            return
        conversation, now_s = live.conversation, self._loop.time()
        if transaction.outcome is not None and conversation.transaction.outcome is None:
            self._steps.decided(transaction, now_s - live.started_s)
        actions = conversation.applied(transaction, now_s)
        live.tell(transaction)
        self._perform(live, actions)
        if transaction.finished_ms is not None:
            self._finish(live, transaction)
        elif transaction.resolutions:
            self._withdraw_ended_by_hand(live, transaction)

    def _finish(self, live: Live, transaction: Transaction) -> None:
        if self._lives.get(live.id) is not live:
            return
        del self._lives[live.id]
        if live.timer is not None:
            live.timer.cancel()
        for call in live.calls():
            self._gateway.withdraw(call)
        self._steps.finished(transaction, self._loop.time() - live.started_s)

    def _withdraw_ended_by_hand(self, live: Live, transaction: Transaction) -> None:
        for position, call in list(live.ends.items()):
            if not outstanding(transaction) >> position & 1 and self._gateway.withdraw(call):
                self._end_answered(live, position, Failed("ended by hand"))

    async def _refuse(self, transaction_id: str) -> Transaction | None:
        """Refuse an id nobody knows; the transaction that stands instead, None if it expired."""
        if not self._refusals.take(self._loop.time()):
            raise AtCapacity("too many inquiries about unknown transactions: try again later")
        epoch = self._leading()
        result = await self._proposed(Refuse(epoch, self._now_ms(), transaction_id), epoch)
        match result:
            case Applied(transaction=transaction):
                return transaction
            case Refusal.EXPIRED:
                return None
            case _:
                raise NotLeader("leadership changed during the inquiry")


def _unknown(transaction_id: str) -> UnknownTransaction:
    return UnknownTransaction(
        f"transaction {transaction_id} is not known, which does not mean that it aborted",
        id=transaction_id,
    )


def _expired(transaction_id: str) -> Expired:
    return Expired(
        f"id {transaction_id} is older than what is remembered: look at the services themselves",
        id=transaction_id,
    )
