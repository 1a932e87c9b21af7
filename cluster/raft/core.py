"""Raft of one replica: pysyncobj 0.3.17 with its flaws mended. Only this file knows the library.

Rules
- The library is pinned. Its private methods that are replaced or relied on are listed in `_SOURCES`
  with the digest of their source; `check_library` refuses to start on any other.
- What runs of it: the tick (election, commit rule, apply loop, check-quorum, heartbeat, compaction)
  and becoming leader. Everything that touches a message, a file, a pickle, a fork or a thread is
  replaced by the rules in `elections`, `replication` and `snapshots`, beside this file.
- The core does nothing but think: messages, ticks and appends come in; messages go to `send`, which
  holds them until the journal allows; applied entries go to `on_applied`. It never waits.
- Each override says which flaw it mends (the list is tests/pysyncobj_flaws/README.md) and its test.

The library reads one clock for the whole module; each core puts its own there before it runs.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Final

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node as LibraryNode
from pysyncobj.version import VERSION

from cluster.errors import FailStop
from cluster.raft import wire
from cluster.raft.elections import Elections
from cluster.raft.entries import COMMANDS, MEMBERS, NOTHING, decode_group
from cluster.raft.fields import LibraryFields
from cluster.raft.members import encode_members, is_one_change
from cluster.raft.ports import JournalPort, NoPoller, SerializerPort, TransportPort
from cluster.raft.snapshots import Background, Snapshots, reconcile
from cluster.raft.state import NEVER, CoreLimits, Role
from cluster.raft.wire import RaftMessage
from cluster.settings import RaftTimings
from cluster.storage.journal import Entry, Journal
from cluster.storage.snapshots import SnapshotStore
from coordinator.log import StateMachine

PINNED: Final = "0.3.17"

_SOURCES: Final[dict[str, str]] = {
    "__init__": "09df12cd7fd7d727",
    "_onTick": "cc9eb08232d005ba",
    "_checkCommandsToApply": "a386a8079361d204",
    "forceLogCompaction": "00154a6c3c106824",
    "_SyncObj__applyLogEntries": "073db677773b5a2d",
    "_SyncObj__connectedToAnyone": "acd40e9e3ac6c4cc",
    "_SyncObj__deleteEntriesTo": "b7b29988856a66b3",
    "_SyncObj__doApplyCommand": "1ea7aa506e950d0a",
    "_SyncObj__generateRaftTimeout": "92ed37d3620e781a",
    "_SyncObj__getCurrentLogIndex": "e5af22ca246686bd",
    "_SyncObj__getCurrentLogTerm": "1cb8867e6a13d397",
    "_SyncObj__getEntries": "e29c4b33293b2101",
    "_SyncObj__loadDumpFile": "ec66e83905de703b",
    "_SyncObj__onBecomeLeader": "5a3fd97bc17dc1cf",
    "_SyncObj__onLeaderChanged": "53b7685e1d897887",
    "_SyncObj__onMessageReceived": "ddfe34b6c0282179",
    "_SyncObj__onNodeConnected": "2655afb481b4c69b",
    "_SyncObj__onNodeDisconnected": "a81c0475ba2218cc",
    "_SyncObj__sendAppendEntries": "9cb9073128c392fa",
    "_SyncObj__setCurrentTerm": "0ad5bf456ac06bd3",
    "_SyncObj__setState": "2c1f239f7bd79b39",
    "_SyncObj__tryLogCompaction": "c2f8a0ec14cc7312",
}
"""Of the source of each, the first 16 digits of the SHA-256."""


def check_library() -> None:
    """Raise FailStop unless the library is the very one that the overrides were written for."""
    if VERSION != PINNED:
        raise FailStop(f"pysyncobj {VERSION} is installed, the core needs {PINNED}: install that")
    for name, digest in _SOURCES.items():
        method = SyncObj.__dict__.get(name)
        if method is None:
            raise FailStop(f"pysyncobj has no {name}: install pysyncobj {PINNED} unchanged")
        try:
            found = _digest(method)
        except OSError as error:
            raise FailStop(f"the source of pysyncobj's {name} cannot be checked: {error}") from None
        if found != digest:
            raise FailStop(f"pysyncobj's {name} was changed: install pysyncobj {PINNED} anew")


@functools.cache
def _digest(method: Callable[..., object]) -> str:
    return hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the core needs of the world; it calls and never waits."""

    now: Callable[[], float]
    now_ms: Callable[[], int]
    random: Random
    send: Callable[[str, RaftMessage], None]
    backlog: Callable[[str], int]
    in_background: Background
    on_applied: Callable[[int, int, list[object]], None]
    """Index, term and the machine's results, once an entry of commands was applied."""
    on_installed: Callable[[], None]
    """The state was replaced by a snapshot."""


class Peer(LibraryNode):  # type: ignore[misc]
    """A node with a hash that is the same in every process, so that sets keep their order."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._hash = zlib.crc32(name.encode())

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LibraryNode) and bool(self.id == other.id)


class _Clock:
    """The library's module-wide clock: whoever runs the library puts its own here first."""

    now: Callable[[], float] = staticmethod(time.monotonic)


def _now() -> float:
    return _Clock.now()


library.monotonicTime = _now
_create_journal = library.createJournal
library.createJournal = lambda journal=None: (
    journal if isinstance(journal, JournalPort) else _create_journal(journal)
)


class RaftCore(Elections, Snapshots, LibraryFields, SyncObj):  # type: ignore[misc]
    """One replica's Raft. See the file's docstring; the rules are in the other base classes."""

    make_node = Peer

    def __init__(
        self,
        *,
        node: str,
        members: tuple[str, ...],
        journal: Journal,
        store: SnapshotStore,
        machine: StateMachine,
        timings: RaftTimings,
        snapshot_every: int,
        surroundings: Surroundings,
        limits: CoreLimits | None = None,
    ) -> None:
        """`machine` holds the state of the snapshot in `store` already, if there is one.

        `members` are the voters (ids, this node too) where neither snapshot nor log says more.
        Raises Damaged if entries between snapshot and journal are missing, FailStop if the library
        is not ours.
        """
        check_library()
        self.node = node
        self.journal = journal
        self.store = store
        self.machine = machine
        self.timings = timings
        self.limits = limits or CoreLimits()
        self.snapshot_every = snapshot_every
        self.now = surroundings.now
        self.now_ms = surroundings.now_ms
        self.send = surroundings.send
        self.backlog = surroundings.backlog
        self.in_background = surroundings.in_background
        self.on_applied = surroundings.on_applied
        self.on_installed = surroundings.on_installed
        self.random = surroundings.random
        self.clocks_ahead_ms = {}
        self.elections = 0
        self.snapshots_taken = 0
        self.last_contact = NEVER
        self.pre_votes = None
        self.votes = set()
        self.standing_for_transfer = False
        self.round = 0
        self.confirmed = {}
        self.obeyed = {}
        self.shipments = {}
        self.receiving = None
        self.installing = False
        self.taking = False
        self._recover(members)
        self._start_library()

    def _recover(self, members: tuple[str, ...]) -> None:
        """Mends S1, S6, S7, S12: journal and snapshot are made to fit before the library looks.

        test_s1_a_restart_keeps_what_follows_the_snapshot
        """
        journal, meta = self.journal, self.store.meta
        self.store.check_seam(journal.first_index)
        if meta is not None:
            reconcile(journal, meta)
        if not len(journal):
            journal.append(NOTHING, 1, 0)
        if journal.term < journal.last_term:  # a vote of an older term is none in this one
            journal.set_vote(journal.last_term, None)
        self.snapshot_index = meta.last[1] if meta is not None else 0
        self.configurations = self.read_configurations(
            self.snapshot_index, meta.members if meta is not None else members
        )
        self._note_peers()
        unsnapped = journal[max(0, self.snapshot_index + 1 - journal.first_index) :]
        self.bytes_since_snapshot = sum(len(command) for command, _, _ in unsnapped)
        self.durable_index = 0
        self._syncing_to = 0

    def _ask_for_vote(self, peer: str, term: int, last_index: int, last_term: int) -> None:
        self.send(peer, wire.RequestVote(term, last_index, last_term, self.standing_for_transfer))

    def _start_library(self) -> None:
        timings = self.timings
        heartbeat_s = min(timings.heartbeat_ms, timings.election_min_ms / 3.001) / 1000
        settings = SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=True,
            appendEntriesPeriod=heartbeat_s,
            raftMinTimeout=timings.election_min_ms / 1000,
            raftMaxTimeout=timings.election_max_ms / 1000,
            leaderFallbackTimeout=timings.election_max_ms / 1000,
            connectionTimeout=3600,
            logCompactionMinEntries=1 << 60,
            logCompactionMinTime=1 << 60,
            commandsWaitLeader=False,
            useFork=False,
            dynamicMembershipChange=False,
            journalFile=JournalPort(self.journal, self.compact_to),
        )
        _Clock.now = self.now
        SyncObj.__init__(
            self,
            Peer(self.node),
            list(self._peer_nodes.values()),
            settings,
            nodeClass=Peer,
            transport=TransportPort(self._ask_for_vote),
        )
        self._poller = NoPoller()
        self._SyncObj__serializer = SerializerPort(
            library.SERIALIZER_STATE, self.take_snapshot, lambda: self.taking
        )
        self._SyncObj__needLoadDumpFile = False
        if self.store.meta is not None:
            index = self.store.meta.last[1]
            self.set_applied(index, self.store.meta.previous[1])
            self._SyncObj__raftCommitIndex = max(index, self.commit)
        self.draw_deadline()
        if not self.peers:
            self.set_deadline(NEVER)

    # --- what the replica drives it with

    def receive(self, peer: str, message: RaftMessage) -> None:
        """A message from `peer`. Mends S13, S14, L4 and all of the library's own dispatch.

        What is not one of ours cannot come: there is no forwarding, no version change, no utility
        command, and a node that does not vote here is not listened to.
        test_d_a_node_that_is_no_member_is_not_listened_to
        """
        if peer not in self._peer_nodes:
            return
        _Clock.now = self.now
        match message:
            case wire.Append():
                self.on_append(peer, message)
            case wire.AppendReply():
                self.on_append_reply(peer, message)
            case wire.PreVote():
                self.on_pre_vote(peer, message)
            case wire.PreVoteReply():
                self.on_pre_vote_reply(peer, message)
            case wire.RequestVote():
                self.on_request_vote(peer, message)
            case wire.VoteReply():
                self.on_vote_reply(peer, message)
            case wire.TimeoutNow():
                self.on_timeout_now(peer, message)
            case wire.SnapshotPiece():
                self.on_snapshot_piece(peer, message)
            case wire.SnapshotReply():
                self.on_snapshot_reply(peer, message)

    def connected(self, peer: str) -> None:
        """There is a stream to `peer`. Who has just started need not wait for a dead leader."""
        self._SyncObj__onNodeConnected(self._node(peer))
        if self.leader is None and self.role is Role.FOLLOWER:
            self.stand_soon()

    def disconnected(self, peer: str) -> None:
        self._SyncObj__onNodeDisconnected(self._node(peer))

    def tick(self) -> None:
        """Everything that time or what was received makes due; applies what is committed.

        It is one moment for the library: else it could find an election due, and begin it without
        pre-votes, a moment after it was none for `prepare_election`.
        """
        now = self.now()
        _Clock.now = lambda: now
        self.prepare_election()
        if self.wants_snapshot:
            SyncObj.forceLogCompaction(self)
        SyncObj._onTick(self, 0.0)

    def append(self, payload: bytes) -> int:
        """Add an entry as the leader; its index. It travels with the next `speak`."""
        assert self.role is Role.LEADER
        index = self.journal.last_index + 1
        self.append_entry(payload, index, self.term)
        return index

    def speak(self) -> None:
        """Send what peers lack, or a heartbeat, to all of them at once."""
        self._SyncObj__newAppendEntriesTime = self.now() + self.conf.appendEntriesPeriod
        Snapshots.speak(self)

    def sync_started(self) -> None:
        """All that is in the journal now is durable when `sync_ended` comes."""
        self._syncing_to = self.journal.last_index

    def sync_ended(self) -> bool:
        """Whether that makes a quorum, so that a tick can commit more."""
        before, self.durable_index = self.durable_index, max(self.durable_index, self._syncing_to)
        return self.durable_index > before and self.can_commit

    @property
    def can_commit(self) -> bool:
        """Does a quorum hold what the next tick would commit?"""
        if self.role is not Role.LEADER or self.durable_index <= self.commit:
            return False
        held = sum(self.match_index(peer) > self.commit for peer in self.peers)
        return 1 + held >= self.quorum

    @property
    def is_behind(self) -> bool:
        """Is there more to apply at once? One tick applies a portion."""
        return self.applied < min(self.commit, self.durable_index)

    @property
    def next_due(self) -> float:
        """When the next tick is due, if nothing else happens."""
        if self.role is Role.LEADER:
            return float(self._SyncObj__newAppendEntriesTime)
        return self.deadline

    def was_stalled(self) -> None:
        """This process did not run for a while: hear what came before wanting an election (L1)."""
        grace = self.now() + 2 * self.timings.heartbeat_ms / 1000
        if self.role is not Role.LEADER and self.deadline > NEVER:
            self.set_deadline(max(self.deadline, grace))

    def propose_members(self, members: tuple[str, ...]) -> bool:
        """Let `members` be the voters from this entry on; False if that is not allowed now.

        Mends S11: one change at a time, and only once this leadership has applied an entry of its
        own. Nothing calls it yet: addresses of new nodes, learners and the command line are to
        come. test_s11_one_change_of_members_at_a_time
        """
        allowed = (
            self.role is Role.LEADER
            and self.node in members
            and self.applied >= self._SyncObj__noopIDx
            and self.applied >= self.configurations.latest_index
            and is_one_change(self.configurations.latest, members)
        )
        if allowed:
            self.append(MEMBERS + encode_members(members))
        return allowed

    def hand_over(self, peer: str) -> bool:
        """Ask `peer` to stand for election now; False if it lacks entries or is not connected."""
        ready = (
            self.role is Role.LEADER
            and peer in self._peer_nodes
            and self.is_connected(peer)
            and self.match_index(peer) == self.journal.last_index
        )
        if ready:
            self.send(peer, wire.TimeoutNow(self.term))
        return ready

    def close(self) -> None:
        self.stop_all_shipping()
        self.stop_receiving()

    # --- overrides of the library's private methods

    def _SyncObj__generateRaftTimeout(self) -> float:  # noqa: N802
        """The election timeout, drawn from this core's own randomness: the library's is global."""
        least, most = self.timings.election_min_ms, self.timings.election_max_ms
        return (least + (most - least) * self.random.random()) / 1000

    def _SyncObj__setState(self, newState: int) -> None:  # noqa: N802, N803
        """Mends S13 and L1: votes are counted by voter, and a fresh follower waits its turn.

        test_s13_a_voter_counts_once
        """
        before = self.role
        SyncObj._SyncObj__setState(self, newState)
        role = self.role
        if role is Role.CANDIDATE:
            self.elections += 1
            self.votes = {self.node}
            self.pre_votes = None
        if (role is before and role is Role.CANDIDATE) or (
            role is not Role.CANDIDATE and not self.transferring
        ):
            self.standing_for_transfer = False
        if role is Role.LEADER:
            self.confirmed, self.obeyed = {}, {}
        if before is Role.LEADER and role is not Role.LEADER:
            self.stop_all_shipping()
            self.draw_deadline()

    def _SyncObj__sendAppendEntries(self) -> None:  # noqa: N802
        """Mends L6, L8, L9 and numbers the rounds: no spinning, flow control, no half entries.

        test_l6_a_lagging_follower_is_not_flooded
        """
        self.speak()

    def _SyncObj__getEntries(  # noqa: N802
        self,
        fromIDx: int | None,  # noqa: N803
        count: int | None = None,
        maxSizeBytes: int | None = None,  # noqa: ARG002, N803
    ) -> list[Entry]:
        """What the tick may count and apply: entries that are durable here, a portion at a time.

        The commit rule counts this replica for every entry that it gets from here, so an entry that
        was not synced must not be among them.
        test_a_leader_does_not_count_itself_for_what_is_not_synced
        """
        first = self.journal.first_index
        if fromIDx is None or fromIDx < first:
            return []
        portion = min(count or 1, self.limits.apply_portion)
        end = min(fromIDx + portion, self.durable_index + 1)
        return self.journal[fromIDx - first : max(end - first, 0)]

    def _SyncObj__doApplyCommand(self, command: bytes) -> None:  # noqa: N802
        """Mends S8, S14, L3 and the pickle in the log: applied once, or the node stops.

        test_s8_an_entry_is_applied_once test_s14_an_unknown_kind_of_entry_stops_the_node
        """
        index = self.applied + 1
        kind = command[:1]
        if kind == COMMANDS:
            term = self.journal[index - self.journal.first_index][2]
            epoch, commands = decode_group(command)
            if epoch != term:
                raise FailStop(f"entry {index} of term {term} is of epoch {epoch}")
            try:
                results = [self.machine.apply(each) for each in commands]
            except Exception as error:
                raise FailStop(f"entry {index} cannot be applied: {error!r}") from error
            self.on_applied(index, term, results)
        elif kind not in (NOTHING, MEMBERS):
            raise FailStop(f"entry {index} is of kind {kind!r}: start the program that wrote it")

    def _checkCommandsToApply(self) -> None:  # noqa: N802
        """Mends L4, L10, L11: nothing is ever proposed through the library's queue."""

    def _SyncObj__onMessageReceived(self, node: object, message: object) -> None:  # noqa: N802
        """Mends S3-S7, S13, L1, L2, L7: see `receive`; the library's own is never reached."""
        raise FailStop(f"the library was to read {message!r:.80} from {node!r:.40}")

    def _SyncObj__loadDumpFile(self, clearJournal: bool) -> None:  # noqa: N802, N803
        """Mends S1, S6, S7: snapshots are installed by `snapshots` and read by the replica."""
        raise FailStop(f"the library was to load a dump, {clearJournal=}")
