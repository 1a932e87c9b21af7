"""What a client asked for, read and checked but not begun. Pure."""

from __future__ import annotations

import enum
from typing import NamedTuple

from coordinator.facts import Branch, Mode


class Wait(enum.StrEnum):
    """How long the client wants to wait: until it is begun, decided, or finished everywhere."""

    NONE = "none"
    DECISION = "decision"
    COMPLETION = "completion"


class Planned(NamedTuple):
    """A branch as the client asked for it. `payload` is JSON as `contract.encode_json` gives it."""

    name: str
    url: str | None
    prepare_url: str
    commit_url: str
    rollback_url: str
    payload: bytes

    @property
    def participant(self) -> str:
        """See `Branch.participant`."""
        return self.url or self.prepare_url

    def recorded(self, branch_id: str, *, repeatable: bool) -> Branch:
        """The branch as `Begin` records it."""
        return Branch(
            branch_id,
            self.name,
            self.url,
            self.prepare_url,
            self.commit_url,
            self.rollback_url,
            self.payload,
            repeatable,
        )


class Plan(NamedTuple):
    """A transaction as the client asked for it. `metadata` is JSON."""

    id: str
    fingerprint: str
    mode: Mode
    branches: tuple[Planned, ...]
    timeout_ms: int
    metadata: bytes
    traceparent: str | None = None
