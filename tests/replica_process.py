"""One replica of a ledger as a process, to be killed: `python -m tests.replica_process JSON`.

It says what happens on its standard output, a JSON list a line: ["leads", epoch], ["told", text]
for each line that was acknowledged, ["lines", [...]] when its input asks for them.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

from cluster.raft.replica import Replica, ReplicaLimits
from cluster.raft.state import CoreLimits
from cluster.settings import RaftTimings
from cluster.storage.disk import PosixDisk
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.snapshots import SnapshotStore
from tests.ledger import Ledger, put

PROPOSERS = 8


def say(*words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


async def main(node: str, ports: dict[str, int], directory: Path, start: int) -> None:
    disk = PosixDisk()
    ledger = Ledger()
    replica = Replica(
        node=node,
        peers={name: ("127.0.0.1", port) for name, port in ports.items()},
        cluster="test",
        machine=ledger,
        journal=Journal.open(directory / "journal", cluster="test", node=node, disk=disk),
        snapshots=SnapshotStore(directory / "snapshots", disk=disk, cluster="test"),
        fellows=Fellows(directory / "fellows", disk, node.encode()),
        now_ms=lambda: time.time_ns() // 1_000_000,
        random=random.Random(),
        timings=RaftTimings(heartbeat_ms=50, election_min_ms=250, election_max_ms=500),
        snapshot_every=300,
        limits=ReplicaLimits(core=CoreLimits(kept_bytes=2000)),
    )
    count = 0

    def propose(epoch: int) -> None:
        nonlocal count
        count += 1
        text = f"{node} {start} {count}"

        def done(result: object) -> None:
            if isinstance(result, int):
                say("told", text)
            if replica.epoch == epoch:
                propose(epoch)

        replica.propose(put(epoch, text), epoch, done)

    def on_leadership(epoch: int | None) -> None:
        if epoch is not None:
            say("leads", epoch)
            for _ in range(PROPOSERS):
                propose(epoch)

    replica.on_leadership = on_leadership
    await replica.start()
    say("started")
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while asked := (await reader.readline()).strip():
        if asked == b"quiet":
            replica.on_leadership = lambda _: None
            replica.propose = lambda *_: None  # type: ignore[method-assign]
        elif asked == b"lines":
            say("lines", ledger.lines)
    await replica.stop()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    asyncio.run(
        main(settings["node"], settings["ports"], Path(settings["directory"]), settings["start"])
    )
