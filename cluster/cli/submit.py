"""The command `assent submit`: run transactions, and tell by the exit code how they ended.

The outcome decides the exit code, whatever becomes of the output; and what is not known is never
told as known. So from the moment at which something may have been sent, whatever breaks - the
output, the network, this program - ends with the exit code of what is known by then, and one line
says which transaction that is about and how to ask for it.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

from cluster.cli.arguments import at_least_one, transaction_id
from cluster.cli.asking import (
    EXIT_ABORTED,
    EXIT_COMMITTED,
    EXIT_INTERRUPTED,
    EXIT_MISTAKE,
    EXIT_UNKNOWN,
    add,
    exit_code,
    with_client,
)
from cluster.cli.output import (
    OutputFailed,
    UserMistake,
    complain,
    print_json,
    transaction_line,
    transaction_text,
)
from cluster.client import Client, ClientError, OutcomeUnknown, Transaction
from coordinator.ids import ID_RULE, IdMaker, is_valid_id
from coordinator.settings import Timings
from participants.clock import wall_clock_ms


def add_command(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Add `submit` to the subparsers of `assent`."""
    submit = add(commands, "submit", _submit, shared, "run transactions and tell their outcome")
    submit.add_argument(
        "file",
        nargs="?",
        default="-",
        metavar="FILE",
        help='JSON: a transaction, or {"transactions": [...]}; - (the default): standard input',
    )
    submit.add_argument(
        "--id",
        type=transaction_id,
        help="the transaction's; sent again with the same content it is the same transaction and"
        " runs once. Default: a new one",
    )
    usual = Timings()
    submit.add_argument(
        "--timeout-ms",
        type=at_least_one,
        metavar="MS",
        help="abort what is not decided after so long; the cluster's settings say how much may be"
        f" asked for, usually {usual.min_timeout_ms} to {usual.max_timeout_ms}",
    )
    submit.add_argument(
        "--wait",
        choices=("decision", "completion", "none"),
        help="until the outcome is fixed (the default), until every participant has carried it out,"
        " or only until it is begun",
    )


@dataclass(slots=True)
class _Known:
    """What is known so far, whatever breaks now: for the exit code, and in words."""

    code: int = EXIT_UNKNOWN
    words: str = "nothing was sent"


def _submit(arguments: argparse.Namespace) -> int:
    body = _read_body(arguments.file)
    work = _many if "transactions" in body else _one
    known = _Known()
    try:
        return with_client(functools.partial(work, known, body), arguments)
    except (UserMistake, ClientError):
        raise
    except OutputFailed as error:
        if not error.reader_gone:
            complain(f"{known.words}; {error}")
    except KeyboardInterrupt:
        complain(f"{known.words}; interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:
        complain(f"{known.words}; the command broke: {error!r}")
    return known.code


# --- one ------------------------------------------------------------------------------------------


async def _one(
    known: _Known, body: dict[str, Any], client: Client, arguments: argparse.Namespace
) -> int:
    given = {"id": arguments.id, "timeout_ms": arguments.timeout_ms, "wait": arguments.wait}
    body.update((name, value) for name, value in given.items() if value is not None)
    if body.get("id") is None:
        body["id"] = IdMaker(wall_clock_ms, SystemRandom())()
    if not is_valid_id(body["id"]):
        raise UserMistake(f"submit: id: {ID_RULE}")
    again = f"ask again with the same content: {_again(arguments, body['id'])}"
    known.words = f"the outcome of transaction {body['id']} is unknown; {again}"
    try:
        transaction = await client.submit_body(body, deadline=arguments.deadline)
    except OutcomeUnknown as error:
        if error.for_good:
            again = "if its participants show that it never was, submit it under a new id"
        complain(f"{error}; {again}")
        known.words = f"transaction {body['id']}"
        if arguments.json:
            print_json(_error_shown(error))
        return known.code
    known.code = exit_code(transaction)
    known.words = f"transaction {transaction.id} is {transaction.outcome or transaction.state}"
    print_json(transaction.raw) if arguments.json else print(transaction_text(transaction))
    sys.stdout.flush()
    return known.code


def _again(arguments: argparse.Namespace, id: str) -> str:
    """The command that asks for the same transaction once more."""
    nodes = () if arguments.nodes is None else ("--nodes", arguments.nodes)
    file = () if arguments.file == "-" else (arguments.file,)
    return shlex.join(("assent", "submit", "--id", id, *nodes, *file))


# --- a batch --------------------------------------------------------------------------------------


async def _many(
    known: _Known, body: dict[str, Any], client: Client, arguments: argparse.Namespace
) -> int:
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
    known.words = (
        f"the outcomes of {len(entries)} transactions are unknown; ask again with the same content"
        " if it names their ids, else look for them with assent list"
    )
    answers = await client.submit_many(
        entries, wait=arguments.wait or "decision", deadline=arguments.deadline
    )
    codes = [exit_code(answer) for answer in answers]
    # The one that needs somebody's attention most.
    order = (EXIT_UNKNOWN, EXIT_MISTAKE, EXIT_ABORTED)
    known.code = next((code for code in order if code in codes), EXIT_COMMITTED)
    counts = Counter(_word(answer) for answer in answers)
    known.words = "of the batch " + ", ".join(f"{n} {word}" for word, n in counts.items())
    for answer in answers:
        if arguments.json:
            print_json(answer.raw if isinstance(answer, Transaction) else _error_shown(answer))
        elif isinstance(answer, Transaction):
            print(transaction_line(answer))
        else:
            print(f"{_word(answer):<10} {answer}")
    sys.stdout.flush()
    return known.code


def _word(answer: Transaction | ClientError) -> str:
    if isinstance(answer, Transaction):
        return answer.outcome or answer.state
    return "unknown" if isinstance(answer, OutcomeUnknown) else "refused"


# --- in and out -----------------------------------------------------------------------------------


def _read_body(file: str) -> dict[str, Any]:
    if file == "-" and sys.stdin is None:
        raise UserMistake("submit: standard input is closed; name a FILE of JSON")
    if file == "-" and sys.stdin.isatty():
        raise UserMistake("submit: name a FILE of JSON, or send it to standard input")
    where = "standard input" if file == "-" else file
    try:
        body = json.loads(_read(file))
    except OSError as error:
        raise UserMistake(f"submit: cannot read {where}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserMistake(f"submit: {where} is not a text in UTF-8") from None
    except ValueError as error:
        raise UserMistake(f"submit: {where} is not JSON: {error}") from None
    except RecursionError:
        raise UserMistake(f"submit: {where} is nested too deeply") from None
    if not isinstance(body, dict):
        raise UserMistake(f"submit: {where}: must be a JSON object with participants")
    return body


def _read(file: str) -> str:
    """JSON is in UTF-8, whatever the terminal speaks."""
    if file != "-":
        return Path(file).read_text(encoding="utf-8")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    return sys.stdin.read()


def _error_shown(error: ClientError) -> dict[str, Any]:
    if isinstance(error, OutcomeUnknown):
        shown = {"code": "outcome_unknown", "message": str(error)}
        return {"id": error.transaction_id, "outcome": None, "error": shown}
    return {"error": {"code": getattr(error, "code", "unavailable"), "message": str(error)}}
