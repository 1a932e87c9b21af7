"""Participants of a real cluster that are plain, slow, wrong or hostile, and what the log says.

One cluster for the whole file, whose nodes write JSON lines. Misbehaving participants run in this
process; beside each of them the three sample services take part and must not be left prepared.
"""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Client, Transaction
from cluster.local_cluster import LocalCluster
from cluster.sample_order import order
from participants.simulated import Fault, Rule, Simulated
from tests.cluster_rig import (
    Load,
    PlainService,
    all_ready,
    check,
    eventually,
    exists,
    new_id,
    serving,
    settle,
)
from tests.history import History
from tests.stubs import (
    Behaviour,
    Stub,
    answer,
    close,
    endless,
    hang,
    in_turn,
    per_operation,
    reset,
)

pytestmark = pytest.mark.timeout(180)

_TIMEOUT_MS = 1_000
"""Of transactions with a participant that never answers."""


class Shared:
    """The cluster, and the transactions of the tests before this one."""

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.before = History(local.services)

    async def check(self, history: History) -> None:
        await all_ready(self.local)
        await check(self.local, history, before=self.before)
        for id in history.outcomes:
            self.before.begun(id)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    local = LocalCluster(
        tmp_path_factory.mktemp("participants"),
        find_ports=True,
        settings="[timings]\ngrace_ms = 300\ncall_timeout_ms = 1000\n",
        arguments=dict.fromkeys(("n1", "n2", "n3"), ("--log-format", "json")),
    )
    asyncio.run(local.up())
    try:
        yield Shared(local)
    finally:
        asyncio.run(local.down())


async def kill_leader(local: LocalCluster) -> str:
    victim = await local.wait_leader()
    pid = local.pid(victim)
    await local.kill(victim)
    assert not exists(pid)
    assert local.exit_code(victim) == -signal.SIGKILL
    return victim


async def run_with(
    client: Client, local: LocalCluster, history: History, url: str, **options: Any
) -> Transaction:
    """An order at the sample services in which the participant `odd` at `url` takes part."""
    id = new_id()
    history.begun(id)
    participants = order(local.url, f"user-{id}", "A-1", 1)
    participants.insert(1, {"name": "odd", "url": url, "payload": {"for": id}})
    ended = await client.submit(participants, id=id, **options)
    history.told(id, ended.outcome)
    return ended


async def passes(client: Client, local: LocalCluster, history: History) -> None:
    """A good transaction, to its very end."""
    id = new_id()
    history.begun(id)
    good = await client.submit(order(local.url, f"user-{id}", "A-1", 1), id=id, wait="completion")
    history.told(id, good.outcome)
    assert good.state == "committed"


# --- wrong and hostile answers --------------------------------------------------------------------

_OK = b"HTTP/1.1 200 OK\r\n"
_BIG = answer(b'{"vote": "yes"}' + b" " * 10 * 1024 * 1024)
_ANOTHER = answer(b'{"transaction_id": "another", "branch_id": "2", "vote": "yes"}')
_WEB_PAGE = answer(b"<html><h1>It works!</h1></html>", headers={"Content-Type": "text/html"})

WRONG: dict[str, Behaviour] = {
    "answers 500": answer(b'{"error": "no"}', status=500),
    "answers 200 with a web page": _WEB_PAGE,
    "answers 404": answer(b"", status=404),
    "answers with nothing": answer(b""),
    "answers with half an object": answer(b'{"vote": "ye'),
    "answers for another transaction": _ANOTHER,
    "sends 10 MB": _BIG,
    "redirects": answer(b"", status=307, headers={"Location": "http://127.0.0.1:9/prepare"}),
    "closes the connection": close,
    "resets the connection": reset,
    "never answers": hang,
    "never ends its answer": endless(
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b" ", 0.05
    ),
    "never ends its headers": endless(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.05),
    "does not speak HTTP": endless(b"\x00\x01\x02 hello\r\n", b"\r\n", 0.05),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_participant_that_answers_wrongly_aborts_its_transaction_and_no_other(
    shared: Shared, wrong: str
) -> None:
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        async with (
            Stub(per_operation(prepare=WRONG[wrong])) as stub,
            Client(local.node_urls) as client,
        ):
            ended = await run_with(client, local, history, stub.url, timeout_ms=_TIMEOUT_MS)
            assert ended.aborted
            assert "odd" in (ended.reason or ""), ended.reason
            await passes(client, local, history)
            last = await client.get(ended.id, wait_ms=20_000)
            assert last.state == "aborted"
            assert [r.operation for r in stub.received].count("prepare") == 1
            assert "commit" not in [r.operation for r in stub.received]
        await shared.check(history)

    asyncio.run(scenario())


def test_a_participant_that_fails_at_commit_is_asked_until_it_has_committed(
    shared: Shared,
) -> None:
    local = shared.local

    async def scenario() -> None:
        history = History(local.services)
        commit = in_turn(
            answer(b"", status=500),
            close,
            reset,
            answer(b"", status=409),
            answer(b"", status=404),
            answer(b"", status=307, headers={"Location": "/commit"}),
            _ANOTHER,
            hang,
            answer(b"done"),
        )
        async with (
            Stub(per_operation(prepare=answer(b"true"), commit=commit)) as stub,
            Client(local.node_urls) as client,
        ):
            ended = await run_with(client, local, history, stub.url)
            assert ended.committed
            await passes(client, local, history)
            assert (await client.get(ended.id, wait_ms=60_000)).state == "committed"
            operations = [received.operation for received in stub.received]
            assert operations[0] == "prepare"
            assert set(operations[1:]) == {"commit"}
            assert len(operations) >= 10
        await shared.check(history)

    asyncio.run(scenario())


def test_a_participant_that_says_yes_and_later_no_aborts_when_it_is_asked_again(
    shared: Shared,
) -> None:
    """Only one that declared itself repeatable is asked twice, and then the leader must change."""
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        history = History(local.services)
        simulated = Simulated(sdk=True)
        async with (
            serving(simulated.application()) as url,
            Client(local.node_urls) as client,
        ):
            first = await run_with(client, local, history, url)  # so that it has declared itself
            assert first.committed
            await passes(client, local, history)
            local.stop("activity")
            simulated.faults.rules = [Rule(Fault.YES_THEN_NO)]
            asked = asyncio.create_task(run_with(client, local, history, url, timeout_ms=30_000))

            async def has_said_yes() -> bool:
                return bool(simulated.faults.said_yes)

            await eventually(has_said_yes, "the participant has said yes")
            victim = await kill_leader(local)
            ended = await asked
            assert ended.aborted
            assert "odd voted no" in (ended.reason or ""), ended.reason
            local.cont("activity")
            assert await local.wait_leader(other_than=victim) != victim
            await passes(client, local, history)
            await shared.check(history)

    asyncio.run(scenario())


# --- plain participants ---------------------------------------------------------------------------


def test_plain_participants_commit_and_abort_by_true_and_false(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        one, two = PlainService(), PlainService()
        async with (
            serving(one.application()) as url_one,
            serving(two.application()) as url_two,
            Client(local.node_urls) as client,
        ):

            async def run(first: str, second: str) -> Transaction:
                return await client.submit(
                    [
                        {"name": "one", "url": url_one, "payload": first},
                        {"name": "two", "url": url_two, "payload": second},
                    ],
                    wait="completion",
                )

            good = await run("yes", "yes")
            assert good.state == "committed"
            assert (one.commits[good.id], two.commits[good.id]) == (1, 1)
            bad = await run("yes", "no")
            assert bad.state == "aborted"
            assert "two voted no" in (bad.reason or "")
            assert one.ended[bad.id] == "rolled_back"
            assert (one.held, two.held) == ({}, {})
            assert set(one.prepares.values()) == {1}
            assert (one.wrongs, two.wrongs) == ([], [])

    asyncio.run(scenario())


def test_plain_participants_are_never_asked_twice_when_the_leader_dies(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        services = {"one": PlainService(), "two": PlainService()}
        history = History([*services])
        async with (
            serving(services["one"].application()) as url_one,
            serving(services["two"].application()) as url_two,
            Client(local.node_urls) as client,
        ):
            urls = {"one": url_one, "two": url_two}

            def participants(number: int) -> Sequence[dict[str, Any]]:
                payload = "no" if number % 10 == 0 else number
                return [{"name": n, "url": url, "payload": payload} for n, url in urls.items()]

            # Those under way at the kill abort, and end when their time and the grace are over.
            submitted = Load(client, participants, history, timeout_ms=3_000)
            await submitted.more(100)
            victim = await kill_leader(local)
            await submitted.more(100)
            assert await local.wait_leader(other_than=victim) != victim
            await submitted.end()
            assert submitted.failures == []
            await all_ready(local)
            await settle(local)
            for name, service in services.items():
                history.effects(name, service.effects())
                assert service.wrongs == []
                assert service.held == {}
                assert max(service.prepares.values()) == 1
                assert len(service.prepares) >= 200
            assert history.violations() == []
            assert history.ids("committed")
            assert history.ids("aborted")

    asyncio.run(scenario())


# --- what the leader's log says -------------------------------------------------------------------


def lines_of(local: LocalCluster) -> list[dict[str, Any]]:
    """Every line of every node's log, decoded."""
    return [
        json.loads(line)
        for node in local.node_ids
        for line in Path(local.log(node)).read_text().splitlines()
    ]


def test_every_step_is_in_the_log_with_its_transaction(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        history = History(local.services)
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
        await shared.check(history)
        lines = lines_of(local)
        said = steps(lines, good.id)
        for step in (
            "begun with inventory, odd, profile, activity",
            "prepare sent to inventory",
            "inventory voted yes",
            "decided commit",
            "commit sent to odd",
            "commit at odd failed, try 1: answered 500",
            "odd is called again in 0.",
            "commit sent to odd, try 2",
            "odd acknowledged commit",
            "finished, committed at every participant",
        ):
            assert any(step in line for line in said), (step, said)
        said = steps(lines, bad.id)
        for step in (
            "odd voted no",
            "decided abort: odd voted no",
            "rollback sent to inventory",
            "inventory acknowledged rollback",
            "finished, aborted at every participant",
        ):
            assert any(step in line for line in said), (step, said)
        # The tests before this one killed leaders; this one need not rely on them for the start.
        assert any("leading in epoch 1: taking over 0" in line["message"] for line in lines)

    asyncio.run(scenario())


def steps(lines: Sequence[dict[str, Any]], id: str) -> list[str]:
    """What the log says of this transaction, by the field that carries its id."""
    return [line["message"] for line in lines if line.get("transaction") == id]


def test_a_takeover_is_in_the_log_with_what_it_took_over(shared: Shared) -> None:
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        history = History(local.services)
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
        await shared.check(history)
        lines = [json.loads(line) for line in local.log(successor).read_text().splitlines()]
        taken = [line for line in lines if "taking over 1 unfinished" in line["message"]]
        assert taken
        said = steps(lines, ended.id)
        assert any("commit sent to odd" in line for line in said), said
        assert any("finished, committed" in line for line in said), said
        assert not any("prepare sent" in line for line in said), said

    asyncio.run(scenario())


# --- no artificial delays -------------------------------------------------------------------------


def test_a_transaction_on_an_idle_cluster_takes_no_artificial_time(shared: Shared) -> None:
    """Prints the figures; a delay put in on purpose would show as a step in them."""
    local = shared.local

    async def scenario() -> None:
        await all_ready(local)
        history = History(local.services)
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
        await shared.check(history)

    asyncio.run(scenario())
