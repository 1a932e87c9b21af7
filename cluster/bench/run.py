"""A measurement: a place, loads upon it, and the figures of both.

Rules
- What is measured is what is run: real nodes with their journals synced, real participants over
  HTTP. Nothing is stubbed, and what makes it lighter (`no_fsync`) stands in the result.
- A wrong answer fails the measurement: an outcome that does not follow from the votes, branches
  that stay prepared, branches that ended more often than they were prepared.
- CPU and memory are read of the system, per process, over the same time as the load's counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict

from cluster.bench.load_process import LoadProcess
from cluster.bench.observe import (
    LEADING,
    UNFINISHED,
    leading,
    machine,
    metrics,
    node_figures,
    usage,
)
from cluster.bench.place import Place, open_branches, running
from cluster.bench.report import Result, figures, merge
from cluster.bench.requests import Load
from cluster.bench.settings import BenchError, BenchSettings

_FILL_BATCH = 200
_FILL_CLIENTS = 4
_SETTLE_S = 15.0
_LOOK_EVERY_S = 0.1


async def measure(settings: BenchSettings) -> Result:
    """Run one measurement; the figures with `settings` and `machine`. Raises BenchError."""
    async with running(settings) as place:
        if settings.remembered:
            await fill(place, settings.remembered)
        result = await measure_loads(place, _loads(settings, place))
        result["wrong"] = await wrongs(result, place)
    return {"settings": asdict(settings), "machine": machine(), **result}


async def fill(place: Place, count: int) -> None:
    """Have the cluster finish `count` transactions, to be remembered. Raises BenchError."""
    await give(
        Load(
            tuple(place.nodes.values()),
            place.participants,
            clients=_FILL_CLIENTS,
            batch=min(_FILL_BATCH, count),
            warm_up_s=0.0,
            most=count,
            seed=0,
        )
    )


async def give(load: Load) -> None:
    """Have a load of `most` transactions done. Raises BenchError if one of them went wrong."""
    async with LoadProcess.running(load) as process:
        await process.begun()
        await process.over()
        tally = await process.tally()
        await process.leave()
    if tally["wrong"] or tally["failed"] or tally["refused"]:
        raise BenchError(f"filling failed: {tally['first_wrong'] or tally}")


async def measure_loads(place: Place, loads: Sequence[Load]) -> Result:
    """The figures of these loads together, over the time that they measure."""
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(LoadProcess.running(load)) for load in loads]
        await asyncio.gather(*(process.begun() for process in processes))
        pids = dict(place.processes)
        pids |= {f"load{number or ''}": process.pid for number, process in enumerate(processes)}
        before, told_before = usage(pids), await metrics(place.nodes)
        await asyncio.gather(*(process.over() for process in processes))
        after, told_after = usage(pids), await metrics(place.nodes)
        tallies = await asyncio.gather(*(process.tally() for process in processes))
        await asyncio.gather(*(process.leave() for process in processes))
    result = figures(merge(tallies), before, after)
    result["nodes"] = {
        name: node_figures(told_before[name], told_after[name]) for name in told_after
    }
    result["leader"] = next((n for n, told in told_after.items() if told.get(LEADING)), None)
    return result


async def calm(place: Place) -> None:
    """Wait until nothing is unfinished any more. Raises BenchError if that takes too long."""
    for _ in range(round(_SETTLE_S / _LOOK_EVERY_S)):
        unfinished = [one[UNFINISHED] for one in (await leading(place.nodes)).values()]
        if unfinished and not any(unfinished):
            return
        await asyncio.sleep(_LOOK_EVERY_S)
    raise BenchError(f"{unfinished or 'no leader, or'} transactions unfinished after the load")


async def wrongs(result: Result, place: Place) -> list[str]:
    """What contradicts atomicity, a sentence each; waits until the participants have settled."""
    counts = result["transactions"]
    found = []
    if counts["wrong"]:
        found.append(f"{counts['wrong']} answers were wrong, the first: {result['first_wrong']}")
    if counts["failed"]:
        found.append(f"{counts['failed']} transactions were never answered")
    if not place.started:
        return found
    still = 0
    for _ in range(round(_SETTLE_S / _LOOK_EVERY_S)):
        still = await open_branches(place.started)
        if not still:
            return found
        await asyncio.sleep(_LOOK_EVERY_S)
    found.append(f"{still} branches are prepared and not ended after {_SETTLE_S:.0f} s")
    return found


def _loads(settings: BenchSettings, place: Place) -> list[Load]:
    return [
        Load(
            tuple(place.nodes.values()),
            place.participants,
            clients=max(1, settings.clients // settings.load_processes),
            rate=settings.rate / settings.load_processes,
            batch=settings.batch,
            no_share=settings.no_share,
            read_only_share=settings.read_only_share,
            payload_bytes=settings.payload_bytes,
            warm_up_s=settings.warm_up,
            seconds=settings.seconds,
            seed=number,
        )
        for number in range(1, settings.load_processes + 1)
    ]
