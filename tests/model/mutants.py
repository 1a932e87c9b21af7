"""Every rule that carries safety, broken: each in the project's own code, while it is explored.

A mutant replaces a cell of a table, a method or a function of the project for as long as its
context lasts. Where two nets hold the same rule (the machine and the driver, a rule and an
assertion), both are taken away, so that what is shown is what the rule is for.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import coordinator.driver
import coordinator.machine
import participants.branch
from coordinator.commands import Begin, Command, Decide, Epoch, Refuse
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Outcome, Transaction
from coordinator.inquiry import Decision
from coordinator.live import Live
from coordinator.machine import Applied, Machine, Result
from coordinator.moves import MOVES, Move, Phase
from coordinator.plan import Plan, Wait
from participants.branch import Branch, Cell, DoPrepare, Message, Row, State
from participants.contract import Vote
from participants.sdk import ParticipantSettings
from participants.store import LocalTransaction
from tests.model.cases import (
    ANY_VOTE,
    FORGETTING,
    LATE_SDK,
    ONE,
    OTHER_WORK,
    PLAIN_AND_SDK,
    THREE_LEADERSHIPS,
    TOMBSTONES,
    Case,
)
from tests.model.explorer import Explored, explore
from tests.model.services import CrashingStore
from tests.model.world import World

Taken = Callable[[ExitStack], None]


@dataclass(frozen=True, slots=True)
class Mutant:
    """A broken rule. `section`: of PROTOCOL; `case`: the smallest world in which it is noticed;
    `says`: how what goes wrong begins.
    """

    name: str
    section: int
    case: Case
    says: str
    take: Taken
    stale_views: bool = False

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        with ExitStack() as taken:
            self.take(taken)
            yield

    def explored(self) -> Explored:
        with self.switched_on():
            return explore(World(self.case, stale_views=self.stale_views))


def _move(command: type[Command], phases: tuple[Phase, ...], move: Move) -> Taken:
    """Other moves in these cells of the machine's table."""

    def take(taken: ExitStack) -> None:
        taken.enter_context(patch.dict(MOVES[command], dict.fromkeys(phases, move)))

    return take


def _instead(owner: object, name: str, instead: Callable[..., Any]) -> Taken:
    """`instead` is called with the original, and then as the original is."""

    def take(taken: ExitStack) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def called(*arguments: Any, **named: Any) -> Any:
            return instead(original, *arguments, **named)

        taken.enter_context(patch.object(owner, name, called))

    return take


def _all(*parts: Taken) -> Taken:
    def take(taken: ExitStack) -> None:
        for part in parts:
            part(taken)

    return take


# --- the log comes first (sections 2 and 3) -------------------------------------------------------


def _before_durable(outcome: Outcome) -> Taken:
    """A decision with this outcome is acted upon at once, and never proposed."""

    def propose_for(
        original: Any, driver: Driver, live: Live, action: Any, command: Command
    ) -> None:
        if isinstance(command, Decide) and live.conversation is not None:
            decided = coordinator.machine._decided(command, live.conversation.transaction)
            if decided.outcome is outcome:
                driver._applied(live, action, Applied(decided, changed=True))
                return
        original(driver, live, action, command)

    return _instead(Driver, "_propose_for", propose_for)


def _put_whatever(
    _original: Any, machine: Machine, before: Transaction | None, after: Transaction
) -> Applied:
    """`Machine._put` without its own net."""
    machine._table.put(after.id, after)
    machine._indexes.changed(before, after)
    return Applied(after, changed=True)


def _silence_is_consent(_original: Any, votes: tuple[Vote, ...], count: int) -> bool:
    return len(votes) == count and Vote.NO not in votes


def _no_epoch_check(original: Any, machine: Machine, command: Command) -> Result:
    if not isinstance(command, Epoch):
        command = replace(command, epoch=machine.epoch)
    result: Result = original(machine, command)
    return result


def _begin_overwrites(
    original: Any, machine: Machine, move: Move, command: Command, standing: Transaction | None
) -> Result:
    match command, standing:
        case Begin(), Transaction() if move is Move.COMPARE:
            if command.fingerprint != standing.fingerprint:
                move = Move.RECORD
    result: Result = original(machine, move, command, standing)
    return result


def _begin_whatever_stands(
    original: Any, driver: Driver, plan: Plan, wait: Wait, future: Any
) -> None:
    """The driver's own net: it compares with what it knows before it proposes."""
    standing = driver._machine.get(plan.id)
    if plan.id in driver._lives or standing is None or standing.fingerprint == plan.fingerprint:
        original(driver, plan, wait, future)
        return
    driver._begin(plan, driver._leading()).wait(wait, future)


# --- forgetting, and what nobody knows (sections 5 and 9) -----------------------------------------


def _finished_at_once(_original: Any, transaction: Transaction, now_ms: int) -> Transaction:
    return transaction._replace(finished_ms=now_ms)


def _nothing_expires(original: Any, driver: Driver, *arguments: Any) -> Any:
    """The driver's own net: it does not propose what the machine would refuse as expired."""
    with patch.object(driver._machine, "is_expired", lambda _id: False):
        return original(driver, *arguments)


async def _inquire_though_expired(original: Any, driver: Driver, *arguments: Any) -> Decision:
    with patch.object(driver._machine, "is_expired", lambda _id: False):
        decision: Decision = await original(driver, *arguments)
    return decision


async def _refuse_nothing(_original: Any, _driver: Driver, _transaction_id: str) -> None:
    return None


class _NoBarrier:
    """The log, whose barrier is no barrier."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def barrier(self) -> None:
        pass


async def _inquire_without_barrier(original: Any, driver: Driver, *arguments: Any) -> Decision:
    with patch.object(driver, "_log", _NoBarrier(driver._log)):
        decision: Decision = await original(driver, *arguments)
    return decision


def _commit_for_ever(
    original: Any, transaction: Transaction, branch_id: str, fingerprint: str
) -> Decision:
    if transaction.outcome is Outcome.COMMIT and transaction.fingerprint == fingerprint:
        return Decision.COMMIT
    answer: Decision = original(transaction, branch_id, fingerprint)
    return answer


def _any_fingerprint(
    original: Any, transaction: Transaction, branch_id: str, _fingerprint: str
) -> Decision:
    answer: Decision = original(transaction, branch_id, transaction.fingerprint)
    return answer


# --- participants (sections 4 and 6) --------------------------------------------------------------


def _row_of_any(original: Any, branch: Branch | None, message: Message) -> Row:
    if isinstance(message, DoPrepare) and branch is not None and branch.fingerprint is not None:
        message = dataclasses.replace(message, fingerprint=branch.fingerprint)
    row: Row = original(branch, message)
    return row


def _prepared_expires(taken: ExitStack) -> None:
    expired = Cell(
        participants.branch.Action.ROLLBACK, participants.branch.Answer.NO, State.ROLLED_BACK
    )
    cells = participants.branch.TABLE[Row.PREPARE_LATE]
    taken.enter_context(patch.dict(cells, {State.PREPARED: expired}))  # type: ignore[arg-type]


async def _perform_before_synced(original: Any, store: CrashingStore, works: Any) -> Any:
    """The replies leave first; a crash takes what they say with it."""
    if not store.crashes:
        return await original(store, works)

    def lost(work: Any, local: LocalTransaction[Any]) -> Any:
        reply = work(local)
        local.undo()
        return reply

    return await original(store, [functools.partial(lost, work) for work in works])


def _tombstones_kept_for(original: Any, settings: ParticipantSettings, **named: Any) -> None:
    original(settings, **(named | {"tombstones_kept_ms": -1}))


def _begun_before_begin(original: Any, driver: Driver, plan: Plan, epoch: int) -> Live:
    """The conversation starts when its Begin is proposed."""
    live: Live = original(driver, plan, epoch)
    command = driver._log.proposed[-1][0]  # type: ignore[attr-defined]
    driver._converse(live, coordinator.machine._begun(command, 1), took_over=False)  # type: ignore[arg-type]
    return live


def _go_on_once_begun(
    original: Any, driver: Driver, live: Live, branches: tuple[object, ...], result: object
) -> None:
    if live.conversation is None or not isinstance(result, Applied):
        original(driver, live, branches, result)


def _converse_as_the_first(
    original: Any, driver: Driver, live: Live, transaction: Transaction, **_named: bool
) -> None:
    original(driver, live, transaction, took_over=False)


def _always_counts(_original: Any, _talk: Conversation, _position: int, _sent_s: float) -> bool:
    return True


_DECIDED = (Phase.COMMITTING, Phase.ABORTING, Phase.FINISHED)

MUTANTS = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "abort-told-before-durable",
            3,
            ANY_VOTE,
            "I4",
            _before_durable(Outcome.ABORT),
        ),
        Mutant(
            "commit-told-before-durable",
            3,
            ANY_VOTE,
            "I5",
            _before_durable(Outcome.COMMIT),
        ),
        Mutant(
            "last-decision-wins",
            2,
            THREE_LEADERSHIPS,
            "I2",
            _all(
                _move(Decide, _DECIDED, Move.DECIDE),
                _instead(Machine, "_put", _put_whatever),
            ),
        ),
        Mutant(
            "silence-is-consent",
            2,
            ANY_VOTE,
            "I3",
            _instead(coordinator.machine, "everyone_can_commit", _silence_is_consent),
        ),
        Mutant(
            "forget-before-acknowledged",
            9,
            FORGETTING,
            "I1",
            _instead(coordinator.machine, "_finished_if_done", _finished_at_once),
        ),
        Mutant(
            "begin-after-forgetting",
            9,
            TOMBSTONES,
            "I",
            _all(
                _move(Begin, (Phase.EXPIRED,), Move.RECORD),
                _instead(Driver, "_begin", _nothing_expires),
            ),
        ),
        Mutant(
            "expired-id-recorded-as-refused",
            5,
            FORGETTING,
            "I4",
            _all(
                _move(Refuse, (Phase.EXPIRED,), Move.RECORD_REFUSAL),
                _instead(Driver, "inquire", _inquire_though_expired),
            ),
        ),
        Mutant(
            "unknown-not-refused",
            5,
            THREE_LEADERSHIPS,
            "I1",
            _instead(Driver, "_refuse", _refuse_nothing),
        ),
        Mutant(
            "refusal-does-not-stick",
            2,
            THREE_LEADERSHIPS,
            "I4",
            _move(Begin, (Phase.REFUSED,), Move.RECORD),
        ),
        Mutant(
            "stale-leader-answers",
            5,
            TOMBSTONES,
            "I7",
            _instead(Driver, "inquire", _inquire_without_barrier),
            stale_views=True,
        ),
        Mutant(
            "no-epoch-check",
            1,
            ONE,
            "I10",
            _instead(Machine, "step", _no_epoch_check),
        ),
        Mutant(
            "acknowledged-answered-commit",
            5,
            TOMBSTONES,
            "I7",
            _instead(coordinator.driver, "answer_inquiry", _commit_for_ever),
        ),
        Mutant("prepared-expires", 4, LATE_SDK, "I1", _prepared_expires),
        Mutant(
            "yes-before-durable",
            4,
            ANY_VOTE,
            "I1",
            _instead(CrashingStore, "perform", _perform_before_synced),
        ),
        Mutant(
            "tombstone-dropped-at-once",
            4,
            TOMBSTONES,
            "I7",
            _instead(ParticipantSettings, "__init__", _tombstones_kept_for),
        ),
        Mutant(
            "fingerprint-ignored",
            4,
            OTHER_WORK,
            "I7",
            _all(
                _instead(coordinator.driver, "answer_inquiry", _any_fingerprint),
                _instead(participants.branch, "row_of", _row_of_any),
            ),
        ),
        Mutant(
            "begin-overwrites",
            2,
            OTHER_WORK,
            "I",
            _all(
                _instead(Machine, "_move", _begin_overwrites),
                _instead(Driver, "_submit", _begin_whatever_stands),
            ),
        ),
        Mutant(
            "plain-prepared-before-begin",
            3,
            PLAIN_AND_SDK,
            "I7",
            _all(
                _instead(Driver, "_begin", _begun_before_begin),
                _instead(Driver, "_begun", _go_on_once_begun),
            ),
        ),
        Mutant(
            "plain-prepared-again",
            7,
            PLAIN_AND_SDK,
            "I7",
            _instead(Driver, "_converse", _converse_as_the_first),
        ),
        Mutant(
            "plain-rollback-counts-at-once",
            6,
            PLAIN_AND_SDK,
            "I10",
            _instead(Conversation, "_counts", _always_counts),
        ),
    )
}
"""The table of PROTOCOL, section 12."""
