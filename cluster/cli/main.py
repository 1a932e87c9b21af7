"""The command `assent`: what may be typed, and how it ends.

    exit code  0  done; submit: committed
               1  submit and watch: aborted; demo: a check failed; node: it had to stop;
                  journal: something is damaged
               2  a mistake of the person at the keyboard: one line says which
               3  no answer from the cluster, or the outcome is unknown
               4  what was to be told cannot be written; submit: never, the outcome stands
             130  Ctrl-C, or SIGTERM (`node` and `up`: 0)

A command is a function from its parsed arguments to its exit code. Every expected failure is an
exception that is turned into one line here, and nowhere else; a traceback is a defect of ours.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, NoReturn

from cluster.cli import bench, journal, processes, transactions
from cluster.cli.asking import EXIT_MISTAKE, EXIT_NOT_TOLD, EXIT_UNKNOWN
from cluster.cli.output import Output, OutputFailed, UserMistake, complain
from cluster.client import ClientError, Refused, Unavailable
from cluster.errors import StorageError
from cluster.local.cluster import LocalClusterError
from cluster.local.ports import PortBusyError
from cluster.settings import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; `argv` without the program's name. Returns the exit code."""
    with redirect_stdout(Output(sys.stdout)):
        try:
            return _run(argv)
        except OutputFailed as error:
            if not error.reader_gone:
                complain(error)
            return EXIT_NOT_TOLD
        except (
            UserMistake,
            SettingsError,
            PortBusyError,
            LocalClusterError,
            StorageError,
            Refused,
        ) as error:
            complain(error)
            return EXIT_MISTAKE
        except Unavailable as error:
            complain(f"{error}; look whether the nodes run, or name others with --nodes")
            return EXIT_UNKNOWN
        except ClientError as error:
            complain(error)
            return EXIT_UNKNOWN


def _run(argv: Sequence[str] | None) -> int:
    try:
        typed = sys.argv[1:] if argv is None else argv
        arguments = _parser().parse_args(bench.shielded(typed))
        return int(arguments.run(arguments))
    finally:
        sys.stdout.flush()  # also of --help, which ends with SystemExit


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        name = self.prog.removeprefix("assent").strip()
        where = f"{name}: " if name else ""
        raise UserMistake(f"{where}{message}; see `{self.prog} --help`")


class _Version(argparse.Action):
    """Looks the version up when it is asked for: other commands need not wait for that."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(f"assent {importlib.metadata.version('assent')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="assent",
        description="A coordinator for atomic work across services: all of them commit, or none.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="say the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    processes.add_commands(commands)
    transactions.add_commands(commands)
    journal.add_commands(commands)
    bench.add_commands(commands)
    return parser
