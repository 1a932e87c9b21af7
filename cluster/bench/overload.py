"""What happens when more is asked for than can be done: an open loop at multiples of the capacity.

The capacity is the best throughput of a closed loop in the same run. What is offered comes over
many connections, and whoever is refused does not come again: the coordinator's load is what it is
told to be. The generator shares the machine, so its part of the processors is in the table, too.

All connections are soon in use, by those who wait for their outcome and those who were told to come
later. Whoever finds none free for `BOARDING_S` goes away unsent. If they waited they would stand in
a queue of the generator's own, which grows as long as the measurement lasts, and no node could
answer them early.
"""

from __future__ import annotations

from collections.abc import Callable

from cluster.bench.campaign import Campaign, CampaignSettings, decided, of, row
from cluster.bench.place import Place, running
from cluster.bench.report import Result
from cluster.bench.run import calm, measure_loads, wrongs
from cluster.bench.settings import BenchError
from cluster.bench.verdicts import ratio

FACTORS = (1.0, 1.5, 2.0, 3.0, 5.0)
_CLOSED = (64, 256)
"""Clients of the closed loops: one of them is about as many as the cluster can use."""

EARLY_MS = 500.0
"""A refusal that takes longer is as bad as none: who was refused could have been elsewhere."""

PATIENCE_MS = 2_000.0
"""After so long without an answer the client library asks another node."""

BOARDING_S = 0.1
"""For a free connection. It counts as part of the latency."""

REMEMBERED_BYTES = 1_024
SPARE_MB = 100.0
"""Memory may grow by what is remembered of each transaction, and by this."""


async def measure_overload(settings: CampaignSettings, say: Callable[[str], None]) -> Result:
    """Capacity first, then the multiples. Raises BenchError."""
    campaign = Campaign("overload", settings, say)
    async with running(settings.base) as place:
        for clients in _CLOSED:
            load = campaign.load(place, clients=clients)
            await campaign.cell(place, "closed loop", {"clients": clients}, load)
        closed = campaign.tables["closed loop"]
        capacity = max(one["per_second"] for one in closed)
        if not capacity:
            raise BenchError("nothing was answered: there is no capacity to exceed")
        for factor in FACTORS:
            await _offer(campaign, place, factor, capacity)
    judge(campaign)
    return campaign.result()


async def _offer(campaign: Campaign, place: Place, factor: float, capacity: float) -> None:
    connections = campaign.settings.connections
    load = campaign.load(place, clients=connections, rate=factor * capacity, patience_s=BOARDING_S)
    result = await measure_loads(place, [load])
    await calm(place)
    campaign.wrong += await wrongs(result, place)
    leader = result["leader"]
    refused = result["transactions"]["refused"]
    answered = decided(result) + refused
    growth_mb = result["memory_growth_bytes"].get(leader, 0) / 1e6
    kept_mb = decided(result) * REMEMBERED_BYTES / 1e6
    shown = row(result)
    campaign.add(
        "open loop",
        {
            "factor": factor,
            "offered_per_second": round(load.rate, 1),
            "per_second": shown["per_second"],
            "refused_share": round(refused / max(1, answered), 4),
            "p50_ms": shown["p50_ms"],
            "p99_ms": shown["p99_ms"],
            "refused_p50_ms": round(result["refusal_ms"]["p50"], 2) if refused else None,
            "refused_p99_ms": round(result["refusal_ms"]["p99"], 2) if refused else None,
            "unsent": result["transactions"]["unsent"],
            "growth_mb": round(growth_mb, 1),
            "growth_not_remembered_mb": round(growth_mb - kept_mb, 1),
            "leader_busy": round(result["busy"].get(leader, 0.0), 3),
            "load_busy": round(result["busy"].get("load", 0.0), 3),
            "leader_cpu_us": shown["leader_cpu_us"],
        },
    )


def judge(campaign: Campaign) -> None:
    """The verdicts about the tables."""
    closed, opened = campaign.tables["closed loop"], campaign.tables["open loop"]
    best = max(one["per_second"] for one in (*closed, *opened))
    for factor in FACTORS[1:]:
        share = ratio(of(opened, "per_second", factor=factor), best)
        campaign.judge(f"throughput at {factor:g} x, of the best", share, 0.9, at_least=True)
    waits = [one["p99_ms"] for one in opened if one["factor"] > 1]
    longest = None if None in waits else max(waits)
    campaign.judge("p99 of the outcomes over capacity", longest, PATIENCE_MS, " ms")
    refusals = [one["refused_p99_ms"] for one in opened if one["refused_p99_ms"] is not None]
    campaign.judge("p99 of the refusals", max(refusals, default=None), EARLY_MS, " ms")
    growth = max(one["growth_not_remembered_mb"] for one in opened)
    campaign.judge("memory growth beyond what is remembered", growth, SPARE_MB, " MB")
