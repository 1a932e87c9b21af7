"""`run` many seeds, `replay` one, or have the planted bugs found (`mutants`)."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.simulation.campaign import Campaign
from tests.simulation.processes import ProcessDied, results
from tests.simulation.run import Result, broken, run_seed


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0; 1 after a violation; 130 or 143 if a run was ended early by a signal."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run many seeds")
    run.add_argument("--seeds", type=_seeds, required=True, metavar="A-B")
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--quiet", action="store_true", help="only the summary and what was violated")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the summary there, too")
    replay = commands.add_parser("replay", help="run one seed again")
    replay.add_argument("--seed", type=int, required=True)
    replay.add_argument("--mutant")
    replay.add_argument("--history", type=Path, help="write it there, as JSON lines")
    replay.add_argument("-v", "--verbose", action="store_true", help="every event")
    mutants = commands.add_parser("mutants", help="planted bugs: who catches them, and when")
    mutants.add_argument("names", nargs="*")
    mutants.add_argument("--seeds", type=_seeds, default=range(2_000), metavar="A-B")
    mutants.add_argument("--jobs", type=int, default=1)
    chosen = parser.parse_args(arguments)
    match chosen.command:
        case "run":
            return _run(chosen.seeds, chosen.jobs, chosen.json, quiet=chosen.quiet)
        case "replay":
            return _replay(chosen.seed, chosen.mutant, chosen.history, verbose=chosen.verbose)
    from tests.simulation.mutants import hunt  # noqa: PLC0415

    return hunt(chosen.names, chosen.seeds, chosen.jobs)


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """The signals that have asked this process to end, while they are only written down."""
    numbers: list[int] = []

    def asked(number: int, _: object) -> None:
        numbers.append(number)

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(seeds: Sequence[int], jobs: int, file: Path | None, *, quiet: bool) -> int:
    campaign = Campaign(f"{seeds[0]}-{seeds[-1]}", jobs, file)
    with _asked_to_end() as signals:
        for result in _whole(results(_bare, seeds, jobs, lambda: signals)):
            campaign.add(result)
            if not quiet:
                print(_line(result), flush=True)
            for violation in result.violations[:6]:
                print(f"seed {result.seed}: {violation}", flush=True)
            if result.violations:
                print(f"  python -m tests.simulation replay --seed {result.seed} -v", flush=True)
    campaign.save()
    if signals:
        print(f"ended early, by {signal.Signals(signals[0]).name}")
    print(campaign.summary())
    if campaign.violated:
        return 1
    return 128 + signals[0] if signals else 0


def _whole(results: Iterator[Result]) -> Iterator[Result]:
    """The end of a process is the last of them, so that what was done until then has its row."""
    try:
        yield from results
    except ProcessDied as died:
        yield broken(died.seed, died)


def _bare(seed: int) -> Result:
    """A seed that breaks the simulation itself is one that violates; the others go on."""
    try:
        return replace(run_seed(seed), history=())
    except Exception as error:
        return broken(seed, error)


def _replay(seed: int, mutant: str | None, history: Path | None, *, verbose: bool) -> int:
    keep_history = history is not None
    if mutant is None:
        result = run_seed(seed, verbose=verbose, keep_history=keep_history)
    else:
        from tests.simulation.mutants import run_mutant  # noqa: PLC0415

        result = run_mutant(mutant, seed, verbose=verbose, keep_history=keep_history)
    if history is not None:
        history.write_text("".join(json.dumps(event) + "\n" for event in result.history))
    print(_line(result))
    for violation in result.violations:
        print(violation)
    return 1 if result.violations else 0


def _line(result: Result) -> str:
    ended = result.counts.get("committed", 0), result.counts.get("aborted", 0)
    return (
        f"seed {result.seed}: trace {result.trace}, {result.simulated_s:.1f} s in "
        f"{result.cpu_s:.2f} s, {ended[0]} committed, {ended[1]} aborted, "
        f"{len(result.violations)} violations"
    )


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)
