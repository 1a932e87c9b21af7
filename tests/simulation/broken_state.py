"""How planted bugs break the rules of what a node keeps: state that outlives its time, counts that
never go down, steps in another order, a moment later than it may be.

Most are of the kind that a refactoring leaves behind: one line is missing, or stands too late.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from cluster.raft.core import RaftCore
from cluster.raft.state import Role
from cluster.raft.wire import Append, AppendReply
from cluster.storage.disk import Disk
from cluster.storage.journal_format import Header
from cluster.storage.journal_segments import Segments
from cluster.storage.records import encode_record
from coordinator.api_requests import text_answer
from coordinator.api_transactions import Transactions
from coordinator.capacity import Capacity
from coordinator.conversation import Conversation, ProposeAcknowledgement
from coordinator.courier import Courier
from coordinator.driver import Driver
from coordinator.errors import unknown
from coordinator.facts import Transaction
from coordinator.gateway import Gateway
from coordinator.ids import IdMaker, _canonical
from coordinator.machine import Restoring
from coordinator.sweep import Sweep
from coordinator.table import NEVER
from participants.branch import AFTER_VOTE, Action, Cell
from participants.contract import Vote
from participants.inquiry import Inquirer
from participants.store import BranchRecord

# --- Raft -----------------------------------------------------------------------------------------


def refusal_acknowledges(original: Any, core: RaftCore, peer: str, message: AppendReply) -> None:
    """Where a follower wants the leader to go on, it is taken to have all that stands before."""
    original(core, peer, message)
    asks_for = message.next_index - 1
    answers_this = core.role is Role.LEADER and message.term == core.term
    if answers_this and core.match_index(peer) < asks_for <= core.journal.last_index:
        core.set_match_index(peer, asks_for)


def commit_goes_back(original: Any, core: RaftCore, peer: str, message: Append) -> None:
    """A follower takes the leader's commit index for its own, though it has known better."""
    original(core, peer, message)
    if core.leader == peer and message.term == core.term:
        core.set_commit(min(core.commit, message.commit))


def longer_log_wins(_original: Any, core: RaftCore, last_index: int, last_term: int) -> bool:
    """Logs are compared by their lengths first."""
    return (last_index, last_term) >= (core.journal.last_index, core.journal.last_term)


def votes_kept(original: Any, core: Any, state: int) -> None:
    """Who stands for election once more counts the votes of the last time, too."""
    before = set(core.votes)
    original(core, state)
    if core.role is Role.CANDIDATE:
        core.votes |= before


def newer_stream_forgotten(original: Any, stream: Any, error: Exception | None) -> None:
    """With the end of a stream the next one of the same peer is heard no more, either."""
    original(stream, error)
    if stream.hello is not None:
        stream.owner.inbound.pop(stream.hello.sender, None)


def taking_for_ever(original: Any, core: RaftCore, *arguments: Any) -> None:
    """A snapshot that has been taken is still being taken."""
    original(core, *arguments)
    core.taking = True


# --- the disk -------------------------------------------------------------------------------------


def left_behind_unsynced(original: Any, segments: Segments, sync: Any) -> None:
    """A segment that was left behind since the last sync is not synced."""
    sync.left_behind.clear()
    original(segments, sync)


def closed_unsynced(original: Any, segments: Any, *arguments: Any, **named: Any) -> None:
    """What is written last is left to the system."""
    segments._make_durable = _nothing
    original(segments, *arguments, **named)


def _nothing(_: object) -> None:
    pass


def header_without_vote(original: Any, *arguments: Any, **named: Any) -> Header:
    """A new segment begins without the vote of the one before."""
    header: Header = original(*arguments, **named)
    return replace(header, vote=None)


def small_file_unsynced(_original: Any, path: Path, number: int, body: bytes, disk: Disk) -> None:
    """A small file gets its name before it is on the disk."""
    aside = path.with_name(f"{path.name}.new")
    if disk.exists(aside):
        disk.unlink(aside)
    file = disk.create(aside)
    file.write(0, encode_record(number, 0, body))
    file.close()
    disk.rename(aside, path)
    disk.sync_directory(path.parent)


# --- the machine ----------------------------------------------------------------------------------


def id_ahead_forgotten(_original: Any, finished: Transaction) -> int:
    """What has ended is forgotten by its end alone, its id being of a later time or not."""
    assert finished.finished_ms is not None
    return NEVER if finished.resolutions else finished.finished_ms


def backlog_not_restored(original: Any, restoring: Restoring, *part: Any) -> None:
    """A snapshot brings transactions, and not the count of their branches."""
    original(restoring, *part)
    restoring._built._backlog.counts.clear()


# --- the leader -----------------------------------------------------------------------------------


def begun_for_ever(_original: Any, _capacity: Capacity, _branches: Any) -> None:
    """Branches whose transaction has begun are still being begun."""


def acknowledgement_dropped(
    original: Any, talk: Conversation, action: Any, now_s: float, wait_s: float
) -> None:
    """An acknowledgement for which the log had no room is not proposed again."""
    if not isinstance(action, ProposeAcknowledgement):
        original(talk, action, now_s, wait_s)


def request_never_over(original: Any, gateway: Gateway, door: Any, *answer: Any) -> None:
    """An answered request is still under way."""
    original(gateway, door, *answer)
    door.requests += 1


def forgets_once(original: Any, sweep: Sweep, result: object) -> None:
    """Who has had something forgotten waits for that for ever."""
    original(sweep, result)
    sweep._proposed = True


async def read_before_the_barrier(
    original: Any, transactions: Transactions, request: Any, transaction_id: str
) -> Any:
    """A transaction is looked up, and then it is made sure that this is current."""
    before = transactions._machine.get(transaction_id)
    if before is None:
        raise unknown(transaction_id)
    answer = await original(transactions, request, transaction_id)
    return answer if request.query else text_answer(200, transactions._show(before))


def still_in_hand(original: Any, driver: Driver, live: Any, *begun: Any) -> None:
    """A transaction that has not been begun stays in the leader's hands."""
    lives = driver._talks.lives
    was_in_hand = lives.get(live.id) is live
    original(driver, live, *begun)
    if was_in_hand and live.conversation is None:
        lives.setdefault(live.id, live)


def prepare_goes_again(original: Any, courier: Courier, errand: Any, error: Any) -> None:
    """A prepare whose connection broke is sent once more, though it may have arrived."""
    again = errand.is_prepare and errand.over_used and not (errand.again or errand.is_batch)
    if again:
        errand.again, errand.body = True, errand.messages[0].body
        courier._dial(errand)
    else:
        original(courier, errand, error)


# --- clients --------------------------------------------------------------------------------------


def id_made_twice(original: Any, maker: IdMaker) -> str:
    """Two ids of one millisecond are one."""
    if maker._now_ms() == maker._last_ms:
        return _canonical(maker._last_ms, maker._last_bits)
    made: str = original(maker)
    return made


# --- participants ---------------------------------------------------------------------------------


async def asked_once(original: Any, inquirer: Inquirer, ask: Any, record: BranchRecord) -> None:
    """Who got no answer to an inquiry does not ask again."""
    asked = inquirer._asked[record.transaction_id, record.branch_id]
    await original(inquirer, ask, record)
    asked.under_way = True


def refusal_leaves_something(taken: ExitStack) -> None:
    """What a prepare had changed before its service refused stays."""
    cells = {vote: replace(AFTER_VOTE[_PREPARE][vote], action=Action.NOTHING) for vote in _REFUSED}
    taken.enter_context(patch.dict(cast("dict[Vote, Cell]", AFTER_VOTE[_PREPARE]), cells))


_PREPARE, _REFUSED = Action.PREPARE, (Vote.NO, Vote.READ_ONLY)
