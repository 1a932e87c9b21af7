"""The machines of one run, what is started on them, how they die, and the history they write.

A `Host` is a machine with a clock and a program that a supervisor starts again after every end of
it. Everything random comes from streams named after their use, so that a draw more in one does not
change the others.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import traceback
import zlib
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import copy_context
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from cluster.errors import DiskFailed, StorageError
from cluster.node import Node
from cluster.raft.proposals import ProposalLimits
from cluster.raft.replica import ReplicaLimits
from cluster.raft.syncing import QUICK_S
from cluster.settings import (
    Address,
    ClusterSettings,
    LogSettings,
    NodeSettings,
    RaftTimings,
    Retention,
    Timings,
)
from cluster.storage.directory import Identity, open_directory
from coordinator.settings import Limits
from participants.inquiry import InquirySettings
from participants.interactive import EnlistSettings
from participants.sdk import ParticipantSettings
from tests.simulation.disk import SimDisk
from tests.simulation.environment import Environment
from tests.simulation.loop import PROCESS, Process, SimLoop
from tests.simulation.manners import Front
from tests.simulation.network import Machine, SimNetwork
from tests.simulation.services import PlainService, SdkService, SimStore

EPOCH_MS = 1_750_000_000_000
"""The wall clock at the beginning of every run."""
DIRECTORY = Path("/node")
RAFT_PORT, API_PORT, SERVICE_PORT = 7100, 8100, 9000
CLUSTER = "simulated"
LITTLE_ROOM = Limits(unfinished=12, unfinished_per_participant=8, calls_per_participant=2)
LITTLE_WAITS = ProposalLimits(waiting_commands=6, group_commands=3, group_bytes=1_000)

STEADY_MS = {"": 1, "leader": 1_500, "all": 600_000}
"""Of one wrong clock others tell, but not before they are heard of again. Of all it is told by its
having been set alone; where none is wrong by much, what is old is to be forgotten."""

Watch = Callable[[str, dict[str, Any]], None]
"""Told of an event of history: its name, and its fields."""


class PowerCut(BaseException):
    """The process died in a disk operation."""


class Host(Machine):
    """A machine, its clock, and the program on it."""

    def __init__(self, world: World, name: str, address: str) -> None:
        super().__init__(name, address)
        self.world = world
        self.process: Process | None = None
        self.starts = 0
        self.offset_ms = 0.0
        self.rate = 1.0
        self.retired = False
        """Nobody starts it again: its disk is damaged, and an operator would replace it."""

    def now_ms(self) -> int:
        return EPOCH_MS + int(self.offset_ms + self.world.loop.now * 1000 * self.rate)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.alive

    async def main(self, process: Process) -> int:
        """The program: its exit code."""
        raise NotImplementedError

    def crashed(self, *, power: bool) -> None:
        """What its storage makes of the end."""

    def start(self) -> None:
        if self.runs or self.retired:
            return
        world = self.world
        self.has_power = True
        self.starts += 1
        process = self.process = Process(self.name, self.starts, self)
        context = copy_context()
        context.run(PROCESS.set, process)
        world.record("started", host=self.name, start=self.starts)
        world.keep(world.loop.create_task(self._supervised(process), context=context))

    async def _supervised(self, process: Process) -> None:
        code, why = 2, ""
        try:
            code = await self.main(process)
        except (StorageError, OSError) as error:
            why = f"{type(error).__name__}: {error}"
        except Exception as error:
            code, why = 70, f"{type(error).__name__}: {error}"
            self.world.keep_error(error)
        if process.alive:
            self.ended(code, why)

    def ended(self, code: int, why: str) -> None:
        self.world.record("exited", host=self.name, start=self.starts, code=code, why=why)
        self.die(power=False, again_s=0.2 + self.world.draw("restart").random())

    def die(self, *, power: bool, again_s: float | None) -> None:
        """The program ends here and now; again after `again_s`, None: not by itself."""
        process, world = self.process, self.world
        if process is None or not process.alive:
            return
        process.alive = False
        process.deferred = []
        world.has_dead = True
        self.hang_up(process, silently=power, draw=world.draw("hang up"))
        self.has_power = not power
        self.crashed(power=power)
        if again_s is not None:
            world.network.later(world.loop.now + again_s, self.start)

    def lose_power(self) -> None:
        """The machine, on which nothing runs now."""
        assert not self.runs
        self.world.count("power losses of what had ended")
        self.has_power = False
        self.crashed(power=True)


class NodeHost(Host):
    """A node of the cluster."""

    def __init__(self, world: World, name: str, address: str) -> None:
        super().__init__(world, name, address)
        self.disk = SimDisk()
        self.disk.before = self._before_operation
        self.node: Node | None = None
        self.bootstrapped = False
        self.full = False
        self.sick = False
        """Its disk takes what is written, and does not sync it."""
        self.slow_s = 0.0
        self.is_closed = True
        """Its node has ended in order, or never ran."""
        self.written: list[tuple[int, int]] = []
        """Index and term of entries that its node has written since its last sync began."""
        self.synced: dict[int, int] = {}
        """By index, the term of the entry that was synced there last."""
        self._reached: set[str] = set()
        self.rotten = ""
        """What is wrong with its disk, since a fault made it so."""
        self.settings = NodeSettings(
            name,
            Address(address, API_PORT),
            Address(address, RAFT_PORT),
            Address(address, API_PORT),
            Address(address, RAFT_PORT),
        )

    async def main(self, process: Process) -> int:
        world = self.world
        self.is_closed = False
        identity = Identity.of(CLUSTER, self.name, (node.id for node in world.settings.nodes))
        environment = world.environment
        directory = open_directory(
            DIRECTORY,
            identity,
            bootstrap=not self.bootstrapped,
            disk=self.disk,
            random=Random(f"{environment.seed} {self.name} {process.number} birth"),
        )
        self.bootstrapped = True
        every = environment.snapshot_every[world.nodes.index(self)]
        self.node = Node(
            replace(world.settings, log=LogSettings(every)),
            self.name,
            directory=directory,
            disk=self.disk,
            fsync=environment.syncs,
            now_ms=self.now_ms,
            random=Random(f"{environment.seed} {self.name} {process.number}"),
            replica_limits=ReplicaLimits(
                proposals=replace(
                    LITTLE_WAITS if environment.cramped else ProposalLimits(),
                    groups_under_way=environment.groups_under_way,
                ),
                core=environment.core,
            ),
        )
        self.node._journal._segment_bytes = environment.segment_bytes
        is_slow = environment.sync_mean_s >= QUICK_S  # a job in place takes no time here
        syncs = self.node.replica.syncs
        syncs.quick_s = 0.0 if is_slow else math.inf
        syncs.leader_quick_s = 0.0 if is_slow or environment.seed % 2 else math.inf
        journal = self.node._journal
        self.written, self.synced = [], {index: term for _, index, term in journal[:]}
        last = journal.last_index
        world.record("recovered", node=self.name, start=process.number, last=last)
        return await self.node.run()

    def ended(self, code: int, why: str) -> None:
        if self.node is not None and self.node.replica.fatal is not None:
            why = f"{type(self.node.replica.fatal).__name__}: {self.node.replica.fatal}"
        if self.rotten and not self.full and code:
            self.retired = True  # as it should: it says that it is damaged
        self.is_closed = code == 0
        super().ended(code, why)

    def crashed(self, *, power: bool) -> None:
        for other in self.world.nodes:
            self.has_reached(other)
        self.node = None
        if power:
            self.disk.lose_power(self.world.draw("power"))
        else:
            self.disk.kill()

    def wipe(self, *, bootstrap: bool) -> None:
        """Its directory is lost while it is down; `bootstrap`: whether it is started as if new."""
        self.disk = SimDisk()
        self.disk.before = self._before_operation
        self.bootstrapped = not bootstrap
        self.rotten = "wiped"

    def has_reached(self, other: NodeHost) -> bool:
        """Whether its node knows that one, or did when it last ended."""
        if self.node is not None and self.node.replica.transport.handshakes.knows(other.name):
            self._reached.add(other.name)
        return other.name in self._reached

    def may_have_synced(self, index: int, term: int) -> bool:
        """Surely not only if it runs, is as it should be, and no sync of its has covered it. Not by
        what the node itself believes of that.
        """
        core = self.node.replica._core if self.node is not None else None
        if core is None or self.damaged or core.journal.failed is not None:
            return True
        return index < core.journal.first_index or self.synced.get(index) == term

    @property
    def bears_power_loss(self) -> bool:
        """Whether all that it has promised is there after one, or it says that it is not."""
        return not self.damaged and (self.world.environment.syncs or self.is_closed)

    @property
    def damaged(self) -> bool:
        """Whether its disk has done, or is about to do, what disks do not."""
        return bool(self.rotten) or self.disk.wrong is not None

    def _before_operation(self, operation: str, path: Path) -> None:
        process = PROCESS.get()
        if process is None or not process.alive or process is not self.process:
            raise PowerCut
        world = self.world
        if self.full and operation in ("write", "create", "make"):
            raise DiskFailed(operation, path, "No space left on device")
        if operation == "sync":
            if self.sick:
                world.count("syncs that failed")
                raise DiskFailed(operation, path, "Input/output error")
            world.happened(operation, self)
        point = world.environment.crash_point
        if point and world.faulty and world.draw("crash point").random() < point:
            power = world.draw("crash point").random() < 0.5 and world.environment.syncs
            world.record("fault", kind="crash point", target=self.name, operation=operation)
            world.count("crash points")
            world.down(self, power=power)
            raise PowerCut


class ServiceHost(Host):
    """A participant."""

    def __init__(self, world: World, name: str, address: str, kind: str) -> None:
        super().__init__(world, name, address)
        self.kind = kind
        self.store = SimStore()
        self.program: SdkService | PlainService | None = None
        self.url = f"http://{address}:{SERVICE_PORT}"

    async def main(self, process: Process) -> int:
        world, environment = self.world, self.world.environment
        random = Random(f"{environment.seed} {self.name} {process.number}")

        def note(event: str, **fields: Any) -> None:
            if process.alive:
                world.record(event, participant=self.name, **fields)

        self.store.note = note
        if self.kind == "sdk":
            settings = ParticipantSettings(
                grace_ms=environment.grace_ms,
                tombstones_kept_ms=environment.tombstones_ms,
                sweep_every_s=1.0 if environment.brief else 600.0,
                inquiry=InquirySettings(
                    first_after_s=environment.inquiry_after_s, max_delay_s=3.0, timeout_s=2.0
                ),
                enlist=self._enlisting() if environment.interactive else None,
            )
            self.program = SdkService(
                self.store,
                settings,
                now_ms=self.now_ms,
                random=random,
                manners=environment.manners,
            )
        else:
            remembers = self.kind == "plain"
            self.program = PlainService(
                self.store,
                now_ms=self.now_ms,
                remembers=remembers,
                random=Random(f"working {environment.seed} {self.name} {process.number}"),
                manners=environment.manners,
                faulty=lambda: world.faulty,
                count=world.count,
            )
        application = self.program.application()
        front = Front(
            environment.manners,
            Random(random.getrandbits(48)),
            is_plain=self.kind != "sdk",
            faulty=lambda: world.faulty,
            count=world.count,
        )
        front.stand_before(application)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        await web.TCPSite(runner, self.address, SERVICE_PORT).start()
        await asyncio.get_running_loop().create_future()
        return 0

    def _enlisting(self) -> EnlistSettings:
        nodes = tuple(node.settings.api.url for node in self.world.nodes)
        return EnlistSettings(nodes, self.url, self.name, timeout_s=4.0, try_s=1.0)

    def replay(self, count: int) -> None:
        """Let some of what it has received come again."""
        youngest_s = self.world.environment.tombstones_ms / 4_000
        if self.program is not None:
            self._let(self.program.replay, self.world.draw("replay"), count, youngest_s)

    def end_by_hand(self, id: str, branch: str, *, commit: bool) -> None:
        """Somebody ends a prepared branch here, and is not the coordinator."""
        if self.program is not None:
            self._let(self.program.end_by_hand, id, branch, commit=commit)

    def _let(self, do: Callable[..., Coroutine[Any, Any, None]], *what: Any, **named: Any) -> None:
        """Let its program, if it runs, do something that no call has asked for."""
        if self.process is None or not self.process.alive:
            return
        context = copy_context()
        context.run(PROCESS.set, self.process)
        self.world.keep(self.world.loop.create_task(do(*what, **named), context=context))


class ClientHost(Host):
    """A program that uses the client library."""

    def __init__(
        self, world: World, name: str, address: str, load: Callable[[ClientHost], Awaitable[None]]
    ) -> None:
        super().__init__(world, name, address)
        self._load = load
        self.is_done = False

    async def main(self, process: Process) -> int:
        del process
        await self._load(self)
        self.is_done = True
        self.retired = True
        return 0


class World:
    """Everything of one run."""

    def __init__(self, environment: Environment, *, verbose: bool = False) -> None:
        self.environment = environment
        self.verbose = verbose
        self.faulty = False
        self.has_dead = False
        """Some program has ended: its tasks never will, and are told of when nobody keeps them."""
        self.raging = asyncio.Event()
        """The time of faults and load has begun."""
        self.led = asyncio.Event()
        """There was a first leader."""
        self.history: list[dict[str, Any]] = []
        self.counts: dict[str, int] = {}
        self.errors: list[BaseException] = []
        self._draws: dict[str, Random] = {}
        self._kept: list[object] = []
        self._hash = hashlib.blake2b(digest_size=8)
        self.loop = SimLoop(self.draw("threads"))
        self.loop.thread_mean_s = environment.sync_mean_s
        self.loop.set_exception_handler(self._unhandled)
        self.network = self.loop.network = SimNetwork(self.loop, self.draw("network"))
        self.network.weather = environment.weather
        self.nodes = [
            NodeHost(self, f"n{i}", f"127.0.1.{i}") for i in range(1, environment.nodes + 1)
        ]
        self.services = [
            ServiceHost(self, f"p{i}", f"127.0.2.{i}", kind)
            for i, kind in enumerate(environment.kinds, 1)
        ]
        self.clients: list[ClientHost] = []
        self.watch: Watch | None = None
        """Told of every event of history: for faults that wait for their moment."""
        self.hunt: Watch | None = None
        """Told of every event, too: of the faults that go on as long as there are any."""
        self.asleep: NodeHost | None = None
        """A leader that was put to sleep, and has just woken up or soon will: one to ask."""
        self.healing: list[Callable[[], None]] = []
        """What ends the faults that such a moment began, those that go on."""
        self.settings = ClusterSettings(
            CLUSTER,
            tuple(node.settings for node in self.nodes),
            limits=LITTLE_ROOM if environment.cramped else Limits(),
            timings=Timings(
                call_timeout_ms=environment.call_timeout_ms,
                retry_max_ms=environment.retry_max_ms,
                grace_ms=environment.grace_ms,
            ),
            raft_timings=RaftTimings(
                environment.heartbeat_ms, environment.election_min_ms, environment.election_max_ms
            ),
            retention=Retention(
                keep_ms=environment.keep_ms,
                max_remembered=environment.most_remembered,
                steady_ms=STEADY_MS[environment.nodes_ahead],
            ),
        )
        clocks = self.draw("clocks")
        for host in [*self.nodes, *self.services]:
            host.rate = 1 + clocks.uniform(-1, 1) * environment.clock_rate
            host.offset_ms = clocks.uniform(-1, 1) * environment.clock_offset_ms
        for host in self.hosts:
            self.network.add(host)

    @property
    def hosts(self) -> list[Host]:
        return [*self.nodes, *self.services, *self.clients]

    def host(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    def draw(self, use: str) -> Random:
        """The stream of this use."""
        stream = self._draws.get(use)
        if stream is None:
            stream = self._draws[use] = Random(f"{self.environment.seed} {use}")
        return stream

    def keep(self, thing: object) -> None:
        """Until the run is over: a dead task that is collected would run its `finally`s."""
        self._kept.append(thing)

    def keep_error(self, error: BaseException) -> None:
        self.keep(error)
        self.errors.append(error)

    def down(self, host: Host, *, power: bool) -> None:
        """Kill -9 or power loss, and a supervisor that starts it again after a while."""
        draw = self.draw("restart")
        again_s = draw.choice((0.05, 0.3, 1.0, 3.0)) * (0.5 + draw.random())
        self.count("power losses" if power else "kills")
        host.die(power=power, again_s=again_s)

    def leader(self) -> NodeHost | None:
        """A node that takes itself for the leader, the newest one."""
        found: NodeHost | None = None
        highest = -1
        for host in self.nodes:
            node = host.node
            epoch = node.replica.epoch if host.runs and node is not None else None
            if epoch is not None and epoch > highest:
                found, highest = host, epoch
        return found

    # --- history

    def record(self, event: str, **fields: Any) -> None:
        """One event, as `tests/checker.py` describes them."""
        line = {"event": event, "at": round(self.loop.now, 6), **fields}
        self.history.append(line)
        self._hash.update(repr(line).encode())
        if self.verbose:
            rest = " ".join(f"{name}={value}" for name, value in fields.items())
            print(f"{self.loop.now:10.4f} {event:10} {rest}")
        if self.watch is not None:
            self.watch(event, line)
        if self.hunt is not None:
            self.hunt(event, line)

    def happened(self, what: str, host: Host) -> None:
        """Something that is no event of history: for faults that wait for it."""
        if self.watch is not None:
            self.watch(what, {"host": host})

    def count(self, what: str, by: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + by

    @property
    def trace(self) -> str:
        """Of the history so far."""
        return self._hash.hexdigest()

    def applied(self, node: str, start: int, index: int, command: bytes, synced_on: int) -> None:
        digest = zlib.crc32(command)
        self.record(
            "applied", node=node, start=start, index=index, digest=digest, synced_on=synced_on
        )

    def synced_on(self, index: int, term: int) -> int:
        """How many nodes may have this entry on their disks."""
        return sum(host.may_have_synced(index, term) for host in self.nodes)

    def became_leader(self, node: str, term: int) -> None:
        self.record("leader", node=node, term=term)
        self.count("leaderships")
        self.led.set()

    def _unhandled(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, PowerCut) or (error is None and self.has_dead):
            return
        if error is not None:
            self.keep_error(error)
            if _is_of_a_lost_connection(error):
                self.count("requests of lost connections")
                return
            if self.verbose:
                traceback.print_exception(error)
        self.record("unhandled", message=context.get("message", "")[:100], error=repr(error)[:200])


def _is_of_a_lost_connection(error: BaseException) -> bool:
    """aiohttp's own, and harmless: of a server's connection that was lost before the task that
    serves it had its first turn, or between a request's arrival and the next one.
    """
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return (
        last is not None
        and isinstance(error, AssertionError | TypeError)
        and last.tb_frame.f_code is RequestHandler.start.__code__
        and last.tb_frame.f_locals["self"]._manager is None
    )
