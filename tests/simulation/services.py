"""The participants: built on the SDK, or plain and as forgetful as the contract allows.

A `SimStore` is a participant's durable memory. A local transaction is one moment of virtual time
(`SimLoop.run_in_executor`), after which it is synced: a kill comes before it or after it, as with
a database. The answer leaves later, so a kill may come between.

Every service writes history: what was received, the vote given, and, in the very moment of the
local transaction, the effect (shapes: `tests/checker.py`).
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, TypeVar

from aiohttp import web

from participants.branch import End, State
from participants.contract import Operation, Vote
from participants.endpoints import Reply
from participants.memory_store import MemoryStore, MemoryTable
from participants.messages import (
    EndBranch,
    Prepare,
    Received,
    read_end,
    read_prepare,
    read_time_ms,
)
from participants.sdk import Participant, ParticipantSettings, Refused, Work, WorkError
from participants.store import BranchRecord, LocalTransaction, StoreError
from tests.simulation.ledger import Ledger, hold, open_accounts, settle
from tests.simulation.manners import Manners

R = TypeVar("R")
Note = Callable[..., None]
"""Writes an event of this participant: its name, and its fields."""

ACCOUNTS = ("a", "b", "c", "d", "probe")
"""The last is left to the transactions that find out whether all is well again."""
MAX_HEARD = 60


class SimStore(MemoryStore):
    """A memory that outlives its process. See the file's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.note: Note = _ignore
        self.heard: deque[tuple[float, Any]] = deque(maxlen=MAX_HEARD)
        """Messages that were received, and when: what a network may bring once more."""
        self.worked: dict[tuple[str, str], dict[str, Any]] = {}
        """(id, branch) → what was done there for a client; for the history alone."""
        self.deeds: dict[tuple[str, str], str] = {}
        """(id, branch) → its effect, of those that were ended by hand."""
        self._noted: list[dict[str, Any]] = []
        self._is_by_hand = False

    def hear(self, message: Any) -> None:
        self.heard.append((asyncio.get_running_loop().time(), message))

    def once_more(self, draw: Random, count: int, youngest_s: float) -> list[Any]:
        """Some of what was received; but no end of a branch that is older than `youngest_s`."""
        since_s = asyncio.get_running_loop().time() - youngest_s
        may = [m for at, m in self.heard if isinstance(m, Prepare) or at >= since_s]
        if draw.random() < 0.5:
            return may[-count:]
        return draw.sample(may, min(len(may), count))

    async def open(self, create: Callable[[MemoryTable], None]) -> None:
        await asyncio.get_running_loop().run_in_executor(None, create, self.table)
        self._undo.clear()

    async def perform(
        self, works: Sequence[Callable[[LocalTransaction[MemoryTable]], R]]
    ) -> list[R | Exception]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._carry_out, works)

    def _carry_out(
        self, works: Sequence[Callable[[LocalTransaction[MemoryTable]], R]]
    ) -> list[R | Exception]:
        results: list[R | Exception] = []
        for work in works:
            self._noted = []
            try:
                results.append(work(self))
            except Exception as error:
                self.undo()
                results.append(error)
            self._undo.clear()
            for fields in self._noted:
                self.note("effect", **fields)
        return results

    def keep(self, record: BranchRecord) -> None:
        key, state = (record.transaction_id, record.branch_id), record.branch.state
        before = self._prepared.get(key)
        payload = json.loads((record if before is None else before).payload)
        worked = self.worked.get(key, {"vote": None})
        # Who has only read lets go of that with its vote, and undoes nothing.
        undoes = (
            key in self._active and state is State.ROLLED_BACK and worked["vote"] != "read_only"
        )
        if state is not State.ACTIVE:
            self.effect(*key, state, payload or worked, held=before is not None or undoes)
        super().keep(record)

    def undo(self) -> None:
        super().undo()
        self._noted = []

    def effect(
        self, id: str, branch: str, state: State, payload: dict[str, Any] | None, *, held: bool
    ) -> None:
        """Something became of a branch; `held`: it was prepared before."""
        fields: dict[str, Any] = {"id": id, "branch": branch, "effect": state.value, "held": held}
        for name in ("account", "amount", "work"):
            fields[name] = None if payload is None else payload.get(name)
        if self._is_by_hand:
            self.deeds[id, branch] = state.value
            fields["by_hand"] = True
        self._noted.append(fields)

    @contextmanager
    def by_hand(self) -> Iterator[None]:
        """What happens meanwhile is somebody's own doing."""
        self._is_by_hand = True
        try:
            yield
        finally:
            self._is_by_hand = False

    def in_doubt_now(self) -> list[str]:
        """Branches prepared, of either kind of service: `id/branch`."""
        plain = [key.removeprefix("branch ") for key in self.table if key.startswith("branch ")]
        return sorted([f"{id}/{branch}" for id, branch in self._prepared] + plain)

    def begun_now(self) -> list[str]:
        """Branches on which it has worked for a client, and that are to be prepared, or to end."""
        return sorted(k.removeprefix("begun ") for k in self.table if k.startswith("begun "))

    def balances(self) -> dict[str, int]:
        return {k.split()[1]: v for k, v in self.table.items() if k.startswith("balance ")}

    def held(self) -> list[str]:
        return sorted(key for key in self.table if key.startswith("held "))


def _ignore(_event: str, **_fields: Any) -> None:
    pass


# --- built on the SDK -----------------------------------------------------------------------------


class SdkService(Participant[MemoryTable]):
    """The SDK's participant, its messages written down, some of them delivered twice."""

    def __init__(
        self,
        store: SimStore,
        settings: ParticipantSettings,
        *,
        now_ms: Callable[[], int],
        random: Random,
        manners: Manners,
    ) -> None:
        self._ledger = Ledger(ACCOUNTS)
        super().__init__(self._ledger, store, settings, now_ms=now_ms, random=random)
        self._note = store.note
        self._heard = store
        self._draw = random
        self._manners = manners
        self._again: set[asyncio.Task[Any]] = set()

    def application(self) -> web.Application:
        application = super().application()
        application.router.add_post("/work", self._asked_to_work)
        return application

    async def _asked_to_work(self, request: web.Request) -> web.Response:
        """By a client, in an interactive transaction; answers with the branch that it is."""
        message = await request.json()
        id, payload = message["transaction_id"], message["payload"]

        def work(work: Work[MemoryTable]) -> str:
            self._heard.worked[work.transaction_id, work.branch_id] = payload
            self._ledger.work(work, payload)
            return work.branch_id

        try:
            branch = await self.work(id, work)
        except (WorkError, Refused, StoreError) as error:
            return web.json_response({"why": str(error)}, status=409)
        return web.json_response({"transaction_id": id, "branch_id": branch})

    async def receive(self, messages: Sequence[Received]) -> list[Reply]:
        for message in messages:  # once: what comes again is as old as it was
            if isinstance(message, Prepare) or message.end in (End.COMMIT, End.ROLLBACK):
                self._heard.hear(message)
        manners = self._manners
        again = manners.duplicate and self._draw.random() < manners.duplicate
        if again and all(
            isinstance(message, Prepare) or message.end in (End.COMMIT, End.ROLLBACK)
            for message in messages
        ):
            delay_s = self._draw.random() * manners.duplicate_s
            task = asyncio.create_task(self._receive_again(messages, delay_s))
            self._again.add(task)
            task.add_done_callback(self._again.discard)
        return await self._receive(messages)

    async def _receive_again(self, messages: Sequence[Received], delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._receive(messages)

    async def replay(self, draw: Random, count: int, youngest_s: float) -> None:
        """Let some of what was received come again; nobody waits for the answers."""
        for message in self._heard.once_more(draw, count, youngest_s):
            await self._receive([message])

    async def end_by_hand(self, id: str, branch: str, *, commit: bool) -> None:
        """Somebody ends a prepared branch who is no coordinator."""
        message = EndBranch(id, branch, End.COMMIT if commit else End.ROLLBACK)

        def work(local: LocalTransaction[MemoryTable]) -> None:
            if f"{id}/{branch}" in self._heard.in_doubt_now():
                with self._heard.by_hand():
                    self._end(message, self._look(), local)

        await self._heard.perform([work])

    async def _receive(self, messages: Sequence[Received]) -> list[Reply]:
        for message in messages:
            if isinstance(message, Prepare):
                payload = message.payload or self._heard.worked.get(message[:2], {})
                what, work = "prepare", {"work": payload.get("work")}
            else:
                what, work = message.end.name.lower(), {}
            self._note(what, id=message.transaction_id, branch=message.branch_id, **work)
        replies = await super().receive(messages)
        for message, reply in zip(messages, replies, strict=True):
            if isinstance(message, Prepare) and "vote" in reply.body:
                vote = reply.body["vote"]
                self._note("vote", id=message.transaction_id, branch=message.branch_id, vote=vote)
        return replies


# --- plain ----------------------------------------------------------------------------------------


class PlainService:
    """Three calls that answer with a bare `true`, `false` or nothing; and `work`, for clients of
    interactive transactions: who is enlisted without a payload votes on what it has done.

    It remembers what is prepared. `remembers`: also what has ended, and rollbacks of what it did
    not know; else it refuses a prepare after its `expires_at`, by its own clock. While `faulty` it
    may say that it is still working, and ends that work whatever it is told meanwhile.
    """

    def __init__(
        self,
        store: SimStore,
        *,
        now_ms: Callable[[], int],
        remembers: bool,
        random: Random,
        manners: Manners,
        faulty: Callable[[], bool],
        count: Callable[[str], None],
    ) -> None:
        self._store = store
        self._now_ms = now_ms
        self._remembers = remembers
        self._draw = random
        self._manners = manners
        self._faulty = faulty
        self._count = count
        self._working: dict[str, asyncio.Task[None]] = {}
        self._again: set[asyncio.Task[None]] = set()

    def application(self) -> web.Application:
        application = web.Application()
        for operation in Operation:
            application.router.add_post(f"/{operation}", self._receive)
        application.router.add_post("/work", self._begin)
        application.on_startup.append(self._open)
        return application

    async def _open(self, _: web.Application) -> None:
        await self._store.open(lambda table: open_accounts(table, ACCOUNTS))

    async def _begin(self, request: web.Request) -> web.Response:
        """Work of an enlisted branch, before its prepare; not of one that is over, or prepared."""
        message = await request.json()
        key, payload = "/".join(read_end(message)), message["payload"]

        def work(_: LocalTransaction[MemoryTable]) -> None:
            table = self._store.table
            if f"ended {key}" in table or f"branch {key}" in table:
                raise Refused("it has ended, or is about to")
            hold(table, key, {**payload, "vote": Vote.YES})
            table[f"begun {key}"] = payload

        (refusal,) = await self._store.perform([work])
        return web.Response(status=200 if refusal is None else 409)

    async def _receive(self, request: web.Request) -> web.Response:
        operation = Operation(request.path.rpartition("/")[2])
        message = await request.json()
        if operation is not Operation.PREPARE:  # which is sent once: it promises no more
            self._store.hear((operation, message))
            share = self._manners.duplicate
            if share and self._draw.random() < share:
                self._do_twice(operation, message)
        elif self._is_still_working(message):
            return web.Response(status=202)
        answer = await self._carry_out(operation, message)
        return web.Response(body=answer, content_type="application/json")

    def _do_twice(self, operation: Operation, message: Any) -> None:
        """An end that came once is carried out again later."""
        self._count("ends done twice by a plain service")
        again = asyncio.create_task(self._carry_out_late(operation, message))
        self._again.add(again)
        again.add_done_callback(self._again.discard)

    async def _carry_out_late(self, operation: Operation, message: Any) -> None:
        await asyncio.sleep(self._draw.random() * self._manners.duplicate_s)
        await self._carry_out(operation, message)

    async def end_by_hand(self, id: str, branch: str, *, commit: bool) -> None:
        """As `SdkService.end_by_hand`. What a person has ended is remembered in any case: a service
        that has not voted yet may be asked for its vote again.
        """

        def work(_: LocalTransaction[MemoryTable]) -> None:
            if f"branch {id}/{branch}" in self._store.table:
                with self._store.by_hand():
                    self._end(id, branch, commit=commit)
                self._store.table[f"ended {id}/{branch}"] = True

        await self._store.perform([work])

    def _is_still_working(self, message: Any) -> bool:
        """Whether this prepare is being done; it may begin to be."""
        id, branch = read_end(message)
        key, share = f"{id}/{branch}", self._manners.working
        begun = key in self._working
        if begun or (share and self._faulty() and self._draw.random() < share):
            self._note(Operation.PREPARE, message, again=True)
            if not begun:
                work = self._work(message, self._draw.random() * self._manners.working_s)
                self._working[key] = asyncio.create_task(work)
                self._working[key].add_done_callback(lambda _: self._working.pop(key))
            return True
        return False

    async def _work(self, message: Any, duration_s: float) -> None:
        await asyncio.sleep(duration_s)
        await self._store.perform([lambda _: self._prepare(read_prepare(message))])

    async def _carry_out(self, operation: Operation, message: Any) -> bytes:
        id, branch = read_end(message)
        store = self._store
        self._note(operation, message)

        def work(_: LocalTransaction[MemoryTable]) -> bytes:
            if operation is Operation.PREPARE:
                return self._prepare(read_prepare(message))
            return self._end(id, branch, commit=operation is Operation.COMMIT)

        (answer,) = await store.perform([work])
        if isinstance(answer, Exception):
            raise answer
        if operation is Operation.PREPARE:
            vote = Vote.YES if answer == b"true" else Vote.NO
            store.note("vote", id=id, branch=branch, vote=vote.value)
        return answer

    def _note(self, operation: Operation, message: Any, *, again: bool = False) -> None:
        """`again`: it says that it is still working, and may be asked once more."""
        id, branch = read_end(message)
        fields: dict[str, Any] = {}
        if operation is Operation.PREPARE:
            payload = message["payload"] or self._store.table.get(f"begun {id}/{branch}") or {}
            fields = {"work": payload.get("work"), "again": again}
        self._store.note(str(operation), id=id, branch=branch, **fields)

    async def replay(self, draw: Random, count: int, youngest_s: float) -> None:
        """As `SdkService.replay`."""
        for operation, message in self._store.once_more(draw, count, youngest_s):
            await self._carry_out(operation, message)

    def _prepare(self, message: Prepare) -> bytes:
        store, table = self._store, self._store.table
        key = f"{message.transaction_id}/{message.branch_id}"
        if f"branch {key}" in table:
            return b"true"
        late = self._now_ms() > read_time_ms(message.expires_at)
        if (late and not self._remembers) or f"ended {key}" in table:
            return b"false"
        begun = table.get(f"begun {key}")
        payload = message.payload or begun
        try:
            if payload is None:
                raise Refused("it has done nothing")
            hold(table, key, payload)
        except Refused:
            return b"false"  # what it has begun stays until the rollback
        if begun is not None:
            del table[f"begun {key}"]
        table[f"branch {key}"] = payload
        store.effect(message.transaction_id, message.branch_id, State.PREPARED, payload, held=False)
        return b"true"

    def _end(self, id: str, branch: str, *, commit: bool) -> bytes:
        store, table = self._store, self._store.table
        key = f"{id}/{branch}"
        for what in ("branch", "begun"):
            payload = table.get(f"{what} {key}")
            if payload is None:
                continue
            settle(table, key, payload, commit=commit)
            del table[f"{what} {key}"]
            state = State.COMMITTED if commit else State.ROLLED_BACK
            store.effect(id, branch, state, payload, held=what == "branch" or not commit)
        if self._remembers:
            table[f"ended {key}"] = True
        return b""
