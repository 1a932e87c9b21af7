"""The commands of the replicated log: what a leader may ask every node to apply. Pure.

Every command carries the format version, the epoch under which its conversation began and the
proposer's clock (`now_ms`, written down, never compared with the clock of the node that applies
it). Each is idempotent. On the wire a command is a msgpack array `[kind, version, epoch, now_ms,
...fields]`.

A node that meets a kind or version it does not know must stop: to refuse it would make it differ
from the nodes that do know it. So `decode` raises and nobody catches that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack

from coordinator.facts import Branch, Effect, Mode
from participants.contract import Vote

COMMAND_VERSION = 1


class UnknownCommand(Exception):
    """A command that this program does not understand: this node is older than the log, and must
    stop.
    """


@dataclass(frozen=True, slots=True)
class Epoch:
    """A leadership begins. Its number is the Raft term, so it only grows."""

    epoch: int
    now_ms: int
    node: str


@dataclass(frozen=True, slots=True)
class Begin:
    """Record a transaction: closed if one-shot, open if interactive."""

    epoch: int
    now_ms: int
    id: str
    fingerprint: str
    mode: Mode
    branches: tuple[Branch, ...]
    deadline_ms: int
    metadata: bytes


@dataclass(frozen=True, slots=True)
class Enlist:
    """Add a branch to an open transaction."""

    epoch: int
    now_ms: int
    id: str
    branch: Branch


@dataclass(frozen=True, slots=True)
class Close:
    """End enlisting; from now on prepares may leave."""

    epoch: int
    now_ms: int
    id: str


@dataclass(frozen=True, slots=True)
class Decide:
    """The votes as the leader has them; the machine derives the outcome, nobody proposes one."""

    epoch: int
    now_ms: int
    id: str
    votes: tuple[Vote, ...]
    vote_reasons: tuple[str | None, ...]
    reason: str | None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Abort an id that nobody began, so that an inquiry may be answered (PROTOCOL, section 5)."""

    epoch: int
    now_ms: int
    id: str


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Branches have finished the outcome; a bit each."""

    epoch: int
    now_ms: int
    id: str
    branches: int


@dataclass(frozen=True, slots=True)
class Resolve:
    """End an undecided transaction (no branch) or a branch of a decided one by hand."""

    epoch: int
    now_ms: int
    id: str
    branch_id: str | None
    effect: Effect | None
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Forget:
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
_VOTE_LETTERS = {
    Vote.YES: "Y",
    Vote.NO: "N",
    Vote.READ_ONLY: "R",
    Vote.UNSENT: "S",
    Vote.UNKNOWN: "U",
}
_VOTES = {letter: vote for vote, letter in _VOTE_LETTERS.items()}


def encode(command: Command) -> bytes:
    """The command as the log holds it."""
    head = [_NUMBERS[type(command)], COMMAND_VERSION, command.epoch, command.now_ms]
    packed: bytes = msgpack.packb(head + _fields_of(command))
    return packed


def _fields_of(command: Command) -> list[Any]:
    match command:
        case Decide(id=id_, votes=votes, vote_reasons=reasons, reason=reason):
            return [id_, "".join([_VOTE_LETTERS[vote] for vote in votes]), reasons, reason]
        case Begin():
            return [
                command.id,
                command.fingerprint,
                command.mode,
                command.branches,
                command.deadline_ms,
                command.metadata,
            ]
        case Acknowledge():
            return [command.id, _bits_to_bytes(command.branches)]
        case Refuse(id=id_) | Close(id=id_):
            return [id_]
        case Resolve():
            return [command.id, command.branch_id, command.effect, command.actor, command.reason]
        case Forget(horizon_ms=horizon_ms):
            return [horizon_ms]
        case Epoch(node=node):
            return [node]
        case Enlist(id=id_, branch=branch):
            return [id_, branch]


def decode(packed: bytes) -> Command:
    """The command in bytes from the log; raises UnknownCommand, upon which the node stops."""
    try:
        number, version, epoch, now_ms, *fields = msgpack.unpackb(packed, use_list=False)
        if version != COMMAND_VERSION:
            raise UnknownCommand(
                f"command version {version!r}: this program knows {COMMAND_VERSION}"
            )
        return _command(KINDS[number], epoch, now_ms, fields)
    except UnknownCommand:
        raise
    except Exception as error:  # whatever the bytes are, they are not a command of ours
        raise UnknownCommand(f"not a command: {packed[:60]!r}: {error!r}") from error


def _command(kind: type[Command], epoch: int, now_ms: int, fields: list[Any]) -> Command:
    if kind is Decide:
        id_, letters, reasons, reason = fields
        return Decide(epoch, now_ms, id_, tuple([_VOTES[v] for v in letters]), reasons, reason)
    if kind is Begin:
        id_, fingerprint, mode, branches, deadline_ms, metadata = fields
        recorded = tuple([Branch(*branch) for branch in branches])
        return Begin(epoch, now_ms, id_, fingerprint, Mode(mode), recorded, deadline_ms, metadata)
    if kind is Acknowledge:
        id_, branches = fields
        return Acknowledge(epoch, now_ms, id_, int.from_bytes(branches, "little"))
    if kind is Resolve:
        id_, branch_id, effect, actor, reason = fields
        known = None if effect is None else Effect(effect)
        return Resolve(epoch, now_ms, id_, branch_id, known, actor, reason)
    if kind is Enlist:
        id_, branch = fields
        return Enlist(epoch, now_ms, id_, Branch(*branch))
    return kind(epoch, now_ms, *fields)


def _bits_to_bytes(bits: int) -> bytes:
    """A transaction may have 256 branches, and msgpack's integers end at 64 bits."""
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")
