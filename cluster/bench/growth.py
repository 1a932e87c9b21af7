"""How throughput and latency grow with what there is more of, a table for each.

    participants   of a transaction, with one client and with many
    concurrency    clients at one time
    in flight      transactions that do not end, for a participant hangs in prepare
    remembered     transactions that have ended

The last two are filled on and on in one cluster, from the least to the most; what the leader's
memory grew by meanwhile, for each, is in the table. A transaction in flight has one branch, so that
what it costs is the coordinator's alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from cluster.bench.campaign import Campaign, CampaignSettings, of
from cluster.bench.observe import REMEMBERED_NOW, leading, usage
from cluster.bench.place import Place, numbered, running
from cluster.bench.report import Result, Usage
from cluster.bench.requests import Load
from cluster.bench.run import fill, give
from cluster.bench.verdicts import ratio

CLIENTS = 64
PARTICIPANTS = (1, 3, 10, 30, 100)
CONCURRENCY = (1, 4, 16, 64, 256, 1024)
IN_FLIGHT = (0, 1_000, 10_000, 100_000)
REMEMBERED = (0, 10_000, 100_000, 1_000_000)

_HANGING = 6
"""Participants that hang, so that none of them has more unfinished branches than are allowed."""
_ROOM = "[limits]\nunfinished = 200_000\n"
_AN_HOUR_MS = 3_600_000


async def measure_growth(settings: CampaignSettings, say: Callable[[str], None]) -> Result:
    """All four tables. Raises BenchError."""
    campaign = Campaign("growth", settings, say)
    for rows in TABLES:
        await rows(campaign)
    judge(campaign)
    return campaign.result()


async def participants(campaign: Campaign) -> None:
    base = replace(campaign.settings.base, participants_per_transaction=max(PARTICIPANTS))
    async with running(base) as place:
        for clients in (1, CLIENTS):
            for count in PARTICIPANTS:
                load = campaign.load(
                    place, clients=clients, participants=place.participants[:count]
                )
                labels = {"participants": count, "clients": clients}
                await campaign.cell(place, "participants", labels, load)


async def concurrency(campaign: Campaign) -> None:
    async with running(campaign.settings.base) as place:
        for clients in CONCURRENCY:
            load = campaign.load(place, clients=clients)
            await campaign.cell(place, "concurrency", {"clients": clients}, load)


async def in_flight(campaign: Campaign) -> None:
    async with running(campaign.settings.base, _ROOM) as place:
        hanging = await place.start("hanging", "bench", "--hang", "--count", str(_HANGING))
        there, before = 0, usage(place.processes)
        for count in IN_FLIGHT:
            if count > campaign.settings.most_in_flight:
                break
            for url in numbered(hanging, _HANGING):
                await _hang(place, url, (count - there) // _HANGING)
            there = count
            grew = await _leaders_growth(place, before)
            labels = {"in_flight": count, "bytes_each": round(grew / count) if count else None}
            load = campaign.load(place, clients=CLIENTS)
            await campaign.cell(place, "in flight", labels, load)
        await place.kill_all()  # they do not end before their hour is over


async def _hang(place: Place, url: str, count: int) -> None:
    """`count` transactions more that wait for the participant at `url`."""
    if count:
        await give(
            Load(
                tuple(place.nodes.values()),
                (url,),
                clients=4,
                batch=min(count, 100),
                wait="none",
                timeout_ms=_AN_HOUR_MS,
                warm_up_s=0.0,
                most=count,
            )
        )


async def remembered(campaign: Campaign) -> None:
    async with running(campaign.settings.base) as place:
        before = usage(place.processes)
        for count in REMEMBERED:
            if count > campaign.settings.most_remembered:
                break
            there = int(sum(one[REMEMBERED_NOW] for one in (await leading(place.nodes)).values()))
            if count > there:
                await fill(place, count - there)
            grew = await _leaders_growth(place, before)
            labels = {"remembered": count, "bytes_each": round(grew / count) if count else None}
            load = campaign.load(place, clients=CLIENTS)
            await campaign.cell(place, "remembered", labels, load)


TABLES = (participants, concurrency, in_flight, remembered)


async def _leaders_growth(place: Place, before: Mapping[str, Usage]) -> float:
    """Bytes by which the memory of the node that leads has grown since `before`."""
    now = usage(place.processes)
    return float(
        sum(
            now[name].memory_bytes - before[name].memory_bytes
            for name in await leading(place.nodes)
        )
    )


def judge(campaign: Campaign) -> None:
    """The verdicts about the tables."""
    by_participants = campaign.tables["participants"]
    campaign.judge(
        "p50 with 100 participants, of that with 3, one client",
        ratio(
            of(by_participants, "p50_ms", participants=100, clients=1),
            of(by_participants, "p50_ms", participants=3, clients=1),
        ),
        4.0,
    )
    kept = campaign.tables["remembered"]
    for name, rows in (("in_flight", campaign.tables["in flight"]), ("remembered", kept)):
        most = rows[-1][name]
        share = ratio(rows[-1]["per_second"], rows[0]["per_second"])
        what = f"throughput with {most:,} {name.replace('_', ' ')}, of that with none"
        campaign.judge(what, share, 0.9, at_least=True)
    each = kept[-1]["bytes_each"]
    campaign.judge(f"memory of each of {kept[-1]['remembered']:,}", each, 1_024, " bytes")
