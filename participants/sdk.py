"""What lets a team's own resource take part in transactions: a Resource and a Participant.

    class Seats(Resource[sqlite3.Connection]):
        def prepare(self, work, payload):   # promise: reserve, or raise Refused("sold out")
            ...
            return Vote.YES
        def commit(self, work): ...         # make the promise real
        def rollback(self, work): ...       # take it back

    store = SqliteStore(Path("seats.sqlite"), owner="seats")
    application.add_subapp("/seats", Participant(Seats(), store).application())

A client that does its work step by step calls the service itself, in an interactive transaction:

    enlist = EnlistSettings(("http://n1:8101", "http://n2:8101"), "http://me:9010/seats")
    participant = Participant(Seats(), store, ParticipantSettings(enlist=enlist))

    async def hold(request):                # of the service's own API
        seat = await request.text()
        def take(work):
            work.transaction.execute("INSERT ...", (seat, work.transaction_id))
        await participant.work(transaction_id_of(request), take)    # WorkRefused, NotEnlisted

Of such a branch `work.payload` is null: `commit` and `rollback` find what it took by
`work.transaction_id` and `work.branch_id`, and `check` may say NO before it is promised.

Rules:
- The functions are plain ones, not `async`: they run in the store's local transaction (of a
  SqliteStore: in its thread), and change the resource through `work.transaction` only. That is what
  makes their changes and the branch's state one: both are there after a crash, or neither.
- They are called once for each step of a branch, however often its messages come: repeats, late
  messages and messages out of order are answered by the branch table (`branch.py`).
- What `prepare` or `check` changed is kept only if it votes YES. An exception in them is a failed
  prepare and leaves nothing; one in `commit` or `rollback` leaves the branch as it was, and it is
  tried again.
- Interactive work is done only when the coordinator knows the branch, and is kept together with its
  mark: a branch whose work is there hears the outcome, or asks for it.
- A branch never ends because of time. One that hears nothing inquires (`inquiry.py`).
- An answer leaves when what it says is synced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random as randomness
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from aiohttp import web

from participants import branch
from participants.branch import Action, Cell, DoPrepare, DoWork, End, State
from participants.clock import LeastClock, wall_clock_ms
from participants.contract import Decision, Declaration, Vote, encode_json
from participants.endpoints import Reply, protocol_application
from participants.inquiry import AskNode, Inquirer, InquirySettings
from participants.interactive import (
    Enlister,
    EnlistNode,
    EnlistSettings,
    NotEnlisted,
    WorkError,
    WorkRefused,
    transaction_id_of,
)
from participants.logs import Gathered
from participants.messages import (
    EndBranch,
    Prepare,
    Received,
    read_time_ms,
    read_transaction_id,
)
from participants.replies import failure_of, line_of, reply_to
from participants.resource import (
    Refused,
    Resource,
    Work,
    require_done,
    require_plain,
    voted,
)
from participants.store import (
    BranchRecord,
    LocalTransaction,
    Store,
    StoreError,
    StoreUnavailable,
)

__all__ = [
    "EnlistSettings",
    "NotEnlisted",
    "Participant",
    "ParticipantSettings",
    "Refused",
    "Resource",
    "Work",
    "WorkError",
    "WorkRefused",
    "transaction_id_of",
]

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger("assent.participant")

# Looked up once: Python 3.11 takes 90 ns to find a member of an enum.
_PREPARE, _DISCARD, _COMMIT = Action.PREPARE, Action.DISCARD, Action.COMMIT
_NOTHING, _YES, _PREPARED = Action.NOTHING, Vote.YES, State.PREPARED

_LOOKS = 4
"""At the clock, for each sweep, beside those of messages. Of what had ended before this process
began nothing else is known than what the clock says now."""


@dataclass(frozen=True, slots=True)
class ParticipantSettings:
    """`grace_ms`: how far clocks may be apart; a prepare is accepted so long after `expires_at`.

    `tombstones_kept_ms`: longer than the coordinator remembers (a day) and than any message can be
    under way. `sweep_every_s`: how often older ones are dropped. `batches`: offer the call that
    carries many messages. It is answered as a whole: a resource that takes long for each (it waits
    for somebody else) is better without it. `enlist`: how `Participant.work` enlists it; None: it
    takes part in one-shot transactions only.
    """

    grace_ms: int = 5_000
    tombstones_kept_ms: int = 7 * 24 * 3600 * 1000
    sweep_every_s: float = 600.0
    batches: bool = True
    inquiry: InquirySettings = field(default_factory=InquirySettings)
    enlist: EnlistSettings | None = None


class Participant(Generic[T]):
    """A resource, the store that remembers its branches, and the protocol over both.

    `now_ms`: the wall clock; `random`: for jitter; `ask`, `enlist`: how to ask one node, or to
    enlist there, if not over HTTP.
    """

    declaration = Declaration(repeatable_prepare=True, inquiry=True)

    def __init__(
        self,
        resource: Resource[T],
        store: Store[T],
        settings: ParticipantSettings | None = None,
        *,
        now_ms: Callable[[], int] = wall_clock_ms,
        random: randomness.Random | None = None,
        ask: AskNode | None = None,
        enlist: EnlistNode | None = None,
    ) -> None:
        for name in ("create", "prepare", "check", "commit", "rollback"):
            require_plain(getattr(resource, name))
        self.store = store
        self._resource = resource
        self._settings = settings or ParticipantSettings()
        self._now_ms = now_ms
        self._inquirer = Inquirer(
            store.in_doubt,
            self._obey,
            self._settings.inquiry,
            now_ms=now_ms,
            random=random or randomness.Random(),
            ask=ask,
        )
        self._enlister: Enlister | None = None
        if self._settings.enlist is not None:
            self._enlister = Enlister(
                self._settings.enlist, random=random or randomness.Random(), call=enlist
            )
        self._sweeping: asyncio.Task[None] | None = None
        kept_ms = self._settings.tombstones_kept_ms
        self._clock = LeastClock(window_ms=kept_ms + self._settings.grace_ms)
        self._lines = Gathered(log)

    def application(self) -> web.Application:
        """The protocol's routes, to be mounted with `add_subapp` or served as they are.

        The store is opened and closed, and inquiry started and stopped, with the application.
        """
        application = protocol_application(
            self.receive, self.declaration, batches=self._settings.batches
        )

        async def lifetime(_: web.Application) -> AsyncIterator[None]:
            await self.start()
            try:
                yield
            finally:
                await self.stop()

        application.cleanup_ctx.append(lifetime)
        return application

    async def start(self) -> None:
        """Open the store and begin to inquire; raises StoreError."""
        await self.store.open(self._resource.create)
        self._sweeping = asyncio.create_task(self._sweep(), name="drop tombstones")
        await self._inquirer.start()

    async def stop(self) -> None:
        try:
            if self._sweeping is not None:
                self._sweeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._sweeping
            await self._inquirer.stop()
            if self._enlister is not None:
                await self._enlister.close()
        finally:
            await self.store.close()
            self._lines.write()

    async def receive(self, messages: Sequence[Received]) -> list[Reply]:
        """Carry out independent messages; the replies are in order, and true after any crash."""
        now_ms = self._now_ms() if self._sweeping is None else self._look()
        works = [
            partial(self._prepare, message, now_ms)
            if isinstance(message, Prepare)
            else partial(self._end, message, now_ms)
            for message in messages
        ]
        results = await self.store.perform(works)
        replies = [
            result if isinstance(result, Reply) else self._failed(message, result)
            for message, result in zip(messages, results, strict=True)
        ]
        if log.isEnabledFor(logging.INFO):
            self._lines.add(map(line_of, messages, replies))
        return replies

    def _failed(self, message: Received, error: Exception) -> Reply:
        self._lines.write()  # what led to it comes first
        return failure_of(message, error)

    async def work(
        self, transaction_id: str, function: Callable[[Work[T]], R], *, name: str | None = None
    ) -> R:
        """Do a piece of work in an interactive transaction; returns what `function` returned.

        `function` is a plain one, and runs in the store's local transaction when this participant
        is enlisted. `name`: of its branch, if it is to have several in one transaction.

        Raises BadMessage (the id cannot be one), WorkRefused or NotEnlisted, and whatever
        `function` does: nothing was done then. After a StoreUnavailable that may not be known, and
        work that is asked for again is done again: let the transaction be rolled back.
        """
        require_plain(function)
        if self._enlister is None:
            raise RuntimeError(
                "interactive work needs ParticipantSettings(enlist=EnlistSettings())"
            )
        branch_id = await self._enlister.branch_of(read_transaction_id(transaction_id), name)
        piece = partial(self._work, transaction_id, branch_id, function)
        (done,) = await self.store.perform([piece])
        if isinstance(done, Exception):
            raise done
        if log.isEnabledFor(logging.INFO):
            self._lines.add((f"work {transaction_id}/{branch_id}: done",))
        return done[0]

    # --- one message, inside the local transaction ----------------------------------------------

    def _work(
        self,
        transaction_id: str,
        branch_id: str,
        function: Callable[[Work[T]], R],
        local: LocalTransaction[T],
    ) -> tuple[R]:
        record = local.find(transaction_id, branch_id)
        before = None if record is None else record.branch
        asked = DoWork(self.store.incarnation)
        cell = branch.cell_of(before, asked)
        if cell.action is not Action.WORK:
            raise WorkRefused(f"branch {branch_id} of {transaction_id}: {cell.reason}")
        after = branch.after(before, asked, cell)
        assert after is not None
        assert self._settings.enlist is not None
        if after != before:
            nodes = self._settings.enlist.coordinators
            kept = BranchRecord(
                transaction_id, branch_id, after, coordinators=nodes, changed_at_ms=self._now_ms()
            )
            local.keep(kept)
        result = function(Work(transaction_id, branch_id, b"null", local.resource))
        require_done(result)
        return (result,)

    def _prepare(self, message: Prepare, looked_ms: int, local: LocalTransaction[T]) -> Reply:
        record = local.find(message.transaction_id, message.branch_id)
        now_ms = self._now_ms()
        payload = encode_json(message.payload)
        late = now_ms > read_time_ms(message.expires_at) + self._settings.grace_ms
        incarnation = self.store.incarnation if message.interactive else None
        asked = DoPrepare(message.fingerprint, late, incarnation)
        before = None if record is None else record.branch
        cell = branch.cell_of(before, asked)
        reason = cell.reason
        if cell.action is _PREPARE:
            work = Work(*message[:2], payload, local.resource, message.traceparent)
            vote, reason = voted(self._resource.prepare, work, message.payload)
            cell = cell.voted(vote)
            if cell.action is _DISCARD:
                local.undo()
        elif cell.action is not _NOTHING:
            work = Work(*message[:2], payload, local.resource, message.traceparent)
            cell, reason = self._check(cell, work, local)
        after = branch.after(before, asked, cell)
        if after is not None and after is not before:
            if after.state is _PREPARED:
                kept = BranchRecord(*message[:2], after, payload, message.coordinators, now_ms)
            else:
                kept = BranchRecord(*message[:2], after, changed_at_ms=looked_ms)
            local.keep(kept)
        return reply_to(message, cell.answer, before, after, reason)

    def _check(
        self, cell: Cell, work: Work[T], local: LocalTransaction[T]
    ) -> tuple[Cell, str | None]:
        """Have interactive work voted on; what is not to commit lets go of all that it holds."""
        reason = cell.reason
        if cell.action is Action.CHECK:
            vote, reason = voted(self._resource.check, work)
            cell = cell.voted(vote)
            if vote is not _YES:
                local.undo()
        if cell.action is Action.ROLLBACK:
            require_done(self._resource.rollback(work))
        return cell, reason

    def _end(self, message: EndBranch, now_ms: int, local: LocalTransaction[T]) -> Reply:
        record = local.find(message.transaction_id, message.branch_id)
        before = None if record is None else record.branch
        cell = branch.cell_of(before, message.end)
        if cell.action is not _NOTHING:
            assert record is not None
            work = Work(*message[:2], record.payload, local.resource, message.traceparent)
            resource = self._resource
            done = resource.commit(work) if cell.action is _COMMIT else resource.rollback(work)
            if done is not None:
                require_done(done)
        after = branch.after(before, message.end, cell)
        if after is not None and after is not before:
            local.keep(
                BranchRecord(message.transaction_id, message.branch_id, after, changed_at_ms=now_ms)
            )
        return reply_to(message, cell.answer, before, after, cell.reason)

    # --- beside the messages --------------------------------------------------------------------

    async def _obey(self, record: BranchRecord, decision: Decision) -> None:
        end = End.ANSWERED_COMMIT if decision is Decision.COMMIT else End.ANSWERED_ABORT
        (reply,) = await self.receive((EndBranch(record.transaction_id, record.branch_id, end),))
        if reply.status != 200:
            raise StoreUnavailable(reply.body["error"]["message"])
        if reply.word is State.ACTIVE:
            log.error(
                "inquiry %s/%s: commit is no answer to a branch that has promised nothing; ignored",
                record.transaction_id,
                record.branch_id,
            )

    async def _sweep(self) -> None:
        """Drop old tombstones now and then, by the least that the clock has said: one that is a day
        ahead for a moment would take away what repeated messages are answered from.
        """
        was_set = False
        self._look()
        while True:
            for _ in range(_LOOKS):
                await asyncio.sleep(self._settings.sweep_every_s / _LOOKS)
                wall_ms = self._look()
            now_ms = self._clock.now_ms(self._grown_ms())
            is_set = wall_ms - now_ms > self._settings.grace_ms
            if is_set and not was_set:
                log.warning("the clock was set ahead: tombstones are kept for longer")
            was_set = is_set
            try:
                before_ms = now_ms - self._settings.tombstones_kept_ms
                dropped = await self.store.drop_tombstones(before_ms)
                log.debug("dropped %d tombstones", dropped)
            except StoreError as error:
                log.warning("tombstones were not dropped, they will be later: %s", error)
            except Exception:
                log.exception("tombstones were not dropped, they will be later")

    def _look(self) -> int:
        """What the wall clock says. Tombstones are stamped with what was looked at: a clock that
        was behind for that moment only, which no look has seen, would make them old at once.
        """
        now_ms = self._now_ms()
        self._clock.look(now_ms, self._grown_ms())
        return now_ms

    def _grown_ms(self) -> float:
        return asyncio.get_running_loop().time() * 1000
