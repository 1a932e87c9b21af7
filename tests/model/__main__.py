"""Explores the standard cases, the large ones, or the broken rules.

    python -m tests.model                 every standard case
    python -m tests.model --large         larger worlds: minutes, and up to some gigabytes
    python -m tests.model --mutants       every broken rule, and how it is noticed
    python -m tests.model --mutant NAME   one of them, with a shortest counter-example as steps

Ends with the number of cases that do not hold, or of broken rules that are not noticed.
"""

from __future__ import annotations

import argparse
import logging
import sys

from tests.model.cases import LARGE, STANDARD, Case
from tests.model.explorer import Explored, explore
from tests.model.mutants import MUTANTS, Mutant
from tests.model.world import World


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--large", action="store_true")
    chosen.add_argument("--mutants", action="store_true")
    chosen.add_argument("--mutant", choices=sorted(MUTANTS))
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if asked.mutant is not None:
        return not _is_noticed(MUTANTS[asked.mutant], with_steps=True)
    if asked.mutants:
        return sum(not _is_noticed(mutant, with_steps=False) for mutant in MUTANTS.values())
    return sum(not _holds(case) for case in (LARGE if asked.large else STANDARD))


def _holds(case: Case) -> bool:
    explored = explore(World(case))
    said = explored.fault or ("holds" if explored.complete else "too many states: not checked")
    speed = explored.states / max(explored.seconds, 0.001)
    print(
        f"{case.name:52} {explored.states:8} states, depth {explored.depth:2}, "
        f"{explored.seconds:6.1f} s, {speed:6.0f}/s: {said}",
        flush=True,
    )
    _print_steps(explored)
    return said == "holds"


def _is_noticed(mutant: Mutant, *, with_steps: bool) -> bool:
    explored = mutant.explored()
    noticed = explored.fault is not None and explored.fault.startswith(mutant.says)
    said = explored.fault or "NOT NOTICED"
    print(
        f"{mutant.name:31} {len(explored.steps):2} steps {explored.states:6} states  "
        f"{said}  [{mutant.case.name}]",
        flush=True,
    )
    if with_steps or not noticed:
        _print_steps(explored)
    return noticed


def _print_steps(explored: Explored) -> None:
    for number, what in enumerate(explored.steps, 1):
        print(f"{number:3}. {what}")


if __name__ == "__main__":
    sys.exit(main())
