"""`run` many seeds, `replay` one, or have the planted bugs found (`mutants`)."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.simulation.run import Result, run_seed

SEEDS_PER_PROCESS = 25
"""A process that has run so many is replaced: dead programs leave a little behind."""


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0, 1 after a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run many seeds")
    run.add_argument("--seeds", type=_seeds, required=True, metavar="A-B")
    run.add_argument("--jobs", type=int, default=1)
    run.add_argument("--quiet", action="store_true", help="only the summary and what was violated")
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
            return _run(chosen.seeds, chosen.jobs, quiet=chosen.quiet)
        case "replay":
            return _replay(chosen.seed, chosen.mutant, chosen.history, verbose=chosen.verbose)
    from tests.simulation.mutants import hunt  # noqa: PLC0415

    return hunt(chosen.names, chosen.seeds, chosen.jobs)


def results(work: Callable[[int], Result], seeds: Sequence[int], jobs: int) -> Iterator[Result]:
    """The results of all seeds, as they come."""
    if jobs == 1 and len(seeds) <= SEEDS_PER_PROCESS:
        yield from map(work, seeds)
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs, maxtasksperchild=SEEDS_PER_PROCESS) as pool:
        yield from pool.imap_unordered(work, seeds)


def _run(seeds: Sequence[int], jobs: int, *, quiet: bool) -> int:
    started = time.perf_counter()
    bad, simulated_s, cpu_s, calls = 0, 0.0, 0.0, 0
    counts: dict[str, int] = {}
    for result in results(_bare, seeds, jobs):
        simulated_s += result.simulated_s
        cpu_s += result.cpu_s
        calls += result.calls
        for what, count in result.counts.items():
            counts[what] = counts.get(what, 0) + count
        if not quiet:
            print(_line(result), flush=True)
        if result.violations:
            bad += 1
            for violation in result.violations[:6]:
                print(f"seed {result.seed}: {violation}", flush=True)
    elapsed_s = time.perf_counter() - started
    print(
        f"{len(seeds)} seeds, {bad} with violations; {simulated_s:.0f} s simulated in "
        f"{elapsed_s:.1f} s ({simulated_s / cpu_s:.0f} per second of one core), {calls} callbacks"
    )
    print(", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    return 1 if bad else 0


def _bare(seed: int) -> Result:
    return replace(run_seed(seed), history=())


def _replay(seed: int, mutant: str | None, history: Path | None, *, verbose: bool) -> int:
    if mutant is None:
        result = run_seed(seed, verbose=verbose, keep_history=history is not None)
    else:
        from tests.simulation.mutants import run_mutant  # noqa: PLC0415

        result = run_mutant(mutant, seed, verbose=verbose)
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
