"""The commands that ask a running cluster: submit, get, list, watch, resolve, retry, status."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import math
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cluster.cli.output import (
    UserMistake,
    cluster_text,
    print_json,
    transaction_line,
    transaction_text,
    transactions_text,
)
from cluster.client import (
    Client,
    ClientError,
    OutcomeUnknown,
    Transaction,
)

_DEFAULT_NODES = "127.0.0.1:8101,127.0.0.1:8102,127.0.0.1:8103"
_COMMITTED, _ABORTED, _MISTAKE, _UNKNOWN = 0, 1, 2, 3
_WATCH_EVERY = 1.0
_WATCHED = 100
"""Transactions that `watch` without an id looks at: the newest."""

_Work = Callable[[Client, argparse.Namespace], Coroutine[Any, Any, int]]


def add_commands(commands: Any) -> None:
    """Add these commands to the subparsers of `assent`."""
    shared = _shared_options()

    submit = _add(commands, "submit", _submit, shared, "run transactions and tell their outcome")
    submit.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help='JSON: a transaction, or {"transactions": [...]}; - (the default): standard input',
    )
    submit.add_argument("--id", help="the same id again is the same transaction")
    submit.add_argument("--timeout-ms", type=int, help="after which it aborts, undecided")
    submit.add_argument(
        "--wait", choices=("decision", "completion", "none"), help="what to wait for"
    )

    get = _add(commands, "get", _get, shared, "show a transaction")
    get.add_argument("id", metavar="ID")
    get.add_argument("--wait-ms", type=_milliseconds, help="wait so long for its end")
    get.add_argument("--stale", action="store_true", help="as any node happens to know it")

    listing = _add(commands, "list", _list, shared, "list transactions, newest first")
    listing.add_argument("--state", help="only those in this state, such as committing")
    listing.add_argument("--participant", help="only those with a branch at this participant")
    listing.add_argument("--older-than-ms", type=int, help="only those begun so long ago")
    listing.add_argument("--limit", type=int, help="at most so many")
    listing.add_argument("--after", help="the piece after this one; the list's end says which")

    watch = _add(commands, "watch", _watch, shared, "follow a transaction to its end")
    watch.add_argument("id", metavar="ID", nargs="?", help="without it: the newest, until Ctrl-C")

    resolve = _add(commands, "resolve", _resolve, shared, "end by hand what cannot end by itself")
    resolve.add_argument("id", metavar="ID")
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

    retry = _add(commands, "retry", _retry, shared, "call its participants again now")
    retry.add_argument("id", metavar="ID")

    cluster = commands.add_parser("cluster", help="the cluster itself")
    parts = cluster.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(parts, "status", _status, shared, "show the nodes, and who leads")


def nodes_of(arguments: argparse.Namespace) -> str:
    """The nodes to ask: the option, else ASSENT_NODES, else those of `assent up`."""
    return str(arguments.nodes or os.environ.get("ASSENT_NODES") or _DEFAULT_NODES)


def _shared_options() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--nodes", help=f"some nodes, by commas; default: $ASSENT_NODES, else {_DEFAULT_NODES}"
    )
    shared.add_argument("--json", action="store_true", help="answer in JSON, one line each")
    shared.add_argument(
        "--deadline", type=_seconds, default=30.0, help="give up after so many seconds (30)"
    )
    return shared


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _milliseconds(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of milliseconds")
    return int(text)


def _add(
    commands: Any, name: str, work: _Work, shared: argparse.ArgumentParser, about: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".", parents=[shared]
    )
    parser.set_defaults(run=lambda arguments: _with_client(work, arguments))
    return parser


def _with_client(work: _Work, arguments: argparse.Namespace) -> int:
    async def run() -> int:
        try:
            client = Client(nodes_of(arguments))
        except ValueError as error:
            raise UserMistake(f"--nodes: {error}") from None
        async with client:
            return await work(client, arguments)

    return asyncio.run(run())


# --- submit ---------------------------------------------------------------------------------------


async def _submit(client: Client, arguments: argparse.Namespace) -> int:
    body = _read_body(arguments.file)
    if "transactions" in body:
        return await _submit_many(client, arguments, body)
    given = {"id": arguments.id, "timeout_ms": arguments.timeout_ms, "wait": arguments.wait}
    body.update((name, value) for name, value in given.items() if value is not None)
    try:
        transaction = await client.submit_body(body, deadline=arguments.deadline)
    except OutcomeUnknown as error:
        if arguments.json:
            print_json(_error_shown(error))
        raise
    if arguments.json:
        print_json(transaction.raw)
    else:
        print(transaction_text(transaction))
    return _exit_code(transaction)


async def _submit_many(client: Client, arguments: argparse.Namespace, body: dict[str, Any]) -> int:
    if arguments.id is not None or arguments.timeout_ms is not None:
        raise UserMistake("submit: --id and --timeout-ms are for one transaction, not for a batch")
    entries = body["transactions"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserMistake("submit: transactions: must be a list of objects")
    if not entries:
        raise UserMistake("submit: transactions: must be a list of at least one transaction")
    for name in body:
        if name != "transactions":
            raise UserMistake(f"submit: {name}: unknown field beside transactions")
    answers = await client.submit_many(
        entries, wait=arguments.wait or "decision", deadline=arguments.deadline
    )
    for answer in answers:
        if arguments.json:
            print_json(answer.raw if isinstance(answer, Transaction) else _error_shown(answer))
        elif isinstance(answer, Transaction):
            print(transaction_line(answer))
        else:
            print(f"{'unknown' if isinstance(answer, OutcomeUnknown) else 'refused':<10} {answer}")
    codes = [_exit_code(answer) for answer in answers]
    # The one that needs somebody's attention most.
    return next((code for code in (_UNKNOWN, _MISTAKE, _ABORTED) if code in codes), _COMMITTED)


def _read_body(file: str) -> dict[str, Any]:
    if file == "-" and sys.stdin.isatty():
        raise UserMistake("submit: name a FILE of JSON, or send it to standard input")
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise UserMistake(f"submit: cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserMistake(f"submit: {file} is not a text in UTF-8") from None
    where = "standard input" if file == "-" else file
    try:
        body = json.loads(text)
    except ValueError as error:
        raise UserMistake(f"submit: {where} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise UserMistake(f"submit: {where}: must be a JSON object with participants")
    return body


def _exit_code(answer: Transaction | ClientError) -> int:
    if isinstance(answer, OutcomeUnknown):
        return _UNKNOWN
    if isinstance(answer, ClientError):
        return _MISTAKE
    if answer.committed:
        return _COMMITTED
    return _ABORTED if answer.aborted else _UNKNOWN


def _error_shown(error: ClientError) -> dict[str, Any]:
    if isinstance(error, OutcomeUnknown):
        shown = {"code": "outcome_unknown", "message": str(error)}
        return {"id": error.transaction_id, "outcome": None, "error": shown}
    return {"error": {"code": getattr(error, "code", "unavailable"), "message": str(error)}}


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
    page = await client.list(
        state=arguments.state,
        participant=arguments.participant,
        older_than_ms=arguments.older_than_ms,
        limit=arguments.limit,
        after=arguments.after,
        deadline=arguments.deadline,
    )
    if arguments.json:
        print_json(page.raw)
        return 0
    print(transactions_text(page.transactions))
    for participant, count in page.backlog.items():
        print(f"unfinished at {participant}: {count}")
    if page.next_after is not None:
        print(f"\nthere are more: --after {page.next_after}")
    return 0


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
        if transaction.finished or transaction.state == "refused":
            return _exit_code(transaction)
        await asyncio.sleep(_WATCH_EVERY / 10)


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
            await asyncio.sleep(_WATCH_EVERY)
    except asyncio.CancelledError:
        return 0  # Ctrl-C, the only way to end it


async def _status(client: Client, arguments: argparse.Namespace) -> int:
    status = await client.cluster(deadline=arguments.deadline)
    if arguments.json:
        print_json(status.raw)
    else:
        print(cluster_text(status))
    return 0


# --- the operator ---------------------------------------------------------------------------------


async def _resolve(client: Client, arguments: argparse.Namespace) -> int:
    if arguments.branch is not None and arguments.effect is None:
        raise UserMistake("resolve: --branch needs --effect committed, rolled_back or unknown")
    if arguments.branch is None and arguments.effect is not None:
        raise UserMistake("resolve: --effect is for --branch, not for --abort")
    transaction = await client.resolve(
        arguments.id,
        actor=arguments.actor or getpass.getuser(),
        reason=arguments.reason,
        outcome="abort" if arguments.abort else None,
        branch_id=arguments.branch,
        effect=arguments.effect,
        deadline=arguments.deadline,
    )
    return _show(transaction, arguments)


async def _retry(client: Client, arguments: argparse.Namespace) -> int:
    return _show(await client.retry(arguments.id, deadline=arguments.deadline), arguments)


def _show(transaction: Transaction, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json(transaction.raw)
    else:
        print(transaction_text(transaction))
    return 0
