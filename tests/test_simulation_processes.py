"""Seeds on several processes: all results come, and the end always ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulation.processes import SEEDS_PER_PROCESS, ProcessDied, results
from tests.simulation.run import Result

MANY = 3 * SEEDS_PER_PROCESS + 1


def told(seed: int) -> Result:
    return Result(seed, f"{os.getpid()}", (), 0.0, 0.0, 0, 0, {}, 0.0)


@pytest.mark.parametrize(("count", "jobs"), [(1, 1), (1, 3), (2, 3), (MANY, 1), (MANY, 4)])
def test_each_seed_has_one_result(count: int, jobs: int) -> None:
    seeds = [result.seed for result in results(told, range(7, 7 + count), jobs)]
    assert sorted(seeds) == list(range(7, 7 + count))


def test_a_process_is_replaced_and_all_jobs_have_work() -> None:
    by: dict[str, int] = {}
    for result in results(told, range(MANY), 2):
        by[result.trace] = by.get(result.trace, 0) + 1
    assert sorted(by.values()) == [1, SEEDS_PER_PROCESS, SEEDS_PER_PROCESS, SEEDS_PER_PROCESS]
    assert len({result.trace for result in results(_slowly, range(4), 4)}) == 4


def _slowly(seed: int) -> Result:
    time.sleep(0.2)
    return told(seed)


def test_a_process_that_dies_is_told_with_its_seed() -> None:
    def work(seed: int) -> Result:
        if seed == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return told(seed)

    coming = results(work, range(10), 1)
    assert [result.seed for result in _until_it_dies(coming, 5)] == [0, 1, 2, 3, 4]


def test_what_is_raised_at_a_seed_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    def work(seed: int) -> Result:
        raise ValueError(f"cannot do seed {seed}")

    assert _until_it_dies(results(work, range(10), 1), 0) == []
    assert "ValueError: cannot do seed 0" in capfd.readouterr().err


def _until_it_dies(coming: Iterator[Result], seed: int) -> list[Result]:
    came: list[Result] = []
    with pytest.raises(ProcessDied, match=f"seed {seed}: its process ended with") as died:
        came.extend(coming)  # those before the last one stay
    assert died.value.seed == seed
    return came


def test_who_is_told_to_end_is_not_waited_for(tmp_path: Path) -> None:
    def work(seed: int) -> Result:
        if seed == 1:
            _leave_pid(tmp_path)
            time.sleep(3600)
        return told(seed)

    over: list[int] = []
    started = time.monotonic()
    for result in results(work, range(2), 2, lambda: over):
        over.append(result.seed)
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
    assert over == [0]
    assert time.monotonic() - started < 60
    assert _all_ended(tmp_path) == 1


def test_a_run_that_is_broken_off_leaves_no_process(tmp_path: Path) -> None:
    def work(seed: int) -> Result:
        _leave_pid(tmp_path)
        return told(seed)

    coming = results(work, range(1_000_000), 2)
    next(coming)
    coming.close()  # type: ignore[attr-defined]
    assert _all_ended(tmp_path) >= 1


def _leave_pid(folder: Path) -> None:
    """As a name: of a file's content a process that is killed may leave the half."""
    (folder / str(os.getpid())).touch()


def _all_ended(folder: Path) -> int:
    """How many have left their pid; fails if one of them is still there."""
    pids = [int(path.name) for path in folder.iterdir()]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    return len(pids)


def test_seeds_end_with_the_process_that_wanted_them(tmp_path: Path) -> None:
    def work(seed: int) -> Result:
        (tmp_path / str(seed)).write_text(str(os.getpid()))
        time.sleep(0.1)
        return told(seed)

    parent = os.fork()
    if parent == 0:
        for result in results(work, range(1_000), 2):
            if result.seed % SEEDS_PER_PROCESS == 3:
                os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 60
    before = -1
    while (begun := len(list(tmp_path.iterdir()))) != before:
        assert time.monotonic() < deadline, "they go on"
        before = begun
        time.sleep(0.5)
    assert begun < 2 * SEEDS_PER_PROCESS
