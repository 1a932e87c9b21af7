"""How much is done in one turn or goes into one message, where a seed makes it little.

In production these bounds are so large that no simulated load reaches them, and what lies behind
them would never run.
"""

from __future__ import annotations

from random import Random
from types import ModuleType

import cluster.raft.replication
import coordinator.admission
import coordinator.api_transactions
import coordinator.batches
import coordinator.conversation
import coordinator.declarations
import coordinator.driver
import coordinator.gateway
import coordinator.http_connection
import coordinator.lane
import coordinator.machine
import coordinator.sweep
import coordinator.talks

SHARE = 1 / 4
"""Of the seeds that have small bounds; of these bounds each is small in two seeds of three."""

Bound = tuple[ModuleType, str, tuple[float, ...]]

BOUNDS: tuple[Bound, ...] = (
    (coordinator.admission, "ROOM_LEAST", (1, 2)),
    (coordinator.driver, "TAKE_UP_AT_ONCE", (1, 2, 4)),
    (coordinator.conversation, "CALLS_AT_ONCE", (1, 2)),
    (coordinator.conversation, "CALLS_PER_TURN", (1,)),
    (coordinator.talks, "LET_GO_AT_ONCE", (1, 2)),
    (coordinator.http_connection, "REQUESTS_PER_TURN", (1, 2)),
    (coordinator.gateway, "_BATCH_CALLS", (1, 2, 3)),
    (coordinator.gateway, "_BATCH_BYTES", (300, 1_000)),
    (coordinator.gateway, "_MOST_BESIDE", (1, 2)),
    (coordinator.gateway, "_TRY_S", (0.3, 1.0)),
    (coordinator.lane, "_REFUSALS_IN_A_ROW", (1, 3)),
    (coordinator.declarations, "_SINGLY_S", (0.5, 3.0)),
    (coordinator.declarations, "_MOST", (1,)),
    (coordinator.sweep, "FORGET_AT_ONCE", (1, 3)),
    (coordinator.batches, "BRANCHES_BEGUN", (1, 3)),
    (coordinator.batches, "BRANCHES_SHOWN", (1, 3)),
    (coordinator.machine, "CHUNK_TRANSACTIONS", (1, 3)),
    (coordinator.machine, "PAGE_SCAN", (3, 15)),
    (coordinator.api_transactions, "BRANCHES_PER_TURN", (1, 3)),
    (cluster.raft.replication, "_MAX_MESSAGES", (1, 2)),
)
"""Module, name, and what it may be."""


def draw_bounds(draw: Random) -> dict[str, float]:
    """By name, those that are small; none in most seeds."""
    if draw.random() >= SHARE:
        return {}
    return {name: draw.choice(small) for _, name, small in BOUNDS if draw.random() < 2 / 3}
