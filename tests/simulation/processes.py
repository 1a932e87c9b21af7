"""Many seeds on several processes, which share nothing: each has a pipe of its own.

`multiprocessing.Pool` ends its processes by SIGTERM, which one that waits for work can miss for
ever (a signal that comes between Python's last look and the system call): about one run in
seventy hung at its end. Here nobody waits for work: a process is born with its seeds, and whoever
is in the way at the end is killed, which no shared lock makes dangerous.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from tests.simulation.run import Result

SEEDS_PER_PROCESS = 25
"""A process that has run so many ends. It collects no garbage meanwhile: to look through all that
lives would cost a third of the time, and what a seed leaves behind is some megabytes."""

LOOK_S = 0.5
"""How often a run looks whether it was asked to end, when no result comes."""

_FORK = multiprocessing.get_context("fork")


class ProcessDied(Exception):
    """A process ended before its seeds did; `seed` is the one that it was at."""

    def __init__(self, seed: int, exit_code: int | None) -> None:
        super().__init__(f"seed {seed}: its process ended with exit code {exit_code}")
        self.seed = seed


@dataclass(slots=True)
class _Run:
    """A process, and those of its seeds whose results have not come."""

    process: ForkProcess
    seeds: deque[int]


def results(
    work: Callable[[int], Result],
    seeds: Sequence[int],
    jobs: int,
    is_over: Callable[[], object] = lambda: False,
) -> Iterator[Result]:
    """The results of all seeds, as they come; no more of them once `is_over`. Raises
    ProcessDied.
    """
    if jobs == 1 and len(seeds) == 1:
        yield from map(work, seeds)
        return
    share = max(1, min(SEEDS_PER_PROCESS, len(seeds) // jobs))
    shares = deque(seeds[first : first + share] for first in range(0, len(seeds), share))
    runs: dict[Connection, _Run] = {}
    try:
        while (shares or runs) and not is_over():
            while shares and len(runs) < jobs:
                told, run = _begin(work, shares.popleft())
                runs[told] = run
            for ready in wait(runs, timeout=LOOK_S):
                assert isinstance(ready, Connection)
                run = runs[ready]
                try:
                    result = ready.recv()
                except EOFError:
                    run.process.join()
                    del runs[ready]
                    if run.seeds:
                        raise ProcessDied(run.seeds[0], run.process.exitcode) from None
                    continue
                run.seeds.popleft()
                yield result
    finally:
        for run in runs.values():
            run.process.kill()
            run.process.join()


def _begin(work: Callable[[int], Result], seeds: Sequence[int]) -> tuple[Connection, _Run]:
    told, tells = _FORK.Pipe(duplex=False)
    process = _FORK.Process(target=_work, args=(work, seeds, tells), daemon=True)
    process.start()
    tells.close()  # so that the end of the process is the end of what it tells
    return told, _Run(process, deque(seeds))


def _work(work: Callable[[int], Result], seeds: Sequence[int], tells: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # sent to the whole group: the parent's business
    gc.disable()
    parent = multiprocessing.parent_process()
    assert parent is not None
    for seed in seeds:
        if not parent.is_alive():
            return  # its siblings hold this pipe's other end too: nothing else would tell
        tells.send(work(seed))
