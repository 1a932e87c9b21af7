"""The commands of the replicated log: what a leader may ask every node to apply. Pure.

Every command carries the format version, the epoch under which its conversation began and the
proposer's clock (`now_ms`, written down, never compared with the clock of the node that applies
it). Each is idempotent. On the wire a command is a msgpack array `[kind, version, epoch, now_ms,
...fields]`.

A node that meets a kind or version it does not know must stop: to refuse it would make it differ
from the nodes that do know it. So `decode` raises and nobody catches that.

Commands are named tuples, made in a third of the time of a frozen dataclass: every node makes three
for each transaction. In the log the branches of a `Begin` are bytes of their own, apart from their
payloads, for most transactions are at the same services: they are unpacked once for all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack

from coordinator.facts import Branch, Branches, Effect, Mode
from coordinator.packed import (
    letters_of,
    pack,
    pack_bits,
    pack_reasons,
    unpack_bits,
    unpack_branches,
    unpack_reasons,
    votes_of,
)
from participants.contract import Vote

COMMAND_VERSION = 2

_new = tuple.__new__  # a third of the time, for the three commands of every transaction

# Looked up once: finding a member of an enum costs 90 ns in Python 3.11.
_INTERACTIVE, _ONE_SHOT = Mode.INTERACTIVE, Mode.ONE_SHOT


class UnknownCommand(Exception):
    """A command that this program does not understand: this node is older than the log, and must
    stop.
    """


class Epoch(NamedTuple):
    """A leadership begins. Its number is the Raft term, so it only grows."""

    epoch: int
    now_ms: int
    node: str


class Begin(NamedTuple):
    """Record a transaction: closed if one-shot, open if interactive."""

    epoch: int
    now_ms: int
    id: str
    fingerprint: str
    mode: Mode
    branches: Branches
    payloads: tuple[bytes, ...]
    deadline_ms: int
    metadata: bytes


class Enlist(NamedTuple):
    """Add a branch to an open transaction. The machine numbers it: many may be under way."""

    epoch: int
    now_ms: int
    id: str
    branch: Branch
    payload: bytes


class Close(NamedTuple):
    """End enlisting; from now on prepares may leave."""

    epoch: int
    now_ms: int
    id: str


class Decide(NamedTuple):
    """The votes as the leader has them; the machine derives the outcome, nobody proposes one."""

    epoch: int
    now_ms: int
    id: str
    votes: tuple[Vote, ...]
    vote_reasons: tuple[str | None, ...]
    reason: str | None


class Refuse(NamedTuple):
    """Abort an id that nobody began, so that an inquiry may be answered (PROTOCOL, section 5)."""

    epoch: int
    now_ms: int
    id: str


class Acknowledge(NamedTuple):
    """Branches have finished the outcome; a bit each."""

    epoch: int
    now_ms: int
    id: str
    branches: int


class Resolve(NamedTuple):
    """End an undecided transaction (no branch) or a branch of a decided one by hand."""

    epoch: int
    now_ms: int
    id: str
    branch_id: str | None
    effect: Effect | None
    actor: str
    reason: str


class Forget(NamedTuple):
    """Move the horizon, which only grows, and remove what finished before it."""

    epoch: int
    now_ms: int
    horizon_ms: int


Command = Epoch | Begin | Enlist | Close | Decide | Refuse | Acknowledge | Resolve | Forget

# The numbers are in logs on disk: they are never given to another kind.
KINDS: dict[int, type[Command]] = {
    1: Epoch,
    2: Begin,
    3: Enlist,
    4: Close,
    5: Decide,
    6: Refuse,
    7: Acknowledge,
    8: Resolve,
    9: Forget,
}
_NUMBERS = {kind: number for number, kind in KINDS.items()}


def encode(command: Command) -> bytes:
    """The command as the log holds it."""
    return pack((_NUMBERS[type(command)], COMMAND_VERSION, *_fields_of(command)))


def _fields_of(command: Command) -> tuple[Any, ...]:
    """Branches are bytes of their own: they recur, and are unpacked once."""
    match command:
        case Begin():
            return (
                *command[:4],
                command.mode is _INTERACTIVE,
                command.branches.packed,
                *command[6:],
            )
        case Decide():
            reasons = pack_reasons(command.vote_reasons, len(command.votes))
            return (*command[:3], letters_of(command.votes), reasons, command.reason)
        case Acknowledge():
            return (*command[:3], pack_bits(command.branches))
        case _:
            return command


def decode(packed: bytes) -> Command:
    """The command in bytes from the log; raises UnknownCommand, upon which the node stops."""
    try:
        number, version, *fields = msgpack.unpackb(packed, use_list=False)
        if version != COMMAND_VERSION:
            raise UnknownCommand(of_another_version("command", version, COMMAND_VERSION))
        return _DECODERS[number](*fields)
    except UnknownCommand:
        raise
    except Exception as error:  # whatever the bytes are, they are not a command of ours
        raise UnknownCommand(f"not a command: {packed[:60]!r}: {error!r}") from error


def of_another_version(what: str, version: object, known: int) -> str:
    """What to say, and to do, about bytes that this program does not read."""
    return (
        f"{what} version {version!r}, and this program knows {known}: start the program that wrote "
        "it, or begin a new cluster with empty directories"
    )


def _begin(
    epoch: int,
    now_ms: int,
    id_: str,
    fingerprint: str,
    is_interactive: bool,
    branches: bytes,
    payloads: tuple[bytes, ...],
    deadline_ms: int,
    metadata: bytes,
) -> Begin:
    mode = _INTERACTIVE if is_interactive else _ONE_SHOT
    recorded = unpack_branches(branches)
    if len(payloads) != len(recorded):
        raise ValueError(f"{len(payloads)} payloads for {len(recorded)} branches")
    fields = (epoch, now_ms, id_, fingerprint, mode, recorded, payloads, deadline_ms, metadata)
    return _new(Begin, fields)


def _decide(
    epoch: int,
    now_ms: int,
    id_: str,
    letters: str,
    reasons: tuple[str | None, ...] | None,
    reason: str | None,
) -> Decide:
    votes = votes_of(letters)
    vote_reasons = unpack_reasons(reasons, len(votes))
    return _new(Decide, (epoch, now_ms, id_, votes, vote_reasons, reason))


def _acknowledge(epoch: int, now_ms: int, id_: str, branches: int | bytes) -> Acknowledge:
    return _new(Acknowledge, (epoch, now_ms, id_, unpack_bits(branches)))


def _resolve(
    epoch: int, now_ms: int, id_: str, branch_id: str | None, effect: str | None, *by: str
) -> Resolve:
    known = None if effect is None else Effect(effect)
    return Resolve(epoch, now_ms, id_, branch_id, known, *by)


def _enlist(epoch: int, now_ms: int, id_: str, branch: tuple[Any, ...], payload: bytes) -> Enlist:
    return Enlist(epoch, now_ms, id_, Branch(*branch), payload)


_DECODERS: dict[int, Callable[..., Command]] = {
    **KINDS,
    _NUMBERS[Begin]: _begin,
    _NUMBERS[Enlist]: _enlist,
    _NUMBERS[Decide]: _decide,
    _NUMBERS[Acknowledge]: _acknowledge,
    _NUMBERS[Resolve]: _resolve,
}
