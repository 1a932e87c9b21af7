"""Explores every state of a small world, breadth first, and says what must never happen if it does.

Two questions are asked of each state: is anything wrong in it, and can the system, alone and with
no more luck than its own retries, come from it to an end in which nothing is left undone (I10,
I11)? The first counter-example found is a shortest one.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

S = TypeVar("S", bound=Hashable)

STUCK = "I10: from here the system can never settle by itself"


class World(Protocol[S]):
    """What can be explored. A step: whether the system takes it by itself, what it is, the next
    state.
    """

    def first(self) -> S: ...

    def steps(self, state: S) -> Sequence[tuple[bool, str, S]]: ...

    def violation(self, state: S) -> str | None: ...

    def is_settled(self, state: S) -> bool: ...


@dataclass
class Explored:
    """`fault` None: everything holds. `complete` False: there were more states than the limit."""

    states: int
    depth: int
    seconds: float
    complete: bool = True
    fault: str | None = None
    steps: list[str] = field(default_factory=list)


def explore(world: World[S], limit: int = 6_000_000) -> Explored:
    """Visit every state that can be reached; stops at the first fault."""
    started_s = time.monotonic()
    first = world.first()
    number = {first: 0}
    came_from: list[tuple[int, str]] = [(-1, "")]
    healing: list[list[int]] = [[]]  # of each state: those from which the system steps into it
    settled = bytearray([world.is_settled(first)])
    layer, depth = [first], 0
    while layer:
        found: list[S] = []
        for state in layer:
            here = number[state]
            try:
                steps = world.steps(state)
            except AssertionError as error:
                seconds = time.monotonic() - started_s
                net = f"an assertion failed: {_asserted(error)}"
                told = _steps_to(here, came_from)
                return Explored(len(number), depth, seconds, fault=net, steps=told)
            for by_itself, what, after in steps:
                there = number.get(after)
                if there is None:
                    there = number[after] = len(number)
                    came_from.append((here, what))
                    healing.append([])
                    settled.append(world.is_settled(after))
                    found.append(after)
                    fault = world.violation(after)
                    if fault is not None or there >= limit:
                        seconds = time.monotonic() - started_s
                        told = _steps_to(there, came_from) if fault else []
                        complete = fault is not None
                        return Explored(len(number), depth + 1, seconds, complete, fault, told)
                if by_itself:
                    healing[there].append(here)
        layer = found
        depth += bool(found)
    stuck = _first_that_cannot_settle(settled, healing)
    explored = Explored(len(number), depth, time.monotonic() - started_s)
    if stuck is not None:
        explored.fault, explored.steps = STUCK, _steps_to(stuck, came_from)
    return explored


def _asserted(error: AssertionError) -> str:
    """Where the project's own net caught it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(where.filename).name}, {where.name}: {where.line} {error}".rstrip()


def _first_that_cannot_settle(settled: bytearray, healing: list[list[int]]) -> int | None:
    can = bytearray(settled)
    work = [state for state, is_settled in enumerate(settled) if is_settled]
    while work:
        for before in healing[work.pop()]:
            if not can[before]:
                can[before] = 1
                work.append(before)
    stuck = can.find(0)
    return None if stuck < 0 else stuck


def _steps_to(state: int, came_from: list[tuple[int, str]]) -> list[str]:
    steps = []
    while state > 0:
        state, what = came_from[state]
        steps.append(what)
    return steps[::-1]
