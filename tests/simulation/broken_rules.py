"""How each planted bug breaks its rule: a function of the project is replaced while a seed runs.

`tests/model/broken_rules.py` has those that are rules of the protocol alone, `broken_disk` those of
the disk. Where several nets
hold one rule, a bug takes all of them away; and where only a clumsier peer would show what a rule
is for, the peer is made clumsier, in a way that does no harm as long as the rule stands.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import coordinator.driver
from cluster.client.submission import Submission
from cluster.raft import wire
from cluster.raft.core import RaftCore
from cluster.raft.proposals import Proposals
from cluster.raft.replica import Replica
from cluster.raft.replication import Replication
from cluster.storage.journal import Journal
from cluster.storage.journal_format import Log
from coordinator.api_leadership import Leadership
from coordinator.commands import Acknowledge, Command, Epoch
from coordinator.conversation import Conversation
from coordinator.driver import Driver
from coordinator.facts import Outcome
from coordinator.inquiry import answer_inquiry
from coordinator.machine import Machine, Result
from coordinator.plan import Plan
from coordinator.sweep import Sweep
from coordinator.table import Table
from participants.branch import ENDED, End, State
from participants.contract import Acknowledged, Decision, Vote
from participants.inquiry import Inquirer
from participants.messages import EndBranch, Prepare, read_time_ms
from participants.store import BranchRecord
from tests.model.broken_rules import Taken, replaced, together
from tests.simulation import broken_disk as disk
from tests.simulation.services import SimStore

# --- elections ------------------------------------------------------------------------------------


def vote_for_all(original: Any, core: Any, peer: str, message: Any) -> None:
    """Votes are given again and again in one term."""
    vote = core.vote
    if message.term == core.term and vote not in (None, peer):
        core._SyncObj__votedForNodeId = None
        original(core, peer, message)
        core._SyncObj__votedForNodeId = vote
    else:
        original(core, peer, message)


def no_other(_original: Any, *_: Any) -> bool:
    """Whoever says that it is a node is that node."""
    return False


def frames_unchecked(taken: ExitStack) -> None:
    """What comes from another node is as it was sent."""
    taken.enter_context(patch.object(wire, "zlib", SimpleNamespace(crc32=lambda _: 0)))


def put_nothing(_original: Any, *_: Any) -> None:
    """What was to be kept is known as long as the process lives."""


def vote_for_less(_original: Any, *_: Any) -> bool:
    return True


def half_is_enough(taken: ExitStack) -> None:
    """Two of five, or one of three, elect."""
    quorum = property(lambda core: (len(core.peers) + 1) // 2)
    taken.enter_context(patch.object(RaftCore, "quorum", quorum))


# --- replication ----------------------------------------------------------------------------------


def commit_at_once(original: Any, core: RaftCore) -> None:
    """The leader counts entries as committed when they are in its own journal."""
    if core.role.name == "LEADER":
        core.set_commit(core.durable_index)
    original(core)


def truncate_always(original: Any, core: Any, peer: str, message: Any) -> int:
    """A follower cuts its log at the leader's previous entry, whatever it holds."""
    first = core.journal.first_index
    if message.previous_index + 1 > max(first, 1) and core.journal.last_index > (
        message.previous_index
    ):
        core.truncate_from(message.previous_index + 1)
    return int(original(core, peer, message))


def speaks_of_what_is_acknowledged(original: Any, core: Any, peer: str, shared: Any) -> None:
    """A clumsy leader: now and then it first names the last entry that the peer acknowledged."""
    following = core.match_index(peer) + 1
    if core.round % 8 == 0 and core.journal.first_index < following <= core.journal.last_index:
        core.send(peer, core._message(following, False))
    original(core, peer, shared)


def never_truncate(_original: Any, core: Any, _peer: str, message: Any) -> int:
    """A follower keeps what it has where the leader has something else."""
    verified: int = message.previous_index
    for command, index, term in message.entries:
        if index > core.journal.last_index:
            core.append_entry(command, index, max(term, core.journal.last_term))
        verified = index
    return verified


def trust_the_leader(original: Any, core: Any, message: Any) -> int | None:
    """Entries are taken without looking whether the logs meet."""
    hint = original(core, message)
    return hint if message.previous_index > core.journal.last_index else None


def commit_uncompared(original: Any, core: Any, peer: str, message: Any) -> None:
    """A follower commits as far as the leader says, not as far as it has compared."""
    original(core, peer, message)
    core.set_commit(max(core.commit, min(message.commit, core.journal.last_index)))


def counts_what_is_not_synced(original: Any, core: RaftCore, *arguments: Any) -> Any:
    """The leader counts itself for entries that its own disk may not have yet."""
    durable, core.durable_index = core.durable_index, core.journal.last_index
    try:
        return original(core, *arguments)
    finally:
        core.durable_index = durable


def answer_before_the_sync(original: Any, replica: Replica, core: RaftCore) -> None:
    """What a step has to say leaves before the disk has what it speaks of."""
    replica.transport.flush()
    original(replica, core)


def follow_anybody(original: Any, core: Any, peer: str, term: int, now_ms: int) -> bool:
    """Who speaks as a leader is followed, whatever its term is; not by who leads."""
    if core.role.name == "LEADER" and term <= core.term:
        return False
    return bool(original(core, peer, max(term, core.term), now_ms))


def cut_in_memory(original: Any, journal: Journal, *arguments: Any) -> None:
    """A conflict is cut away, and the next start reads it again."""
    length = len(journal._buffer)
    original(journal, *arguments)
    del journal._buffer[length:]


def results_in_another_order(original: Any, *arguments: Any) -> Any:
    """Those who share an entry are told each other's results."""
    told = original(*arguments)
    results = [result for _, result in told]
    return [(done, result) for (done, _), result in zip(told, reversed(results), strict=True)]


# --- snapshots ------------------------------------------------------------------------------------


def keep_the_log(_original: Any, _journal: Any, _meta: Any) -> None:
    """What contradicts an installed snapshot stays in the log."""


def without_horizon(original: Any, restoring: Any, *fields: Any) -> None:
    original(restoring, *fields)
    restoring._built.horizon_ms = 0


def blocks_in_use(_original: Any, table: Table) -> dict[int, Any]:
    """The view goes on changing while a thread writes it."""
    in_use = {n: (each.branches, each.ids, each.records) for n, each in table._open.items()}
    return {**table._blocks, **in_use}


def ship_needlessly(original: Any, core: Any, peer: str, message: Any) -> None:
    """A clumsy leader: whoever lacks an entry gets the snapshot, and the entries after it."""
    original(core, peer, message)
    if core.role.name == "LEADER" and not message.matched and core.store.meta is not None:
        core.set_next_index(peer, core.journal.first_index)


def taken_for_newer(original: Any, core: Any, *arguments: Any) -> None:
    """A snapshot counts as newer than whatever is there."""
    commit = core._SyncObj__raftCommitIndex
    core._SyncObj__raftCommitIndex = 0
    try:
        original(core, *arguments)
    finally:
        if core.commit == 0:
            core._SyncObj__raftCommitIndex = commit


# --- reads and epochs -----------------------------------------------------------------------------


def barrier_at_once(original: Any, replica: Replica) -> Any:
    """Reads do not ask a quorum whether this node still leads."""
    future = original(replica)
    if not future.done():
        future.set_result(None)
    return future


async def inquire_of_anybody(
    _original: Any, driver: Driver, transaction_id: str, branch_id: str, fingerprint: str
) -> Decision:
    """Whoever is asked says what he knows, and of what he does not know: abort."""
    transaction = driver._machine.get(transaction_id)
    if transaction is None:
        return Decision.ABORT
    return answer_inquiry(transaction, branch_id, fingerprint)


async def no_barrier(_original: Any, _leadership: Leadership, _request: Any) -> None:
    pass


def lead_or_not(_original: Any, _leadership: Leadership, _request: Any) -> None:
    """Every node takes itself for the one to ask."""


def any_epoch(original: Any, machine: Machine, command: Command) -> Result:
    if not isinstance(command, Epoch):
        command = command._replace(epoch=machine.epoch)
    return original(machine, command)  # type: ignore[no-any-return]


def wait_for_the_next_leadership(taken: ExitStack) -> None:
    """What waited to enter the log when leadership ended enters it in the next one (the library's
    `commandsWaitLeader`), behind whatever that one has begun with.
    """
    fail, add = Proposals.fail, Proposals.add
    late: dict[int, list[bytes]] = {}

    def failed(proposals: Proposals, **named: Any) -> Any:
        late.setdefault(id(proposals), []).extend(c for c, _ in proposals._waiting)
        return fail(proposals, **named)

    def added(proposals: Proposals, command: bytes, done: Any, **named: Any) -> None:
        for waited in late.pop(id(proposals), ()):
            add(proposals, waited, _nobody)
        add(proposals, command, done, **named)

    taken.enter_context(patch.object(Proposals, "fail", failed))
    taken.enter_context(patch.object(Proposals, "add", added))


def _nobody(_: object) -> None:
    """Whoever asked has been told that it failed."""


def take_up_nothing(_original: Any, _driver: Driver, _epoch: int, _ids: Any) -> None:
    """A new leader minds only what is begun from now on."""


def join_by_id(original: Any, driver: Driver, plan: Plan, *arguments: Any) -> None:
    """Whoever asks with an id that is under way is told how that ends, whatever he asked for."""
    live = driver._talks.lives.get(plan.id)
    if live is not None:
        plan = plan._replace(fingerprint=live.fingerprint)
    original(driver, plan, *arguments)


def look_for_nothing(_original: Any, _driver: Driver) -> int:
    return 0


# --- the machine ----------------------------------------------------------------------------------


def acknowledged_all(original: Any, command: Acknowledge, standing: Any) -> Any:
    """The first acknowledgement is taken for all of them."""
    everybody = (1 << len(standing.branches)) - 1
    return original(command._replace(branches=everybody), standing)


def silence_is_consent(_original: Any, votes: Any, *_: Any) -> bool:
    return Vote.NO not in tuple(votes)


def spare_who_agreed(original: Any, talk: Conversation, position: int, actions: Any) -> None:
    """An abort is not told to those who voted YES."""
    if talk.transaction.outcome is Outcome.ABORT and talk.legs[position].vote is Vote.YES:
        talk._heard(position)
    else:
        original(talk, position, actions)


def done_all_the_same(
    original: Any, talk: Conversation, position: int, _answer: Any, *times: Any
) -> Any:
    """A commit or rollback counts as acknowledged, whatever came back."""
    return original(talk, position, Acknowledged(), *times)


def keeps_nothing(_original: Any, sweep: Sweep) -> int | None:
    """What is finished is forgotten by the next sweep."""
    now_ms = sweep._now_ms()
    return now_ms if now_ms > sweep._machine.horizon_ms else None


def all_begin_early(taken: ExitStack) -> None:
    """`all(branch.repeatable ...)` is what the driver asks before it overlaps `Begin`."""
    taken.enter_context(patch.object(coordinator.driver, "all", lambda _: True, create=True))


# --- participants ---------------------------------------------------------------------------------


def no_tombstones(original: Any, store: SimStore, record: BranchRecord) -> None:
    """What has ended is forgotten at once."""
    original(store, record)
    key = (record.transaction_id, record.branch_id)
    if record.branch.state in ENDED:
        store._others.pop(key, None)
        store._ended.clear()


def prepared_expires(original: Any, participant: Any, message: Prepare, local: Any) -> Any:
    """A prepare that comes late ends the branch that is prepared already."""
    expires_ms = read_time_ms(message.expires_at) + participant._settings.grace_ms
    key = (message.transaction_id, message.branch_id)
    record = local.find(*key)
    now_ms = participant._now_ms()
    if now_ms > expires_ms and record is not None and record.branch.state is State.PREPARED:
        participant._end(EndBranch(*key, End.ROLLBACK), now_ms, local)
    return original(participant, message, local)


async def silence_is_abort(original: Any, inquirer: Inquirer, *arguments: Any) -> Any:
    """A participant in doubt that gets no answer takes that for one."""
    return await original(inquirer, *arguments) or Decision.ABORT


async def answer_before_sync(original: Any, store: SimStore, works: Any) -> list[Any]:
    """The replies leave at once; what they say is done a moment later, if the process lives."""
    note, store.note = store.note, lambda *_, **__: None
    replies: list[Any] = []
    for work in works:
        try:
            replies.append(work(store))
        except Exception as error:
            replies.append(error)
        store.undo()
    store.note = note
    loop = asyncio.get_running_loop()
    later = asyncio.ensure_future(_after(0.1, original, store, works))
    loop.late = later  # type: ignore[attr-defined]
    return replies


async def _after(seconds: float, original: Any, store: SimStore, works: Any) -> None:
    await asyncio.sleep(seconds)
    await original(store, works)


# --- clients --------------------------------------------------------------------------------------


def again_under_another_id(original: Any, submission: Submission) -> Any:
    submission._body["id"] = submission.id[:-1] + ("0" if submission.id[-1] != "0" else "1")
    return original(submission)


async def answers_in_another_order(original: Any, *arguments: Any, **named: Any) -> Any:
    return list(reversed(await original(*arguments, **named)))


# --- together -------------------------------------------------------------------------------------

VOTE_TWICE: Taken = together(
    replaced(Log, "set_vote", disk.vote_of_any_kind),
    replaced(RaftCore, "on_request_vote", vote_for_all),
)
FOLLOWER_READS: Taken = together(
    replaced(Leadership, "require", lead_or_not),
    replaced(Leadership, "barrier", no_barrier),
)
TRUNCATE_ALWAYS: Taken = together(
    replaced(RaftCore, "_take", truncate_always),
    replaced(Replication, "_send_entries", speaks_of_what_is_acknowledged),
)
SNAPSHOT_OVER_NEWER_LOG: Taken = together(
    replaced(RaftCore, "on_snapshot_piece", taken_for_newer),
    replaced(RaftCore, "_snapshot_received", taken_for_newer),
    replaced(Replication, "on_append_reply", ship_needlessly),
)
NO_EPOCH_CHECK: Taken = together(
    replaced(Machine, "step", any_epoch),
    wait_for_the_next_leadership,
    replaced(Driver, "take_up_forgotten", look_for_nothing),
)
INQUIRE_OF_ANYBODY: Taken = together(
    replaced(Driver, "inquire", inquire_of_anybody),
    replaced(Leadership, "require", lead_or_not),
)
