"""What goes on for as long as there are faults, and beside them: a seed has one of these, or none.

| ordeal | what happens |
|---|---|
| hunt | each leader is struck at the moment in which its first decision reaches a participant |
| stutter | nodes stand still again and again, each time for less than an election takes |
| wear | the disk of whoever leads becomes slow, then does not answer, then fails |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.strikes import Heal, Strikes
from tests.simulation.world import NodeHost

SLOW_S = (0.05, 0.3)
HANGS_S = (1.0, 4.0, 10.0)
"""The mean of what a job of such a disk takes: longer than any leader can wait."""


class Ordeals(Strikes):
    """As `Strikes`; each begins what goes on by itself."""

    def begin(self, kind: str) -> None:
        ordeals: dict[str, Callable[[], None]] = {
            "hunt": self._hunt,
            "stutter": self._stutter,
            "wear": self._wear,
        }
        self._world.count(kind)
        ordeals[kind]()

    def _hunt(self) -> None:
        """The other branches have not heard of the decision, and its client has, perhaps; whoever
        leads next is struck in the same moment. Not by faults that watch: those have their turn,
        too, when nobody is hunted.
        """
        world, draw = self._world, self._draw
        struck: dict[int, None] = {}

        def strike(leader: NodeHost) -> None:
            if not world.faulty:
                return
            heal = draw.choice(
                (
                    lambda: self._down(leader, power=draw.random() < 0.5),
                    lambda: self._isolate_from_nodes(leader),
                    lambda: self._stop(leader),
                )
            )()
            if heal is not None:
                self._heals_after(heal, draw.choice((0.5, 2.0, 6.0)) * draw.random())

        def seen(what: str, _: dict[str, Any]) -> None:
            leader = world.leader() if what in ("commit", "rollback") else None
            epoch = None if leader is None or leader.node is None else leader.node.replica.epoch
            if leader is not None and epoch is not None and epoch not in struck:
                struck[epoch] = None
                world.network.later(world.loop.now, strike, leader)

        self._world.hunt = seen

    def _stutter(self) -> None:
        """A machine that has too much to do, or whose host has: all is late, nothing is lost."""
        world, draw = self._world, self._draw
        if not world.faulty:
            return
        least_s = world.environment.election_min_ms / 1000
        heal = self._stop(self._leader() if draw.random() < 0.5 else self._node())
        if heal is not None:
            self._heals_after(heal, least_s * draw.uniform(0.1, 1.1))
        world.network.later(world.loop.now + least_s * draw.uniform(0.1, 2.0), self._stutter)

    def _wear(self) -> None:
        """One leader's after the other's. That it hangs nobody is told of: no operation fails."""
        world, draw = self._world, self._draw
        host = self._leader()
        if not world.faulty:
            return
        if not (host.slow_s or host.sick or host.damaged):
            self._say("failing syncs", host.name)
            self._slower(host, [draw.choice(SLOW_S), draw.choice(HANGS_S)])
        world.network.later(world.loop.now + draw.uniform(2.0, 8.0), self._wear)

    def _slower(self, host: NodeHost, means_s: list[float]) -> None:
        """Until it fails, or is as it was."""
        world, draw = self._world, self._draw
        if not world.faulty:
            host.slow_s, host.sick = 0.0, False
        elif means_s:
            host.slow_s = means_s.pop(0)
            world.network.later(
                world.loop.now + draw.uniform(0.2, 3.0), self._slower, host, means_s
            )
        else:
            host.slow_s = 0.0
            host.sick = draw.random() < 0.7
            self._heals_after(_well(host), draw.uniform(0.5, 4.0))


def _well(host: NodeHost) -> Heal:
    def heal() -> None:
        host.slow_s, host.sick = 0.0, False

    return heal
