"""coordinator/packed.py: transactions come back from bytes as they were, of the same types."""

from __future__ import annotations

import pytest

from coordinator.commands import decode, encode
from coordinator.facts import Transaction
from coordinator.machine import Applied, Forgot, Machine
from participants.contract import Vote
from tests.builders import (
    RandomCommands,
    acknowledge,
    applied,
    begin,
    branch,
    decide,
    led_machine,
    record,
    resolve,
    restore,
    snapshot,
)

YES = Vote.YES


def again(machine: Machine) -> Machine:
    restored = Machine()
    restore(restored, snapshot(machine))
    return restored


def test_every_kind_of_record_comes_back_equal_and_of_the_same_types() -> None:
    machine = led_machine(
        begin("open"),
        begin("decided"),
        decide((YES, YES), "decided"),
        begin("finished"),
        decide((YES, YES), "finished"),
        acknowledge(0b11, "finished"),
        begin("by hand"),
        decide((YES, Vote.UNKNOWN), "by hand"),
        resolve("2", "by hand"),
    )
    restored = again(machine)
    for transaction_id in ("open", "decided", "finished", "by hand"):
        before, after = record(machine, transaction_id), record(restored, transaction_id)
        assert after == before
        assert [type(value) for value in after] == [type(value) for value in before]
        assert [type(branch) for branch in after.branches] == [
            type(branch) for branch in before.branches
        ]
        assert all(isinstance(vote, Vote) for vote in after.votes)
        assert [type(value) for entry in after.resolutions for value in entry] == [
            type(value) for entry in before.resolutions for value in entry
        ]


def test_finished_transactions_at_the_same_services_share_their_branches() -> None:
    ids = [f"t{number}" for number in range(10)]
    commands = [c for i in ids for c in (begin(i), decide((YES, YES), i), acknowledge(0b11, i))]
    machine = led_machine(*commands)
    for looked_at in (machine, again(machine)):
        assert len({id(record(looked_at, i).branches) for i in ids}) == 1


def test_what_is_made_of_the_branches_is_made_once_for_all_at_the_same_services() -> None:
    machine = led_machine()
    first, second = (
        applied(machine, decode(encode(begin(name, of=(branch(1), branch(2))))))
        for name in ("first", "second")
    )
    assert first.branches.packed is second.branches.packed
    assert first.branches.participants is second.branches.participants
    assert first.branches.participants == ("http://participant-1", "http://participant-2")
    assert first.branches.names is second.branches.names
    assert first.branches.names == "service-1, service-2"
    more = applied(machine, decode(encode(begin("more", of=3))))
    assert more.branches.names == "service-1, service-2, service-3"


@pytest.mark.parametrize("count", [1, 63, 64, 65, 256])
def test_every_number_of_branches_is_packed_acknowledged_or_not(count: int) -> None:
    """An integer of msgpack has 64 bits, and there is one for each branch."""
    machine = led_machine(begin(of=count), decide((YES,) * count))
    everybody = (1 << count) - 1
    for heard in (1 << count - 1, everybody):
        machine.step(acknowledge(heard))
        assert record(again(machine)) == record(machine)
        assert record(machine).acknowledged == heard
    assert record(machine).finished_ms is not None


@pytest.mark.parametrize("seed", range(4))
def test_whatever_becomes_of_a_transaction_it_is_the_same_packed_and_unpacked(seed: int) -> None:
    """A machine that keeps finished transactions as tuples, beside one that packs them."""
    commands, packing = RandomCommands(seed, ids=40), Machine()
    kept: dict[str, Transaction] = {}
    for _ in range(3_000):
        command = commands()
        result = packing.step(command)
        if isinstance(result, Applied):
            if not result.changed:
                assert result.transaction == kept[result.transaction.id], seed
            kept[result.transaction.id] = result.transaction
        if isinstance(result, Forgot):
            kept = {i: t for i, t in kept.items() if packing.get(i) is not None}
        assert len(kept) == packing.unfinished_count + packing.remembered_count
    assert kept
    assert any(t.finished_ms is not None and t.resolutions for t in kept.values())
    assert {i: packing.get(i) for i in kept} == kept
    newest_first = sorted(kept.values(), key=lambda t: -t.sequence)
    assert list(packing.page(limit=1_000).transactions) == newest_first


def test_a_view_is_let_go_of_while_it_is_read() -> None:
    """All at once, at the end, no thread would run for 50 ms at a million transactions."""
    ids = [f"t{number}" for number in range(1_000)]
    no = (Vote.NO, Vote.UNSENT)
    machine = led_machine(*(c for i in ids for c in (begin(i), decide(no, i))))
    view = machine.view()
    left = [len(view.finished) for _ in machine.chunks(view)]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 3
    assert view.finished == {}
