"""The places where code reaches past the event loop, and what it finds there.

| what | instead of | why |
|---|---|---|
| `aiohappyeyeballs.start_connection` | a real socket, connected | aiohttp dials below the loop |
| `participant_connection.select` | poll(2) on a descriptor | it is looked into the kernel |
| `RaftCore` applying, committing, leading | the same and a line of history | it is checked (I14) |
| `random.seed`, the module's generator | one seeded by the run | aiohttp shuffles who waits |
| `aiohttp.ClientSession`, `TCPConnector` | messages for bytes, in most seeds | see `light_client` |
| `participant_connections.Connection` | the same | the same |
| the clock of `pysyncobj` | the loop's | else the last world would live on in it |
| `aiohttp.connector.monotonic` | the loop's clock | idle connections age by it |
| `cluster.raft.snapshots.time` | a pause that is none | there are no threads to let in |
| `Journal` appending, syncing | the same, noted | what a quorum has is checked (I4) |
| `Driver` looking for the lost | the same, and what it found | there is none (I5) |
| `RaftCore` speaking, standing for election | the same, and the nemesis is told | its moments |
| the processor's time of the driver | none | what is simulated takes none |
| bounds of what is done in a turn | small ones, in some seeds (`BOUNDS`) | they are never reached |

Nothing of the project's own logic is among them.
"""

from __future__ import annotations

import functools
import random
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import aiohappyeyeballs
import aiohttp

import cluster.raft.core
import cluster.raft.snapshots
import coordinator.driver
import coordinator.participant_connection
import coordinator.participant_connections
import coordinator.table
from cluster.raft.core import RaftCore
from cluster.raft.state import Role
from cluster.storage.journal import Journal
from coordinator.driver import Driver
from tests.simulation.bounds import BOUNDS
from tests.simulation.environment import Environment
from tests.simulation.light_client import LightConnection, LightConnector, LightSession
from tests.simulation.light_server import serving
from tests.simulation.loop import PROCESS
from tests.simulation.network import Endpoint, SimNetwork


class _Poll:
    """poll(2) on one simulated socket; its `fileno` is its id."""

    def __init__(self, network: SimNetwork) -> None:
        self._network = network
        self._asked: Endpoint | None = None

    def register(self, descriptor: int, _events: int) -> None:
        process = PROCESS.get()
        assert process is not None
        for endpoint in process.owner.endpoints:
            if endpoint.fileno() == descriptor:
                self._asked = endpoint

    def poll(self, _timeout: int) -> list[int]:
        return [1] if self._asked is None or self._asked.has_unread else []


class _Select:
    POLLIN = 1

    def __init__(self, network: SimNetwork) -> None:
        self.poll = functools.partial(_Poll, network)


@contextmanager
def patched(network: SimNetwork, environment: Environment) -> Iterator[None]:
    """As long as it lasts, these places lead into the simulation."""

    async def start_connection(addr_infos: Any, **_: Any) -> Endpoint:
        host, port = addr_infos[0][4][:2]
        return await network.connect(host, port)

    speak = RaftCore.speak
    apply = RaftCore._SyncObj__doApplyCommand
    set_state = RaftCore._SyncObj__setState
    set_commit = RaftCore.set_commit

    def applied(core: RaftCore, command: bytes) -> None:
        index = core.applied + 1
        apply(core, command)
        process = PROCESS.get()
        assert process is not None
        world = process.owner.world
        term = core.journal[index - core.journal.first_index][2]
        world.applied(core.node, process.number, index, command, world.synced_on(index, term))

    def state_set(core: RaftCore, state: int) -> None:
        set_state(core, state)
        process = PROCESS.get()
        if process is None:
            return
        if core.role is Role.LEADER:
            process.owner.world.became_leader(core.node, core.term)
        elif core.role is Role.CANDIDATE:
            process.owner.world.happened("stands", process.owner)

    def committed(core: RaftCore, index: int) -> None:
        before = core.commit
        set_commit(core, index)
        process = PROCESS.get()
        if process is not None and index < before:
            process.owner.world.record("uncommitted", node=core.node, index=index, before=before)

    def spoke(core: RaftCore) -> None:
        speak(core)
        process = PROCESS.get()
        assert process is not None
        process.owner.world.happened("spoke", process.owner)

    look = Driver.take_up_forgotten

    def looked(driver: Driver) -> int:
        found = look(driver)
        process = PROCESS.get()
        if found and process is not None:
            process.owner.world.record("lost", node=process.owner.name, transactions=found)
        return found

    state_before = random.getstate()
    random.seed(environment.seed)
    try:
        with (
            _http(network, in_bytes=environment.http_in_bytes),
            patch.object(cluster.raft.core._Clock, "now", network.loop.time),
            patch.object(aiohttp.connector, "monotonic", network.loop.time),
            patch.object(cluster.raft.snapshots, "time", types.SimpleNamespace(sleep=_nothing)),
            patch.object(aiohappyeyeballs, "start_connection", start_connection),
            patch.object(coordinator.driver, "thread_time", lambda: 0.0),
            patch.object(coordinator.participant_connection, "select", _Select(network)),
            patch.object(RaftCore, "_SyncObj__doApplyCommand", applied),
            patch.object(RaftCore, "_SyncObj__setState", state_set),
            patch.object(RaftCore, "set_commit", committed),
            _journals_noted(),
            patch.object(RaftCore, "speak", spoke),
            patch.object(Driver, "take_up_forgotten", looked),
            _bounded(environment),
        ):
            yield
    finally:
        random.setstate(state_before)


@contextmanager
def _journals_noted() -> Iterator[None]:
    """What each node has written, and what a sync has covered (`NodeHost.synced`)."""
    append = Journal.append
    start_sync = Journal.start_sync

    def appended(journal: Journal, command: bytes, index: int, term: int) -> None:
        append(journal, command, index, term)
        process = PROCESS.get()
        assert process is not None
        process.owner.written.append((index, term))

    def sync_started(journal: Journal) -> Callable[[], None] | None:
        process = PROCESS.get()
        assert process is not None
        host, job = process.owner, start_sync(journal)
        written, host.written = host.written, []
        if job is None:
            host.synced.update(written)
            return None

        def run() -> None:
            job()
            host.synced.update(written)

        return run

    with (
        patch.object(Journal, "append", appended),
        patch.object(Journal, "start_sync", sync_started),
    ):
        yield


@contextmanager
def _http(network: SimNetwork, *, in_bytes: bool) -> Iterator[None]:
    """How HTTP is carried: by aiohttp, or as messages."""
    if in_bytes:
        yield
        return
    network.serving = serving
    with (
        patch.object(aiohttp, "ClientSession", LightSession),
        patch.object(aiohttp, "TCPConnector", LightConnector),
        patch.object(coordinator.participant_connections, "Connection", LightConnection),
    ):
        yield


@contextmanager
def _bounded(environment: Environment) -> Iterator[None]:
    """A turn does what the environment says; the same on all nodes."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(coordinator.table, "BLOCK", environment.block))
        for module, name, _ in BOUNDS:
            if name in environment.bounds:
                stack.enter_context(patch.object(module, name, environment.bounds[name]))
        yield


def _nothing(_: float) -> None:
    pass
