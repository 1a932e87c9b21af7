"""Whose streams are heard: what a peer says of itself is judged by what is known of it.

Rules
- Strangers, other clusters, logs that were founded apart (`cluster/raft/founding.py`) are refused.
- A peer is known by the data directory with which this node first reached it at its own address
  (`cluster/storage/fellows.py`); it is refused with another, and not heard before it is known.
- Of one peer only the newest stream counts. A stream of an earlier start of that peer, or dialed
  before the one in use, is refused however late it comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from cluster.errors import IS_LOST
from cluster.raft.founding import foreign
from cluster.raft.wire import Hello, Refused, Welcome
from cluster.storage.fellows import Fellows

_MAX_RETIRED: Final = 16


class Handshakes:
    """What this node knows of its peers. `founding`: of its own log, as soon as it has one."""

    def __init__(self, node: str, cluster: str, peers: Iterable[str], fellows: Fellows) -> None:
        self.founding = ""
        self.birth = fellows.birth
        self._node = node
        self._cluster = cluster
        self._peers = frozenset(peers)
        self._fellows = fellows
        self._newest: dict[str, tuple[bytes, int]] = {}
        self._retired: dict[str, deque[bytes]] = {}

    def objection(self, hello: Hello) -> Refused | None:
        """Why the stream that begins with `hello` is refused, or None."""
        node, sender = self._node, hello.sender
        if hello.cluster != self._cluster:
            return Refused(f"{node} belongs to cluster {self._cluster!r}, not {hello.cluster!r}")
        if what := self.is_foreign(sender, hello.founding):
            return Refused(what)
        if hello.receiver != node:
            return Refused(f"this is {node}, not {hello.receiver}")
        if sender not in self._peers:
            return Refused(f"{node} has no peer {sender!r}; add it on every node")
        if self._fellows.is_another(sender, hello.birth):
            return Refused(self._is_another(sender), is_another=True)
        if hello.boot in self._retired.get(sender, ()):
            return Refused("a stream of an earlier start")
        newest = self._newest.get(sender)
        if newest is not None and newest[0] == hello.boot and hello.stream <= newest[1]:
            return Refused("an older stream than the last one")
        return None

    def objection_to(self, peer: str, welcome: Welcome) -> str | None:
        """Why nothing is said to the peer that was reached, or None: then it is known from now on.

        Raises DiskFailed.
        """
        what = self.is_foreign(peer, welcome.founding)
        if what is None and self._fellows.is_another(peer, welcome.birth):
            what = self._is_another(peer)
        if what is None:
            self._fellows.learn(peer, welcome.birth)
        return what

    def is_foreign(self, peer: str, founding: str) -> str | None:
        """What to say of a peer whose log is another one than this node's, or None."""
        return foreign(self._node, self.founding, peer, founding)

    def _is_another(self, peer: str) -> str:
        return f"{self._node} knows {peer} by another data directory than the one it has now"

    def new_directory(self, peer: str) -> str:
        """What to say where a peer knows this node by another directory, and its own is new."""
        return (
            f"{peer} knows {self._node} by another data directory than this new one. If that was"
            f" lost: {IS_LOST}. If a new cluster is started for the first time, {peer} has a"
            " directory of an old one: give it an empty one"
        )

    def knows(self, peer: str) -> bool:
        """Whether this node has reached that one, now or ever."""
        return self._fellows.knows(peer)

    def start_heard(self, peer: str) -> bytes | None:
        """The start of the peer whose stream was the last to count, None at first."""
        return self._newest[peer][0] if peer in self._newest else None

    def counts(self, hello: Hello) -> None:
        """The stream that began so is the newest of its sender."""
        before = self.start_heard(hello.sender)
        if before is not None and before != hello.boot:
            self._retired.setdefault(hello.sender, deque(maxlen=_MAX_RETIRED)).append(before)
        self._newest[hello.sender] = (hello.boot, hello.stream)
