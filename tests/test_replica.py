"""Replicas over real sockets and files: what is acknowledged stays, what is stale fails."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DiskFailed, FailStop, Foreign
from cluster.local.ports import free_ports
from cluster.raft import replica as replica_module
from cluster.raft.core import RaftCore
from cluster.raft.entries import NOTHING, encode_group
from cluster.raft.proposals import ProposalLimits
from cluster.raft.replica import Replica, ReplicaLimits
from cluster.raft.state import CoreLimits, Role
from cluster.raft.wire import Append, AppendReply, RaftMessage, SnapshotPiece
from cluster.settings import RaftTimings
from cluster.storage.disk import PosixDisk
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.snapshots import SnapshotStore
from coordinator.log import FateUnknown, LogError, NotHandedOver, NotLeader, Overloaded
from tests.ledger import Ledger, put

DEADLINE_S = 60
TIMINGS = RaftTimings(heartbeat_ms=40, election_min_ms=200, election_max_ms=400)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Until it holds; the test's deadline ends what never comes."""
    while not condition():  # noqa: ASYNC110 - looks from outside; nothing tells
        await asyncio.sleep(0.005)


class Cluster:
    """Nodes of one cluster in this process."""

    def __init__(self, directory: Path, count: int = 3, **options: Any) -> None:
        self.directory = directory
        self.sync = bool(options.pop("sync", True))
        self.now_ms = options.pop("now_ms", lambda: 1_700_000_000_000)
        self.options = options
        names = [f"n{number}" for number in range(1, count + 1)]
        ports = free_ports(tuple(names), ()).raft
        self.addresses = {name: ("127.0.0.1", port) for name, port in ports.items()}
        self.replicas: dict[str, Replica] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.epochs: dict[str, list[int | None]] = {name: [] for name in names}
        self.starts = 0
        self.births = {name: name.encode() for name in names}

    async def start(self, *names: str) -> None:
        for name in names or self.addresses:
            self.starts += 1
            directory = self.directory / name
            directory.mkdir(exist_ok=True)
            disk = PosixDisk()
            ledger = self.ledgers[name] = Ledger()
            replica = self.replicas[name] = Replica(
                node=name,
                peers=self.addresses,
                cluster="test",
                machine=ledger,
                journal=Journal.open(
                    directory / "journal", cluster="test", node=name, disk=disk, sync=self.sync
                ),
                snapshots=SnapshotStore(directory / "snapshots", disk=disk, cluster="test"),
                fellows=Fellows(directory / "fellows", disk, self.births[name]),
                now_ms=self.now_ms,
                random=random.Random(f"{name} {self.starts}"),
                **{"timings": TIMINGS, **self.options},
            )
            replica.on_leadership = self.epochs[name].append
            await replica.start()

    async def stop(self, *names: str) -> None:
        for name in names or list(self.replicas):
            await self.replicas.pop(name).stop()

    @property
    def leading(self) -> Replica | None:
        leaders = [r for r in self.replicas.values() if r.epoch is not None]
        return max(leaders, key=lambda replica: replica.epoch or 0, default=None)

    async def leader(self, *, other_than: str | None = None) -> Replica:
        await until(lambda: self.leading is not None and self.leading.node != other_than)
        assert self.leading is not None
        return self.leading

    async def put(self, text: str) -> Replica:
        """Until some leader has acknowledged it; the leader that did."""
        while True:
            replica = await self.leader()
            if isinstance(await propose(replica, text), int):
                return replica

    def follower_of(self, leader: Replica) -> tuple[Replica, RaftCore]:
        """One of those that do not lead, and its core."""
        follower = next(r for r in self.replicas.values() if r is not leader)
        assert follower._core is not None
        return follower, follower._core

    async def all_have(self, *lines: str) -> None:
        await until(lambda: all(self.ledgers[name].lines == list(lines) for name in self.replicas))

    def keep(self, leader: Replica) -> None:
        """However slow the machine is from now on, nobody takes this one for dead, nor itself."""
        for replica in self.replicas.values():
            core = replica._core
            assert core is not None
            core.timings = dataclasses.replace(
                TIMINGS, election_min_ms=10**6, election_max_ms=10**7
            )
            core.draw_deadline()
        assert leader._core is not None
        leader._core.conf.leaderFallbackTimeout = 10**4

    def isolate(self, name: str) -> None:
        for other, replica in self.replicas.items():
            if other != name:
                replica.transport.blocked.add(name)
                self.replicas[name].transport.blocked.add(other)

    def heal(self) -> None:
        for replica in self.replicas.values():
            replica.transport.blocked.clear()


@asynccontextmanager
async def cluster(directory: Path, count: int = 3, **options: Any) -> AsyncIterator[Cluster]:
    made = Cluster(directory, count, **options)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


def _nothing(_: object) -> None:
    pass


def propose(replica: Replica, text: str, epoch: int | None = None) -> asyncio.Future[object]:
    """The result, or the LogError as a result."""
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    under = epoch if epoch is not None else (replica.epoch or 0)
    replica.propose(put(under, text), under, future.set_result)
    return future


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "no sync"])
def test_what_is_proposed_is_applied_everywhere_in_one_order(tmp_path: Path, sync: bool) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, sync=sync) as nodes:
            leader = await nodes.leader()
            texts = [f"line {number}" for number in range(300)]
            results = await asyncio.gather(*(propose(leader, text) for text in texts))
            assert results == list(range(1, 301))
            await nodes.all_have(*texts)
            assert leader.stats.entries < 300, "commands that wait share an entry"
            assert (leader.stats.syncs > 0) == sync
            assert {r.leader for r in nodes.replicas.values()} == {leader.node}

    run(scenario())


def test_a_follower_of_a_quick_disk_answers_before_it_applies(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            follower, _ = nodes.follower_of(leader)
            follower.syncs.quick_s = math.inf
            has_answered: list[bool] = []
            asks_for_another_step: list[bool] = []
            ledger = nodes.ledgers[follower.node]
            apply = ledger.apply

            def watched(command: bytes) -> object:
                unsent = [type(message) for _, message in follower.transport._outbox]
                has_answered.append(AppendReply not in unsent)
                asks_for_another_step.append(follower._scheduled)
                return apply(command)

            ledger.apply = watched  # type: ignore[method-assign]
            texts = [f"line {number}" for number in range(20)]
            for text in texts:
                await nodes.put(text)
            await nodes.all_have(*texts)
            assert len(has_answered) >= len(texts)
            assert all(has_answered)
            assert not any(asks_for_another_step), "this one applies what there is"

    run(scenario())


def test_a_leader_whose_streams_are_gone_is_named_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though no election timeout has passed since it was heard of: nobody is sent to the dead."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            follower, _ = nodes.follower_of(leader)
            asked: list[str] = []
            await until(lambda: follower.leader == leader.node)
            monkeypatch.setattr(follower.transport, "is_in_touch", asked.append)
            assert follower.leader is None
            assert asked == [leader.node]

    run(scenario())


def test_a_leader_that_has_been_silent_is_named_no_more(tmp_path: Path) -> None:
    """Clients that are sent to it would wait there, though its streams stand."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            follower, core = nodes.follower_of(leader)
            await until(lambda: follower.leader == leader.node)
            core.last_contact = asyncio.get_running_loop().time() - TIMINGS.election_max_ms / 1000
            assert follower.leader is None

    run(scenario())


def test_a_start_at_which_what_is_committed_cannot_be_applied_fails(tmp_path: Path) -> None:
    (tmp_path / "n1").mkdir()
    disk = PosixDisk()
    with closing(
        Journal.open(tmp_path / "n1" / "journal", cluster="test", node="n1", disk=disk)
    ) as journal:
        journal.append(NOTHING, 1, 0)
        journal.append(encode_group(1, [Ledger().epoch_command(1, "n1", 1)]), 2, 1)
        journal.append(encode_group(1, [put(1, "poison")]), 3, 1)
        journal.commit_hint = 3
        journal.set_vote(1, "n1")

    async def scenario() -> None:
        nodes = Cluster(tmp_path, 1)
        try:
            with pytest.raises(FailStop, match="cannot be applied"):
                await nodes.start()
        finally:
            await nodes.stop()

    run(scenario())


def test_a_patient_command_is_applied_with_the_next_or_after_a_moment(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            epoch = leader.epoch or 0
            before = leader.stats.entries
            loop = asyncio.get_running_loop()
            patient: asyncio.Future[object] = loop.create_future()
            leader.propose(put(epoch, "a"), epoch, patient.set_result, patience_s=60.0)
            assert await propose(leader, "b") == 2
            assert await patient == 1
            assert leader.stats.entries == before + 1
            for line, number in (("c", 3), ("d", 4)):  # its patience ends each time anew
                alone: asyncio.Future[object] = loop.create_future()
                leader.propose(put(epoch, line), epoch, alone.set_result, patience_s=0.02)
                assert await alone == number
            await nodes.all_have("a", "b", "c", "d")

    run(scenario())


def test_the_end_of_a_patience_is_waited_for_and_no_heartbeat(tmp_path: Path) -> None:
    slow = RaftTimings(heartbeat_ms=20_000, election_min_ms=60_000, election_max_ms=90_000)

    async def scenario() -> None:
        async with cluster(tmp_path, 1, timings=slow) as nodes:
            leader = await nodes.leader()
            epoch, loop = leader.epoch or 0, asyncio.get_running_loop()
            done: asyncio.Future[object] = loop.create_future()
            leader.propose(put(epoch, "a"), epoch, done.set_result, patience_s=0.02)
            assert leader._timer_at < loop.time() + 0.1, "without it the timer rings once a second"
            assert await done == 1

    run(scenario())


def test_a_cluster_of_one_works_and_remembers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.leader()
            assert await propose(leader, "a") == 1
            await leader.barrier()
            await nodes.stop("n1")
            await nodes.start("n1")
            assert nodes.ledgers["n1"].lines == ["a"]
            leader = await nodes.leader()
            assert await propose(leader, "b") == 2
            with pytest.raises(NotHandedOver, match="no other node answers"):
                await leader.transfer_leadership(timeout_s=2 * DEADLINE_S)

    run(scenario())


@pytest.mark.parametrize("quick_s", [0.0, math.inf], ids=["syncs in a thread", "syncs in place"])
def test_what_can_be_done_waits_for_no_timer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_s: float
) -> None:
    """Neither what a sync makes possible nor what is left to be applied, a portion at a time."""

    async def scenario() -> None:
        limits = ReplicaLimits(
            proposals=ProposalLimits(group_commands=1, groups_under_way=8),
            core=CoreLimits(apply_portion=1),
        )
        async with cluster(tmp_path, 1, limits=limits) as nodes:
            leader = await nodes.leader()
            leader.syncs.quick_s = leader.syncs.leader_quick_s = quick_s
            monkeypatch.setattr(leader, "_set_timer", _nothing)
            assert leader._timer is not None
            leader._timer.cancel()
            for _ in range(2):
                async with asyncio.timeout(DEADLINE_S / 3):
                    results = await asyncio.gather(*(propose(leader, f"{n}") for n in range(8)))
                assert all(isinstance(result, int) for result in results)

    run(scenario())


def test_when_the_leader_stops_another_leads_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            first = await nodes.put("a")
            epoch = first.epoch
            await nodes.stop(first.node)
            second = await nodes.put("b")
            assert epoch is not None
            assert second.epoch is not None
            assert second.epoch > epoch
            await nodes.start(first.node)
            await nodes.all_have("a", "b")
            assert nodes.epochs[first.node][:2] == [epoch, None]

    run(scenario())


def test_nobody_waits_for_a_leader_whose_process_is_gone(tmp_path: Path) -> None:
    """The streams end with it. Its silence would be noticed after a minute here."""
    timings = RaftTimings(heartbeat_ms=50, election_min_ms=60_000, election_max_ms=120_000)

    async def scenario() -> None:
        async with cluster(tmp_path, timings=timings) as nodes:
            first = nodes.replicas["n1"]
            await until(lambda: all(map(first.transport.is_connected, ("n2", "n3"))))
            assert first._core is not None
            first._core.set_deadline(0.0)
            first._kick()
            leader = await nodes.put("a")
            leader.transport.close()
            await nodes.leader(other_than=leader.node)
            await nodes.put("b")

    run(scenario())


def test_what_a_leader_said_before_its_end_counts_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may come in the same turn of the loop: else its last words would seem to be life."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            follower, core = nodes.follower_of(leader)
            await until(lambda: core.leader == leader.node)
            term, commit = core.term, core.commit
            monkeypatch.setattr(follower.transport, "is_in_touch", lambda _: False)
            last = core.journal.last_index, core.journal.last_term
            follower._received(leader.node, Append(term, 1 << 40, 1, commit, *last))
            follower._disconnected(leader.node)
            follower._step()
            assert not core.leader_is_alive()

    run(scenario())


def test_one_stream_that_ends_is_not_the_end_of_its_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            follower, core = nodes.follower_of(leader)
            await until(lambda: core.leader == leader.node)
            follower._disconnected(leader.node)
            assert not any(message is None for _, message, _ in follower._inbox)

    run(scenario())


def test_a_restart_of_all_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            for number in range(20):
                await nodes.put(str(number))
            await nodes.stop()
            await nodes.start()
            await nodes.put("after")
            await nodes.all_have(*map(str, range(20)), "after")

    run(scenario())


def test_a_minority_acknowledges_nothing_and_its_lines_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            old = await nodes.put("a")
            epoch = old.epoch
            nodes.isolate(old.node)
            lost = propose(old, "lost")
            waiting = [propose(old, f"waits {number}") for number in range(3)]
            new = await nodes.leader(other_than=old.node)
            assert await propose(new, "b") == 2
            assert isinstance(await lost, FateUnknown)
            for future in waiting:
                assert isinstance(await future, NotLeader | FateUnknown)
            assert old.epoch is None
            nodes.heal()
            await nodes.put("c")
            await nodes.all_have("a", "b", "c")
            assert nodes.epochs[old.node][:2] == [epoch, None]

    run(scenario())


def test_a_barrier_of_an_isolated_leader_never_succeeds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            old = await nodes.put("a")
            await old.barrier()
            nodes.isolate(old.node)
            barrier = old.barrier()
            new = await nodes.leader(other_than=old.node)
            await propose(new, "b")
            with pytest.raises(NotLeader):
                await barrier
            with pytest.raises(NotLeader):
                await old.barrier()
            await new.barrier()
            assert nodes.ledgers[new.node].lines == ["a", "b"]

    run(scenario())


def test_a_read_does_not_count_answers_to_what_was_said_before_it_was_asked_for(
    tmp_path: Path,
) -> None:
    """It comes while another one waits, and must not share that one's round: the leader may have
    been deposed in between.
    """

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            old = await nodes.put("a")
            core, deliver = old._core, old.transport.on_message
            assert core is not None
            held: list[tuple[str, RaftMessage]] = []
            old.transport.on_message = lambda peer, message: held.append((peer, message))
            before = core.round
            first = old.barrier()
            await until(lambda: any(getattr(each, "round", 0) > before for _, each in held))
            nodes.isolate(old.node)
            steps, second = old.stats.steps, old.barrier()
            await until(lambda: old.stats.steps > steps)
            for peer, message in held:
                deliver(peer, message)
            await first
            with pytest.raises(NotLeader):
                await second

    run(scenario())


def test_a_barrier_waits_for_what_was_acknowledged_before_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            for number in range(50):
                pending = [propose(leader, f"{number} {each}") for each in range(3)]
                await asyncio.gather(*pending)
                await asyncio.gather(*(leader.barrier() for _ in range(3)))
                assert len(nodes.ledgers[leader.node].lines) == 3 * (number + 1)

    run(scenario())


def test_a_read_waits_for_all_that_was_committed_when_its_round_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.put("a")
            begun: list[tuple[int, int]] = []
            real = leader._barriers.round_begun

            def spy(number: int, commit: int) -> None:
                begun.append((commit, leader.status().committed))
                real(number, commit)

            monkeypatch.setattr(leader._barriers, "round_begun", spy)
            await leader.barrier()
            (commit, committed), *_ = begun
            assert commit == committed >= 3, "the first entry, the epoch and the line"

    run(scenario())


def test_an_answer_has_a_step_run_only_where_that_can_do_something(tmp_path: Path) -> None:
    """It is heard in any case; most say what a quorum has said already."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            core = leader._core
            assert core is not None
            peer, loop = core.peers[0], asyncio.get_running_loop()
            nodes.keep(leader)

            async def is_idle() -> None:
                await until(
                    lambda: (
                        not (leader._scheduled or leader._sync is not None)
                        and core.commit == core.journal.last_index < core.next_index(peer)
                    )
                )

            def has_a_step_run(**changed: Any) -> bool:
                usual = AppendReply(core.term, core.round, 1, True, core.journal.last_index + 1)
                with pytest.MonkeyPatch.context() as patched:
                    # However slow the machine is, no heartbeat is due.
                    patched.setattr(core, "now", lambda: core.next_due - 0.001)
                    leader._received(peer, dataclasses.replace(usual, **changed))
                assert not leader._inbox
                return leader._scheduled

            await is_idle()
            assert not has_a_step_run()
            assert core.clock_offsets_ms[peer] < -nodes.now_ms() // 2, "it was heard"
            await is_idle()
            assert has_a_step_run(matched=False), "it lacks entries"
            await is_idle()
            core.durable_index = core.append(NOTHING)
            core.set_next_index(peer, core.durable_index + 1)
            assert has_a_step_run(), "with it a quorum holds the entry"
            await is_idle()
            leader._barriers.add(loop.create_future())
            leader._barriers.round_begun(core.round, core.commit)
            assert has_a_step_run(), "a read waits for it"
            await is_idle()
            leader._transfer._done = loop.create_future()
            assert has_a_step_run(), "the successor may have all now"
            leader._transfer._done = None
            await is_idle()
            assert has_a_step_run(term=core.term + 1), "somebody else leads"

    run(scenario())


def test_an_epoch_that_is_over_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            first = await nodes.put("a")
            old = first.epoch
            assert old is not None
            successor = await first.transfer_leadership(timeout_s=DEADLINE_S)
            second = await nodes.leader(other_than=first.node)
            assert successor == second.node
            assert isinstance(await propose(first, "x", old), NotLeader)
            assert isinstance(await propose(second, "x", old), NotLeader)
            assert await second.transfer_leadership(first.node, timeout_s=DEADLINE_S) == first.node
            await until(lambda: first.epoch is not None)
            assert isinstance(await propose(first, "x", old), NotLeader)
            await nodes.all_have("a")

    run(scenario())


def test_leadership_is_handed_over_with_nothing_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            first = await nodes.leader()
            target = next(name for name in nodes.replicas if name != first.node)
            texts = [f"line {number}" for number in range(100)]
            pending = [propose(first, text) for text in texts]
            assert await first.transfer_leadership(target, timeout_s=DEADLINE_S) == target
            assert first.leader == target, "who asked is told when it is known"
            results = await asyncio.gather(*pending)
            assert not any(isinstance(result, FateUnknown) for result in results)
            told = [
                text for text, result in zip(texts, results, strict=True) if type(result) is int
            ]
            await until(lambda: nodes.replicas[target].epoch is not None)
            await nodes.all_have(*told)
            assert await first.transfer_leadership() == target, "it leads already"

    run(scenario())


def test_nothing_waits_for_a_successor_that_is_down(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            target = next(name for name in nodes.replicas if name != leader.node)
            await nodes.stop(target)
            core = leader._core
            assert core is not None
            await until(lambda: not core.is_connected(target))
            with pytest.raises(NotHandedOver, match=f"{target} does not answer"):
                await leader.transfer_leadership(target, timeout_s=2 * DEADLINE_S)
            assert await propose(leader, "b") == 2
            assert nodes.epochs[leader.node] == [leader.epoch]

    run(scenario())


def test_a_transfer_that_does_not_come_about_leaves_the_leader_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The successor is asked and does nothing, as one that hangs since a moment ago."""
    asked: list[str] = []

    def hand_over(_: RaftCore, to: str) -> bool:
        asked.append(to)
        return True

    monkeypatch.setattr(RaftCore, "hand_over", hand_over)

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            nodes.keep(leader)
            target = next(name for name in nodes.replicas if name != leader.node)
            moving = asyncio.ensure_future(leader.transfer_leadership(target, timeout_s=0.2))
            await until(lambda: target in asked)
            meanwhile = propose(leader, "b")
            with pytest.raises(NotHandedOver, match=r"has not taken over within 0\.2 s"):
                await moving
            assert not meanwhile.done(), "the successor would have lacked it"
            assert await meanwhile == 2
            assert nodes.epochs[leader.node] == [leader.epoch]

    run(scenario())


def test_transfers_that_are_asked_for_at_once_come_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            first = await nodes.put("a")
            one, two = sorted(name for name in nodes.replicas if name != first.node)
            told = await asyncio.gather(
                *(first.transfer_leadership(to, timeout_s=DEADLINE_S) for to in (one, None, two))
            )
            assert told == [one] * 3, "who leads is told also to who asked for another"

    run(scenario())


def test_a_replica_that_stops_ends_a_transfer_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RaftCore, "hand_over", lambda *_: False)

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            moving = asyncio.ensure_future(leader.transfer_leadership(timeout_s=2 * DEADLINE_S))
            await until(lambda: leader._transfer.is_under_way)
            await nodes.stop(leader.node)
            with pytest.raises(NotLeader):
                await moving

    run(scenario())


def test_a_node_that_lags_behind_the_log_gets_a_snapshot(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = ReplicaLimits(core=CoreLimits(kept_bytes=1000, piece_bytes=4096))
        async with cluster(tmp_path, snapshot_every=50, limits=limits) as nodes:
            leader = await nodes.leader()
            behind = next(name for name in nodes.replicas if name != leader.node)
            await nodes.stop(behind)
            for number in range(200):
                await nodes.put(f"{number} " + "x" * 200)
            leader = await nodes.leader()
            await until(lambda: leader.status().first > 100)
            lines = list(nodes.ledgers[leader.node].lines)
            await nodes.start(behind)
            await nodes.all_have(*lines)
            assert nodes.replicas[behind].stats.snapshots_installed == 1
            await nodes.put("after")
            await nodes.stop(behind)
            await nodes.start(behind)
            await nodes.all_have(*lines, "after")

    run(scenario())


def test_a_directory_of_an_earlier_cluster_of_that_name_takes_no_part(tmp_path: Path) -> None:
    """Both logs have entries of the same terms and indexes; nothing else tells them apart."""

    async def scenario() -> None:
        for name in ("earlier", "later"):
            (tmp_path / name).mkdir()
        async with cluster(tmp_path / "earlier", now_ms=lambda: 1) as nodes:
            for number in range(20):
                await nodes.put(f"earlier {number}")
            await nodes.all_have(*(f"earlier {number}" for number in range(20)))
        async with cluster(tmp_path / "later", now_ms=lambda: 2) as nodes:
            await nodes.put("later")
            await nodes.all_have("later")
            leader = await nodes.leader()
            mixed = next(name for name in nodes.replicas if name != leader.node)
            await nodes.stop(mixed)
            (tmp_path / "later" / mixed).rename(tmp_path / "aside")
            (tmp_path / "earlier" / mixed).rename(tmp_path / "later" / mixed)
            await nodes.start(mixed)
            lines = [f"later {number}" for number in range(100)]
            for line in lines:
                await nodes.put(line)
            odd = nodes.replicas[mixed]
            assert all(line.startswith("earlier") for line in nodes.ledgers[mixed].lines)
            assert odd.leader is None
            leader = await nodes.leader()
            await until(
                lambda: {p.node for p in leader.status().peers if not p.connected} == {mixed}
            )

            await nodes.stop(mixed)
            (tmp_path / "later" / mixed).rename(tmp_path / "of the earlier one")
            (tmp_path / "aside").rename(tmp_path / "later" / mixed)
            await nodes.start(mixed)
            await nodes.all_have("later", *lines)

    run(scenario())


def test_a_node_that_was_bootstrapped_anew_stops_when_another_knows_its_old_directory(
    tmp_path: Path,
) -> None:
    """With it those that missed what it had acknowledged would be a majority."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            wiped, late = (name for name in nodes.replicas if name != leader.node)
            await nodes.all_have()
            nodes.isolate(late)
            await nodes.put("only leader and the one that is wiped have it")
            await nodes.stop(wiped, leader.node)
            shutil.rmtree(tmp_path / wiped)
            nodes.births[wiped] = b"another"
            nodes.heal()
            await nodes.start(wiped)
            new = nodes.replicas[wiped]
            await until(lambda: new.fatal is not None)
            assert isinstance(new.fatal, Foreign)
            assert f"{late} knows {wiped} by another data directory" in str(new.fatal)
            assert nodes.leading is None
            await nodes.stop(wiped)
            await nodes.start(leader.node)
            await nodes.all_have("only leader and the one that is wiped have it")

    run(scenario())


def test_a_node_with_a_log_does_not_stop_for_what_one_peer_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            leader._is_another("n9")
            assert leader.fatal is None
            await nodes.put("b")

    run(scenario())


def test_snapshots_and_restarts_under_load_lose_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = ReplicaLimits(core=CoreLimits(kept_bytes=500))
        told: list[str] = []
        async with cluster(tmp_path, snapshot_every=20, limits=limits) as nodes:
            for number in range(12):
                for each in range(15):
                    text = f"{number} {each}"
                    await nodes.put(text)
                    told.append(text)
                name = f"n{number % 3 + 1}"
                await nodes.stop(name)
                await nodes.start(name)
            lines = nodes.ledgers[(await nodes.put("end")).node].lines
            assert set(told) <= set(lines)
            await nodes.all_have(*lines)
            assert all(r.status().snapshot > 0 for r in nodes.replicas.values())

    run(scenario())


def test_who_was_stopped_hears_what_came_meanwhile_before_it_wants_an_election(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            follower, core = nodes.follower_of(leader)
            now_s = asyncio.get_running_loop().time()
            core.set_deadline(now_s)
            stalls = follower.stats.stalls  # a busy machine may have seen some
            follower._timer_at = now_s - 1.0  # when it was to ring: a second ago
            follower._rang()
            assert core.deadline > now_s
            assert follower.stats.stalls == stalls + 1

    run(scenario())


def test_room_for_what_is_received_is_only_for_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many times of it pass through, one after the other."""
    monkeypatch.setattr(replica_module, "_MAX_INBOX_BYTES", 10_000)

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            lines = [f"{number} {'x' * 2_000}" for number in range(30)]
            for line in lines:
                await nodes.put(line)
            ledgers = nodes.ledgers.values()
            await until(lambda: all(set(lines) <= set(ledger.lines) for ledger in ledgers))

    run(scenario())


@pytest.mark.parametrize(("limit", "most"), [("_MAX_INBOX", 2), ("_MAX_INBOX_BYTES", 20)])
def test_what_no_room_is_for_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(replica_module, limit, most)
    message = Append(1, 1, 0, 1, 1, 1, ((b"x" * 10, 2, 1),))

    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            node = await nodes.leader()
            for _ in range(3):
                node._received("nobody here", message)
            assert node.stats.dropped == 1
            assert len(node._inbox) == 2
            await until(lambda: not node._inbox)
            node._received("nobody here", message)
            assert node.stats.dropped == 1, "there is room again"

    run(scenario())


def test_stop_answers_all_that_is_under_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            nodes.isolate(leader.node)
            first = propose(leader, "b")
            await asyncio.sleep(0.01)  # it is in the log now, and can go no further
            second, barrier = propose(leader, "c"), leader.barrier()
            await nodes.stop(leader.node)
            assert isinstance(await first, FateUnknown)
            assert isinstance(await second, NotLeader)
            with pytest.raises(LogError):
                await barrier
            assert nodes.epochs[leader.node][-1] is None
            assert isinstance(await propose(leader, "d", 1), NotLeader)

    run(scenario())


def test_too_much_at_once_is_refused_and_does_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        limits = ReplicaLimits(proposals=ProposalLimits(waiting_commands=5, command_bytes=100))
        async with cluster(tmp_path, 1, limits=limits) as nodes:
            leader = await nodes.leader()
            results = await asyncio.gather(*(propose(leader, str(n)) for n in range(8)))
            assert results[:5] == [1, 2, 3, 4, 5]
            assert all(isinstance(result, Overloaded) for result in results[5:])
            assert isinstance(await propose(leader, "x" * 101), Overloaded)

    run(scenario())


def test_a_callback_that_raises_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            assert leader.epoch is not None

            def raises(_: object) -> None:
                raise asyncio.InvalidStateError("the caller has gone")

            leader.propose(put(leader.epoch, "a"), leader.epoch, raises)
            assert await propose(leader, "b") == 2
            await nodes.all_have("a", "b")

    run(scenario())


def test_a_callback_is_never_called_before_propose_returns(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.leader()
            for epoch in (leader.epoch, 999):
                told: list[object] = []
                assert epoch is not None
                leader.propose(put(epoch, "a"), epoch, told.append)
                assert not told
                await until(lambda told=told: bool(told))  # type: ignore[misc]

    run(scenario())


def stops_for_good(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = (record for record in caplog.records if record.levelno == logging.CRITICAL)
    assert "stops for good" in record.getMessage()
    return record


def test_a_command_that_raises_stops_the_replica_for_good(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.leader()
            told: list[BaseException] = []
            leader.on_fatal = told.append
            assert isinstance(await propose(leader, "poison"), FateUnknown)
            assert isinstance(leader.fatal, FailStop)
            assert told == [leader.fatal]
            assert nodes.epochs["n1"][-1] is None
            assert leader.leader is None

    run(scenario())
    assert stops_for_good(caplog).exc_info, "where it came from is told"


def test_who_took_the_log_away_is_told_what_to_do_and_not_where_it_was_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.put("a")
            segment = tmp_path / "n1/journal/segment-000000000001.log"
            segment.rename(tmp_path / "elsewhere")
            assert isinstance(await propose(leader, "b"), FateUnknown)
            (tmp_path / "elsewhere").rename(segment)

    run(scenario())
    record = stops_for_good(caplog)
    assert "was deleted or moved while the node ran" in record.getMessage()
    assert record.exc_info is None


def test_a_failure_that_has_no_words_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.put("a")

            def has_no_memory() -> None:
                raise MemoryError

            monkeypatch.setattr(leader._journal, "write", has_no_memory)
            assert isinstance(await propose(leader, "b"), FateUnknown)
            monkeypatch.undo()

    run(scenario())
    assert stops_for_good(caplog).getMessage().endswith("stops for good: MemoryError")


def test_a_disk_that_fails_stops_the_replica_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")

            def full() -> None:
                raise DiskFailed("write", tmp_path, "No space left on device")

            monkeypatch.setattr(leader._journal, "write", full)
            assert isinstance(await propose(leader, "b"), FateUnknown)
            assert isinstance(leader.fatal, DiskFailed)
            del nodes.replicas[leader.node]
            await nodes.put("c")
            monkeypatch.undo()
            await leader.stop()

    run(scenario())
    assert not stops_for_good(caplog).exc_info, "the message says all"


def test_a_sync_in_a_thread_that_fails_stops_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.put("a")
            leader.syncs.quick_s = leader.syncs.leader_quick_s = 0.0
            start = leader._journal.start_sync

            def fails() -> None:
                raise DiskFailed("sync", tmp_path, "Input/output error")

            monkeypatch.setattr(leader._journal, "start_sync", lambda: start() and fails)
            assert isinstance(await propose(leader, "b"), FateUnknown)
            assert isinstance(leader.fatal, DiskFailed)
            assert leader.epoch is None

    run(scenario())


def test_a_snapshot_that_cannot_be_written_stops_the_replica(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path, 1, snapshot_every=5) as nodes:
            leader = await nodes.leader()

            def full(*_: object) -> None:
                raise DiskFailed("write", tmp_path, "No space left on device")

            monkeypatch.setattr(leader._snapshots, "write", full)
            for number in range(20):
                if leader.fatal is None:
                    await propose(leader, str(number))
            await until(lambda: leader.fatal is not None)
            with pytest.raises(FailStop, match="a snapshot cannot be written"):
                raise leader.fatal or AssertionError

    run(scenario())


def test_nothing_leaves_a_follower_before_its_disk_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both followers' syncs held back the leader can acknowledge nothing, though it wrote."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            gate = hold_syncs(monkeypatch, nodes, but=leader.node)
            pending = propose(leader, "b")
            await until(lambda: gate.held == 2)
            await asyncio.sleep(0.05)
            assert not pending.done()
            gate.open()
            await asyncio.wait([pending])
            await nodes.put("c")

    run(scenario())


def test_nothing_leaves_a_follower_between_its_write_and_a_sync_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            follower, _ = nodes.follower_of(leader)
            follower.syncs.quick_s = float("inf")
            order: list[str] = []
            journal, start = follower._journal, follower._journal.start_sync
            stream = follower.transport._outbound[leader.node]
            write = stream.write

            def start_sync() -> Callable[[], None] | None:
                job = start()
                if job is None:
                    return None
                order.append("written")

                def synced() -> None:
                    job()
                    order.append("synced")

                return synced

            def speak(frames: bytes) -> None:
                order.append("spoke")
                write(frames)

            monkeypatch.setattr(journal, "start_sync", start_sync)
            monkeypatch.setattr(stream, "write", speak)
            for text in "bcd":
                await nodes.put(text)
            await until(lambda: follower.status().last == leader.status().last)
            assert order.count("written") >= 3, "the follower synced in place"
            after = {order[at + 1] for at, event in enumerate(order) if event == "written"}
            assert after == {"synced"}
            assert order[order.index("synced") + 1] == "spoke", "its answer leaves at once"

    run(scenario())


def test_a_leader_does_not_count_itself_before_its_own_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One follower is down, the other has synced; the leader's own sync is held back."""

    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            followers = [name for name in nodes.replicas if name != leader.node]
            await nodes.stop(followers[0])
            await nodes.put("b")
            gate = hold_syncs(monkeypatch, nodes, but=followers[1])
            pending = propose(leader, "c")
            other = nodes.replicas[followers[1]]
            await until(lambda: gate.held == 1 and other.status().last == leader.status().last)
            await asyncio.sleep(0.05)
            assert not pending.done()
            gate.open()
            await asyncio.wait([pending])
            await nodes.put("d")

    run(scenario())


def test_a_leaders_entries_leave_before_they_are_written_and_nothing_else_until_they_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it may have said as a follower, in the same step, claims what is being synced."""

    async def scenario() -> None:
        async with cluster(tmp_path, 1) as nodes:
            leader = await nodes.put("a")
            gate = hold_syncs(monkeypatch, nodes, but="")
            flushed: list[tuple[int, bool, object]] = []
            flush = leader.transport.flush

            def spy(only: tuple[type[RaftMessage], ...] | None = None) -> None:
                flushed.append((gate.held, gate.is_open, only))
                flush(only)

            monkeypatch.setattr(leader.transport, "flush", spy)
            pending = propose(leader, "b")
            await until(lambda: gate.held == 1)
            await asyncio.sleep(0)
            assert flushed[-1] == (0, False, (Append, SnapshotPiece))
            gate.open()
            assert isinstance(await pending, int)

    run(scenario())


class Gate:
    """Syncs that wait until they are let go."""

    def __init__(self) -> None:
        self.held = 0
        self.is_open = False

    def open(self) -> None:
        self.is_open = True


def hold_syncs(monkeypatch: pytest.MonkeyPatch, nodes: Cluster, but: str) -> Gate:
    gate = Gate()

    def held(job: Callable[[], None]) -> Callable[[], None]:
        gate.held += 1

        def wait() -> None:
            until_s = time.monotonic() + DEADLINE_S
            while not gate.is_open and time.monotonic() < until_s:
                time.sleep(0.002)
            job()

        return wait

    for name, replica in nodes.replicas.items():
        if name != but:
            # In place it would hold up all nodes of this process.
            replica.syncs.quick_s = replica.syncs.leader_quick_s = 0.0
            journal, start = replica._journal, replica._journal.start_sync
            monkeypatch.setattr(
                journal, "start_sync", lambda start=start: (job := start()) and held(job)
            )
    return gate


def test_clocks_travel_with_heartbeats(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.leader()
            late = next(name for name in nodes.replicas if name != leader.node)
            for name, replica in nodes.replicas.items():
                set_clock(replica, -90_000 if name == late else 0)

            def seen(by: Replica, ahead_ms: int, of: str) -> bool:
                return abs(by.clock_offsets_ms.get(of, 0) - ahead_ms) < 45_000

            await until(lambda: seen(leader, -90_000, late))
            await until(lambda: all(seen(leader, 0, n) for n in nodes.replicas if n != late))
            await until(lambda: seen(nodes.replicas[late], 90_000, leader.node))

    run(scenario())


def set_clock(replica: Replica, ahead_ms: int) -> None:
    """So far ahead of the loop's, and going on as it does."""
    core = replica._core
    assert core is not None
    core.now_ms = lambda: 1_700_000_000_000 + ahead_ms + round(core.now() * 1_000)


def test_status_before_the_start_and_after_a_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        nodes = Cluster(tmp_path, 1)

        async def not_yet(_: Replica) -> None:
            """The node serves while its replica reads the log."""

        with monkeypatch.context() as patch:
            patch.setattr(Replica, "start", not_yet)
            await nodes.start()
        replica = nodes.replicas["n1"]
        assert replica.status().role is Role.FOLLOWER
        assert replica.leader is None
        assert replica.epoch is None
        assert isinstance(await propose(replica, "a", 1), NotLeader)
        with pytest.raises(NotLeader):
            await replica.transfer_leadership()
        await replica.start()
        replica = await nodes.leader()
        assert isinstance(await propose(replica, "poison"), FateUnknown)
        assert replica.fatal is not None
        await nodes.stop()
        assert replica.status().epoch is None

    run(scenario())


def test_status_tells_roles_and_matches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with cluster(tmp_path) as nodes:
            leader = await nodes.put("a")
            await until(
                lambda: all(
                    peer.match_index == leader.status().last for peer in leader.status().peers
                )
            )
            status = leader.status()
            assert status.role is Role.LEADER
            assert status.epoch == status.term
            assert status.members == ("n1", "n2", "n3")
            assert status.applied == status.committed == status.last
            assert all(peer.connected for peer in status.peers)
            assert all(peer.last_contact_s is not None for peer in status.peers)
            follower, _ = nodes.follower_of(leader)
            seen = {peer.node: peer for peer in follower.status().peers}
            assert follower.status().role is Role.FOLLOWER
            assert seen[leader.node].last_contact_s is not None
            assert follower.status().leader == leader.node

    run(scenario())
