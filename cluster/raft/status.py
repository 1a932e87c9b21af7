"""What a replica says of itself: its state at one moment, and counters since its start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.raft.core import RaftCore
from cluster.raft.state import NEVER, Role


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What this replica knows of another. `match_index` is 0 unless this one leads."""

    node: str
    connected: bool
    match_index: int
    last_contact_s: float | None
    """Seconds since it was heard of, as a leader by its followers or the other way round."""


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica at one moment."""

    node: str
    role: Role
    term: int
    epoch: int | None
    leader: str | None
    applied: int
    committed: int
    first: int
    last: int
    snapshot: int
    members: tuple[str, ...]
    peers: tuple[PeerStatus, ...]
    clock_offsets_ms: Mapping[str, int]
    """Peers' wall clocks less this node's own; a leader hears all of them, others the leader's."""


@dataclass(slots=True)
class ReplicaStats:
    """Counters since the start."""

    steps: int = 0
    entries: int = 0
    commands: int = 0
    bytes: int = 0
    syncs: int = 0
    snapshots_installed: int = 0
    leaderships: int = 0
    dropped: int = 0
    """Messages dropped because too many waited for the disk."""
    elections: int = 0
    """Elections in which this replica stood."""
    snapshots: int = 0
    """Snapshots taken; those of the leader are counted beside them."""
    stalls: int = 0
    max_lag_s: float = 0.0
    """How late the timer ever was: near the election timeout it makes elections."""


def unknown_status(node: str, members: tuple[str, ...]) -> ReplicaStatus:
    """Of a replica that has not read its log yet."""
    return ReplicaStatus(
        node=node,
        role=Role.FOLLOWER,
        term=0,
        epoch=None,
        leader=None,
        applied=0,
        committed=0,
        first=0,
        last=0,
        snapshot=0,
        members=members,
        peers=tuple(PeerStatus(peer, False, 0, None) for peer in members if peer != node),
        clock_offsets_ms={},
    )


def peer_status(core: RaftCore, peer: str) -> PeerStatus:
    """What this replica knows of another one just now."""
    leads = core.role is Role.LEADER
    heard_at = core.last_reply(peer) if leads else core.last_contact
    heard = heard_at > NEVER and (leads or peer == core.leader)
    return PeerStatus(
        node=peer,
        connected=core.is_connected(peer),
        match_index=core.match_index(peer) if leads else 0,
        last_contact_s=max(0.0, core.now() - heard_at) if heard else None,
    )
