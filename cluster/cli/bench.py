"""The command `assent bench`: measure a cluster on this machine, or one that runs.

assent bench --clients 256 --seconds 10 --json figures.json
assent bench --rate 5000                                        open loop
assent bench --compare "--batch 1" "--batch 16"                 in turn, medians and the ratio
assent bench --baseline floor --baseline plain                  beside it, in the same run
assent bench failover                                           a campaign (`cluster.cli.campaigns`)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.bench.floor import measure_floor
from cluster.bench.postgres import PostgresMissing, measure_postgres
from cluster.bench.report import Result, compared, compared_shown, floor_shown, shown
from cluster.bench.run import measure
from cluster.bench.settings import BenchError, BenchSettings
from cluster.cli.arguments import (
    at_least_one,
    directory,
    file_to_write,
    not_negative,
    seconds,
    share,
    whole_number,
)
from cluster.cli.campaigns import add_campaigns
from cluster.cli.output import UserMistake

_BASELINES = ("floor", "plain", "postgres")


def add_commands(commands: Any) -> None:
    """Add `bench` to the subparsers of `assent`."""
    bench = commands.add_parser(
        "bench",
        help="measure throughput and latency",
        description="Start a cluster, participants and load, each in processes of their own, and"
        " print what was measured. Exit code 1 if an answer was wrong.",
    )
    _add_settings(bench)
    bench.add_argument("--json", type=file_to_write, metavar="FILE", help="write everything there")
    bench.add_argument(
        "--compare",
        nargs=2,
        type=str.strip,
        metavar=("A", "B"),
        help="two settings, each as a quoted string of options, measured in turn",
    )
    bench.add_argument(
        "--rounds", type=at_least_one, default=3, help="of --compare; default: %(default)s"
    )
    bench.add_argument(
        "--baseline",
        choices=_BASELINES,
        action="append",
        default=[],
        help="measure this too: the floor of latency; calls that do not share requests;"
        " PostgreSQL's own two-phase commit",
    )
    bench.add_argument(
        "--postgres",
        metavar="DSN,DSN,DSN",
        help="databases for --baseline postgres, with max_prepared_transactions set",
    )
    bench.set_defaults(run=_bench)
    add_campaigns(bench)


def shielded(argv: Sequence[str]) -> list[str]:
    """What was typed, with a space before both sides of `--compare`: argparse would take a side of
    one word, such as "--no-fsync", for an option of its own."""
    words = list(argv)
    for at, word in enumerate(words):
        if word == "--compare":
            words[at + 1 : at + 3] = [f" {side}" for side in words[at + 1 : at + 3]]
    return words


def _add_settings(parser: argparse.ArgumentParser) -> None:
    default = BenchSettings()
    add = parser.add_argument
    add(
        "--clients",
        type=at_least_one,
        metavar="N",
        help=f"each with one request under way; default {default.clients}",
    )
    add(
        "--rate",
        type=not_negative,
        metavar="R",
        help="requests per second, whatever is answered (open loop)",
    )
    add("--seconds", type=seconds, help=f"of measuring; default {default.seconds:g}")
    add("--warm-up", type=not_negative, metavar="SECONDS", help=f"default {default.warm_up:g}")
    add("--participants-per-transaction", type=at_least_one, metavar="N", help="default 3")
    add("--participant-processes", type=at_least_one, metavar="N", help="to hold them; default 1")
    add("--load-processes", type=at_least_one, metavar="N", help="default 1")
    add("--batch", type=at_least_one, metavar="N", help="transactions in one request; default 1")
    add("--no-share", type=share, metavar="X", help="of the transactions, with one NO vote")
    add("--read-only-share", type=share, metavar="X", help="of the branches")
    add("--payload-bytes", type=whole_number, metavar="N", help="added to each branch's payload")
    add("--plain", action="store_true", help="participants without the SDK")
    add("--no-batches", action="store_true", help="SDK participants, one message per request")
    add("--store", choices=("memory", "sqlite"), help="of the participants; default memory")
    add("--no-fsync", action="store_true", help="do not sync the nodes' journals")
    add(
        "--remembered",
        type=whole_number,
        metavar="N",
        help="transactions finished before measuring",
    )
    add("--log-level", choices=("info", "warning"), help="of the nodes; default info")
    add("--node-count", type=int, choices=(1, 3, 5), help="of nodes started here; default 3")
    add("--nodes", type=_urls, metavar="URL,...", help="of a cluster that runs, not started here")
    add("--participants", type=_urls, metavar="URL,...", help="that run, not started here")
    add(
        "--data-dir",
        type=directory,
        metavar="DIR",
        help="where the journals go, on the disk to be measured",
    )
    add(
        "--code",
        type=directory,
        metavar="DIR",
        help="run nodes and participants from this source tree",
    )
    add("--profile", metavar="DIR", help="profile the nodes: DIR/ID.stacks")


def _urls(text: str) -> tuple[str, ...]:
    return tuple(url.rstrip("/") for url in text.split(",") if url)


def _settings(arguments: argparse.Namespace) -> BenchSettings:
    given = {
        name: getattr(arguments, name) for name in (field.name for field in fields(BenchSettings))
    }
    settings = BenchSettings(**{name: value for name, value in given.items() if value is not None})
    if settings.nodes and not settings.participants and not _is_local(settings.nodes):
        raise UserMistake("bench: --nodes elsewhere cannot call participants here: --participants")
    if settings.plain and settings.store == "sqlite":
        raise UserMistake("bench: plain participants are in memory only; leave --store sqlite out")
    return settings


def _is_local(nodes: Sequence[str]) -> bool:
    return all("//127.0.0.1" in url or "//localhost" in url for url in nodes)


def _more(base: argparse.Namespace, options: str) -> BenchSettings:
    """The settings with more options on top."""
    parser = argparse.ArgumentParser(prog="assent bench --compare", exit_on_error=False)
    _add_settings(parser)
    over = argparse.Namespace(**vars(base))
    try:
        _, unknown = parser.parse_known_args(shlex.split(options), over)
    except (argparse.ArgumentError, ValueError) as error:
        raise UserMistake(f"bench: --compare {options!r}: {error}") from None
    if unknown:
        raise UserMistake(f"bench: --compare {options!r}: {unknown[0]} is no option of bench")
    return _settings(over)


def _bench(arguments: argparse.Namespace) -> int:
    try:
        return asyncio.run(_run(arguments))
    except (BenchError, PostgresMissing) as error:
        raise UserMistake(f"bench: {error}") from None


async def _run(arguments: argparse.Namespace) -> int:
    results: list[Result] = []
    written: Result = {}
    baselines = {}
    for name in dict.fromkeys(arguments.baseline):
        baselines[name], told = await _baseline(name, arguments, results)
        print(told, end="\n\n", flush=True)
    if arguments.compare is None:
        written = await measure(_settings(arguments))
        results.append(written)
        print(shown(written), flush=True)
    else:
        sides = [_more(arguments, options) for options in arguments.compare]
        rounds = []
        for number in range(arguments.rounds):
            pair = [await measure(side) for side in sides]
            rounds.append(pair)
            results += pair
            rates = " against ".join(f"{result['per_second']:,.0f}" for result in pair)
            print(f"round {number + 1}: {rates} transactions/s", flush=True)
        comparison = compared(arguments.compare, rounds)
        print(compared_shown(comparison), flush=True)
        written = {"comparison": comparison, "results": results}
    if arguments.json is not None:
        written = {**written, "baselines": baselines}
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")
    wrongs = [what for result in results for what in result["wrong"]]
    for what in wrongs:
        print(f"WRONG: {what}", flush=True)
    return 1 if wrongs else 0


async def _baseline(
    name: str, arguments: argparse.Namespace, results: list[Result]
) -> tuple[Result, str]:
    """(what to write, what to print) of one baseline; one that is of ours is checked like ours."""
    settings = _settings(arguments)
    match name:
        case "floor":
            with TemporaryDirectory(prefix="assent-", dir=settings.data_dir or None) as directory:
                floor = await measure_floor(Path(directory))
            return floor, floor_shown(floor)
        case "plain":
            result = await measure(replace(settings, plain=True))
            results.append(result)
            return result, "plain calls, one for each branch and phase:\n" + shown(result)
        case _:
            if not arguments.postgres:
                raise UserMistake("bench: --baseline postgres needs --postgres DSN,DSN,DSN")
            dsns = arguments.postgres.split(",")
            result = await measure_postgres(
                dsns, clients=settings.clients, seconds=settings.seconds
            )
            latency = result["latency_ms"]
            return result, (
                f"PostgreSQL's two-phase commit over {len(dsns)} databases, no coordinator:"
                f" {result['per_second']:,.0f} transactions/s,"
                f" p50 {latency['p50']:.2f} ms  p99 {latency['p99']:.2f} ms"
            )
