"""Throughput and latency as a user meets them, beside what they are measured against.

    clients       one, 64 and 256 of them, and 16 that send batches of 64
    plain         participants without the SDK, 3 and 10 of them, in turn with those that have it
    floor         what one transaction must wait for (`floor`), in the same run

All in one cluster; what is compared is measured in turn, and the ratio is the median of the pairs'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

from cluster.bench.campaign import Campaign, CampaignSettings, of, row
from cluster.bench.floor import measure_floor
from cluster.bench.place import Place, numbered, running
from cluster.bench.report import Result
from cluster.bench.run import measure_loads, wrongs
from cluster.bench.verdicts import ratio

MOST = 10
"""Participants of the largest transaction."""

_CLIENTS = (
    ("one client", {"clients": 1}),
    ("64 clients", {"clients": 64}),
    ("256 clients", {"clients": 256}),
    ("16 clients, batches of 64", {"clients": 16, "batch": 64}),
)
_PLAIN_CLIENTS = 64


async def measure_goals(settings: CampaignSettings, say: Callable[[str], None]) -> Result:
    """Clients, plain participants, the floor. Raises BenchError."""
    campaign = Campaign("goals", settings, say)
    async with running(replace(settings.base, participants_per_transaction=MOST)) as place:
        plain = await place.start("plain", "bench", "--plain", "--count", str(MOST))
        place.started += (plain,)
        for label, fields in _CLIENTS:
            load = campaign.load(place, participants=place.participants[:3], **fields)
            await campaign.cell(place, "clients", {"load": label}, load)
        for count in (3, MOST):
            sides = (place.participants[:count], numbered(plain, MOST)[:count])
            await _in_turn(campaign, place, count, sides)
        floor = await measure_floor(place.directory)
    for what, one in floor.items():
        campaign.add("floor", {"what": what, **{f"{q}_ms": round(one[q], 3) for q in one}})
    judge(campaign)
    return campaign.result()


async def _in_turn(
    campaign: Campaign, place: Place, count: int, sides: Sequence[Sequence[str]]
) -> None:
    """Coalesced calls and plain ones; a row of medians for each, and the median of the ratios."""
    rounds = []
    for _ in range(campaign.settings.rounds):
        pair = []
        for participants in sides:
            load = campaign.load(place, clients=_PLAIN_CLIENTS, participants=tuple(participants))
            result = await measure_loads(place, [load])
            campaign.wrong += await wrongs(result, place)
            pair.append(row(result))
        rounds.append(pair)
    for index, kind in enumerate(("coalesced", "plain")):
        rows = [pair[index] for pair in rounds]
        middle = {name: middle_of([one[name] for one in rows]) for name in rows[0]}
        campaign.add("plain", {"participants": count, "calls": kind, **middle})
    ratios = [ratio(coalesced["per_second"], plain["per_second"]) for coalesced, plain in rounds]
    costs = [ratio(plain["cpu_us"], coalesced["cpu_us"]) for coalesced, plain in rounds]
    campaign.add(
        "coalesced against plain",
        {
            "participants": count,
            "throughput_ratio": middle_of(ratios),
            "cpu_ratio": middle_of(costs),
        },
    )


def middle_of(values: Sequence[float | None]) -> float | None:
    """The median; None if one of the values is missing."""
    known = [value for value in values if value is not None]
    return round(median(known), 3) if known and len(known) == len(values) else None


def judge(campaign: Campaign) -> None:
    """The verdicts about the tables."""
    clients, plain, floor = (campaign.tables[name] for name in ("clients", "plain", "floor"))
    held = campaign.judge
    many = of(clients, "per_second", load="256 clients")
    held("256 clients", many, 10_000, " /s", at_least=True)
    batched = of(clients, "per_second", load="16 clients, batches of 64")
    held("16 clients, batches of 64", batched, 60_000, " /s", at_least=True)
    for count, bound in ((3, 1_200), (MOST, 400)):
        value = of(plain, "per_second", participants=count, calls="plain")
        held(f"plain calls, {count} participants, 64 clients", value, bound, " /s", at_least=True)
    value = of(campaign.tables["coalesced against plain"], "throughput_ratio", participants=3)
    held("coalesced against plain calls, 3 participants", value, 6.0, at_least=True)
    one = of(clients, "p50_ms", load="one client")
    for kind in ("aiohttp", "bare"):
        least = of(floor, "p50_ms", what=f"transaction, {kind}")
        held(f"one client's p50, of the floor ({kind})", ratio(one, least), 2.5)
