"""What the log of a real cluster says of each step, and how long the steps take.

One cluster for the whole file, whose nodes write JSON lines.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cluster.client import Client
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from tests.cluster_rig import Shared, eventually, kill_leader, new_id, run_with, shared_cluster
from tests.recording import Recording
from tests.stubs import Stub, answer, hang, in_turn, per_operation

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    arguments = dict.fromkeys(("n1", "n2", "n3"), ("--log-format", "json"))
    settings = "[timings]\ncall_timeout_ms = 1000\n"
    directory = tmp_path_factory.mktemp("steps")
    yield from shared_cluster(directory, arguments=arguments, settings=settings)


async def lines_of(local: LocalCluster, id: str) -> list[dict[str, Any]]:
    """Every line of every node's log, decoded, once the last one about this transaction is there:
    a client may be answered before.
    """

    async def lines() -> list[dict[str, Any]] | None:
        found = [
            json.loads(line)
            for node in local.node_ids
            for line in local.log(node).read_text().splitlines()
        ]
        return found if any("finished" in said for said in steps(found, id)) else None

    found: list[dict[str, Any]] = await eventually(lines, f"the end of {id} is in the log")
    return found


def test_every_step_is_in_the_log_with_its_transaction(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        fails_once = in_turn(answer(b"", status=500), answer(b""))
        async with (
            Stub(per_operation(prepare=answer(b"true"), commit=fails_once)) as stub,
            Client(local.node_urls) as client,
        ):
            good = await run_with(client, local, history, stub.url, wait="completion")
            assert good.state == "committed"
            stub.behaviour = per_operation(prepare=answer(b"false"))
            bad = await run_with(client, local, history, stub.url, wait="completion")
            assert bad.state == "aborted"
        lines = await lines_of(local, bad.id)
        said = steps(lines, good.id)
        for step in (
            "begun with inventory, odd, profile, activity",
            "prepare sent to inventory, odd, profile, activity",
            "voted: inventory yes, odd yes, profile yes, activity yes",
            "decided commit",
            "commit sent to inventory, odd, profile, activity",
            "commit at odd failed, try 1: answered 500",
            "odd is called again in 0.",
            "commit sent to odd, try 2",
            "finished, committed at every participant",
        ):
            assert any(step in line for line in said), (step, said)
        # In one line or in several, as they come.
        acknowledged = [line for line in said if line.startswith("commit acknowledged by ")]
        names = ", ".join(line.removeprefix("commit acknowledged by ") for line in acknowledged)
        assert sorted(names.split(", ")) == ["activity", "inventory", "odd", "profile"]
        said = steps(lines, bad.id)
        for step in (
            "odd no (the participant answered false)",
            "decided abort: odd voted no",
            "rollback sent to inventory",
            "rollback acknowledged by ",
            "finished, aborted at every participant",
        ):
            assert any(step in line for line in said), (step, said)
        # The tests before this one killed leaders; this one need not rely on them for the start.
        assert any("leading in epoch 1: taking over 0" in line["message"] for line in lines)

    shared.run(scenario)


def steps(lines: Sequence[dict[str, Any]], id: str) -> list[str]:
    """What the log says of this transaction, by the field that carries its id."""
    return [line["message"] for line in lines if line.get("transaction") == id]


def test_a_takeover_is_in_the_log_with_what_it_took_over(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with (
            Stub(per_operation(prepare=answer(b"true"), commit=hang)) as stub,
            Client(local.node_urls) as client,
        ):
            ended = await run_with(client, local, history, stub.url)
            assert ended.committed
            victim = await kill_leader(local)
            successor = await local.wait_leader(other_than=victim)
            stub.behaviour = per_operation(prepare=answer(b"true"))
            assert (await client.get(ended.id, wait_ms=60_000)).state == "committed"
        await lines_of(local, ended.id)
        lines = [json.loads(line) for line in local.log(successor).read_text().splitlines()]
        taken = [line for line in lines if "taking over 1 unfinished" in line["message"]]
        assert taken
        said = steps(lines, ended.id)
        assert any("commit sent to" in line for line in said), said
        assert any("finished, committed" in line for line in said), said
        assert not any("prepare sent" in line for line in said), said

    shared.run(scenario)


# --- no artificial delays -------------------------------------------------------------------------


def test_a_transaction_on_an_idle_cluster_takes_no_artificial_time(shared: Shared) -> None:
    """Prints the figures; a delay put in on purpose would show as a step in them."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with Client(local.node_urls) as client:
            for wait in ("decision", "completion"):
                taken_ms = []
                for _ in range(50):
                    id = new_id()
                    history.begun(id)
                    participants = order(local.url, f"user-{id}", "A-1", 1)
                    began = time.perf_counter()
                    ended = await client.submit(participants, id=id, wait=wait)
                    taken_ms.append(1000 * (time.perf_counter() - began))
                    history.told(id, ended.outcome)
                    assert ended.committed
                median_ms = statistics.median(taken_ms)
                print(
                    f"{wait}: median {median_ms:.1f} ms, least {min(taken_ms):.1f} ms, most"
                    f" {max(taken_ms):.1f} ms"
                )
                assert median_ms < 1_000

    shared.run(scenario)
