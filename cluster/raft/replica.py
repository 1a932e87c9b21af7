"""One replica of the log: Raft on the event loop, from sockets and disk to the state machine.

Rules
- Nothing polls and nothing waits on purpose. A step is: what was received, the tick, the next group
  of commands, the journal. It runs when something happened or the one timer is due.
- Nothing leaves before what it claims is durable: votes, answers and the leader's own count towards
  the quorum wait for the sync. Only a leader's entries travel while they are written and synced.
- No step runs during a sync, so what becomes durable is exactly what was written before it; what
  arrives meanwhile is the next step's, and so is the next group of commands.
- A follower whose disk is quick syncs and answers before it applies: the leader waits for that.
- The machine's results are told after the tick, never from within; a callback that raises is logged
  and changes nothing.
- Any other exception in a step ends this replica for good (`fatal`): it does not speak any more.

An epoch is a term whose `Epoch` command is applied here. `on_leadership(None)` comes after all that
was under way has been answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from cluster.errors import FailStop, Foreign, StorageError, TakenAway, in_words
from cluster.raft import wire
from cluster.raft.barriers import Barriers, fail_future
from cluster.raft.core import RaftCore, Surroundings
from cluster.raft.entries import encode_group
from cluster.raft.proposals import ProposalLimits, Proposals, Told
from cluster.raft.snapshots import feeding
from cluster.raft.state import CoreLimits, Role
from cluster.raft.status import ReplicaStats, ReplicaStatus, peer_status, unknown_status
from cluster.raft.syncing import Syncs
from cluster.raft.transfer import Transfer
from cluster.raft.transport import Address, Transport, TransportLimits
from cluster.raft.wire import Append, AppendReply, RaftMessage, SnapshotPiece
from cluster.settings import RaftTimings
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.snapshots import SnapshotStore
from coordinator.log import (
    Done,
    FateUnknown,
    NotHandedOver,
    NotLeader,
    Overloaded,
    StateMachine,
)

log = logging.getLogger(__name__)

_TRAVEL_EARLY: Final = (Append, SnapshotPiece)
_MAX_INBOX_BYTES: Final = 64 << 20
_MAX_INBOX: Final = 20_000
_TIMER_S: Final = 0.001
"""The timer's grain: less only makes it ring twice."""


@dataclass(frozen=True, slots=True)
class ReplicaLimits:
    """The limits of all parts of a replica."""

    proposals: ProposalLimits = field(default_factory=ProposalLimits)
    core: CoreLimits = field(default_factory=CoreLimits)
    transport: TransportLimits = field(default_factory=TransportLimits)


class Replica:
    """See the file's docstring. Implements `coordinator.log.ReplicatedLog`."""

    def __init__(
        self,
        *,
        node: str,
        peers: Mapping[str, Address],
        cluster: str,
        machine: StateMachine,
        journal: Journal,
        snapshots: SnapshotStore,
        fellows: Fellows,
        now_ms: Callable[[], int],
        random: Random,
        timings: RaftTimings | None = None,
        bind: Address | None = None,
        snapshot_every: int = 10_000,
        limits: ReplicaLimits | None = None,
    ) -> None:
        """`peers`: where every node's Raft port is reached, this one's included.

        Whether anything is synced is the journal's setting (`Journal.open(..., sync=False)`).
        `machine` is empty; `start` brings it to where the disk says it was. `stop` closes the
        journal. Raises NotLoopback; Damaged if entries between snapshot and journal are missing.
        """
        snapshots.check_seam(journal.first_index)
        self.node = node
        self.machine = machine
        self.on_leadership: Callable[[int | None], None] = _ignore
        self.on_fatal: Callable[[BaseException], None] = _ignore
        self.fatal: BaseException | None = None
        self.stats = ReplicaStats()
        self.syncs = Syncs()
        self._limits = limits or ReplicaLimits()
        self._timings = timings or RaftTimings()
        self._members = tuple(sorted(peers))
        self._journal = journal
        self._snapshots = snapshots
        self._snapshot_every = snapshot_every
        self._now_ms = now_ms
        self._random = random
        self.transport = Transport(
            node=node,
            cluster=cluster,
            peers={peer: address for peer, address in peers.items() if peer != node},
            bind=bind or peers[node],
            random=random,
            fellows=fellows,
            on_message=self._received,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
            on_another=self._is_another,
            on_failed=self._die,
            limits=self._limits.transport,
            boot=now_ms().to_bytes(8, "big") + random.randbytes(wire.BOOT_BYTES - 8),
        )
        self._core: RaftCore | None = None
        self._inbox: deque[tuple[str, RaftMessage | None, int]] = deque()
        self._inbox_bytes = 0
        self._proposals = Proposals(self._limits.proposals)
        self._barriers = Barriers()
        self._results: Told = []
        self._epoch: int | None = None
        self._epoch_entered = 0
        self._transfer = Transfer()
        self._scheduled = False
        self._sync: asyncio.Future[None] | None = None
        self._jobs: dict[asyncio.Future[Any], None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._bounds = (0, 0)
        self._caught_up = asyncio.Event()
        """What was known to be committed at the start is applied, or nothing will be."""
        self._stopped = False

    # --- starting and stopping

    async def start(self) -> None:
        """Restore the state from snapshot and log, then listen and take part.

        Raises StorageError, FailStop, and OSError when the port is busy; `stop` is due then, too.
        """
        loop = asyncio.get_running_loop()
        if self._snapshots.exists:
            restoring = self.machine.restoring()
            try:
                await loop.run_in_executor(None, self._snapshots.load, feeding(restoring))
                restoring.finish()
            except ValueError as error:
                raise FailStop(f"the snapshot cannot be restored: {error}") from error
        self._core = RaftCore(
            node=self.node,
            members=self._members,
            journal=self._journal,
            store=self._snapshots,
            machine=self.machine,
            timings=self._timings,
            snapshot_every=self._snapshot_every,
            limits=self._limits.core,
            surroundings=Surroundings(
                now=loop.time,
                now_ms=self._now_ms,
                random=self._random,
                send=self.transport.send,
                backlog=self.transport.backlog,
                in_background=self._in_background,
                on_applied=self._applied,
                on_installed=self._installed,
            ),
        )
        if self._core.configurations.latest != self._members:
            log.warning(
                "%s: the log says that %s vote, the settings name %s: the log counts",
                *(self.node, self._core.configurations.latest, self._members),
            )
        self._kick()
        await self._caught_up.wait()
        if self.fatal is not None:
            raise self.fatal
        await self.transport.start()
        self._core.draw_deadline()
        self._kick()

    async def stop(self) -> None:
        """Answer all that is under way, fall silent and close. Idempotent."""
        if not self._stopped:
            self._stopped = True
            self._fall_silent(NotLeader(f"{self.node} stops"), FateUnknown(f"{self.node} stops"))
        if self._sync is not None:
            await asyncio.wait([self._sync])
        if self._jobs:
            await asyncio.wait(list(self._jobs))
        await self.transport.wait_closed()
        if self._core is not None:
            self._core.close()
        await self.syncs.in_thread(self._journal.close)

    # --- the log

    @property
    def epoch(self) -> int | None:
        """The epoch that this node leads, or None."""
        core = self._core
        return self._epoch if core is not None and core.leads(self._epoch) else None

    @property
    def leader(self) -> str | None:
        """This node if it leads an epoch, else the leader heard of within an election timeout, as
        long as a stream to or from it stands."""
        core = self._core
        if core is None or self._is_over:
            return None
        if core.role is Role.LEADER:
            return self.node if self.epoch is not None else None
        if core.leader is None or not self.transport.is_in_touch(core.leader):
            return None
        silence_s = core.now() - core.last_contact
        return core.leader if silence_s < self._timings.election_max_ms / 1000 else None

    def takes(self, size: int) -> bool:
        """Whether a command of so many bytes would not be refused as Overloaded just now."""
        return self._proposals.takes(size)

    def propose(self, command: bytes, epoch: int, done: Done, *, patience_s: float = 0.0) -> None:
        """See `coordinator.log.ReplicatedLog`."""
        core = self._core
        if core is None or epoch != self._epoch or not core.leads(epoch):
            refusal = NotLeader(f"{self.node} does not lead epoch {epoch}")
            asyncio.get_running_loop().call_soon(self._tell, done, refusal)
            return
        try:
            leave_by_s = core.now() + patience_s if patience_s else 0.0
            self._proposals.add(command, done, leave_by_s=leave_by_s)
        except Overloaded as error:
            asyncio.get_running_loop().call_soon(self._tell, done, error)
            return
        if not patience_s:
            self._kick()
        elif leave_by_s == self._proposals.leave_by_s:  # nothing else is to leave before it
            self._set_timer(core)

    def barrier(self) -> asyncio.Future[None]:
        """Resolves when a read of the applied state is current; fails with a LogError."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_over or self.epoch is None:
            fail_future(future, NotLeader(f"{self.node} does not lead"))
        else:
            self._barriers.add(future)
            self._kick()
        return future

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        """See `coordinator.log.ReplicatedLog`."""
        core = self._core
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if core is not None and not self._is_over:
                    await self._transfer.hand_over(core, to, self._kick)
        leader = self.leader
        if leader is not None and leader != self.node:
            return leader
        if core is None or self._is_over or core.role is not Role.LEADER:
            raise NotLeader(f"{self.node} does not lead, and does not know who does")
        raise NotHandedOver(f"{to or 'no other node'} has not taken over within {timeout_s:g} s")

    def status(self) -> ReplicaStatus:
        """This moment. Before the log is read, a follower that knows nothing."""
        core = self._core
        if core is None:
            return unknown_status(self.node, self._members)
        if self._journal.failed is None:  # closed or failed, it answers nothing
            self._bounds = (self._journal.first_index, self._journal.last_index)
        return ReplicaStatus(
            node=self.node,
            role=core.role,
            term=core.term,
            epoch=self.epoch,
            leader=self.leader,
            applied=core.applied,
            committed=core.commit,
            first=self._bounds[0],
            last=self._bounds[1],
            snapshot=core.snapshot_index,
            members=core.configurations.latest,
            peers=tuple(peer_status(core, peer) for peer in core.peers),
            clock_offsets_ms=core.clock_offsets_ms,
        )

    @property
    def clock_offsets_ms(self) -> Mapping[str, int]:
        """Peers' wall clocks less this node's own, as last heard."""
        return {} if self._core is None else self._core.clock_offsets_ms

    # --- what happens to it

    @property
    def _is_over(self) -> bool:
        return self._stopped or self.fatal is not None

    def _received(self, peer: str, message: RaftMessage) -> None:
        size = 0
        if isinstance(message, Append):
            size = sum(len(command) for command, _, _ in message.entries)
        elif isinstance(message, SnapshotPiece):
            size = len(message.payload)
        elif isinstance(message, AppendReply) and self._answered(peer, message):
            return
        if len(self._inbox) >= _MAX_INBOX or self._inbox_bytes + size > _MAX_INBOX_BYTES:
            self.stats.dropped += 1
            return
        self._inbox.append((peer, message, size))
        self._inbox_bytes += size
        self._kick()

    def _answered(self, peer: str, answer: AppendReply) -> bool:
        """Hear it at once, and want a step only if that can do something; False: one comes anyway.

        The second follower's finds the entry committed: a step would delay the client's next one.
        """
        core, comes = self._core, self._scheduled or self._sync is not None or self._is_over
        if comes or core is None or core.role is not Role.LEADER:
            return False
        try:
            core.receive(peer, answer)
        except Exception as error:
            self._die(error)
        lacks_entries = core.next_due <= core.now()
        waited_for = self._barriers.wait_for_answers or self._transfer.is_under_way
        if core.can_commit or lacks_entries or waited_for or core.role is not Role.LEADER:
            self._kick()
        return True

    def _connected(self, peer: str) -> None:
        if self._core is not None:
            self._core.connected(peer)
            if self._core.role is Role.LEADER:
                self._core.speak_soon()
            self._kick()

    def _disconnected(self, peer: str) -> None:
        """A stream has ended. If it was the last, that comes behind all that was said before."""
        if self._core is None:
            return
        if not self.transport.is_connected(peer):
            self._core.disconnected(peer)
        if not self.transport.is_in_touch(peer):
            self._inbox.append((peer, None, 0))
            self._kick()

    def _is_another(self, peer: str) -> None:
        """A new directory is of no use; one with a log is not given up for what one peer says."""
        if not self.machine.founding:
            self._die(Foreign(self.transport.handshakes.new_directory(peer)))

    def _kick(self) -> None:
        """Let a step run soon, unless one will anyway."""
        if not self._scheduled and self._sync is None and not self._is_over:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._step)

    def _rang(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        late_s = loop.time() - self._timer_at
        self.stats.max_lag_s = max(self.stats.max_lag_s, late_s)
        if late_s > self._timings.election_min_ms / 4000 and self._core is not None:
            self.stats.stalls += 1
            self._core.was_stalled()
        self._kick()

    # --- the step

    def _step(self) -> None:
        self._scheduled = False
        if self._is_over or self._sync is not None:
            return
        try:
            self._advance()
        except Exception as error:
            self._die(error)

    def _advance(self) -> None:
        core = self._core
        assert core is not None
        self.stats.steps += 1
        while self._inbox:
            peer, message, size = self._inbox.popleft()
            self._inbox_bytes -= size
            if message is None:
                core.out_of_touch(peer)
            else:
                core.receive(peer, message)
        if core.role is not Role.LEADER and self.syncs.is_quick(leads=False):
            self._let_go(core)  # a leader waits for the answers, nobody for what is applied here
        core.tick()
        if self.transport.handshakes.founding != self.machine.founding:
            self.transport.belong_to(self.machine.founding)
        self.stats.elections = core.elections
        self.stats.snapshots = core.snapshots_taken
        self._tell_results()
        self._follow_leadership(core)
        if core.role is Role.LEADER:
            self._lead(core)
        self._release(core)
        self._set_timer(core)

    def _lead(self, core: RaftCore) -> None:
        """The next group, the rounds that reads want, the steps of a transfer."""
        grew = False
        if self._epoch_entered != core.term:
            self._epoch_entered = core.term
            command = self.machine.epoch_command(core.term, self.node, self._now_ms())
            core.append(encode_group(core.term, [command]))
            grew = True
        now_s, waits = core.now(), self._transfer.holds_back(core)
        while not waits and (group := self._proposals.next_group(now_s)) is not None:
            commands, dones = group
            index = core.append(encode_group(core.term, commands))
            self._proposals.entered(index, core.term, dones)
            self.stats.entries += 1
            self.stats.commands += len(commands)
            self.stats.bytes += sum(map(len, commands))
            grew = True
        if grew or self._barriers.want_round:
            core.speak()
            self._barriers.round_begun(core.round, core.commit)
        self._barriers.settle(core.round_confirmed, core.applied)
        if self._transfer.is_under_way and self._proposals.is_idle:
            self._transfer.try_on(core)

    def _release(self, core: RaftCore) -> None:
        """Let go of all; a step again if that makes more possible."""
        counts = self._let_go(core)
        if core.is_behind or counts or self._barriers.want_round:
            self._kick()
        elif self._sync is None:
            self._caught_up.set()

    def _let_go(self, core: RaftCore) -> bool:
        """To the disk, then to the peers; whether that makes a quorum. Not yet if a sync began."""
        leads = core.role is Role.LEADER
        if leads:
            self.transport.flush(only=_TRAVEL_EARLY)
        job = self._journal.start_sync()
        core.sync_started()
        if job is not None:
            self._sync = self.syncs.run(job, leads=leads, disk_is_busy=bool(self._jobs))
            if self._sync is not None:
                self._sync.add_done_callback(self._synced)
                return False
            self._journal.after_sync()
            self.stats.syncs += 1
        counts = core.sync_ended()
        self.transport.flush()
        return counts

    def _synced(self, sync: asyncio.Future[None]) -> None:
        """A sync in a thread is over; what arrived meanwhile is the next step's."""
        self._sync = None
        if self._is_over:
            sync.exception()
            return
        try:
            sync.result()
            self._journal.after_sync()
            core = self._core
            assert core is not None
            core.sync_ended()
            self.stats.syncs += 1
            self.transport.flush()
        except Exception as error:
            self._die(error)
            return
        self._kick()

    def _set_timer(self, core: RaftCore) -> None:
        """Set earlier when it must be, never later: what is due moves with every message."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = core.next_due
        # What should have left by now goes when the entry that is under way has been applied.
        if now < self._proposals.leave_by_s < due:
            due = self._proposals.leave_by_s
        due = min(max(due, now) + _TIMER_S, now + 1.0)
        if self._timer is None or self._timer_at > due + _TIMER_S:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = loop.call_at(due, self._rang)

    def _in_background(
        self, job: Callable[[], Any], then: Callable[[Any, BaseException | None], None]
    ) -> None:
        def ended(future: asyncio.Future[Any]) -> None:
            del self._jobs[future]
            if self._is_over:
                future.exception()
                return
            try:
                error = future.exception()
                then(None if error is not None else future.result(), error)
            except Exception as failure:
                self._die(failure)
                return
            self._kick()

        future = asyncio.get_running_loop().run_in_executor(None, job)
        self._jobs[future] = None
        future.add_done_callback(ended)

    # --- what came of it

    def _applied(self, index: int, term: int, results: list[object]) -> None:
        self._results += self._proposals.applied(index, term, results)

    def _installed(self) -> None:
        self.stats.snapshots_installed += 1

    def _tell_results(self) -> None:
        results, self._results = self._results, []
        for done, result in results:
            self._tell(done, result)

    def _tell(self, done: Done, result: object) -> None:
        try:
            done(result)
        except Exception:
            log.exception("%s: a callback failed; the log goes on", self.node)

    def _follow_leadership(self, core: RaftCore) -> None:
        leads = core.role is Role.LEADER
        if self._epoch is not None and (not leads or core.term != self._epoch):
            self._lose(
                NotLeader(f"{self.node} leads no more"),
                FateUnknown(f"{self.node} lost its leadership of epoch {self._epoch}"),
            )
        if leads and self._epoch is None and self.machine.epoch == core.term:
            self._epoch = core.term
            self.stats.leaderships += 1
            log.info("%s: leads epoch %d", self.node, core.term)
            self._tell(self._announce, core.term)
        if self._transfer.is_under_way and self.leader not in (None, self.node):
            self._transfer.end()

    def _lose(self, waiting: NotLeader, under_way: FateUnknown) -> None:
        """Leadership is over: answer everything, then say so."""
        led, self._epoch = self._epoch is not None, None
        self._tell_results()
        for done, error in self._proposals.fail(waiting=waiting, under_way=under_way):
            self._tell(done, error)
        self._barriers.fail(waiting)
        if led:
            log.info("%s: leads no more", self.node)
            self._tell(self._announce, None)

    def _announce(self, epoch: object) -> None:
        assert epoch is None or isinstance(epoch, int)
        self.on_leadership(epoch)

    def _fall_silent(self, waiting: NotLeader, under_way: FateUnknown) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._caught_up.set()
        self.transport.close()
        self._inbox.clear()
        self._transfer.close()
        self._lose(waiting, under_way)

    def _die(self, error: BaseException) -> None:
        """Whatever it is: a replica in an unknown state must not speak."""
        if self.fatal is not None:
            return
        self.fatal = error
        # A message says what a disk refused or who took it; of the unforeseen the way matters.
        trace = None if isinstance(error, StorageError | OSError | TakenAway) else error
        log.critical("%s: stops for good: %s", self.node, in_words(error), exc_info=trace)
        self._fall_silent(NotLeader(f"{self.node} failed"), FateUnknown(f"{self.node} failed"))
        self.on_fatal(error)


def _ignore(_: object) -> None:
    """Nobody listens."""
