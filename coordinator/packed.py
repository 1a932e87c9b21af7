"""Transactions as bytes: what a finished one is held as, and what a snapshot holds of any. Pure.

A finished transaction is hardly ever looked at again, and there may be a million of them. As bytes
it weighs half of what its tuples weigh, Python's collector of garbage has nothing in it to walk
over, and a snapshot copies it instead of packing it. Its branches are apart from it: most are at
the same services, so they are held once for many.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgpack

from coordinator.facts import Branch, Branches, Effect, Mode, Outcome, Resolution, Transaction
from participants.contract import Vote

REMEMBERED_SHAPES = 1_000
"""Distinct branches or votes that are made or unpacked once as long as they recur."""

SHORT_BYTES = 2_000
"""Of branches, packed or in their URLs. Larger ones are not remembered: all different, with the
longest URLs, they would take hundreds of megabytes. Ten usual branches are 1,300.
"""

_LARGEST_PACKED = (1 << 64) - 1
_LETTERS = {
    Vote.YES: "Y",
    Vote.NO: "N",
    Vote.READ_ONLY: "R",
    Vote.UNSENT: "S",
    Vote.UNKNOWN: "U",
}
_VOTES = {letter: vote for vote, letter in _LETTERS.items()}


pack: Callable[[object], bytes] = msgpack.Packer().pack
"""`msgpack.packb` makes a packer each time, which takes twice as long as to pack a command."""

# --- branches, votes, bits ------------------------------------------------------------------------


def unpack_branches(packed: bytes) -> Branches:
    """The branches in `Branches.packed`; where it is short, one object for all that are alike.

    Whatever is raised, these are none of ours.
    """
    return _unpack_short(packed) if len(packed) <= SHORT_BYTES else _unpacked(packed)


@functools.lru_cache(REMEMBERED_SHAPES)
def _unpack_short(packed: bytes) -> Branches:
    return _unpacked(packed)


def _unpacked(packed: bytes) -> Branches:
    return Branches([Branch(*fields) for fields in msgpack.unpackb(packed)])


@functools.lru_cache(REMEMBERED_SHAPES)
def letters_of(votes: tuple[Vote, ...]) -> str:
    return "".join([_LETTERS[vote] for vote in votes])


@functools.lru_cache(REMEMBERED_SHAPES)
def votes_of(letters: str) -> tuple[Vote, ...]:
    """Raises KeyError if a letter stands for no vote."""
    return tuple([_VOTES[letter] for letter in letters])


def pack_reasons(reasons: tuple[str | None, ...], count: int) -> tuple[str | None, ...] | None:
    """None if none of so many votes has a reason, as nearly always."""
    return None if reasons == (None,) * count else reasons


def unpack_reasons(packed: tuple[str | None, ...] | None, count: int) -> tuple[str | None, ...]:
    return (None,) * count if packed is None else packed


def pack_bits(bits: int) -> int | bytes:
    """A transaction may have 256 branches, and msgpack's integers end at 64 bits."""
    if bits <= _LARGEST_PACKED:
        return bits
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def unpack_bits(packed: int | bytes) -> int:
    return packed if isinstance(packed, int) else int.from_bytes(packed, "little")


# --- transactions ---------------------------------------------------------------------------------


def pack_finished(transaction: Transaction) -> bytes:
    """All of a finished transaction but its id, its number and its branches."""
    resolutions = transaction.resolutions
    return pack(
        (
            transaction.fingerprint,
            transaction.mode is Mode.INTERACTIVE,
            transaction.metadata,
            transaction.created_ms,
            transaction.deadline_ms,
            letters_of(transaction.votes),
            pack_reasons(transaction.vote_reasons, len(transaction.votes)),
            transaction.outcome is Outcome.COMMIT,
            transaction.reason,
            transaction.decided_ms,
            pack_bits(transaction.acknowledged),
            resolutions or None,
            transaction.finished_ms,
        )
    )


def unpack_finished(
    transaction_id: str, sequence: int, branches: bytes, packed: bytes | memoryview
) -> Transaction:
    """The transaction that `pack_finished` and `Branches.packed` hold."""
    (
        fingerprint,
        is_interactive,
        metadata,
        created_ms,
        deadline_ms,
        letters,
        reasons,
        commits,
        reason,
        decided_ms,
        acknowledged,
        resolutions,
        finished_ms,
    ) = msgpack.unpackb(packed, use_list=False)
    votes = votes_of(letters)
    return Transaction(
        transaction_id,
        sequence,
        fingerprint,
        Mode.INTERACTIVE if is_interactive else Mode.ONE_SHOT,
        unpack_branches(branches),
        (),
        metadata,
        created_ms,
        deadline_ms,
        True,
        votes,
        unpack_reasons(reasons, len(votes)),
        Outcome.COMMIT if commits else Outcome.ABORT,
        reason,
        decided_ms,
        unpack_bits(acknowledged),
        () if resolutions is None else _resolutions(resolutions),
        finished_ms,
    )


def pack_unfinished(transaction: Transaction) -> tuple[Any, ...]:
    """All of an unfinished transaction, ready for msgpack."""
    return (*transaction[:15], pack_bits(transaction.acknowledged), *transaction[16:])


def unpack_unfinished(fields: tuple[Any, ...]) -> Transaction:
    """The transaction packed as `fields`; whatever is raised, they are none of ours."""
    raw = Transaction(*fields)
    if not isinstance(raw.id, str) or raw.finished_ms is not None:
        raise ValueError(f"{raw.id!r} does not belong among the unfinished")
    if raw.outcome is None and len(raw.payloads) != len(raw.branches):
        raise ValueError(f"{raw.id} lacks payloads")
    return raw._replace(
        mode=Mode(raw.mode),
        branches=Branches([Branch(*branch) for branch in raw.branches]),
        payloads=tuple(raw.payloads),
        votes=tuple([Vote(vote) for vote in raw.votes]),
        outcome=None if raw.outcome is None else Outcome(raw.outcome),
        acknowledged=unpack_bits(raw.acknowledged),
        resolutions=_resolutions(raw.resolutions),
    )


def _resolutions(raw: tuple[Any, ...]) -> tuple[Resolution, ...]:
    return tuple([Resolution(r[0], None if r[1] is None else Effect(r[1]), *r[2:]) for r in raw])
