"""What the sweep forgets, and what it must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from coordinator.commands import Decide
from coordinator.driver import Driver
from coordinator.gateway import Gateway
from coordinator.log import Done, FateUnknown, LogError, Overloaded
from coordinator.machine import Machine
from coordinator.settings import Limits, Retention, Timings
from coordinator.sweep import FORGET_AT_ONCE, LEAST_KEPT_MS, Sweep
from participants.contract import Vote
from tests.builders import begin, uuid7
from tests.memory_log import MemoryLog

NOW_MS = 1_800_000_000_000
DAY_MS = 24 * 3_600_000


def driver_of(log: MemoryLog, machine: Machine) -> Driver:
    limits, timings = Limits(), Timings()
    return Driver(
        log,
        machine,
        Gateway(limits=limits, timings=timings),
        now_ms=lambda: NOW_MS,
        random=Random(1),
        limits=limits,
        timings=timings,
        coordinators=(),
    )


def sweep_of(
    log: MemoryLog,
    machine: Machine,
    *,
    now_ms: Callable[[], int] = lambda: NOW_MS,
    retention: Retention | None = None,
    clock_is_sound: Callable[[], bool] = lambda: True,
    steady: bool = True,
) -> Sweep:
    return Sweep(
        log,
        machine,
        driver_of(log, machine),
        now_ms=now_ms,
        retention=retention or Retention(),
        clock_is_sound=clock_is_sound,
        clock_is_steady=lambda: steady,
    )


def swept(
    ends_ms: list[tuple[int, int]],
    retention: Retention,
    *,
    clock_is_sound: Callable[[], bool] = lambda: True,
    steady: bool = True,
    machine: Machine | None = None,
) -> tuple[Machine, list[str]]:
    """Transactions with (time in the id, end) finish; then one sweep and all that follows of it."""
    machine = machine or Machine()
    ids: list[str] = []

    async def scenario() -> None:
        errors: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: errors.append(repr(context))
        )
        log = MemoryLog(machine)
        log.lead(NOW_MS)
        for number, (made_ms, end_ms) in enumerate(ends_ms):
            ids.append(uuid7(made_ms, Random(number)))
            command = begin(ids[-1], epoch=1, now_ms=min(made_ms, end_ms))
            machine.step(command)
            votes = (Vote.NO,) * len(command.branches)
            machine.step(Decide(1, end_ms, ids[-1], votes, (None,) * len(votes), "no"))
        sweep = sweep_of(
            log,
            machine,
            retention=retention,
            clock_is_sound=clock_is_sound,
            steady=steady,
        )
        sweep.sweep()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not errors, "what the sweep proposes can be applied"

    asyncio.run(scenario())
    return machine, ids


def remembered(machine: Machine, ids: list[str]) -> list[bool]:
    return [machine.get(i) is not None for i in ids]


def test_what_is_older_than_the_retention_is_forgotten_and_its_ids_are_refused() -> None:
    old, young = NOW_MS - 2 * DAY_MS, NOW_MS - DAY_MS // 2
    machine, ids = swept([(old, old), (young, young)], Retention())
    assert remembered(machine, ids) == [False, True]
    assert machine.is_expired(ids[0])
    assert machine.horizon_ms <= NOW_MS - DAY_MS


class BusyLog(MemoryLog):
    """Takes nothing; whoever asks is answered by the test."""

    def __init__(self) -> None:
        super().__init__(Machine())
        self.asked: list[Done] = []

    def propose(self, command: bytes, epoch: int, done: Done, *, patience_s: float = 0.0) -> None:
        del command, epoch, patience_s
        self.asked.append(done)


@pytest.mark.parametrize("failure", [Overloaded("too busy"), FateUnknown("lost its leader")])
def test_what_the_log_did_not_take_is_proposed_by_a_later_sweep(failure: LogError) -> None:
    async def scenario() -> None:
        log = BusyLog()
        log.lead(NOW_MS)
        sweep = sweep_of(log, Machine())
        sweep.sweep()
        sweep.sweep()
        assert len(log.asked) == 1, "one is under way at a time"
        log.asked[0](failure)
        sweep.sweep()
        assert len(log.asked) == 2

    asyncio.run(scenario())


def test_more_than_may_be_remembered_go_oldest_first() -> None:
    times = [NOW_MS - 100_000 + 1_000 * n for n in range(5)]
    machine, ids = swept([(t, t) for t in times], Retention(max_remembered=2))
    assert remembered(machine, ids) == [False, False, False, True, True]


def test_those_that_are_too_large_together_go_oldest_first() -> None:
    times = [NOW_MS - 100_000 + 1_000 * n for n in range(5)]
    two, _ = swept([(t, t) for t in times[:2]], Retention())
    retention = Retention(remembered_bytes=two.remembered_bytes)
    machine, ids = swept([(t, t) for t in times], retention)
    assert remembered(machine, ids) == [False, False, False, True, True]
    assert machine.remembered_bytes == two.remembered_bytes


def test_the_horizon_never_reaches_what_is_new_however_far_ahead_ids_are() -> None:
    ahead = NOW_MS + 240_000
    machine, ids = swept([(ahead + n, NOW_MS) for n in range(3)], Retention(max_remembered=1))
    assert remembered(machine, ids) == [True, True, True]
    assert machine.horizon_ms <= NOW_MS - LEAST_KEPT_MS
    assert not machine.is_expired(uuid7(NOW_MS - LEAST_KEPT_MS, Random(9)))


def test_a_leader_whose_clock_is_not_sound_moves_no_horizon() -> None:
    old = NOW_MS - 2 * DAY_MS
    machine, ids = swept([(old, old)], Retention(), clock_is_sound=lambda: False)
    assert remembered(machine, ids) == [True]
    assert machine.horizon_ms == 0


def test_a_clock_that_was_set_just_now_makes_nothing_forgotten_for_its_age() -> None:
    old = NOW_MS - 2 * DAY_MS
    ends_ms = [(old + n, old + n) for n in range(3)]
    machine, ids = swept(ends_ms, Retention(), steady=False)
    assert remembered(machine, ids) == [True, True, True]
    assert machine.horizon_ms == 0
    machine, ids = swept(ends_ms, Retention(max_remembered=2), steady=False)
    assert remembered(machine, ids) == [False, True, True], "memory has its bound all the same"


def test_the_one_that_has_just_become_too_old_goes_soon_after_the_horizon_moved() -> None:
    """However little the horizon moves for it: less than is worth an entry of its own."""
    oldest_kept_ms = NOW_MS - DAY_MS
    machine = Machine()
    old, young = oldest_kept_ms - 5_000, NOW_MS - DAY_MS // 2
    machine.horizon_ms = oldest_kept_ms - 10_000
    machine, ids = swept([(old, old), (young, young)], Retention(), machine=machine)
    assert remembered(machine, ids) == [False, True]


def test_after_one_sweep_has_forgotten_the_next_one_forgets_more() -> None:
    machine, clock_ms = Machine(), NOW_MS

    async def scenario() -> None:
        nonlocal clock_ms
        log = MemoryLog(machine)
        log.lead(NOW_MS)
        sweep = sweep_of(log, machine, now_ms=lambda: clock_ms)
        for _ in range(3):
            sweep.sweep()
            for _ in range(10):
                await asyncio.sleep(0)
            assert machine.horizon_ms == clock_ms - DAY_MS
            clock_ms += DAY_MS

    asyncio.run(scenario())


def test_of_forgetting_one_proposal_is_under_way_at_a_time_and_none_where_nobody_leads() -> None:
    machine, old = Machine(), NOW_MS - 2 * DAY_MS
    proposed: list[bytes] = []

    async def scenario() -> None:
        log = MemoryLog(machine)
        sweep = sweep_of(log, machine)
        log.propose = lambda command, *_args: proposed.append(command)  # type: ignore
        sweep.sweep()
        assert proposed == [], "it does not lead"
        for _ in range(2):
            log.lead(NOW_MS)
            sweep.sweep()
            sweep.sweep()
            log.stop_leading()
            sweep.sweep()

    machine.horizon_ms = old
    asyncio.run(scenario())
    assert len(proposed) == 2, "one in each leadership"


def test_a_backlog_of_what_is_to_be_forgotten_goes_in_steps_until_none_is_left() -> None:
    old = NOW_MS - 2 * DAY_MS
    machine, ids = swept([(old + n, old + n) for n in range(2_500)], Retention())
    assert not any(remembered(machine, ids))


def test_no_further_step_is_taken_once_the_clock_is_not_sound_any_more() -> None:
    old = NOW_MS - 2 * DAY_MS
    judgements = iter([True, False])
    ends_ms = [(old + n, old + n) for n in range(2 * FORGET_AT_ONCE)]
    machine, ids = swept(ends_ms, Retention(), clock_is_sound=lambda: next(judgements))
    assert remembered(machine, ids) == [False] * FORGET_AT_ONCE + [True] * FORGET_AT_ONCE


def test_a_sweep_that_fails_is_told_of_and_the_next_one_forgets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("coordinator.sweep.EVERY_S", 0.0)
    machine = Machine()
    log = MemoryLog(machine)
    log.lead(NOW_MS)
    propose, failures = log.propose, [ZeroDivisionError("once")]

    def fails_once(*given: Any) -> None:
        if failures:
            raise failures.pop()
        propose(*given)

    monkeypatch.setattr(log, "propose", fails_once)

    async def scenario() -> None:
        sweep = sweep_of(log, machine)
        sweep.start()
        async with asyncio.timeout(30):
            while not machine.horizon_ms:  # noqa: ASYNC110
                await asyncio.sleep(0)
        await sweep.stop()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "it has stopped"

    asyncio.run(scenario())
    assert "a sweep failed" in caplog.text
    assert "ZeroDivisionError" in caplog.text
