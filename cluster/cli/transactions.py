"""The commands that ask a running cluster: get, list, watch, resolve, retry, cluster; submit."""

from __future__ import annotations

import argparse
import asyncio
import getpass
from typing import Any

from cluster.cli import submit
from cluster.cli.arguments import at_least_one, states, transaction_id, whole_number
from cluster.cli.asking import Work, add, exit_code, shared_options, with_client
from cluster.cli.output import (
    UserMistake,
    cluster_text,
    print_json,
    transaction_text,
    transactions_text,
)
from cluster.client import Client, Page, Transaction
from coordinator.settings import Limits

_WATCH_EVERY_S = 1.0
_WATCHED = 100
"""Transactions that `watch` without an id looks at: the newest."""
_LISTED = 100
"""Transactions that `list` looks for when it is not told how many."""
_PAGE = Limits().page_size
"""Transactions in a page that `list` asks for; a cluster may be set to give fewer, and says so."""
_MOST_PAGES = 100
"""Pages that `list` asks for; for each a node looks at a thousand transactions at most."""


def add_commands(commands: Any) -> None:
    """Add these commands to the subparsers of `assent`."""
    shared = shared_options()

    submit.add_command(commands, shared)

    get = _add(commands, "get", _get, shared, "show a transaction")
    get.add_argument("id", metavar="ID", type=transaction_id)
    get.add_argument(
        "--wait-ms", type=whole_number, metavar="MS", help="wait for its end, at most so long"
    )
    get.add_argument("--stale", action="store_true", help="at once, as the node asked knows it")

    listing = _add(commands, "list", _list, shared, "list transactions, newest first")
    listing.add_argument(
        "--state", type=states, metavar="STATE,...", help="only those in one of these states"
    )
    listing.add_argument("--participant", help="only those with a branch of this name or URL")
    listing.add_argument(
        "--older-than-ms", type=whole_number, metavar="MS", help="only those begun so long ago"
    )
    listing.add_argument("--limit", type=at_least_one, metavar="N", help="at most so many")
    listing.add_argument(
        "--after",
        type=whole_number,
        metavar="N",
        help="go on where an earlier list ended, by the number that it said there",
    )

    watch = _add(commands, "watch", _watch, shared, "follow a transaction to its end")
    watch.add_argument(
        "id",
        metavar="ID",
        type=transaction_id,
        nargs="?",
        help="without one: all changes of the newest transactions, until Ctrl-C",
    )

    resolve = _add(commands, "resolve", _resolve, shared, "end by hand what cannot end by itself")
    resolve.add_argument("id", metavar="ID", type=transaction_id)
    what = resolve.add_mutually_exclusive_group(required=True)
    what.add_argument("--abort", action="store_true", help="abort an undecided transaction")
    what.add_argument("--branch", metavar="BRANCH", help="declare this branch ended")
    resolve.add_argument(
        "--effect",
        choices=("committed", "rolled_back", "unknown"),
        help="with --branch: what became of it at its participant",
    )
    resolve.add_argument("--reason", required=True, help="kept for ever in the history")
    resolve.add_argument("--actor", default=None, help="who decides this; default: your user name")

    retry = _add(commands, "retry", _retry, shared, "call a transaction's participants again now")
    retry.add_argument("id", metavar="ID", type=transaction_id)

    cluster = commands.add_parser("cluster", help="the cluster itself")
    parts = cluster.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(parts, "status", _status, shared, "show the nodes, and who leads")
    transfer = _add(parts, "transfer", _transfer, shared, "hand leadership over to another node")
    transfer.add_argument(
        "node", metavar="NODE", nargs="?", help="without one: whichever lacks least of the log"
    )


def _add(
    commands: Any, name: str, work: Work, shared: argparse.ArgumentParser, about: str
) -> argparse.ArgumentParser:
    return add(commands, name, lambda arguments: with_client(work, arguments), shared, about)


# --- reading --------------------------------------------------------------------------------------


async def _get(client: Client, arguments: argparse.Namespace) -> int:
    transaction = await client.get(
        arguments.id,
        wait_ms=arguments.wait_ms,
        stale=arguments.stale,
        deadline=arguments.deadline,
    )
    return _show(transaction, arguments)


async def _list(client: Client, arguments: argparse.Namespace) -> int:
    found, page, pages = await _find(client, arguments)
    if arguments.json:
        print_json({**page.raw, "transactions": [transaction.raw for transaction in found]})
        return 0
    if found or page.next_after is None:
        print(transactions_text(found))
    else:
        behind = "" if arguments.after is None else f" after {arguments.after}"
        print(f"no transactions in the first {pages} pages{behind}; older ones were not looked at")
    for participant, count in page.backlog.items():
        print(f"unfinished at {participant}: {count}")
    if page.next_after is not None:
        print(f"\nthere may be more: --after {page.next_after}")
    return 0


async def _find(
    client: Client, arguments: argparse.Namespace
) -> tuple[list[Transaction], Page, int]:
    """As many as were asked for, the last page, and how many were needed: a node's page may be
    short of its limit, or empty, with more behind it."""
    loop = asyncio.get_running_loop()
    until = loop.time() + arguments.deadline
    found: list[Transaction] = []
    after, pages = arguments.after, 0
    while True:
        page = await client.list(
            state=arguments.state,
            participant=arguments.participant,
            older_than_ms=arguments.older_than_ms,
            limit=None if arguments.limit is None else min(arguments.limit - len(found), _PAGE),
            after=after,
            deadline=until - loop.time(),
        )
        found += page.transactions
        after, pages = page.next_after, pages + 1
        enough = len(found) >= (arguments.limit or _LISTED)
        if after is None or enough or pages == _MOST_PAGES or loop.time() >= until:
            return found, page, pages


async def _watch(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.id is None:
        return await _watch_all(client, arguments)
    shown = ""
    while True:
        transaction = await client.get(arguments.id, deadline=arguments.deadline)
        branches = "  ".join(f"{branch.name} {branch.state}" for branch in transaction.branches)
        line = f"{transaction.state:<10} {branches}"
        if line != shown:
            print_json(transaction.raw) if arguments.json else print(line, flush=True)
            shown = line
        if transaction.finished:
            return exit_code(transaction)
        await asyncio.sleep(_WATCH_EVERY_S / 10)


async def _watch_all(client: Client, arguments: argparse.Namespace) -> int:
    """A line whenever the leader or one of the newest transactions changes."""
    states: dict[str, str] = {}
    leader: str | None = ""
    try:
        while True:
            status = await client.cluster(deadline=arguments.deadline)
            page = await client.list(limit=_WATCHED, deadline=arguments.deadline)
            if status.leader != leader:
                leader = status.leader
                line = f"{'leader':<10} {leader or 'nobody'}, term {status.term}"
                print_json(status.raw) if arguments.json else print(line, flush=True)
            for transaction in reversed(page.transactions):
                if states.get(transaction.id) != transaction.state:
                    line = f"{transaction.state:<10} {transaction.id}"
                    print_json(transaction.raw) if arguments.json else print(line, flush=True)
            states = {transaction.id: transaction.state for transaction in page.transactions}
            await asyncio.sleep(_WATCH_EVERY_S)
    except asyncio.CancelledError:
        return 0  # Ctrl-C, the only way to end it


async def _status(client: Client, arguments: argparse.Namespace) -> int:
    status = await client.cluster(deadline=arguments.deadline)
    if arguments.json:
        print_json(status.raw)
    else:
        print(cluster_text(status))
    return 0


async def _transfer(client: Client, arguments: argparse.Namespace) -> int:
    status = await client.transfer_leadership(arguments.node, deadline=arguments.deadline)
    if arguments.json:
        print_json(status.raw)
    elif status.leader == status.self_id:
        print(f"{status.leader} leads already, in term {status.term}")
    else:
        print(f"{status.self_id} led, {status.leader} leads now, in term {status.term}")
    return 0


# --- the operator ---------------------------------------------------------------------------------


async def _resolve(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.branch is not None and arguments.effect is None:
        raise UserMistake("resolve: --branch needs --effect committed, rolled_back or unknown")
    if arguments.branch is None and arguments.effect is not None:
        raise UserMistake("resolve: --effect is for --branch, not for --abort")
    transaction = await client.resolve(
        arguments.id,
        actor=arguments.actor or _user(),
        reason=arguments.reason,
        outcome="abort" if arguments.abort else None,
        branch_id=arguments.branch,
        effect=arguments.effect,
        deadline=arguments.deadline,
    )
    return _show(transaction, arguments)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise UserMistake("resolve: your user has no name here; say --actor") from None


async def _retry(client: Client, arguments: argparse.Namespace) -> int:
    return _show(await client.retry(arguments.id, deadline=arguments.deadline), arguments)


def _show(transaction: Transaction, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(transaction.raw)
    else:
        print(transaction_text(transaction))
    return 0
