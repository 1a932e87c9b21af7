"""Transactions as a snapshot holds them, read back. Pure.

A million of them are read at a restart, and most share their branches (the same services), votes
and metadata. Each distinct value is made once: less than half of the time, and one object in memory
for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from coordinator.facts import Branch, Effect, Mode, Outcome, Resolution, Transaction
from coordinator.indexes import SHARED_VALUES, Shared
from participants.contract import Vote

_MODES = {str(mode): mode for mode in Mode}
_OUTCOMES: dict[str | None, Outcome | None] = {None: None, **{str(o): o for o in Outcome}}


class TransactionReader:
    """Reads the transactions of one snapshot, one by one."""

    def __init__(self) -> None:
        self._branches = lru_cache(SHARED_VALUES)(_branches)
        self._votes = lru_cache(SHARED_VALUES)(_votes)
        self._reasons: Shared[tuple[str | None, ...]] = Shared()
        self._metadata: Shared[bytes] = Shared()

    def __call__(self, fields: tuple[Any, ...]) -> Transaction:
        """The transaction packed as `fields`; whatever is raised, they are none of ours."""
        raw = Transaction(*fields)
        if raw.outcome is None:  # its payloads are its own
            return raw._replace(
                mode=_MODES[raw.mode],
                branches=_branches(raw.branches),
                resolutions=_resolutions(raw.resolutions),
            )
        return raw._replace(
            mode=_MODES[raw.mode],
            branches=self._branches(raw.branches),
            metadata=self._metadata(raw.metadata),
            votes=self._votes(raw.votes),
            vote_reasons=self._reasons(raw.vote_reasons),
            outcome=_OUTCOMES[raw.outcome],
            resolutions=_resolutions(raw.resolutions),
        )


def _branches(raw: Iterable[Any]) -> tuple[Branch, ...]:
    return tuple([Branch(*branch) for branch in raw])


def _votes(raw: Iterable[str]) -> tuple[Vote, ...]:
    return tuple([Vote(vote) for vote in raw])


def _resolutions(raw: Iterable[Any]) -> tuple[Resolution, ...]:
    return tuple([Resolution(r[0], None if r[1] is None else Effect(r[1]), *r[2:]) for r in raw])
