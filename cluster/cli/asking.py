"""What the commands that ask a running cluster have in common: options, exit codes, the client."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cluster.cli.output import UserMistake
from cluster.client import Client, ClientError, OutcomeUnknown, Transaction
from coordinator.facts import State
from coordinator.ids import ID_RULE, is_valid_id

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


def transaction_id(text: str) -> str:
    """An argument: a mistake in it is told before anybody is asked."""
    if not is_valid_id(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no transaction's id: it {ID_RULE}")
    return text


def states(text: str) -> str:
    """An argument: states, by commas."""
    for name in text.split(","):
        if name not in list(State):
            known = ", ".join(State)
            raise argparse.ArgumentTypeError(f"{name!r} is no state; there are {known}")
    return text


def whole_number(text: str) -> int:
    """An argument."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def at_least_one(text: str) -> int:
    """An argument. How much is too much, a cluster's settings say."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return number


def seconds(text: str) -> float:
    """An argument."""
    return _above_nothing(text, "a number of seconds")


def more_than_nothing(text: str) -> float:
    """An argument."""
    return _above_nothing(text, "a number")


def not_negative(text: str) -> float:
    """An argument."""
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return number


def share(text: str) -> float:
    """An argument."""
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return number


def directory(text: str) -> str:
    """An argument: one that is there."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a directory")
    return text


def file_to_write(text: str) -> Path:
    """An argument: what takes long to find out must not be lost for want of a place."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a directory; name a file in it")
    if not file.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{file.parent} is not a directory")
    return file


def _above_nothing(text: str, what: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what} above 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan  # which is in no range
