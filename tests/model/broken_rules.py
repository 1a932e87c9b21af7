"""How each rule is broken: a cell of a table, a method or a function of the project is replaced.

Where two nets hold the same rule (the machine and the driver, a rule and an assertion), both are
taken away, so that what is shown is what the rule is for.
"""

from __future__ import annotations

import functools
import inspect
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import coordinator.conversation
import coordinator.driver
import coordinator.machine
import coordinator.records
import participants.branch
from coordinator.commands import Begin, Command, Decide, Epoch
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Outcome, Transaction
from coordinator.indexes import _SEQUENCE, Timeline
from coordinator.leg import Fate, Leg
from coordinator.live import Live
from coordinator.machine import _MOVES, Applied, Machine, Result
from coordinator.moves import MOVES, Move, Phase
from coordinator.plan import Plan, Wait
from coordinator.talks import Talks
from participants.branch import Branch, Cell, DoPrepare, Message, Row, State
from participants.contract import Decision, Failed, PrepareAnswer, Vote, Working
from participants.sdk import ParticipantSettings
from participants.store import LocalTransaction
from tests.model.services import CrashingStore

Taken = Callable[[ExitStack], None]
"""Breaks a rule for as long as the stack is open."""


def other_move(command: type[Command], phases: tuple[Phase, ...], move: Move) -> Taken:
    """Other moves in these cells of the machine's table."""

    def take(taken: ExitStack) -> None:
        taken.enter_context(patch.dict(MOVES[command], dict.fromkeys(phases, move)))

    return take


_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def replaced(owner: object, name: str, instead: Callable[..., Any]) -> Taken:
    """`instead` is called with the original, and then as the original is."""

    def take(taken: ExitStack) -> None:
        original = getattr(owner, name)
        _check_fits(instead, original)

        @functools.wraps(original)
        def called(*arguments: Any, **named: Any) -> Any:
            return instead(original, *arguments, **named)

        taken.enter_context(patch.object(owner, name, called))

    return take


def _check_fits(instead: Callable[..., Any], original: Callable[..., Any]) -> None:
    """Raises TypeError; else the first call would, and be taken for what a missing rule does."""
    parameters = inspect.signature(original).parameters.values()
    by_place = [p for p in parameters if p.kind in _BY_PLACE and p.default is p.empty]
    by_name = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    inspect.signature(instead).bind(original, *by_place, **by_name)


def together(*parts: Taken) -> Taken:
    def take(taken: ExitStack) -> None:
        for part in parts:
            part(taken)

    return take


# --- the log comes first (sections 2 and 3) -------------------------------------------------------


def before_durable(outcome: Outcome) -> Taken:
    """Once `Begin` is applied, a decision with this outcome is acted upon and never proposed."""

    def propose_for(
        original: Any, talks: Talks, live: Live, action: Any, command: Command, **named: Any
    ) -> None:
        talk = live.conversation
        if isinstance(command, Decide) and talk is not None and talk.transaction.sequence:
            decided = coordinator.records.decided(command, talk.transaction)
            if decided.outcome is outcome:
                talks._applied(live, action, Applied(decided, changed=True))
                return
        original(talks, live, action, command, **named)

    return replaced(Talks, "_propose_for", propose_for)


def put_whatever(
    _original: Any, machine: Machine, before: Transaction | None, after: Transaction
) -> Applied:
    """`Machine._put` without its own net."""
    machine._store(before, after)
    return Applied(after, changed=True)


def store_over(
    original: Any, machine: Machine, before: Transaction | None, after: Transaction
) -> None:
    """Also over what has finished, which a sound machine never does."""
    found = machine._finished.get(after.id)
    if found is not None:
        machine._finished._remove(found.sequence)
        _never_forgotten(machine._finished._timeline, found.sequence)
        if before is not None:
            machine._unfinished[before.id] = before
    original(machine, before, after)


def _never_forgotten(timeline: Timeline, sequence: int) -> None:
    """It is not there any more, and would be missed when its time comes."""
    for second in list(timeline._seconds):
        left = [key for key in timeline._keys[second] if key & _SEQUENCE != sequence]
        timeline._keys[second] = array("q", left)
        if not left:
            del timeline._keys[second]
            timeline._seconds.remove(second)


def silence_is_consent(_original: Any, votes: tuple[Vote, ...], count: int) -> bool:
    return len(votes) == count and Vote.NO not in votes


def no_epoch_check(original: Any, machine: Machine, command: Command) -> Result:
    if not isinstance(command, Epoch):
        command = command._replace(epoch=machine.epoch)
    result: Result = original(machine, command)
    return result


def begin_overwrites(taken: ExitStack) -> None:
    compare, record = _MOVES[Move.COMPARE], _MOVES[Move.RECORD]

    def move(machine: Machine, command: Begin, standing: Transaction) -> Result:
        differs = command.fingerprint != standing.fingerprint
        return (record if differs else compare)(machine, command, standing)

    taken.enter_context(patch.dict(_MOVES, {Move.COMPARE: move}))


def begin_whatever_stands(
    original: Any, driver: Driver, plan: Plan, wait: Wait, future: Any
) -> None:
    """The driver's own net: it compares with what it knows before it proposes."""
    standing = driver._machine.get(plan.id)
    if (
        plan.id in driver._talks.lives
        or standing is None
        or standing.fingerprint == plan.fingerprint
    ):
        original(driver, plan, wait, future)
        return
    driver._begin(plan, wait, driver._leading()).wait(wait, future)


# --- forgetting, and what nobody knows (sections 5 and 9) -----------------------------------------


def finished_at_once(_original: Any, transaction: Transaction, now_ms: int) -> Transaction:
    return transaction._replace(finished_ms=now_ms)


def nothing_expires(original: Any, driver: Driver, *arguments: Any) -> Any:
    """The driver's own net: it does not propose what the machine would refuse as expired."""
    with patch.object(driver._machine, "is_expired", lambda _id: False):
        return original(driver, *arguments)


async def inquire_though_expired(original: Any, driver: Driver, *arguments: Any) -> Decision:
    with patch.object(driver._machine, "is_expired", lambda _id: False):
        decision: Decision = await original(driver, *arguments)
    return decision


async def refuse_nothing(_original: Any, _driver: Driver, _transaction_id: str) -> None:
    return None


class NoBarrier:
    """The log, whose barrier is no barrier."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    async def barrier(self) -> None:
        pass


async def inquire_without_barrier(original: Any, driver: Driver, *arguments: Any) -> Decision:
    with patch.object(driver, "_log", NoBarrier(driver._log)):
        decision: Decision = await original(driver, *arguments)
    return decision


def commit_for_ever(
    original: Any, transaction: Transaction, branch_id: str, fingerprint: str
) -> Decision:
    if transaction.outcome is Outcome.COMMIT and transaction.fingerprint == fingerprint:
        return Decision.COMMIT
    answer: Decision = original(transaction, branch_id, fingerprint)
    return answer


def any_fingerprint(
    original: Any, transaction: Transaction, branch_id: str, _fingerprint: str
) -> Decision:
    answer: Decision = original(transaction, branch_id, transaction.fingerprint)
    return answer


# --- participants (sections 4 and 6) --------------------------------------------------------------


def row_of_any(original: Any, branch: Branch | None, message: Message) -> Row:
    if isinstance(message, DoPrepare) and branch is not None and branch.fingerprint is not None:
        message = message._replace(fingerprint=branch.fingerprint)
    row: Row = original(branch, message)
    return row


def prepared_expires(taken: ExitStack) -> None:
    expired = Cell(
        participants.branch.Action.ROLLBACK, participants.branch.Answer.NO, State.ROLLED_BACK
    )
    cells = participants.branch.TABLE[Row.PREPARE_LATE]
    taken.enter_context(patch.dict(cells, {State.PREPARED: expired}))


async def perform_before_synced(original: Any, store: CrashingStore, works: Any) -> Any:
    """The replies leave first; a crash takes what they say with it."""
    if not store.crashes:
        return await original(store, works)

    def lost(work: Any, local: LocalTransaction[Any]) -> Any:
        reply = work(local)
        local.undo()
        return reply

    return await original(store, [functools.partial(lost, work) for work in works])


def tombstones_kept_for(original: Any, settings: ParticipantSettings, **named: Any) -> None:
    original(settings, **(named | {"tombstones_kept_ms": -1}))


def begun_before_begin(original: Any, driver: Driver, plan: Plan, *rest: Any) -> Live:
    """The conversation starts when its Begin is proposed."""
    live: Live = original(driver, plan, *rest)
    command = driver._log.proposed[-1][0]  # type: ignore[attr-defined]
    driver._talks.begin(live, coordinator.records.record_of(command, 1), took_over=False)
    return live


def go_on_once_begun(
    original: Any, driver: Driver, live: Live, address: str | None, *rest: object
) -> None:
    if live.conversation is None or not isinstance(rest[-1], Applied):
        original(driver, live, address, *rest)


def converse_as_the_first(
    original: Any, talks: Talks, live: Live, transaction: Transaction, **_named: bool
) -> None:
    original(talks, live, transaction, took_over=False)


def always_counts(_original: Any, _talk: Conversation, _position: int, _sent_s: float) -> bool:
    return True


def fate_known_while_working(
    original: Any, talk: Conversation, leg: Leg, answer: PrepareAnswer
) -> None:
    if isinstance(answer, Working):
        leg.fate, leg.too_early = Fate.KNOWN, leg.ending
    else:
        original(talk, leg, answer)


def error_ends_the_work(original: Any, talk: Conversation, leg: Leg, answer: PrepareAnswer) -> None:
    if isinstance(answer, Failed) and answer.answered:
        leg.fate, leg.too_early = Fate.KNOWN, leg.ending
    else:
        original(talk, leg, answer)


def counts_once_fate_is_known(
    original: Any, talk: Conversation, position: int, sent_s: float
) -> bool:
    known = talk.legs[position].fate is not Fate.UNKNOWN
    return known or bool(original(talk, position, sent_s))


def unsent_unless_voted(_original: Any, leg: Leg) -> Vote:
    return leg.vote or Vote.UNSENT


def only_prepare(_original: Any, _talk: Conversation, _leg: Leg) -> bool:
    return True
