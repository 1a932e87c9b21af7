"""What a node's data directory holds, and whether it is as it was written; nothing is touched.

Rules:
- files are opened for reading only; nothing is cut, repaired, removed or synced;
- the node may be running: its lock is asked for shared and given back at once, and what it writes
  meanwhile may look torn. So a look at a running node tells of a moment, and is taken again when
  files vanish under it;
- what is damage and what a crash may leave is judged by the code that a start of the node runs
  (`journal_recovery.survey`, `snapshots.verify_snapshot`, `directory.read_identity`): the node
  starts if, and only if, `verify` finds nothing.

Every finding says which file, where in it, what is wrong, what that means and what to do.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import IS_LOST, Damaged, DiskFailed, NotReadable, StorageError
from cluster.storage.directory import (
    FELLOWS_NAME,
    IDENTITY_NAME,
    JOURNAL_NAME,
    LOCK_NAME,
    SNAPSHOTS_NAME,
    read_identity,
)
from cluster.storage.disk import File, PosixDisk, open_file
from cluster.storage.fellows import Fellows
from cluster.storage.journal_format import (
    NOWHERE,
    Entry,
    Group,
    Header,
    Log,
    Position,
    appended_indexes,
)
from cluster.storage.journal_recovery import Seen, Tear, segment_numbers, segment_path, survey
from cluster.storage.journal_segments import WATERMARK_NAME
from cluster.storage.journal_words import Unreadable, words_of_entry
from cluster.storage.snapshots import NAME as SNAPSHOT_NAME
from cluster.storage.snapshots import SnapshotMeta, check_seam, read_meta, verify_snapshot
from cluster.storage.watermark import read_watermark

LOOKS = 3
"""At a running node, whose files come and go: after so many looks a failure is told."""

_KEEP_ASIDE = (
    f"The node will not start; the other nodes have everything. Keep the directory aside: {IS_LOST}"
)


class NotADirectory(StorageError):
    """There is no node's data directory at the path given."""


@dataclass(slots=True)
class SegmentFound:
    """A segment's file. Indexes are of what was appended in it; 0 if nothing was."""

    number: int
    path: Path
    size: int
    groups: int = 0
    first_index: int = 0
    last_index: int = 0
    without_sync: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong with one file. `meaning` is for whoever is called at night."""

    path: Path
    offset: int
    what: str
    meaning: str
    next: str


@dataclass(slots=True)
class Inspection:
    """What was found. `log` is what a start of the node would build on."""

    directory: Path
    running: bool
    cluster: str
    node: str
    segments: list[SegmentFound] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    watermark: Position = NOWHERE
    synced_index: int = 0
    """The last entry that lies before the watermark."""
    tear: Tear | None = None
    """Where the next start would cut what was written after the last sync."""
    snapshot: SnapshotMeta | None = None
    snapshot_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def inspect(directory: Path, *, verify: bool = False) -> Inspection:
    """Look at a data directory. `verify` reads the snapshot and every command to the end, too.

    Raises NotADirectory, Foreign, NotReadable; what is damaged is in the findings.
    """
    for look in range(1, LOOKS + 1):
        running = _is_running(directory)
        try:
            found = _look(directory, running=running, verify=verify)
        except DiskFailed as error:
            if not running or look == LOOKS:
                raise NotReadable(error) from error
            continue
        if not (running and found.findings) or look == LOOKS:
            return found
    raise AssertionError("every look returns or raises")


def _look(directory: Path, *, running: bool, verify: bool) -> Inspection:
    disk = _ReadOnlyDisk()
    if not disk.exists(directory / IDENTITY_NAME):
        raise NotADirectory(
            f"{directory} is not the data directory of a node: it has no file {IDENTITY_NAME}; "
            "give what the node has as --data-dir"
        )
    found = Inspection(directory, running, "", "")
    try:
        (found.cluster, found.node, _), _ = read_identity(directory, disk)
    except Damaged as error:
        meaning = "It is not known whose directory this is, so nothing in it can be judged."
        found.findings.append(_finding(error, meaning))
        return found
    try:
        Fellows(directory / FELLOWS_NAME, disk, birth=b"")
    except Damaged as error:
        meaning = "It said by which data directories this node knows the others."
        found.findings.append(_finding(error, meaning))
    _look_at_journal(found, directory / JOURNAL_NAME, disk)
    snapshot = directory / SNAPSHOTS_NAME / SNAPSHOT_NAME
    _look_at_snapshot(found, snapshot, disk, verify=verify)
    if not found.findings:
        _look_at_seam(found, snapshot)
    if verify and not found.findings:
        _look_at_commands(found)
    return found


def _look_at_journal(found: Inspection, directory: Path, disk: _ReadOnlyDisk) -> None:
    if not disk.exists(directory):
        missing = Damaged(directory, 0, "the journal is missing")
        found.findings.append(_finding(missing, _PROMISED))
        return
    # The watermark first: what a running node writes meanwhile only lies further on.
    _, found.watermark = read_watermark(directory / WATERMARK_NAME, disk)
    if found.watermark == NOWHERE:
        found.notes.append(
            f"{directory / WATERMARK_NAME} says nothing: how far the journal was synced is known by"
            " the marks inside it only, all but the last sync"
        )
    try:
        found.log, found.tear = survey(
            directory,
            cluster=found.cluster,
            node=found.node,
            disk=disk,
            watermark=found.watermark,
            new_pass=lambda: _new_pass(found, directory, disk),
        )
    except Damaged as error:
        found.findings.append(_finding(error, _PROMISED))


def _new_pass(found: Inspection, directory: Path, disk: _ReadOnlyDisk) -> Seen:
    """Forget what a pass before this one counted."""
    found.synced_index = 0
    found.segments = []
    for number in segment_numbers(directory, disk):
        path = segment_path(directory, number)
        found.segments.append(SegmentFound(number, path, disk.size(path)))
    by_number = {segment.number: segment for segment in found.segments}

    def seen(number: int, offset: int, size: int, record: Header | Group) -> None:
        segment = by_number.get(number)
        if segment is None:  # begun by the running node since the names were read
            segment = by_number[number] = SegmentFound(number, segment_path(directory, number), 0)
            found.segments.append(segment)
        segment.size = max(segment.size, offset + size)
        segment.without_sync |= record.without_sync
        if isinstance(record, Group):
            segment.groups += 1
            _count_entries(found, segment, record, (number, offset + size))

    return seen


_PROMISED = "What stood there was promised: votes that were given, entries that were acknowledged."


def _count_entries(found: Inspection, segment: SegmentFound, group: Group, end: Position) -> None:
    for index in appended_indexes(group.changes):
        segment.first_index = segment.first_index or index
        segment.last_index = index
        if end <= found.watermark:
            found.synced_index = index


def _look_at_snapshot(found: Inspection, path: Path, disk: _ReadOnlyDisk, *, verify: bool) -> None:
    if not disk.exists(path):
        return
    meaning = "The snapshot holds all that is no longer in the journal."
    try:
        found.snapshot = read_meta(path, disk, found.cluster)
        found.snapshot_bytes = disk.size(path)
        if verify:
            verify_snapshot(path, disk, found.cluster)
    except Damaged as error:
        found.findings.append(_finding(error, meaning))


def _look_at_seam(found: Inspection, snapshot: Path) -> None:
    """The journal must begin where the snapshot ends, or before."""
    try:
        check_seam(snapshot, found.snapshot, found.log.entries[0][1] if found.log.entries else 0)
    except Damaged as error:
        found.findings.append(_finding(error, "The entries between are missing."))


def _look_at_commands(found: Inspection) -> None:
    for command, index, _ in found.log.entries:
        try:
            words_of_entry(command)
        except Unreadable as error:
            what = f"entry {index} is whole, but this program cannot read it: {error}"
            meaning = "The node stops where it would have to apply the entry."
            path = _segment_of(found, index).path
            advice = "Start the program that wrote it; its version is newer than this one"
            found.findings.append(Finding(path, 0, what, meaning, advice))
            return


def _segment_of(found: Inspection, index: int) -> SegmentFound:
    holding = [s for s in found.segments if s.first_index <= index <= s.last_index]
    return holding[-1] if holding else found.segments[-1]


def _finding(error: Damaged, meaning: str) -> Finding:
    return Finding(error.path, error.offset, error.what, meaning, _KEEP_ASIDE)


def entries_in_words(found: Inspection) -> list[tuple[Entry, list[str]]]:
    """Every entry with what it says."""
    told = []
    for entry in found.log.entries:
        try:
            words = words_of_entry(entry[0])
        except Unreadable as error:
            words = [f"cannot be read: {error}"]
        told.append((entry, words))
    return told


# --- reading only


def _is_running(directory: Path) -> bool:
    """Does a process hold the directory's lock? Asked for shared, and given back at once."""
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


class _ReadOnlyDisk(PosixDisk):
    """A disk that opens for reading, and nothing else."""

    def open(self, path: Path) -> File:
        return open_file(path, os.O_RDONLY)

    def size(self, path: Path) -> int:
        with closing(self.open(path)) as file:
            return file.size()

    def _refuse(self, *_: object) -> File:
        raise AssertionError("an inspection changes nothing")

    def create(self, path: Path) -> File:
        return self._refuse(path)

    def lock(self, path: Path) -> File:
        return self._refuse(path)

    def make_directory(self, path: Path) -> None:
        self._refuse(path)

    def sync_directory(self, path: Path) -> None:
        self._refuse(path)

    def rename(self, source: Path, target: Path) -> None:
        self._refuse(source, target)

    def unlink(self, path: Path) -> None:
        self._refuse(path)
