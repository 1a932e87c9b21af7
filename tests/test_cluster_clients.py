"""Clients of a real cluster: with nothing but HTTP and redirects, and two that send the same id.

One cluster for the whole file; each test checks the history of its own transactions.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client, Conflict, InteractiveTransaction, SyncClient, Transaction
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from tests.bare_http import PATIENCE_S, http_follow, http_once, http_submit
from tests.cluster_rig import (
    Shared,
    all_ready,
    eventually,
    kill_leader,
    new_id,
    settle,
    shared_cluster,
)
from tests.plain_service import PlainService, serving
from tests.recording import Recording

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    settings = "[timings]\ngrace_ms = 300\n"
    yield from shared_cluster(tmp_path_factory.mktemp("clients"), settings=settings)


def an_order(local: LocalCluster, id: str) -> dict[str, Any]:
    return {
        "id": id,
        "participants": order(local.url, f"user-{id}", "A-1", 1),
        "timeout_ms": 20_000,
    }


def test_the_readmes_transactions_commit(shared: Shared, tmp_path: Path) -> None:
    """The one with curl, and the one with the client: with the addresses of this cluster."""
    local = shared.local
    ports = {"n1": 8101, "n2": 8102, "n3": 8103, "profile": 9001, "inventory": 9002}
    ours = {
        f"http://127.0.0.1:{port}": local.url(name)
        for name, port in (ports | {"activity": 9003}).items()
    }
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for theirs, url in ours.items():
        assert theirs in readme
        readme = readme.replace(theirs, url)
    curl = re.search(r"\$ curl -sL (\S+) -H '([\w-]+): (\S+)' -d '(.*?)'\n", readme, re.DOTALL)
    assert curl is not None
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    scripts = [block for block in blocks if "NODES" in block]
    assert len(scripts) == 2, "one-shot, and step by step"

    async def scenario(history: Recording) -> None:
        url, header, kind, body = curl.groups()
        assert (header, kind) == ("Content-Type", "application/json")
        posted = await asyncio.to_thread(http_follow, "POST", url, json.loads(body))
        assert (posted.status, posted.body["outcome"]) == (200, "committed")
        for script in scripts:
            (tmp_path / "order.py").write_text(script, encoding="utf-8")
            command = [sys.executable, str(tmp_path / "order.py")]
            said = await asyncio.to_thread(subprocess.check_output, command, text=True)
            outcome, id = said.split()
            assert outcome == "committed"
            shared.before.begun(id)  # the activity log has no part in it: it would be missed
        history.begun(posted.body["id"])
        history.told(posted.body["id"], "committed")

    shared.run(scenario)


# --- nothing but HTTP -----------------------------------------------------------------------------


def test_a_client_with_nothing_but_http_and_redirects_works_at_any_node(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
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

    shared.run(scenario)


def test_a_redirect_names_the_leader_and_keeps_path_and_query(shared: Shared) -> None:
    local = shared.local
    path = "/v1/transactions?limit=3&state=committed"

    async def scenario(_history: Recording) -> None:
        async def is_redirected() -> bool:
            leader = await local.wait_leader()
            follower = next(node for node in local.node_ids if node != leader)
            answer = await asyncio.to_thread(http_once, "GET", local.url(follower) + path)
            return (answer.status, answer.headers.get("location")) == (
                307,
                local.url(leader) + path,
            )

        await eventually(is_redirected, "a follower names the leader", 20.0)

    shared.run(scenario)


def test_a_transaction_without_an_id_gets_one_and_an_abort_is_an_answer(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        url = f"{local.url(await local.wait_leader())}/v1/transactions"
        participants = order(local.url, "someone", "A-1", 10**9)
        answer = await asyncio.to_thread(http_follow, "POST", url, {"participants": participants})
        assert (answer.status, answer.body["outcome"]) == (200, "aborted")
        assert "inventory" in answer.body["reason"]
        history.begun(answer.body["id"])
        history.told(answer.body["id"], "aborted")

    shared.run(scenario)


def test_a_request_without_an_id_is_told_its_id_and_not_redirected_once_it_has_begun(
    shared: Shared,
) -> None:
    """A client that followed a redirect then would run it a second time."""
    local = shared.local

    async def scenario(_history: Recording) -> None:
        leader = await local.wait_leader()
        plain = PlainService()
        plain.waits = asyncio.Event()
        async with serving(plain.application()) as url, Client(local.node_urls) as client:
            body = {
                "participants": [{"name": "plain", "url": url, "payload": 1}],
                "timeout_ms": 5_000,
            }
            path = f"{local.url(leader)}/v1/transactions"
            asked = asyncio.create_task(asyncio.to_thread(http_once, "POST", path, body))
            await plain.asked.wait()
            local.stop(leader)
            assert await local.wait_leader(other_than=leader) != leader
            local.cont(leader)
            answer = await asked
            assert answer.status == 503
            assert answer.body["error"]["code"] == "outcome_unknown"
            plain.waits.set()
            id = answer.body["error"]["details"]["id"]
            ended = await client.get(id, wait_ms=30_000)
            assert ended.state == "aborted"
            assert plain.prepares == {id: 1}
            assert (plain.held, plain.commits, plain.wrongs) == ({}, {}, [])

    shared.run(scenario)


def test_batches_that_are_under_way_when_the_leader_dies_are_answered_to_the_last(
    shared: Shared,
) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
        answered = 0

        async def batch(client: Client, size: int = 20) -> None:
            nonlocal answered
            bodies = [an_order(local, new_id()) for _ in range(size)]
            for body in bodies:
                history.begun(body["id"])
            for told in await client.submit_many(bodies, deadline=PATIENCE_S):
                assert isinstance(told, Transaction), told
                history.told(told.id, told.outcome)
                answered += 1

        async def batches(client: Client) -> None:
            for _ in range(4):
                await batch(client)

        async def some_are_answered() -> bool:
            return answered > 0

        async with Client(local.node_urls) as client:
            # A leader takes services that it has not heard of for plain ones, whose transactions
            # end with its leadership.
            await batch(client, 1)
            answered = 0
            all_batches = asyncio.gather(*(batches(client) for _ in range(4)))
            await eventually(some_are_answered, "a batch is answered")
            victim = await kill_leader(local)
            assert answered < 320
            await all_batches
            assert await local.wait_leader(other_than=victim) != victim
        assert len(history.ids("committed")) == 321

    shared.run(scenario)


# --- transactions that their client ends ----------------------------------------------------------


async def settled(client: Client, id: str) -> Transaction:
    """The transaction, once everybody has heard of its end."""
    transaction = await client.get(id, wait_ms=30_000)
    assert transaction.finished, transaction
    return transaction


def test_an_interactive_transaction_commits_rolls_back_or_ends_with_its_deadline(
    shared: Shared,
) -> None:
    local = shared.local
    stock, log = PlainService(), PlainService()

    async def scenario(_history: Recording) -> None:
        async with (
            serving(stock.application()) as stock_url,
            serving(log.application()) as log_url,
            Client(local.node_urls) as client,
        ):

            async def work(order: InteractiveTransaction, *, asks: str = "work") -> None:
                enlisted = [
                    await order.enlist(stock_url, name="stock", payload="work"),
                    await order.enlist(log_url, name="log", payload=asks),
                ]
                again = await order.enlist(stock_url, name="stock", payload="work")
                assert [one.branch_id for one in (*enlisted, again)] == ["1", "2", "1"]

            async with client.transaction(timeout_s=20, metadata={"for": "ada"}) as kept:
                await work(kept)
                assert (await client.get(kept.id)).state == "active"
                assert not stock.prepares, "nobody is asked before its client asks for the end"
            assert kept.result.committed
            assert (await settled(client, kept.id)).metadata == {"for": "ada"}

            async with client.transaction(timeout_s=20) as voted_down:
                await work(voted_down, asks="no")
            assert voted_down.result.aborted
            assert "log" in (voted_down.result.reason or "")

            async def breaks_off() -> None:
                async with client.transaction(id=thrown_away, timeout_s=20) as order:
                    await work(order)
                    raise LookupError("the order cannot be fulfilled")

            thrown_away = new_id()
            with pytest.raises(LookupError):
                await breaks_off()

            left_open = await client.begin(timeout_s=0.5)
            await work(left_open)
            assert (await settled(client, left_open.id)).aborted
            with pytest.raises(Conflict):
                await left_open.enlist(log_url, name="late")
            assert "deadline" in str((await left_open.commit()).reason)

            for id in (voted_down.id, thrown_away, left_open.id):
                assert (await settled(client, id)).aborted
            ids = {voted_down.id, thrown_away, left_open.id}
            for service in (stock, log):
                assert (service.held, service.wrongs) == ({}, [])
                assert service.commits == {kept.id: 1}
                assert set(service.prepares) == {kept.id, voted_down.id}
                assert {id for id, end in service.ended.items() if end == "rolled_back"} == ids

    shared.run(scenario)


def test_without_await_it_is_the_same_at_the_real_cluster(shared: Shared) -> None:
    local = shared.local
    plain = PlainService()

    def work(url: str) -> list[str | None]:
        with SyncClient(local.node_urls) as client:
            with client.transaction(timeout_s=20) as kept:
                kept.enlist(url, name="stock", payload="work")
            with client.transaction(timeout_s=20) as given_up:
                given_up.enlist(url, name="stock", payload="work")
                given_up.rollback(wait="completion")
            return [client.get(one.id, wait_ms=30_000).outcome for one in (kept, given_up)]

    async def scenario(_history: Recording) -> None:
        async with serving(plain.application()) as url:
            assert await asyncio.to_thread(work, url) == ["committed", "aborted"]
        assert (plain.held, plain.wrongs) == ({}, [])

    shared.run(scenario)


def test_an_interactive_transaction_outlives_the_leader_that_began_it(shared: Shared) -> None:
    local = shared.local
    stock, log = PlainService(), PlainService()

    async def scenario(_history: Recording) -> None:
        async with (
            serving(stock.application()) as stock_url,
            serving(log.application()) as log_url,
            Client(local.node_urls) as client,
        ):
            async with client.transaction(timeout_s=60) as order:
                await order.enlist(stock_url, name="stock", payload="work")
                victim = await kill_leader(local)
                await order.enlist(log_url, name="log", payload="work")
            assert order.result.committed
            assert await local.wait_leader() != victim
            assert [branch.name for branch in order.result.branches] == ["stock", "log"]
            assert (await settled(client, order.id)).state == "committed"
            for service in (stock, log):
                assert service.prepares == service.commits == {order.id: 1}
                assert (service.held, service.wrongs) == ({}, [])

    shared.run(scenario)


def test_a_commit_whose_leader_dies_while_a_participant_thinks_is_told_how_it_ended(
    shared: Shared,
) -> None:
    """A plain participant is never asked twice, so it aborts; and everybody is told so."""
    local = shared.local
    stock, log = PlainService(), PlainService()
    log.waits = asyncio.Event()

    async def scenario(_history: Recording) -> None:
        assert log.waits is not None
        async with (
            serving(stock.application()) as stock_url,
            serving(log.application()) as log_url,
            Client(local.node_urls) as client,
        ):
            order = await client.begin(timeout_s=5)
            for name, url in (("stock", stock_url), ("log", log_url)):
                await order.enlist(url, name=name, payload="work")
            ending = asyncio.create_task(order.commit())
            await log.asked.wait()
            await kill_leader(local)
            assert (await ending).aborted
            log.waits.set()
            assert (await settled(client, order.id)).state == "aborted"
            for service in (stock, log):
                assert service.prepares == {order.id: 1}
                assert (service.held, service.commits, service.wrongs) == ({}, {}, [])

    shared.run(scenario)


# --- the same id twice ----------------------------------------------------------------------------


def test_the_same_id_with_other_content_is_refused_at_every_node(shared: Shared) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
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

    shared.run(scenario)


def test_the_same_id_from_two_clients_while_the_leader_dies_is_one_transaction(
    shared: Shared,
) -> None:
    """Many times over: twins at different nodes, one with HTTP only; the leader dies among them."""
    local = shared.local

    async def scenario(history: Recording) -> None:
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

    shared.run(scenario)


@pytest.mark.parametrize("kind", ["sdk", "plain"])
def test_twins_that_wait_for_a_vote_while_the_leader_dies_are_told_the_same(
    shared: Shared, kind: str
) -> None:
    """The leader dies while a participant thinks. One that can be asked again is; a plain one is
    never asked twice, so its transaction aborts."""
    local = shared.local

    async def scenario(history: Recording) -> None:
        plain = PlainService()
        plain.waits = asyncio.Event()
        body = an_order(local, new_id())
        async with serving(plain.application()) as url:
            if kind == "plain":
                body["participants"].append({"name": "plain", "url": url, "payload": 1})
                body["timeout_ms"] = 5_000
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
            await all_ready(local)
            await settle(local)
            if kind == "plain":
                assert plain.prepares == {body["id"]: 1}
                assert (plain.held, plain.commits, plain.wrongs) == ({}, {}, [])

    shared.run(scenario)


async def is_preparing(local: LocalCluster, id: str) -> bool:
    """Whether the inventory and the profile hold a branch of it prepared."""
    for service in ("inventory", "profile"):
        branches = await local.ask(service, "/branches")
        if not any(branch["transaction_id"] == id for branch in branches):
            return False
    return True
