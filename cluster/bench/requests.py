"""The requests of a measurement: bodies prepared but for the ids in them, and how they must end.

Where votes differ, some hundred different transactions are drawn by a seed, and taken in turn. How
a branch votes stands in its payload, as `participants.bench` reads it, so how a transaction must
end is known before it is sent.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from participants.clock import wall_clock_ms

KINDS = 256


@dataclass(frozen=True, slots=True)
class Load:
    """What to do. `nodes` and `participants` are URLs; shares are from 0 to 1.

    `clients`: connections, each with one request under way. `rate`: requests per second for an open
    loop; 0: each client asks again as soon as it is answered. `batch`: transactions in one request.
    `no_share`: of the transactions, in which one branch votes NO. `read_only_share`: of the
    branches. `wait`: `decision`, or `none`: answered as soon as it is begun. `timeout_ms`: of each
    transaction; 0: the nodes' own. `most`: end after so many (0: when the time is over;
    `seconds` 0: when it is told to). `address`: which the connections come from, "": any.
    """

    nodes: tuple[str, ...]
    participants: tuple[str, ...]
    clients: int = 64
    rate: float = 0.0
    batch: int = 1
    no_share: float = 0.0
    read_only_share: float = 0.0
    payload_bytes: int = 0
    wait: str = "decision"
    timeout_ms: int = 0
    patience_s: float = 0.0
    warm_up_s: float = 1.0
    seconds: float = 5.0
    most: int = 0
    seed: int = 1
    address: str = ""


class Request:
    """One request: the bytes, the ids in it, how many of them must commit, when it began.

    `sent`: at least once; what became of it is to be learnt.
    """

    __slots__ = ("body", "commits", "ids", "sent", "started")

    def __init__(self, body: bytes, ids: Sequence[bytes], commits: int, started: float) -> None:
        self.body = body
        self.ids = ids
        self.commits = commits
        self.started = started
        self.sent = False


class RequestMaker:
    """Makes requests. Ids are UUIDv7 (`coordinator.ids`) with a counter where chance would be."""

    def __init__(self, load: Load) -> None:
        random = Random(load.seed)
        shares = load.no_share or load.read_only_share
        self._kinds = [_Kind(load, random) for _ in range(KINDS if shares else 1)]
        self._next_kind = itertools.cycle(self._kinds).__next__
        self._number = random.getrandbits(44) << 4
        self._salt = f"8{random.getrandbits(12):03x}"

    def __call__(self, started: float, batch: int) -> Request:
        millisecond = f"{wall_clock_ms():012x}"
        prefix = f"{millisecond[:8]}-{millisecond[8:]}-7000-{self._salt}-"
        ids, parts, commits = [], [], 0
        for _ in range(batch):
            self._number = (self._number + 1) & 0xFFFFFFFFFFFF
            one = f"{prefix}{self._number:012x}".encode("ascii")
            kind = self._next_kind()
            ids.append(one)
            parts.append(b'{"id":"' + one + kind.tail)
            commits += kind.commits
        body = parts[0] if batch == 1 else b'{"transactions":[' + b",".join(parts) + b"]}"
        return Request(body, ids, commits, started)


class _Kind:
    """A prepared transaction: what stands before and after its id, and how it must end."""

    __slots__ = ("commits", "tail")

    def __init__(self, load: Load, random: Random) -> None:
        refuses = random.random() < load.no_share
        who = random.randrange(len(load.participants))
        participants = []
        for position, url in enumerate(load.participants):
            payload: dict[str, Any] = {"n": position}
            if refuses and position == who:
                payload["vote"] = "no"
            elif random.random() < load.read_only_share:
                payload["vote"] = "read_only"
            if load.payload_bytes:
                payload["text"] = "x" * load.payload_bytes
            participants.append({"name": f"p{position + 1}", "url": url, "payload": payload})
        body: dict[str, Any] = {"participants": participants}
        if load.wait != "decision":
            body["wait"] = load.wait
        if load.timeout_ms:
            body["timeout_ms"] = load.timeout_ms
        text = json.dumps(body, separators=(",", ":"))
        self.tail = b'",' + text[1:].encode("ascii")
        self.commits = not refuses
