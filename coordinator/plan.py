"""What a client asked for, read and checked but not begun. Pure."""

from __future__ import annotations

import enum
import functools
from typing import NamedTuple

from coordinator.facts import Branch, Branches, Mode, participant_of
from coordinator.packed import REMEMBERED_SHAPES, SHORT_BYTES


class Wait(enum.StrEnum):
    """How long the client wants to wait: until it is begun, decided, or finished everywhere."""

    NONE = "none"
    DECISION = "decision"
    COMPLETION = "completion"


class Planned(NamedTuple):
    """Where the client wants a branch."""

    name: str
    url: str | None
    prepare_url: str
    commit_url: str
    rollback_url: str


def recorded(planned: tuple[Planned, ...], repeatable: tuple[bool, ...]) -> Branches:
    """The branches as `Begin` records them; one object for equal ones, where they are short."""
    chars = 0
    for place in planned:
        chars += len(place.prepare_url) + len(place.commit_url) + len(place.rollback_url)
    return (_recorded_short if chars <= SHORT_BYTES else _recorded)(planned, repeatable)


def _recorded(planned: tuple[Planned, ...], repeatable: tuple[bool, ...]) -> Branches:
    numbered = enumerate(zip(planned, repeatable, strict=True), 1)
    return Branches(
        [Branch(str(number), *place, can_repeat) for number, (place, can_repeat) in numbered]
    )


_recorded_short = functools.lru_cache(REMEMBERED_SHAPES)(_recorded)


class Plan(NamedTuple):
    """A transaction as the client asked for it.

    `payloads`, one for each branch, and `metadata` are JSON as `contract.encode_json` gives it.
    `address`: where it came from, None if it stood in line (see `admission`).
    """

    id: str
    fingerprint: str
    mode: Mode
    branches: tuple[Planned, ...]
    payloads: tuple[bytes, ...]
    timeout_ms: int
    metadata: bytes
    traceparent: str | None = None
    address: str | None = None

    @property
    def participants(self) -> list[str]:
        """See `Branches.participants`."""
        return [participant_of(url, prepare_url) for _, url, prepare_url, _, _ in self.branches]


class Awaited(NamedTuple):
    """What the answer needs of what was asked for. Not its payloads: who waits for a participant
    that is down would hold them for as long, beside those that `Limits.undecided_bytes` counts.

    `named`: the client gave the id.
    """

    id: str
    fingerprint: str
    mode: Mode
    wait: Wait
    named: bool
