"""What a node still has in hand where all has ended: a count that never goes down, a place that is
never given back, work that is never over.

None of it tells anybody a wrong outcome. It grows, until the node has no room, refuses what it
could do, or takes no more snapshots.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.node import Node
from coordinator.participant_connections import Connections

FORGOTTEN_WITHIN_MS = 5_000
"""Of what is old enough: a few sweeps, and the agreement about it."""


def left_over(node: Node, *, now_ms: int, keep_ms: int) -> list[str]:
    """In words; nothing of a node that is as it should be. `keep_ms`: how long it remembers what
    has ended, by its clock, `now_ms`."""
    if node.replica._core is None:
        return ["a log that is yet to be read"]
    parts = (_of_the_log(node), _of_transactions(node), _of_calls(node))
    left = [what for part in parts for what, is_left in part if is_left]
    oldest_ms = node.machine.horizon_that_forgets(1)
    if node.replica.epoch is not None and 0 < oldest_ms < now_ms - keep_ms - FORGOTTEN_WITHIN_MS:
        left.append(f"what should be forgotten since {now_ms - keep_ms - oldest_ms} ms")
    return left


_Part = Iterator[tuple[str, object]]
"""What it is, and whether there is any."""


def _of_the_log(node: Node) -> _Part:
    replica, core = node.replica, node.replica._core
    assert core is not None  # looked at before
    proposals, barriers = replica._proposals, replica._barriers
    yield "a snapshot that is being taken", core.taking
    yield "a snapshot that comes", core.receiving is not None or core.installing
    yield "a snapshot that is sent", core.shipments
    yield "jobs of threads", replica._jobs
    yield "proposals", proposals._waiting or proposals._under_way
    yield "bytes of proposals", proposals._waiting_bytes
    yield "reads that wait", barriers._new or barriers._asked
    yield "bytes of messages", replica._inbox_bytes and not replica._inbox


def _of_transactions(node: Node) -> _Part:
    driver = node.driver
    admission = driver._admission
    yield "conversations", driver._talks.lives
    yield "alarms of conversations", len(driver._talks._bell)
    yield "branches that wait to be called again", len(driver._talks._retries)
    yield "branches that are being begun", driver._capacity._beginning
    yield "transactions let in", admission.waiting or admission._waiting_in_turn
    yield "addresses of transactions let in", admission._waiting_of
    yield "places in the line", len(driver.line) or driver.line._promised or driver.line._left
    yield "branches in the backlog", node.machine.backlog()
    yield "bytes of payloads", node.machine.payloads().bytes


def _of_calls(node: Node) -> _Part:
    gateway = node._gateway
    courier = gateway._courier
    yield "calls that wait", gateway.waiting()
    yield "calls under way", [d for d in gateway._doors.values() if d.lane.under_way]
    yield "requests under way", [d for d in gateway._doors.values() if d.requests]
    yield "lanes that nobody uses", gateway._doors
    yield "deadlines of calls", gateway._expiries
    yield "errands", courier._errands
    for connections in (courier._to_prepare, courier._to_end):
        yield "places of connections", _taken_by_nobody(connections)
        yield "connections that nobody uses", connections._idle
        yield "origins without a connection", connections._places._taken_by


def _taken_by_nobody(connections: Connections) -> bool:
    return connections._places.taken != len(connections._open)
