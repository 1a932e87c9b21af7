"""How long the event loop stands still beside a million finished transactions, and what they weigh.

    python -m tests.stalls --finished 1000000

Rules:
- a real machine, replica, journal and disk; only HTTP and participants are left out;
- finished transactions are made as they are in life: encoded commands, decoded and applied;
- the load goes on while snapshots are written: clients propose Begin, Decide and Acknowledge one
  after the other, and for each transaction finished an old one is forgotten;
- a follower that has as many transactions of its own is sent the snapshot of another leader, and
  installs it; both are in this process, so what the leader does for it counts as well;
- a full collection of garbage happens while the load goes on, for it may come at any time;
- the probe is a timer that is due every millisecond: how late it rings is the stall, but no more
  than the processor time of the whole process meanwhile. The rest was spent waiting for a
  processor, which is what a busy machine costs, or for the disk, which only threads wait for.

Ends with exit code 1 if a goal is missed: no stall over 50 ms, at most 400 bytes for a finished
transaction.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.raft.entries import NOTHING
from cluster.raft.replica import Replica
from cluster.settings import RaftTimings
from cluster.storage.disk import PosixDisk
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.snapshots import SnapshotMeta, SnapshotStore
from coordinator.commands import Acknowledge, Begin, Command, Decide, Forget, encode
from coordinator.facts import Branch, Branches, Mode
from coordinator.ids import IdMaker
from coordinator.machine import Applied, Machine
from coordinator.sweep import FORGET_AT_ONCE
from participants import process
from participants.contract import Vote

GOAL_MS = 50.0
GOAL_BYTES = 400
PROBE_S = 0.001
CLIENTS = 64
NODE, FOLLOWER = "n1", "n2"
EMPTY = 20_000
"""Transactions without which the same load is run first, for comparison."""


PAYLOADS = (b'{"sku":"A-1","quantity":2}',) * 3


class Maker:
    """Makes the commands of transactions at three participants."""

    def __init__(self) -> None:
        self._new_id = IdMaker(_now_ms, random.Random(1))
        self._random = random.Random(2)

    def begin(self, epoch: int) -> Begin:
        branches = Branches(_branch(number) for number in (1, 2, 3))
        id_, fingerprint = self._new_id(), self._random.randbytes(32).hex()
        now_ms = _now_ms()
        deadline_ms = now_ms + 10_000
        return Begin(
            epoch,
            now_ms,
            id_,
            fingerprint,
            Mode.ONE_SHOT,
            branches,
            PAYLOADS,
            deadline_ms,
            b'{"a":"b"}',
        )


def commands_after(begin: Begin) -> Iterator[Command]:
    """What brings a transaction that was begun to its end."""
    epoch, id_ = begin.epoch, begin.id
    yield Decide(epoch, _now_ms(), id_, (Vote.YES,) * 3, (None,) * 3, None)
    yield Acknowledge(epoch, _now_ms(), id_, 0b111)


def _branch(number: int) -> Branch:
    url = f"http://127.0.0.1:900{number}"
    return Branch(
        str(number),
        ("profile", "inventory", "activity")[number - 1],
        url,
        f"{url}/prepare",
        f"{url}/commit",
        f"{url}/rollback",
        True,
    )


def fill(machine: Machine, maker: Maker, count: int) -> None:
    """`count` transactions, begun, decided and acknowledged."""
    for _ in range(count):
        begin = maker.begin(machine.epoch)
        machine.apply(encode(begin))
        for command in commands_after(begin):
            machine.apply(encode(command))


class Probe:
    """Rings every millisecond and notes how late it was."""

    def __init__(self) -> None:
        self.late_ms: list[float] = []
        self._due = self._cpu = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._plan()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _plan(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time() + PROBE_S
        self._cpu = time.process_time()
        self._timer = loop.call_at(self._due, self._rang)

    def _rang(self) -> None:
        late_s = asyncio.get_running_loop().time() - self._due
        self.late_ms.append(1_000 * min(late_s, time.process_time() - self._cpu))
        self._plan()

    @property
    def worst_ms(self) -> float:
        return max(self.late_ms, default=0.0)

    def __str__(self) -> str:
        return (
            f"worst {self.worst_ms:.1f} ms, p99.9 {self.quantile_ms(0.999):.1f} ms,"
            f" p99 {self.quantile_ms(0.99):.1f} ms, p50 {self.quantile_ms(0.5):.2f} ms"
        )

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.late_ms)
        return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


@dataclass(slots=True)
class Load:
    """Clients that bring transactions to their end, one after the other."""

    replica: Replica
    machine: Machine
    maker: Maker
    finished: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False
    under_way: int = 0
    forgetting: bool = False

    def start(self) -> None:
        for _ in range(CLIENTS):
            self._next()

    async def end(self) -> None:
        self.over = True
        await self.ended.wait()

    def _next(self) -> None:
        begin = self.maker.begin(self.machine.epoch)
        self.under_way += 1
        self._go_on(begin, commands_after(begin))

    def _go_on(self, command: Command, following: Iterator[Command]) -> None:
        def done(result: object) -> None:
            assert isinstance(result, Applied), result
            after = next(following, None)
            if after is not None:
                self._go_on(after, following)
                return
            self.under_way -= 1
            self.finished += 1
            if self.finished % FORGET_AT_ONCE == 0:
                self._forget()
            if not self.over:
                self._next()
            elif not self.under_way:
                self.ended.set()

        self.replica.propose(encode(command), command.epoch, done)

    def _forget(self) -> None:
        horizon_ms = self.machine.horizon_that_forgets(FORGET_AT_ONCE)
        forget = Forget(self.machine.epoch, _now_ms(), horizon_ms)
        self.replica.propose(encode(forget), forget.epoch, lambda _: None)


async def serve(directory: Path, machine: Machine, maker: Maker, snapshots: int) -> bool:
    """Load on one node until so many snapshots were written; did no stall miss the goal?"""
    replica = make_replica(directory, machine, {NODE: free_address()}, NODE)
    began_s = time.process_time()
    await replica.start()
    while replica.epoch is None:  # noqa: ASYNC110 - looks from outside; nothing tells
        await asyncio.sleep(0.01)
    restored_s = time.process_time() - began_s
    probe, load = Probe(), Load(replica, machine, maker)
    probe.start()
    load.start()
    began = time.monotonic()
    wanted = replica.stats.snapshots + snapshots
    gc.collect()
    while replica.stats.snapshots < wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    await load.end()
    probe.stop()
    elapsed_s = time.monotonic() - began
    size = (directory / "snapshots" / "snapshot").stat().st_size
    await replica.stop()
    print(
        f"  remembered {machine.remembered_count:,}; started in {restored_s:.2f} s of CPU;"
        f" {load.finished / elapsed_s:,.0f} transactions/s for {elapsed_s:.1f} s,"
        f" {snapshots} snapshots of {size / 1e6:.0f} MB\n"
        f"  stalls: {probe}",
        flush=True,
    )
    return probe.worst_ms <= GOAL_MS


async def install(directory: Path, machine: Machine, old: Machine) -> bool:
    """A follower that holds `old` gets all of `machine` from its leader; as above."""
    peers = {NODE: free_address(), FOLLOWER: free_address()}
    meta = SnapshotMeta((NOTHING, 10, 1), (NOTHING, 9, 1), tuple(sorted(peers)))
    (directory / NODE).mkdir()
    store = SnapshotStore(directory / NODE / "snapshots", disk=PosixDisk(), cluster="stalls")
    store.write(meta, machine.chunks(machine.view()))
    leader = make_replica(directory / NODE, machine, peers, NODE)
    await leader.start()
    follower = make_replica(directory / FOLLOWER, old, peers, FOLLOWER)
    await follower.start()
    probe = Probe()
    probe.start()
    began_s = time.process_time()
    while not follower.stats.snapshots_installed or follower._jobs:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    probe.stop()
    elapsed_s = time.process_time() - began_s
    assert old.remembered_count == machine.remembered_count
    await follower.stop()
    await leader.stop()
    print(
        f"  {old.remembered_count:,} shipped and installed in {elapsed_s:.2f} s of CPU\n"
        f"  stalls: {probe}",
        flush=True,
    )
    return probe.worst_ms <= GOAL_MS


def free_address() -> tuple[str, int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1", int(free.getsockname()[1])


def make_replica(
    directory: Path, machine: Machine, peers: dict[str, tuple[str, int]], node: str
) -> Replica:
    directory.mkdir(exist_ok=True)
    disk = PosixDisk()
    return Replica(
        node=node,
        peers=peers,
        cluster="stalls",
        machine=machine,
        journal=Journal.open(directory / "journal", cluster="stalls", node=node, disk=disk),
        snapshots=SnapshotStore(directory / "snapshots", disk=disk, cluster="stalls"),
        fellows=Fellows(directory / "fellows", disk, node.encode()),
        now_ms=_now_ms,
        random=random.Random(3),
        timings=RaftTimings(heartbeat_ms=40, election_min_ms=200, election_max_ms=400),
        snapshot_every=1_000,
    )


@contextmanager
def _phase(name: str) -> Iterator[None]:
    print(name, flush=True)
    began = time.monotonic()
    yield
    print(f"  {time.monotonic() - began:.1f} s", flush=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.stalls", description=__doc__)
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--snapshots", type=int, default=2, help="to write while serving")
    arguments = parser.parse_args()
    maker, machine = Maker(), Machine()
    fill(machine, maker, EMPTY)  # what is there once is not counted
    before = _resident_bytes()
    with _phase(f"filling with {arguments.finished:,} finished transactions"):
        fill(machine, maker, arguments.finished)
    each = (_resident_bytes() - before) / arguments.finished
    print(f"  {each:.0f} bytes each", flush=True)
    held = each <= GOAL_BYTES
    process.prepare_to_serve()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / NODE
        print("serving", flush=True)
        held &= asyncio.run(serve(directory, machine, maker, arguments.snapshots))
        print("serving after a restart", flush=True)
        restarted = Machine()
        held &= asyncio.run(serve(directory, restarted, maker, arguments.snapshots))
    with tempfile.TemporaryDirectory() as name:
        print("installing a snapshot", flush=True)
        held &= asyncio.run(install(Path(name), restarted, machine))
    print("the goals are held" if held else "a goal is missed")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
