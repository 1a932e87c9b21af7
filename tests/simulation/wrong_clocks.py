"""Clocks that are set a day ahead for a moment, as after a pause of their machine, and set back."""

from __future__ import annotations

import asyncio

from tests.simulation.environment import DAY_MS
from tests.simulation.strikes import Strikes
from tests.simulation.world import World

AHEAD_S = 3.0
"""Of nodes: a few sweeps."""


class WrongClocks(Strikes):
    """Of services: what has just ended seems to have ended yesterday."""

    def set_services(self) -> None:
        """One after the other, as long as there are faults; each for less than a sweep's pause."""
        world, draw = self._world, self._draw
        if not world.faulty:
            return
        # Of another kind of service a right clock is asked for.
        host = self._any([service for service in world.services if service.kind == "sdk"])
        self._say("clock of tomorrow", host.name)
        world.count("clocks set a day ahead")
        host.offset_ms += DAY_MS

        def set_back() -> None:
            host.offset_ms -= DAY_MS

        self._heals_after(set_back, draw.uniform(0.1, 0.9))
        world.network.later(world.loop.now + draw.uniform(1.0, 5.0), self.set_services)


async def set_nodes(world: World) -> None:
    """The clock of the leader, or those of all nodes, which agree all the while. Nobody asks for
    anything meanwhile: what is begun then may last as long as the clock was ahead.
    """
    which, leader = world.environment.nodes_ahead, world.leader()
    hosts = [host for host in world.nodes if which == "all" or host is leader]
    world.record("fault", kind="clock of tomorrow", target=which)
    world.count("nodes' clocks set a day ahead", len(hosts))
    for host in hosts:
        host.offset_ms += 2 * DAY_MS
    await asyncio.sleep(AHEAD_S)
    for host in hosts:
        host.offset_ms -= 2 * DAY_MS
