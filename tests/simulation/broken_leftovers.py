"""Planted bugs, continued: something is not given back, or never asked for again."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from cluster.raft.snapshots import Snapshots
from coordinator.gateway import Gateway
from coordinator.participant_connections import Connections
from coordinator.places import Places
from coordinator.retries import Retries
from coordinator.sweep import Sweep
from coordinator.talks import Talks


def not_taken_is_under_way(original: Any, sweep: Sweep, result: object) -> None:
    """What the log did not take of a sweep is waited for."""
    original(sweep, result)
    sweep._proposed = sweep._proposed or isinstance(result, Exception)


def lane_kept(original: Any, gateway: Gateway, door: Any, *when: Any) -> None:
    """A lane that nobody uses is not forgotten."""
    original(gateway, door, *when)
    gateway._doors.setdefault(door.key, door)


def swept_once(original: Any, connections: Connections) -> None:
    """Connections that were used a moment ago are left to a sweep that does not come."""
    original(connections)
    if connections._sweep is not None:
        connections._sweep.cancel()


def origin_kept(original: Any, places: Places[Any, Any], origin: Any) -> Any:
    """An origin that has no place any more is counted, with none."""
    waiter = original(places, origin)
    places._taken_by.setdefault(origin, 0)
    return waiter


def shipment_left_open(original: Any, snapshots: Snapshots, peer: str) -> None:
    """The file of a snapshot that was sent stays open."""
    if peer in snapshots.shipments:
        with patch.object(snapshots.shipments[peer].sending, "close", _nothing):
            original(snapshots, peer)


def retries_of_the_finished(taken: ExitStack) -> None:
    """A branch that has failed waits to be called again, whatever becomes of its transaction."""
    original = Talks.drop

    def drop(talks: Talks, live: Any) -> None:
        with patch.object(Retries, "called", _nothing):
            original(talks, live)

    taken.enter_context(patch.object(Talks, "drop", drop))


def _nothing(*_: object) -> None:
    pass
