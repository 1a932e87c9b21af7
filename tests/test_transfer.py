"""Leadership goes to who can take over, and little waits for it. Over sockets: `test_replica`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest

from cluster.raft.core import RaftCore
from cluster.raft.state import Role
from cluster.raft.transfer import LACKS_LITTLE, Transfer
from coordinator.log import NotHandedOver
from tests.test_replica import TIMINGS, run

LAST = 1_000_000


class Followers:
    """What a transfer sees of a core that leads: n2 and n3, and what each of them lacks."""

    def __init__(self, **lacks: int) -> None:
        self.node, self.role, self.timings = "n1", Role.LEADER, TIMINGS
        self.peers = tuple(lacks)
        self.journal = SimpleNamespace(last_index=LAST)
        self.lacks = lacks
        self.cut: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[str] = []

    def now(self) -> float:
        return 100.0

    def is_connected(self, peer: str) -> bool:
        return peer not in self.cut

    def last_reply(self, peer: str) -> float:
        return 0.0 if peer in self.silent else self.now()

    def match_index(self, peer: str) -> int:
        return LAST - self.lacks[peer]

    def hand_over(self, peer: str) -> bool:
        self.asked.append(peer)
        return True


@asynccontextmanager
async def handing_over(core: Followers, to: str | None) -> AsyncIterator[Transfer]:
    transfer = Transfer()
    assert not transfer.holds_back(cast(RaftCore, core)), "nothing was asked for"
    asking = asyncio.ensure_future(transfer.hand_over(cast(RaftCore, core), to, lambda: None))
    await asyncio.sleep(0)
    yield transfer
    transfer.end()
    await asking


def test_what_is_proposed_waits_only_for_a_successor_that_lacks_little() -> None:
    async def scenario() -> None:
        core = Followers(n2=LACKS_LITTLE + 1, n3=0)
        raft = cast(RaftCore, core)
        async with handing_over(core, "n2") as transfer:
            assert not transfer.holds_back(raft)
            core.lacks["n2"] -= 1
            assert transfer.holds_back(raft)
            core.silent.add("n2")
            assert not transfer.holds_back(raft)
        async with handing_over(core, None) as transfer:
            assert transfer.holds_back(raft), "n3 has all"
            core.cut.add("n3")
            assert not transfer.holds_back(raft)
        assert not transfer.holds_back(raft), "it is over"

    run(scenario())


def test_leadership_goes_to_who_was_named_or_lacks_least_and_answers() -> None:
    async def scenario() -> None:
        for to, silent, asked in (
            ("n2", set(), ["n2"]),
            ("n3", set(), ["n3"]),
            (None, set(), ["n2"]),
            (None, {"n2"}, ["n3"]),
        ):
            core = Followers(n2=0, n3=5)
            core.silent = silent
            async with handing_over(core, to) as transfer:
                transfer.try_on(cast(RaftCore, core))
                transfer.try_on(cast(RaftCore, core))
                assert core.asked == asked, "and not twice in a moment"
        for to, why in (("n2", "n2 does not answer"), (None, "no other node answers")):
            core = Followers(n2=0, n3=5)
            core.silent, core.cut = {"n2"}, {"n3"}
            with pytest.raises(NotHandedOver, match=why):
                await Transfer().hand_over(cast(RaftCore, core), to, lambda: None)
        core = Followers(n2=0)
        with pytest.raises(NotHandedOver, match="n9 does not answer"):
            await Transfer().hand_over(cast(RaftCore, core), "n9", lambda: None)

    run(scenario())


def test_who_waits_for_his_turn_is_let_go_when_the_node_does_nothing_any_more() -> None:
    """A node that failed is what it was, a leader too: nothing else would end his wait in time."""

    async def scenario() -> None:
        core = cast(RaftCore, Followers(n2=0, n3=0))
        transfer = Transfer()
        asking = [
            asyncio.ensure_future(transfer.hand_over(core, to, lambda: None)) for to in ("n2", "n3")
        ]
        await asyncio.sleep(0)
        assert transfer.is_under_way
        transfer.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*asking)
        assert not transfer.is_under_way

    run(scenario())
