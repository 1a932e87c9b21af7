"""Cores of several replicas, moved by hand: a clock that stands still, links that hold messages.

Rules
- Nothing happens by itself: a test ticks a node, delivers from a link, drops what is on it.
- The step of a node is the replica's: what came, the tick, the journal, and only then the outbox.
- `World.check` holds after every step what Raft promises: one leader in a term, one entry applied
  at an index, and nothing acknowledged contradicted.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.raft.core import RaftCore, Surroundings
from cluster.raft.entries import COMMANDS, encode_group
from cluster.raft.state import CoreLimits, Role
from cluster.raft.wire import (
    MAX_FRAME_BYTES,
    Append,
    Frames,
    PreVote,
    RaftMessage,
    SnapshotPiece,
    encode,
)
from cluster.settings import RaftTimings
from cluster.storage.disk import PosixDisk
from cluster.storage.journal import Entry, Journal
from cluster.storage.snapshots import SnapshotStore
from tests.ledger import Ledger, put

TIMINGS = RaftTimings(heartbeat_ms=100, election_min_ms=400, election_max_ms=1000)


class World:
    """The nodes, the links between them, and what must never be seen."""

    def __init__(self, directory: Path, names: str = "ABC", **options: Any) -> None:
        self.directory = directory
        self.names = tuple(names)
        self.options = options
        self.now = 1000.0
        self.links: dict[tuple[str, str], deque[RaftMessage]] = {}
        self.nodes: dict[str, Node] = {}
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.leaders: dict[int, str] = {}
        self.acknowledged: dict[str, int] = {}
        for name in self.names:
            self.boot(name)

    def boot(self, name: str) -> Node:
        """Start `name` from what its disk holds, connected both ways."""
        node = self.nodes[name] = Node(self, name)
        for other in self.names:
            if other != name:
                node.core.connected(other)
                if other in self.nodes:
                    self.nodes[other].core.connected(name)
        return node

    def crash(self, name: str) -> None:
        """kill -9: what was not written is lost, and everything on its links."""
        node = self.nodes.pop(name)
        node.crash()
        for other in self.names:
            self.links.pop((name, other), None)
            self.links.pop((other, name), None)
            if other in self.nodes:
                self.nodes[other].core.disconnected(name)

    def link(self, sender: str, receiver: str) -> deque[RaftMessage]:
        return self.links.setdefault((sender, receiver), deque())

    def drop(self, sender: str, receiver: str) -> list[RaftMessage]:
        link = self.link(sender, receiver)
        dropped = list(link)
        link.clear()
        return dropped

    def deliver(self, sender: str, receiver: str, count: int | None = None) -> None:
        """The first `count` messages of a link, or all that are on it now."""
        link = self.link(sender, receiver)
        for _ in range(len(link) if count is None else count):
            self.nodes[receiver].hear(sender, link.popleft())

    def elect(self, name: str, *voters: str) -> Node:
        """Make `name` the leader with these votes; what is on the links of `name` is lost."""
        node = self.nodes[name]
        self.now += 5
        for other in self.nodes:
            self.nodes[other].hold()
            self.drop(name, other)
            self.drop(other, name)
        for _ in range(3):  # pre-votes, votes, the first entries
            node.core.set_deadline(0.0)
            node.step()
            for voter in voters:
                self.deliver(name, voter)
                self.nodes[voter].step()
                self.deliver(voter, name)
            node.step()
            if node.core.role is Role.LEADER:
                return node
        raise AssertionError(f"{name} was not elected")

    def pass_rounds(self, *names: str, rounds: int = 6) -> None:
        """Time passes and every message between `names` arrives; nobody stands for election."""
        names = names or tuple(self.nodes)
        for _ in range(rounds):
            self.now += 0.11
            for name in names:
                self.nodes[name].hold()
                self.nodes[name].step()
            for sender in names:
                for receiver in names:
                    if sender != receiver:
                        self.deliver(sender, receiver)
            for name in names:
                self.nodes[name].step()

    def saw_applied(self, index: int, term: int, command: bytes) -> None:
        before = self.applied.setdefault(index, (term, command))
        assert before == (term, command), f"two entries were applied at {index}"

    def check(self) -> None:
        for name, node in self.nodes.items():
            if node.core.role is Role.LEADER:
                leader = self.leaders.setdefault(node.core.term, name)
                assert leader == name, f"{leader} and {name} lead term {node.core.term}"


class Node:
    """One replica without its loop."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        directory = world.directory / name
        directory.mkdir(exist_ok=True)
        disk = PosixDisk()
        self.journal = Journal.open(
            directory / "journal",
            cluster="test",
            node=name,
            disk=disk,
            sync=False,
            segment_bytes=world.options.get("segment_bytes", 1 << 20),
        )
        self.store = SnapshotStore(directory / "snapshots", disk=disk, cluster="test")
        self.ledger = Ledger()
        if self.store.exists:
            restoring = self.ledger.restoring()
            self.store.load(restoring.feed)
            restoring.finish()
        self.outbox: list[tuple[str, RaftMessage]] = []
        self.jobs: deque[Callable[[], None]] = deque()
        self.pending: dict[int, tuple[int, str]] = {}
        self.jobs_run_at_once = True
        self.backlog = 0
        """Unsent bytes to each peer."""
        self.core = RaftCore(
            node=name,
            members=world.names,
            journal=self.journal,
            store=self.store,
            machine=self.ledger,
            timings=TIMINGS,
            snapshot_every=world.options.get("snapshot_every", 1 << 40),
            limits=world.options.get("limits", CoreLimits(kept_bytes=0)),
            surroundings=Surroundings(
                now=lambda: world.now,
                now_ms=lambda: 1,
                random=random.Random(f"{name} {world.options.get('seed', 0)}"),
                send=lambda peer, message: self.outbox.append((peer, message)),
                backlog=lambda _: self.backlog,
                in_background=self._in_background,
                on_applied=self._applied,
                on_installed=lambda: None,
            ),
        )
        self.core.set_deadline(world.now + 1e6)
        self.write()

    @property
    def log(self) -> list[tuple[int, int]]:
        """(index, term) of every entry."""
        return [(index, term) for _, index, term in self.journal[:]]

    @property
    def lines(self) -> list[str]:
        return self.ledger.lines

    def hear(self, sender: str, message: RaftMessage) -> None:
        self.core.receive(sender, message)

    def hold(self) -> None:
        """No election of its own from here, unless the test says so."""
        if self.core.role is not Role.LEADER:
            self.core.set_deadline(self.world.now + 1e6)

    def put(self, text: str) -> None:
        """As the leader: into the log under its term, on its way with the next step."""
        core = self.core
        if self.ledger.epoch != core.term and not any(
            term == core.term and command[:1] == COMMANDS for command, _, term in self.journal[:]
        ):
            core.append(
                encode_group(core.term, [self.ledger.epoch_command(core.term, self.name, 1)])
            )
        index = core.append(encode_group(core.term, [put(core.term, text)]))
        self.pending[index] = (core.term, text)
        core.speak_soon()

    def step(self) -> list[RaftMessage]:
        """The tick, the disk, the outbox; what left."""
        self.core.tick()
        self.write()
        if self.jobs_run_at_once:
            self.run_jobs()
        return self.release()

    def write(self) -> None:
        """The step's way to the disk."""
        self.journal.write()
        self.core.sync_started()
        job = self.journal.start_sync()
        if job is not None:
            job()
            self.journal.after_sync()
        self.core.sync_ended()

    def release(self) -> list[RaftMessage]:
        released, self.outbox = self.outbox, []
        for peer, message in released:
            frames = Frames(MAX_FRAME_BYTES)
            for copy in frames.feed(encode(message)):
                self.world.link(self.name, peer).append(copy)  # type: ignore[arg-type]
        self.world.check()
        return [message for _, message in released]

    def run_jobs(self) -> None:
        while self.jobs:
            self.jobs.popleft()()

    def crash(self) -> None:
        """Leave the disk as it is; the buffers go."""
        self.journal._buffer.clear()
        self.journal.close()

    def _in_background(
        self, job: Callable[[], Any], then: Callable[[Any, BaseException | None], None]
    ) -> None:
        def run() -> None:
            try:
                result = job()
            except Exception as error:
                then(None, error)
            else:
                then(result, None)

        self.jobs.append(run)

    def _applied(self, index: int, term: int, results: list[object]) -> None:
        command = self.journal[index - self.journal.first_index][0]
        self.world.saw_applied(index, term, command)
        pending = self.pending.pop(index, None)
        if pending is not None and pending[0] == term and isinstance(results[0], int):
            self.world.acknowledged[pending[1]] = index


def lagging(tmp_path: Path, lines: int = 30) -> tuple[World, Node]:
    """L leads and has cut its log; B has nothing of it."""
    world = World(tmp_path, "LAB", limits=CoreLimits(kept_bytes=0, piece_bytes=200))
    leader = world.elect("L", "A")
    world.drop("L", "B")
    for number in range(lines):
        leader.put(f"line {number}")
    for _ in range(6):
        world.pass_rounds("L", "A", rounds=1)
        world.drop("L", "B")
    leader.core.forceLogCompaction()
    leader.step()
    leader.step()
    world.drop("L", "B")
    assert leader.journal.first_index > 20
    return world, leader


def append(
    term: int,
    previous: tuple[int, int],
    entries: list[tuple[int, int]],
    commit: int,
    number: int = 1,
) -> Append:
    """An `Append` by hand; entries are (index, term) and do nothing."""
    made: tuple[Entry, ...] = tuple((b"\x01", index, each) for index, each in entries)
    return Append(term, number, 1, commit, previous[0], previous[1], made)


def piece(term: int, index: int, entry_term: int, payload: bytes = b"xxx") -> SnapshotPiece:
    """The first piece of a snapshot, by hand."""
    return SnapshotPiece(term, 1, 1, index, entry_term, 0, False, payload)


def pre_vote(term: int) -> PreVote:
    return PreVote(term, 10**6, term - 1)
