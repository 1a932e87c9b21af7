"""The story for newcomers: orders run, the leader is killed among them, and the figures add up.

    1. three nodes and three services start, in a directory of their own
    2. eight clients order articles; some orders must abort: out of stock, or a user who is held
    3. the leader is killed with -9; the others elect one; the clients notice a pause, no failure
    4. the dead node is started again, and catches up
    5. the orders end, what was begun is finished, the account is made (`demo_account`)

It proves nothing that it does not measure: outcomes are the clients' answers, effects are read
from the services, and the process that was killed is looked for.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from cluster.client import Client, ClientError, OutcomeUnknown, UnknownTransaction
from cluster.local.cluster import LocalCluster
from cluster.local.demo_account import Account, Report
from cluster.local.sample_order import order
from coordinator.ids import IdMaker
from participants.clock import wall_clock_ms

_CLIENTS = 8
_USERS = 120
"""Few enough that now and then two clients want the same one, and one of them is refused."""
_ORDERS_PER_ARTICLE = 200
_STOCK = 240
"""Of each article; its orders ask for some 265: the last of them find it out of stock."""
_KILL_AT, _START_AT = 0.35, 0.65
"""Parts of the time of load."""
_SETTLE_TIMEOUT_S = 30.0
_PAGE = 10_000
_NODES_ASKED_FOR = 200
"""Transactions that each node is asked for, evenly over the run."""


async def run_demo(seconds: float, *, data_dir: Path | None, quiet: bool) -> Report:
    """Tell the story with `seconds` of load; prints as it goes unless `quiet`.

    A directory of our own is kept only when something went wrong, and then it is named.
    """
    story = _Story(quiet=quiet)
    directory = data_dir or Path(tempfile.mkdtemp(prefix="assent-demo-"))
    try:
        report = await _tell(story, directory, seconds)
    except Exception:
        print(f"the processes' logs are kept in {directory / 'logs'}", file=sys.stderr)
        raise
    except BaseException:
        _remove(directory, given=data_dir)
        raise
    if report.held:
        _remove(directory, given=data_dir)
    else:
        print(f"NOT ALL HELD; data and logs are kept in {directory}", file=sys.stderr)
    return report


async def _tell(story: _Story, directory: Path, seconds: float) -> Report:
    story.say("starting three nodes and three services")
    local = LocalCluster(
        directory, nodes=3, find_ports=True, arguments={"inventory": ("--stock", str(_STOCK))}
    )
    async with local:
        await _tell_processes(story, local)
        async with Client(local.node_urls) as client:
            report = await _play(story, local, client, seconds)
    _tell_report(story, report)
    return report


def _remove(directory: Path, *, given: Path | None) -> None:
    if given is None:
        shutil.rmtree(directory, ignore_errors=True)


class _Story:
    """Lines with the time since the beginning."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        if not self._quiet:
            print(f"{time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def show(self, *lines: str) -> None:
        if not self._quiet:
            print("\n".join(lines), flush=True)


async def _tell_processes(story: _Story, local: LocalCluster) -> None:
    leader = await local.wait_leader()
    for name in (*local.node_ids, *local.services):
        note = "  leads" if name == leader else ""
        story.show(f"         {name:<10} {local.url(name)}  pid {local.pid(name)}{note}")


# --- the load -------------------------------------------------------------------------------------


class _Load:
    """Clients that order one thing after the other, and what they were told."""

    def __init__(self, local: LocalCluster, client: Client, account: Account) -> None:
        self._local = local
        self._client = client
        self._account = account
        self._random = Random(20_260_131)
        self._new_id = IdMaker(wall_clock_ms, Random(os.urandom(16)))
        self._killed_at: float | None = None
        self._over = False
        self._tasks = [asyncio.create_task(self._order_on()) for _ in range(_CLIENTS)]

    def leader_killed(self, at: float) -> None:
        self._killed_at = at

    async def end(self) -> None:
        """No new orders; returns when the last one has its answer."""
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _order_on(self) -> None:
        while not self._over:
            await self._order_one()

    async def _order_one(self) -> None:
        account = self._account
        id = self._new_id()
        quantity = self._random.choice((1, 1, 2))
        sku = f"article-{1 + len(account.told) // _ORDERS_PER_ARTICLE}"
        user = f"user-{self._random.randrange(_USERS)}"
        account.told[id] = None
        account.quantity[id] = quantity
        began = time.monotonic()
        try:
            answer = await self._client.submit(order(self._local.url, user, sku, quantity), id=id)
        except OutcomeUnknown:
            return
        except ClientError as error:
            account.failures.append(f"{id}: {error}")
            return
        account.told[id] = answer.outcome
        if answer.aborted:
            kind = _kind(answer.reason)
            account.reasons[kind] = account.reasons.get(kind, 0) + 1
        elif self._killed_at is not None and began >= self._killed_at:
            account.next_commit_s = account.next_commit_s or time.monotonic() - self._killed_at


def _kind(reason: str | None) -> str:
    text = reason or ""
    return next((kind for kind in ("out of stock", "held") if kind in text), "other")


# --- the story ------------------------------------------------------------------------------------


async def _play(story: _Story, local: LocalCluster, client: Client, seconds: float) -> Report:
    account = Account()
    load = _Load(local, client, account)
    try:
        await _watch_load(story, account, seconds * _KILL_AT)
        victim = await _kill_leader(story, local, load, account)
        await _watch_load(story, account, seconds * (_START_AT - _KILL_AT))
        story.say(f"starting {victim} again")
        await local.start(victim)
        story.say(f"{victim} is back, pid {local.pid(victim)}")
        await _watch_load(story, account, seconds * (1 - _START_AT))
    finally:
        await load.end()
    story.say("the orders end; waiting until nothing is in doubt")
    await _settle(local, client, account)
    story.say("making the account")
    await _find_unknown(client, account)
    await _read_services(local, account)
    await _ask_every_node(local, account)
    return Report(account.figures(), account.checks())


async def _watch_load(story: _Story, account: Account, seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        await asyncio.sleep(min(1.0, left))
        committed, aborted = len(account.ids("committed")), len(account.ids("aborted"))
        story.say(f"{committed:6,} committed  {aborted:5,} aborted")


async def _kill_leader(story: _Story, local: LocalCluster, load: _Load, account: Account) -> str:
    victim = await local.wait_leader()
    account.old_leader, account.killed_pid = victim, local.pid(victim)
    story.say(f"kill -9 {victim} (pid {account.killed_pid}), the leader, in the middle of it")
    load.leader_killed(time.monotonic())
    await local.kill(victim)
    account.leader_was_dead = not _exists(account.killed_pid)
    account.new_leader = await local.wait_leader(other_than=victim)
    story.say(f"{account.new_leader} leads")
    return victim


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def _settle(local: LocalCluster, client: Client, account: Account) -> None:
    """Until no branch is prepared and no transaction is unfinished, or the time for that is
    over."""
    until = time.monotonic() + _SETTLE_TIMEOUT_S
    while time.monotonic() < until:
        abouts = [await local.ask(service, "/") for service in local.services]
        account.prepared_now = sum(about["branches"]["prepared"] for about in abouts)
        unfinished = await client.list(state="preparing,committing,aborting", limit=1_000)
        account.unfinished_now = len(unfinished.transactions)
        if (account.prepared_now, account.unfinished_now) == (0, 0):
            return
        await asyncio.sleep(0.1)


async def _find_unknown(client: Client, account: Account) -> None:
    """Ask for the transactions whose outcome the client did not learn."""
    for id in [id for id, told in account.told.items() if told is None]:
        try:
            outcome = (await client.get(id)).outcome
        except UnknownTransaction:
            outcome = "aborted"  # it never began, and nobody will begin it any more
        except ClientError as error:
            account.failures.append(f"{id}: {error}")
            continue
        account.found[id] = outcome or ""


async def _read_services(local: LocalCluster, account: Account) -> None:
    items = await local.ask("inventory", f"/items?limit={_PAGE}")
    account.stock_taken = sum(_STOCK - item["available"] for item in items)
    users = await local.ask("profile", f"/users?limit={_PAGE}")
    account.orders_counted = sum(user["fields"].get("orders", 0) for user in users)
    account.log_entries = (await local.ask("activity", "/entries/count"))["count"]
    for service in local.services:
        account.effects[service] = await _effects(local, service)


async def _effects(local: LocalCluster, service: str) -> dict[str, str]:
    effects: dict[str, str] = {}
    after = 0
    while True:
        page = await local.ask(service, f"/effects?after={after}&limit={_PAGE}")
        if not page:
            return effects
        effects.update((entry["transaction_id"], entry["effect"]) for entry in page)
        after = page[-1]["number"]


async def _ask_every_node(local: LocalCluster, account: Account) -> None:
    """Each node for itself, the one that was killed too; a follower may need a moment."""
    ids = list(account.told)
    chosen = ids[:: max(1, len(ids) // _NODES_ASKED_FOR)]
    answers = await asyncio.gather(
        *(_disagreements(local, account, node, chosen) for node in local.node_ids)
    )
    account.nodes_asked, account.transactions_asked = len(answers), len(chosen)
    account.disagreements = [line for lines in answers for line in lines]


async def _disagreements(
    local: LocalCluster, account: Account, node: str, ids: list[str]
) -> list[str]:
    until = time.monotonic() + _SETTLE_TIMEOUT_S / 3
    async with Client([local.url(node)]) as client:
        wrong: list[str] = []
        for id in ids:
            expected = account.told[id] or account.found.get(id)
            while (outcome := await _stale_outcome(client, id)) != expected:
                if time.monotonic() > until:
                    wrong.append(f"{node} says {outcome} of {id}")
                    break
                await asyncio.sleep(0.05)
        return wrong


async def _stale_outcome(client: Client, id: str) -> str | None:
    try:
        return (await client.get(id, stale=True, deadline=5.0)).outcome
    except ClientError:
        return None


# --- the end --------------------------------------------------------------------------------------


def _tell_report(story: _Story, report: Report) -> None:
    figures = report.figures
    reasons = ", ".join(f"{count:,} {kind}" for kind, count in figures["abort_reasons"].items())
    next_commit = figures["next_commit_after_kill_s"]
    story.show(
        "",
        f"  committed               {figures['committed']:>8,}",
        f"  aborted                 {figures['aborted']:>8,}  ({reasons})",
        f"  unknown to the client   {figures['unknown_to_the_client']:>8,}",
        f"  in doubt now            {figures['in_doubt_now']:>8,}",
        f"  next commit after kill  {'never' if next_commit is None else f'{next_commit:6.2f} s'}",
        "",
    )
    color = sys.stdout.isatty()
    for check in report.checks:
        word = "ok" if check.held else "FAILED"
        if color:
            word = f"\033[{32 if check.held else 31}m{word}\033[0m"
        story.show(f"  {word}  {check.claim}: {check.figures}")
    story.show("")
