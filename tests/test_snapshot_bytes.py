"""coordinator/machine.py: a snapshot is the state, all of it, and in the same bytes everywhere.

What is not a snapshot of this machine is refused, and then nothing has changed.
"""

from __future__ import annotations

import struct
from random import Random

import msgpack
import pytest

from coordinator.commands import Begin, Forget
from coordinator.machine import SNAPSHOT_VERSION, Applied, Machine
from coordinator.table import BLOCK
from participants.contract import Vote
from tests.builders import (
    EPOCH,
    RandomCommands,
    applied,
    begin,
    decide,
    led_machine,
    record,
    resolve,
    restore,
    snapshot,
)
from tests.test_machine import derived

YES = Vote.YES


def busy_machine(seed: int = 3, commands: int = 1_500) -> Machine:
    stream, machine = RandomCommands(seed, ids=200), Machine()
    for _ in range(commands):
        machine.step(stream())
    return machine


def test_a_view_gives_the_bytes_of_its_moment_while_the_machine_goes_on() -> None:
    stream, machine = RandomCommands(4, ids=200), Machine()
    for _ in range(1_000):
        machine.step(stream())
    view, expected = machine.view(), snapshot(machine)
    half_read = machine.chunks(view)
    beginning = [next(half_read)]
    for _ in range(2_000):
        machine.step(stream())
    assert beginning + list(half_read) == expected
    assert snapshot(machine) != expected


def test_an_empty_machine_and_a_large_one_come_back_from_their_bytes() -> None:
    large = led_machine(*(begin(f"t{n}", of=1) for n in range(1_000)))
    for machine in (Machine(), large):
        again = Machine()
        restore(again, iter(snapshot(machine)))
        assert snapshot(again) == snapshot(machine)
    assert len(snapshot(large)) > 2, "not all in one piece"


def test_a_restored_machine_gives_the_next_transaction_a_new_sequence_number() -> None:
    gone = (begin("a"), decide((Vote.NO, Vote.UNSENT), "a", now_ms=500), Forget(EPOCH, 1, 501))
    machine = led_machine(*gone)
    again = Machine()
    restore(again, snapshot(machine))
    assert applied(again, begin("b")) == applied(machine, begin("b"))
    assert record(again, "b").sequence == 2


def _header(chunks: list[bytes], **changed: object) -> list[bytes]:
    epoch, counts = ("founding", "epoch", "leader"), ("unfinished", "finished")
    names = ("version", *epoch, "horizon_ms", "sequence", *counts)
    values = dict(zip(names, msgpack.unpackb(chunks[0]), strict=True))
    return [msgpack.packb(list((values | changed).values())), *chunks[1:]]


def _transaction_with(position: int, value: object) -> bytes:
    machine = led_machine(begin(), decide((YES, YES)), resolve("1"))
    _, (fields,) = msgpack.unpackb(snapshot(machine)[1])
    fields[position] = value
    packed: bytes = msgpack.packb([None, [fields]])
    return packed


def _undecided_without_payloads() -> bytes:
    _, (fields,) = msgpack.unpackb(snapshot(led_machine(begin()))[1])
    fields[5] = []
    packed: bytes = msgpack.packb([None, [fields]])
    return packed


def _block(**changed: object) -> list[bytes]:
    """A snapshot of one finished transaction, its block changed."""
    header, chunk = snapshot(led_machine(begin(), decide((Vote.NO, Vote.UNSENT))))
    number, block = msgpack.unpackb(chunk)
    names = ("branches", "ids", "records")
    fields = dict(zip(names, block, strict=True), number=number) | changed
    return [header, msgpack.packb([fields.pop("number"), list(fields.values())])]


def _record(sequence: int, branches: int) -> list[bytes | None]:
    return [None, struct.pack(">qqH", sequence, 1, branches), *[None] * (BLOCK - 2)]


WRONG_FIELDS: list[tuple[int, object]] = [
    (0, 5),
    (0, None),
    (3, "two_shot"),
    (4, 5),
    (4, [["1"]]),
    (5, 7),
    (10, ["maybe"]),
    (12, "perhaps"),
    (16, [[]]),
    (16, [["1", "exploded", "ann", "why", 1]]),
]
GOOD = snapshot(busy_machine())
ONE = snapshot(led_machine(begin()))
DAMAGED: dict[str, list[bytes]] = {
    "nothing": [],
    "foreign": [b"{}", b"garbage"],
    "another version": _header(GOOD, version=SNAPSHOT_VERSION + 1),
    "no header": GOOD[1:],
    "last piece missing": GOOD[:-1],
    "a piece twice": [*GOOD, GOOD[-1]],
    "more unfinished": _header(GOOD, unfinished=10**6),
    "more finished": _header(GOOD, finished=10**6),
    "half a piece": [*GOOD[:-1], GOOD[-1][:-5]],
    "header alone is short": [msgpack.packb([1, 2, 3])],
    "not a list": [*ONE[:1], msgpack.packb(7)],
    "not a transaction": [*ONE[:1], msgpack.packb([None, [[1, 2]]])],
    "a finished one among the unfinished": [*ONE[:1], _transaction_with(17, 5)],
    "an undecided one without its payloads": [*ONE[:1], _undecided_without_payloads()],
    "a block too short": _block(ids=["t"]),
    "a record without an id": _block(ids=[None] * BLOCK),
    "a number for an id": _block(ids=[1] * BLOCK),
    "a record of another place": _block(records=_record(2, 0)),
    "a record of unknown branches": _block(records=_record(1, 1)),
    "a record too short": _block(records=[None, b"", *[None] * (BLOCK - 2)]),
    "a block of another number": _block(number=1),
    "a block without a number": _block(number="0"),
    **{
        f"field {position} is {value!r}": [
            *ONE[:1],
            _transaction_with(position, value),
        ]
        for position, value in WRONG_FIELDS
    },
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_or_foreign_bytes_raise_value_error_and_leave_the_state(name: str) -> None:
    machine = led_machine(begin("mine"))
    before, indexed = snapshot(machine), derived(machine)
    with pytest.raises(ValueError):  # noqa: PT011
        restore(machine, iter(DAMAGED[name]))
    assert (snapshot(machine), derived(machine)) == (before, indexed)


def test_a_snapshot_of_another_version_says_which_and_what_to_do() -> None:
    said = f"snapshot version 9, and this program knows {SNAPSHOT_VERSION}: start the program that"
    with pytest.raises(ValueError, match=said):
        restore(Machine(), iter(_header(GOOD, version=9)))


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_refused_as_a_value_error_or_not_noticed_but_nothing_else(
    seed: int,
) -> None:
    random, refused = Random(seed), 0
    good = snapshot(busy_machine(seed, 300))
    for _ in range(150):
        chunks = [bytearray(chunk) for chunk in good]
        chunk = random.choice(chunks)
        chunk[random.randrange(len(chunk))] = random.randrange(256)
        machine = led_machine(begin("mine"))
        before = snapshot(machine)
        try:
            restore(machine, iter([bytes(chunk) for chunk in chunks]))
        except ValueError:
            refused += 1
            assert snapshot(machine) == before
    assert refused > 0


def test_equal_content_gives_equal_bytes_whatever_objects_it_was_made_of() -> None:
    """Values are shared to save memory; that must not show in the bytes."""
    apart = led_machine(*(begin(f"t{n}", of=2) for n in range(3)))
    together = led_machine()
    one = begin("t0", of=2)
    for number in range(3):
        shared: Begin = one._replace(id=f"t{number}")
        together.step(shared)
    for number in range(3):
        for machine in (apart, together):
            result = machine.step(decide((YES, YES), f"t{number}"))
            assert isinstance(result, Applied)
    assert snapshot(apart) == snapshot(together)


def test_a_machine_goes_on_while_its_next_state_is_built_and_is_replaced_at_once() -> None:
    machine, other = led_machine(begin("mine")), busy_machine()
    restoring = machine.restoring()
    for chunk in snapshot(other):
        restoring.feed(chunk)
        machine.step(decide((YES, YES), "mine"))
    assert record(machine, "mine").outcome is not None
    assert machine.remembered_count == 0
    restoring.finish()
    assert snapshot(machine) == snapshot(other)
    assert machine.get("mine") is None
    for _ in restoring.release():
        pass
    assert snapshot(machine) == snapshot(other), "what was let go of is the old state"
    commands = RandomCommands(5, ids=200)
    for _ in range(500):
        command = commands()
        assert machine.step(command) == other.step(command)


def test_what_is_let_go_of_before_it_is_finished_leaves_the_state() -> None:
    machine = led_machine(begin("mine"))
    before = snapshot(machine)
    restoring = machine.restoring()
    for chunk in GOOD[:-1]:
        restoring.feed(chunk)
    for _ in restoring.release():
        pass
    assert snapshot(machine) == before
