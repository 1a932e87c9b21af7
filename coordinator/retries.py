"""Branches whose commit or rollback failed, and how soon all together may be called again. Pure.

A participant is a URL. One that is down is probed by its lane (`coordinator/lane.py`); but a
service that gives every order a URL of its own is as many participants. 4,000 branches at one that
was down were called as often as there was time for, 2,800 times a second, until their leader led no
more, and its successor did the same.

Rules
- Of all that failed, only so many are called again in a second; with few of them that is soon, and
  the branch's own pause decides.
- Each that is served brings two others forward that have waited longest: what comes back is in use
  as fast as it serves, and what does not is asked no more often.
"""

from __future__ import annotations

from itertools import islice
from typing import Generic, TypeVar

Branch = TypeVar("Branch")
Owner = TypeVar("Owner")

RETRIES_PER_S = 200
"""Each costs some 0.35 ms, so together they take 7 % of a processor."""

BROUGHT_FORWARD = 2


class Retries(Generic[Branch, Owner]):
    """The branches that wait to be called again, the longest first, each with its owner."""

    def __init__(self) -> None:
        self._waiting: dict[Branch, Owner] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def failed(self, branch: Branch, owner: Owner) -> float:
        """It waits from now on. Returns the least pause before its next call, in seconds."""
        self._waiting[branch] = owner
        return len(self._waiting) / RETRIES_PER_S

    def called(self, branch: Branch) -> None:
        """It waits no more: it is called again, or never will be."""
        self._waiting.pop(branch, None)

    def brought_forward(self) -> list[Owner]:
        """A branch that had failed was served: the owners of those that are to be called now."""
        return [
            self._waiting.pop(branch) for branch in list(islice(self._waiting, BROUGHT_FORWARD))
        ]
