"""The leader's side of every unfinished transaction: begins, joins, takes over, answers, ends by
hand.

What clients, participants and operators ask arrives here. The rules are in `conversation` (what to
say to a branch), `machine` (what a command does) and `inquiry`; `talks` says it.

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
from time import thread_time
from typing import NamedTuple

from coordinator.admission import Admission, WaitingLine, WayIn
from coordinator.allowance import Allowance
from coordinator.capacity import Capacity
from coordinator.commands import Begin, Refuse, Resolve, encode
from coordinator.errors import AtCapacity, Conflict, Draining, NotAllowed, expired, unknown
from coordinator.facts import Effect, Outcome, Transaction, resolution_of
from coordinator.gateway import Gateway
from coordinator.ids import is_valid_id
from coordinator.inquiry import answer_inquiry
from coordinator.interactive import Interactive
from coordinator.live import Live, Progress, Waiting, is_reached
from coordinator.log import FateUnknown, LogError, NotLeader, ReplicatedLog, proposed
from coordinator.machine import Applied, Machine
from coordinator.moves import Refusal
from coordinator.plan import Plan, Wait, recorded
from coordinator.records import record_of
from coordinator.settings import Limits, Timings
from coordinator.steps import Steps
from coordinator.talks import Talks
from participants.contract import Decision

LOG = logging.getLogger("assent.driver")

_AT_ONCE, _REFUSED = WayIn.AT_ONCE, WayIn.REFUSED  # looked up once: 90 ns each time

TAKE_UP_AT_ONCE = 150
"""Branches whose transactions a new leader takes up in one turn of the loop: a few milliseconds."""

BEGIN_PATIENCE_S = 0.01
"""A `Begin` whose prepares have left needs to be in the log no sooner than the decision, and shares
its entry where the votes come within this time: one sync on every node instead of two. Not longer,
for a leader that dies meanwhile has prepared what nobody knows of until its participant inquires.
"""

REFUSES_PER_S = 1_000
"""Inquiries about unknown ids write to the log; a broken participant must not fill it."""


class Figures(NamedTuple):
    """For metrics and readiness. Ages in milliseconds; `backlog` counts unfinished branches, the
    bytes are those of undecided payloads and of what is remembered; `waiting_for_room`: a batch
    counts as one."""

    leading: bool
    waiting_for_room: int
    unfinished: int
    conversations: int
    undecided_bytes: int
    remembered: int
    remembered_bytes: int
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
        self._steps = steps or Steps()
        self._talks = Talks(
            log,
            gateway,
            now_ms=now_ms,
            random=random,
            timings=timings,
            coordinators=coordinators,
            steps=self._steps,
        )
        self._capacity = Capacity(limits)
        self._admission = Admission(spent_s=thread_time)
        self.line = WaitingLine(self._admission)
        """Where those wait that find no room to begin."""
        self._refusals = Allowance(REFUSES_PER_S)
        self.interactive = Interactive(
            log,
            machine,
            gateway,
            self._talks,
            self._capacity,
            self._steps,
            limits,
            now_ms=now_ms,
            live_of=self._live_of,
        )
        self._taking_up: asyncio.Handle | None = None
        self._draining = False
        self._loop = asyncio.get_running_loop()

    # --- what clients, participants and operators ask ---

    def submit(self, plan: Plan, wait: Wait, future: Waiting | None = None) -> Waiting:
        """Begin the transaction, or join it if it has begun: the same id is the same transaction.

        The future gives the transaction once it is begun, decided or finished, as `wait` says. It
        fails with Conflict, Expired, AtCapacity, Draining, NotLeader or Overloaded (nothing was
        begun), or with FateUnknown (ask again under the same id). Whoever waits may go away.
        `future`: this one is to be used.
        """
        future = future or self._loop.create_future()
        try:
            self._submit(plan, wait, future)
        except Exception as error:  # also a bug's: it may be called for another one's sake
            future.set_exception(error)
            future.exception()  # who asked may have gone: not an error of ours
        return future

    def submit_in_order(self, plan: Plan, wait: Wait, size: int) -> Waiting:
        """Like `submit`, as soon as there is room for it; `size`: of what was sent, in bytes."""
        assert plan.address is not None  # it stands in no line
        future: Waiting = self._loop.create_future()
        begin = functools.partial(self._submit_again, plan, wait, future)
        self.line.wait_alone(plan.address, size, begin)
        return future

    def way_in(self, transaction_id: object, address: str | None) -> WayIn:
        """How a submission from there comes in; `transaction_id`: what it gives as its id.

        Asked before the rest of it is read, for a refusal must be cheap. `address` is None for an
        element of a batch of which no more are let in; but repeats of what is known always are.
        """
        way = _REFUSED if address is None else self.line.way_in(self._loop.time(), address)
        if way is _AT_ONCE or (is_valid_id(transaction_id) and self.knows(transaction_id)):
            return _AT_ONCE
        if way is _REFUSED:
            self._steps.observer.turned_away()
        return way

    def knows(self, transaction_id: str) -> bool:
        """Whether it is being begun here, or on record."""
        return transaction_id in self._talks.lives or self._machine.get(transaction_id) is not None

    def wait_for(self, transaction_id: str, wait: Wait) -> Waiting:
        """A future that gives the transaction once `wait` is reached; may fail like `submit`'s."""
        future: Waiting = self._loop.create_future()
        transaction = self._machine.get(transaction_id)
        live = self._talks.lives.get(transaction_id)
        if transaction is not None and is_reached(transaction, wait):
            future.set_result(transaction)
        elif live is not None:
            live.wait(wait, future)
        elif transaction is None:
            future.set_exception(unknown(transaction_id))
        elif self._log.epoch is None:
            future.set_exception(NotLeader("this node does not lead"))
        else:
            self._take_up(transaction).wait(wait, future)
        return future

    def progress(self, transaction_id: str) -> tuple[Progress, ...] | None:
        """What this leader knows of each branch, in order; None if it does not drive the id."""
        live = self._talks.lives.get(transaction_id)
        return None if live is None else live.progress()

    async def inquire(self, transaction_id: str, branch_id: str, fingerprint: str) -> Decision:
        """Answer a participant in doubt (PROTOCOL, section 5); raises LogError or AtCapacity."""
        await self._log.barrier()
        transaction = self._machine.get(transaction_id)
        if transaction is None:
            if transaction_id in self._talks.lives:
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
        told = functools.partial(self._resolved, command)
        match await proposed(self._log, encode(command), epoch, told):
            case Applied(transaction=transaction, changed=changed):
                if branch_id is None and transaction.outcome is Outcome.COMMIT:
                    raise NotAllowed(f"{transaction_id} is committed: it cannot be aborted")
                said = None if changed else resolution_of(transaction, branch_id)
                if said is not None and said.effect is not effect:
                    by_hand = f"{said.actor} has ended it already, as {said.effect}: that stands"
                    raise NotAllowed(f"{transaction_id}, branch {branch_id}: {by_hand}")
                return transaction
            case Refusal.UNKNOWN:
                raise unknown(transaction_id)
            case Refusal() as refusal if refusal is not Refusal.STALE_EPOCH:
                raise NotAllowed(f"{transaction_id}, branch {branch_id}: {refusal.value}")
            case _:
                raise FateUnknown("leadership changed while it was resolved: ask again")

    def _resolved(self, command: Resolve, result: object) -> None:
        """Whoever asked for it may have gone by then; the conversation must hear of it."""
        if isinstance(result, Applied) and result.changed:
            self._talks.record_changed(result.transaction)
            ended = f"branch {command.branch_id} ended ({command.effect})"
            what = ended if command.branch_id else "aborted"
            self._steps.resolved(command.id, what, command.actor, command.reason)

    def retry_now(self, transaction_id: str) -> Transaction:
        """Call again at once whoever is waited for; raises UnknownTransaction or NotLeader."""
        self._leading()
        transaction = self._machine.get(transaction_id)
        if transaction is None:
            raise unknown(transaction_id)
        if transaction.finished_ms is None:
            self._talks.hurry(self._live_of(transaction))
        return transaction

    def figures(self) -> Figures:
        # What is open waits for its client, and is not in doubt.
        oldest = next((t for t in self._machine.unfinished() if t.closed), None)
        return Figures(
            leading=self._log.epoch is not None,
            waiting_for_room=len(self.line),
            unfinished=self._machine.unfinished_count,
            conversations=len(self._talks.lives),
            undecided_bytes=self._machine.payloads().bytes,
            remembered=self._machine.remembered_count,
            remembered_bytes=self._machine.remembered_bytes,
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
        return len(self._talks.lives)

    @property
    def undecided_count(self) -> int:
        """Those of them whose outcome is not fixed yet; looks at all, so not for every step."""
        return sum(live.is_undecided for live in self._talks.lives.values())

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
        self._steps.write()

    def take_up_forgotten(self) -> int:
        """The sweep: unfinished transactions that no conversation has, which should be none."""
        if self._log.epoch is None or self._taking_up is not None:
            return 0
        ids = [t.id for t in self._machine.unfinished() if t.id not in self._talks.lives]
        if ids:
            LOG.error("%d unfinished transactions had no conversation, first %s", len(ids), ids[0])
            self._take_up_some(self._log.epoch, collections.deque(ids))
        return len(ids)

    def _let_go(self) -> None:
        if self._taking_up is not None:
            self._taking_up.cancel()
            self._taking_up = None
        self._capacity.clear()
        self._admission.forget()
        self.line.call(self._loop.time())  # what they begin now is answered: no leader
        self._talks.drop_all(lambda i: FateUnknown(f"leadership ended while {i} was under way"))

    def _take_up_some(self, epoch: int, ids: collections.deque[str]) -> None:
        self._taking_up = None
        if self._log.epoch != epoch:
            return
        looked_at = 0
        while ids and looked_at < TAKE_UP_AT_ONCE:
            transaction = self._machine.get(ids.popleft())
            if transaction is None or transaction.finished_ms is not None:
                looked_at += 1
                continue
            looked_at += len(transaction.branches) or 1  # an open one may have none yet
            if transaction.id not in self._talks.lives:
                self._take_up(transaction)
        if ids:
            self._taking_up = self._loop.call_soon(self._take_up_some, epoch, ids)

    def _live_of(self, transaction: Transaction) -> Live:
        """In this leader's hands, whether or not the sweep has come to it yet."""
        return self._talks.lives.get(transaction.id) or self._take_up(transaction)

    def _take_up(self, transaction: Transaction) -> Live:
        """A conversation for what an earlier leadership left unfinished."""
        epoch = self._leading()
        now_s = self._loop.time()
        live = Live(transaction.id, transaction.fingerprint, epoch, now_s)
        self._talks.adopt(live)
        self._talks.begin(live, transaction, took_over=True)
        return live

    def _leading(self) -> int:
        epoch = self._log.epoch
        if epoch is None:
            raise NotLeader("this node does not lead")
        return epoch

    # --- beginning ---

    def _submit(self, plan: Plan, wait: Wait, future: Waiting) -> None:
        epoch = self._leading()
        live = self._talks.lives.get(plan.id)
        transaction = self._machine.get(plan.id)
        if transaction is None:
            if live is None:
                self._begin(plan, wait, epoch).wait(wait, future)
            elif live.fingerprint == plan.fingerprint:
                live.wait(wait, future)
            else:
                # That `Begin` may be lost, and this content have been begun by a node that was
                # asked before; "conflict" says that nothing was done.
                live.when_begun(functools.partial(self._submit_again, plan, wait, future))
        elif transaction.is_refusal:
            future.set_result(transaction)
        elif transaction.fingerprint != plan.fingerprint:
            raise Conflict(f"id {plan.id} was begun with other content: use a new id", id=plan.id)
        elif is_reached(transaction, wait):
            future.set_result(transaction)
        else:
            (live or self._take_up(transaction)).wait(wait, future)

    def _submit_again(self, plan: Plan, wait: Wait, future: Waiting) -> None:
        if not future.done():
            self.submit(plan, wait, future)

    def _begin(self, plan: Plan, wait: Wait, epoch: int) -> Live:
        if self._draining:
            raise Draining("this node is stopping: ask another one")
        if self._machine.is_expired(plan.id):
            raise expired(plan.id)
        unfinished = max(len(self._talks.lives), self._machine.unfinished_count)
        backlog, payloads = self._machine.backlog(), self._machine.payloads()
        participants = plan.participants
        self._capacity.check(participants, unfinished, backlog, payloads)
        now_ms = self._now_ms()
        repeatable = self._gateway.repeatable(participants)
        branches = recorded(plan.branches, repeatable)
        command = Begin(
            epoch, now_ms, plan.id, plan.fingerprint, plan.mode, branches, plan.payloads,
            now_ms + plan.timeout_ms, plan.metadata,
        )  # fmt: skip
        encoded = encode(command)
        live = Live(plan.id, plan.fingerprint, epoch, self._loop.time())
        live.traceparent = plan.traceparent
        self._talks.adopt(live)
        self._capacity.beginning(participants)
        self._admission.beginning(plan.address)
        # These may be asked before `Begin` is durable: if it is lost, who is prepared inquires
        # (PROTOCOL, section 3). So their messages leave at once, and it waits for the decision.
        is_repeatable = bool(branches) and all(repeatable)
        overlaps = is_repeatable and self._log.takes(len(encoded))
        patience_s = BEGIN_PATIENCE_S if overlaps and wait is not Wait.NONE else 0.0
        begun = functools.partial(self._begun, live, plan.address, participants)
        self._log.propose(encoded, epoch, begun, patience_s=patience_s)
        if overlaps:
            # Not before the proposal: of a node that was paused, or whose clock was set, since it
            # began, the deadline is over, and the decision is proposed in here, behind `Begin`.
            self._talks.begin(live, record_of(command, sequence=0), took_over=False)
        return live

    def _begun(
        self, live: Live, address: str | None, participants: list[str], result: object
    ) -> None:
        if self._talks.lives.get(live.id) is not live:
            return  # leadership ended; whoever waits has been told
        self._capacity.begun(participants)
        now_s = self._loop.time()
        applied = not isinstance(result, LogError)
        self._admission.begun(address, now_s, applied=applied)
        if self.line:
            self.line.call(now_s)
        match result:
            case Applied(transaction=transaction) if not transaction.is_refusal:
                if live.conversation is None:
                    self._talks.begin(live, transaction, took_over=False)
                self._talks.record_changed(transaction)
                return
            case Applied(transaction=transaction):  # refused while our Begin was under way
                live.tell(transaction)
            case Refusal.CONFLICT:
                live.fail(Conflict(f"id {live.id} was begun with other content", id=live.id))
            case Refusal.EXPIRED:
                live.fail(expired(live.id))
            case LogError():
                live.fail(result)
            case _:
                live.fail(NotLeader("leadership changed before it was begun"))
        self._talks.drop(live)

    async def _refuse(self, transaction_id: str) -> Transaction | None:
        """Refuse an id nobody knows; the transaction that stands instead, None if it expired."""
        if not self._refusals.take(self._loop.time()):
            raise AtCapacity("too many inquiries about unknown transactions: try again later")
        epoch = self._leading()
        command = Refuse(epoch, self._now_ms(), transaction_id)
        match await proposed(self._log, encode(command), epoch):
            case Applied(transaction=transaction):
                return transaction
            case Refusal.EXPIRED:
                return None
            case _:
                raise NotLeader("leadership changed during the inquiry")
