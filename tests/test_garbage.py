"""Transactions leave nothing to Python's collector of garbage, so it has next to nothing to do."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from collections.abc import Callable

import pytest
from multidict import CIMultiDict

from cluster.raft import snapshots
from coordinator import participant_connections
from coordinator.api_requests import Later, Request
from coordinator.bodies import LARGE_BYTES
from coordinator.log import FateUnknown
from coordinator.machine import Machine
from coordinator.table import BLOCK
from participants.contract import Vote
from tests.api_rig import ApiNode, ScriptedDriver, answered, api_node, run
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


@pytest.mark.parametrize("kind", ["usual", "large", "batch"])
def test_who_waits_holds_nothing_of_what_was_sent(kind: str) -> None:
    """A client may wait for an hour, until a participant is back: its payloads, which the machine
    counts only until the decision, would be held for as long. Nor does a wait that has ended leave
    them to the collector, as when leadership ends with thousands waiting."""
    scripted = ScriptedDriver()

    async def held_after(asked: Callable[[], Later]) -> tuple[int, int]:
        """Bytes that are held while it is waited for, and when it has failed."""
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            answer = asked()
            await scripted.asked.wait()
            scripted.asked.clear()
            await asyncio.sleep(0)  # of a batch the rest is read, and it waits
            scripted.submitted.clear()  # the plan
            waiting = tracemalloc.get_traced_memory()[0]
            scripted.futures.pop().set_exception(FateUnknown("leadership ended"))
            assert (await answered(answer)).status in (200, 503)
            return waiting, tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()

    async def test() -> None:
        async with api_node(scripted=scripted) as node:
            size = LARGE_BYTES * (2 if kind == "large" else 1) - 1_000

            def asked() -> Later:
                one = node.body("yes", wait="completion")
                one["participants"][0]["payload"] = "x" * size
                many = {"transactions": [one, {"unknown": "field"}]}
                body = json.dumps(many if kind == "batch" else one).encode()
                headers = CIMultiDict({"Content-Type": "application/json"})
                later = node.api.respond(Request("POST", PATH, "", headers, body))
                assert isinstance(later, Later)
                return later

            await held_after(asked)  # caches are filled
            held = await held_after(asked)
            assert max(held) < size // 2, held

    run(test())
