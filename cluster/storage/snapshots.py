"""The node's snapshot: one file, complete and verified, or none.

Rules:
- a snapshot is written aside, synced, renamed into place, and the directory is synced: a crash
  leaves the old one or the new one;
- a start syncs the directory, too, before the journal is made to fit what it finds there: it may
  have been killed before it was synced;
- a snapshot never replaces a newer one (the node's own may be ready after the leader's was
  installed);
- `load` reads to the end or raises `Damaged`: what it gave until then counts for nothing;
- pieces of different transfers are never mixed.

The file is a sequence of records (`cluster/storage/records.py`), the same bytes on every node that
ships or holds it:

    M | msgpack of format, cluster, last, previous, members
    C | a chunk, as `StateMachine.chunks` gave it               (any number)
    E | msgpack of the number of chunks and the SHA-256 of everything before

All of it blocks; `write`, `load` and `Receiving.finish` are meant for a thread. At most one
`write` and one `Receiving` are under way at a time; they may overlap.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgpack

from cluster.errors import Damaged, DiskFailed, Foreign
from cluster.storage.disk import Disk, File
from cluster.storage.journal_format import Entry
from cluster.storage.records import OVERHEAD, body_length, decode_record, encode_record

FORMAT = 1
"""Goes up with every change of the meaning of bytes; a snapshot of another format is refused."""

NAME, WRITING_NAME, RECEIVING_NAME = "snapshot", "snapshot.writing", "snapshot.receiving"

_META, _CHUNK, _END = b"M", b"C", b"E"
_FILE_NUMBER = 0

Take: TypeAlias = Callable[[bytes], None]
"""What is done with a chunk, before it is known whether those behind it are whole."""


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """What a snapshot stands for: the log up to and with `last`."""

    last: Entry
    previous: Entry
    """The entry before `last`; Raft's consistency check needs both."""
    members: tuple[str, ...]
    """The ids of the voting nodes after `last`, sorted."""


class SnapshotStore:
    """The snapshot in one directory. Raises DiskFailed from every method that touches the disk."""

    def __init__(self, directory: Path, *, disk: Disk, cluster: str = "") -> None:
        """Reads the header of the snapshot, if there is one, and removes what a crash left aside.

        `cluster` is written into the file, and a file of another cluster is Foreign.
        """
        self._directory = directory
        self._disk = disk
        self._cluster = cluster
        self._path = directory / NAME
        self._guard = threading.Lock()
        """Held while a file takes its place: one may come from a thread."""
        if not disk.exists(directory):
            disk.make_directory(directory)
            disk.sync_directory(directory.parent)
        for aside in (directory / WRITING_NAME, directory / RECEIVING_NAME):
            if disk.exists(aside):
                disk.unlink(aside)
        self._meta: SnapshotMeta | None = None
        self.size = 0
        """Of the snapshot in place, in bytes."""
        if disk.exists(self._path):
            with closing(disk.open(self._path)) as file:
                self._meta, self.size = _decode_meta(file, self._path, cluster)[0], file.size()
            disk.sync_directory(directory)

    @property
    def exists(self) -> bool:
        """Is there a snapshot?"""
        return self._meta is not None

    @property
    def meta(self) -> SnapshotMeta | None:
        """Of the snapshot in place."""
        return self._meta

    def check_seam(self, journal_begins: int) -> None:
        """Does a journal whose first entry is that one (0: it has none) go on where this ends?

        Raises Damaged when entries between the two are missing.
        """
        check_seam(self._path, self._meta, journal_begins)

    def write(self, meta: SnapshotMeta, chunks: Iterable[bytes]) -> bool:
        """Write a snapshot and put it in place; False if a newer one is there by then.

        If it raises (DiskFailed, or what `chunks` raises) the old snapshot stays.
        """
        aside = self._directory / WRITING_NAME
        self._remove(aside)
        created = self._disk.create(aside)
        try:
            with closing(created) as file:
                offset = 0
                for record in _encode(meta, chunks, self._cluster):
                    file.write(offset, record)
                    offset += len(record)
                file.sync()
            return self._place(aside, meta, offset)
        except BaseException:
            with suppress(DiskFailed):
                self._remove(aside)
            raise

    def load(self, take: Take) -> SnapshotMeta:
        """Give the chunks of the snapshot in place to `take`, one after the other.

        Raises Damaged, Foreign, perhaps after some were given; and whatever `take` raises.
        """
        with closing(self._disk.open(self._path)) as file:
            return _decode(file, self._path, self._cluster, take)

    def send(self) -> Sending:
        """Open the snapshot in place for a transfer; there must be one."""
        file = self._disk.open(self._path)
        try:
            return Sending(file, self._path, _decode_meta(file, self._path, self._cluster)[0])
        except BaseException:
            file.close()
            raise

    def receive(self, key: TransferKey) -> Receiving:
        """Begin to receive a snapshot; what was received before without being adopted is gone."""
        aside = self._directory / RECEIVING_NAME
        self._remove(aside)
        return Receiving(self, key, aside, self._disk.create(aside))

    # --- for Receiving

    def _place(self, aside: Path, meta: SnapshotMeta, size: int) -> bool:
        """Give a complete and synced file its place, unless a newer snapshot has it."""
        with self._guard:
            if self._meta is not None and self._meta.last[1] > meta.last[1]:
                self._remove(aside)
                return False
            self._disk.rename(aside, self._path)
            self._meta, self.size = meta, size
            self._disk.sync_directory(self._directory)
            return True

    def _verify(self, aside: Path, file: File, take: Take) -> SnapshotMeta:
        return _decode(file, aside, self._cluster, take)

    def _remove(self, path: Path) -> None:
        if self._disk.exists(path):
            self._disk.unlink(path)


@dataclass(frozen=True, slots=True)
class TransferKey:
    """Names a transfer: the sender and its term, the last index of the snapshot and its term."""

    sender: str
    term: int
    index: int
    entry_term: int


class Sending:
    """A snapshot on its way to another node; it stays the same when a newer one takes its place."""

    def __init__(self, file: File, path: Path, meta: SnapshotMeta) -> None:
        self._file = file
        self._path = path
        self.meta = meta
        self.size = file.size()

    def read_piece(self, offset: int, size: int) -> bytes:
        """At most `size` bytes of the file; the last piece ends at `self.size`.

        Raises Damaged if the file has become shorter.
        """
        piece = self._file.read(offset, size)
        if len(piece) < min(size, self.size - offset):
            raise Damaged(self._path, offset + len(piece), "its end is missing")
        return piece

    def close(self) -> None:
        """End the transfer."""
        self._file.close()


class Receiving:
    """A snapshot that comes in pieces: `add` until `complete`, then `finish`, then `adopt`."""

    def __init__(self, store: SnapshotStore, key: TransferKey, aside: Path, file: File) -> None:
        """Not for use: `SnapshotStore.receive` makes these."""
        self._store = store
        self._aside = aside
        self._file = file
        self._meta: SnapshotMeta | None = None
        self._open = True
        self.key = key
        self.received = 0
        """Bytes received: the offset of the piece that is expected next."""
        self.complete = False

    def add(self, key: TransferKey, offset: int, piece: bytes, is_last: bool) -> bool:
        """Take a piece, or nothing (False) if it is of another transfer or out of order."""
        if not self._open or self.complete or key != self.key or offset != self.received:
            return False
        self._file.write(offset, piece)
        self.received += len(piece)
        self.complete = is_last
        return True

    def finish(self, take: Take) -> SnapshotMeta:
        """Sync and verify the complete file, and give its chunks to `take`, one after the other.

        Raises Damaged or Foreign if the file is not what a node writes, perhaps after some were
        given, and whatever `take` raises; the file is given up then.
        """
        assert self.complete, "the last piece is missing"
        try:
            self._file.sync()
            self._meta = self._store._verify(self._aside, self._file, take)
        except BaseException:
            self.discard()
            raise
        return self._meta

    def adopt(self) -> bool:
        """Put the verified file in place; False if a newer snapshot has come there meanwhile."""
        assert self._meta is not None, "only a verified snapshot may be adopted"
        self._close()
        return self._store._place(self._aside, self._meta, self.received)

    def discard(self) -> None:
        """Give the transfer up."""
        if self._open:
            self._close()
            with suppress(DiskFailed):  # else it is removed before the next transfer
                self._store._remove(self._aside)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._file.close()


def read_meta(path: Path, disk: Disk, cluster: str) -> SnapshotMeta:
    """What the snapshot in this file stands for. Raises Damaged, Foreign, DiskFailed."""
    with closing(disk.open(path)) as file:
        return _decode_meta(file, path, cluster)[0]


def check_seam(path: Path, meta: SnapshotMeta | None, journal_begins: int) -> None:
    """See `SnapshotStore.check_seam`."""
    if journal_begins > (1 if meta is None else meta.last[1]):
        what = "it is missing" if meta is None else f"it ends at entry {meta.last[1]}"
        raise Damaged(path, 0, f"{what}, and the journal begins at entry {journal_begins}")


def verify_snapshot(path: Path, disk: Disk, cluster: str) -> int:
    """The number of chunks, when all of the file is as it was written. Raises like `read_meta`."""
    with closing(disk.open(path)) as file:
        _, offset = _decode_meta(file, path, cluster)
        return sum(1 for _ in _read_chunks(file, path, offset))


# --- the file


def _encode(meta: SnapshotMeta, chunks: Iterable[bytes], cluster: str) -> Iterator[bytes]:
    """The records of a snapshot, in order."""
    fields = {
        "format": FORMAT,
        "cluster": cluster,
        "last": meta.last,
        "previous": meta.previous,
        "members": meta.members,
    }
    digest = hashlib.sha256()
    count = 0
    record = encode_record(_FILE_NUMBER, 0, _META + bytes(msgpack.packb(fields)))
    digest.update(record)
    yield record
    offset = len(record)
    for chunk in chunks:
        record = encode_record(_FILE_NUMBER, offset, _CHUNK + chunk)
        digest.update(record)
        yield record
        offset += len(record)
        count += 1
    yield encode_record(_FILE_NUMBER, offset, _END + bytes(msgpack.packb([count, digest.digest()])))


def _decode(file: File, path: Path, cluster: str, take: Take) -> SnapshotMeta:
    """Give the chunks to `take`; returns if the file is complete to the last byte."""
    meta, offset = _decode_meta(file, path, cluster)
    for chunk in _read_chunks(file, path, offset):
        take(chunk)
    return meta


def _read_chunks(file: File, path: Path, offset: int) -> Iterator[bytes]:
    """The chunks from `offset` on; Damaged, at the latest behind the last, unless all is whole."""
    digest = hashlib.sha256(file.read(0, offset))
    count = 0
    while True:
        record, body = _read_record(file, path, offset)
        offset += len(record)
        if body[:1] != _CHUNK:
            break
        digest.update(record)
        count += 1
        yield body[1:]
    expected = _END + bytes(msgpack.packb([count, digest.digest()]))
    if body != expected:
        raise Damaged(path, offset - len(record), "the end does not fit what stands before it")
    if offset != file.size():
        raise Damaged(path, offset, "there is something behind the end")


def _decode_meta(file: File, path: Path, cluster: str) -> tuple[SnapshotMeta, int]:
    """The first record, and where the next one begins."""
    record, body = _read_record(file, path, 0)
    try:
        if body[:1] != _META:
            raise ValueError("it does not begin with a header")
        fields = msgpack.unpackb(body[1:])
        if fields["format"] != FORMAT:
            raise Foreign(
                f"{path} has format {fields['format']}, this program reads {FORMAT}: "
                "start the program that wrote it"
            )
        if fields["cluster"] != cluster:
            raise Foreign(f"{path} belongs to cluster {fields['cluster']}, not to {cluster}")
        meta = SnapshotMeta(
            _entry(fields["last"]), _entry(fields["previous"]), tuple(fields["members"])
        )
    except (ValueError, TypeError, KeyError) as error:
        raise Damaged(path, 0, f"the header cannot be read: {error}") from error
    return meta, len(record)


def _entry(fields: tuple[bytes, int, int]) -> Entry:
    command, index, term = fields
    return command, index, term


def _read_record(file: File, path: Path, offset: int) -> tuple[bytes, bytes]:
    """(record, body) at an offset."""
    head = file.read(offset, OVERHEAD)
    length = body_length(head)
    # A flipped bit in the length must not ask for gigabytes.
    length = min(length or 0, file.size() - offset)
    record = head + file.read(offset + OVERHEAD, length)
    body = decode_record(record, _FILE_NUMBER, offset, start=offset)
    if body is None:
        raise Damaged(path, offset, "the record there is not whole")
    return record, body
