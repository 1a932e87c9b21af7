"""Participants of a real cluster that are plain, slow, wrong or hostile, and what the log says.

One cluster for the whole file, whose nodes write JSON lines. Misbehaving participants run in this
process; beside each of them the three sample services take part and must not be left prepared.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cluster.client import Client, Transaction
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from participants.simulated import Fault, Rule, Simulated
from tests.cluster_rig import (
    Load,
    Shared,
    all_ready,
    eventually,
    kill_leader,
    new_id,
    run_with,
    settle,
    shared_cluster,
)
from tests.plain_service import PlainService, serving
from tests.recording import Recording
from tests.stubs import (
    Behaviour,
    Stub,
    answer,
    answer_and_close,
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


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    settings = "[timings]\ngrace_ms = 300\ncall_timeout_ms = 1000\n"
    yield from shared_cluster(tmp_path_factory.mktemp("participants"), settings=settings)


async def passes(client: Client, local: LocalCluster, history: Recording) -> None:
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

    async def scenario(history: Recording) -> None:
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

    shared.run(scenario)


def test_a_participant_that_fails_at_commit_is_asked_until_it_has_committed(
    shared: Shared,
) -> None:
    local = shared.local

    async def scenario(history: Recording) -> None:
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

    shared.run(scenario)


def test_a_participant_that_says_yes_and_later_no_aborts_when_it_is_asked_again(
    shared: Shared,
) -> None:
    """Only one that declared itself repeatable is asked twice, and then the leader must change."""
    local = shared.local

    async def scenario(history: Recording) -> None:
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
            await settle(local)

    shared.run(scenario)


# --- plain participants ---------------------------------------------------------------------------


def test_plain_participants_commit_and_abort_by_true_and_false(shared: Shared) -> None:
    local = shared.local

    async def scenario(_history: Recording) -> None:
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

    shared.run(scenario)


def test_plain_participants_are_never_asked_twice_when_the_leader_dies(shared: Shared) -> None:
    local = shared.local

    async def scenario(_history: Recording) -> None:
        services = {"one": PlainService(), "two": PlainService()}
        plain_history = Recording([*services])
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
            submitted = Load(client, participants, plain_history, timeout_ms=3_000)
            await submitted.more(100)
            victim = await kill_leader(local)
            await submitted.more(100)
            assert await local.wait_leader(other_than=victim) != victim
            await submitted.end()
            assert submitted.failures == []
            await all_ready(local)
            await settle(local)
            for name, service in services.items():
                plain_history.effects(name, service.effects())
                assert service.wrongs == []
                assert service.held == {}
                assert max(service.prepares.values()) == 1
                assert len(service.prepares) >= 200
            assert plain_history.violations() == []
            assert plain_history.ids("committed")
            assert plain_history.ids("aborted")

    shared.run(scenario)


def test_a_participant_that_closes_idle_connections_fails_no_transaction(shared: Shared) -> None:
    """A kept connection that the other side has closed is not a failed prepare."""
    local = shared.local

    async def scenario(_history: Recording) -> None:
        async with (
            Stub(per_operation(prepare=answer_and_close(b"true"))) as stub,
            Client(local.node_urls) as client,
        ):
            for _ in range(30):
                ended = await client.submit([{"name": "hasty", "url": stub.url, "payload": None}])
                assert ended.committed, ended.reason
            prepares = [one for one in stub.received if one.operation == "prepare"]
            assert len(prepares) == 30
            assert stub.connections >= 30
            await settle(local)

    shared.run(scenario)
