"""The library's private fields, under the names that the rules have for them.

pysyncobj keeps a replica's state in attributes of `SyncObj` whose names Python has mangled. This
file alone names them, with `cluster/raft/core.py`; it does not import the library. What a change
of the log means for the members is here, too, since the library's own idea of it is a field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cluster.errors import FailStop
from cluster.raft.entries import MEMBERS
from cluster.raft.members import Configurations, decode_members
from cluster.raft.state import NEVER, RaftState, Role

_LEADER: Final = Role.LEADER.value
_ROLES: Final = {role.value: role for role in Role}


class LibraryFields(RaftState):
    """`RaftState` as pysyncobj keeps it."""

    make_node: Callable[[str], Any]
    """The library's node of a name."""
    clocks_ahead_ms: dict[str, float]
    """Peers' clocks less the loop's time, as last heard."""
    bytes_since_snapshot: int
    _peer_names: tuple[str, ...]
    _peer_nodes: dict[str, Any]

    if TYPE_CHECKING:  # the interpreter would be slower at every field of the replica

        def __getattr__(self, name: str) -> Any:
            """The library's fields are not declared anywhere."""

    @property
    def term(self) -> int:
        return int(self._SyncObj__raftCurrentTerm)

    @property
    def vote(self) -> str | None:
        return self._SyncObj__votedForNodeId  # type: ignore[no-any-return]

    @property
    def role(self) -> Role:
        return _ROLES[self._SyncObj__raftState]

    def leads(self, term: int | None) -> bool:
        """Whether this replica is the leader of `term`; asked several times a transaction."""
        is_leader: bool = self._SyncObj__raftState == _LEADER
        return is_leader and self._SyncObj__raftCurrentTerm == term

    @property
    def leader(self) -> str | None:
        node = self._SyncObj__raftLeader
        return None if node is None else node.id

    @property
    def commit(self) -> int:
        return int(self._SyncObj__raftCommitIndex)

    @property
    def applied(self) -> int:
        return int(self._SyncObj__raftLastApplied)

    @property
    def deadline(self) -> float:
        return float(self._SyncObj__raftElectionDeadline)

    @property
    def peers(self) -> tuple[str, ...]:
        return self._peer_names

    def is_connected(self, peer: str) -> bool:
        return self._node(peer) in self._SyncObj__connectedNodes

    def set_term(self, term: int, vote: str | None) -> None:
        self._SyncObj__setCurrentTerm(term, vote)
        self.pre_votes = None
        self.set_transferring(False)

    def set_role(self, role: Role) -> None:
        self._SyncObj__setState(role.value)

    def set_leader(self, peer: str | None) -> None:
        self._SyncObj__raftLeader = None if peer is None else self._node(peer)
        if peer is not None:
            self.pre_votes = None

    def set_commit(self, index: int) -> None:
        self._SyncObj__raftCommitIndex = index
        self.journal.commit_hint = index

    def set_applied(self, index: int, previous: int) -> None:
        self._SyncObj__raftLastApplied = index
        self._SyncObj__lastSerializedEntry = previous

    def set_deadline(self, at: float) -> None:
        self._SyncObj__raftElectionDeadline = at

    def draw_deadline(self) -> None:
        self.set_deadline(self.now() + self._SyncObj__generateRaftTimeout())

    def become_leader(self) -> None:
        self._SyncObj__onBecomeLeader()

    @property
    def transferring(self) -> bool:
        return bool(self._SyncObj__transferInProgress)

    def set_transferring(self, transferring: bool) -> None:
        self._SyncObj__transferInProgress = transferring
        self.standing_for_transfer = transferring

    def match_index(self, peer: str) -> int:
        return int(self._SyncObj__raftMatchIndex.get(self._node(peer), 0))

    def next_index(self, peer: str) -> int:
        return int(self._SyncObj__raftNextIndex[self._node(peer)])

    def set_match_index(self, peer: str, index: int) -> None:
        self._SyncObj__raftMatchIndex[self._node(peer)] = index

    def set_next_index(self, peer: str, index: int) -> None:
        self._SyncObj__raftNextIndex[self._node(peer)] = index

    def last_reply(self, peer: str) -> float:
        return float(self._SyncObj__lastResponseTime.get(self._node(peer), NEVER))

    def set_last_reply(self, peer: str) -> None:
        self._SyncObj__lastResponseTime[self._node(peer)] = self.now()

    def speak_soon(self) -> None:
        self._SyncObj__newAppendEntriesTime = NEVER

    def heard_clock(self, peer: str, now_ms: int) -> None:
        self.clocks_ahead_ms[peer] = now_ms - self.now() * 1_000

    @property
    def clock_offsets_ms(self) -> dict[str, int]:
        """Peers' clocks less this node's own. That of a silent peer has gone on since it was heard:
        taken as it was then, it would agree with this clock, however that was set meanwhile.
        """
        own_ms = self.now_ms() - self.now() * 1_000
        return {peer: round(ahead_ms - own_ms) for peer, ahead_ms in self.clocks_ahead_ms.items()}

    def append_entry(self, command: bytes, index: int, term: int) -> None:
        self.journal.append(command, index, term)
        self.bytes_since_snapshot += len(command)
        if command[:1] == MEMBERS:
            self.configurations.add(index, self._members_of(command))
            self.adopt_members()

    def truncate_from(self, index: int) -> None:
        self.journal.truncate_from(index)
        self.durable_index = min(self.durable_index, index - 1)
        self._syncing_to = min(self._syncing_to, index - 1)
        if self.configurations.latest_index >= index:
            self.configurations.truncate_from(index)
            self.adopt_members()

    def read_configurations(self, index: int, members: tuple[str, ...]) -> Configurations:
        """`members` up to `index`, and what the log says behind it."""
        configurations = Configurations(members, index)
        for command, at, _ in self.journal[:]:
            if at > index and command[:1] == MEMBERS:
                configurations.add(at, self._members_of(command))
        return configurations

    def adopt_members(self) -> None:
        """Mends S12: the latest configuration in the log counts, applied or not.

        test_s12_the_latest_configuration_in_the_log_counts
        """
        before = dict(self._peer_nodes)
        self._note_peers()
        for name, node in before.items():
            if name not in self._peer_nodes:
                self.stop_shipping(name)
                self._SyncObj__raftNextIndex.pop(node, None)
                self._SyncObj__raftMatchIndex.pop(node, None)
                self._SyncObj__lastResponseTime.pop(node, None)
        for name, node in self._peer_nodes.items():
            if name not in before:
                self._SyncObj__raftNextIndex[node] = self.journal.last_index + 1
                self._SyncObj__raftMatchIndex[node] = 0
                self._SyncObj__lastResponseTime[node] = self.now()
        self._SyncObj__otherNodes = set(self._peer_nodes.values())

    def _note_peers(self) -> None:
        names = [name for name in self.configurations.latest if name != self.node]
        self._peer_names = tuple(names)
        self._peer_nodes = {name: self.make_node(name) for name in names}

    def _node(self, peer: str) -> Any:
        return self._peer_nodes.get(peer) or self.make_node(peer)

    @staticmethod
    def _members_of(command: bytes) -> tuple[str, ...]:
        try:
            return decode_members(command[1:])
        except ValueError as error:
            raise FailStop(f"an entry of members cannot be read: {error}") from error
