"""The simplest of what goes wrong: programs end or stand still, the network is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from tests.simulation.world import Host, NodeHost, World

Heal = Callable[[], None]
Pairs = list[tuple[str, str]]


class Strikes:
    """Each method returns how its fault ends, or None. All draw from `draw`."""

    def __init__(self, world: World, draw: Random) -> None:
        self._world = world
        self._draw = draw

    def _any(self, hosts: Sequence[Host]) -> Host:
        return self._draw.choice(hosts)

    def _node(self) -> NodeHost:
        return self._draw.choice(self._world.nodes)

    def _leader(self) -> NodeHost:
        return self._world.leader() or self._node()

    def _say(self, kind: str, target: str) -> None:
        self._world.record("fault", kind=kind, target=target)

    def _heals_after(self, heal: Heal, seconds: float) -> None:
        """The fault ends then, or with the time of all faults."""
        self._world.healing.append(heal)
        self._world.network.later(self._world.loop.now + seconds, self._heal, heal)

    def _heal(self, heal: Heal) -> None:
        """If it has not ended before."""
        if heal in self._world.healing:
            self._world.healing.remove(heal)
            heal()

    def _down(self, host: Host, *, power: bool) -> None:
        if isinstance(host, NodeHost) and not host.bears_power_loss:
            power = False  # more than one damage to a disk is not always told from a power loss
        if host.runs:
            self._say("power" if power else "kill", host.name)
            self._world.down(host, power=power)
        elif power and host.has_power:
            self._say("power", f"{host.name}, where nothing runs")
            host.lose_power()

    def _all_down(self, *, power: bool) -> None:
        for host in self._world.nodes:
            self._down(host, power=power)

    def _stop(self, host: Host) -> Heal | None:
        process = host.process
        if process is None or not process.alive or process.paused:
            return None
        self._say("stop", host.name)
        process.paused = True

        def go_on() -> None:
            if process.alive:
                self._say("continue", host.name)
                self._world.loop.resume(process)

        return go_on

    def _isolate_from_nodes(self, host: Host) -> Heal:
        """Clients and participants still reach it."""
        others = [node for node in self._world.nodes if node is not host]
        return self._cut("isolate", host.name, self._both([host], others))

    def _cut(self, kind: str, target: str, pairs: Pairs) -> Heal:
        self._say(kind, target)
        network = self._world.network
        network.cut(pairs)
        breaks = self._draw.random() < 0.5  # what the cut held up never arrives

        def mend() -> None:
            self._say("mend", target)
            network.mend(pairs)
            if breaks:
                for endpoint in network.endpoints():
                    if (endpoint.machine.name, endpoint.peer.machine.name) in pairs:
                        endpoint.reset()
                return
            for host in self._world.services:  # or some of what it held up arrives twice
                if any(host.name in pair for pair in pairs):
                    host.replay(5)

        return mend

    def _both(self, some: Sequence[Host], others: Sequence[Host]) -> Pairs:
        pairs = [(a.name, b.name) for a in some for b in others]
        return pairs + [(b, a) for a, b in pairs]
