"""A driver between a log in memory and a gateway that the test plays; the clock skips all waiting.

`play(scene)` runs a scene: a coroutine that gets a Rig.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import cast

from coordinator.courier import Answer
from coordinator.driver import Driver
from coordinator.facts import Outcome, Transaction
from coordinator.gateway import Call, Gateway
from coordinator.log import Done, Overloaded
from coordinator.machine import Machine
from coordinator.settings import Limits, Timings
from participants.contract import (
    PLAIN,
    Acknowledged,
    Declaration,
    Failed,
    Operation,
    Vote,
    Voted,
)
from tests.memory_log import MemoryLog
from tests.skipped_time import run_skipping

SDK = Declaration(repeatable_prepare=True, inquiry=True)

Script = Callable[[Call], Answer | None]


def play(scene: Callable[[Rig], Awaitable[None]], **settings: object) -> None:
    """Run a scene to its end; `settings` are the Rig's."""

    async def whole() -> None:
        rig = Rig(**settings)  # type: ignore[arg-type]
        errors: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: errors.append(repr(context))
        )
        await scene(rig)
        await asyncio.sleep(0)
        assert not errors, errors

    run_skipping(whole())


class PlayedLog(MemoryLog):
    """May hold back what is proposed, or be too busy to take it."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.held = False
        self.too_busy_for = 0
        self.patient: list[bytes] = []

    def takes(self, size: int) -> bool:
        del size
        return not self.too_busy_for

    def propose(self, command: bytes, epoch: int, done: Done, *, patience_s: float = 0.0) -> None:
        if patience_s:
            self.patient.append(command)
        if self.too_busy_for:
            self.too_busy_for -= 1
            asyncio.get_running_loop().call_soon(done, Overloaded("too much waits already"))
            return
        super().propose(command, epoch, done, patience_s=patience_s)

    def release(self) -> None:
        self.held = False
        self._drain()

    def _drain(self) -> None:
        if not self.held:
            super()._drain()


def yes_to_all(call: Call) -> Answer:
    return Voted(Vote.YES) if call.operation is Operation.PREPARE else Acknowledged()


def silence(_call: Call) -> Answer | None:
    return None


class PlayedGateway:
    """Answers each call as the script says; None: the test answers it, or nobody.

    It holds every call against the record: no commit or rollback may leave without its decision,
    and no two calls of one kind may be under way for one branch.
    """

    def __init__(self, machine: Machine) -> None:
        self.script: Script = yes_to_all
        self.declared: dict[str, Declaration] = {}
        self.everybody_is = SDK
        self.calls: list[Call] = []
        self.under_way: list[Call] = []
        self.queueing = False
        self.queued: list[Call] = []
        self.woken: list[str] = []
        self._machine = machine

    def begin(self, call: Call) -> None:
        self._check(call)
        self.calls.append(call)
        if self.queueing:
            self.queued.append(call)
            return
        call.sent_s = asyncio.get_running_loop().time()
        self.under_way.append(call)
        answer = self.script(call)
        if answer is not None:
            asyncio.get_running_loop().call_soon(self.answer, call, answer)

    def _check(self, call: Call) -> None:
        transaction = self._machine.get(call.transaction_id)
        if call.operation is Operation.PREPARE:
            early = transaction is None
            (is_repeatable,) = self.repeatable((call.participant,))
            assert is_repeatable or not early, "Begin comes first"
            assert transaction is None or transaction.outcome is None, (
                "a prepare after the decision"
            )
        else:
            assert transaction is not None, "an end of what was never begun"
            commits = transaction.outcome is Outcome.COMMIT
            assert transaction.outcome is not None, "I5: an end before its decision is applied"
            assert (call.operation is Operation.COMMIT) is commits
        key = (call.transaction_id, call.branch_id, call.operation)
        for other in self.under_way:
            assert key != (other.transaction_id, other.branch_id, other.operation), "twice at once"

    def answer(self, call: Call, answer: Answer) -> None:
        self.under_way.remove(call)
        call.done(answer)

    def answer_all(self, script: Script = yes_to_all) -> None:
        for call in list(self.under_way):
            answer = script(call)
            if answer is not None:
                self.answer(call, answer)

    def withdraw(self, call: Call) -> bool:
        if call not in self.queued:
            return False
        self.queued.remove(call)
        return True

    def wake(self, participant: str) -> None:
        self.woken.append(participant)

    def repeatable(self, participants: Iterable[str]) -> tuple[bool, ...]:
        declared = [self.declared.get(each, self.everybody_is) for each in participants]
        return tuple(not declaration.is_plain for declaration in declared)

    def sent(self, operation: Operation) -> list[str]:
        """The branches that the operation was sent to, in order."""
        return [call.branch_id for call in self.calls if call.operation is operation]


class Rig:
    """The node: it leads from the beginning."""

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        timings: Timings | None = None,
        plain: bool = False,
        seed: int = 1,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.ahead_ms = 0  # how far the wall clock is set
        self.machine = Machine()
        self.log = PlayedLog(self.machine)
        self.gateway = PlayedGateway(self.machine)
        if plain:
            self.gateway.everybody_is = PLAIN
        self.driver = Driver(
            self.log,
            self.machine,
            cast(Gateway, self.gateway),
            now_ms=lambda: int(loop.time() * 1000) + self.ahead_ms,
            random=Random(seed),
            limits=limits or Limits(),
            timings=timings or Timings(),
            coordinators=("http://n1",),
        )
        self.log.on_leadership = self.driver.lead
        self.log.lead()

    async def settle(self) -> None:
        """Everything that can happen without time passing has happened."""
        await asyncio.sleep(0.0005)

    def record(self, transaction_id: str = "t") -> Transaction:
        transaction = self.machine.get(transaction_id)
        assert transaction is not None
        return transaction

    def fail_over(self) -> None:
        self.log.stop_leading()
        self.log.lead()


def down(what: str = "connection refused") -> Failed:
    return Failed(what, arrived=False)
