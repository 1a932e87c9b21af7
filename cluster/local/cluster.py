"""A whole cluster on this machine: nodes and sample services as processes, in one directory.

    DIR/lock            held while the processes run: one owner at a time
    DIR/cluster.toml    written at the first start, then kept: name, addresses, and what people add
    DIR/services.json   the ports of the sample services
    DIR/bootstrapped    the nodes have come up once: from then on an empty node directory is refused
    DIR/n1 ...          each node's journal and snapshots
    DIR/profile ...     each service's database
    DIR/logs/n1.log     what each process wrote; once it is large it is set aside as n1.old

Rules. Nothing is written before all ports are known to be free. No process outlives this one.
`kill`, `stop`, `cont` and `start` do to one process what a bad day does: they are what
demonstrations and tests are made of, and return when it has happened. Start it from a thread that
lives as long as the processes shall (`cluster.local.child_process` says why).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import Any, TextIO

import aiohttp

from cluster.local.child_process import ChildProcess
from cluster.local.directory import (
    LocalClusterError,
    moved_toml,
    new_toml,
    take_lock,
    write_whole,
)
from cluster.local.ports import HOST, Ports, default_ports, free_ports, ports_at, refuse_busy
from cluster.settings import ClusterSettings, load_settings

__all__ = ["SERVICES", "LocalCluster", "LocalClusterError"]

SERVICES = ("profile", "inventory", "activity")

_READY_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
"""A node that drains gives up leadership and finishes what is under way; after this it is
killed."""
_LOG_BYTES = 64 << 20
"""Of a process, and as much again set aside. A node writes seven lines for each transaction."""
_ASK_TIMEOUT_S = 1.0
_POLL_S = 0.05


class LocalCluster:
    """See the top of the file. `up` and `down`, or `async with`.

    `nodes`: how many, for a new directory; on one that exists another number is refused.
    `base_port`: moves all ports (`cluster.local.ports`); `find_ports`: a new directory gets free
    ones.
    `settings`: sections added to a new `cluster.toml`. `arguments`: added to a process's command.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        nodes: int | None = None,
        base_port: int | None = None,
        find_ports: bool = False,
        fsync: bool = True,
        services: Sequence[str] = SERVICES,
        settings: str = "",
        arguments: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.services = tuple(services)
        self._wanted = nodes
        self._base_port = base_port
        self._find_ports = find_ports
        self._fsync = fsync
        self._more_settings = settings
        self._arguments = dict(arguments or {})
        self._lock: TextIO | None = None
        self._settings: ClusterSettings | None = None
        self._service_ports: dict[str, int] = {}
        self._processes: dict[str, ChildProcess] = {}
        self._expected: set[str] = set()

    async def __aenter__(self) -> LocalCluster:
        await self.up()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.down()

    # --- the whole ------------------------------------------------------------------------------

    async def up(self) -> None:
        """Start everything and wait until it is ready.

        Raises LocalClusterError, SettingsError, PortBusyError; nothing runs then.
        """
        try:
            if not self.data_dir.exists():
                refuse_busy(self._new_ports())  # before anything is made
            self._lock = take_lock(self.data_dir)
            self._prepare()
            new = not self._marker.exists()
            for name in (*self.services, *self.node_ids):
                more = ("--bootstrap",) if new and name in self.node_ids else ()
                self._launch(name, *more)
            for name in (*self.services, *self.node_ids):
                await self.wait_ready(name)
            self._marker.touch()
        except BaseException as error:
            await self.down()
            if isinstance(error, OSError):
                what = error.strerror or error
                raise LocalClusterError(f"cannot use {self.data_dir}: {what}") from None
            raise

    async def down(self) -> None:
        """Stop everything: nodes first, for what is under way needs the services."""
        try:
            await self._end(self.node_ids if self._settings else ())
            await self._end(self.services)
        finally:
            for process in self._processes.values():
                process.signal(SIGKILL)
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    @property
    def settings(self) -> ClusterSettings:
        assert self._settings is not None, "not up yet"
        return self._settings

    @property
    def config(self) -> Path:
        return self.data_dir / "cluster.toml"

    @property
    def node_ids(self) -> tuple[str, ...]:
        return tuple(node.id for node in self.settings.nodes)

    @property
    def node_urls(self) -> tuple[str, ...]:
        return tuple(node.api.url for node in self.settings.nodes)

    def ended_unasked(self) -> list[str]:
        """The processes that ended though nobody here ended them; each is told once."""
        gone = [name for name in sorted(self._expected) if not self._processes[name].running]
        self._expected.difference_update(gone)
        return gone

    def bound_logs(self) -> None:
        """Set aside what has grown large; to be called now and then."""
        for process in self._processes.values():
            process.bound_log(_LOG_BYTES)

    # --- one process ----------------------------------------------------------------------------

    def url(self, name: str) -> str:
        """Where a node serves its API, or a service its participant."""
        if name in self._service_ports:
            return f"http://{HOST}:{self._service_ports[name]}"
        return self.settings.node(name).api.url

    def pid(self, name: str) -> int:
        pid = self._processes[name].pid
        assert pid is not None
        return pid

    def running(self, name: str) -> bool:
        return self._processes[name].running

    def exit_code(self, name: str) -> int | None:
        """Negative: the signal that ended it. None: it runs."""
        return self._processes[name].exit_code

    def log(self, name: str) -> Path:
        return self._processes[name].log

    def command(self, name: str) -> tuple[str, ...]:
        """What starts that process by hand."""
        return self._processes[name].command

    async def kill(self, name: str) -> None:
        """kill -9."""
        await self._end_one(name, SIGKILL)

    async def terminate(self, name: str) -> int:
        """SIGTERM; returns the exit code. Raises LocalClusterError if it does not end in time."""
        await self._end_one(name, SIGTERM)
        code = self.exit_code(name)
        assert code is not None
        return code

    def stop(self, name: str) -> None:
        """SIGSTOP: alive, holding its connections, saying nothing."""
        self._processes[name].signal(SIGSTOP)

    def cont(self, name: str) -> None:
        """SIGCONT."""
        self._processes[name].signal(SIGCONT)

    async def start(self, name: str, *, wait: bool = True) -> None:
        """Start a process that has ended, and wait until it is ready."""
        self._launch(name)
        if wait:
            await self.wait_ready(name)

    async def wait_ready(self, name: str) -> None:
        """A node: it says so. A service: it answers. Raises LocalClusterError."""
        process = self._processes[name]
        path = "/readyz" if name in self.node_ids else "/healthz"  # where nothing is counted
        loop = asyncio.get_running_loop()
        until = loop.time() + _READY_TIMEOUT_S
        async with aiohttp.ClientSession() as session:
            while loop.time() < until:
                if not process.running:
                    raise LocalClusterError(
                        f"{name} ended with exit code {process.exit_code} while it started:"
                        f" {process.last_lines(1)} (all of it: {process.log})"
                    )
                status, _ = await _ask(session, self.url(name) + path)
                if status == 200 or (status is not None and name in self.services):
                    return
                await asyncio.sleep(_POLL_S)
        late = f"{name} is not ready after {_READY_TIMEOUT_S:.0f} s"
        raise LocalClusterError(f"{late}; see {process.log}")

    async def leader(self) -> str | None:
        """The node that says that it leads, of the highest term; None when nobody does."""
        async with aiohttp.ClientSession() as session:
            urls = [f"{self.url(name)}/v1/cluster" for name in self.node_ids if self.running(name)]
            answers = await asyncio.gather(*(_ask(session, url) for url in urls))
        leaders = [
            (answer.get("term") or 0, answer["self"])
            for status, answer in answers
            if status == 200 and answer.get("leader") == answer["self"]
        ]
        return max(leaders)[1] if leaders else None

    async def wait_leader(self, *, other_than: str | None = None) -> str:
        """The leader's id, as soon as there is one that is not `other_than`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _READY_TIMEOUT_S
        while loop.time() < until:
            leader = await self.leader()
            if leader is not None and leader != other_than:
                return leader
            await asyncio.sleep(_POLL_S)
        waited = f"no leader after {_READY_TIMEOUT_S:.0f} s"
        raise LocalClusterError(f"{waited}; the logs are in {self._logs}")

    async def ask(self, name: str, path: str) -> Any:
        """Decoded JSON of a GET; raises LocalClusterError when there is none."""
        async with aiohttp.ClientSession() as session:
            status, answer = await _ask(session, self.url(name) + path, timeout=10.0)
        if status != 200:
            raise LocalClusterError(f"{self.url(name)}{path} answered {status}")
        return answer

    # --- within ---------------------------------------------------------------------------------

    @property
    def _logs(self) -> Path:
        return self.data_dir / "logs"

    @property
    def _marker(self) -> Path:
        return self.data_dir / "bootstrapped"

    def _prepare(self) -> None:
        """Settings, ports and processes, from the directory or new."""
        known = self.config.exists()
        ports = self._known_ports() if known else self._new_ports()
        refuse_busy(ports)
        if not known:
            write_whole(self.config, new_toml(ports) + self._more_settings)
        elif self._base_port is not None:
            write_whole(self.config, moved_toml(self.config.read_text(), self.settings, ports))
        self._settings = load_settings(self.config)
        self._service_ports = dict(ports.services)
        write_whole(self.data_dir / "services.json", json.dumps(self._service_ports) + "\n")
        self._logs.mkdir(exist_ok=True)
        self._processes = {
            name: ChildProcess(name, self._command(name), self._logs / f"{name}.log")
            for name in (*self.services, *self.node_ids)
        }

    def _new_ports(self) -> Ports:
        nodes = tuple(f"n{number}" for number in range(1, (self._wanted or 3) + 1))
        if self._base_port is not None:
            return ports_at(self._base_port, nodes, self.services)
        choose = free_ports if self._find_ports else default_ports
        return choose(nodes, self.services)

    def _known_ports(self) -> Ports:
        """Those that the directory says, or at `base_port` those for the same nodes."""
        self._settings = load_settings(self.config)
        if self._wanted not in (None, len(self.node_ids)):
            raise LocalClusterError(
                f"{self.data_dir} holds a cluster of {len(self.node_ids)} nodes, not"
                f" {self._wanted}; leave --nodes out, or give another --data-dir"
            )
        if self._base_port is not None:
            return ports_at(self._base_port, self.node_ids, self.services)
        try:
            recorded = json.loads((self.data_dir / "services.json").read_text())
        except (OSError, ValueError):
            recorded = {}
        usual = default_ports(self.node_ids, SERVICES).services
        return Ports(
            {node.id: node.api_bind.port for node in self.settings.nodes},
            {node.id: node.raft_bind.port for node in self.settings.nodes},
            {name: recorded.get(name, usual[name]) for name in self.services},
        )

    def _command(self, name: str) -> list[str]:
        directory = str(self.data_dir / name)
        if name in self.services:
            port = str(self._service_ports[name])
            command = [name, "--host", HOST, "--port", port, "--data-dir", directory]
            return [sys.executable, "-m", "participants", *command, *self._arguments.get(name, ())]
        command = ["node", name, "--config", str(self.config), "--data-dir", directory]
        if not self._fsync:
            command.append("--no-fsync")
        return [sys.executable, "-m", "cluster", *command, *self._arguments.get(name, ())]

    def _launch(self, name: str, *more: str) -> None:
        self._processes[name].start(*more)
        self._expected.add(name)

    async def _end_one(self, name: str, number: Signals) -> None:
        process = self._processes[name]
        self._expected.discard(name)
        process.signal(number)
        if not await process.ended(_STOP_TIMEOUT_S):
            late = f"{name} has not ended {_STOP_TIMEOUT_S:.0f} s after {number.name}"
            raise LocalClusterError(f"{late}; see {process.log}")

    async def _end(self, names: Sequence[str]) -> None:
        """SIGTERM to all of them, SIGKILL to those that do not end in time."""
        processes = [self._processes[name] for name in names if name in self._processes]
        self._expected.difference_update(names)
        for process in processes:
            process.signal(SIGTERM)
            process.signal(SIGCONT)  # a stopped one could not hear the first
        await asyncio.gather(*(process.ended(_STOP_TIMEOUT_S) for process in processes))
        for process in processes:
            process.signal(SIGKILL)
        await asyncio.gather(*(process.ended(_STOP_TIMEOUT_S) for process in processes))


async def _ask(
    session: aiohttp.ClientSession, url: str, timeout: float = _ASK_TIMEOUT_S
) -> tuple[int | None, Any]:
    """(status, decoded JSON); (None, None) when nobody answers."""
    try:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with session.get(url, timeout=limit) as response:
            body = await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return None, None
    try:
        return response.status, json.loads(body)
    except ValueError:
        return response.status, None
