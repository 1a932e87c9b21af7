"""What the commands that ask a running cluster have in common: options, exit codes, the client."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

from cluster.cli.arguments import seconds
from cluster.cli.output import UserMistake
from cluster.client import Client, ClientError, OutcomeUnknown, Transaction

EXIT_COMMITTED, EXIT_ABORTED, EXIT_MISTAKE, EXIT_UNKNOWN, EXIT_NOT_TOLD = range(5)
EXIT_INTERRUPTED = 130
_DEFAULT_NODES = "127.0.0.1:8101,127.0.0.1:8102,127.0.0.1:8103"

Work = Callable[[Client, argparse.Namespace], Coroutine[Any, Any, int]]


def exit_code(answer: Transaction | ClientError) -> int:
    """What an answer about a transaction that was begun means."""
    if isinstance(answer, OutcomeUnknown):
        return EXIT_UNKNOWN
    if isinstance(answer, ClientError):
        return EXIT_MISTAKE
    if answer.committed:
        return EXIT_COMMITTED
    return EXIT_ABORTED if answer.aborted else EXIT_UNKNOWN


def with_client(work: Work, arguments: argparse.Namespace) -> int:
    """Do the work with a client for the nodes that are to be asked."""

    async def run() -> int:
        try:
            client = Client(_nodes_of(arguments))
        except ValueError as error:
            raise UserMistake(f"--nodes: {error}") from None
        async with client:
            return await work(client, arguments)

    return asyncio.run(run())


def _nodes_of(arguments: argparse.Namespace) -> str:
    """The nodes to ask: the option, else ASSENT_NODES, else those of `assent up`."""
    return str(arguments.nodes or os.environ.get("ASSENT_NODES") or _DEFAULT_NODES)


# --- options --------------------------------------------------------------------------------------


def shared_options() -> argparse.ArgumentParser:
    """A parser to build upon."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--nodes",
        metavar="HOST:PORT,...",
        help="any nodes of the cluster; the others, and the leader, are found. Default:"
        f" $ASSENT_NODES, else {_DEFAULT_NODES}",
    )
    shared.add_argument("--json", action="store_true", help="answer in JSON, one line each")
    shared.add_argument(
        "--deadline",
        type=seconds,
        metavar="SECONDS",
        default=30.0,
        help="after which to give up asking; default: %(default)g",
    )
    return shared


def add(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    shared: argparse.ArgumentParser,
    about: str,
) -> argparse.ArgumentParser:
    """Add a command."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".", parents=[shared]
    )
    parser.set_defaults(run=run)
    return parser
