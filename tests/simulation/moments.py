"""Faults that hurt only at their moment: they wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from tests.simulation.loop import PROCESS
from tests.simulation.strikes import Heal, Strikes
from tests.simulation.world import Host, NodeHost

CONTESTS = 4
"""Elections in a row that two nodes stand for together."""


class Moments(Strikes):
    """As `Strikes`."""

    def _wait_for(self, event: str) -> None:
        """The next time that this happens, and a little later, one of the faults that hurt then."""
        world, draw = self._world, self._draw
        if world.watch is not None:
            return
        delay_s = draw.choice((0.0, 0.001, 0.02)) * draw.random()
        lasts_s = draw.choice((0.5, 2.0, 6.0)) * draw.random()

        def strike(fields: dict[str, Any]) -> None:
            if not world.faulty:
                return
            heal = draw.choice(self._strikes_at(fields))()
            if heal is not None:
                world.healing.append(heal)
                world.network.later(world.loop.now + lasts_s, over, heal)

        def over(heal: Heal) -> None:
            if heal in world.healing:
                world.healing.remove(heal)
                heal()

        def seen(what: str, fields: dict[str, Any]) -> None:
            if what == event and (event != "sync" or world.leader() is fields["host"]):
                world.watch = None
                world.network.later(world.loop.now + delay_s, strike, fields)

        world.watch = seen

    def _strikes_at(self, event: dict[str, Any]) -> list[Callable[[], Heal | None]]:
        """What hurts now: something with the leader, all nodes, or the participant in question."""
        draw, leader = self._draw, self._leader()
        strikes: list[Callable[[], Heal | None]] = [
            lambda: self._isolate_from_nodes(leader),
            lambda: self._isolate_from_nodes(leader),
            lambda: self._stop(leader),
            lambda: self._down(leader, power=draw.random() < 0.5),
            lambda: self._all_down(power=draw.random() < 0.5),
        ]
        if "host" in event:  # asleep in the middle of a sync it wakes up late to what went on
            strikes += [lambda: self._stop(leader)] * 5
        for host in self._world.services:
            if host.name == event.get("participant"):
                pairs = self._both([host], self._world.nodes)
                strikes += [functools.partial(self._cut, "cut", host.name, pairs)] * 2
        return strikes

    # --- a leader that sleeps through its end

    def _asleep(self) -> None:
        """The next time that a leader has spoken to all it falls asleep, and is cut off when the
        answers are there. Others lead meanwhile. It wakes up with questions of clients and with
        answers that confirm it: both are old, but for the questions.
        """
        world = self._world
        if world.watch is not None:
            return

        def seen(what: str, fields: dict[str, Any]) -> None:
            host = fields.get("host")
            if what == "spoke" and isinstance(host, NodeHost) and host is world.leader():
                world.watch = None
                wake = self._stop(host)
                if wake is not None:
                    self._sleeps(host, wake)

        world.watch = seen

    def _sleeps(self, host: NodeHost, wake: Heal) -> None:
        world, draw, environment = self._world, self._draw, self._world.environment
        now = world.loop.now
        answered_s = 8 * (environment.weather.least_s + environment.weather.mean_s)
        sleeps_s = environment.election_max_ms / 1000 + environment.client_timeout_s
        sleeps_s += draw.choice((0.3, 1.0, 2.5)) * draw.random() + answered_s
        due: list[Heal] = [wake]  # what is still to be ended
        world.asleep = host

        def cut_off() -> None:
            if due:
                due.append(self._isolate_from_nodes(host))

        def woken() -> None:
            if due:
                due.pop(0)()

        def over() -> None:
            if over in world.healing:
                world.healing.remove(over)
                world.asleep = None
                while due:
                    due.pop(0)()

        world.healing.append(over)
        world.network.later(now + answered_s, cut_off)
        world.network.later(now + sleeps_s, woken)  # and is cut off for a while longer
        world.network.later(now + sleeps_s + 0.1 + draw.random(), over)

    # --- elections

    def _contest(self) -> None:
        """The leader dies, and two nodes stand for election together, again and again: election
        timeouts may be so. Votes for one of them come late, and it hears late that the other won.
        """
        world, draw, environment = self._world, self._draw, self._world.environment
        nodes = list(world.nodes)
        draw.shuffle(nodes)
        late, other, *rest = nodes
        voters = rest[: len(nodes) // 2]
        pause_s = environment.election_min_ms / 1000 * (1.0 + draw.random() / 2)
        delays = world.network.delays
        slow = [(voter.name, late.name) for voter in voters]
        self._say("contest", f"{late.name} {other.name}")
        self._down(self._leader(), power=False)
        for pair in slow:
            delays[pair] = 2.5 * pause_s
        mends: list[Heal] = []

        def stand(number: int) -> None:
            if over not in world.healing:
                return
            for node in (late, other):
                _stand_for_election(node)
            if number and world.watch is None:
                world.watch = stands

        def stands(what: str, fields: dict[str, Any]) -> None:
            if what == "stands" and fields["host"] is late:
                world.watch = None
                mends.append(
                    self._cut("cut", f"{other.name} {late.name}", [(other.name, late.name)])
                )
                world.network.later(world.loop.now + pause_s, mend)

        def mend() -> None:
            while mends:
                mends.pop()()

        def over() -> None:
            if over not in world.healing:
                return
            world.healing.remove(over)
            if world.watch is stands:
                world.watch = None
            mend()
            for pair in slow:
                delays.pop(pair, None)

        world.healing.append(over)
        now = world.loop.now
        for number in range(CONTESTS):
            world.network.later(now + (1 + number) * pause_s, stand, number)
        world.network.later(now + (2 + CONTESTS) * pause_s, over)


def _stand_for_election(host: Host) -> None:
    """Its election timeout passes now."""
    process, node = host.process, getattr(host, "node", None)
    if process is None or not process.alive or process.paused or node is None:
        return
    core = node.replica._core
    if core is None or core.role.name == "LEADER":
        return
    core.set_deadline(core.now() - 1e-3)
    context = copy_context()
    context.run(PROCESS.set, process)
    host.world.loop.call_soon(node.replica._kick, context=context)
