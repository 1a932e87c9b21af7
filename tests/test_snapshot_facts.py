"""Transactions come back from a snapshot as they were, sharing what they may share and no more."""

from __future__ import annotations

import msgpack
import pytest

from coordinator.facts import Transaction
from coordinator.machine import Machine, MachineView
from coordinator.snapshot_facts import TransactionReader
from participants.contract import Vote
from tests.builders import acknowledge, begin, decide, led_machine, resolve, snapshot

YES = Vote.YES


def again(machine: Machine) -> Machine:
    restored = Machine()
    restored.restore(snapshot(machine))
    return restored


def record(machine: Machine, transaction_id: str) -> Transaction:
    found = machine.get(transaction_id)
    assert found is not None
    return found


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


def test_finished_transactions_at_the_same_services_share_their_parts() -> None:
    ids = [f"t{number}" for number in range(10)]
    commands = [c for i in ids for c in (begin(i), decide((YES, YES), i), acknowledge(0b11, i))]
    restored = again(led_machine(*commands))
    for field in ("branches", "votes", "vote_reasons", "metadata"):
        assert len({id(getattr(record(restored, i), field)) for i in ids}) == 1, field


def test_what_is_no_transaction_is_refused() -> None:
    chunk = snapshot(led_machine(begin("a"), decide((YES, YES), "a")))[1]
    good = msgpack.unpackb(chunk, use_list=False)[0]
    assert TransactionReader()(good).id == "a"
    modes = Transaction._fields.index("mode"), Transaction._fields.index("outcome")
    for position in modes:
        bad = list(good)
        bad[position] = "neither"
        with pytest.raises(KeyError):
            TransactionReader()(tuple(bad))


def test_a_view_is_let_go_of_while_it_is_read() -> None:
    """All at once, at the end, no thread would run for 50 ms at a million transactions."""
    machine = led_machine(*(begin(f"t{number}") for number in range(1_000)))
    view = machine.view()
    assert isinstance(view, MachineView)
    left = [len(view.shards) for _ in machine.chunks(view)]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 3
    assert view.shards == []
