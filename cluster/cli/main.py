"""The command `assent`: what may be typed, and how it ends.

    exit code  0  done; submit: committed
               1  submit and watch: aborted; demo: a check failed; node: it had to stop;
                  journal: something is damaged
               2  a mistake of the person at the keyboard: one line says which
               3  no answer from the cluster, or the outcome is unknown

A command is a function from its parsed arguments to its exit code. Every expected failure is an
exception that is turned into one line here, and nowhere else; a traceback is a defect of ours.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cluster.cli import bench, journal, processes, transactions
from cluster.cli.output import UserMistake
from cluster.client import ClientError, OutcomeUnknown, Refused
from cluster.errors import StorageError
from cluster.local.cluster import LocalClusterError
from cluster.local.ports import PortBusyError
from cluster.settings import SettingsError
from participants.logs import one_line

EXIT_MISTAKE = 2
EXIT_UNKNOWN = 3
_EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name. Returns the exit code."""
    try:
        arguments = _parser().parse_args(argv)
        code = arguments.run(arguments)
        sys.stdout.flush()
        return int(code)
    except (UserMistake, SettingsError, PortBusyError, LocalClusterError, StorageError) as error:
        return _say(error, EXIT_MISTAKE)
    except Refused as error:
        return _say(error, EXIT_MISTAKE)
    except OutcomeUnknown as error:
        again = f"ask again with the same content: assent submit --id {error.transaction_id}"
        return _say(f"{error}; {again}", EXIT_UNKNOWN)
    except ClientError as error:
        return _say(error, EXIT_UNKNOWN)
    except KeyboardInterrupt:
        return _EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone (`assent list | head`); Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _say(what: object, code: int) -> int:
    line = one_line(" ".join(str(what).split()))
    print(f"assent: {line}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("assent").strip()
        where = f"{name}: " if name else ""
        raise UserMistake(f"{where}{message}; see `{self.prog} --help`")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="assent",
        description="A coordinator for atomic work across services: all of them commit, or none.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    processes.add_commands(commands)
    transactions.add_commands(commands)
    journal.add_commands(commands)
    bench.add_commands(commands)
    return parser
