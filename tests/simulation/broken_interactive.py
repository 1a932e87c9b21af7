"""How planted bugs break the rules of interactive transactions: who is in, what ends them, and who
hears of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import coordinator.facts
import coordinator.interactive
import coordinator.machine
from coordinator.alarms import NEVER_S
from coordinator.commands import Close, Decide, Enlist, encode
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Branches, Mode, Transaction
from coordinator.interactive import Interactive
from coordinator.leg import Fate
from coordinator.live import Live
from coordinator.machine import _MOVES, Applied, Machine, Result
from coordinator.moves import Move
from coordinator.plan import Planned
from coordinator.records import enlisted
from participants.contract import Vote
from tests.model.broken_rules import replaced

# --- who is in ------------------------------------------------------------------------------------


async def enlisted_before_applied(
    original: Any, interactive: Interactive, id: str, place: Planned, payload: bytes
) -> tuple[Transaction, int]:
    """The number is told once `Enlist` is proposed."""
    standing = interactive._machine.get(id)
    if standing is None or standing.closed or place.name in {b.name for b in standing.branches}:
        return await original(interactive, id, place, payload)  # type: ignore[no-any-return]
    enlisting = asyncio.ensure_future(original(interactive, id, place, payload))
    enlisting.add_done_callback(lambda done: done.cancelled() or done.exception())
    branch = coordinator.facts.Branch("", *place, False)
    after = enlisted(Enlist(0, 0, id, branch, payload), standing)
    return after, len(after.branches) - 1


def numbered_by_the_leader(taken: ExitStack) -> None:
    """A branch has the number that was the next one when its `Enlist` was proposed."""
    standing_of = Interactive._standing
    seen: list[int] = []

    async def looked_at(interactive: Interactive, id: str) -> Transaction:
        standing = await standing_of(interactive, id)
        seen.append(len(standing.branches))
        return standing

    def proposed(*fields: Any) -> Enlist:
        command = Enlist(*fields)
        return command._replace(branch=command.branch._replace(branch_id=str(seen[-1] + 1)))

    def as_proposed(original: Any, command: Enlist, standing: Transaction) -> Transaction:
        after: Transaction = original(command, standing)
        return after._replace(branches=Branches((*standing.branches, command.branch)))

    taken.enter_context(patch.object(Interactive, "_standing", looked_at))
    taken.enter_context(patch.object(coordinator.interactive, "Enlist", proposed))
    replaced(coordinator.machine, "enlisted", as_proposed)(taken)


def name_is_enough(taken: ExitStack) -> None:
    """Who is enlisted already is not looked at again."""

    def move(machine: Machine, command: Enlist, standing: Transaction) -> Result:
        if command.branch.name in {branch.name for branch in standing.branches}:
            return Applied(standing, changed=False)
        return machine._enlist(command, standing)

    taken.enter_context(patch.dict(_MOVES, {Move.ADD_BRANCH: move}))


# --- what ends it ---------------------------------------------------------------------------------


def asked_all_the_same(original: Any, talk: Conversation, before: Transaction, now_s: float) -> Any:
    """Prepares leave when `Close` is applied, whatever has been proposed behind it."""
    decision, talk._decision = talk._decision, None
    try:
        return original(talk, before, now_s)
    finally:
        talk._decision = talk._decision or decision


async def prepared_before_closed(original: Any, interactive: Interactive, id: str) -> Transaction:
    """Prepares leave when `Close` is proposed."""
    standing = interactive._machine.get(id)
    if standing is not None and not standing.closed and interactive._log.epoch is not None:
        interactive._live_of(standing)
        interactive._talks.record_changed(standing._replace(closed=True))
    return await original(interactive, id)  # type: ignore[no-any-return]


async def accepted_when_proposed(_original: Any, interactive: Interactive, id: str) -> Transaction:
    """A rollback is answered once it is proposed, as not yet decided."""
    interactive._leading()
    standing = await interactive._standing(id)
    if standing.outcome is None:
        interactive._talks.roll_back(interactive._live_of(standing), "rolled back")
    return standing


def closed_by_the_next_leader(original: Any, driver: Driver, transaction: Transaction) -> Live:
    """A new leader ends what it finds open."""
    live: Live = original(driver, transaction)
    if not transaction.closed:
        close = encode(Close(live.epoch, driver._now_ms(), transaction.id))
        driver._log.propose(close, live.epoch, driver.interactive._closed)
    return live


def open_not_taken_up(original: Any, driver: Driver, epoch: int | None) -> None:
    """A new leader leaves what is open to its client, and to the sweep."""
    machine: Any = driver._machine
    unfinished = machine.unfinished

    def closed() -> Iterator[Transaction]:
        return (each for each in unfinished() if each.closed)

    with patch.object(machine, "unfinished", closed):
        original(driver, epoch)


def open_for_ever(
    original: Any, talk: Conversation, transaction: Transaction, *rest: Any, **named: Any
) -> None:
    """The deadline is for those that are closed when they are taken in hand."""
    original(talk, transaction, *rest, **named)
    if not transaction.closed:
        talk.deadline_s = NEVER_S


def decided_as_if_closed(original: Any, command: Decide, standing: Transaction) -> Transaction:
    """`Decide` fixes what the votes give, asked for or not."""
    return original(command, standing._replace(closed=True))  # type: ignore[no-any-return]


# --- who hears of it ------------------------------------------------------------------------------


def refuser_holds_nothing(original: Any, talk: Conversation, *rest: Any, **named: Any) -> None:
    """Who voted NO is let be, as in a one-shot transaction."""
    original(talk, *rest, **named)
    talk._no_promise = Fate.NOTHING_HELD


def only_who_promised(original: Any, votes: tuple[Vote, ...], _mode: Mode) -> int:
    """An abort is told to those who were asked, as in a one-shot transaction."""
    return int(original(votes, Mode.ONE_SHOT))


async def without_a_barrier(original: Any, interactive: Interactive, id: str) -> Transaction:
    """What a leader finds in its state is so."""

    async def at_once() -> None:
        pass

    with patch.object(interactive._log, "barrier", at_once):
        return await original(interactive, id)  # type: ignore[no-any-return]
