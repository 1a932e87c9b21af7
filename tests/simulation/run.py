"""One run: a cluster comes up, faults and load, then everything heals and must settle.

Safety phase: load and faults for as long as the environment says. Liveness phase: no fault any
more; within `settle_s` all that was prepared is resolved, all replicas agree, and new transactions
commit. Then the history goes to the checker.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from aiohttp import web_app

from coordinator.facts import Mode
from tests.checker import Violation, check
from tests.simulation.environment import Environment, draw_environment
from tests.simulation.ledger import OPENING_BALANCE
from tests.simulation.leftovers import left_over
from tests.simulation.loop import Stuck
from tests.simulation.nemesis import rage
from tests.simulation.operators import Operator
from tests.simulation.patches import patched
from tests.simulation.services import ACCOUNTS
from tests.simulation.workload import Load, User
from tests.simulation.world import ClientHost, Host, World
from tests.simulation.wrong_clocks import set_nodes

FILES = 3
"""That a node has open: its lock, its watermark, the segment that grows. Without sync those before
it, too, as long as they are needed."""

PROBES = 3
PROBE_S = 15.0
_PARTITIONS = ("isolate", "halves", "one way", "bridge", "ring", "cut")
_KINDS = dict.fromkeys(_PARTITIONS, "partitions") | {"stop": "stops", "clock": "clock jumps"}
"""How faults of a kind are counted, beside what is counted when it is done."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a seed."""

    seed: int
    trace: str
    violations: tuple[Violation, ...]
    simulated_s: float
    cpu_s: float
    events: int
    calls: int
    counts: dict[str, int]
    settled_s: float
    """After everything was healed, until nothing was left to be done."""
    history: tuple[dict[str, Any], ...] = ()


def run_seed(
    seed: int,
    *,
    verbose: bool = False,
    keep_history: bool = False,
    change: Callable[[World], None] | None = None,
) -> Result:
    """Run one seed to its end. `change`: applied to the world before anything starts."""
    environment = draw_environment(seed)
    if verbose:
        print(environment)
    started = time.process_time()
    with _quiet() as collects:
        world = World(environment, verbose=verbose)
        if change is not None:
            change(world)
        with patched(world.network, environment):
            _run(world)
        result = _result(world, keeps=keep_history)
        with _unheard():
            _bury(world)
            del world
            if collects:
                gc.collect()  # a process that runs on must not keep every world (`cli.results`)
    return replace(result, cpu_s=time.process_time() - started)


def _result(world: World, *, keeps: bool) -> Result:
    environment = world.environment
    world.history.insert(0, _configuration(environment))
    violations = tuple(check(world.history))
    return Result(
        seed=environment.seed,
        trace=world.trace,
        violations=violations,
        simulated_s=world.loop.now,
        cpu_s=0.0,
        events=len(world.history),
        calls=world.loop.calls,
        counts=dict(sorted((Counter(world.counts) + _faults(world.history)).items())),
        settled_s=_settled_s(world.history),
        history=tuple(world.history) if keeps or violations else (),
    )


def broken(seed: int, error: Exception) -> Result:
    """The result of a seed in which the simulation itself failed."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{error!r} in {where.filename}:{where.lineno}"
    violation = Violation("the simulation", f"seed {seed}", 0.0, text)
    return Result(seed, "", (violation,), 0.0, 0.0, 0, 0, {}, 0.0)


def _faults(history: list[dict[str, Any]]) -> Counter[str]:
    """What struck, by kind; a fault that was drawn and found nobody to strike is not among it."""
    struck: Counter[str] = Counter()
    for event in history:
        name = _KINDS.get(event["kind"]) if event["event"] == "fault" else None
        if name is not None:
            struck[name] += 1
    return struck


def _settled_s(history: list[dict[str, Any]]) -> float:
    settled = [event["after_s"] for event in history if event["event"] == "settled"]
    return float(settled[0]) if settled else 0.0


def _configuration(environment: Environment) -> dict[str, Any]:
    return {
        "event": "run",
        "at": 0.0,
        "source": f"seed {environment.seed}",
        "participants": {
            f"p{i}": "forgetful" if environment.brief else kind
            for i, kind in enumerate(environment.kinds, 1)
        },
        "nodes": [f"n{i}" for i in range(1, environment.nodes + 1)],
        "forgets": environment.forgets,
        "kept_s": environment.kept_s,
        "complete": True,
        "ordered": True,
    }


def _run(world: World) -> None:
    loop = world.loop
    main = loop.create_task(_whole(world), context=copy_context())
    main.add_done_callback(lambda _: loop.stop())
    world.keep(main)
    try:
        loop.run_forever()
        if main.done() and not main.cancelled() and main.exception() is not None:
            raise main.exception()  # type: ignore[misc]
    except Stuck as stuck:
        world.record("unsettled", what=[f"the run is stuck: {stuck}"])


async def _whole(world: World) -> None:
    load = Load(world)
    for number in range(1, world.environment.clients + 1):
        client = ClientHost(world, f"c{number}", f"127.0.3.{number}", load.client)
        world.clients.append(client)
        world.network.add(client)
    for host in world.hosts:
        host.start()
    await world.led.wait()
    if world.environment.operator_s:
        operator = ClientHost(world, "operator", "127.0.3.201", Operator(load).program)
        world.network.add(operator)
        operator.start()
    if world.environment.bounds:
        world.count("seeds with small bounds")
    await rage(world)
    if world.network.flipped:
        world.count("bits that changed between nodes", world.network.flipped)
    for host in world.hosts:
        host.start()
    if await _settle(world):
        if world.environment.nodes_ahead:
            await set_nodes(world)
        await _probe(world, load)
    await _finish(world, load)


async def _settle(world: World) -> bool:
    """Wait until nothing is left to be done; says what is, if it takes too long."""
    began = world.loop.now
    left: list[str] = ["not looked"]
    while world.loop.now - began < world.environment.settle_s:
        left = unsettled(world)
        if not left:
            world.record("settled", after_s=round(world.loop.now - began, 3))
            return True
        await asyncio.sleep(0.25)
    world.record("unsettled", what=left)
    return False


def unsettled(world: World) -> list[str]:
    """What is still to be done before the run may end."""
    left = [f"{c.name} still works" for c in world.clients if not c.is_done]
    for service in world.services:
        if not service.runs:
            left.append(f"{service.name} is down")
        if doubtful := service.store.in_doubt_now():
            left.append(f"{service.name} has {doubtful[:3]} in doubt")
        if begun := service.store.begun_now():
            left.append(f"{service.name} has worked on {begun[:3]}")
    alive = [host for host in world.nodes if not host.retired]
    applied = set()
    for host in alive:
        node = host.node
        if not host.runs or node is None:
            left.append(f"{host.name} is down")
            continue
        status = node.replica.status()
        applied.add((status.applied, status.last, status.committed))
        if status.leader is None:
            left.append(f"{host.name} knows no leader")
        left += [
            f"{host.name} does not reach {peer.node}"
            for peer in status.peers
            if not peer.connected and not world.host(peer.node).retired
        ]
        if node.machine.unfinished_count:
            left.append(f"{host.name} has {node.machine.unfinished_count} unfinished")
        keep_ms = world.environment.keep_ms
        for what in left_over(node, now_ms=host.now_ms(), keep_ms=keep_ms):
            left.append(f"{host.name} has {what}")
        if len(host.disk.opened) > FILES and world.environment.syncs:
            names = sorted(path.name for path in host.disk.opened.values())
            left.append(f"{host.name} has open files: {names}")
    if len(applied) > 1:
        left.append(f"logs differ: {sorted(applied)}")
    return left


async def _probe(world: World, load: Load) -> None:
    """New transactions commit now (I17)."""
    client = ClientHost(world, "probe", "127.0.3.200", _nothing_to_do)
    world.network.add(client)
    finished = world.loop.create_future()

    async def program(host: ClientHost) -> None:
        draw = Random(f"{world.environment.seed} probe")
        async with load.library(host, draw) as library:
            user = User(load, host, library, draw)
            for _ in range(PROBES):
                body = load.new_body(draw, library._new_id())
                for entry in body["participants"]:
                    entry["payload"] |= {"vote": "yes", "amount": 0, "account": ACCOUNTS[-1]}
                body |= {"timeout_ms": 3_000, "wait": "completion"}
                load.bodies[body["id"]] = body
                began = world.loop.now
                answer = await user.submit(body, deadline_s=20.0)
                took_s = round(world.loop.now - began, 3)
                outcome = None if answer is None else answer.outcome
                world.record("probe", id=body["id"], outcome=outcome, took_s=took_s)
                if outcome != "committed":  # what it left prepared would make the next one fail
                    await _settle(world)
            for id in [*list(load.bodies)[-12:], *list(load.opened)[-6:]]:
                await user.ask(id)
            for id in list(load.bodies)[-4:]:
                await user.ask(id, stale=True)
        finished.set_result(None)

    client._load = program
    client.start()
    try:
        async with asyncio.timeout(PROBES * 25.0 + 16 * 6.0):
            await finished
    except TimeoutError:
        world.record("unsettled", what=["the probe does not end"])
    await _settle(world)


async def _nothing_to_do(_: ClientHost) -> None:
    pass


async def _finish(world: World, load: Load) -> None:
    """What everybody has in the end."""
    ids = dict.fromkeys(load.bodies) | dict.fromkeys(load.opened)
    ids |= dict.fromkeys(e["id"] for e in world.history if e.get("id") is not None)
    for service in world.services:
        world.record(
            "participant_end",
            participant=service.name,
            in_doubt=service.store.in_doubt_now() + service.store.begun_now(),
            held=service.store.held(),
            balances=service.store.balances(),
            opening=OPENING_BALANCE,
        )
    for host in world.nodes:
        if host.retired or host.node is None:
            continue
        machine = host.node.machine
        digest = hashlib.blake2b(digest_size=8)
        for chunk in machine.chunks(machine.view()):
            digest.update(chunk)
        outcomes = {}
        by_hand = {}
        enlisted = {}
        for id in ids:
            transaction = machine.get(id)
            if transaction is None or transaction.outcome is None:
                continue
            outcomes[id] = "committed" if transaction.outcome.value == "commit" else "aborted"
            said = {r.branch_id: r.effect for r in transaction.resolutions if r.branch_id}
            if said:
                by_hand[id] = said
            if transaction.mode is Mode.INTERACTIVE:
                votes = zip(transaction.branches, transaction.votes, strict=True)
                enlisted[id] = {b.branch_id: [b.name, vote.value] for b, vote in votes}
        world.record(
            "node_end",
            node=host.name,
            digest=digest.hexdigest(),
            outcomes=outcomes,
            by_hand=by_hand,
            **({"enlisted": enlisted} if enlisted else {}),
        )


@contextmanager
def _quiet() -> Iterator[bool]:
    """No logging, and no garbage collection, which would run dead programs' `finally`s. Gives
    whether there is one otherwise.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    collects = gc.isenabled()
    gc.disable()
    try:
        yield collects
    finally:
        if collects:
            gc.enable()
        logging.disable(disabled)


def _bury(world: World) -> None:
    """Let go of everything; what then still wants to speak is not listened to."""
    for host in world.network.machines.values():
        if isinstance(host, Host) and host.process is not None:
            host.process.alive = False
    world.record = _deaf  # type: ignore[method-assign]
    world._kept.clear()
    world.loop._due.clear()
    world.loop._timers.clear()
    for host in world.nodes:
        host.node = None
    world.loop.close()
    web_app._cached_build_middleware.cache_clear()  # it would keep the services of many worlds


@contextmanager
def _unheard() -> Iterator[None]:
    """The last words of dead programs, in their `finally`s, are nobody's; nor what they were to do
    and did not begin.
    """
    hook = sys.unraisablehook
    sys.unraisablehook = _deaf
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = hook


def _deaf(*_: Any, **__: Any) -> None:
    pass
