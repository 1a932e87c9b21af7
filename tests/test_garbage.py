"""Transactions leave nothing to Python's collector of garbage, so it has next to nothing to do."""

from __future__ import annotations

import asyncio
import gc

import pytest

from cluster.raft import snapshots
from coordinator import participant_connections
from coordinator.machine import Machine
from coordinator.table import BLOCK
from participants.contract import Vote
from tests.api_rig import ApiNode, api_node, run
from tests.builders import begin, decide, led_machine, snapshot

PATH = "/v1/transactions"


@pytest.mark.parametrize(
    "services", [("yes", "yes"), ("yes", "read_only"), ("yes", "no")], ids=",".join
)
def test_a_transaction_leaves_no_circles_behind(
    services: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is in circles waits for a collection, which the loop stands still for."""
    # A connection that is closed does leave some, and on a busy machine they are idle for longer.
    monkeypatch.setattr(participant_connections, "IDLE_S", 3600.0)

    async def left_by(node: ApiNode, count: int) -> int:
        """How many containers `count` transactions leave to the collector."""
        gc.collect()
        gc.disable()
        try:
            for _ in range(count // 8):
                bodies = [node.body(*services, wait="completion") for _ in range(8)]
                await asyncio.gather(*[node.post(PATH, body) for body in bodies])
            return gc.collect()
        finally:
            gc.enable()

    async def test() -> None:
        async with api_node() as node:
            await left_by(node, 32)  # connections are made, caches filled
            left = await left_by(node, 160)
            assert left < 32, f"160 transactions left {left} containers in circles"

    run(test())


def test_a_state_that_is_restored_leaves_the_collector_little_to_look_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though by itself it does not come once meanwhile, as in a node, where it comes seldom."""
    monkeypatch.setattr(snapshots, "_CHUNKS_PER_LOOK", 4)
    machine = led_machine()
    for number in range(BLOCK * 12):
        machine.step(begin(f"t{number}"))
        machine.step(decide((Vote.NO, Vote.UNSENT), f"t{number}"))
    chunks = snapshot(machine)
    del machine
    gc.collect()
    before = gc.get_threshold()
    gc.set_threshold(1_000_000)
    try:
        restoring = Machine().restoring()
        take = snapshots.feeding(restoring)
        for chunk in chunks:
            take(chunk)
        watched = [o for o in gc.get_objects() if type(o) is tuple and len(o) == BLOCK]
    finally:
        gc.set_threshold(*before)
    assert len(chunks) > 12
    assert len(watched) <= 2 * 3, "ids and records of those that came after the last look"
