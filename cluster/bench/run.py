"""A measurement: a cluster, participants and load, each in processes of their own, and the figures.

Rules
- What is measured is what is run: real nodes with their journals synced, real participants over
  HTTP. Nothing is stubbed, and what makes it lighter (`no_fsync`) stands in the result.
- A wrong answer fails the measurement: an outcome that does not follow from the votes, branches
  that stay prepared, branches that ended more often than they were prepared.
- CPU and memory are read of the system, per process, over the same time as the load's counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import re
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from cluster.bench.report import Result, Usage, figures, merge
from cluster.bench.requests import Load
from cluster.local.child_process import ChildProcess
from cluster.local.cluster import LocalCluster
from cluster.local.ports import HOST, free_ports
from cluster.profiling import VARIABLE as PROFILE_VARIABLE

_FILL_BATCH = 200
_FILL_CLIENTS = 16
_SETTLE_S = 15.0
_LOOK_EVERY_S = 0.1
_END_S = 10.0
_SPARE_S = 60.0


_OWN_ENVIRONMENT = dict(os.environ)
"""The load runs from this tree, whatever `code` says: both sides of a comparison have the same."""


class BenchError(Exception):
    """It could not be measured; the text is one sentence for the person who asked."""


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure. Shares, `clients`, `rate` and `batch` as in `bench_requests.Load`.

    `nodes`, `participants`: URLs of those that run already; empty: started here. `store`: memory or
    sqlite. `remembered`: transactions finished before the measurement. `code`: a directory whose
    programs run in the place of these. `profile`: a directory for a profile of every node.
    """

    clients: int = 64
    rate: float = 0.0
    seconds: float = 5.0
    warm_up: float = 2.0
    participants_per_transaction: int = 3
    participant_processes: int = 1
    load_processes: int = 1
    batch: int = 1
    no_share: float = 0.0
    read_only_share: float = 0.0
    payload_bytes: int = 0
    plain: bool = False
    no_batches: bool = False
    store: str = "memory"
    no_fsync: bool = False
    remembered: int = 0
    log_level: str = "info"
    node_count: int = 3
    nodes: tuple[str, ...] = ()
    participants: tuple[str, ...] = ()
    data_dir: str = ""
    code: str = ""
    profile: str = ""


async def measure(settings: BenchSettings) -> Result:
    """Run one measurement; the figures with `settings` and `machine`. Raises BenchError."""
    with contextlib.ExitStack() as stack:
        parent = settings.data_dir or None
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="assent-", dir=parent)))
        stack.enter_context(_environment(settings))
        async with _running(settings, directory) as place:
            if settings.remembered:
                await _fill(settings, place)
            result = await _measured(settings, place)
            result["wrong"] = await _wrongs(result, place)
    return {"settings": asdict(settings), "machine": machine(), **result}


def machine() -> dict[str, Any]:
    """What the figures depend on beside the program."""
    model = re.search(r"model name\s*: (.*)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+)", _read("/proc/meminfo"))
    return {
        "processors": os.cpu_count(),
        "processor": model[1] if model else platform.processor(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
    }


# --- what runs ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Place:
    """What is measured. `processes`: process ids of what was started here."""

    directory: Path
    nodes: dict[str, str]
    participants: tuple[str, ...]
    started: tuple[str, ...]
    processes: dict[str, int]
    local: LocalCluster | None


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


@contextlib.asynccontextmanager
async def _running(settings: BenchSettings, directory: Path) -> AsyncIterator[_Place]:
    """Participants first, nodes last: the other way round at the end."""
    children: list[ChildProcess] = []
    local: LocalCluster | None = None
    try:
        participants = settings.participants
        started: tuple[str, ...] = ()
        if not participants:
            participants, started = await _start_participants(settings, directory, children)
        processes = {child.name: child.pid for child in children if child.pid is not None}
        if settings.nodes:
            nodes = {url: url for url in settings.nodes}
        else:
            local = _local_cluster(settings, directory)
            await local.up()
            nodes = {name: local.url(name) for name in local.node_ids}
            processes = {name: local.pid(name) for name in local.node_ids} | processes
        yield _Place(directory, nodes, participants, started, processes, local)
    finally:
        if local is not None:
            await local.down()
        for child in children:
            child.signal(SIGTERM)
        await asyncio.gather(*(child.ended(_END_S) for child in children))
        for child in children:
            child.signal(SIGKILL)


def _local_cluster(settings: BenchSettings, directory: Path) -> LocalCluster:
    names = [f"n{number}" for number in range(1, settings.node_count + 1)]
    return LocalCluster(
        directory / "cluster",
        nodes=settings.node_count,
        find_ports=True,
        fsync=not settings.no_fsync,
        services=(),
        arguments=dict.fromkeys(names, ("--log-level", settings.log_level)),
    )


async def _start_participants(
    settings: BenchSettings, directory: Path, children: list[ChildProcess]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(URLs of the participants of a transaction, URLs of the processes that they are in)."""
    wanted = settings.participants_per_transaction
    processes = min(settings.participant_processes, wanted)
    names = tuple(f"participants{number or ''}" for number in range(processes))
    ports = free_ports((), names).services
    urls = []
    for index, name in enumerate(names):
        count = len(range(index, wanted, processes))
        command = [sys.executable, "-m", "participants", "bench", "--log-level", "warning"]
        command += ["--port", str(ports[name]), "--count", str(count)]
        if settings.store == "sqlite":
            command += ["--data-dir", str(directory / name)]
        command += ["--plain"] if settings.plain else []
        command += ["--no-batches"] if settings.no_batches else []
        child = ChildProcess(name, command, directory / f"{name}.log")
        child.start()
        children.append(child)
        urls += [f"http://{HOST}:{ports[name]}/{number}" for number in range(1, count + 1)]
    started = tuple(f"http://{HOST}:{ports[name]}" for name in names)
    for child, url in zip(children, started, strict=True):
        await _answers(child, url)
    return tuple(urls), started


async def _answers(child: ChildProcess, url: str) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + 30
    async with aiohttp.ClientSession() as session:
        while loop.time() < until:
            if not child.running:
                raise BenchError(f"{child.name} ended while it started: {child.last_lines(1)}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.05)
    raise BenchError(f"{child.name} does not answer at {url}; see {child.log}")


# --- load ---------------------------------------------------------------------------------------


async def _fill(settings: BenchSettings, place: _Place) -> None:
    """Have the cluster finish as many transactions as it shall remember."""
    load = Load(
        tuple(place.nodes.values()),
        place.participants,
        clients=_FILL_CLIENTS,
        batch=min(_FILL_BATCH, settings.remembered),
        warm_up_s=0.0,
        most=settings.remembered,
        seed=0,
    )
    process = await _start_load(load)
    await _line(process, _SPARE_S)
    tally = await _line(process, _SPARE_S + settings.remembered / 100)
    await _leave(process)
    if tally["wrong"] or tally["failed"]:
        raise BenchError(f"filling failed: {tally['first_wrong'] or tally}")


async def _measured(settings: BenchSettings, place: _Place) -> Result:
    per_process = max(1, settings.clients // settings.load_processes)
    loads = [
        Load(
            tuple(place.nodes.values()),
            place.participants,
            clients=per_process,
            rate=settings.rate / settings.load_processes,
            batch=settings.batch,
            no_share=settings.no_share,
            read_only_share=settings.read_only_share,
            payload_bytes=settings.payload_bytes,
            warm_up_s=settings.warm_up,
            seconds=settings.seconds,
            seed=number,
        )
        for number in range(1, settings.load_processes + 1)
    ]
    processes = [await _start_load(load) for load in loads]
    try:
        await asyncio.gather(*(_line(p, settings.warm_up + _SPARE_S) for p in processes))
        pids = dict(place.processes)
        for number, process in enumerate(processes):
            pids[f"load{number or ''}"] = process.pid
        before, told_before = usage(pids), await _metrics(place)
        tallies = await asyncio.gather(*(_line(p, settings.seconds + _SPARE_S) for p in processes))
        after, told_after = usage(pids), await _metrics(place)
        await asyncio.gather(*(_leave(process) for process in processes))
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()
    result = figures(merge(tallies), before, after)
    result["nodes"] = {
        name: _node_figures(told_before[name], told_after[name]) for name in told_after
    }
    result["leader"] = next((n for n, told in told_after.items() if told.get(_LEADING)), None)
    return result


async def _start_load(load: Load) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cluster.bench.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=_OWN_ENVIRONMENT,
        limit=1 << 24,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
    await process.stdin.drain()
    return process


async def _line(process: asyncio.subprocess.Process, timeout: float) -> Any:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout):
            line = await process.stdout.readline()
    except TimeoutError:
        raise BenchError(f"the load said nothing for {timeout:.0f} s") from None
    if not line:
        raise BenchError("the load ended before its time; what it wrote is above")
    return json.loads(line)


async def _leave(process: asyncio.subprocess.Process) -> None:
    """It lives until now, so that what it used could be read."""
    assert process.stdin is not None
    process.stdin.close()
    await process.wait()


# --- what it cost -------------------------------------------------------------------------------


def usage(pids: Mapping[str, int]) -> dict[str, Usage]:
    """CPU and memory of each process, as the system counts them; Linux only."""
    tick = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    found = {}
    for name, pid in pids.items():
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / tick if fields else 0.0
        memory = _read(f"/proc/{pid}/statm").split()
        found[name] = Usage(cpu_s, int(memory[1]) * page if memory else 0)
    return found


_LEADING = "assent_leading"
_SYNCS = "assent_journal_syncs_total"
_LAG = re.compile(r'assent_loop_lag_seconds_bucket\{le="([^"]+)"\}')


async def _metrics(place: _Place) -> dict[str, dict[str, float]]:
    """What each node says in /metrics, by name and labels."""
    told = {}
    async with aiohttp.ClientSession() as session:
        for name, url in place.nodes.items():
            async with session.get(f"{url}/metrics") as response:
                text = await response.text()
            lines = [line.rpartition(" ") for line in text.splitlines() if line[:1] != "#"]
            told[name] = {metric: float(value) for metric, _, value in lines}
    return told


def _node_figures(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Loop lag as the upper end of a bucket, in milliseconds; the number of journal syncs."""
    buckets = []
    for metric, value in after.items():
        if match := _LAG.fullmatch(metric):
            buckets.append((float(match[1]), value - before.get(metric, 0.0)))
    total = buckets[-1][1] if buckets else 0.0
    p99 = next((upper for upper, count in buckets if count >= 0.99 * total), 0.0)
    most = next((upper for upper, count in buckets if count >= total), 0.0)
    return {
        "loop_lag_p99_ms": p99 * 1000,
        "loop_lag_max_ms": most * 1000,
        "syncs": int(after.get(_SYNCS, 0.0) - before.get(_SYNCS, 0.0)),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


# --- whether it was right -----------------------------------------------------------------------


async def _wrongs(result: Result, place: _Place) -> list[str]:
    """What contradicts atomicity, a sentence each; waits until the participants have settled."""
    counts = result["transactions"]
    wrongs = []
    if counts["wrong"]:
        wrongs.append(f"{counts['wrong']} answers were wrong, the first: {result['first_wrong']}")
    if counts["failed"]:
        wrongs.append(f"{counts['failed']} transactions were never answered")
    if not place.started:
        return wrongs
    open_branches = 0
    for _ in range(round(_SETTLE_S / _LOOK_EVERY_S)):
        open_branches = await _open_branches(place.started)
        if not open_branches:
            return wrongs
        await asyncio.sleep(_LOOK_EVERY_S)
    wrongs.append(f"{open_branches} branches are prepared and not ended after {_SETTLE_S:.0f} s")
    return wrongs


async def _open_branches(urls: Sequence[str]) -> int:
    still = 0
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/") as response:
                shown = await response.json()
            for ends in shown["participants"].values():
                still += abs(ends["prepared"] - ends["committed"] - ends["rolled_back"])
    return still
