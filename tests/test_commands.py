"""coordinator/commands.py: what goes into the log comes out of it, and nothing else is accepted."""

from __future__ import annotations

from random import Random

import msgpack
import pytest

from coordinator.commands import (
    COMMAND_VERSION,
    KINDS,
    Acknowledge,
    Begin,
    Close,
    Command,
    Decide,
    Enlist,
    Epoch,
    Forget,
    Refuse,
    Resolve,
    UnknownCommand,
    decode,
    encode,
)
from coordinator.facts import Branch, Effect, Mode
from coordinator.machine import Machine
from participants.contract import Vote
from tests.builders import RandomCommands, begin, branch, branches, snapshot

ONE_OF_EACH: tuple[Command, ...] = (
    Epoch(3, 1, "n1"),
    begin(of=3),
    begin(of=(), mode=Mode.INTERACTIVE),
    begin(of=(Branch("1", "n", None, "http://a/p", "http://b/c", "http://c/r", False),)),
    Enlist(3, 1, "t", branch(4, plain=True), b"null"),
    Close(3, 1, "t"),
    Decide(3, 1, "t", tuple(Vote), ("a", None, "ü ☃ 𝄞", "", "e"), None),
    Decide(3, 1, "t", (), (), "timed out"),
    Refuse(3, 1, "t"),
    Acknowledge(3, 1, "t", 0),
    Acknowledge(3, 1, "t", 1 << 255 | 1),
    Resolve(3, 1, "t", None, None, "ann", "données perdues — 失われた"),
    Resolve(3, 1, "t", "2", Effect.ROLLED_BACK, "ann", ""),
    Forget(3, 1, 1 << 47),
)


@pytest.mark.parametrize("command", ONE_OF_EACH, ids=lambda c: type(c).__name__)
def test_a_command_comes_out_of_the_log_as_it_went_in(command: Command) -> None:
    again = decode(encode(command))
    assert again == command
    assert type(again) is type(command)


def test_every_kind_is_among_those_tested_and_has_its_own_number() -> None:
    assert {type(command) for command in ONE_OF_EACH} == set(KINDS.values())
    assert sorted(KINDS) == list(range(1, len(KINDS) + 1))


def test_a_decoded_command_holds_the_types_that_the_machine_compares_by_identity() -> None:
    again = decode(encode(Decide(1, 1, "t", (Vote.READ_ONLY,), (None,), None)))
    assert isinstance(again, Decide)
    assert again.votes[0] is Vote.READ_ONLY
    begun = decode(encode(begin(mode=Mode.INTERACTIVE)))
    assert isinstance(begun, Begin)
    assert begun.mode is Mode.INTERACTIVE
    assert all(type(b) is Branch for b in begun.branches)


@pytest.mark.parametrize("seed", range(5))
def test_random_commands_come_out_as_they_went_in(seed: int) -> None:
    commands = RandomCommands(seed)
    for _ in range(400):
        command = commands()
        assert decode(encode(command)) == command, seed


def test_256_branches_can_be_begun_voted_for_and_acknowledged() -> None:
    count = 256
    started = begin(of=branches(count))
    votes = Decide(1, 1, "t", (Vote.YES,) * count, ("é" * 500,) * count, None)
    for command in (started, votes, Acknowledge(1, 1, "t", (1 << count) - 1)):
        assert decode(encode(command)) == command


def test_the_same_command_gives_the_same_bytes() -> None:
    for command in ONE_OF_EACH:
        assert encode(command) == encode(decode(encode(command)))


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"\xc1",
        b"garbage",
        msgpack.packb(None),
        msgpack.packb([]),
        msgpack.packb([1]),
        msgpack.packb({"kind": 1}),
        msgpack.packb("a text"),
        msgpack.packb([1, COMMAND_VERSION, 1]),
        msgpack.packb([0, COMMAND_VERSION, 1, 1, "t"]),
        msgpack.packb([99, COMMAND_VERSION, 1, 1, "t"]),
        msgpack.packb([[1], COMMAND_VERSION, 1, 1, "t"]),
        msgpack.packb([1, COMMAND_VERSION + 1, 1, 1, "n1"]),
        msgpack.packb([1, None, 1, 1, "n1"]),
        msgpack.packb([5, COMMAND_VERSION, 1, 1, "t", "YX", [None, None], None]),
        msgpack.packb([2, COMMAND_VERSION, 1, 1, "t", "f", "two_shot", [], 1, b"{}"]),
        msgpack.packb([2, COMMAND_VERSION, 1, 1, "t", "f", "one_shot", [["1"]], 1, b"{}"]),
        msgpack.packb([8, COMMAND_VERSION, 1, 1, "t", "1", "exploded", "ann", "why"]),
        msgpack.packb([6, COMMAND_VERSION, 1, 1, "t", "one field too many"]),
        msgpack.packb([7, COMMAND_VERSION, 1, 1, "t"]),
        encode(Forget(1, 1, 1)) + b"\x00",
        encode(begin())[:-1],
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
    ],
)
def test_what_is_not_a_command_of_ours_is_unknown_and_changes_nothing(packed: bytes) -> None:
    machine = Machine()
    before = snapshot(machine)
    with pytest.raises(UnknownCommand):
        decode(packed)
    with pytest.raises(UnknownCommand):
        machine.apply(packed)
    assert snapshot(machine) == before


def test_a_command_of_another_version_says_which_and_what_to_do() -> None:
    said = "command version 9, and this program knows 2: start the program that wrote it"
    with pytest.raises(UnknownCommand, match=said):
        decode(msgpack.packb([1, 9, 1, 1, "n1"]))


def test_damaged_bytes_raise_unknown_command_or_are_another_command_but_nothing_else() -> None:
    random = Random(11)
    refused = 0
    for command in ONE_OF_EACH:
        packed = encode(command)
        for _ in range(300):
            damaged = bytearray(packed)
            damaged[random.randrange(len(damaged))] = random.randrange(256)
            try:
                decode(bytes(damaged))
            except UnknownCommand:
                refused += 1
    assert refused > 300
