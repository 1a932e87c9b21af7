"""What the campaigns of `assent bench` have in common: their settings, rows and results.

A campaign asks one question with many measurements, its cells, and answers with tables of rows, and
verdicts about them. Cells that shall be compared are measured in one run, and in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.bench.observe import commit, machine
from cluster.bench.place import Place
from cluster.bench.report import Result
from cluster.bench.requests import Load
from cluster.bench.run import measure_loads, wrongs
from cluster.bench.settings import BenchSettings
from cluster.bench.verdicts import Verdict, number

Row = dict[str, Any]
"""One line of a table: figures and words by their names."""


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """How much of everything. `base`: nodes, participants, disk, code, as for one measurement.

    `rounds`: of what is measured in turn. `rate`: of those whose latency must not suffer.
    `connections`: over which an overload is offered.
    """

    base: BenchSettings = field(default_factory=BenchSettings)
    seconds_per_cell: float = 5.0
    warm_up: float = 1.0
    rounds: int = 3
    kills: int = 30
    rate: float = 200.0
    connections: int = 2_000
    most_in_flight: int = 100_000
    most_remembered: int = 1_000_000

    def short(self) -> CampaignSettings:
        """The same questions in a third of the time: figures are rougher, growth ends earlier."""
        return replace(
            self,
            seconds_per_cell=min(self.seconds_per_cell, 2.0),
            warm_up=min(self.warm_up, 0.5),
            rounds=min(self.rounds, 2),
            kills=min(self.kills, 10),
            most_in_flight=min(self.most_in_flight, 10_000),
            most_remembered=min(self.most_remembered, 100_000),
        )


class Campaign:
    """One campaign under way: what was found so far, and whom it is told to."""

    def __init__(self, name: str, settings: CampaignSettings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.tables: dict[str, list[Row]] = {}
        self.verdicts: list[Verdict] = []
        self.wrong: list[str] = []
        self._name = name
        self._say = say
        self._began = time.monotonic()

    def load(self, place: Place, **fields: Any) -> Load:
        """A load on all nodes, for the time of one cell."""
        settings = self.settings
        given = {
            "participants": place.participants,
            "warm_up_s": settings.warm_up,
            "seconds": settings.seconds_per_cell,
        }
        return Load(tuple(place.nodes.values()), **{**given, **fields})

    async def cell(self, place: Place, table: str, labels: Row, load: Load) -> Row:
        """Measure one cell, check it, and add its row to `table`."""
        result = await measure_loads(place, [load])
        self.wrong += await wrongs(result, place)
        return self.add(table, {**labels, **row(result)})

    def add(self, table: str, added: Row) -> Row:
        self.tables.setdefault(table, []).append(added)
        told = "  ".join(f"{name} {number(value)}" for name, value in added.items())
        self._say(f"{self._name}, {table}: {told}")
        return added

    def judge(
        self,
        what: str,
        value: float | None,
        bound: float,
        unit: str = "",
        *,
        at_least: bool = False,
    ) -> None:
        self.verdicts.append(Verdict(what, value, bound, unit, at_least))

    def result(self) -> Result:
        """What is written."""
        return {
            "campaign": self._name,
            "commit": commit(),
            "machine": machine(),
            "measured_on": time.strftime("%Y-%m-%d", time.gmtime()),
            "took_s": round(time.monotonic() - self._began, 1),
            "seconds_per_cell": self.settings.seconds_per_cell,
            "tables": self.tables,
            "verdicts": [verdict.told() for verdict in self.verdicts],
            "wrong": self.wrong,
        }


def row(result: Result) -> Row:
    """What a table shows of a measurement. Latencies in ms, memory in MB, CPU in us each.

    Where nothing was answered there is no latency and no cost: None, which no verdict holds.
    """
    costs, leader = result["cpu_us_per_transaction"], result["leader"]
    known = {
        **{f"{name}_ms": result["latency_ms"][name] for name in ("p50", "p99", "max")},
        "leader_cpu_us": costs.get(leader, 0.0),
        "cpu_us": costs["all"],
    }
    return {
        "per_second": round(result["per_second"], 1),
        **{name: round(value, 3) if decided(result) else None for name, value in known.items()},
        "leader_mb": round(result["memory_bytes"].get(leader, 0) / 1e6, 1),
    }


def of(rows: Sequence[Row], name: str, **labels: Any) -> Any:
    """The figure `name` of the row that carries these labels; None if there is none."""
    for one in rows:
        if all(one.get(label) == value for label, value in labels.items()):
            return one.get(name)
    return None


def decided(result: Mapping[str, Any]) -> int:
    """How many transactions were answered with an outcome."""
    counts = result["transactions"]
    return int(counts["committed"] + counts["aborted"])
