"""Faults that hurt only at their moment: they wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any

from tests.simulation.loop import PROCESS
from tests.simulation.strikes import Heal, Strikes
from tests.simulation.world import Host, NodeHost, Watch


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
                self._heals_after(heal, lasts_s)

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
        """The next time that a leader has spoken to all it falls asleep. Others lead meanwhile, and
        clients ask it. What comes to it last, before it wakes up, are answers to what it has said:
        they are older than the questions, and confirm nothing.
        """
        world = self._world
        if world.watch is not None:
            return

        def seen(what: str, fields: dict[str, Any]) -> None:
            host = fields.get("host")
            if what == "spoke" and isinstance(host, NodeHost) and _has_heard_all(host):
                world.watch = None
                wake = self._stop(host)
                if wake is not None:
                    self._sleeps(host, wake)

        world.watch = seen

    def _sleeps(self, host: NodeHost, wake: Heal) -> None:
        world, draw, environment = self._world, self._draw, self._world.environment
        others = [node for node in world.nodes if node is not host]
        late = draw.sample(others, len(world.nodes) // 2)  # with it a majority
        silent = [node for node in others if node not in late]
        answers_s = environment.election_max_ms / 1000 + environment.client_timeout_s
        answers_s += draw.choice((0.5, 2.0, 5.0)) * (0.5 + draw.random())
        due: list[Heal] = [
            wake,
            self._cut("cut", host.name, self._both([host], silent)),
            self._late(late, [host], answers_s),
        ]
        world.asleep = host

        def cut_off() -> None:
            if due:
                due.append(self._isolate_from_nodes(host))

        def woken() -> None:
            if due:
                due.pop(0)()

        def over() -> None:
            world.asleep = None
            while due:
                due.pop(0)()

        # Whoever stands for election says so after the answer, by an election timeout at least.
        answered_at = world.loop.now + answers_s + 0.7 * environment.election_min_ms / 1000
        world.network.later(answered_at, cut_off)
        world.network.later(answered_at + 0.001, woken)
        self._heals_after(over, answered_at + 0.2 + draw.random() - world.loop.now)

    # --- elections

    def _contest(self) -> None:
        """The leader dies, and two nodes stand for election together, twice: election timeouts may
        be so. First the others hear the one alone, and their votes for it come late; then they hear
        the other one alone, which wins, and the first does not hear of that when the votes come.
        """
        world, draw = self._world, self._draw
        least_s = world.environment.election_min_ms / 1000
        nodes = draw.sample(world.nodes, len(world.nodes))
        late, other, voters = nodes[0], nodes[1], nodes[2 : 2 + len(nodes) // 2]
        again_s = least_s * (0.6 + draw.random() / 2)
        leader = self._leader()
        if not leader.runs or world.watch is not None:
            return
        self._say("contest", f"{late.name} {other.name}")
        world.count("kills")
        leader.die(power=False, again_s=0.02)
        mends = [
            self._late(voters, [late], again_s * (1.2 + draw.random() / 2)),
            self._late([other], voters, again_s / 3),
        ]

        def stand() -> None:
            if over in world.healing:
                _stand_for_election(late)
                _stand_for_election(other)

        def stand_again() -> None:
            if over in world.healing:
                mends.pop()()
                mends.append(self._late([late], voters, again_s / 3))
                world.watch = stands
                stand()

        def stands(what: str, fields: dict[str, Any]) -> None:
            if what == "stands" and fields["host"] is late:
                world.watch = None
                mends.append(self._cut("cut", other.name, [(other.name, late.name)]))

        over = self._undoing(mends, stands)
        first = world.loop.now + least_s + 2 * world.environment.weather.mean_s  # none earlier wins
        world.network.later(first, stand)
        world.network.later(first + again_s, stand_again)
        self._heals_after(over, first + 2 * again_s - world.loop.now)

    # --- logs that grow apart

    def part(self) -> None:
        """Two logs grow apart. A leader is cut off, and goes on with its log alone. The next one is
        cut off as it begins to lead, with what it begins with, or as soon as a quorum has that. The
        one after that, the first one mostly, hears at first of no majority without this one.
        """
        world = self._world
        leader = world.leader()
        if leader is None or not world.faulty or world.watch is not None:
            return
        cut_off_at = self._draw.choice(("leader", "applied"))
        mends = [self._isolate_from_nodes(leader)]
        alone, second = leader, leader

        def seen(what: str, fields: dict[str, Any]) -> None:
            nonlocal alone, second
            if what == "leader" and second is leader:
                second = self._named(fields["node"])
            if second is leader:
                return
            if alone is leader and what == cut_off_at and fields["node"] == second.name:
                mends.append(self._isolate_from_nodes(second))
                mends.pop(0)()
                alone = second
            elif alone is second and what == "leader" and fields["node"] != second.name:
                world.watch = None
                mends.pop()()
                mends.append(self._without_the_others(self._named(fields["node"]), second))

        world.watch = seen
        self._heals_after(self._undoing(mends, seen), 10 * world.environment.election_max_ms / 1000)

    def _undoing(self, mends: list[Heal], watch: Watch) -> Heal:
        """The end of a fault that watches for its moments: nothing does any more, all is mended."""

        def over() -> None:
            if self._world.watch is watch:
                self._world.watch = None
            for mend in mends:
                mend()

        return over

    def _named(self, name: str) -> NodeHost:
        host = self._world.host(name)
        assert isinstance(host, NodeHost)
        return host

    def _without_the_others(self, third: NodeHost, second: NodeHost) -> Heal:
        """No majority hears this leader but with that node, whose log may be another one."""
        nodes, logs = self._world.nodes, [_entries(third), _entries(second)]
        if logs[0] - logs[1] and logs[1] - logs[0]:
            self._world.count("logs that grew apart")
        rest = [node for node in nodes if node not in (third, second)]
        silent = self._draw.sample(rest, len(nodes) // 2)
        return self._cut("cut", third.name, self._both([third], silent))

    def _late(self, some: Sequence[Host], others: Sequence[Host], by_s: float) -> Heal:
        """What those say to these is so much later."""
        delays = self._world.network.delays
        pairs = [(a.name, b.name) for a in some for b in others]
        delays.update(dict.fromkeys(pairs, (by_s, 0.0)))

        def mend() -> None:
            for pair in pairs:
                delays.pop(pair, None)

        return mend


def _has_heard_all(host: NodeHost) -> bool:
    """Whether this leader has the answers to all that it said before."""
    core = host.node.replica._core if host.node is not None else None
    return core is not None and all(
        core.confirmed.get(peer, 0) >= core.round - 1 for peer in core.peers
    )


def _entries(host: NodeHost) -> set[tuple[int, int]]:
    """Index and term of each entry of its log."""
    core = host.node.replica._core if host.node is not None else None
    return set() if core is None else {(index, term) for _, index, term in core.journal[:]}


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
