"""The journal's files while it runs: the segment that grows, those behind it, and how they become
durable.

- groups go to the end of the current segment; when it is left behind a new one is begun, whose
  header holds the whole state but the entries, and says which older segments are still needed;
- a sync covers every segment written since the one before, then the new names, and only then
  moves the watermark and removes what is superfluous: at any moment the disk holds a journal that
  is whole;
- the first failure is final: `failed` says why, and nothing is written any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import IS_LOST, DiskFailed, TakenAway
from cluster.storage.disk import Disk, File
from cluster.storage.journal_format import (
    FORMAT,
    NOWHERE,
    Header,
    Log,
    Position,
    encode_group,
    encode_header,
)
from cluster.storage.journal_recovery import Recovered, Segment, recover, segment_path
from cluster.storage.records import encode_record
from cluster.storage.watermark import Watermark, read_watermark

WATERMARK_NAME = "watermark"

_NEW_NAME = "segment.new"
"""The first segment is made under this name: no crash leaves it without its header."""


@dataclass(slots=True)
class _Segment:
    """The segment that grows."""

    number: int
    file: File
    size: int
    highest: int
    """No entry above this index was ever appended here; 0 if none was."""


@dataclass(slots=True)
class _Sync:
    """A sync under way: what it makes durable, and what it removes afterwards."""

    left_behind: list[File]
    """Closed when their sync is done."""
    current: _Segment
    position: Position
    names_changed: bool
    stale: list[int]
    done: bool = False


class Segments:
    """The open files of one journal; `log` is what they held when they were opened."""

    def __init__(self, directory: Path, *, cluster: str, node: str, disk: Disk, sync: bool) -> None:
        """Open or begin a journal, and sync it. Raises Damaged, Foreign, DiskFailed."""
        self._directory = directory
        self._owner = (cluster, node)
        self._disk = disk
        self._sync_on = sync
        self._current: _Segment
        self._older: list[tuple[int, int]] = []
        """(number, highest index) of the segments before the current one, ascending."""
        self._sizes: dict[int, int] = {}
        """Of the segments before the current one, as long as they are there."""
        self._left_behind: list[File] = []
        self._names_changed = False
        """Was a segment made whose name is not synced yet?"""
        self._stale: list[int] = []
        """Segments to remove after the next sync."""
        self._watermark: Watermark
        self._synced: Position = NOWHERE
        self._running: _Sync | None = None
        self._guard = threading.Lock()
        """Held by a running job, so that `close` does not pull files from under it."""
        self._closed = False
        self.failed: str | None = None
        self.writes = self.syncs = 0
        self.log = self._open()

    @property
    def size(self) -> int:
        """Of the current segment, in bytes."""
        return self._current.size

    @property
    def total_size(self) -> int:
        """Of all segments that are there, in bytes."""
        return self._current.size + sum(self._sizes.values())

    @property
    def unsynced(self) -> bool:
        """Was anything written that no finished sync covers?"""
        return (self._current.number, self._current.size) > self._synced

    @property
    def removal_waits(self) -> bool:
        """Are there superfluous segments that wait for a sync which has not begun?"""
        return bool(self._stale)

    @property
    def sync_is_running(self) -> bool:
        """Was a sync begun, and not ended by `after_sync`?"""
        return self._running is not None

    def write(self, changes: bytes, highest: int) -> None:
        """Write one group; `highest` is the highest index appended in it, or 0."""
        current = self._current
        body = encode_group(changes, self._synced, without_sync=not self._sync_on)
        record = encode_record(current.number, current.size, body)
        try:
            current.file.write(current.size, record)
        except DiskFailed as error:
            self._fail(error)
            with suppress(DiskFailed):  # else a restart cuts it: it is not a whole record
                current.file.truncate(current.size)
            raise
        current.size += len(record)
        current.highest = max(current.highest, highest)
        self.writes += 1

    def roll(self, log: Log, *, replaced: bool = False) -> None:
        """Begin a new segment in the state `log`, all of which is written.

        `replaced`: the last group replaced all entries, so that no older segment is needed.
        """
        left = self._current
        older = [(number, 0 if replaced else highest) for number, highest in self._older]
        older.append((left.number, left.highest))
        needed = [n for n, highest in older if log.start is not None and highest >= log.start]
        number = left.number + 1
        oldest = needed[0] if needed else number
        header = self._header(log, number, oldest=oldest, previous_end=left.size)
        try:
            self._current = self._create(segment_path(self._directory, number), header)
        except DiskFailed as error:
            self._fail(error)
            raise
        self._sizes[left.number] = left.size
        self._left_behind.append(left.file)
        self._names_changed = True
        self._stale += [number for number, _ in older if number < oldest]
        self._older = [(number, highest) for number, highest in older if number >= oldest]

    def begin_sync(self) -> Callable[[], None]:
        """The job that makes durable what is written, for any thread; then call `after_sync`."""
        assert self._running is None, "after_sync() was not called after the last job"
        sync = self._new_sync()
        self._running = sync
        return lambda: self._run(sync)

    def after_sync(self) -> None:
        """The job has run to its end."""
        sync = self._running
        assert sync is not None, "no sync was started"
        assert sync.done, "the job of the sync was not run to its end"
        self._running = None
        self._synced = sync.position
        for number in sync.stale:
            del self._sizes[number]
        self.syncs += 1

    def close(self, last_changes: Callable[[], None]) -> None:
        """Call `last_changes`, sync, and close; waits for a running job. May be called again."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            try:
                if self.failed is None:
                    last_changes()
                    self._take_over_unfinished_sync()
                    self._running = self._new_sync()
                    self._make_durable(self._running)
                    self._watermark.sync()
            finally:
                self._close_files()
                self.failed = self.failed or "it is closed"

    # --- writing

    def _header(self, log: Log, number: int, *, oldest: int, previous_end: int) -> Header:
        cluster, node = self._owner
        return Header(
            format=FORMAT,
            cluster=cluster,
            node=node,
            number=number,
            oldest=oldest,
            previous_end=previous_end,
            mark=self._synced,
            without_sync=not self._sync_on,
            start=log.start,
            next_index=log.next_index,
            term=log.term,
            vote=log.vote,
            commit_hint=log.commit_hint,
        )

    def _create(self, path: Path, header: Header) -> _Segment:
        record = encode_record(header.number, 0, encode_header(header))
        file = self._disk.create(path)
        try:
            file.write(0, record)
        except DiskFailed:
            with suppress(DiskFailed):  # else a restart removes it: its header is not whole
                file.close()
                self._disk.unlink(path)
            raise
        self.writes += 1
        return _Segment(header.number, file, len(record), 0)

    def _fail(self, error: DiskFailed) -> None:
        if self.failed is None:
            self.failed = f"it could not {error.operation} {error.path.name} ({error.reason})"

    # --- syncing

    def _new_sync(self) -> _Sync:
        current = self._current
        position = (current.number, current.size)
        sync = _Sync(self._left_behind, current, position, self._names_changed, self._stale)
        self._left_behind, self._names_changed, self._stale = [], False, []
        return sync

    def _take_over_unfinished_sync(self) -> None:
        """Where `close` comes before the job had a chance to run."""
        unfinished = self._running
        if unfinished is not None and not unfinished.done:
            self._left_behind = unfinished.left_behind + self._left_behind
            self._names_changed |= unfinished.names_changed
            self._stale = unfinished.stale + self._stale

    def _run(self, sync: _Sync) -> None:
        with self._guard:
            if not self._closed:  # else `close` has done all of it
                self._make_durable(sync)

    def _make_durable(self, sync: _Sync) -> None:
        try:
            for file in [*sync.left_behind, sync.current.file]:
                file.sync()
            if sync.names_changed:
                self._disk.sync_directory(self._directory)
            current = segment_path(self._directory, sync.current.number)
            if not self._disk.exists(current):
                self.failed = f"{current.name} was deleted or moved"
                raise TakenAway(
                    f"{current} was deleted or moved while the node ran, and nothing more can be "
                    f"promised: put it back and start the node again. If it is gone: {IS_LOST}"
                )
        except DiskFailed as error:
            self._fail(error)
            raise
        try:
            self._watermark.advance(sync.position)
            for number in sync.stale:
                self._disk.unlink(segment_path(self._directory, number))
            while sync.left_behind:
                sync.left_behind.pop().close()
        except DiskFailed as error:
            self._fail(error)
            raise
        sync.done = True

    def _close_files(self) -> None:
        files = [*self._left_behind, self._current.file]
        if self._running is not None:
            files += self._running.left_behind
        for close in [file.close for file in files] + [self._watermark.close]:
            with suppress(DiskFailed):  # what is durable was synced before
                close()

    # --- opening

    def _open(self) -> Log:
        directory, disk = self._directory, self._disk
        if not disk.exists(directory):
            disk.make_directory(directory)
            disk.sync_directory(directory.parent)
        cluster, node = self._owner
        _, mark = read_watermark(directory / WATERMARK_NAME, disk)
        found = recover(directory, cluster=cluster, node=node, disk=disk, watermark=mark)
        log = found.log if found is not None else Log()
        with ExitStack() as on_failure:
            if found is None:
                self._begin(log, on_failure)
            else:
                self._continue(found, mark, on_failure)
            self._watermark = Watermark.open(directory / WATERMARK_NAME, disk)
            on_failure.callback(self._watermark.close)
            disk.sync_directory(directory)
            self._synced = (self._current.number, self._current.size)
            self._watermark.advance(self._synced)
            self._watermark.sync()
            for number in found.stale if found is not None else []:
                disk.unlink(segment_path(directory, number))
            on_failure.pop_all()
        return log

    def _begin(self, log: Log, on_failure: ExitStack) -> None:
        aside, path = self._directory / _NEW_NAME, segment_path(self._directory, 1)
        if self._disk.exists(aside):
            self._disk.unlink(aside)
        self._current = self._create(aside, self._header(log, 1, oldest=1, previous_end=0))
        on_failure.callback(self._current.file.close)
        self._current.file.sync()
        self._disk.rename(aside, path)

    def _continue(self, found: Recovered, mark: Position, on_failure: ExitStack) -> None:
        """Make durable what was read and perhaps never was, before anyone builds on it."""
        *older, last = found.segments
        for segment in older:
            if segment.number >= mark[0]:
                path = segment_path(self._directory, segment.number)
                with closing(self._disk.open(path)) as older_file:
                    _write_again(older_file, segment, mark)
        file = self._disk.open(segment_path(self._directory, last.number))
        on_failure.callback(file.close)
        _write_again(file, last, mark)
        self._current = _Segment(last.number, file, last.size, last.highest)
        self._older = [(segment.number, segment.highest) for segment in older]
        self._sizes = {segment.number: segment.size for segment in older}


def _write_again(file: File, segment: Segment, mark: Position) -> None:
    """Write what stands behind the last sync once more, as it is, and sync it.

    After a failed sync the system may take pages for written that the disk does not have: it shows
    them as long as it runs, and another sync of them alone succeeds without a word to the disk.
    """
    start = mark[1] if segment.number == mark[0] else 0
    if start < segment.size:
        file.write(start, file.read(start, segment.size - start))
    file.sync()
