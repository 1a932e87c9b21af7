"""The commands `assent bench CAMPAIGN`: questions that take many measurements, and their page.

assent bench failover --kills 30 --json failover.json
assent bench growth --seconds-per-cell 2
assent bench all --to docs/performance --page docs/performance.md
assent bench page docs/performance --page docs/performance.md        from what was written before
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cluster.bench.campaign import CampaignSettings
from cluster.bench.failover import measure_failover
from cluster.bench.fairness import measure_fairness
from cluster.bench.goals import measure_goals
from cluster.bench.growth import measure_growth
from cluster.bench.overload import measure_overload
from cluster.bench.page import plots, renewed
from cluster.bench.report import Result
from cluster.bench.settings import BenchError, BenchSettings
from cluster.bench.verdicts import shown
from cluster.cli.arguments import (
    at_least_one,
    directory,
    file_to_write,
    more_than_nothing,
    seconds,
)
from cluster.cli.output import UserMistake

Measure = Callable[[CampaignSettings, Callable[[str], None]], Coroutine[Any, Any, Result]]

CAMPAIGNS: dict[str, tuple[Measure, str]] = {
    "goals": (measure_goals, "throughput and latency, coalesced and plain calls, the floor"),
    "growth": (measure_growth, "by participants, clients, transactions in flight and remembered"),
    "overload": (measure_overload, "an open loop at up to five times the capacity"),
    "fairness": (measure_fairness, "what one badly behaved party does to all others"),
    "failover": (measure_failover, "the leader killed with -9 under load, again and again"),
}

_OPTIONS = (
    ("seconds_per_cell", seconds, "S", "of measuring, for each cell"),
    ("warm_up", seconds, "S", "before each cell"),
    ("rounds", at_least_one, "N", "of what is measured in turn"),
    ("kills", at_least_one, "N", "of failover"),
    ("rate", more_than_nothing, "R", "per second, of those that fairness and failover look at"),
    ("connections", at_least_one, "N", "over which an overload is offered"),
    ("most_in_flight", at_least_one, "N", "transactions in flight, of growth"),
    ("most_remembered", at_least_one, "N", "transactions remembered, of growth"),
)
_BASE = ("node_count", "no_fsync", "store", "log_level", "data_dir", "code")


def add_campaigns(bench: argparse.ArgumentParser) -> None:
    """Add the campaigns to `assent bench`."""
    commands = bench.add_subparsers(
        dest="campaign",
        metavar="CAMPAIGN",
        title="campaigns",
        description="Instead of one measurement. Options of a campaign come after its name.",
    )
    shared = _shared_options()
    for name, (_, what) in CAMPAIGNS.items():
        one = commands.add_parser(name, parents=[shared], help=what)
        one.add_argument(
            "--json", type=file_to_write, metavar="FILE", help="write everything there"
        )
        one.set_defaults(run=_one)
    whole = commands.add_parser("all", parents=[shared], help="all of them, and the page")
    whole.add_argument("--to", type=Path, required=True, metavar="DIR", help="JSON and plots")
    whole.add_argument("--page", type=file_to_write, metavar="FILE", help="make its figures anew")
    whole.set_defaults(run=_all)
    page = commands.add_parser("page", help="make a page's tables and plots of what was written")
    page.add_argument("to", type=Path, metavar="DIR", help="where the JSON is, and plots go")
    page.add_argument("--page", type=Path, required=True, metavar="FILE")
    page.set_defaults(run=_page)


def _shared_options() -> argparse.ArgumentParser:
    default = CampaignSettings()
    shared = argparse.ArgumentParser(add_help=False)
    for name, kind, metavar, what in _OPTIONS:
        usual = f"{what}; default {getattr(default, name):g}"
        option = f"--{name.replace('_', '-')}"
        shared.add_argument(option, type=kind, metavar=metavar, help=usual)
    shared.add_argument("--short", action="store_true", help="rougher, in a third of the time")
    shared.add_argument("--node-count", type=int, choices=(1, 3, 5), help="default 3")
    shared.add_argument("--no-fsync", action="store_true", help="do not sync the nodes' journals")
    shared.add_argument("--store", choices=("memory", "sqlite"), help="default memory")
    shared.add_argument("--log-level", choices=("info", "warning"), help="default info")
    shared.add_argument(
        "--data-dir", type=directory, metavar="DIR", help="on the disk to be measured"
    )
    shared.add_argument(
        "--code", type=directory, metavar="DIR", help="run the nodes from this source tree"
    )
    return shared


def settings_of(arguments: argparse.Namespace) -> CampaignSettings:
    """Raises UserMistake."""
    misplaced = [
        field.name
        for field in fields(BenchSettings)
        if field.name not in (*_BASE, "rate", "warm_up") and getattr(arguments, field.name, None)
    ]
    if misplaced:
        option = misplaced[0].replace("_", "-")
        raise UserMistake(f"bench: {arguments.campaign} has no option --{option}")
    settings = CampaignSettings(BenchSettings(**_given(arguments, _BASE)))
    if arguments.short:
        settings = settings.short()
    return replace(settings, **_given(arguments, [name for name, *_ in _OPTIONS]))


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def command_of(name: str, arguments: argparse.Namespace) -> str:
    """What measures the campaign `name` alone, as it was measured."""
    words = ["assent", "bench", name, *(["--short"] if arguments.short else [])]
    for option in (*(name for name, *_ in _OPTIONS), *_BASE):
        value = getattr(arguments, option)
        if value in (None, False) or option in ("data_dir", "code"):
            continue
        words.append(f"--{option.replace('_', '-')}")
        words += [] if value is True else [f"{value:g}" if isinstance(value, float) else str(value)]
    return " ".join(words)


def _one(arguments: argparse.Namespace) -> int:
    try:
        result = _measured(arguments.campaign, arguments)
    except BenchError as error:
        raise UserMistake(f"bench: {arguments.campaign}: {error}") from None
    if arguments.json is not None:
        _write(arguments.json, result)
    return 1 if result["wrong"] else 0


def _all(arguments: argparse.Namespace) -> int:
    try:
        arguments.to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserMistake(f"bench: all: {arguments.to}: {error.strerror}") from None
    wrong = 0
    for name in CAMPAIGNS:
        try:
            result = _measured(name, arguments)
        except BenchError as error:  # the others are worth their time all the same
            _say(f"{name} could not be measured: {error}")
            wrong += 1
            continue
        wrong += bool(result["wrong"])
        _write(arguments.to / f"{name}.json", result)
    if arguments.page is not None:
        _page(arguments)
    return 1 if wrong else 0


def _measured(name: str, arguments: argparse.Namespace) -> Result:
    """Raises BenchError, UserMistake."""
    measure, _ = CAMPAIGNS[name]
    result = asyncio.run(measure(settings_of(arguments), _say))
    for verdict in result["verdicts"]:
        _say(shown(verdict))
    for what in result["wrong"]:
        _say(f"WRONG: {what}")
    return {"command": command_of(name, arguments), **result}


def _page(arguments: argparse.Namespace) -> int:
    folder, page = arguments.to, arguments.page
    try:
        results = dict(_results(folder))
        text = page.read_text()
    except (OSError, ValueError, KeyError) as error:
        raise UserMistake(f"bench: page: {error}") from None
    if not results:
        written_by = f"write them with: assent bench all --to {folder}"
        raise UserMistake(f"bench: page: there are no figures in {folder}; {written_by}")
    for result in results.values():
        for name, drawn in plots(result).items():
            (folder / name).write_text(drawn)
    beside = Path(os.path.relpath(folder, page.parent)).as_posix()
    page.write_text(renewed(text, results, beside))
    return 0


def _results(folder: Path) -> Iterator[tuple[str, Result]]:
    """What `folder` holds of each campaign."""
    for name in CAMPAIGNS:
        file = folder / f"{name}.json"
        if file.exists():
            yield name, json.loads(file.read_text())


def _write(file: Path, result: Result) -> None:
    file.write_text(json.dumps(result, indent=1) + "\n")


def _say(text: str) -> None:
    print(text, flush=True)
