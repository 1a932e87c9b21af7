"""One node: everything put together, run, and stopped in order.

The composition root: the only file that knows how directory, journal, replica, machine, driver and
API are joined. Start: lock the data directory, read it, join the log, serve. Stop (SIGTERM): take
no new transactions, give leadership up, leave what is under way to the next leader, exit 0. A
broken disk or a broken invariant stops the node at once with exit code 1: a node in an unknown
state must not speak.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random, SystemRandom
from typing import Any

from prometheus_client import CollectorRegistry

from cluster.clocks import ClockWatch
from cluster.errors import DiskFailed, FailStop, Foreign, StorageError, in_words
from cluster.raft.replica import Replica, ReplicaLimits
from cluster.raft.state import Role
from cluster.raft.status import PeerStatus
from cluster.settings import ClusterSettings, NodeSettings, SettingsError
from cluster.storage.directory import Directory, Identity, open_directory
from cluster.storage.disk import Disk, PosixDisk
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.snapshots import SnapshotStore
from coordinator import api_http
from coordinator.api import Api, Check
from coordinator.driver import Driver
from coordinator.gateway import Gateway
from coordinator.log import LogError
from coordinator.machine import Machine
from coordinator.metrics import LogFigures, LoopLag, Metrics
from coordinator.steps import Steps
from coordinator.sweep import Sweep
from participants import event_loop, process
from participants.clock import wall_clock_ms

LOG = logging.getLogger("assent.node")

DRAIN_S = 3.0
"""How long a stopping leader waits for what is under way, before it leaves it to the next one."""

TRANSFER_S = 2.0
SERVE_SHUTDOWN_S = 1.0
MAX_BEHIND = 10_000


def run_node(
    settings: ClusterSettings, node_id: str, *, data_dir: Path, bootstrap: bool, fsync: bool
) -> int:
    """Run one node until it is told to stop; the process's exit code.

    0 after SIGTERM or SIGINT, 1 after a failure of its own, 2 for what the user must put right.
    """
    try:
        process.prepare_to_serve()
        return event_loop.run(_run(settings, node_id, data_dir, bootstrap=bootstrap, fsync=fsync))
    except (DiskFailed, FailStop) as error:
        print(f"assent: {node_id}: {error}", file=sys.stderr)
        return 1
    except (StorageError, SettingsError, event_loop.NoSuchLoop) as error:
        print(f"assent: {node_id}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"assent: {node_id}: {_told(error)}", file=sys.stderr)
        return 2


def _told(error: OSError) -> str:
    """What the system refused, and for the most frequent refusal what to do about it."""
    text = error.strerror or str(error)
    if error.errno == errno.EADDRINUSE:
        text += "; stop the program that listens there, or give the node another address"
    return text


async def _run(
    settings: ClusterSettings, node_id: str, data_dir: Path, *, bootstrap: bool, fsync: bool
) -> int:
    for warning in settings.warnings():
        LOG.warning("%s", warning)
    disk = PosixDisk()
    identity = Identity.of(settings.name, node_id, (node.id for node in settings.nodes))
    random = SystemRandom()
    directory = open_directory(data_dir, identity, bootstrap=bootstrap, disk=disk, random=random)
    try:
        node = Node(
            settings,
            node_id,
            directory=directory,
            disk=disk,
            fsync=fsync,
            now_ms=wall_clock_ms,
            random=random,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, node.stop)
        return await node.run()
    finally:
        directory.close()


class Node:
    """A node on the running loop: made, and `run` until `stop` is called or it fails.

    `now_ms`: the wall clock, Unix milliseconds. Raises what `Journal.open` and `Replica` raise.
    """

    def __init__(
        self,
        settings: ClusterSettings,
        node_id: str,
        *,
        directory: Directory,
        disk: Disk,
        fsync: bool,
        now_ms: Callable[[], int],
        random: Random,
        replica_limits: ReplicaLimits | None = None,
    ) -> None:
        self._settings = settings
        self._me: NodeSettings = settings.node(node_id)
        self._told_to_stop = asyncio.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self.machine = Machine()
        self._journal = Journal.open(
            directory.journal, cluster=settings.name, node=node_id, disk=disk, sync=fsync
        )
        self.replica = self._new_replica(directory, disk, now_ms, random, replica_limits)
        # Drawn six times in a transaction; the system's own costs a system call each time.
        jitter = Random(random.getrandbits(128))
        self._gateway = Gateway(limits=settings.limits, timings=settings.timings, random=jitter)
        registry = CollectorRegistry()
        metrics = Metrics(registry)
        self.driver = Driver(
            self.replica,
            self.machine,
            self._gateway,
            now_ms=now_ms,
            random=jitter,
            limits=settings.limits,
            timings=settings.timings,
            coordinators=tuple(n.api.url for n in settings.nodes),
            steps=Steps(metrics),
        )
        self._gateway.on_answers = metrics.answered
        self._clocks = ClockWatch(self.replica, now_ms=now_ms)
        self._sweep = Sweep(
            self.replica,
            self.machine,
            self.driver,
            now_ms=now_ms,
            retention=settings.retention,
            clock_is_sound=self._clocks.is_sound,
            clock_is_steady=lambda: self._clocks.steady_s() * 1_000 >= settings.retention.steady_ms,
        )
        self._lag = LoopLag(metrics.lagged)
        metrics.watch(self.driver.figures, self._log_figures)
        self.replica.on_leadership = self.driver.lead
        self.replica.on_fatal = self._fail
        self.api = self._new_api(now_ms, random, registry)
        self._server = api_http.Server(self.api, shutdown_timeout_s=SERVE_SHUTDOWN_S)

    def _new_replica(
        self,
        directory: Directory,
        disk: Disk,
        now_ms: Callable[[], int],
        random: Random,
        limits: ReplicaLimits | None,
    ) -> Replica:
        settings, me = self._settings, self._me
        return Replica(
            node=me.id,
            peers={n.id: (n.raft.host, n.raft.port) for n in settings.nodes},
            bind=(me.raft_bind.host, me.raft_bind.port),
            cluster=settings.name,
            machine=self.machine,
            journal=self._journal,
            snapshots=SnapshotStore(directory.snapshots, disk=disk, cluster=settings.name),
            fellows=Fellows(directory.fellows, disk, directory.birth),
            timings=settings.raft_timings,
            now_ms=now_ms,
            random=random,
            snapshot_every=settings.log.snapshot_every,
            limits=limits,
        )

    def _new_api(
        self, now_ms: Callable[[], int], random: Random, registry: CollectorRegistry
    ) -> Api:
        return Api(
            self.driver,
            self.machine,
            self.replica,
            node=self._me.id,
            apis={n.id: n.api.url for n in self._settings.nodes},
            limits=self._settings.limits,
            timings=self._settings.timings,
            now_ms=now_ms,
            clock_is_settled=self._clocks.is_settled,
            random=random,
            status=self._status,
            checks=self._checks,
            registry=registry,
        )

    # --- running ---

    async def run(self) -> int:
        """Serve until told to stop: 0; 1 if the node had to stop by itself, 2 if the other nodes
        do not know its directory."""
        try:
            await self._start()
            await self._told_to_stop.wait()
            if self._failure is None:
                await self._drain()
        finally:
            await self._end()
        if self._failure is not None:
            LOG.critical("node %s stops: %s", self._me.id, in_words(self._failure))
            return 2 if isinstance(self._failure, Foreign) else 1
        LOG.info("node %s has stopped", self._me.id)
        return 0

    def stop(self) -> None:
        """Have `run` drain and return."""
        self._told_to_stop.set()

    async def _start(self) -> None:
        await self._gateway.start()
        bind = self._me.api_bind
        try:
            await self._server.listen(bind.host, bind.port)
        except socket.gaierror as error:
            raise SettingsError(
                f"the API cannot listen on {bind}: {error.strerror}; give api, or api_bind, an"
                " address of this machine"
            ) from error
        await self.replica.start()
        self._sweep.start()
        self._clocks.start()
        self._lag.start()
        LOG.info("node %s serves on %s", self._me.id, self._me.api.url)

    async def _drain(self) -> None:
        """Give leadership up before going, so that nobody waits for an election.

        Only what is undecided is waited for: the next leader ends what is decided as well as this
        one, and while this one waits nobody can begin anything.
        """
        self._stopping = True
        LOG.info("node %s stops: no new transactions from now on", self._me.id)
        self.driver.drain()
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + DRAIN_S
        while self.replica.epoch is not None and (undecided := self.driver.undecided_count):
            if loop.time() > give_up_s:
                LOG.info("waited in vain for the end of %d undecided transactions", undecided)
                break
            await asyncio.sleep(0.02)
        if self.driver.live_count:
            LOG.info("leaving %d transactions to the next leader", self.driver.live_count)
        if self.replica.epoch is not None:
            try:
                await self.replica.transfer_leadership(timeout_s=TRANSFER_S)
            except LogError as error:
                LOG.info("leaving without a successor: %s", error)

    async def _end(self) -> None:
        self._lag.stop()
        await self._clocks.stop()
        await self._sweep.stop()
        await self._server.stop()
        await self.replica.stop()
        self.driver.stop()
        await self._gateway.stop()

    def _fail(self, failure: BaseException) -> None:
        self._failure = failure
        self._told_to_stop.set()

    # --- what it says of itself ---

    def _log_figures(self) -> LogFigures:
        status = self.replica.status()
        return LogFigures(
            term=status.term,
            commit_index=status.committed,
            applied_index=status.applied,
            journal_bytes=self._journal.bytes,
            journal_syncs=self._journal.syncs,
        )

    def _status(self) -> dict[str, Any]:
        """The answer of GET /v1/cluster."""
        status = self.replica.status()
        peers = {peer.node: peer for peer in status.peers}
        nodes = []
        for node in self._settings.nodes:
            peer = peers.get(node.id)
            is_leader = node.id == status.leader
            match: int | None
            if peer is None:
                alive, match = True, status.last
            else:
                alive = self._is_alive(peer)
                match = peer.match_index if status.role is Role.LEADER else None
            nodes.append(
                {
                    "id": node.id,
                    "api": node.api.url,
                    "raft": str(node.raft),
                    "role": "leader" if is_leader else "follower",
                    "alive": alive,
                    "match_index": match,
                    "lag": None if match is None else max(0, status.last - match),
                }
            )
        return {
            "cluster": self._settings.name,
            "self": self._me.id,
            "leader": status.leader,
            "term": status.term,
            "nodes": nodes,
        }

    def _is_alive(self, peer: PeerStatus) -> bool:
        """Heard of within an election timeout. Followers do not hear each other: of another one it
        is only known whether it is connected."""
        if peer.last_contact_s is None:
            return peer.connected
        return peer.last_contact_s < self._settings.raft_timings.election_max_ms / 1000

    def _checks(self) -> dict[str, Check]:
        """The readiness checklist: what must hold for this node to be of use."""
        status = self.replica.status()
        leader = status.leader
        behind = status.committed - status.applied
        offset_ms = self._clocks.offset_ms
        return {
            "running": Check(not self._stopping, "stopping" if self._stopping else "running"),
            "leader": Check(
                leader is not None, f"the leader is {leader}" if leader else "none known"
            ),
            "log": Check(behind <= MAX_BEHIND, f"{behind} entries behind"),
            "journal": Check(self.replica.fatal is None, str(self.replica.fatal or "written")),
            "clock": Check(self._clocks.is_sound(), f"{offset_ms} ms from the median of all nodes"),
        }
