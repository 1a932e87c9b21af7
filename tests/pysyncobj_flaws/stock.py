"""The library as it comes, moved by hand: what the tests of its flaws compare ours with.

No sockets, no threads; the clock stands still, and every link holds what was sent on it.
"""

from __future__ import annotations

import copy
from collections import deque
from typing import Any

import pysyncobj.syncobj as library
import pytest
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.node import Node
from pysyncobj.transport import Transport

LEADER = 2


class StockTransport(Transport):  # type: ignore[misc]
    def __init__(self, world: StockWorld, name: str) -> None:
        super().__init__(None, None, None)
        self.world = world
        self.name = name

    def send(self, node: Any, message: dict[str, Any]) -> bool:
        self.world.link(self.name, node.id).append(copy.deepcopy(message))
        return True


class StockNode(SyncObj):  # type: ignore[misc]
    """A replicated list."""

    def __init__(self, world: StockWorld, name: str, others: list[str], settings: Any) -> None:
        self.world = world
        self.port = StockTransport(world, name)
        super().__init__(
            Node(name), [Node(o) for o in others], settings, nodeClass=Node, transport=self.port
        )
        self.lines: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"lines": self.lines}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, line: Any) -> Any:
        self.lines.append(line)
        return line

    def private(self, name: str) -> Any:
        return getattr(self, f"_SyncObj__{name}")

    def set_private(self, name: str, value: Any) -> None:
        setattr(self, f"_SyncObj__{name}", value)

    @property
    def log(self) -> list[tuple[int, int]]:
        return [(entry[1], entry[2]) for entry in self.private("raftLog")[:]]


class StockWorld:
    """Nodes of the stock library, and the links between them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, names: str, **settings: Any) -> None:
        self.now = 1000.0
        monkeypatch.setattr(library, "monotonicTime", lambda: self.now)
        self.names = list(names)
        self.settings = settings
        self.links: dict[tuple[str, str], deque[dict[str, Any]]] = {}
        self.nodes: dict[str, StockNode] = {}
        for name in self.names:
            self.boot(name)

    def boot(self, name: str) -> StockNode:
        settings: dict[str, Any] = {
            "autoTick": False,
            "appendEntriesUseBatch": True,
            "raftMinTimeout": 0.4,
            "raftMaxTimeout": 1.4,
            "useFork": False,
        } | self.settings
        for file in ("journalFile", "fullDumpFile"):
            if settings.get(file):
                settings[file] = settings[file].format(name)
        others = [other for other in self.names if other != name]
        node = self.nodes[name] = StockNode(self, name, others, SyncObjConf(**settings))
        for other in others:
            node.port._onNodeConnected(Node(other))
        self.hold(name)
        return node

    def link(self, sender: str, receiver: str) -> deque[dict[str, Any]]:
        return self.links.setdefault((sender, receiver), deque())

    def drop(self, sender: str, receiver: str) -> list[dict[str, Any]]:
        link = self.link(sender, receiver)
        dropped = list(link)
        link.clear()
        return dropped

    def hear(self, sender: str, receiver: str, message: dict[str, Any]) -> None:
        self.nodes[receiver].port._onMessageReceived(Node(sender), copy.deepcopy(message))

    def deliver(self, sender: str, receiver: str, count: int | None = None) -> None:
        link = self.link(sender, receiver)
        for _ in range(len(link) if count is None else count):
            self.hear(sender, receiver, link.popleft())

    def hold(self, name: str) -> None:
        self.nodes[name].set_private("raftElectionDeadline", self.now + 1e6)

    def tick(self, *names: str) -> None:
        self.now += 0.11
        for name in names:
            if self.nodes[name].private("raftState") != LEADER:
                self.hold(name)
            self.nodes[name].doTick(0)

    def stand(self, name: str) -> None:
        self.nodes[name].set_private("raftElectionDeadline", 0)
        self.now += 0.01
        self.nodes[name].doTick(0)

    def elect(self, name: str, *voters: str) -> StockNode:
        self.stand(name)
        for voter in voters:
            self.deliver(name, voter)
            self.deliver(voter, name)
        assert self.nodes[name]._isLeader()
        return self.nodes[name]

    def pass_rounds(self, *names: str, rounds: int = 6) -> None:
        names = names or tuple(self.names)
        for _ in range(rounds):
            self.tick(*names)
            for sender in names:
                for receiver in names:
                    if sender != receiver:
                        self.deliver(sender, receiver)
