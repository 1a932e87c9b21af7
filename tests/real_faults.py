"""Whole clusters of real processes under drawn faults: `python -m tests.real_faults --rounds 20`.

A round is a new cluster of three or five nodes and the three sample services (each with a database
of its own), orders by the client library, and for so many seconds one fault after the other: kill
-9, SIGTERM or SIGSTOP of a node, of the leader, of a service, of all nodes, of everything. Then all
come back, what is under way must end, and the account is made: every outcome that was told, at
every service and every node (`tests/checker.py`); no call may have failed.

The seed draws the cluster and the faults; what meets what is up to the machine. A round that is
violated leaves its directory. It is a command of its own, for it takes minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random

from cluster.local.cluster import LocalCluster
from tests.cluster_rig import Load, all_ready, check, load
from tests.recording import Recording

LONGEST_S = 4.0
"""A fault lasts no longer: with a service that is away transactions wait, and nothing happens."""

FAULTS = (
    ("kill", "leader"),
    ("kill", "leader"),
    ("kill", "node"),
    ("kill", "service"),
    ("kill", "all nodes"),
    ("kill", "everything"),
    ("end", "leader"),
    ("stop", "leader"),
    ("stop", "node"),
    ("stop", "service"),
    ("stop", "all nodes"),
    ("flap", "node"),
)
"""What is done, and to whom: each as likely. "end": as a deployment does; "flap": killed again and
again, mostly before it serves."""


class Faults:
    """What goes wrong in one round. Each fault is over when it has been healed."""

    def __init__(self, local: LocalCluster, draw: Random) -> None:
        self.counts: Counter[str] = Counter()
        self._local = local
        self._draw = draw
        self._ways: dict[str, Callable[[Sequence[str]], Awaitable[None]]] = {
            "kill": self._kill,
            "end": self._end,
            "stop": self._stop,
            "flap": self._flap,
        }

    async def go_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await asyncio.sleep(self._draw.expovariate(1.0))
            way, whom = self._draw.choice(FAULTS)
            self.counts[f"{way} {whom}"] += 1
            await self._ways[way](await self._names(whom))

    async def _names(self, whom: str) -> Sequence[str]:
        match whom:
            case "leader":
                return [await self._local.wait_leader()]
            case "node":
                return [self._draw.choice(self._local.node_ids)]
            case "service":
                return [self._draw.choice(self._local.services)]
            case "all nodes":
                return self._local.node_ids
        return [*self._local.node_ids, *self._local.services]

    async def _flap(self, names: Sequence[str]) -> None:
        (name,) = names
        for _ in range(self._draw.randint(2, 5)):
            await self._local.kill(name)
            await self._local.start(name, wait=False)
            await asyncio.sleep(self._draw.uniform(0.0, 0.8))
        await self._local.wait_ready(name)

    async def _end(self, names: Sequence[str]) -> None:
        (name,) = names
        assert await self._local.terminate(name) == 0
        await self._local.start(name)

    async def _kill(self, names: Sequence[str]) -> None:
        await asyncio.gather(*(self._local.kill(name) for name in names))
        await asyncio.sleep(self._lasts_s())
        for name in self._draw.sample(names, len(names)):
            await self._local.start(name, wait=False)
            await asyncio.sleep(self._draw.choice((0.0, 0.0, 0.3)))
        for name in names:
            await self._local.wait_ready(name)

    async def _stop(self, names: Sequence[str]) -> None:
        for name in names:
            self._local.stop(name)
        await asyncio.sleep(self._lasts_s())
        for name in self._draw.sample(names, len(names)):
            self._local.cont(name)
            await asyncio.sleep(self._draw.choice((0.0, 0.0, 0.3)))

    def _lasts_s(self) -> float:
        return self._draw.choice((0.0, 0.5, LONGEST_S)) * self._draw.random()


class Campaign:
    """What became of all rounds."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.committed = self.aborted = 0
        self.slowest_s = 0.0
        self.wrong: list[str] = []

    async def round(self, seed: str, seconds: float, directory: Path) -> None:
        draw = Random(f"real faults {seed}")
        nodes, every = draw.choice((3, 3, 5)), draw.choice((20, 300, 10_000))
        settings = f"[log]\nsnapshot_every = {every}\n"
        local = LocalCluster(directory, nodes=nodes, find_ports=True, settings=settings)
        faults = Faults(local, draw)
        history = Recording(local.services, directory.with_suffix(".jsonl"))
        async with local:
            async with load(local, history, submitters=draw.choice((4, 16, 48))) as orders:
                await faults.go_on_for(seconds)
                await all_ready(local)
            self._add(orders, history, faults)
            try:
                await check(local, history)
            except AssertionError as error:
                self.wrong.append(str(error))
        self.wrong += orders.failures

    def _add(self, orders: Load, history: Recording, faults: Faults) -> None:
        self.faults += faults.counts
        self.committed += len(history.ids("committed"))
        self.aborted += len(history.ids("aborted"))
        self.slowest_s = max(self.slowest_s, orders.slowest_s)

    def __str__(self) -> str:
        struck = ", ".join(f"{what} {count}" for what, count in sorted(self.faults.items()))
        return (
            f"{self.committed} committed, {self.aborted} aborted, slowest call "
            f"{self.slowest_s:.1f} s, {self.faults.total()} faults ({struck}), "
            f"{len(self.wrong)} violations"
        )


def main(arguments: Sequence[str]) -> int:
    """0 if nothing was violated and no call failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.real_faults")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load and faults, a round")
    parser.add_argument("--seed", default="1")
    chosen = parser.parse_args(arguments)
    campaign = Campaign()
    began = time.monotonic()
    for number in range(1, chosen.rounds + 1):
        directory = Path(tempfile.mkdtemp(prefix="assent-faults-")) / "cluster"
        before = len(campaign.wrong)
        asyncio.run(campaign.round(f"{chosen.seed} {number}", chosen.seconds, directory))
        if len(campaign.wrong) == before:
            shutil.rmtree(directory.parent)
        for wrong in campaign.wrong[before : before + 10]:
            print(f"round {number}, {directory}: {wrong}", flush=True)
        print(f"{number} rounds, {time.monotonic() - began:.0f} s: {campaign}", flush=True)
    return 1 if campaign.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
