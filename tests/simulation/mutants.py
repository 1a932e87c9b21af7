"""Planted bugs: each takes one rule away from production code while a seed runs.

A checker is believed when it has caught these. `hunt` runs seeds, the same for every mutant, until
one of them shows a violation, and says which invariant noticed it.

Many replace private methods, in strings here and in `broken_*.py`, which no type checker follows:
who renames one looks for its name there, and `test_every_planted_bug_fits_what_it_replaces` says
what was left behind.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import cluster.client.calls
import cluster.raft.snapshots
import cluster.storage.directory
import cluster.storage.fellows
import cluster.storage.journal_segments
import coordinator.api
import coordinator.api_connection
import coordinator.api_show
import coordinator.courier
import coordinator.driver
import coordinator.facts
import coordinator.inquiry
import coordinator.machine
import coordinator.records
import participants.contract
import participants.inquiry
from cluster.client.async_client import Client
from cluster.client.submission import Submission
from cluster.clocks import ClockWatch
from cluster.node import Node
from cluster.raft.core import RaftCore
from cluster.raft.proposals import Proposals
from cluster.raft.replica import Replica
from cluster.raft.replication import Replication
from cluster.raft.snapshots import Snapshots
from cluster.raft.transport import _Acceptor
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.journal_recovery import _Reading
from cluster.storage.journal_segments import Segments
from cluster.storage.snapshots import SnapshotStore
from coordinator.api_transactions import Transactions
from coordinator.capacity import Capacity
from coordinator.commands import Enlist
from coordinator.conversation import Conversation
from coordinator.courier import Courier
from coordinator.driver import Driver
from coordinator.gateway import Gateway
from coordinator.ids import IdMaker
from coordinator.interactive import Interactive
from coordinator.machine import Restoring
from coordinator.moves import Move, Phase
from coordinator.participant_connections import Connections
from coordinator.places import Places
from coordinator.sweep import Sweep
from coordinator.table import Table
from participants.clock import LeastClock
from participants.inquiry import Inquirer
from participants.sdk import Participant
from tests.model import mutants as model
from tests.model.broken_rules import Taken, other_move, replaced, together
from tests.simulation import broken_answers as answers
from tests.simulation import broken_disk as disk
from tests.simulation import broken_fronts as fronts
from tests.simulation import broken_interactive as interactive
from tests.simulation import broken_leftovers as left
from tests.simulation import broken_rules as rules
from tests.simulation import broken_state as state
from tests.simulation import broken_words as words
from tests.simulation.processes import results
from tests.simulation.run import Result, run_seed
from tests.simulation.services import SimStore

MAX_TOLD = 120


@dataclass(frozen=True, slots=True)
class Mutant:
    """`what`: the rule that is missing."""

    name: str
    what: str
    take: Taken

    @contextmanager
    def switched_on(self) -> Iterator[None]:
        with ExitStack() as taken:
            self.take(taken)
            yield


def run_mutant(
    name: str, seed: int, *, verbose: bool = False, keep_history: bool = False
) -> Result:
    """One seed with one bug planted, or with a clumsy peer."""
    with (MUTANTS | CLUMSY)[name].switched_on():
        return run_seed(seed, verbose=verbose, keep_history=keep_history)


def hunt(names: Sequence[str], seeds: Sequence[int], jobs: int) -> int:
    """Print, for each mutant, the first seed that catches it; 1 if one is not caught."""
    missed = 0
    print("| planted bug | the rule that is broken | seeds | noticed by |\n|---|---|---|---|")
    for name in names or MUTANTS:
        tried = 0
        noticed: Result | None = None
        for result in results(functools.partial(_bare, name), seeds, jobs):
            tried += 1
            if result.violations:
                noticed = result
                break
        missed += noticed is None
        print(f"| `{name}` | {MUTANTS[name].what} | {tried} | {_told(noticed)} |", flush=True)
    return 1 if missed else 0


def _told(noticed: Result | None) -> str:
    if noticed is None:
        return "NOT CAUGHT"
    kinds = dict.fromkeys(violation.invariant for violation in noticed.violations)
    first = noticed.violations[0]
    text = f"seed {noticed.seed}: {first.about} {first.text}"[:MAX_TOLD].replace("|", "/")
    return f"{', '.join(kinds)} ({text})"


def _bare(name: str, seed: int) -> Result:
    return replace(run_mutant(name, seed), history=())


MUTANTS = {
    mutant.name: mutant
    for mutant in (
        # The disk.
        Mutant(
            "sync-is-a-lie",
            "what is acknowledged is synced",
            replaced(Segments, "_make_durable", disk.sync_is_a_lie),
        ),
        Mutant(
            "journal-not-synced",
            "the journal is synced before it is acknowledged",
            replaced(Node, "__init__", disk.without_sync),
        ),
        Mutant(
            "vote-not-written",
            "term and vote are durable",
            disk.VOTE_NOT_WRITTEN,
        ),
        Mutant(
            "name-not-synced",
            "the name of a new segment is durable",
            replaced(Segments, "_make_durable", disk.name_not_synced),
        ),
        Mutant(
            "needed-segments-removed",
            "a segment goes when nothing of it is needed",
            replaced(Segments, "roll", disk.remove_all_before),
        ),
        Mutant(
            "snapshot-place-not-synced",
            "a snapshot is durable before what it covers goes",
            replaced(SnapshotStore, "_place", disk.place_without_sync),
        ),
        Mutant(
            "damage-is-cut",
            "damage in what was synced is refused",
            together(
                replaced(_Reading, "refuse_if_promised", disk.damage_is_cut),
                replaced(_Reading, "run", disk.short_is_whole),
            ),
        ),
        # Raft.
        Mutant(
            "commit-alone", "a quorum commits", replaced(RaftCore, "tick", rules.commit_at_once)
        ),
        Mutant(
            "commit-uncompared",
            "commit what was compared",
            replaced(RaftCore, "on_append", rules.commit_uncompared),
        ),
        Mutant("truncate-always", "only conflicts are cut (*)", rules.TRUNCATE_ALWAYS),
        Mutant(
            "never-truncate", "conflicts are cut", replaced(RaftCore, "_take", rules.never_truncate)
        ),
        Mutant(
            "logs-need-not-meet",
            "logs meet before entries are taken",
            replaced(RaftCore, "_mismatch", rules.trust_the_leader),
        ),
        Mutant(
            "acknowledged-unsynced",
            "followers acknowledge what is synced",
            replaced(Replica, "_release", rules.answer_before_the_sync),
        ),
        Mutant(
            "leader-counts-unsynced",
            "the leader counts itself for what is synced",
            replaced(RaftCore, "_SyncObj__getEntries", rules.counts_what_is_not_synced),
        ),
        Mutant(
            "old-leader-followed",
            "leaders of older terms are refused",
            replaced(RaftCore, "follow", rules.follow_anybody),
        ),
        Mutant(
            "cut-in-memory",
            "what is cut is cut on the disk",
            replaced(Journal, "truncate_from", rules.cut_in_memory),
        ),
        Mutant(
            "results-mixed-up",
            "each proposer is told its own result",
            replaced(Proposals, "applied", rules.results_in_another_order),
        ),
        Mutant("minority-elects", "a majority elects", rules.half_is_enough),
        Mutant(
            "vote-twice",
            "one vote a term",
            rules.VOTE_TWICE,
        ),
        Mutant(
            "vote-for-less",
            "no vote for a log that lacks entries",
            replaced(RaftCore, "_is_up_to_date", rules.vote_for_less),
        ),
        Mutant(
            "another-directory",
            "a node that lost its directory takes no part under its old id",
            replaced(Fellows, "is_another", rules.no_other),
        ),
        Mutant(
            "fellows-not-kept",
            "by which directory a node is known is durable",
            replaced(cluster.storage.fellows, "put_small_file", rules.put_nothing),
        ),
        Mutant("frames-unchecked", "frames between nodes are checked", rules.frames_unchecked),
        Mutant(
            "snapshot-over-newer-log",
            "a snapshot is installed only ahead (*)",
            rules.SNAPSHOT_OVER_NEWER_LOG,
        ),
        Mutant(
            "log-contradicts-snapshot",
            "a log that contradicts the snapshot goes",
            replaced(cluster.raft.snapshots, "reconcile", rules.keep_the_log),
        ),
        Mutant(
            "snapshot-without-horizon",
            "a snapshot holds all of the state",
            replaced(Restoring, "_read_header", rules.without_horizon),
        ),
        Mutant(
            "snapshot-goes-on-changing",
            "a snapshot is of one moment",
            replaced(Table, "view", rules.blocks_in_use),
        ),
        Mutant(
            "barrier-at-once",
            "current reads ask a quorum",
            replaced(Replica, "barrier", rules.barrier_at_once),
        ),
        Mutant("follower-reads", "current reads ask the leader", rules.FOLLOWER_READS),
        # The machine and the driver.
        Mutant("no-epoch-check", "commands of old epochs are refused (*)", rules.NO_EPOCH_CHECK),
        Mutant(
            "inquiry-answered-by-anybody",
            "a leader answers inquiries, after a barrier (*)",
            rules.INQUIRE_OF_ANYBODY,
        ),
        Mutant(
            "nobody-takes-over",
            "a new leader takes up what is unfinished",
            together(
                replaced(Driver, "_take_up_some", rules.take_up_nothing),
                replaced(Driver, "take_up_forgotten", rules.look_for_nothing),
            ),
        ),
        Mutant(
            "joined-by-id-alone",
            "an id is one body",
            replaced(Driver, "_submit", rules.join_by_id),
        ),
        Mutant(
            "abort-spares-who-agreed",
            "who voted YES is told of an abort",
            replaced(Conversation, "_end", rules.spare_who_agreed),
        ),
        Mutant(
            "failed-end-counts",
            "a commit that failed is repeated",
            replaced(Conversation, "end_answered", rules.done_all_the_same),
        ),
        Mutant(
            "acknowledged-by-one",
            "finished when all have acknowledged",
            replaced(coordinator.machine, "acknowledged", rules.acknowledged_all),
        ),
        Mutant(
            "silence-is-consent",
            "commit when all have voted",
            replaced(coordinator.records, "everyone_can_commit", rules.silence_is_consent),
        ),
        Mutant(
            "kept-for-no-time",
            "what is finished is remembered",
            replaced(Sweep, "_next_horizon_ms", rules.keeps_nothing),
        ),
        Mutant(
            "plain-prepared-before-begin",
            "plain participants are asked once Begin is applied",
            rules.all_begin_early,
        ),
        # Participants.
        Mutant(
            "no-tombstones",
            "ended branches are remembered",
            replaced(SimStore, "keep", rules.no_tombstones),
        ),
        Mutant(
            "prepared-expires",
            "a prepared branch never ends by time",
            replaced(Participant, "_prepare", rules.prepared_expires),
        ),
        Mutant(
            "yes-before-durable",
            "what is answered is synced",
            replaced(SimStore, "perform", rules.answer_before_sync),
        ),
        Mutant(
            "silence-is-abort",
            "who gets no answer stays in doubt",
            replaced(Inquirer, "_ask_nodes", rules.silence_is_abort),
        ),
        # Clients.
        Mutant(
            "again-under-another-id",
            "a repeat keeps its id",
            replaced(Submission, "again", rules.again_under_another_id),
        ),
        Mutant(
            "batch-answers-mixed-up",
            "each of a batch gets its own answer",
            replaced(Client, "submit_many", rules.answers_in_another_order),
        ),
        # What stands before participants.
        Mutant(
            "proxies-are-participants",
            "of a call that a proxy gives up nothing is known",
            fronts.proxies_are_participants,
        ),
        Mutant(
            "missing-is-committed",
            "a 404 acknowledges no commit",
            fronts.acknowledged_with(404),
        ),
        Mutant(
            "conflict-is-committed",
            "a 409 acknowledges no commit",
            fronts.acknowledged_with(409),
        ),
        Mutant(
            "answer-of-another",
            "an answer counts for the transaction that it names",
            replaced(participants.contract, "_for_another", fronts.of_whichever),
        ),
        Mutant(
            "batch-answers-one",
            "what answers a batch acknowledges no lone commit",
            replaced(coordinator.courier, "read_end_answer", fronts.undeclared),
        ),
        Mutant(
            "decision-of-another",
            "an inquiry's answer counts for the branch that it names",
            replaced(participants.inquiry, "read_decision", fronts.whosever_decision),
        ),
        Mutant(
            "answer-to-another",
            "an answer counts for the request that it names",
            replaced(coordinator.api_connection, "named", fronts.unnamed),
        ),
        # Operators, and who gives no id.
        Mutant(
            "one-branch-ends-all",
            "a branch ended by hand is one branch",
            replaced(coordinator.machine, "branch_ended_by_hand", fronts.ended_all),
        ),
        Mutant(
            "by-hand-answered-abort",
            "a branch ended by hand still learns the outcome",
            replaced(coordinator.inquiry, "is_ended_by_hand", fronts.not_by_hand),
        ),
        Mutant(
            "by-hand-forgotten",
            "what was ended by hand is kept for ever",
            replaced(coordinator.machine, "_forgettable_at", fronts.forgotten_like_any),
        ),
        Mutant(
            "begun-and-handed-on",
            "what was given its id here is not sent on without it",
            replaced(Transactions, "_submitted", fronts.handed_on),
        ),
        # Failing disks.
        Mutant(
            "failed-sync-is-one",
            "a sync that fails ends the node",
            replaced(Segments, "_make_durable", fronts.failed_sync_is_one),
        ),
        Mutant(
            "failed-sync-tried-again",
            "what a sync has failed to make durable is written again",
            replaced(cluster.storage.journal_segments, "_write_again", fronts.synced_as_it_is),
        ),
        # Bounds.
        Mutant(
            "one-portion-called",
            "what a turn has no room for comes in the next",
            replaced(Conversation, "_make_due_calls", fronts.one_portion_called),
        ),
        Mutant(
            "one-portion-taken-up",
            "a new leader takes up all that is unfinished, piece by piece",
            fronts.ONE_PORTION_TAKEN_UP,
        ),
        # Moments.
        Mutant(
            "old-votes-count",
            "a vote counts in its own term",
            replaced(RaftCore, "on_vote_reply", fronts.old_votes_count),
        ),
        Mutant(
            "last-round-counts",
            "a read is confirmed by a round that began after it came",
            replaced(Replica, "barrier", fronts.the_last_round_counts),
        ),
        # State that outlives its time, and steps in another order.
        Mutant(
            "refusal-acknowledges",
            "who refuses entries has not got them",
            replaced(RaftCore, "on_append_reply", state.refusal_acknowledges),
        ),
        Mutant(
            "commit-goes-back",
            "a commit index does not go back",
            replaced(RaftCore, "on_append", state.commit_goes_back),
        ),
        Mutant(
            "longer-log-wins",
            "logs are compared by their last terms first",
            replaced(RaftCore, "_is_up_to_date", state.longer_log_wins),
        ),
        Mutant(
            "votes-kept",
            "each election is counted anew",
            replaced(RaftCore, "_SyncObj__setState", state.votes_kept),
        ),
        Mutant(
            "newer-stream-forgotten",
            "the end of an old stream is not that of the new one",
            replaced(_Acceptor, "connection_lost", state.newer_stream_forgotten),
        ),
        Mutant(
            "taking-for-ever",
            "after a snapshot comes another one",
            replaced(RaftCore, "_snapshot_taken", state.taking_for_ever),
        ),
        Mutant(
            "left-behind-unsynced",
            "a sync covers all segments that were written to",
            replaced(Segments, "_make_durable", state.left_behind_unsynced),
        ),
        Mutant(
            "closed-unsynced",
            "a journal that was closed is on the disk",
            replaced(Segments, "close", state.closed_unsynced),
        ),
        Mutant(
            "header-without-vote",
            "the vote goes along into the next segment",
            replaced(Segments, "_header", state.header_without_vote),
        ),
        Mutant(
            "small-file-unsynced",
            "a small file is durable before it has its name",
            replaced(cluster.storage.directory, "put_small_file", state.small_file_unsynced),
        ),
        Mutant(
            "id-ahead-forgotten",
            "an id is remembered until its time is over",
            replaced(coordinator.machine, "_forgettable_at", state.id_ahead_forgotten),
        ),
        Mutant(
            "backlog-not-restored",
            "what is counted is counted anew from a snapshot",
            replaced(Restoring, "_read_part", state.backlog_not_restored),
        ),
        Mutant(
            "begun-for-ever",
            "what has begun is not counted as beginning",
            replaced(Capacity, "begun", state.begun_for_ever),
        ),
        Mutant(
            "acknowledgement-dropped",
            "what the log has no room for is proposed again",
            replaced(Conversation, "not_proposed", state.acknowledgement_dropped),
        ),
        Mutant(
            "request-never-over",
            "an answer gives the request's place back",
            replaced(Gateway, "_answered", state.request_never_over),
        ),
        Mutant(
            "forgets-once",
            "forgetting goes on",
            replaced(Sweep, "_forgot", state.forgets_once),
        ),
        Mutant(
            "read-before-the-barrier",
            "what is read is read after the barrier",
            replaced(Transactions, "get", state.read_before_the_barrier),
        ),
        Mutant(
            "still-in-hand",
            "what could not be begun is let go of",
            replaced(Driver, "_begun", state.still_in_hand),
        ),
        Mutant(
            "prepare-goes-again",
            "a prepare that may have arrived goes once",
            replaced(Courier, "failed", state.prepare_goes_again),
        ),
        Mutant(
            "id-made-twice",
            "no id is made twice",
            replaced(IdMaker, "__call__", state.id_made_twice),
        ),
        Mutant(
            "refusal-leaves-something",
            "what prepare changed is kept only with a YES",
            state.refusal_leaves_something,
        ),
        Mutant(
            "asked-once",
            "an inquiry without an answer is repeated",
            replaced(Inquirer, "_inquire", state.asked_once),
        ),
        # Who is believed: proxies before nodes, operators, clocks, what was heard.
        Mutant(
            "missing-is-abort",
            "a 404 answers no inquiry",
            replaced(participants.inquiry._HttpAsking, "ask", words.missing_is_abort),
        ),
        Mutant(
            "every-refusal-is-a-nodes",
            "after a try that was perhaps done only a node refuses",
            replaced(cluster.client.calls, "_is_strangers_refusal", words.every_refusal_is_a_nodes),
        ),
        Mutant(
            "errors-are-final",
            "after a 500 it was perhaps done",
            replaced(cluster.client.calls, "_is_final", words.errors_are_final),
        ),
        Mutant(
            "broken-never-arrived",
            "what was sent when the connection broke may have arrived",
            replaced(coordinator.courier, "_lost", words.broken_never_arrived),
        ),
        Mutant(
            "nobody-said-otherwise",
            "the first word about a branch stands, and the second one is told so",
            replaced(coordinator.driver, "resolution_of", words.nobody_said_otherwise),
        ),
        Mutant(
            "finished-branch-by-hand",
            "what has ended in order is not ended by hand",
            words.finished_branch_by_hand,
        ),
        Mutant(
            "resolved-not-told",
            "a conversation hears of what is done by hand",
            replaced(Driver, "_resolved", words.resolved_not_told),
        ),
        Mutant(
            "any-time-will-do",
            "an id from the future is refused",
            replaced(coordinator.api, "require_not_ahead", words.any_time_will_do),
        ),
        Mutant(
            "newest-forgotten",
            "what is new is remembered, however much there is",
            words.forget_the_newest,
        ),
        Mutant(
            "wrong-clock-believed",
            "whose clock is wrong makes nothing forgotten",
            replaced(ClockWatch, "is_sound", words.always_sound),
        ),
        Mutant(
            "set-clock-believed",
            "a clock that was set makes nothing forgotten for a while",
            replaced(ClockWatch, "steady_s", words.steady_for_ever),
        ),
        Mutant(
            "silent-stands-still",
            "the clock of a silent peer goes on",
            words.silent_stands_still,
        ),
        Mutant(
            "tombstones-by-a-set-clock",
            "a clock that was set drops no tombstones",
            replaced(LeastClock, "look", words.believed),
        ),
        Mutant(
            "decided-not-taken-up",
            "a new leader takes up what is decided, too",
            replaced(Driver, "lead", words.decided_not_taken_up),
        ),
        Mutant(
            "payloads-not-restored",
            "bytes are counted anew from a snapshot",
            replaced(Restoring, "_read_part", words.payloads_not_restored),
        ),
        Mutant(
            "decision-dropped",
            "a decision for which there was no room is proposed again",
            replaced(Conversation, "not_proposed", words.decision_dropped),
        ),
        Mutant(
            "last-prepare-is-the-only-one",
            "that the last prepare did not arrive says nothing of those before",
            replaced(Conversation, "_is_only_prepare", words.last_prepare_is_the_only_one),
        ),
        Mutant(
            "never-too-early",
            "what was sent before the fate of the prepare was known does not count",
            replaced(Conversation, "_learn_fate", words.never_too_early),
        ),
        Mutant(
            "other-work-waits",
            "whose id stands for other work is told to abort",
            replaced(coordinator.driver, "answer_inquiry", words.other_work_waits),
        ),
        Mutant(
            "expired-waits",
            "whose id is too old is told to abort",
            replaced(Driver, "inquire", words.expired_waits),
        ),
        Mutant(
            "term-not-written",
            "a term is durable, voted in or not",
            replaced(Journal, "set_vote", words.term_not_written),
        ),
        Mutant(
            "noted-before-the-sync",
            "what is noted as synced is synced",
            replaced(Segments, "_make_durable", words.noted_before_the_sync),
        ),
        # What is left over.
        Mutant(
            "not-taken-is-under-way",
            "what the log did not take of a sweep is proposed by a later one",
            replaced(Sweep, "_forgot", left.not_taken_is_under_way),
        ),
        Mutant(
            "lane-kept",
            "a lane that nobody uses is forgotten",
            replaced(Gateway, "_look_again", left.lane_kept),
        ),
        Mutant(
            "swept-once",
            "a connection that nobody uses is closed",
            replaced(Connections, "_close_idle", left.swept_once),
        ),
        Mutant(
            "origin-kept",
            "nothing is kept of an origin without a connection",
            replaced(Places, "leave", left.origin_kept),
        ),
        Mutant(
            "shipment-left-open",
            "a file that was read is closed",
            replaced(Snapshots, "stop_shipping", left.shipment_left_open),
        ),
        Mutant(
            "retries-of-the-finished",
            "whose transaction is finished waits no more",
            left.retries_of_the_finished,
        ),
        # Interactive transactions.
        Mutant(
            "enlisted-before-applied",
            "a branch is in the log before anybody is told its number",
            replaced(Interactive, "enlist", interactive.enlisted_before_applied),
        ),
        Mutant(
            "numbered-by-the-leader",
            "a branch has a number of its own",
            interactive.numbered_by_the_leader,
        ),
        Mutant(
            "name-is-enough",
            "other work under a name that is enlisted is refused",
            interactive.name_is_enough,
        ),
        Mutant(
            "enlisted-after-close",
            "nobody is enlisted once the end has begun",
            other_move(Enlist, (Phase.UNDECIDED,), Move.ADD_BRANCH),
        ),
        Mutant(
            "asked-beside-a-rollback",
            "no prepare leaves where a rollback is proposed",
            replaced(Conversation, "_went_on", interactive.asked_all_the_same),
        ),
        Mutant(
            "prepared-before-closed",
            "prepares leave when Close is applied",
            replaced(Interactive, "commit", interactive.prepared_before_closed),
        ),
        Mutant(
            "accepted-when-proposed",
            "a rollback is durable before it is answered",
            replaced(Interactive, "rollback", interactive.accepted_when_proposed),
        ),
        Mutant(
            "closed-by-the-next-leader",
            "what is open stays open",
            replaced(Driver, "_take_up", interactive.closed_by_the_next_leader),
        ),
        Mutant(
            "open-not-taken-up",
            "a new leader takes up what is open, too",
            replaced(Driver, "lead", interactive.open_not_taken_up),
        ),
        Mutant(
            "open-for-ever",
            "what its client leaves open ends with its deadline",
            replaced(Conversation, "__init__", interactive.open_for_ever),
        ),
        Mutant(
            "decided-as-if-closed",
            "what is open does not commit",
            replaced(coordinator.machine, "decided", interactive.decided_as_if_closed),
        ),
        Mutant(
            "refuser-holds-nothing",
            "who voted NO hears of the rollback, for it has worked",
            replaced(Conversation, "__init__", interactive.refuser_holds_nothing),
        ),
        Mutant(
            "only-who-promised",
            "who was never asked hears of the rollback, for it has worked",
            replaced(coordinator.facts, "_voted_for_phase_two", interactive.only_who_promised),
        ),
        Mutant(
            "ended-without-a-barrier",
            "what is said without the log's word is said after a barrier",
            replaced(Interactive, "_standing", interactive.without_a_barrier),
        ),
        # What is shown, what is lost between groups, who leads on.
        Mutant(
            "branches-remembered",
            "what is shown of branches is of this transaction, and of now",
            replaced(coordinator.api_show, "_standing", answers.branches_remembered),
        ),
        Mutant(
            "retry-from-the-past",
            "what an operator is answered is current",
            replaced(Transactions, "retry", answers.retry_from_the_past),
        ),
        Mutant(
            "dropped-from-a-group",
            "what a group has no room for goes in the next",
            replaced(Proposals, "next_group", answers.dropped_from_a_group),
        ),
        Mutant(
            "answers-not-noted",
            "who leads and is answered leads on",
            replaced(RaftCore, "set_last_reply", answers.answers_not_noted),
        ),
    )
}
"""By name."""

OF_THE_MODEL = {
    "abort-told-before-durable": "aborts are durable before they are told",
    "commit-told-before-durable": "commits are durable before they are told",
    "last-decision-wins": "the first decision stands",
    "begin-after-forgetting": "expired ids are refused",
    "expired-id-recorded-as-refused": "expired ids are never recorded as aborted",
    "forget-before-acknowledged": "forget only what every branch has acknowledged",
    "unknown-not-refused": "unknown ids are refused in the log before abort is answered",
    "refusal-does-not-stick": "a refusal stands",
    "acknowledged-answered-commit": "acknowledged branches are over",
    "fingerprint-ignored": "inquiry and repeated prepare carry the fingerprint",
    "begin-overwrites": "a begun id keeps its content",
    "plain-prepared-again": "plain participants are asked once",
    "plain-rollback-counts-at-once": "an early rollback of a plain branch does not count",
    "unheard-is-unsent": "what was sent and not answered may have arrived",
    "error-ends-the-work": 'an error after "still working" does not end the work',
}
"""Bugs that `tests/model` plants in the same code: here the whole of it must show them."""


def _from_model(name: str, rule: str) -> Mutant:
    def take(taken: ExitStack) -> None:
        taken.enter_context(model.MUTANTS[name].switched_on())

    return Mutant(name, rule, take)


MUTANTS |= {name: _from_model(name, rule) for name, rule in OF_THE_MODEL.items()}

CLUMSY = {
    mutant.name: mutant
    for mutant in (
        Mutant(
            "speaks-of-what-is-acknowledged",
            "with truncate-always",
            replaced(Replication, "_send_entries", rules.speaks_of_what_is_acknowledged),
        ),
        Mutant(
            "ships-needlessly",
            "with snapshot-over-newer-log",
            replaced(Replication, "on_append_reply", rules.ship_needlessly),
        ),
        Mutant(
            "waits-for-the-next-leadership",
            "with no-epoch-check",
            rules.wait_for_the_next_leadership,
        ),
    )
}
"""What some planted bugs come with, to be seen: by itself it does no harm."""

QUICK = (
    "another-directory",
    "sync-is-a-lie",
    "journal-not-synced",
    "commit-alone",
    "logs-need-not-meet",
    "never-truncate",
    "silence-is-consent",
    "no-tombstones",
    "kept-for-no-time",
    "abort-told-before-durable",
    "commit-told-before-durable",
    "unknown-not-refused",
    "begin-overwrites",
    "taking-for-ever",
    "refusal-leaves-something",
    "set-clock-believed",
    "refuser-holds-nothing",
    "decided-as-if-closed",
    "enlisted-after-close",
    "branches-remembered",
)
"""Those that most seeds show, whatever changes in them: for the tests of every day."""
