"""What the rules of Raft see of one replica, whoever keeps the state behind it.

`cluster/raft/core.py` fills this in with pysyncobj's fields; the rules (elections, replication,
snapshots) are written against it and know nothing of the library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Final

from cluster.raft.members import Configurations
from cluster.raft.wire import RaftMessage
from cluster.settings import RaftTimings
from cluster.storage.journal import Journal

NEVER: Final = float("-inf")


class Role(Enum):
    """The values are pysyncobj's."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2


@dataclass(frozen=True, slots=True)
class CoreLimits:
    """Sizes within the core."""

    append_bytes: int = 1 << 20
    """Entries in one message, about: one more is added as long as this is not reached."""
    backlog_bytes: int = 4 << 20
    """Unsent bytes to a peer from which on it is sent heartbeats only."""
    apply_portion: int = 256
    """Entries applied in one go; between two the loop does other things."""
    snapshot_bytes: int = 64 << 20
    """Bytes of entries after which a snapshot is taken, however few entries they are."""
    log_bytes: int = 256 << 20
    """The same, however large the snapshot is: a start reads them in some 12 s of CPU."""
    kept_bytes: int = 8 << 20
    """Entries kept behind a snapshot for followers that lag a little: as many as fit in here."""
    piece_bytes: int = 256 << 10
    """One piece of a snapshot that is sent to a peer."""


class RaftState:
    """The state of one replica, and the few ways to change it."""

    node: str
    journal: Journal
    timings: RaftTimings
    limits: CoreLimits
    configurations: Configurations
    now: Callable[[], float]
    now_ms: Callable[[], int]
    random: Random
    send: Callable[[str, RaftMessage], None]
    backlog: Callable[[str], int]
    durable_index: int
    """The last entry that is synced here; what is behind it counts for nothing yet."""
    _syncing_to: int
    """The last entry of this log that the sync under way covers."""
    last_contact: float
    """When the leader was last heard of."""

    @property
    def term(self) -> int:
        raise NotImplementedError

    @property
    def vote(self) -> str | None:
        raise NotImplementedError

    @property
    def role(self) -> Role:
        raise NotImplementedError

    @property
    def leader(self) -> str | None:
        """Whom this replica follows in its term."""
        raise NotImplementedError

    @property
    def commit(self) -> int:
        raise NotImplementedError

    @property
    def applied(self) -> int:
        raise NotImplementedError

    @property
    def deadline(self) -> float:
        """When this replica wants an election, unless it hears of a leader before."""
        raise NotImplementedError

    @property
    def peers(self) -> tuple[str, ...]:
        """The other voters, sorted."""
        raise NotImplementedError

    @property
    def quorum(self) -> int:
        return (len(self.peers) + 1) // 2 + 1

    def is_connected(self, peer: str) -> bool:
        raise NotImplementedError

    def set_term(self, term: int, vote: str | None) -> None:
        """Into the journal, too: it is durable before any message of this step leaves.

        Pre-votes and a transfer that were asked for before are over.
        """
        raise NotImplementedError

    def set_role(self, role: Role) -> None:
        raise NotImplementedError

    def set_leader(self, peer: str | None) -> None:
        raise NotImplementedError

    def set_commit(self, index: int) -> None:
        raise NotImplementedError

    def set_applied(self, index: int, previous: int) -> None:
        """The state is that of `index` now; `previous` is the index of the entry before it."""
        raise NotImplementedError

    def set_deadline(self, at: float) -> None:
        raise NotImplementedError

    def draw_deadline(self) -> None:
        """A new election timeout from now on."""
        raise NotImplementedError

    def become_leader(self) -> None:
        raise NotImplementedError

    def step_down(self, term: int) -> None:
        """Follow nobody, in `term` if that is newer."""
        if term > self.term:
            self.set_term(term, None)
        self.set_role(Role.FOLLOWER)
        self.set_leader(None)

    @property
    def transferring(self) -> bool:
        """The leader asked this replica to stand for election."""
        raise NotImplementedError

    def set_transferring(self, transferring: bool) -> None:
        raise NotImplementedError

    def match_index(self, peer: str) -> int:
        raise NotImplementedError

    def next_index(self, peer: str) -> int:
        raise NotImplementedError

    def set_match_index(self, peer: str, index: int) -> None:
        raise NotImplementedError

    def set_next_index(self, peer: str, index: int) -> None:
        raise NotImplementedError

    def last_reply(self, peer: str) -> float:
        """When `peer` last answered this leader."""
        raise NotImplementedError

    def set_last_reply(self, peer: str) -> None:
        raise NotImplementedError

    def read_configurations(self, index: int, members: tuple[str, ...]) -> Configurations:
        """`members` up to `index`, and what the log says behind it."""
        raise NotImplementedError

    def adopt_members(self) -> None:
        """Let the latest configuration count."""
        raise NotImplementedError

    def stop_shipping(self, peer: str) -> None:
        """Give up a snapshot that is on its way to `peer`, if one is."""
        raise NotImplementedError

    def speak_soon(self) -> None:
        """Let the next tick send to all, before the heartbeat is due."""
        raise NotImplementedError

    def heard_clock(self, peer: str, now_ms: int) -> None:
        """`peer`'s clock showed `now_ms` when it wrote what is being received."""
        raise NotImplementedError

    def truncate_from(self, index: int) -> None:
        """Remove entries that a leader contradicts, and what was known by them."""
        raise NotImplementedError

    def append_entry(self, command: bytes, index: int, term: int) -> None:
        """Add an entry, and take up the members that it may name."""
        raise NotImplementedError
