"""The simulation: its seeds hold, repeat themselves in any process, and catch planted bugs.

Whole runs are made in processes of their own: what a killed program leaves behind (tasks that
never end) would otherwise be collected in the middle of other tests.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from contextvars import copy_context
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from cluster.errors import DiskFailed, InUse
from tests.model.broken_rules import replaced
from tests.simulation.bounds import BOUNDS
from tests.simulation.disk import SimDisk
from tests.simulation.environment import draw_environment
from tests.simulation.loop import MAX_IN_WINDOW, PROCESS, WINDOW_S, Process, SimLoop, Stuck
from tests.simulation.mutants import CLUMSY, MUTANTS, QUICK
from tests.simulation.network import Machine, SimNetwork
from tests.simulation.world import World

HOUSE = Path(__file__).parent.parent
LIMIT_S = 280


def simulate(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=HOUSE,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


RARE = (
    "answers that came twice",
    "asleep",
    "branches resolved by hand",
    "calls done behind a proxy",
    "contest",
    "ends done twice by a plain service",
    "ends that were refused",
    "seeds with small bounds",
    "submits without an id",
    "syncs that failed",
    "transfers",
)


# --- whole runs -----------------------------------------------------------------------------------


@pytest.mark.timeout(LIMIT_S)
def test_nothing_is_violated_in_the_first_seeds() -> None:
    done = simulate("run", "--seeds", "0-59", "--jobs", "2", "--quiet")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"([a-z ]+) (\d+)", done.stdout.splitlines()[-1]))
    for what in ("committed", " aborted", " kills", " power losses", " leaderships"):
        name = next(name for name in counts if name.strip() == what.strip())
        assert int(counts[name]) > 20, f"too little of it to mean anything: {what}"
    for what in RARE:
        assert int(counts.get(f" {what}", 0)) > 0, f"none of it in these seeds: {what}"


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_early_tells_what_was_done(number: signal.Signals) -> None:
    arguments = ("run", "--seeds", "0-99999", "--jobs", "2")
    with subprocess.Popen(
        [sys.executable, "-m", "tests.simulation", *arguments],
        cwd=HOUSE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as going_on:
        assert going_on.stdout is not None
        assert going_on.stdout.readline().startswith("seed ")
        os.killpg(going_on.pid, number)  # all of them, as a terminal and timeout(1) do
        rest = going_on.stdout.read()
    assert going_on.returncode == 128 + number, rest
    assert f"ended early, by {number.name}\n" in rest
    assert re.search(r"^[1-9]\d* seeds, 0 with violations", rest, re.MULTILINE), rest
    assert "Traceback" not in rest


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("in_bytes", [True, False])
def test_a_seed_is_the_same_run_in_every_process(in_bytes: bool) -> None:
    seed = next(s for s in range(100) if draw_environment(s).http_in_bytes is in_bytes)
    traces = set()
    for hash_seed in ("1", "2", "random"):
        done = simulate("replay", "--seed", str(seed), hash_seed=hash_seed)
        found = re.search(r"trace ([0-9a-f]{16})", done.stdout)
        assert found, done.stdout + done.stderr
        assert not done.stderr  # what the dead would still say is nobody's
        traces.add(found[1])
    assert len(traces) == 1


@pytest.mark.timeout(LIMIT_S)
def test_planted_bugs_are_caught() -> None:
    done = simulate("mutants", *QUICK, "--seeds", "0-49")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") == 2 + len(QUICK)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("peer", CLUMSY)
def test_a_clumsy_peer_alone_does_no_harm(peer: str) -> None:
    """So that what a bug shows beside it is the bug's."""
    for seed in ("1", "4"):
        done = simulate("replay", "--seed", seed, "--mutant", peer)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_planted_bug_fits_what_it_replaces() -> None:
    """One that a change of the code has left behind would raise, and count as caught for that."""
    for mutant in (MUTANTS | CLUMSY).values():
        with mutant.switched_on():
            pass

    class Greeter:
        def greet(self, name: str, *, loudly: bool = False) -> str:
            return f"{name}{'!' * loudly}"

    def fits(_original: Any, _greeter: Greeter, name: str, **_: Any) -> str:
        return name

    def does_not(_original: Any, _greeter: Greeter, *, loudly: bool) -> str:
        return str(loudly)

    with ExitStack() as taken:
        replaced(Greeter, "greet", fits)(taken)
        assert Greeter().greet("ada", loudly=True) == "ada"
        with pytest.raises(TypeError):
            replaced(Greeter, "greet", does_not)(taken)


def test_every_planted_bug_names_its_rule() -> None:
    assert len(MUTANTS) >= 25
    assert all(mutant.what for mutant in MUTANTS.values())
    assert not set(MUTANTS) & set(CLUMSY)


def test_seeds_draw_different_worlds() -> None:
    worlds = [draw_environment(seed) for seed in range(50)]
    assert {world.nodes for world in worlds} == {3, 5}
    assert {world.http_in_bytes for world in worlds} == {True, False}
    assert len({world.faults for world in worlds}) > 40
    assert draw_environment(7) == draw_environment(7)


def test_small_bounds_are_smaller_than_those_of_production() -> None:
    for module, name, small in BOUNDS:
        assert max(small) < getattr(module, name), name
    drawn = [draw_environment(seed).bounds for seed in range(200)]
    assert 0 < sum(map(bool, drawn)) < 100
    assert {name for bounds in drawn for name in bounds} == {name for _, name, _ in BOUNDS}


# --- what nobody catches --------------------------------------------------------------------------


@pytest.mark.parametrize("is_lost", [True, False])
def test_of_what_nobody_catches_only_the_tasks_of_lost_connections_are_forgiven(
    is_lost: bool,
) -> None:
    """The same error of aiohttp, once with its excuse and once without."""
    world = World(draw_environment(0))

    async def serve(_: web.BaseRequest) -> web.Response:
        raise NotImplementedError

    async def main() -> None:
        protocol = web.Server(serve)()
        protocol._request_factory = None
        if is_lost:
            protocol._manager = None
        await protocol.start()

    with pytest.raises(AssertionError) as raised:
        world.loop.run_until_complete(main())
    world._unhandled(world.loop, {"exception": raised.value, "message": "of a task"})
    world.loop.close()
    assert [event["event"] for event in world.history] == ([] if is_lost else ["unhandled"])


@pytest.mark.parametrize("has_dead", [True, False])
def test_a_task_that_is_dropped_is_noticed_where_no_program_has_died(has_dead: bool) -> None:
    world = World(draw_environment(0))
    world.has_dead = has_dead
    world._unhandled(world.loop, {"message": "Task was destroyed but it is pending!"})
    world.loop.close()
    assert [event["event"] for event in world.history] == ([] if has_dead else ["unhandled"])


# --- the loop -------------------------------------------------------------------------------------


def run(main: Callable[[SimLoop], Coroutine[Any, Any, None]]) -> SimLoop:
    loop = SimLoop(Random(1))
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()
    return loop


def in_process(loop: SimLoop, process: Process, program: Coroutine[Any, Any, None]) -> Any:
    context = copy_context()
    context.run(PROCESS.set, process)
    return loop.create_task(program, context=context)


def test_an_hour_passes_at_once() -> None:
    async def main(_: SimLoop) -> None:
        await asyncio.sleep(3600)

    assert run(main).now == pytest.approx(3600)


def test_of_a_killed_process_nothing_runs_any_more() -> None:
    said: list[str] = []

    async def program() -> None:
        try:
            said.append("begun")
            await asyncio.sleep(1)
            said.append("went on")
        finally:
            said.append("cleaned up")

    async def main(loop: SimLoop) -> None:
        process = Process("p", 1, None)
        task = in_process(loop, process, program())
        await asyncio.sleep(0.5)
        process.alive = False
        await asyncio.sleep(5)
        assert said == ["begun"]
        assert not task.done()
        process.alive = True  # the end of the test: let the task end in order
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main)


def test_a_stopped_process_goes_on_where_it_was() -> None:
    heard: list[float] = []

    async def program() -> None:
        await asyncio.sleep(1)
        heard.append(asyncio.get_running_loop().time())

    async def main(loop: SimLoop) -> None:
        process = Process("p", 1, None)
        task = in_process(loop, process, program())
        await asyncio.sleep(0.5)
        process.paused = True
        await asyncio.sleep(9.5)
        assert heard == []
        loop.resume(process)
        await task
        assert heard == [pytest.approx(10, abs=0.01)]

    run(main)


def test_what_came_to_a_stopped_process_goes_before_its_timers() -> None:
    heard: list[str] = []

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(1, heard.append, "timer")
        loop.call_later(0.5, lambda: None)

    async def main(loop: SimLoop) -> None:
        process = Process("p", 1, None)
        await in_process(loop, process, program())
        process.paused = True
        await asyncio.sleep(2)
        context = copy_context()
        context.run(PROCESS.set, process)
        loop.call_soon(heard.append, "message", context=context)
        await asyncio.sleep(1)
        assert heard == []
        loop.resume(process)
        await asyncio.sleep(1)
        assert heard == ["message", "timer"]

    run(main)


def test_a_context_without_variables_belongs_to_no_process() -> None:
    """An empty context is false: `context or copy_context()` would take the caller's."""
    seen: list[Process | None] = []

    async def main(loop: SimLoop) -> None:
        empty = copy_context().__class__()

        async def program() -> None:
            loop.call_soon(lambda: seen.append(PROCESS.get()), context=empty)
            loop.call_at(loop.now + 1, lambda: seen.append(PROCESS.get()), context=empty)

        await in_process(loop, Process("p", 1, None), program())
        await asyncio.sleep(2)

    run(main)
    assert seen == [None, None]


@pytest.mark.parametrize("pause_s", [0, 1.3 * WINDOW_S / MAX_IN_WINDOW])
def test_a_program_that_never_rests_is_found(pause_s: float) -> None:
    async def busy(pause_s: float) -> None:
        for _ in range(4 * MAX_IN_WINDOW):
            await asyncio.sleep(pause_s)

    loop = SimLoop(Random(1))
    loop.run_until_complete(busy(4 * WINDOW_S / MAX_IN_WINDOW))
    with pytest.raises(Stuck):
        loop.run_until_complete(busy(pause_s))
    loop.close()


def test_a_job_of_a_thread_ends_later() -> None:
    async def main(loop: SimLoop) -> None:
        before = loop.now
        assert await loop.run_in_executor(None, lambda: 7) == 7
        assert loop.now > before

    run(main)


# --- the network ----------------------------------------------------------------------------------


class Listening(asyncio.Protocol):
    """Keeps what arrives."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.append(exc)


class Pair:
    """Two machines, a listening process on the second, and a connection from the first."""

    def __init__(self, loop: SimLoop) -> None:
        self.network = loop.network = SimNetwork(loop, Random(2))
        self.near, self.far = Machine("near", "127.0.0.1"), Machine("far", "127.0.0.2")
        self.network.add(self.near)
        self.network.add(self.far)
        self.server, self.client = Process("s", 1, self.far), Process("c", 1, self.near)
        self.accepted = Listening()
        self.dialed = Listening()
        self._loop = loop

    async def connect(self) -> asyncio.Transport:
        async def serve() -> None:
            await self._loop.create_server(lambda: self.accepted, "127.0.0.2", 80)

        async def dial() -> None:
            await self._loop.create_connection(lambda: self.dialed, "127.0.0.2", 80)

        await in_process(self._loop, self.server, serve())
        await in_process(self._loop, self.client, dial())
        transport = self.dialed.transport
        assert isinstance(transport, asyncio.Transport)
        return transport


def test_what_is_written_arrives_in_order_and_later() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        transport = await pair.connect()
        for number in range(100):
            transport.write(bytes([number]))
        assert pair.accepted.pieces == []
        await asyncio.sleep(1)
        assert b"".join(pair.accepted.pieces) == bytes(range(100))

    run(main)


def test_a_cut_delays_what_was_written_until_it_is_mended() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)
        transport = await pair.connect()
        pair.network.cut([("near", "far")])
        transport.write(b"late")
        await asyncio.sleep(10)
        assert pair.accepted.pieces == []
        pair.network.mend([("near", "far")])
        await asyncio.sleep(10)
        assert pair.accepted.pieces == [b"late"]

    run(main)


def test_a_killed_program_hangs_up_and_a_machine_without_power_does_not() -> None:
    async def main(loop: SimLoop) -> None:
        for silently in (False, True):
            pair = Pair(loop)
            transport = await pair.connect()
            pair.server.alive = False
            pair.far.has_power = not silently
            pair.far.hang_up(pair.server, silently=silently, draw=Random(3))
            await asyncio.sleep(5)
            assert len(pair.dialed.ended) == (0 if silently else 1)
            pair.far.has_power = True
            if silently:
                in_process(loop, pair.client, _write(transport))
                await asyncio.sleep(10)
                assert isinstance(pair.dialed.ended[0], ConnectionResetError)

    run(main)


async def _write(transport: asyncio.Transport) -> None:
    transport.write(b"anybody?")


def test_nobody_listens() -> None:
    async def main(loop: SimLoop) -> None:
        pair = Pair(loop)

        async def dial() -> None:
            with pytest.raises(ConnectionRefusedError):
                await loop.create_connection(Listening, "127.0.0.2", 81)

        await in_process(loop, pair.client, dial())

    run(main)


# --- the disk -------------------------------------------------------------------------------------


def contents(disk: SimDisk) -> dict[str, bytes]:
    return {name: disk.open(Path("/d") / name).read(0, 9_999) for name in disk.names(Path("/d"))}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("what", ["lost", "misdirected"])
def test_one_write_goes_wrong_and_is_told_of(what: str, seed: int) -> None:
    disk = SimDisk()
    disk.make_directory(Path("/d"))
    for name in ("a", "b", "watermark"):
        disk.create(Path("/d") / name).write(0, b"." * 2_000)
    before = contents(disk)
    said: list[str] = []
    disk.wronged = said.append
    if what == "lost":
        disk.lose_next_write()
    else:
        disk.misdirect_next_write(Random(seed))
    file = disk.open(Path("/d/a"))
    file.write(1_000, b"first")
    file.write(1_500, b"second")
    assert len(said) == 1
    after = contents(disk)
    assert after["a"][1_000:1_005] == b"....."
    assert after["a"][1_500:1_506] == b"second"
    assert after["watermark"] == before["watermark"]
    landed = sum(text.count(b"first") for text in after.values())
    assert landed == (0 if what == "lost" else 1)


def test_power_loss_keeps_what_was_synced_and_any_part_of_the_rest() -> None:
    kept = set()
    for seed in range(40):
        disk = SimDisk()
        disk.make_directory(Path("/d"))
        file = disk.create(Path("/d/f"))
        file.write(0, b"synced")
        file.sync()
        disk.sync_directory(Path("/d"))
        file.write(6, b"perhaps")
        disk.create(Path("/d/new"))
        disk.lose_power(Random(seed))
        found = disk.open(Path("/d/f"))
        content = found.read(0, found.size())
        assert content.startswith(b"synced")
        kept.add((content, disk.exists(Path("/d/new"))))
    assert len(kept) > 2


def test_a_kill_keeps_everything_and_frees_the_lock() -> None:
    disk = SimDisk()
    disk.make_directory(Path("/d"))
    lock = disk.lock(Path("/d/LOCK"))
    disk.create(Path("/d/f")).write(0, b"written")
    disk.kill()
    disk.lock(Path("/d/LOCK"))
    lock.close()  # of the dead process: it frees nothing
    with pytest.raises(InUse):
        disk.lock(Path("/d/LOCK"))
    assert disk.open(Path("/d/f")).read(0, 10) == b"written"


def test_what_a_sync_has_failed_to_write_no_later_one_writes() -> None:
    disk = SimDisk()
    disk.make_directory(Path("/d"))
    file = disk.create(Path("/d/f"))
    disk.sync_directory(Path("/d"))
    file.write(0, b"lost")

    def sick(operation: str, path: Path) -> None:
        if operation == "sync":
            raise DiskFailed(operation, path, "Input/output error")

    disk.before, well = sick, disk.before
    with pytest.raises(DiskFailed):
        file.sync()
    disk.before = well
    file.sync()
    assert file.read(0, 9) == b"lost", "it is shown as long as the machine runs"
    file.write(4, b"kept")
    file.sync()
    disk.lose_power(Random(1))
    assert disk.open(Path("/d/f")).read(0, 9) == bytes(4) + b"kept"


def test_a_full_disk_takes_a_part() -> None:
    disk = SimDisk()
    file = disk.create(Path("/f"))

    def full(operation: str, path: Path) -> None:
        raise DiskFailed(operation, path, "No space left on device")

    disk.before = full
    with pytest.raises(DiskFailed):
        file.write(0, b"12345678")
    assert file.read(0, 8) == b"1234"
