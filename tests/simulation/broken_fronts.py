"""How planted bugs break the rules that only what stands before services, operators, failing disks
and small bounds show."""

from __future__ import annotations

import json
from contextlib import ExitStack, suppress
from typing import Any
from unittest.mock import patch

import coordinator.courier
import participants.contract
from cluster.errors import DiskFailed
from cluster.raft.barriers import _Asked
from cluster.raft.core import RaftCore
from cluster.raft.replica import Replica
from cluster.raft.state import Role
from cluster.raft.wire import VoteReply
from cluster.storage.disk import File
from cluster.storage.journal_segments import Segments
from coordinator.api_transactions import Transactions
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Transaction
from participants.contract import Acknowledged, Operation
from tests.model.broken_rules import Taken, replaced, together
from tests.simulation.broken_rules import look_for_nothing

# --- what participants and proxies say ------------------------------------------------------------


def proxies_are_participants(taken: ExitStack) -> None:
    """A 502 to 504 counts as the participant's own: the call is no longer under way."""
    for module in (participants.contract, coordinator.courier):
        taken.enter_context(patch.object(module, "PROXY_STATUSES", ()))


def acknowledged_with(wrong: int) -> Taken:
    """This status acknowledges a commit, too."""

    def answer(original: Any, operation: Operation, status: int, *rest: Any) -> Any:
        if status == wrong and operation is Operation.COMMIT:
            return Acknowledged()
        return original(operation, status, *rest)

    return replaced(participants.contract, "_end_answer", answer)


def of_whichever(_original: Any, _answer: Any, _branch: Any) -> None:
    """An answer is taken for the branch that was asked about, whatever it says."""


def undeclared(original: Any, *asked: Any, declared: bool) -> Any:
    """Nobody is thought of as one who may answer batches."""
    del declared
    return original(*asked)


def unnamed(_original: Any, answer: Any, _name: Any) -> Any:
    """Nobody can tell which request an answer belongs to."""
    return answer


def whosever_decision(original: Any, body: bytes, branch: Any) -> Any:
    """An inquiry's answer is taken for the branch that was asked about, whatever it says."""
    with suppress(ValueError, AttributeError):
        body = json.dumps({"decision": json.loads(body).get("decision")}).encode()
    return original(body, branch)


# --- operators ------------------------------------------------------------------------------------


def ended_all(original: Any, command: Any, standing: Transaction) -> Transaction:
    """What is said of one branch is taken for all."""
    everybody = (1 << len(standing.branches)) - 1
    after: Transaction = original(command, standing._replace(acknowledged=everybody))
    return after


def not_by_hand(_original: Any, _transaction: Transaction, _branch_id: str) -> bool:
    return False


def forgotten_like_any(original: Any, finished: Transaction) -> Any:
    return original(finished._replace(resolutions=()))


# --- submits --------------------------------------------------------------------------------------


def handed_on(
    original: Any, transactions: Transactions, request: Any, submission: Any, *rest: Any
) -> Any:
    """A submit that has got its id here is sent on, without it, when leadership ends."""
    return original(transactions, request, submission._replace(named=True), *rest)


# --- disks ----------------------------------------------------------------------------------------


def failed_sync_is_one(original: Any, segments: Segments, sync: Any) -> None:
    """What could not be synced counts as synced."""
    try:
        original(segments, sync)
    except DiskFailed as error:
        if error.operation != "sync":
            raise
        segments.failed = None
        sync.done = True


def synced_as_it_is(_original: Any, file: File, _segment: Any, _mark: Any) -> None:
    """At a start what was read is synced, and not written again."""
    file.sync()


# --- bounds ---------------------------------------------------------------------------------------


def one_portion_called(original: Any, talk: Conversation, now_s: float, actions: Any) -> None:
    """Branches that a turn has no room for are called in none."""
    original(talk, now_s, actions)
    for leg in talk.legs:
        if leg.called_again_s is not None and leg.called_again_s <= now_s:
            leg.called_again_s = None


def one_portion_taken_up(original: Any, driver: Driver, epoch: int, ids: Any) -> None:
    """A new leader minds what it takes up in its first turn."""
    original(driver, epoch, ids)
    if driver._taking_up is not None:
        driver._taking_up.cancel()
        driver._taking_up = None


# --- elections and reads --------------------------------------------------------------------------


def old_votes_count(_original: Any, core: RaftCore, peer: str, message: VoteReply) -> None:
    """A vote counts whatever the term is in which it was given."""
    if message.term > core.term:
        core.step_down(message.term)
    elif message.granted and core.role is Role.CANDIDATE:
        core.votes.add(peer)
        if len(core.votes) >= core.quorum:
            core.become_leader()


def the_last_round_counts(original: Any, replica: Replica) -> Any:
    """A read waits for answers to what was said last, though that was before it came."""
    future = original(replica)
    barriers, core = replica._barriers, replica._core
    if not future.done() and core is not None:
        barriers._new.remove(future)
        barriers._asked.append(_Asked(core.round, core.commit, [future]))
    return future


ONE_PORTION_TAKEN_UP: Taken = together(
    replaced(Driver, "_take_up_some", one_portion_taken_up),
    replaced(Driver, "take_up_forgotten", look_for_nothing),
)
