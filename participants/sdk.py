"""What lets a team's own resource take part in transactions: a Resource and a Participant.

    class Seats(Resource[sqlite3.Connection]):
        def prepare(self, work, payload):   # promise: reserve, or raise Refused("sold out")
            ...
            return Vote.YES
        def commit(self, work): ...         # make the promise real
        def rollback(self, work): ...       # take it back

    store = SqliteStore(Path("seats.sqlite"), owner="seats")
    application.add_subapp("/seats", Participant(Seats(), store).application())

Rules:
- The functions are plain ones, not `async`: they run in the store's local transaction (of a
  SqliteStore: in its thread), and change the resource through `work.transaction` only. That is what
  makes their changes and the branch's state one: both are there after a crash, or neither.
- They are called once for each step of a branch, however often its messages come: repeats, late
  messages and messages out of order are answered by the branch table (`branch.py`).
- What `prepare` changed is kept only if it votes YES. An exception in `prepare` is a failed prepare
  and leaves nothing; one in `commit` or `rollback` leaves the branch prepared, and it is tried
  again.
- A prepared branch never ends because of time. If it hears nothing, it inquires (`inquiry.py`).
- An answer leaves when what it says is synced.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import inspect
import logging
import random as randomness
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

from aiohttp import web

from participants import branch
from participants.branch import Action, Answer, Branch, DoPrepare, End, State
from participants.clock import LeastClock, wall_clock_ms
from participants.contract import (
    MAX_REASON_CHARS,
    BadMessage,
    Decision,
    Declaration,
    Vote,
    encode_json,
)
from participants.endpoints import Reply, error_body, protocol_application
from participants.inquiry import AskNode, Inquirer, InquirySettings
from participants.logs import Gathered
from participants.messages import (
    EndBranch,
    Prepare,
    Received,
    decode_payload,
    read_time_ms,
)
from participants.store import (
    BranchRecord,
    LocalTransaction,
    Store,
    StoreError,
    StoreUnavailable,
)

T = TypeVar("T")

log = logging.getLogger("assent.participant")

# Looked up once: Python 3.11 takes 90 ns to find a member of an enum.
_PREPARE, _DISCARD, _COMMIT = Action.PREPARE, Action.DISCARD, Action.COMMIT
_NOTHING, _YES, _DONE = Action.NOTHING, Vote.YES, Answer.DONE


_LOOKS = 4
"""At the clock, for each sweep, beside those of messages. Of what had ended before this process
began nothing else is known than what the clock says now."""


class Refused(Exception):
    """Raised by `prepare` to vote NO; the text is the reason that the client will read."""


class Work(NamedTuple, Generic[T]):
    """What a resource's function works on. `transaction`: the store's local transaction.

    `encoded`: the payload as it is kept. `traceparent`: as the client sent it to the coordinator
    (W3C Trace Context), to make a span of; None where it sent none, where a new leader asks (it is
    not kept), and where the branch has found out its outcome by itself.
    """

    transaction_id: str
    branch_id: str
    encoded: bytes
    transaction: T
    traceparent: str | None = None

    @property
    def payload(self) -> Any:
        """What the client sent for this branch (any JSON value), the same in all three calls.

        Decoded anew whenever it is asked for: whoever changes it changes nobody else's.
        """
        return decode_payload(self.encoded)


class Resource(abc.ABC, Generic[T]):
    """What a team writes. `T` is what the store offers for changes (of SQLite: the connection)."""

    def create(self, transaction: T) -> None:
        """Create what the resource needs, if it is not there; called at each start."""

    @abc.abstractmethod
    def prepare(self, work: Work[T], payload: Any) -> Vote:
        """Promise that `commit` will succeed after any crash: YES, or NO (by Refused: and why).

        READ_ONLY says that the branch changes nothing: it hears no more of the transaction.
        """

    @abc.abstractmethod
    def commit(self, work: Work[T]) -> None:
        """Make real what was promised. It must not fail; if it does, it is called again."""

    @abc.abstractmethod
    def rollback(self, work: Work[T]) -> None:
        """Take back what was promised. It must not fail; if it does, it is called again."""


@dataclass(frozen=True, slots=True)
class ParticipantSettings:
    """`grace_ms`: how far clocks may be apart; a prepare is accepted so long after `expires_at`.

    `tombstones_kept_ms`: longer than the coordinator remembers (a day) and than any message can be
    under way. `sweep_every_s`: how often older ones are dropped. `batches`: offer the call that
    carries many messages. It is answered as a whole: a resource that takes long for each (it waits
    for somebody else) is better without it.
    """

    grace_ms: int = 5_000
    tombstones_kept_ms: int = 7 * 24 * 3600 * 1000
    sweep_every_s: float = 600.0
    batches: bool = True
    inquiry: InquirySettings = field(default_factory=InquirySettings)


class ResourceFailed(Exception):
    """A resource's function raised, or returned what is no vote."""


class Participant(Generic[T]):
    """A resource, the store that remembers its branches, and the protocol over both.

    `now_ms`: the wall clock; `random`: for the jitter of inquiries; `ask`: how to ask one node, if
    not over HTTP.
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
    ) -> None:
        for function in (resource.create, resource.prepare, resource.commit, resource.rollback):
            if inspect.iscoroutinefunction(function):
                raise TypeError(
                    f"{function.__qualname__} is async; write it as a plain function, it runs "
                    "inside the store's local transaction"
                )
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
        finally:
            await self.store.close()
            self._lines.write()

    async def receive(self, messages: Sequence[Received]) -> list[Reply]:
        """Carry out independent messages; the replies are in order, and true after any crash."""
        now_ms = self._now_ms() if self._sweeping is None else self._look()
        works = [
            partial(self._prepare, message)
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
            self._lines.add(map(_said, messages, replies))
        return replies

    def _failed(self, message: Received, error: Exception) -> Reply:
        self._lines.write()  # what led to it comes first
        return _failure(message, error)

    # --- one message, inside the local transaction ----------------------------------------------

    def _prepare(self, message: Prepare, local: LocalTransaction[T]) -> Reply:
        record = local.find(message.transaction_id, message.branch_id)
        now_ms = self._now_ms()
        payload = encode_json(message.payload)
        late = now_ms > read_time_ms(message.expires_at) + self._settings.grace_ms
        asked = DoPrepare(message.fingerprint, late)
        before = None if record is None else record.branch
        cell = branch.cell_of(before, asked)
        reason = cell.reason
        if cell.action is _PREPARE:
            vote, reason = self._ask(message, payload, local)
            cell = cell.voted(vote)
            if cell.action is _DISCARD:
                local.undo()
        after = branch.after(before, asked, cell)
        if after is not None and after is not before:
            local.keep(
                BranchRecord(
                    message.transaction_id,
                    message.branch_id,
                    after,
                    payload,
                    message.coordinators,
                    now_ms,
                )
            )
        return _reply(message, cell.answer, before, after, reason)

    def _ask(
        self, message: Prepare, payload: bytes, local: LocalTransaction[T]
    ) -> tuple[Vote, str | None]:
        work = Work(*message[:2], payload, local.resource, message.traceparent)
        try:
            vote = self._resource.prepare(work, message.payload)
        except Refused as refused:
            return Vote.NO, str(refused)[:MAX_REASON_CHARS] or "refused, no reason given"
        if vote == _YES:
            return _YES, None
        if vote == Vote.NO:
            return Vote.NO, "refused, no reason given"
        if vote == Vote.READ_ONLY:
            return Vote.READ_ONLY, None
        raise ResourceFailed(f"prepare returned {vote!r}; return a Vote, or raise Refused")

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
                _require_done(done)
        after = branch.after(before, message.end, cell)
        if after is not None and after is not before:
            local.keep(
                BranchRecord(message.transaction_id, message.branch_id, after, changed_at_ms=now_ms)
            )
        return _reply(message, cell.answer, before, after, cell.reason)

    # --- beside the messages --------------------------------------------------------------------

    async def _obey(self, record: BranchRecord, decision: Decision) -> None:
        end = End.ANSWERED_COMMIT if decision is Decision.COMMIT else End.ANSWERED_ABORT
        (reply,) = await self.receive((EndBranch(record.transaction_id, record.branch_id, end),))
        if reply.status != 200:
            raise StoreUnavailable(reply.body["error"]["message"])

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


def _require_done(returned: object) -> None:
    """Raises ResourceFailed if a commit or rollback was a generator or asynchronous: nobody runs
    what it returned, so nothing has been done. (Decorated, it did not look so at the start.)
    """
    if inspect.iscoroutine(returned):
        returned.close()
    if inspect.isawaitable(returned) or inspect.isgenerator(returned):
        raise ResourceFailed(f"it returned {returned!r}, which nobody runs; write it as a function")


# --- replies ------------------------------------------------------------------------------------

_ERRORS = {
    Answer.REFUSED: 409,
    Answer.UNKNOWN_BRANCH: 404,
    Answer.NOT_PREPARED: 409,
    Answer.ALREADY_COMMITTED: 409,
    Answer.ALREADY_ROLLED_BACK: 409,
}
_VOTED = {vote: Reply(200, {"vote": vote}, vote) for vote in (Answer.YES, Answer.READ_ONLY)}
_ENDED = {state: Reply(200, {"state": state}, state) for state in State}
"""Replies that say no more than a word: the same for all."""


def _reply(
    message: Received,
    answer: Answer | None,
    before: Branch | None,
    after: Branch | None,
    reason: str | None,
) -> Reply:
    if answer is None or answer is _DONE:  # None: nobody waits for it
        return _ENDED[State.ABSENT if after is None else after.state]
    if answer in _VOTED:
        return _VOTED[answer]
    if answer is Answer.NO:
        return Reply(200, {"vote": answer, "reason": reason})
    state = State.ABSENT if before is None else before.state
    what = f"branch {message.branch_id} of {message.transaction_id} is {state}"
    text = f"{what}: {reason}" if reason else what
    return Reply(_ERRORS[answer], error_body(answer, text, state=state))


def _failure(message: Received, error: Exception) -> Reply:
    what = _named(message)
    if isinstance(error, BadMessage):
        status, body = 400, error_body("bad_message", f"payload: {error}; nothing was changed")
    elif isinstance(error, StoreError):
        log.error("%s %s/%s: %s", what, message.transaction_id, message.branch_id, error)
        status, body = 503, error_body("store_unavailable", str(error))
    else:
        log.error(
            "%s %s/%s failed in the resource",
            what,
            message.transaction_id,
            message.branch_id,
            exc_info=error,
        )
        kept = "nothing was kept" if what == "prepare" else "the branch stays prepared"
        text = f"{what} failed in the resource, {kept}: {type(error).__name__}: {error}"
        status, body = 500, error_body("resource_failed", text[:500])
    return Reply(status, body)


def _said(message: Received, reply: Reply) -> str:
    """A line for people. What a failure comes from has been logged before."""
    said = reply.word or reply.body.get("vote") or reply.body["error"]["code"]
    reason = reply.body.get("reason")
    line = f"{_named(message)} {message.transaction_id}/{message.branch_id}: {said}"
    return f"{line} ({reason})" if reason else line


def _named(message: Received) -> str:
    return "prepare" if isinstance(message, Prepare) else message.end
