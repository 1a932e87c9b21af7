"""What one leadership knows of one branch: its vote, what it was told, when it is called. Pure."""

from __future__ import annotations

import enum

from coordinator.facts import Branch
from participants.contract import Vote


class Fate(enum.Enum):
    """What is known of a prepare whose vote the record does not have."""

    UNKNOWN = "it may still arrive"
    KNOWN = "it has been answered, so it will not arrive any more"
    NOTHING_HELD = "it never arrived, or was answered with NO"


_FATE_UNKNOWN = Fate.UNKNOWN  # looked up once: 90 ns each time


class Leg:
    """The conversation with one branch.

    `attempts` are counted anew in phase two; `last_error` stays until an answer takes its place.
    """

    __slots__ = (
        "acknowledged",
        "attempts",
        "branch",
        "called_again_s",
        "ending",
        "fate",
        "last_error",
        "perhaps_sent",
        "prepares",
        "preparing",
        "reason",
        "too_early",
        "vote",
        "working",
    )

    def __init__(self, branch: Branch, *, perhaps_sent: bool) -> None:
        self.branch = branch
        self.vote: Vote | None = None
        self.reason: str | None = None
        self.perhaps_sent = perhaps_sent
        self.prepares = 0  # how many we sent
        self.preparing = False  # one of them is under way
        self.ending = False  # a commit or rollback of ours is under way
        self.working = 0  # times it answered "still working"
        self.attempts = 0
        self.last_error: str | None = None
        self.called_again_s: float | None = None  # when the next call is due
        self.fate = _FATE_UNKNOWN
        self.too_early = False  # that one was begun before the fate was known
        self.acknowledged = False  # heard; it may not be in the log yet
