"""What one badly behaved party does to the latency of all others.

The others send at a fixed rate that leaves room (an open loop), to participants that are well.
They are measured alone and beside a disturbance, in turn; the figure is the ratio of their p99.
Disturbances by a participant that the others do not use, but that another client's transactions do:

    well             nothing is wrong with it: what that client costs the others in any case
    hangs            prepare is never answered; each of those transactions runs into its timeout
    hangs in commit  it prepares, and commit is never answered
    slow             every answer takes half a second
    dead             nobody listens there

and by a client: `256 branches`, one transaction after the other, each with as many participants as
are allowed; `greedy`, 64 requests at a time without a pause; `very greedy`, 512; `greedy in
batches`, four requests at a time with 500 transactions each. These come from an address of their
own, as another client's would: on loopback all of 127.0.0.0/8 is this machine (on macOS, 127.0.0.2
has to be added to it first).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import aiohttp

from cluster.bench.campaign import Campaign, CampaignSettings, Row, of
from cluster.bench.load_process import LoadProcess
from cluster.bench.place import Place, numbered, running
from cluster.bench.report import Result, percentile, pooled
from cluster.bench.requests import Load
from cluster.bench.run import calm, measure_loads, wrongs
from cluster.local.ports import HOST, free_ports

MOST_RATIO = 1.1
BRANCHES = 256
OTHERS_CLIENTS = 64
ANOTHER = "127.0.0.2"
_HUGE = f"{BRANCHES} branches"
_WELL = "well"
_FAULTS: dict[str, dict[str, Any]] = {
    "hangs": {"fault": "never", "operation": "prepare"},
    "hangs in commit": {"fault": "never", "operation": "commit"},
    "slow": {"fault": "delay", "delay_ms": 500},
}
_TROUBLED: dict[str, Any] = {"rate": 50.0, "clients": 256, "timeout_ms": 1_000}
"""Another client's transactions with the participant that is not well."""

DISTURBANCES: dict[str, dict[str, Any]] = {
    **dict.fromkeys((_WELL, *_FAULTS, "dead"), _TROUBLED),
    _HUGE: {"clients": 1, "address": ANOTHER},
    "greedy": {"clients": 64, "address": ANOTHER},
    "very greedy": {"clients": 512, "address": ANOTHER},
    "greedy in batches": {"clients": 4, "batch": 500, "address": ANOTHER},
}
"""What the load of a disturbance is beside its participants."""


async def measure_fairness(settings: CampaignSettings, say: Callable[[str], None]) -> Result:
    """Every disturbance, in pairs with none. Raises BenchError."""
    campaign = Campaign("fairness", settings, say)
    async with running(settings.base) as place:
        troubled = await place.start("troubled", "simulated")
        for name, fields in DISTURBANCES.items():
            participants = await _participants(name, place, troubled)
            await _pairs(campaign, place, troubled, name, {"participants": participants, **fields})
    judge(campaign)
    return campaign.result()


def judge(campaign: Campaign) -> None:
    """The verdicts about the tables; `well` is no disturbance, but what the others are held to."""
    for name in DISTURBANCES:
        if name == _WELL:
            continue
        value = of(campaign.tables["others"], "p99_ratio", disturbance=name)
        campaign.judge(f"others' p99 beside: {name}, of alone", value, MOST_RATIO)


async def _participants(name: str, place: Place, troubled: str) -> tuple[str, ...]:
    """Those that the disturbing transactions use."""
    if name == _WELL or name in _FAULTS:
        return (*place.participants[:2], troubled)
    if name == "dead":
        nobody = free_ports((), ("nobody",)).services["nobody"]
        return (*place.participants[:2], f"http://{HOST}:{nobody}")
    if name == _HUGE:
        return numbered(await place.start("crowd", "bench", "--count", str(BRANCHES)), BRANCHES)
    return place.participants


async def _pairs(
    campaign: Campaign, place: Place, troubled: str, name: str, fields: dict[str, Any]
) -> None:
    """Alone and disturbed, in turn; the row has the median of the pairs' ratios, and all ratios."""
    alone, beside = [], []
    for _ in range(campaign.settings.rounds):
        alone.append(await measure_loads(place, [_others(campaign, place)]))
        await _set_fault(troubled, _FAULTS.get(name))
        beside.append(await _disturbed(campaign, place, fields))
        await _set_fault(troubled, None)
        await calm(place)
        for result in (alone[-1], beside[-1]):
            campaign.wrong += await wrongs(result, place)
    campaign.add("others", {"disturbance": name, **compared(alone, beside)})


def _others(campaign: Campaign, place: Place) -> Load:
    return campaign.load(place, clients=OTHERS_CLIENTS, rate=campaign.settings.rate)


async def _disturbed(campaign: Campaign, place: Place, fields: dict[str, Any]) -> Result:
    """The figures of the others, measured while the disturbance lasts."""
    load = campaign.load(place, seconds=0.0, seed=2, **fields)
    async with LoadProcess.running(load) as process:
        await process.begun()
        result = await measure_loads(place, [_others(campaign, place)])
        await process.stop()
        tally = await process.tally()
        await process.leave()
    if tally["wrong"]:
        campaign.wrong.append(f"beside the others: {tally['first_wrong']}")
    result["disturbance"] = tally
    return result


async def _set_fault(troubled: str, fault: dict[str, Any] | None) -> None:
    faults = [] if fault is None else [fault]
    async with (
        aiohttp.ClientSession() as session,
        session.put(f"{troubled}/faults", json={"faults": faults}, raise_for_status=True),
    ):
        pass


def compared(alone: Sequence[Result], beside: Sequence[Result]) -> Row:
    """p50 and p99 of all rounds together, and the median of the ratios, pair by pair.

    A ratio is None if nothing was answered in one of the rounds.
    """
    figures: Row = {}
    for share, what in ((0.5, "p50"), (0.99, "p99")):
        for whose, results in (("alone", alone), ("beside", beside)):
            steps = pooled([result["latency_steps"] for result in results])
            figures[f"{what}_{whose}_ms"] = round(percentile(steps, share), 2)
        pairs = [
            (a["latency_ms"][what], b["latency_ms"][what])
            for a, b in zip(alone, beside, strict=True)
        ]
        answered = all(a and b for a, b in pairs)
        figures[f"{what}_ratio"] = round(median(b / a for a, b in pairs), 3) if answered else None
    figures["each_p99_ratio"] = " ".join(f"{b / a:.2f}" for a, b in pairs) if answered else None
    figures["refused"] = sum(one["transactions"]["refused"] for one in beside)
    figures["disturbing_per_second"] = round(
        median(
            (one["disturbance"]["committed"] + one["disturbance"]["aborted"])
            / one["disturbance"]["seconds"]
            for one in beside
        ),
        1,
    )
    figures["leader_busy"] = round(median(one["busy"].get(one["leader"], 0.0) for one in beside), 2)
    return figures
