"""A transaction as the API shows it: JSON, written piece by piece. Pure."""

from __future__ import annotations

import functools
import json

from coordinator.facts import (
    Outcome,
    Resolution,
    State,
    Transaction,
    branch_state,
    state_of,
)
from coordinator.live import Progress
from coordinator.packed import SHORT_BYTES
from participants.contract import Vote, rfc3339

_quoted = json.encoder.encode_basestring_ascii
_SAID = (Vote.YES, Vote.NO, Vote.READ_ONLY)


def show(transaction: Transaction, progress: tuple[Progress, ...] | None = None) -> str:
    """The JSON of a transaction in every answer. `progress`: what the present leader saw of it.

    Written piece by piece: made as a dict and then encoded, it costs three times as much.
    """
    state = state_of(transaction)
    outcome = None if transaction.outcome is None else _OUTCOMES[transaction.outcome]
    if state is State.REFUSED:
        outcome = None  # nobody knows
    expires_ms = None if transaction.is_refusal else transaction.deadline_ms
    if transaction.outcome is None or len(transaction.branches.packed) > SHORT_BYTES:
        branches = _show_branches(transaction, progress)
    else:
        branches = _remembered_branches(_standing(transaction), progress)
    history = ",".join([_show_resolution(resolution) for resolution in transaction.resolutions])
    return (
        f'{{"id":"{transaction.id}","state":"{state}","outcome":{_text(outcome)},'
        f'"reason":{_text(transaction.reason)},"mode":"{transaction.mode}",'
        f'"created_at":{_time(transaction.created_ms)},"expires_at":{_time(expires_ms)},'
        f'"decided_at":{_time(transaction.decided_ms)},'
        f'"finished_at":{_time(transaction.finished_ms)},'
        f'"branches":[{branches}],"history":[{history}],'
        f'"metadata":{transaction.metadata.decode("ascii")}}}'
    )


_OUTCOMES = {Outcome.COMMIT: "committed", Outcome.ABORT: "aborted"}


def _standing(transaction: Transaction) -> Transaction:
    """What the text of a decided transaction's branches is made of, without what is its alone: the
    same for many."""
    return Transaction(
        "",
        0,
        transaction.fingerprint and "-",
        transaction.mode,
        transaction.branches,
        (),
        b"",
        0,
        0,
        transaction.closed,
        transaction.votes,
        transaction.vote_reasons,
        transaction.outcome,
        None,
        None,
        transaction.acknowledged,
        transaction.resolutions,
    )


def _show_branches(transaction: Transaction, progress: tuple[Progress, ...] | None) -> str:
    branches = [
        _show_branch(transaction, position, progress[position] if progress else None)
        for position in range(len(transaction.branches))
    ]
    return ",".join(branches)


_remembered_branches = functools.lru_cache(maxsize=512)(_show_branches)
"""Nearly all transactions go to the same few participants and end alike: a third of the time."""


def show_branch(transaction: Transaction, position: int) -> str:
    """The JSON of one that was enlisted."""
    branch = _show_branch(transaction, position, None)
    of = f'"transaction_id":"{transaction.id}","expires_at":{_time(transaction.deadline_ms)}'
    return f"{{{of},{branch[1:]}"


def _show_branch(transaction: Transaction, position: int, progress: Progress | None) -> str:
    heard, reason, attempts, last_error = progress or (None, None, 0, None)
    vote = heard
    if transaction.outcome is not None:
        vote, reason = transaction.votes[position], transaction.vote_reasons[position]
    said = vote if vote in _SAID else None
    state = branch_state(transaction, position, heard)
    return (
        f'{{{_show_place(*transaction.branches[position][:6])},"vote":{_text(said)},'
        f'"reason":{_text(reason)},"state":"{state}","attempts":{attempts},'
        f'"last_error":{_text(last_error)}}}'
    )


@functools.lru_cache(maxsize=1024)
def _show_place(
    branch_id: str, name: str, url: str | None, prepare: str, commit: str, rollback: str
) -> str:
    """What a branch's record says of its participant. Remembered: a cluster has few of them."""
    place = f'"branch_id":{_text(branch_id)},"name":{_text(name)},"url":{_text(url)}'
    if url is not None:
        return place
    calls = f'"prepare":{_text(prepare)},"commit":{_text(commit)},"rollback":{_text(rollback)}'
    return f"{place},{calls}"


def _show_resolution(resolution: Resolution) -> str:
    return (
        f'{{"branch_id":{_text(resolution.branch_id)},"effect":{_text(resolution.effect)},'
        f'"actor":{_text(resolution.actor)},"reason":{_text(resolution.reason)},'
        f'"at":{_time(resolution.at_ms)}}}'
    )


def _text(text: str | None) -> str:
    return "null" if text is None else _quoted(text)


def _time(unix_ms: int | None) -> str:
    return "null" if unix_ms is None else f'"{rfc3339(unix_ms)}"'
