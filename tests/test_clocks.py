"""A leader with a wrong clock hands over, once, to a node with a good one; nobody flaps."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from cluster import clocks
from cluster.clocks import (
    LOOKS,
    MAX_OFFSET_MS,
    SETTLED_S,
    SUCCESSOR_OFFSET_MS,
    TRY_EVERY,
    ClockWatch,
)
from cluster.raft.replica import Replica
from cluster.raft.status import PeerStatus, ReplicaStatus, unknown_status
from coordinator.log import NotHandedOver
from tests.test_replica import Cluster, run, until

FAR = MAX_OFFSET_MS + 1


class World:
    """Nodes with clocks, one of them leads; a transfer to a connected node always succeeds."""

    def __init__(self, **clocks_ms: int) -> None:
        self.clocks_ms = clocks_ms
        self.silent: set[str] = set()
        self.disconnected: set[str] = set()
        self.leader = next(iter(clocks_ms))
        self.handed_to: list[str] = []
        self.refuses = False
        self.watches = {name: ClockWatch(Node(self, name), now_ms=lambda: 0) for name in clocks_ms}

    def look(self, looks: int = 1) -> None:
        async def each() -> None:
            for _ in range(looks):
                for watch in self.watches.values():
                    await watch.look()

        asyncio.run(each())


class Node:
    """`clocks.Leadership`."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name

    @property
    def epoch(self) -> int | None:
        return 1 if self.world.leader == self.name else None

    @property
    def clock_offsets_ms(self) -> dict[str, int]:
        """A leader hears all, the others the leader."""
        world, name = self.world, self.name
        heard = world.clocks_ms if world.leader == name else [world.leader]
        return {
            other: world.clocks_ms[other] - world.clocks_ms[name]
            for other in heard
            if other != name and other not in world.silent
        }

    def status(self) -> ReplicaStatus:
        status = unknown_status(self.name, tuple(self.world.clocks_ms))
        peers = tuple(
            PeerStatus(other, other not in self.world.disconnected | self.world.silent, 0, None)
            for other in self.world.clocks_ms
            if other != self.name
        )
        return ReplicaStatus(
            **{name: getattr(status, name) for name in ReplicaStatus.__slots__} | {"peers": peers}
        )

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 2.0) -> str:
        assert to is not None
        assert timeout_s > 0
        self.world.handed_to.append(to)
        if self.world.refuses:
            raise NotHandedOver(f"{to} does not answer")
        self.world.leader = to
        return to


def test_a_leader_with_a_wrong_clock_hands_over_after_some_looks() -> None:
    for wrong in (FAR + 3, -FAR):
        world = World(a=wrong, b=0, c=3)
        assert not world.watches["a"].is_sound()
        assert abs(world.watches["a"].offset_ms - wrong) <= 3
        world.look(LOOKS - 1)
        assert world.handed_to == []
        world.look()
        assert world.handed_to in (["b"], ["c"])
        world.look(100)
        assert len(world.handed_to) == 1


def test_a_clock_at_the_bound_is_sound() -> None:
    world = World(a=MAX_OFFSET_MS, b=0, c=0)
    assert world.watches["a"].is_sound()
    world.look(20)
    assert world.handed_to == []


def test_one_message_that_was_long_under_way_means_nothing() -> None:
    world = World(a=0, b=0, c=0)
    for _ in range(20):
        world.clocks_ms["a"] = FAR
        world.look(LOOKS - 1)
        world.clocks_ms["a"] = 0
        world.look()
    assert world.handed_to == []


def test_a_good_leader_stays_though_a_peer_is_wrong() -> None:
    world = World(a=0, b=10 * FAR, c=0)
    assert world.watches["a"].is_sound()
    world.look(100)
    assert world.handed_to == []


def test_a_clock_is_steady_since_it_was_last_set(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        passed_s, clock_ms = 100.0, 1_700_000_000_000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: passed_s)
        watch = ClockWatch(Node(World(a=0), "a"), now_ms=lambda: int(clock_ms))
        assert watch.steady_s() == 0, "nobody knows what was before the start"
        for _ in range(1_000):
            passed_s += 1
            clock_ms += 1_000.5  # slewed: in all by half a second, and yet never set
            assert watch.steady_s() == passed_s - 100
        for set_by_ms in (26 * 3_600_000, -26 * 3_600_000):
            clock_ms += set_by_ms
            assert watch.steady_s() == 0
            passed_s += 1
            clock_ms += 1_000
            await watch.look()
            assert watch.steady_s() == 1

    asyncio.run(scenario())


def test_a_clock_is_settled_once_it_was_not_set_for_a_while_and_agrees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        passed_s, set_by_ms = 100.0, 0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: passed_s)
        world = World(a=0, b=0, c=0)
        watch = ClockWatch(Node(world, "a"), now_ms=lambda: int(passed_s * 1_000) + set_by_ms)
        assert not watch.is_settled()
        passed_s += SETTLED_S
        assert watch.is_settled()
        set_by_ms = -600_000  # as nobody has told yet
        assert not watch.is_settled()
        passed_s += SETTLED_S
        assert watch.is_settled()
        world.clocks_ms["a"] = FAR  # a heartbeat tells
        assert not watch.is_settled()

    asyncio.run(scenario())


def test_a_clock_set_between_two_looks_is_noticed_by_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        clock_ms = 0
        watch = ClockWatch(Node(World(a=0), "a"), now_ms=lambda: clock_ms)
        await watch.look()
        clock_ms += 10_000_000
        await watch.look()

    asyncio.run(scenario())
    assert "this clock was set by " in caplog.text


def test_the_median_of_the_peers_alone_would_flap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule broken: without its own clock each good node finds itself off, for ever."""

    def of_peers_alone(offsets_ms: dict[str, int]) -> tuple[int, int]:
        middle = sorted(offsets_ms.values())[len(offsets_ms) // 2]
        return middle, middle

    monkeypatch.setattr(clocks, "middle_ms", of_peers_alone)
    monkeypatch.setattr(clocks, "SUCCESSOR_OFFSET_MS", 10 * FAR)
    world = World(a=0, b=FAR, c=0)
    world.look(10 * TRY_EVERY)
    assert len(world.handed_to) > 1


@pytest.mark.parametrize("seed", range(50))
def test_leadership_comes_to_rest_whatever_the_clocks(seed: int) -> None:
    draw = random.Random(seed)
    names = "abcde"[: draw.choice([1, 2, 3, 4, 5])]
    world = World(
        **{name: draw.choice([0, 1, 2_000, -2_600, 5_100, -9_000, 10**6]) for name in names}
    )
    world.look(10 * TRY_EVERY)
    assert len(world.handed_to) <= 1
    resting = len(world.handed_to)
    world.look(10 * TRY_EVERY)
    assert len(world.handed_to) == resting


def test_of_two_clocks_nobody_knows_which_is_right() -> None:
    world = World(a=FAR, b=0, c=0)
    world.silent = {"c"}
    assert not world.watches["a"].is_sound(), "so no horizon is moved"
    world.look(100)
    assert world.handed_to == [], "and nobody hands over to and fro"


def test_only_a_connected_peer_with_a_good_clock_is_handed_to() -> None:
    world = World(a=10 * FAR, b=0, c=SUCCESSOR_OFFSET_MS + 1, d=-SUCCESSOR_OFFSET_MS - 1, e=0)
    world.disconnected = {"b"}
    world.look(LOOKS)
    assert world.handed_to == ["e"]
    nobody = World(a=0, b=2 * FAR, c=4 * FAR, d=6 * FAR, e=8 * FAR)
    nobody.silent = {"c"}  # the median of the rest lies between two that differ
    nobody.look(50)
    assert nobody.handed_to == []


def test_after_a_try_that_failed_it_waits() -> None:
    world = World(a=FAR, b=0, c=0)
    world.refuses = True
    world.look(LOOKS + TRY_EVERY - 1)
    assert len(world.handed_to) == 1
    world.look(1)
    assert len(world.handed_to) == 2


def test_a_follower_does_nothing() -> None:
    world = World(a=0, b=FAR, c=0)
    assert not world.watches["b"].is_sound(), "it differs from the only clock that it hears"
    world.look(20)
    assert world.handed_to == []


def test_replicas_hand_over_to_the_one_whose_clock_is_right(tmp_path: Path) -> None:
    """Over real sockets: the offsets travel with the heartbeats."""

    async def test() -> None:
        cluster = Cluster(tmp_path)
        try:
            await cluster.start()
            leader = await cluster.leader()
            right, wrong = 1_700_000_000_000, 1_700_000_100_000
            loop = asyncio.get_running_loop()
            for replica in cluster.replicas.values():
                of = wrong if replica is leader else right
                replica._now_ms = lambda of=of: of + round(loop.time() * 1_000)  # type: ignore[misc]
                assert replica._core is not None
                replica._core.now_ms = replica._now_ms
            watch = ClockWatch(leader, now_ms=leader._now_ms)

            def seen(by: Replica) -> list[int]:
                """Peers' clocks as it sees them, in whole seconds."""
                return sorted(round(offset, -3) for offset in by.clock_offsets_ms.values())

            await until(lambda: seen(leader) == [right - wrong] * 2)
            assert round(watch.offset_ms, -3) == wrong - right
            for _ in range(LOOKS):
                await watch.look()
            successor = await cluster.leader(other_than=leader.node)
            assert leader.epoch is None
            after = ClockWatch(successor, now_ms=successor._now_ms)
            await until(lambda: seen(successor) == [0, wrong - right])
            assert after.is_sound()
            for _ in range(LOOKS + TRY_EVERY):
                await after.look()
            assert successor.epoch is not None
        finally:
            await cluster.stop()

    run(test())
