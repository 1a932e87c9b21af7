"""Leadership is handed round a real cluster under load: no call fails, and nothing is lost.

One cluster for the whole file; the history of each test is checked at every service and node.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.client import Client, Conflict
from cluster.local.cluster import LocalCluster
from tests.bare_http import http_follow
from tests.cluster_rig import Load, Shared, eventually, kill, load, shared_cluster, term_of
from tests.recording import Recording

pytestmark = pytest.mark.timeout(180)

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared_cluster(tmp_path_factory.mktemp("transfers"))


def none_failed(orders: Load) -> None:
    """Nor aborted: whoever leads next carries on."""
    assert orders.failures == []
    assert orders.aborts == []
    assert orders.answers > 0


def test_leadership_goes_round_under_load_and_no_call_fails(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        took_s: list[float] = []
        async with load(local, history) as orders, Client(local.node_urls) as operator:
            await orders.more(50)
            for to in local.node_ids * 4:
                led = await local.wait_leader()
                term = await term_of(local, led)
                began = time.monotonic()
                status = await operator.transfer_leadership(to)
                took_s.append(time.monotonic() - began)
                assert (status.self_id, status.leader) == (led, to)
                assert status.term is not None
                assert (status.term > term) == (led != to)
                await orders.more(30)
                assert await local.wait_leader() == to
            await operator.transfer_leadership()
            assert await local.wait_leader(other_than=to) != to
            await orders.more(30)
        none_failed(orders)
        print(
            f"{len(took_s)} transfers, slowest {max(took_s):.2f} s; slowest of {orders.answers}"
            f" calls {orders.slowest_s:.2f} s"
        )

    shared.run(scenario)
    assert "asks for it" in "".join(local.log(node).read_text() for node in local.node_ids)


def test_transfers_asked_for_at_once_are_all_done(shared: Shared) -> None:
    """One after the other, by whoever leads when the turn has come."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders, Client(local.node_urls) as operator:
            await orders.more(20)
            asked = local.node_ids * 2
            told = await asyncio.gather(*(operator.transfer_leadership(to) for to in asked))
            assert [status.leader for status in told] == list(asked)
            await orders.more(20)
        none_failed(orders)

    shared.run(scenario)


@pytest.mark.parametrize("how", ["dead", "hanging"])
def test_a_successor_that_is_down_is_refused_and_the_leader_goes_on(
    shared: Shared, how: str
) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders, Client(local.node_urls) as operator:
            await orders.more(20)
            leader = await local.wait_leader()
            term = await term_of(local, leader)
            down = next(node for node in local.node_ids if node != leader)
            if how == "dead":
                await kill(local, down)
            else:
                local.stop(down)
            for _ in range(2):
                with pytest.raises(Conflict, match=f"Node {leader} leads on: {down} ") as refused:
                    await operator.transfer_leadership(down)
                assert refused.value.code == "not_handed_over"
                await orders.more(20)

            async def is_known_to_be_down() -> bool:
                seen = (await operator.cluster()).nodes
                return not next(node.alive for node in seen if node.id == down)

            await eventually(is_known_to_be_down, f"{leader} notices that {down} is down")
            with pytest.raises(Conflict, match=f"{down} does not answer"):
                await operator.transfer_leadership(down)
            assert (await local.wait_leader(), await term_of(local, leader)) == (leader, term)
        none_failed(orders)

    shared.run(scenario)


def test_any_client_and_the_command_line_have_another_node_lead(shared: Shared) -> None:
    local = shared.local

    async def scenario(_: Recording) -> None:
        leader = await local.wait_leader()
        one, two = (node for node in local.node_ids if node != leader)
        url = f"{local.url(one)}/v1/cluster/leader"
        answer = await asyncio.to_thread(http_follow, "POST", url, {"node": one})
        assert (answer.status, answer.hops) == (200, 1)
        assert (answer.body["self"], answer.body["leader"]) == (leader, one)
        said = await asyncio.to_thread(transfer, local, two)
        assert said == f"{one} led, {two} leads now, in term {answer.body['term'] + 1}\n"
        said = await asyncio.to_thread(transfer, local, two, "--json")
        assert json.loads(said)["leader"] == two
        said = await asyncio.to_thread(transfer, local, "n9", code=2)
        assert said == "assent: node: must be one of n1, n2, n3, or null for any of them\n"

    shared.run(scenario)


def transfer(local: LocalCluster, *arguments: str, code: int = 0) -> str:
    """What the command says."""
    nodes = ("--nodes", ",".join(local.node_urls))
    command = [sys.executable, "-m", "cluster", "cluster", "transfer", *arguments, *nodes]
    ended = subprocess.run(
        command, cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == code, ended.stderr
    return ended.stderr if code else ended.stdout
