"""What the library is given in place of its journal, transport, serializer and poller.

They have the shape that pysyncobj asks for and nothing of its behaviour: files are ours, messages
are ours, nothing is pickled, nothing forks, nothing is polled. They do not import the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from cluster.storage.journal import Entry, Journal


class JournalPort:
    """Our journal. Mends S1, S2, S9, S10, S15, S16, S18 (tests of the journal)."""

    def __init__(self, journal: Journal, compact_to: Callable[[int], None]) -> None:
        self._journal = journal
        self._compact_to = compact_to

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._journal.append(command, idx, term)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        self._compact_to(self._journal.first_index + entryTo)

    def __getitem__(self, item: Any) -> Any:
        return self._journal[item]

    def __len__(self) -> int:
        return len(self._journal)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._journal.commit_hint = raftCommitIndex

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return max(1, self._journal.commit_hint)

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        self._journal.set_vote(term, votedForNodeId)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._journal.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._journal.vote

    def onOneSecondTimer(self) -> None:  # noqa: N802
        """The commit index is written along with other changes."""


class TransportPort:
    """The one message that the library still sends by itself is a request for votes."""

    ready = True

    def __init__(self, ask_for_vote: Callable[[str, int, int, int], None]) -> None:
        self._ask_for_vote = ask_for_vote

    def send(self, node: Any, message: dict[str, Any]) -> None:
        assert message["type"] == "request_vote", message["type"]
        term, index = message["term"], message["last_log_index"]
        self._ask_for_vote(node.id, term, index, message["last_log_term"])

    def __getattr__(self, name: str) -> Callable[..., None]:
        """`setOn...Callback`: the library's callbacks are not called, nor are they kept."""
        if name.startswith("setOn"):
            return _forget
        raise AttributeError(name)


def _forget(*_: object) -> None:
    """Nothing."""


class _States(Protocol):
    NOT_SERIALIZING: Any
    SERIALIZING: Any
    SUCCESS: Any


class SerializerPort:
    """Snapshots by `cluster/raft/snapshots.py`: no fork, no pickle. Mends S6, S7, S17, L6.

    test_s17_a_snapshot_is_taken_without_a_fork
    """

    def __init__(
        self,
        states: _States,
        take_snapshot: Callable[[Entry, Entry], None],
        is_taking: Callable[[], bool],
    ) -> None:
        self._states = states
        self._take_snapshot = take_snapshot
        self._is_taking = is_taking
        self._index: int | None = None

    def checkSerializing(self) -> tuple[Any, int | None]:  # noqa: N802
        if self._index is None:
            return self._states.NOT_SERIALIZING, None
        if self._is_taking():
            return self._states.SERIALIZING, self._index
        index, self._index = self._index, None
        return self._states.SUCCESS, index

    def serialize(self, state: tuple[Any, Entry, Entry, Any], index: int) -> None:
        _, last, previous, _ = state
        self._index = index
        self._take_snapshot(last, previous)


class NoPoller:
    """The library polls sockets at the end of a tick; it has none."""

    def poll(self, timeout: float) -> None:
        """Nothing to poll."""
