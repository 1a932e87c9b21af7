"""How planted bugs break the rules of who is believed: proxies, operators, clocks, what was heard.

Each is one that a programmer might make in a line or two: a status that is taken at its word, a
condition that seems superfluous, a list that is not all.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from yarl import URL

import coordinator.sweep
from cluster.client.calls import HttpAnswer
from cluster.raft.core import RaftCore
from cluster.storage.journal import Journal
from cluster.storage.journal_segments import Segments
from coordinator.commands import Resolve
from coordinator.conversation import Conversation, ProposeDecision
from coordinator.courier import Delivery
from coordinator.driver import Driver
from coordinator.facts import Transaction
from coordinator.leg import Leg
from coordinator.machine import _MOVES, Machine, Restoring, Result
from coordinator.moves import Move, Refusal
from coordinator.records import branch_ended_by_hand
from participants.clock import LeastClock
from participants.contract import Decision, Failed
from participants.inquiry import MAX_ANSWER_BYTES, read_decision
from participants.store import BranchRecord
from participants.streams import read_within

# --- proxies, before nodes and before services ----------------------------------------------------


async def missing_is_abort(_original: Any, asking: Any, node: str, record: BranchRecord) -> Any:
    """An inquiry that is answered 404 is answered "abort": nobody knows of the transaction."""
    id, branch = record.transaction_id, record.branch_id
    query = {"branch_id": branch, "fingerprint": record.branch.fingerprint or ""}
    url = URL(f"{node}/v1/transactions/{id}/decision").with_query(query)
    async with asking._session.get(url) as response:
        if response.status != 200:
            return Decision.ABORT if response.status == 404 else None
        body = await read_within(response.content, MAX_ANSWER_BYTES)
    return None if body is None else read_decision(body, (id, branch))


def every_refusal_is_a_nodes(_original: Any, _answer: HttpAnswer) -> bool:
    """What refuses a repeat is the cluster, whoever speaks."""
    return False


def errors_are_final(original: Any, answer: HttpAnswer) -> bool:
    """A 500 says that nothing was done."""
    return answer.status == 500 or bool(original(answer))


def broken_never_arrived(original: Any, *lost: Any, broken: bool = False) -> Delivery:
    """What was sent over a connection that broke has not arrived."""
    delivery: Delivery = original(*lost, broken=broken)
    if not broken:
        return delivery
    failed = [replace(a, arrived=False) for a in delivery.answers if isinstance(a, Failed)]
    return delivery._replace(answers=failed)


# --- operators ------------------------------------------------------------------------------------


def nobody_said_otherwise(_original: Any, _transaction: Transaction, _branch_id: Any) -> None:
    """Who says of a branch what somebody has said differently is not told so."""


def finished_branch_by_hand(taken: ExitStack) -> None:
    """A branch that has ended in order may be ended by hand, too."""
    usual = _MOVES[Move.RESOLVE_BRANCH]

    def resolve(machine: Machine, command: Resolve, standing: Transaction) -> Result:
        result = usual(machine, command, standing)
        if result is Refusal.BRANCH_FINISHED:
            return machine._put(standing, branch_ended_by_hand(command, standing))
        return result

    taken.enter_context(patch.dict(_MOVES, {Move.RESOLVE_BRANCH: resolve}))


def resolved_not_told(_original: Any, _driver: Driver, _command: Resolve, _result: object) -> None:
    """The conversation does not hear of what an operator has done."""


# --- clocks, and the time in ids ------------------------------------------------------------------


def any_time_will_do(_original: Any, *_: Any, **__: Any) -> None:
    """An id may carry a time that is still to come."""


def forget_the_newest(taken: ExitStack) -> None:
    """Where too many are remembered, as many go, however new they are."""
    taken.enter_context(patch.object(coordinator.sweep, "LEAST_KEPT_MS", 0))


def always_sound(_original: Any, _watch: Any) -> bool:
    """A clock is believed whatever the others show."""
    return True


def steady_for_ever(_original: Any, _watch: Any) -> float:
    """A clock is believed however lately it was set."""
    return 1e9


def silent_stands_still(taken: ExitStack) -> None:
    """The clock of a silent peer is as far from this one as it was when it was heard."""

    def heard(core: RaftCore, peer: str, now_ms: int) -> None:
        core.clocks_ahead_ms[peer] = now_ms - core.now_ms()

    def offsets_ms(core: RaftCore) -> dict[str, int]:
        return {peer: round(offset_ms) for peer, offset_ms in core.clocks_ahead_ms.items()}

    taken.enter_context(patch.object(RaftCore, "heard_clock", heard))
    taken.enter_context(patch.object(RaftCore, "clock_offsets_ms", property(offsets_ms)))


def believed(original: Any, clock: LeastClock, wall_ms: float, grown_ms: float) -> None:
    """A service's clock is right, whatever it said before."""
    clock._leads.clear()
    original(clock, wall_ms, grown_ms)


# --- the leader -----------------------------------------------------------------------------------


def decided_not_taken_up(original: Any, driver: Driver, epoch: int | None) -> None:
    """A new leader takes up what is undecided; the sweep finds the rest."""
    machine: Any = driver._machine
    unfinished = machine.unfinished

    def undecided() -> Iterator[Transaction]:
        return (each for each in unfinished() if each.outcome is None)

    with patch.object(machine, "unfinished", undecided):
        original(driver, epoch)


def payloads_not_restored(original: Any, restoring: Restoring, *part: Any) -> None:
    """A snapshot brings transactions, and not the count of their payloads."""
    original(restoring, *part)
    restoring._built._payloads.bytes = 0


def decision_dropped(
    original: Any, talk: Conversation, action: Any, now_s: float, wait_s: float
) -> None:
    """A decision for which the log had no room is not proposed again."""
    if not isinstance(action, ProposeDecision):
        original(talk, action, now_s, wait_s)


def last_prepare_is_the_only_one(_original: Any, talk: Conversation, _leg: Leg) -> bool:
    """The prepare that was just answered is the only one, though others went before it."""
    return not talk._took_over


def never_too_early(original: Any, talk: Conversation, leg: Leg, answer: Any) -> None:
    """A rollback that was under way when the prepare's fate became known counts."""
    original(talk, leg, answer)
    leg.too_early = False


def other_work_waits(original: Any, transaction: Transaction, branch: str, fingerprint: str) -> Any:
    """Whose id stands for other work is told to wait for that."""
    if transaction.fingerprint != fingerprint:
        return Decision.PENDING
    return original(transaction, branch, fingerprint)


async def expired_waits(original: Any, driver: Driver, id: str, *branch: str) -> Any:
    """Whose id is too old is told to wait."""
    if driver._machine.is_expired(id):
        return Decision.PENDING
    return await original(driver, id, *branch)


# --- the disk -------------------------------------------------------------------------------------


def term_not_written(original: Any, journal: Journal, term: int, vote: str | None) -> None:
    """A term in which there was no vote yet is not written down."""
    before = len(journal._buffer)
    original(journal, term, vote)
    if vote is None:
        del journal._buffer[before:]


def noted_before_the_sync(original: Any, segments: Segments, sync: Any) -> None:
    """What is about to be synced is noted as synced."""
    segments._watermark.advance(sync.position)
    original(segments, sync)
