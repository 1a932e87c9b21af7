"""Snapshots in Raft: taking one, shipping it to a peer that lags, installing one from the leader.

Rules
- A snapshot is installed only if it ends behind this replica's commit index. Nothing is committed
  by a piece of one: commit index, log and state change together, when all of it is verified.
- What the log holds behind an installed snapshot is kept when it continues it (`reconcile`).
- Every piece is answered with how much is held, so the leader keeps hearing its peer, and sends on
  only as that grows. A transfer has a key; pieces of two are never mixed.
- Reading, verifying and writing files happen in a thread, and so does making a state of a
  snapshot; that it takes the place of the present one is a step of its own, and costs nothing.
- A snapshot that cannot be written, or one of our own that cannot be read, stops the node. A file
  that somebody had all of, and asks for again, is looked at from end to end.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from cluster.errors import Damaged, FailStop, Foreign
from cluster.raft.replication import Replication
from cluster.raft.state import Role
from cluster.raft.wire import Append, AppendReply, SnapshotPiece, SnapshotReply
from cluster.storage.journal import Entry, Journal
from cluster.storage.snapshots import (
    Receiving,
    Sending,
    SnapshotMeta,
    SnapshotStore,
    TransferKey,
)
from coordinator.log import Restoring, StateMachine

log = logging.getLogger(__name__)

_CHUNKS_PER_LOOK: Final = 32
_WINDOW: Final = 4
"""Pieces under way to one peer."""
_RESEND_AFTER_S: Final = 1.0

Background: TypeAlias = Callable[
    [Callable[[], Any], Callable[[Any, BaseException | None], None]], None
]
"""Run a blocking job in a thread; then, on the loop, give its result or its exception."""


@dataclass(slots=True)
class _Shipment:
    """A snapshot on its way to one peer."""

    sending: Sending
    progressed_at: float
    acknowledged: int = 0
    sent: int = 0


class Snapshots(Replication):
    """The rules of snapshots, for leader and follower."""

    store: SnapshotStore
    machine: StateMachine
    in_background: Background
    on_installed: Callable[[], None]
    shipments: dict[str, _Shipment]
    receiving: Receiving | None
    installing: bool
    taking: bool
    snapshot_index: int
    """Where the snapshot in place ends; 0 without one."""
    bytes_since_snapshot: int
    snapshot_every: int
    snapshots_taken: int

    # --- taking

    @property
    def wants_snapshot(self) -> bool:
        """Is there enough behind the last snapshot for a new one?

        It writes the whole state again, a million finished transactions perhaps, so what came since
        must be in proportion, as far as a start can still read that in time.
        """
        entries, size = self.applied - max(self.snapshot_index, 1), self.bytes_since_snapshot
        limits = self.limits
        return (
            (entries >= self.snapshot_every or size >= limits.snapshot_bytes)
            and size >= min(self.store.size // 2, limits.log_bytes)
            and not self.taking
        )

    def take_snapshot(self, last: Entry, previous: Entry) -> None:
        """Write the present state, which is that of `last`, in the background."""
        meta = SnapshotMeta(last, previous, self.configurations.at(last[1]))
        view = self.machine.view()
        self.taking = True
        self.bytes_since_snapshot = 0
        self.in_background(
            lambda: self.store.write(meta, _gently(self.machine.chunks(view))),
            self._snapshot_taken,
        )

    def _snapshot_taken(self, placed: object, error: BaseException | None) -> None:
        if error is not None:
            raise FailStop(f"a snapshot cannot be written: {error}") from error
        self.taking = False
        meta = self.store.meta
        self.snapshots_taken += 1
        if placed and meta is not None:
            self.snapshot_index = max(self.snapshot_index, meta.last[1])

    def compact_to(self, index: int) -> None:
        """Drop what the snapshot covers, but for a little that a lagging follower may ask for."""
        journal = self.journal
        first = journal.first_index
        size = 0
        kept = index
        while kept > first and index - kept < self.snapshot_every // 2:
            size += len(journal[kept - 1 - first][0])
            if size > self.limits.kept_bytes:
                break
            kept -= 1
        journal.compact_to(kept)

    # --- shipping

    def ship_snapshot(self, peer: str) -> None:
        """Once in a round: pieces as far as the window allows, or else a question."""
        shipment = self.shipments.get(peer)
        if shipment is None:
            shipment = self.shipments[peer] = _Shipment(self.store.send(), self.now())
            log.info(
                "%s: ships its snapshot of %d to %s, %d bytes",
                *(self.node, shipment.sending.meta.last[1], peer, shipment.sending.size),
            )
        if not self._send_pieces(peer, shipment):
            self._send_piece(peer, shipment, shipment.acknowledged, b"", last=False)

    def stop_shipping(self, peer: str) -> None:
        shipment = self.shipments.pop(peer, None)
        if shipment is not None:
            shipment.sending.close()

    def stop_all_shipping(self) -> None:
        for peer in list(self.shipments):
            self.stop_shipping(peer)

    def on_snapshot_reply(self, peer: str, message: SnapshotReply) -> None:
        if not self.is_answer(peer, message.term, message.round, message.now_ms):
            return
        shipment = self.shipments.get(peer)
        if shipment is None or not self.is_connected(peer):
            return
        _, index, term = shipment.sending.meta.last
        if (message.index, message.entry_term) != (index, term):
            return
        held = min(message.offset, shipment.sending.size)
        if held > shipment.acknowledged:
            shipment.acknowledged = held
            shipment.sent = max(shipment.sent, held)
            shipment.progressed_at = self.now()
        elif held == shipment.sending.size:
            return  # the peer installs it, for as long as that takes
        elif self.now() - shipment.progressed_at > _RESEND_AFTER_S:
            if shipment.acknowledged == shipment.sending.size:
                self._begin_again(peer)
                return
            shipment.acknowledged = shipment.sent = held
            shipment.progressed_at = self.now()
        self._send_pieces(peer, shipment)

    def _begin_again(self, peer: str) -> None:
        """`peer` had all of it, and asks for it again: it came damaged, or the peer has restarted.

        Frames have checksums, so the file may be damaged here: then nobody would ever be served.
        """
        self.stop_shipping(peer)
        self.in_background(lambda: self.store.load(_pass_over), _expect_no_error)

    def _send_pieces(self, peer: str, shipment: _Shipment) -> bool:
        """Whether there was anything to send and room for it."""
        size = shipment.sending.size
        window = _WINDOW * self.limits.piece_bytes
        sent = False
        while shipment.sent < size and shipment.sent - shipment.acknowledged < window:
            piece = shipment.sending.read_piece(shipment.sent, self.limits.piece_bytes)
            last = shipment.sent + len(piece) >= size
            self._send_piece(peer, shipment, shipment.sent, piece, last=last)
            shipment.sent += len(piece)
            sent = True
        return sent

    def _send_piece(
        self, peer: str, shipment: _Shipment, offset: int, piece: bytes, *, last: bool
    ) -> None:
        _, index, term = shipment.sending.meta.last
        self.send(
            peer,
            SnapshotPiece(
                term=self.term,
                round=self.round,
                now_ms=self.now_ms(),
                index=index,
                entry_term=term,
                offset=offset,
                last=last,
                payload=piece,
            ),
        )

    # --- installing

    def on_append(self, peer: str, message: Append) -> None:
        """Entries. A snapshot that is half received, its leader gone, may be of no use then."""
        super().on_append(peer, message)
        receiving = self.receiving
        if receiving is not None and not self.installing and receiving.key.index <= self.commit:
            self.stop_receiving()

    def on_snapshot_piece(self, peer: str, message: SnapshotPiece) -> None:
        if not self.follow(peer, message.term, message.now_ms):
            return
        if message.index <= self.commit:
            self._reply(peer, message.round, matched=True, next_index=self.commit + 1)
            return
        key = TransferKey(peer, message.term, message.index, message.entry_term)
        if not self.installing and (self.receiving is None or self.receiving.key != key):
            self.stop_receiving()
            if message.offset == 0 and message.payload:
                self.receiving = self.store.receive(key)
        held = 0
        if self.receiving is not None and self.receiving.key == key:
            if message.payload:
                self.receiving.add(key, message.offset, message.payload, message.last)
            held = self.receiving.received
        self.send(
            peer,
            SnapshotReply(
                term=self.term,
                round=message.round,
                now_ms=self.now_ms(),
                index=message.index,
                entry_term=message.entry_term,
                offset=held,
            ),
        )
        if self.receiving is not None and self.receiving.complete and not self.installing:
            self.installing = True
            self._begin_to_install(self.receiving)

    def _begin_to_install(self, receiving: Receiving) -> None:
        """Verify what was received, and make a state of it beside the present one."""
        restoring = self.machine.restoring()

        def received(meta: SnapshotMeta | None, error: BaseException | None) -> None:
            try:
                self._snapshot_received(restoring, meta, error)
            finally:
                self.in_background(lambda: _use_up(restoring.release()), _expect_no_error)

        self.in_background(lambda: receiving.finish(feeding(restoring)), received)

    def stop_receiving(self) -> None:
        if self.receiving is not None:
            self.receiving.discard()
            self.receiving = None

    def _snapshot_received(
        self, restoring: Restoring, meta: SnapshotMeta | None, error: BaseException | None
    ) -> None:
        receiving = self.receiving
        assert receiving is not None
        self.installing = False
        self.receiving = None
        if isinstance(error, Damaged | Foreign):
            what = f"byte {error.offset}: {error.what}" if isinstance(error, Damaged) else error
            log.error("%s: a snapshot came damaged and is asked for again: %s", self.node, what)
            return
        if isinstance(error, ValueError):
            raise FailStop(f"the leader's snapshot cannot be restored: {error}") from error
        if error is not None:
            raise FailStop(f"a snapshot cannot be received: {error}") from error
        assert meta is not None
        if meta.last[1] <= self.commit or self.role is not Role.FOLLOWER:
            receiving.discard()
            return
        self._install(receiving, meta, restoring)
        if self.leader is not None:
            reply = AppendReply(self.term, 0, self.now_ms(), True, meta.last[1] + 1)
            self.send(self.leader, reply)

    def _install(self, receiving: Receiving, meta: SnapshotMeta, restoring: Restoring) -> None:
        try:
            restoring.finish()
        except ValueError as error:
            receiving.discard()
            raise FailStop(f"the leader's snapshot cannot be restored: {error}") from error
        if not receiving.adopt():
            raise FailStop(f"a newer snapshot than {meta.last[1]} is there, but not its state")
        reconcile(self.journal, meta)
        # A sync that is under way covers the old log: what gets the same indices is not in it.
        self.durable_index = min(self.durable_index, self.commit)
        self._syncing_to = min(self._syncing_to, self.commit)
        self.snapshot_index = meta.last[1]
        self.bytes_since_snapshot = 0
        self.set_commit(meta.last[1])
        self.set_applied(meta.last[1], meta.previous[1])
        self.configurations = self.read_configurations(meta.last[1], meta.members)
        self.adopt_members()
        log.info("%s: installed the leader's snapshot of %d", self.node, meta.last[1])
        self.on_installed()


def feeding(restoring: Restoring) -> Callable[[bytes], None]:
    """What takes a snapshot's chunks one by one, in a thread, with turns for the loop's.

    Python's collector gives up tuples of bytes and text when it has seen what is in them. It is set
    to come seldom (`participants/process.py`), and would look at a million transactions at once,
    for 80 ms. So it is had to look at them while they are few.
    """
    fed = 0

    def take(chunk: bytes) -> None:
        nonlocal fed
        restoring.feed(chunk)
        fed += 1
        if fed % _CHUNKS_PER_LOOK == 0 and gc.isenabled():
            gc.collect(0)
        time.sleep(0)

    return take


def _gently(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The chunks, and after each a chance for the loop's thread to run before the next is made."""
    for chunk in chunks:
        yield chunk
        time.sleep(0)


def _pass_over(_: bytes) -> None:
    time.sleep(0)


def _use_up(steps: Iterator[None]) -> None:
    for _ in steps:
        time.sleep(0)


def _expect_no_error(_: object, error: BaseException | None) -> None:
    if error is not None:
        raise error


def reconcile(journal: Journal, meta: SnapshotMeta) -> None:
    """Let the log meet the snapshot: what continues it is kept, what contradicts it goes."""
    _, index, term = meta.last
    first, last = journal.first_index, journal.last_index
    if len(journal) and first <= index <= last and journal[index - first][2] == term:
        return
    assert first <= index, f"{first} > {index}: entries between the two are missing"
    journal.reset([meta.previous, meta.last])
