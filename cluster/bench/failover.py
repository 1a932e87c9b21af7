"""How long a dead leader is felt: it is killed with -9 under load, again and again.

    1. calls of the client library, and a lean load beside them, at a rate that leaves room
    2. kill -9 of the leader; the clock runs
    3. until the first commit of a call that was begun after the kill, until every call from before
       it has ended, and until the participants hold nothing more that was prepared before it
    4. the dead node is started again and catches up; a pause; the next one

A call that fails, an outcome that the votes forbid, or participants that committed different
numbers make the campaign fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cluster.bench.callers import Called, Callers
from cluster.bench.campaign import Campaign, CampaignSettings
from cluster.bench.load_process import LoadProcess
from cluster.bench.place import Place, committed_branches, open_before, running
from cluster.bench.report import Result, figures, merge
from cluster.bench.run import wrongs
from cluster.bench.settings import BenchError
from cluster.bench.verdicts import rank
from cluster.local.cluster import LocalCluster

CALLS_PER_S = 100.0
_NO_SHARE = 0.1
_LOOK_EVERY_S = 0.02
_PATIENCE_S = 35.0
_CAUGHT_UP = 50
"""Entries that a follower lacks while it keeps up under load."""


async def measure_failover(settings: CampaignSettings, say: Callable[[str], None]) -> Result:
    """Kill the leader `settings.kills` times. Raises BenchError."""
    campaign = Campaign("failover", settings, say)
    if settings.base.node_count < 3:
        raise BenchError("one of fewer than three nodes cannot be killed: the others do not go on")
    async with running(settings.base) as place:
        load = campaign.load(place, clients=64, rate=settings.rate, no_share=_NO_SHARE, seconds=0.0)
        async with LoadProcess.running(load) as lean:
            await lean.begun()
            callers = Callers(load.nodes, place.participants, rate=CALLS_PER_S, no_share=_NO_SHARE)
            async with callers:
                for number in range(1, settings.kills + 1):
                    await _kill_once(campaign, place, callers, number)
            await lean.stop()
            tally = await lean.tally()
            await lean.leave()
        result = figures(merge([tally]), {}, {})
        campaign.wrong += await wrongs(result, place)
        campaign.wrong += callers.called.wrong
        campaign.wrong += [f"a call failed: {why}" for why in callers.called.failed]
        campaign.wrong += uneven(await committed_branches(place.started))
    judge(campaign, callers.called, result)
    return campaign.result()


async def _kill_once(campaign: Campaign, place: Place, callers: Callers, number: int) -> None:
    local = place.local
    assert local is not None
    victim = await local.wait_leader()
    failed_before = len(callers.called.failed)
    killed_at = asyncio.get_running_loop().time()
    callers.mark(killed_at)
    await local.kill(victim)
    in_doubt = await open_before(place.started, killed_at)
    next_commit_s, resolved_s = await asyncio.gather(
        callers.recovered(_PATIENCE_S), _resolved(place, killed_at)
    )
    slowest_s = callers.called.slowest_s
    leader = await local.wait_leader(other_than=victim)
    await local.start(victim)
    await _caught_up(local, leader, victim)
    campaign.add(
        "kills",
        {
            "kill": number,
            "next_commit_s": _rounded(next_commit_s),
            "slowest_call_s": _rounded(slowest_s),
            "in_doubt": in_doubt,
            "resolved_s": _rounded(resolved_s),
            "failed": len(callers.called.failed) - failed_before,
        },
    )
    await asyncio.sleep(campaign.settings.warm_up)  # load without a fault, before the next one


async def _resolved(place: Place, killed_at: float) -> float | None:
    """Seconds until no branch from before the kill is prepared any more; None: it took too long."""
    loop = asyncio.get_running_loop()
    while await open_before(place.started, killed_at):
        if loop.time() - killed_at > _PATIENCE_S:
            return None
        await asyncio.sleep(_LOOK_EVERY_S)
    return loop.time() - killed_at


async def _caught_up(local: LocalCluster, leader: str, name: str) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    while loop.time() < until:
        nodes = (await local.ask(leader, "/v1/cluster"))["nodes"]
        lag = next((node["lag"] for node in nodes if node["id"] == name), None)
        if lag is not None and lag <= _CAUGHT_UP:
            return
        await asyncio.sleep(_LOOK_EVERY_S)
    raise BenchError(f"{name} has not caught up {_PATIENCE_S:.0f} s after it was started again")


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def uneven(committed: dict[str, int]) -> list[str]:
    """What is wrong with the numbers of commits of participants that share every transaction."""
    if len(set(committed.values())) <= 1:
        return []
    return [f"participants committed different numbers of branches: {committed}"]


def judge(campaign: Campaign, called: Called, lean: Result) -> None:
    """The summary, and the verdicts."""
    kills = campaign.tables.get("kills", [])
    waits = _all_of(kills, "next_commit_s")
    counts = lean["transactions"]
    slowest_lean_s = lean["latency_ms"]["max"] / 1000
    summary = {
        "kills": len(kills),
        "calls": called.calls,
        "lean_calls": counts["committed"] + counts["aborted"],
        "failed": len(called.failed) + counts["failed"],
        "unsent": called.unsent + counts["unsent"],
    }
    for name in ("next_commit_s", "resolved_s", "slowest_call_s"):
        values = _all_of(kills, name) or []
        for what, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            summary[f"{name}_{what}"] = rank(values, share)
    campaign.add("summary", summary)
    campaign.judge("kill to next commit, p50", _rank(waits, 0.5), 1.0, " s")
    campaign.judge("kill to next commit, p99", _rank(waits, 0.99), 2.0, " s")
    slowest = _rank(_all_of(kills, "slowest_call_s"), 1.0)
    slowest = None if slowest is None else max(slowest, slowest_lean_s)
    campaign.judge("slowest call", slowest, 4.0, " s")
    campaign.judge("calls that failed", summary["failed"], 0)
    resolved = _rank(_all_of(kills, "resolved_s"), 1.0)
    campaign.judge("what was in doubt is resolved", resolved, 3.0, " s")


def _all_of(kills: list[dict[str, float | None]], name: str) -> list[float] | None:
    """The figures of all kills; None if one of them is missing: then nothing can be said."""
    values = [kill[name] for kill in kills]
    found = [value for value in values if value is not None]
    return found if found and len(found) == len(values) else None


def _rank(values: list[float] | None, share: float) -> float | None:
    return None if values is None else rank(values, share)
