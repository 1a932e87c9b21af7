"""Clients of a real cluster: with nothing but HTTP and redirects, and two that send the same id.

One cluster for the whole file; each test checks the history of its own transactions.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.client import Client, Conflict
from cluster.local_cluster import LocalCluster
from cluster.sample_order import order
from tests.cluster_rig import (
    PATIENCE_S,
    PlainService,
    all_ready,
    check,
    eventually,
    exists,
    http_follow,
    http_once,
    http_submit,
    new_id,
    serving,
)
from tests.history import History

pytestmark = pytest.mark.timeout(180)


class Shared:
    """The cluster, and the transactions of the tests before this one."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.before = History(local.services)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    settings = "[timings]\ngrace_ms = 300\n"
    directory = tmp_path_factory.mktemp("clients")
    local = LocalCluster(directory, find_ports=True, settings=settings)
    asyncio.run(local.up())
    try:
        yield Shared(local)
    finally:
        asyncio.run(local.down())


async def check_and_keep(shared: Shared, history: History) -> None:
    await all_ready(shared.local)
    await check(shared.local, history, before=shared.before)
    for id in history.outcomes:
        shared.before.begun(id)


def an_order(local: LocalCluster, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "participants": order(local.url, f"user-{id}", "A-1", 1),
        "timeout_ms": 20_000,
    }


# --- nothing but HTTP -----------------------------------------------------------------------------


def test_a_client_with_nothing_but_http_and_redirects_works_at_any_node(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        hops = 0
        for node in local.node_ids:
            id = new_id()
            posted = await asyncio.to_thread(http_submit, [local.url(node)], an_order(local, id))
            assert (posted.status, posted.body["id"]) == (200, id)
            hops += posted.hops
            history.begun(id)
            history.told(id, posted.body["outcome"])
            for asked in local.node_ids:
                url = f"{local.url(asked)}/v1/transactions/{id}?wait_ms=10000"
                got = await asyncio.to_thread(http_follow, "GET", url)
                assert (got.status, got.body["state"]) == (200, "committed")
        assert hops >= 2  # only one of the three leads
        await check_and_keep(shared, history)

    asyncio.run(scenario())


def test_a_redirect_names_the_leader_and_keeps_path_and_query(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        leader = await local.wait_leader()
        follower = next(node for node in local.node_ids if node != leader)
        path = "/v1/transactions?limit=3&state=committed"
        answer = await asyncio.to_thread(http_once, "GET", local.url(follower) + path)
        assert answer.status == 307
        assert answer.headers["location"] == local.url(leader) + path

    asyncio.run(scenario())


def test_a_transaction_without_an_id_gets_one_and_an_abort_is_an_answer(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        url = f"{local.url(await local.wait_leader())}/v1/transactions"
        participants = order(local.url, "someone", "A-1", 10**9)
        answer = await asyncio.to_thread(http_follow, "POST", url, {"participants": participants})
        assert (answer.status, answer.body["outcome"]) == (200, "aborted")
        assert "inventory" in answer.body["reason"]
        history.begun(answer.body["id"])
        history.told(answer.body["id"], "aborted")
        await check_and_keep(shared, history)

    asyncio.run(scenario())


# --- the same id twice ----------------------------------------------------------------------------


def test_the_same_id_with_other_content_is_refused_at_every_node(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        body = an_order(local, new_id())
        other = {**body, "participants": order(local.url, "another", "A-1", 1)}
        history.begun(body["id"])
        url = f"{local.node_urls[0]}/v1/transactions"
        answer = await asyncio.to_thread(http_follow, "POST", url, body)
        history.told(body["id"], answer.body["outcome"])
        for node in local.node_ids:
            url = f"{local.url(node)}/v1/transactions"
            refused = await asyncio.to_thread(http_follow, "POST", url, other)
            assert refused.status == 409
            assert refused.body["error"]["code"] == "transaction_id_conflict"
            async with Client(local.url(node)) as client:
                with pytest.raises(Conflict):
                    await client.submit_body(other)
        await check_and_keep(shared, history)

    asyncio.run(scenario())


async def kill_leader(local: LocalCluster) -> str:
    victim = await local.wait_leader()
    pid = local.pid(victim)
    await local.kill(victim)
    assert not exists(pid)
    assert local.exit_code(victim) == -signal.SIGKILL
    return victim


def test_the_same_id_from_two_clients_while_the_leader_dies_is_one_transaction(
    shared: Shared,
) -> None:
    """Many times over: twins at different nodes, one with HTTP only; the leader dies among them."""
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        under_way: set[str] = set()
        gate = asyncio.Semaphore(8)
        done = 0

        async def twins(number: int, client: Client) -> None:
            nonlocal done
            async with gate:
                id = new_id()
                body = an_order(local, id)
                history.begun(id)
                under_way.add(id)
                turned = [*local.node_urls[number % 3 :], *local.node_urls[: number % 3]]
                bare, library = await asyncio.gather(
                    asyncio.to_thread(http_submit, turned, body),
                    client.submit_body(body, deadline=PATIENCE_S),
                )
                assert bare.status == 200, bare
                history.told(id, bare.body["outcome"])
                history.told(id, library.outcome)
                under_way.discard(id)
                done += 1

        async def some_are_answered() -> bool:
            return done >= 40

        async with Client(local.node_urls) as client:
            all_twins = asyncio.gather(*(twins(number, client) for number in range(120)))
            await eventually(some_are_answered, "forty twins are answered")
            victim = await kill_leader(local)
            assert under_way
            await all_twins
            assert await local.wait_leader(other_than=victim) != victim
        assert len(history.ids("committed")) == 120
        await check_and_keep(shared, history)

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["sdk", "plain"])
def test_twins_that_wait_for_a_vote_while_the_leader_dies_are_told_the_same(
    shared: Shared, kind: str
) -> None:
    """The leader dies while a participant thinks. One that can be asked again is; a plain one is
    never asked twice, so its transaction aborts."""
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        history = History(local.services)
        plain = PlainService()
        plain.waits = asyncio.Event()
        body = an_order(local, new_id())
        async with serving(plain.application()) as url:
            if kind == "plain":
                body["participants"].append({"name": "plain", "url": url, "payload": 1})
                body["timeout_ms"] = 8_000
            else:
                local.stop("activity")
            history.begun(body["id"])
            leader = await local.wait_leader()
            urls = [local.url(node) for node in local.node_ids if node != leader]
            first = asyncio.create_task(asyncio.to_thread(http_submit, urls, body))
            second = asyncio.create_task(asyncio.to_thread(http_submit, urls[::-1], body))
            await eventually(lambda: is_preparing(local, body["id"]), "the branches are prepared")
            if kind == "plain":
                await plain.asked.wait()
            await kill_leader(local)
            await local.wait_leader(other_than=leader)
            local.cont("activity")
            answers = [await first, await second]
            outcome = "committed" if kind == "sdk" else "aborted"
            assert [answer.body["outcome"] for answer in answers] == [outcome] * 2
            history.told(body["id"], outcome)
            plain.waits.set()
            await check_and_keep(shared, history)
            if kind == "plain":
                assert plain.prepares == {body["id"]: 1}
                assert (plain.held, plain.commits, plain.wrongs) == ({}, {}, [])

    asyncio.run(scenario())


async def is_preparing(local: LocalCluster, id: str) -> bool:
    """Whether the inventory and the profile hold a branch of it prepared."""
    for service in ("inventory", "profile"):
        branches = await local.ask(service, "/branches")
        if not any(branch["transaction_id"] == id for branch in branches):
            return False
    return True
