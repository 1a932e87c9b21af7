"""Entries of the log in words, for people who look into a journal.

What an entry is, and which commands are in it, is read by the same code that applies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from cluster.errors import FailStop
from cluster.raft.entries import COMMANDS, MEMBERS, NOTHING, decode_group
from cluster.raft.members import decode_members
from coordinator.commands import (
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
)


class Unreadable(Exception):
    """An entry that is whole, but that this program cannot read; the node would stop at it."""


def words_of_entry(entry: bytes) -> list[str]:
    """A line for each thing that the entry says. Raises Unreadable."""
    kind, body = entry[:1], entry[1:]
    try:
        if kind == NOTHING:
            return ["nothing: so begins a log, and each leadership"]
        if kind == MEMBERS:
            return [f"voters from here on: {', '.join(decode_members(body))}"]
        if kind == COMMANDS:
            return [words_of(decode(command)) for command in decode_group(entry)[1]]
    except (FailStop, UnknownCommand, ValueError) as error:
        raise Unreadable(str(error)) from error
    raise Unreadable(f"an entry of the unknown kind {kind!r}")


def words_of(command: Command) -> str:
    """One command, with the transaction that it is about."""
    match command:
        case Epoch(epoch=epoch, node=node):
            return f"epoch {epoch}, led by {node}"
        case Begin(id=id_, mode=mode, branches=branches):
            names = ", ".join(branch.name for branch in branches) or "none yet"
            return f"begin {id_} ({mode.replace('_', '-')}), branches: {names}"
        case Enlist(id=id_, branch=branch):
            return f"enlist in {id_}: {branch.name}"
        case Close(id=id_):
            return f"close {id_}"
        case Decide(id=id_, votes=votes, reason=reason):
            said = ", ".join(vote.replace("_", " ") for vote in votes) or "none"
            return f"decide {id_}, votes: {said}" + (f"; {reason}" if reason else "")
        case Refuse(id=id_):
            return f"refuse {id_}: a participant asked before it was begun"
        case Acknowledge(id=id_, branches=branches):
            return f"acknowledge {id_}, branches: {', '.join(_positions(branches))}"
        case Resolve(id=id_, branch_id=None, actor=actor, reason=reason):
            return f"resolve {id_}: aborted by {actor}: {reason}"
        case Resolve(id=id_, branch_id=branch_id, effect=effect, actor=actor, reason=reason):
            return f"resolve {id_}, branch {branch_id}: {effect}, says {actor}: {reason}"
        case Forget(horizon_ms=horizon_ms):
            return f"forget what was finished before {_time(horizon_ms)}"


def _positions(bits: int) -> Iterator[str]:
    return (str(position + 1) for position in range(bits.bit_length()) if bits >> position & 1)


def _time(unix_ms: int) -> str:
    try:
        moment = datetime.fromtimestamp(unix_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return f"{unix_ms} ms"
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
