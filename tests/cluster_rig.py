"""What the tests with real processes share: a cluster, load upon it, and the account at the end.

Every cluster is started from the command line (`cluster.local.cluster` runs `python -m cluster
node` and `python -m participants`), with its journal synced. A test waits for what must come about,
never for time to pass; what does not come about in `PATIENCE_S` is a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from cluster.client import Client, ClientError, OutcomeUnknown, Transaction
from cluster.local.cluster import LocalCluster
from cluster.local.sample_order import order
from coordinator.ids import IdMaker
from tests.bare_http import PATIENCE_S
from tests.recording import Recording

_PAGE = 10_000

new_id = IdMaker(lambda: time.time_ns() // 1_000_000, Random(os.urandom(16)))


async def eventually(
    condition: Callable[[], Awaitable[object]], what: str, within_s: float = PATIENCE_S
) -> Any:
    """What `condition` gives, once it gives something true; fails naming `what`."""
    until = time.monotonic() + within_s
    while True:
        found = await condition()
        if found:
            return found
        assert time.monotonic() < until, f"not within {within_s:.0f} s: {what}"
        await asyncio.sleep(0.03)


def exists(pid: int) -> bool:
    """Whether the process is there and has not ended (a zombie has)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


async def term_of(local: LocalCluster, node: str) -> int:
    return int((await local.ask(node, "/v1/cluster"))["term"])


async def all_ready(local: LocalCluster) -> str:
    """Start what a test has left dead, continue what it has stopped; returns the leader."""
    for name in (*local.services, *local.node_ids):
        if not local.running(name):
            await local.start(name, wait=False)
        local.cont(name)
    for name in (*local.services, *local.node_ids):
        await local.wait_ready(name)
    return await local.wait_leader()


async def kill(local: LocalCluster, name: str) -> None:
    """kill -9, and proof of it."""
    pid = local.pid(name)
    assert exists(pid)
    await local.kill(name)
    assert not exists(pid)
    assert local.exit_code(name) == -signal.SIGKILL


async def kill_leader(local: LocalCluster) -> str:
    """kill -9; returns who it was."""
    victim = await local.wait_leader()
    await kill(local, victim)
    return victim


# --- load -----------------------------------------------------------------------------------------

Participants = Callable[[int], Sequence[dict[str, Any]]]


def orders(local: LocalCluster) -> Participants:
    """Orders at all three sample services, each of a user of its own, so that none has to wait."""
    run = new_id()[-6:]
    return lambda number: order(local.url, f"user-{run}-{number}", "A-1", 1)


class Load:
    """Submitters that run one transaction after the other until told to stop.

    `history` has what they asked for and were told; `failures` every call that failed; `aborts` the
    reasons of those that aborted.
    """

    def __init__(
        self,
        client: Client,
        participants: Participants,
        history: Recording,
        *,
        submitters: int = 12,
        timeout_ms: int = 20_000,
    ) -> None:
        self.history = history
        self.failures: list[str] = []
        self.aborts: list[str] = []
        self.answers = 0
        self.slowest_s = 0.0
        self.committed_at: list[tuple[float, float]] = []
        self._client = client
        self._participants = participants
        self._timeout_ms = timeout_ms
        self._numbers = itertools.count()
        self._over = False
        self._tasks = [asyncio.create_task(self._submit_on()) for _ in range(submitters)]

    async def more(self, count: int) -> None:
        """Return once `count` more transactions have been answered."""
        wanted = self.answers + count

        async def are_there() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return self.answers >= wanted

        await eventually(are_there, f"{count} more transactions are answered")

    async def end(self) -> None:
        """Nothing new; return when the last one has its answer."""
        self._over = True
        await asyncio.gather(*self._tasks)

    def first_commit_after(self, moment: float) -> float:
        """Seconds from `moment` to the first commit of a transaction that was begun after it."""
        return min(told - moment for began, told in self.committed_at if began >= moment)

    async def _submit_on(self) -> None:
        while not self._over:
            id, participants = new_id(), self._participants(next(self._numbers))
            self.history.begun(id)
            began = time.monotonic()
            try:
                answer = await self._client.submit(
                    participants, id=id, timeout_ms=self._timeout_ms, deadline=PATIENCE_S
                )
            except OutcomeUnknown as error:
                self.failures.append(str(error))
            except ClientError as error:
                self.failures.append(f"{id}: {error!r}")
            else:
                self.history.told(id, answer.outcome)
                self.answers += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                if answer.aborted:
                    self.aborts.append(f"{id}: {answer.reason}")
                else:
                    self.committed_at.append((began, time.monotonic()))


@contextlib.asynccontextmanager
async def load(
    local: LocalCluster, history: Recording | None = None, **options: Any
) -> AsyncIterator[Load]:
    """Orders at the sample services by the client library; ended with the block."""
    async with Client(local.node_urls) as client:
        made = Load(client, orders(local), history or Recording(local.services), **options)
        try:
            yield made
        finally:
            await made.end()


async def run_with(
    client: Client, local: LocalCluster, history: Recording, url: str, **options: Any
) -> Transaction:
    """An order at the sample services in which the participant `odd` at `url` takes part."""
    id = new_id()
    history.begun(id)
    participants = order(local.url, f"user-{id}", "A-1", 1)
    participants.insert(1, {"name": "odd", "url": url, "payload": {"for": id}})
    ended = await client.submit(participants, id=id, **options)
    history.told(id, ended.outcome)
    return ended


# --- the account ----------------------------------------------------------------------------------


async def effects_of(local: LocalCluster, service: str) -> list[tuple[str, str]]:
    """Everything that a service has done: (transaction id, how its branch ended)."""
    effects: list[tuple[str, str]] = []
    after = 0
    while page := await local.ask(service, f"/effects?after={after}&limit={_PAGE}"):
        effects += [(entry["transaction_id"], entry["effect"]) for entry in page]
        after = page[-1]["number"]
    return effects


async def settle(local: LocalCluster, within_s: float = PATIENCE_S) -> None:
    """Wait until no transaction is unfinished and no service holds a branch prepared."""
    async with Client(local.node_urls) as client:

        async def is_settled() -> bool:
            page = await client.list(state="preparing,committing,aborting", limit=1)
            abouts = [await local.ask(service, "/") for service in local.services]
            prepared = sum(about["branches"]["prepared"] for about in abouts)
            return not page.transactions and not prepared

        await eventually(is_settled, "nothing is unfinished or prepared", within_s)


async def check(
    local: LocalCluster, history: Recording, *, before: Recording | None = None
) -> None:
    """Everybody is back: every outcome told is the outcome at every service and at every node.

    `before`: the history of earlier tests upon the same services, whose effects are there too.
    """
    await settle(local)
    ended_before = set() if before is None else set(before.outcomes)
    for service in local.services:
        effects = await effects_of(local, service)
        history.effects(service, [one for one in effects if one[0] not in ended_before])
    told = [id for id, outcomes in history.outcomes.items() if outcomes]
    for node in local.node_ids:
        history.node(node, await _outcomes_at(local, node, told))
    assert history.violations() == []
    for node in local.node_ids:  # an exception that was only logged is a defect all the same
        assert "Traceback" not in local.log(node).read_text(), f"see {local.log(node)}"


async def _outcomes_at(local: LocalCluster, node: str, ids: Sequence[str]) -> dict[str, str]:
    """What the node knows of these, asked for itself; a follower may need a moment for it."""
    outcomes: dict[str, str] = {}
    async with aiohttp.ClientSession() as session:
        for id in ids:
            url = f"{local.url(node)}/v1/transactions/{id}?stale=true"

            async def outcome(url: str = url) -> str | None:
                async with session.get(url) as response:
                    told: str | None = (await response.json()).get("outcome")
                return told

            outcomes[id] = await eventually(outcome, f"{node} knows an outcome of {id}", 20.0)
    return outcomes


class Shared:
    """One cluster for the tests of a file, and the transactions of the tests before this one.

    Each test has a history of its own; what the services did for others before it is left out.
    """

    def __init__(self, local: LocalCluster) -> None:
        self.local = local
        self.before = Recording(local.services)
        self._count = 0

    def run(self, scenario: Callable[[Recording], Coroutine[Any, Any, None]]) -> None:
        """Run it on the whole cluster; bring everything back, and check its history."""

        async def whole() -> None:
            self._count += 1
            path = self.local.data_dir / f"history-{self._count}.jsonl"
            history = Recording(self.local.services, path)
            await all_ready(self.local)
            try:
                await scenario(history)
                await all_ready(self.local)
                await check(self.local, history, before=self.before)
            finally:
                for id in history.outcomes:
                    self.before.begun(id)

        asyncio.run(whole())


def shared_cluster(directory: Path, **options: Any) -> Iterator[Shared]:
    """For a fixture: a cluster that is up until the tests of the file have run."""
    local = LocalCluster(directory, find_ports=True, **options)
    asyncio.run(local.up())
    try:
        yield Shared(local)
    finally:
        asyncio.run(local.down())
