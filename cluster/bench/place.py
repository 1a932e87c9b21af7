"""What is measured: a cluster and participants, each a process of its own, or given URLs.

Participants start first and end last: what is under way at the end needs them. Nothing outlives the
measurement, and everything lies in one directory that is removed after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from tempfile import TemporaryDirectory

import aiohttp

from cluster.bench.settings import BenchError, BenchSettings
from cluster.local.child_process import ChildProcess
from cluster.local.cluster import LocalCluster
from cluster.local.ports import HOST, free_ports
from cluster.profiling import VARIABLE as PROFILE_VARIABLE
from participants import process

_END_S = 10.0
_START_S = 30.0
_POLL_S = 0.05


@dataclass(slots=True)
class Place:
    """Where a measurement happens.

    `nodes`: URLs by name. `participants`: those of a transaction. `started`: URLs of the processes
    of participants that were started here. `processes`: process ids of all that was started here.
    `local`: the cluster, if it was started here. `children`: what else was.
    """

    directory: Path
    nodes: dict[str, str]
    participants: tuple[str, ...]
    started: tuple[str, ...]
    processes: dict[str, int]
    local: LocalCluster | None
    children: list[ChildProcess] = field(default_factory=list)

    async def start(self, name: str, *arguments: str) -> str:
        """One more process of participants, `python -m participants ARGUMENTS`; its URL."""
        port = free_ports((), (name,)).services[name]
        command = [sys.executable, "-m", "participants", *arguments]
        command += ["--port", str(port), "--log-level", "warning"]
        child = ChildProcess(name, command, self.directory / f"{name}.log")
        child.start()
        self.children.append(child)
        url = f"http://{HOST}:{port}"
        await _answers(child, url)
        assert child.pid is not None
        self.processes[name] = child.pid
        return url

    async def kill_all(self) -> None:
        """kill -9 of all that was started here: what is under way shall not be waited for."""
        if self.local is not None:
            await asyncio.gather(*(self.local.kill(name) for name in self.local.node_ids))
        for child in self.children:
            child.signal(SIGKILL)


@contextlib.asynccontextmanager
async def running(settings: BenchSettings, more_settings: str = "") -> AsyncIterator[Place]:
    """The place that `settings` describe, until the block ends. Raises BenchError.

    `more_settings`: sections for the `cluster.toml` of a cluster that is started here.
    """
    with contextlib.ExitStack() as stack:
        parent = settings.data_dir or None
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="assent-", dir=parent)))
        stack.enter_context(_environment(settings))
        process.allow_many_connections()
        async with _started(settings, directory, more_settings) as place:
            yield place


@contextlib.asynccontextmanager
async def _started(
    settings: BenchSettings, directory: Path, more_settings: str
) -> AsyncIterator[Place]:
    place = Place(directory, {}, settings.participants, (), {}, None)
    try:
        if not settings.participants:
            await _start_participants(settings, place)
        if settings.nodes:
            place.nodes = {url: url for url in settings.nodes}
        else:
            local = place.local = _local_cluster(settings, directory, more_settings)
            await local.up()
            place.nodes = {name: local.url(name) for name in local.node_ids}
            nodes = {name: local.pid(name) for name in local.node_ids}
            place.processes = nodes | place.processes
        yield place
    finally:
        if place.local is not None:
            await place.local.down()
        for child in place.children:
            child.signal(SIGTERM)
        await asyncio.gather(*(child.ended(_END_S) for child in place.children))
        for child in place.children:
            child.signal(SIGKILL)


@contextlib.contextmanager
def _environment(settings: BenchSettings) -> Iterator[None]:
    """What the processes inherit."""
    wanted: dict[str, str] = {}
    if settings.code:
        # Without the first, a process finds the programs in its working directory before these.
        wanted |= {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(Path(settings.code).absolute())}
    if settings.profile:
        Path(settings.profile).mkdir(parents=True, exist_ok=True)
        wanted[PROFILE_VARIABLE] = str(Path(settings.profile).absolute())
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _local_cluster(settings: BenchSettings, directory: Path, more_settings: str) -> LocalCluster:
    names = [f"n{number}" for number in range(1, settings.node_count + 1)]
    return LocalCluster(
        directory / "cluster",
        nodes=settings.node_count,
        find_ports=True,
        fsync=not settings.no_fsync,
        services=(),
        settings=more_settings,
        arguments=dict.fromkeys(names, ("--log-level", settings.log_level)),
    )


async def _start_participants(settings: BenchSettings, place: Place) -> None:
    """The participants of a transaction, spread over the processes."""
    wanted = settings.participants_per_transaction
    processes = min(settings.participant_processes, wanted)
    names = [f"participants{number or ''}" for number in range(processes)]
    for index, name in enumerate(names):
        count = len(range(index, wanted, processes))
        arguments = ["bench", "--count", str(count)]
        if settings.store == "sqlite":
            arguments += ["--data-dir", str(place.directory / name)]
        arguments += ["--plain"] if settings.plain else []
        arguments += ["--no-batches"] if settings.no_batches else []
        url = await place.start(name, *arguments)
        place.started += (url,)
        place.participants += numbered(url, count)


def numbered(url: str, count: int) -> tuple[str, ...]:
    """The URLs of the participants in one process (`participants.bench`)."""
    return tuple(f"{url}/{number}" for number in range(1, count + 1))


async def _answers(child: ChildProcess, url: str) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _START_S
    async with aiohttp.ClientSession() as session:
        while loop.time() < until:
            if not child.running:
                raise BenchError(f"{child.name} ended while it started: {child.last_lines(1)}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(_POLL_S)
    raise BenchError(f"{child.name} does not answer at {url}; see {child.log}")


async def open_branches(urls: Sequence[str]) -> int:
    """Branches prepared and not ended, or ended and not prepared, in these processes."""
    return sum(
        abs(ends["prepared"] - ends["committed"] - ends["rolled_back"])
        for ends in (await _shown(urls)).values()
    )


async def open_before(urls: Sequence[str], when: float) -> int:
    """Branches that were prepared before `when`, of `time.monotonic`, and have not ended."""
    ends = await _shown(urls, {"before": repr(when)})
    return sum(one["open_before"] for one in ends.values())


async def committed_branches(urls: Sequence[str]) -> dict[str, int]:
    """How many branches each participant of these processes has committed, by its URL."""
    return {url: ends["committed"] for url, ends in (await _shown(urls)).items()}


async def _shown(
    urls: Sequence[str], query: Mapping[str, str] | None = None
) -> dict[str, dict[str, int]]:
    """What the processes of `participants.bench` tell, by the participant's URL."""
    shown = {}
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/", params=query) as response:
                participants = (await response.json())["participants"]
            shown.update({f"{url}/{number}": ends for number, ends in participants.items()})
    return shown
