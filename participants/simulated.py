"""A simulated participant that does what it should, or what it was told to do wrong, for tests.

    PUT /faults   {"seed": 7, "faults": [{"fault": "delay", "operation": "prepare", "delay_ms": 50,
                   "times": 3, "probability": 0.5, "transaction_id": "t1"}, ...]}; replaces them all
    GET /faults, GET /calls?after=&limit=, GET /effects?after=&limit=, GET /branches, GET /,
    /healthz

Rules:
- A call meets at most one fault: the first of the list that fits, has `times` left and wins its
  throw. Throws come from one seeded generator.
- Without a fault it keeps its contract. `plain`: the three calls and no more; `sdk`: built on the
  SDK. With a directory it remembers over a kill -9, without one it forgets (and so breaks its
  word).
- Every call received is recorded with the fault that it met; effects are what became of branches.
"""

from __future__ import annotations

import asyncio
import enum
import json
import os
import random as randomness
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from aiohttp import web

from participants.branch import State
from participants.clock import wall_clock_ms
from participants.contract import DECLARATION_HEADER, Operation, Vote
from participants.endpoints import error_body
from participants.memory_store import MemoryStore
from participants.plain import PlainParticipant
from participants.sample import MAX_NUMBER, read_number, show_effects, with_errors
from participants.sdk import Participant, ParticipantSettings, Resource, Work
from participants.sqlite_store import SqliteStore

MAX_CALLS_KEPT = 100_000
CRASH_EXIT_CODE = 70
HUGE_BYTES = 10 * 1024 * 1024


class Fault(enum.StrEnum):
    """What can go wrong. Those that come after the effect say so; the others leave no effect."""

    NO = "no"  # votes NO
    READ_ONLY = "read_only"  # votes READ_ONLY
    ERROR = "error"  # 500
    ERROR_AFTER_EFFECT = "error_after_effect"
    DELAY = "delay"  # waits `delay_ms`, then works as it should
    DELAY_AFTER_EFFECT = "delay_after_effect"
    CRASH = "crash"  # ends the process, as kill -9 would
    CRASH_AFTER_EFFECT = "crash_after_effect"
    CLOSE = "close"  # closes the connection without an answer
    LOST_ANSWER = "lost_answer"  # does the work, then closes the connection
    NEVER = "never"  # never answers
    NEVER_AFTER_EFFECT = "never_after_effect"
    STILL_WORKING = "still_working"  # 425
    HTML = "html"  # does the work, then answers 200 with a web page
    GARBAGE = "garbage"  # does the work, then answers with half of a JSON object
    EMPTY = "empty"  # does the work, then answers 200 with nothing
    ANOTHER_TRANSACTION = "another_transaction"  # does the work, then names another transaction
    HUGE = "huge"  # does the work, then answers with 10 MB
    REDIRECT = "redirect"  # 307 to itself
    YES_THEN_NO = "yes_then_no"  # votes YES; a second prepare of the branch is answered NO


_AFTER_EFFECT = {
    Fault.ERROR_AFTER_EFFECT: Fault.ERROR,
    Fault.DELAY_AFTER_EFFECT: Fault.DELAY,
    Fault.CRASH_AFTER_EFFECT: Fault.CRASH,
    Fault.LOST_ANSWER: Fault.CLOSE,
    Fault.NEVER_AFTER_EFFECT: Fault.NEVER,
    Fault.HTML: Fault.HTML,
    Fault.GARBAGE: Fault.GARBAGE,
    Fault.EMPTY: Fault.EMPTY,
    Fault.ANOTHER_TRANSACTION: Fault.ANOTHER_TRANSACTION,
    Fault.HUGE: Fault.HUGE,
}
"""Those that come after the effect, and what each does then; the others come instead of it."""

_OWN_WORDS = (Fault.NO, Fault.READ_ONLY, Fault.YES_THEN_NO, Fault.STILL_WORKING, Fault.ERROR)
"""What the participant itself may well say; the others are answers of something in between."""


@dataclass(slots=True)
class Rule:
    """When a fault strikes. None: any operation, any transaction, any number of times."""

    fault: Fault
    operation: Operation | None = None
    transaction_id: str | None = None
    times: int | None = None
    probability: float = 1.0
    delay_ms: int = 0

    def fits(self, operation: Operation, transaction_id: str | None) -> bool:
        return (
            self.operation in (None, operation)
            and self.transaction_id in (None, transaction_id)
            and self.times != 0
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One call received, and the fault that it met."""

    number: int
    at_ms: int
    operation: str
    transaction_id: str | None
    branch_id: str | None
    fault: str | None


@dataclass(slots=True)
class Faults:
    """The rules in force, the generator, and the calls received."""

    rules: list[Rule] = field(default_factory=list)
    random: randomness.Random = field(default_factory=lambda: randomness.Random(0))
    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=MAX_CALLS_KEPT))
    received: int = 0
    said_yes: set[tuple[str | None, str | None]] = field(default_factory=set)

    def meet(self, operation: Operation, transaction_id: str | None) -> Rule | None:
        """The rule that this call meets, if any; uses up one of its times."""
        for rule in self.rules:
            if not rule.fits(operation, transaction_id):
                continue
            if rule.probability < 1.0 and self.random.random() >= rule.probability:
                continue
            if rule.times is not None:
                rule.times -= 1
            return rule
        return None


class _Willing(Resource[Any]):
    """Says YES to everything, and has nothing of its own."""

    def prepare(self, work: Work[Any], payload: Any) -> Vote:  # noqa: ARG002
        return Vote.YES

    def commit(self, work: Work[Any]) -> None:
        pass

    def rollback(self, work: Work[Any]) -> None:
        pass


class Simulated:
    """A simulated participant. `sdk`: built on the SDK, or plain. `directory`: None, it forgets."""

    def __init__(
        self,
        *,
        sdk: bool,
        directory: Path | None = None,
        settings: ParticipantSettings | None = None,
    ) -> None:
        self.faults = Faults()
        self._sdk = sdk
        self._store: MemoryStore | SqliteStore = (
            MemoryStore()
            if directory is None
            else SqliteStore(directory / "simulated.sqlite", owner="simulated")
        )
        # A fault is a call's own; a call that carries many has no place for it.
        self._settings = replace(settings or ParticipantSettings(), batches=False)

    def application(self) -> web.Application:
        if self._sdk:
            participant: Participant[Any] = Participant(_Willing(), self._store, self._settings)
            application = participant.application()
        else:
            application = PlainParticipant(self._store).application()
        application.middlewares.append(self._strike)
        router = application.router
        router.add_put("/faults", self._set_faults)
        router.add_get("/faults", self._show_faults)
        router.add_get("/calls", with_errors(self._show_calls))
        router.add_get("/effects", with_errors(self._show_effects))
        router.add_get("/branches", with_errors(self._show_branches))
        router.add_get("/healthz", self._show_health)
        router.add_get("/", self._show_health)
        return application

    # --- faults ---------------------------------------------------------------------------------

    @web.middleware
    async def _strike(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        name = request.path.rpartition("/")[2]
        if request.method != "POST" or name not in ("prepare", "commit", "rollback"):
            return await handler(request)
        operation = Operation(name)
        transaction_id, branch_id = _ids(await request.read())
        rule = self.faults.meet(operation, transaction_id)
        self._record(operation, transaction_id, branch_id, rule)
        if rule is None or self._is_first_yes(rule, transaction_id, branch_id):
            return await handler(request)
        if rule.fault in _AFTER_EFFECT:
            answer = await handler(request)
            return await _done(_AFTER_EFFECT[rule.fault], rule.delay_ms, request) or answer
        instead = await _done(rule.fault, rule.delay_ms, request)
        if instead is None:
            return await handler(request)
        if self._sdk and rule.fault in _OWN_WORDS:
            instead.headers[DECLARATION_HEADER] = Participant.declaration.header()
        return instead

    def _is_first_yes(self, rule: Rule, transaction_id: str | None, branch_id: str | None) -> bool:
        branch = (transaction_id, branch_id)
        if rule.fault is not Fault.YES_THEN_NO or branch in self.faults.said_yes:
            return False
        self.faults.said_yes.add(branch)
        return True

    def _record(
        self,
        operation: Operation,
        transaction_id: str | None,
        branch_id: str | None,
        rule: Rule | None,
    ) -> None:
        self.faults.received += 1
        number, at_ms = self.faults.received, wall_clock_ms()
        fault = None if rule is None else rule.fault.value
        call = Call(number, at_ms, operation.value, transaction_id, branch_id, fault)
        self.faults.calls.append(call)

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            seed, rules = _read_faults(await request.json())
        except ValueError as error:
            return web.json_response(error_body("bad_faults", str(error)), status=400)
        self.faults.rules = rules
        if seed is not None:
            self.faults.random = randomness.Random(seed)
        return await self._show_faults(request)

    # --- pages ----------------------------------------------------------------------------------

    async def _show_faults(self, _: web.Request) -> web.Response:
        return web.json_response({"faults": [asdict(rule) for rule in self.faults.rules]})

    async def _show_calls(self, request: web.Request) -> web.Response:
        after = read_number(request, "after", 0, 0, MAX_NUMBER)
        limit = read_number(request, "limit", 1000, 1, MAX_CALLS_KEPT)
        shown = [asdict(call) for call in self.faults.calls if call.number > after]
        return web.json_response(shown[:limit])

    async def _show_effects(self, request: web.Request) -> web.Response:
        return await show_effects(self._store, request, MAX_CALLS_KEPT)

    async def _show_branches(self, request: web.Request) -> web.Response:
        limit = read_number(request, "limit", 1000, 1, MAX_CALLS_KEPT)
        records = await self._store.in_doubt(limit)
        ids = [{"transaction_id": r.transaction_id, "branch_id": r.branch_id} for r in records]
        return web.json_response(ids)

    async def _show_health(self, _: web.Request) -> web.Response:
        counts = await self._store.count()
        shown = (State.PREPARED, State.COMMITTED, State.ROLLED_BACK)
        branches = {state.value: counts[state] for state in shown}
        kind = "sdk" if self._sdk else "plain"
        return web.json_response({"service": "simulated", "kind": kind, "branches": branches})


async def _done(fault: Fault, delay_ms: int, request: web.Request) -> web.StreamResponse | None:
    """Do what the fault does; the answer that comes of it, None: the participant's own."""
    match fault:
        case Fault.DELAY:
            await asyncio.sleep(delay_ms / 1000)
            return None
        case Fault.NO | Fault.YES_THEN_NO:
            return web.json_response({"vote": "no", "reason": "told to vote no"})
        case Fault.READ_ONLY:
            return web.json_response({"vote": "read_only"})
        case Fault.ERROR:
            return web.json_response(error_body("told_to_fail", "told to fail"), status=500)
        case Fault.CRASH:
            os._exit(CRASH_EXIT_CODE)
        case Fault.CLOSE:
            return _close(request)
        case Fault.NEVER:
            return await _never()
        case Fault.STILL_WORKING:
            return web.Response(status=425)
        case Fault.REDIRECT:
            return web.Response(status=307, headers={"Location": str(request.url)})
        case Fault.HTML:
            return web.Response(text="<html><h1>It works!</h1></html>", content_type="text/html")
        case Fault.GARBAGE:
            return web.Response(body=b'{"vote": "ye', content_type="application/json")
        case Fault.EMPTY:
            return web.Response()
        case Fault.ANOTHER_TRANSACTION:
            return web.json_response({"transaction_id": "another", "vote": "yes"})
        case Fault.HUGE:
            return web.Response(body=b'{"vote":"yes"}' + b" " * HUGE_BYTES)
        case _:
            raise AssertionError(f"{fault} is another one after the effect")


def _close(request: web.Request) -> web.Response:
    """Close the connection; the answer returned has nobody to go to."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _never() -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError("nobody sets this event")


def _ids(body: bytes) -> tuple[str | None, str | None]:
    try:
        message = json.loads(body)
        return message.get("transaction_id"), message.get("branch_id")
    except (ValueError, AttributeError, RecursionError):
        return None, None


def _read_faults(message: Any) -> tuple[int | None, list[Rule]]:
    """(seed, rules); raises ValueError that says what is wrong."""
    if not isinstance(message, dict) or not isinstance(message.get("faults"), list):
        raise ValueError('faults: must be a list, as in {"faults": [{"fault": "no"}]}')
    seed = message.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise ValueError("seed: must be a whole number")
    rules = []
    for index, given in enumerate(message["faults"]):
        try:
            fields = dict(given)
            operation = fields.pop("operation", None)
            rules.append(
                Rule(
                    fault=Fault(fields.pop("fault", "")),
                    operation=None if operation is None else Operation(operation),
                    **fields,
                )
            )
        except (TypeError, ValueError) as error:
            raise ValueError(f"faults[{index}]: {error}") from None
    return seed, rules
