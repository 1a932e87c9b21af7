"""What goes wrong on purpose: faults drawn one after the other, each healed after a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from tests.simulation.babble import babble
from tests.simulation.moments import Moments
from tests.simulation.ordeals import Ordeals
from tests.simulation.services import MAX_HEARD
from tests.simulation.strikes import Heal
from tests.simulation.world import RAFT_PORT, Host, NodeHost, World
from tests.simulation.wrong_clocks import WrongClocks

BRIEF_FAULT_S = 1.5
"""The longest fault where tombstones are kept only briefly: no end of a branch may outlive them."""

SOUND_SYNC_S = 0.05
"""The slowest disk on which leaders stay in office when nothing is wrong."""


async def rage(world: World) -> None:
    """Faults until the time for them is over, then all of them healed."""
    environment = world.environment
    draw = world.draw("nemesis")
    loop = world.loop
    until = loop.now + environment.faulty_s
    world.faulty = True
    world.raging.set()
    world.network.flips, world.network.flips_at = environment.flips, RAFT_PORT
    healing: list[tuple[float, int, Heal]] = []
    number = 0
    next_at = loop.now + draw.expovariate(1.0) * environment.fault_gap_s
    if not environment.faults:
        next_at = until
    _begin_later(world)
    while loop.now < until:
        wake_at = min([until, next_at, *(at for at, _, _ in healing)])
        await asyncio.sleep(max(0.0, wake_at - loop.now))
        for entry in [entry for entry in healing if entry[0] <= loop.now]:
            healing.remove(entry)
            entry[2]()
        if next_at <= loop.now < until:
            next_at = loop.now + draw.expovariate(1.0) * environment.fault_gap_s
            kind = draw.choice(environment.faults)
            heal = _Nemesis(world, draw).strike(kind)
            if heal is not None:
                number += 1
                lasts_s = draw.expovariate(1.0) * environment.fault_s
                if environment.brief:
                    lasts_s = min(lasts_s, BRIEF_FAULT_S)
                healing.append((loop.now + lasts_s, number, heal))
    world.faulty = False
    world.network.flips = 0.0
    world.watch = world.hunt = None
    for heal in [*(heal for _, _, heal in healing), *world.healing]:
        heal()
    world.healing.clear()
    for node in world.nodes:
        node.disk.wrong = None  # what it was still to do wrong
    world.asleep = None
    for host in world.hosts:
        host.offset_ms, host.rate = 0.0, 1.0
    world.network.weather = replace(world.network.weather, lost=0.0, reset=0.0)
    world.loop.thread_mean_s = min(world.loop.thread_mean_s, SOUND_SYNC_S)
    world.record("healed")


def _begin_later(world: World) -> None:
    """What a seed has one of, at its own time."""
    environment, draw = world.environment, world.draw
    for after_s, strike in (
        (environment.wiped_s, _Nemesis(world, draw("wipe")).wipe),
        (environment.unreadable_s, _Nemesis(world, draw("unreadable")).fail_reads),
        (environment.parted_s, _Nemesis(world, draw("parted")).part),
        (environment.services_ahead_s, WrongClocks(world, draw("ahead")).set_services),
    ):
        if after_s:
            world.network.later(world.loop.now + after_s, strike)
    if environment.ordeal:
        Ordeals(world, draw("ordeal")).begin(environment.ordeal)


class _Nemesis(Moments):
    """One strike. Each method returns how its fault ends, or None."""

    def strike(self, kind: str) -> Heal | None:
        self._world.count(kind)
        strikes: dict[str, Callable[[], Heal | None]] = {
            "kill": lambda: self._down(self._node(), power=False),
            "kill leader": lambda: self._down(self._leader(), power=False),
            "flap": lambda: self._flap(self._node(), self._draw.randint(2, 6)),
            "power": lambda: self._down(self._node(), power=True),
            "kill all": lambda: self._all_down(power=False),
            "power all": lambda: self._all_down(power=True),
            "terminate": self._terminate,
            "stop": lambda: self._stop(self._node()),
            "stop leader": lambda: self._stop(self._leader()),
            "suspend leader": self._suspend_leader,
            "isolate": lambda: self._isolate(self._node()),
            "isolate leader": lambda: self._isolate(self._leader()),
            "halves": self._halves,
            "one way": self._one_way,
            "bridge": self._bridge,
            "ring": self._ring,
            "reset": self._reset,
            "slow link": self._slow_link,
            "clock": self._clock,
            "full disk": self._full_disk,
            "rot": self._rot,
            "lost write": lambda: self._damage("lost write"),
            "misdirected write": lambda: self._damage("misdirected write"),
            "slow disk": self._slow_disk,
            "stall": self._stall,
            "elected": lambda: self._wait_for("leader"),
            "proposed": lambda: self._wait_for("prepare"),
            "voted": lambda: self._wait_for("vote"),
            "syncing": lambda: self._wait_for("sync"),
            "asleep": self._asleep,
            "contest": self._contest,
            "failing syncs": self._failing_syncs,
            "replay": self._replay,
            "nonsense": self._nonsense,
            "kill participant": lambda: self._down(self._any(self._world.services), power=False),
            "stop participant": lambda: self._stop(self._any(self._world.services)),
            "cut participant": self._cut_participant,
            "cut participant from leader": self._cut_participant_from_leader,
            "cut client": self._cut_client,
            "kill client": lambda: self._down(self._any(self._world.clients), power=False),
        }
        return strikes[kind]()

    def _flap(self, host: NodeHost, times: int) -> None:
        """Killed so many times, each time soon after the program was started."""
        if not self._world.faulty or not times:
            return
        if host.runs:
            self._say("kill", host.name)
            self._world.count("kills")
            host.die(power=False, again_s=0.02)
        lives_s = self._draw.choice((0.02, 0.1, 0.5)) * self._draw.random()
        at = self._world.loop.now + 0.02 + lives_s
        self._world.network.later(at, self._flap, host, times - 1)

    def _terminate(self) -> None:
        host = self._node()
        process = host.process
        if host.runs and host.node is not None and process is not None and not process.paused:
            self._say("terminate", host.name)
            host.node.stop()
            self._power_fails_soon(host)

    def _suspend_leader(self) -> Heal | None:
        """When it wakes up, what comes first may be a question, and nothing that tells the time."""
        leader = self._leader()
        wake = self._stop(leader)
        if wake is None:
            return None
        others = [other for other in self._world.hosts if other is not leader]
        mend = self._cut("suspend", leader.name, self._both([leader], others))

        def go_on() -> None:
            wake()
            mend()

        return go_on

    def _stall(self) -> Heal | None:
        """All stand still together; and perhaps one does not come back."""
        going_on = [heal for host in self._world.nodes if (heal := self._stop(host)) is not None]
        if self._draw.random() < 0.5:
            self._down(self._leader(), power=False)

        def go_on() -> None:
            for heal in going_on:
                heal()

        return go_on

    # --- the network

    def _isolate(self, host: Host) -> Heal:
        everybody = self._world.hosts if self._draw.random() < 0.5 else self._world.nodes
        others = [other for other in everybody if other is not host]
        return self._cut("isolate", host.name, self._both([host], others))

    def _halves(self) -> Heal:
        nodes = list(self._world.nodes)
        self._draw.shuffle(nodes)
        at = self._draw.randrange(1, len(nodes))
        near, far = nodes[:at], nodes[at:]
        others: list[Host] = [*self._world.services, *self._world.clients]
        # The rest of the world sees both halves, or only the one.
        sides = self._both(near, far)
        if self._draw.random() < 0.5:
            sides += self._both(near, others)
        return self._cut("halves", " ".join(node.name for node in near), sides)

    def _one_way(self) -> Heal:
        host = self._node()
        others = [node for node in self._world.nodes if node is not host]
        others = self._draw.sample(others, self._draw.randint(1, len(others)))
        pairs = [(host.name, other.name) for other in others]
        if self._draw.random() < 0.5:
            pairs = [(b, a) for a, b in pairs]
        return self._cut("one way", str(pairs), pairs)

    def _bridge(self) -> Heal:
        nodes = list(self._world.nodes)
        self._draw.shuffle(nodes)
        bridge, *rest = nodes
        half = len(rest) // 2
        return self._cut("bridge", bridge.name, self._both(rest[:half], rest[half:]))

    def _ring(self) -> Heal:
        """Each node sees its neighbours only: with five, every majority is another one."""
        nodes = self._world.nodes
        count = len(nodes)
        pairs = [
            (nodes[i].name, nodes[j].name)
            for i in range(count)
            for j in range(count)
            if (i - j) % count not in (0, 1, count - 1)
        ]
        return self._cut("ring", "all", pairs)

    def _reset(self) -> None:
        endpoints = self._world.network.endpoints()
        count = min(len(endpoints), self._draw.choice((1, 3, 1_000)))
        self._say("reset", str(count))
        for endpoint in self._draw.sample(endpoints, count):
            endpoint.reset()

    def _slow_link(self) -> Heal:
        a, b = self._draw.sample(self._world.hosts, 2)
        delays = self._world.network.delays
        self._say("slow link", f"{a.name} {b.name}")
        delays[a.name, b.name] = 0.0, self._draw.choice((0.05, 0.3, 2.0))

        def mend() -> None:
            delays.pop((a.name, b.name), None)

        return mend

    def _cut_participant(self) -> Heal:
        host = self._any(self._world.services)
        return self._cut("cut", host.name, self._both([host], self._world.nodes))

    def _cut_participant_from_leader(self) -> Heal:
        host, leader = self._any(self._world.services), self._leader()
        pairs = self._both([host], [leader])
        if self._draw.random() < 0.5:
            pairs = pairs[: len(pairs) // 2]
        return self._cut("cut", f"{host.name} {leader.name}", pairs)

    def _replay(self) -> Heal:
        """For a while, what participants have heard comes again; rather to those in doubt."""
        world, draw = self._world, self._draw
        self._say("replay", "begins")
        going_on = True

        def again() -> None:
            if not going_on:
                return
            doubtful = [host for host in world.services if host.store.in_doubt_now()]
            host = draw.choice(doubtful or world.services)
            host.replay(draw.choice((1, 5, MAX_HEARD)))
            world.network.later(world.loop.now + draw.choice((0.1, 0.5, 2.0)), again)

        def stop() -> None:
            nonlocal going_on
            going_on = False

        again()
        return stop

    def _nonsense(self) -> None:
        host = self._node()
        self._say("nonsense", host.name)
        babble(self._world, host)

    def _cut_client(self) -> Heal:
        host = self._any(self._world.clients)
        nodes = self._draw.sample(self._world.nodes, self._draw.randint(1, len(self._world.nodes)))
        return self._cut("cut", host.name, self._both([host], nodes))

    # --- clocks and disks

    def _clock(self) -> None:
        host = self._any([*self._world.nodes, *self._world.services])
        by_ms = self._draw.uniform(-1, 1) * self._world.environment.clock_jump_ms
        environment = self._world.environment
        most_ms = environment.clock_offset_ms + 2.0 * environment.clock_jump_ms
        if "forgetful" in environment.kinds:
            most_ms = environment.grace_ms / 2
        if abs(host.offset_ms + by_ms) > most_ms:
            return
        self._say("clock", f"{host.name} {by_ms:.0f} ms")
        host.offset_ms += by_ms

    def _full_disk(self) -> Heal | None:
        host = self._node()
        if host.full:
            return None
        self._say("full disk", host.name)
        host.full = True

        def mend() -> None:
            host.full = False

        return mend

    def _failing_syncs(self) -> Heal | None:
        """The node stops, again at each of its starts, and perhaps its machine soon after it: what
        it has acknowledged is there all the same.
        """
        host = self._node()
        if host.sick or host.damaged:
            return None
        self._say("failing syncs", host.name)
        host.sick = True
        self._power_fails_soon(host)

        def mend() -> None:
            host.sick = False

        return mend

    def _power_fails_soon(self, host: NodeHost) -> None:
        """Perhaps."""
        if self._draw.random() < 0.6:
            at = self._world.loop.now + self._draw.choice((0.3, 1.0, 3.0)) * self._draw.random()
            self._world.network.later(at, self._lose_power, host)

    def _lose_power(self, host: NodeHost) -> None:
        if self._world.faulty:
            self._down(host, power=True)

    def _slow_disk(self) -> Heal | None:
        """Every job of one node's threads takes much longer."""
        host = self._node()
        if host.slow_s:
            return None
        host.slow_s = self._draw.choice((0.05, 0.3, 1.0))
        self._say("slow disk", f"{host.name} {host.slow_s}")

        def mend() -> None:
            host.slow_s = 0.0

        return mend

    def _damage(self, kind: str) -> None:
        """One write of one node goes wrong; the node dies soon after, and must not hide it."""
        world, draw = self._world, self._draw
        host = self._node()
        if not host.runs or any(node.damaged for node in world.nodes):
            return
        if not world.environment.syncs:
            return  # the last group is unguarded there
        dies_after_s = draw.random() * 0.2

        def wronged(what: str) -> None:
            host.rotten = what
            self._say(kind, f"{host.name} {what}")
            world.network.later(world.loop.now + dies_after_s, self._die_damaged, host)

        host.disk.wronged = wronged
        if kind == "lost write":
            host.disk.lose_next_write()
        else:
            host.disk.misdirect_next_write(draw)

    def _die_damaged(self, host: NodeHost) -> None:
        self._down(host, power=False)

    def _rot(self) -> None:
        """A bit of one node's disk, while the node is down; never of a majority."""
        host = self._node()
        if any(other.damaged for other in self._world.nodes) or not host.has_power:
            return  # after a power loss the last group may be unguarded: damage passes for a tear
        if not self._world.environment.syncs:
            return  # so is the last group there
        self._down(host, power=False)
        host.rotten = host.disk.rot(self._draw)
        self._say("rot", f"{host.name} {host.rotten}")

    def fail_reads(self) -> None:
        """A disk gives nothing back for a while; another node is made to ask for a snapshot, now
        and then: by being away.
        """
        world, draw = self._world, self._draw
        host = draw.choice((self._leader(), self._node()))
        disk = host.disk
        if not world.faulty or host.damaged:
            return
        self._say("failing reads", host.name)
        world.count("failing reads")
        disk.is_unreadable = True
        if draw.random() < 0.3:
            self._down(host, power=False)
        else:
            self._down(self._node(), power=False)

        def mend() -> None:
            disk.is_unreadable = False

        self._heals_after(mend, draw.uniform(0.2, 5.0))

    def wipe(self) -> None:
        """A node's directory is lost. Not where another might never have heard of it: two of three
        that know nothing cannot be told from a cluster that begins.
        """
        world, nodes = self._world, self._world.nodes
        leader = self._leader()
        host, *others = self._draw.sample(
            [node for node in nodes if node is not leader], len(nodes) - 1
        )
        known = all(node.has_reached(host) for node in nodes if node is not host)
        if not world.faulty or not known or any(node.damaged for node in nodes):
            return
        if self._draw.random() < 0.3:
            self._lose_directory(host)
            return
        # The worst moment: the others, with it a majority, have missed what it has acknowledged.
        late = others[: len(nodes) // 2]
        rest = [node for node in nodes if node not in late]
        found = self._cut("isolate", " ".join(n.name for n in late), self._both(late, rest))
        world.healing.append(found)
        silent = [node for node in rest if node is not host]

        def lost() -> None:
            if found not in world.healing:
                return
            sides = self._both(silent, [host, *late])
            world.healing.append(self._cut("isolate", " ".join(n.name for n in silent), sides))
            world.healing.remove(found)
            found()
            self._lose_directory(host)

        world.network.later(world.loop.now + self._draw.uniform(0.5, 4.0), lost)

    def _lose_directory(self, host: NodeHost) -> None:
        if any(node.damaged for node in self._world.nodes):
            return
        self._say("wipe", host.name)
        self._world.count("wipe")
        host.die(power=False, again_s=0.2)
        host.wipe(bootstrap=self._draw.random() < 0.8)
