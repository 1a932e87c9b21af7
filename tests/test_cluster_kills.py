"""Nodes and services of a real cluster are killed, stopped and ended under load: nothing told is
lost, nothing is done by halves, and the client library reports no failure.

One cluster for the whole file. Each test first proves that the failure happened, puts everything
back, and checks the history of its own transactions at every service and every node.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cluster.client import Client
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from tests.bare_http import PATIENCE_S, Connection
from tests.cluster_rig import (
    Load,
    Shared,
    all_ready,
    eventually,
    exists,
    kill,
    load,
    new_id,
    shared_cluster,
    term_of,
)
from tests.recording import Recording

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    yield from shared_cluster(tmp_path_factory.mktemp("kills"))


def none_failed(submitted: Load) -> None:
    """Nor aborted: whoever leads next carries on with participants that can be asked again."""
    assert submitted.failures == []
    assert submitted.aborts == []
    assert submitted.answers > 0


def test_a_leader_killed_under_load_fails_no_client(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders:
            await orders.more(100)
            victim = await local.wait_leader()
            term = await term_of(local, victim)
            killed_at = time.monotonic()
            await kill(local, victim)
            await orders.more(100)
            successor = await local.wait_leader(other_than=victim)
            assert successor != victim
            assert await term_of(local, successor) > term
            await local.start(victim)
            await orders.more(50)
        none_failed(orders)
        print(
            f"leader killed: next commit after {orders.first_commit_after(killed_at):.2f} s,"
            f" slowest call {orders.slowest_s:.2f} s, {orders.answers} transactions"
        )

    shared.run(scenario)


def test_a_follower_killed_under_load_is_not_noticed(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders:
            await orders.more(50)
            leader = await local.wait_leader()
            victim = next(node for node in local.node_ids if node != leader)
            await kill(local, victim)
            await orders.more(100)
            assert not local.running(victim)
            await local.start(victim)
            await orders.more(50)
        none_failed(orders)

    shared.run(scenario)


def test_a_stopped_leader_that_wakes_up_tells_nothing_stale(shared: Shared) -> None:
    """What it is asked lies before it when it wakes: the questions are sent the moment it sleeps,
    and the answers change meanwhile. Several times, for it shows the more the busier the leader was
    when it fell asleep: one that sleeps in the middle of a sync answers before it counts its peers.
    """
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history, submitters=8) as orders:
            for _ in range(4):
                await orders.more(40)
                await ask_a_sleeping_leader(local, history)
            await orders.more(40)
        none_failed(orders)

    shared.run(scenario)


async def ask_a_sleeping_leader(local: LocalCluster, history: Recording) -> None:
    sleeper = await local.wait_leader()
    term = await term_of(local, sleeper)
    id = new_id()
    history.begun(id)
    body = {"id": id, "participants": order(local.url, f"late-{id}", "A-1", 1)}
    questions = [
        ("GET", f"/v1/transactions/{id}", None),
        ("POST", f"/v1/transactions/{id}/retry", None),
        ("GET", "/v1/transactions?state=committed,committing&limit=1", None),
        ("GET", f"/v1/transactions/{new_id()}/decision?branch_id=1&fingerprint=0", None),
        ("POST", "/v1/transactions", body),
    ]
    connections = [Connection(local.url(sleeper), PATIENCE_S) for _ in questions]
    for connection in connections:
        assert connection.ask("GET", "/healthz").status == 200
    local.stop(sleeper)
    for connection, question in zip(connections, questions, strict=True):
        connection.send(*question)

    others = [local.url(node) for node in local.node_ids if node != sleeper]
    successor = await local.wait_leader(other_than=sleeper)
    assert await term_of(local, successor) > term
    async with Client(others) as client:
        history.told(id, (await client.submit_body(body)).outcome)
    assert id in history.ids("committed")
    local.cont(sleeper)
    answers = [await asyncio.to_thread(connection.answer) for connection in connections]
    for connection in connections:
        connection.close()
    get, retry, page, inquiry, post = answers
    for answer in (get, retry, post):
        assert answer.status in (200, 307, 503), answer
        assert answer.status != 200 or answer.body["outcome"] == "committed", answer
    for answer in (page, inquiry):  # they could only be stale
        assert answer.status in (307, 503), answer
    await local.wait_ready(sleeper)


def test_all_nodes_killed_at_once_lose_nothing_told(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders:
            await orders.more(150)
            pids = [local.pid(node) for node in local.node_ids]
            await asyncio.gather(*(kill(local, node) for node in local.node_ids))
            assert not any(exists(pid) for pid in pids)
            told = dict(history.outcomes)
            assert any(told.values())
            assert not all(told.values())  # and some of them were under way
            await asyncio.gather(*(local.start(node) for node in local.node_ids))
            await orders.more(50)
        none_failed(orders)

    shared.run(scenario)


def test_a_leader_that_is_told_to_end_hands_over_and_fails_no_client(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with load(local, history) as orders:
            await orders.more(50)
            leader = await local.wait_leader()
            told_at = time.monotonic()
            assert await local.terminate(leader) == 0
            ended_s = time.monotonic() - told_at
            await orders.more(50)
            assert await local.wait_leader(other_than=leader) != leader
            next_s = orders.first_commit_after(told_at)
            print(f"leader ended: exit after {ended_s:.2f} s, next commit after {next_s:.2f} s")
            assert next_s < 5
            await local.start(leader)
        none_failed(orders)

    shared.run(scenario)


async def decided_with_inventory_dead(
    local: LocalCluster, client: Client, history: Recording
) -> str:
    """A transaction that is committed while the inventory, which had prepared it, is dead."""
    id = new_id()
    history.begun(id)
    local.stop("activity")  # its vote is missing for as long as it sleeps
    asked = asyncio.create_task(
        client.submit(order(local.url, f"user-{id}", "A-1", 1), id=id, timeout_ms=60_000)
    )
    for service in ("inventory", "profile"):
        await eventually(functools.partial(holds, local, service, id), f"{service} has prepared")
    await kill(local, "inventory")
    local.cont("activity")
    answer = await asked
    assert answer.committed
    history.told(id, answer.outcome)

    async def has_been_tried() -> bool:
        branches = (await client.get(id)).branches
        return any(branch.name == "inventory" and branch.last_error for branch in branches)

    await eventually(has_been_tried, "a commit was tried at the dead inventory")
    assert (await client.get(id)).state == "committing"
    return id


def test_a_service_killed_between_prepare_and_commit_commits_when_it_is_back(
    shared: Shared,
) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with Client(local.node_urls) as client:
            id = await decided_with_inventory_dead(local, client, history)
            await local.start("inventory")
            assert (await client.get(id, wait_ms=30_000)).state == "committed"
        assert not await holds(local, "inventory", id)

    shared.run(scenario)


def test_a_leader_that_is_told_to_end_does_not_wait_for_a_dead_service(shared: Shared) -> None:
    """What is decided the next leader can finish as well, and meanwhile nobody could begin."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with Client(local.node_urls) as client:
            id = await decided_with_inventory_dead(local, client, history)
            leader = await local.wait_leader()
            assert await local.terminate(leader) == 0
            assert "waited in vain" not in local.log(leader).read_text()
            assert await local.wait_leader(other_than=leader) != leader
            await local.start("inventory")
            assert (await client.get(id, wait_ms=30_000)).state == "committed"

    shared.run(scenario)


def test_a_leader_that_is_told_to_end_does_not_wait_long_for_votes(shared: Shared) -> None:
    """A transaction may last an hour; the next leader asks for its votes again."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        async with Client(local.node_urls) as client:
            id, leader = new_id(), await local.wait_leader()
            history.begun(id)
            local.stop("inventory")
            participants = order(local.url, f"user-{id}", "A-1", 1)
            await client.submit(participants, id=id, timeout_ms=60_000, wait="none")
            assert await local.terminate(leader) == 0
            assert "waited in vain" in local.log(leader).read_text()
            local.cont("inventory")
            ended = await client.get(id, wait_ms=30_000)
            assert ended.state == "committed"
            history.told(id, ended.outcome)

    shared.run(scenario)


async def holds(local: LocalCluster, service: str, id: str) -> bool:
    """Whether the service holds a branch of this transaction prepared."""
    branches = await local.ask(service, "/branches")
    return any((b["transaction_id"], b["state"]) == (id, "prepared") for b in branches)


@pytest.mark.parametrize("how", ["dead", "hanging"])
def test_a_service_that_is_down_does_not_slow_the_others(shared: Shared, how: str) -> None:
    """Twenty transactions decided before it went wait for it, others keep knocking at its door."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        two = [service for service in local.services if service != "activity"]
        without = Recording(two)
        async with Client(local.node_urls) as client:
            before_s = await time_for(client, without, without_activity(local), 60)
            if how == "dead":
                await kill(local, "activity")
            else:
                local.stop("activity")
            knocking = [
                asyncio.create_task(knock(client, history, local, f"{how}-{number}"))
                for number in range(40)
            ]
            during_s = await time_for(client, without, without_activity(local), 60)
            print(f"60 transactions: {before_s:.2f} s, beside a {how} service {during_s:.2f} s")
            assert during_s < 5 * before_s + 5
            await asyncio.gather(*knocking)
        assert len(without.ids("committed")) == 120
        await all_ready(local)
        for id, outcomes in without.outcomes.items():
            assert outcomes == {"committed"}
            shared.before.begun(id)  # without effects at the activity log: checked here, not there

    shared.run(scenario)


def without_activity(local: LocalCluster) -> Callable[[], Sequence[dict[str, Any]]]:
    return lambda: [
        one for one in order(local.url, f"u{new_id()}", "A-1", 1) if one["name"] != "activity"
    ]


async def time_for(
    client: Client,
    history: Recording,
    participants: Callable[[], Sequence[dict[str, Any]]],
    count: int,
) -> float:
    """Seconds for so many transactions, six at a time."""
    began = time.monotonic()

    async def some() -> None:
        for _ in range(count // 6):
            answer = await client.submit(participants(), deadline=PATIENCE_S)
            history.told(answer.id, answer.outcome)

    await asyncio.gather(*(some() for _ in range(6)))
    return time.monotonic() - began


async def knock(client: Client, history: Recording, local: LocalCluster, user: str) -> None:
    """A transaction that needs the service that is down: it aborts, and says because of whom."""
    id = new_id()
    history.begun(id)
    answer = await client.submit(order(local.url, user, "A-1", 1), id=id, timeout_ms=1_500)
    history.told(id, answer.outcome)
    assert answer.aborted
    assert "activity" in (answer.reason or "")
