"""The durable journal of one node: Raft's log, term and vote on disk.

Rules:
- nothing is modified in place; the only file that is overwritten is the watermark
  (`cluster/storage/watermark.py`). `open` writes again, unchanged, what stands behind the last
  sync, for a failed sync leaves behind it what only seems to be on the disk;
- one `write` is one group: after a crash it is there wholly or not at all;
- nothing that depends on a change leaves the process before the change is written (it survives
  kill -9) and, unless the journal runs without sync, synced (it survives a power loss);
- after the first failed operation every call raises `DiskFailed`: what is in memory and what is
  on disk cannot drift apart, because neither is used any more;
- one thread: only the job that `start_sync` gives may run in another, one at a time.

How it is driven, on every step of the loop:

    journal.append(...); journal.set_vote(...)       # buffered
    journal.write()                                  # into the operating system
    if (job := journal.start_sync()) is not None:    # None: nothing to wait for
        await loop.run_in_executor(None, job)
        journal.after_sync()                         # now it is on stable storage

Without sync (`sync=False`) the same calls are made; `start_sync` then gives a job only when old
segments wait to be removed, which never happens before what makes them superfluous is really
synced. The watermark is advanced only by real syncs: by these, by `open` (which syncs what it has
read before anyone builds on it) and by `close`. So a journal may be opened with and without sync
in any order.

What files mean is in `cluster/storage/journal_format.py`; what a restart makes of them in
`cluster/storage/journal_recovery.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import overload

from cluster.errors import DiskFailed, FailStop
from cluster.storage import journal_format
from cluster.storage.disk import Disk
from cluster.storage.journal_format import Entry, Malformed
from cluster.storage.journal_segments import Segments

__all__ = ["Entry", "Journal"]


class Journal:
    """See the top of the file. `first_index`, `last_index`, `last_term` are 0 of an empty log."""

    def __init__(self, directory: Path, segments: Segments, segment_bytes: int, sync: bool) -> None:
        """Not for use: `Journal.open` makes journals."""
        self._directory = directory
        self._segments = segments
        self._segment_bytes = segment_bytes
        self._sync_on = sync
        self._log = segments.log
        self._buffer = bytearray()
        self._buffered_highest = 0
        self._written_hint = self._log.commit_hint

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        cluster: str,
        node: str,
        disk: Disk,
        segment_bytes: int = 16 << 20,
        sync: bool = True,
    ) -> Journal:
        """Read the journal in `directory`, or begin one. Blocks, and syncs what it found.

        Whether an empty directory may be begun with is not asked here but in
        `cluster/storage/directory.py`. `segment_bytes`: a segment is left behind when it is at
        least that large. Raises Damaged, Foreign, DiskFailed.
        """
        segments = Segments(directory, cluster=cluster, node=node, disk=disk, sync=sync)
        return cls(directory, segments, segment_bytes, sync)

    # --- the log

    def __len__(self) -> int:
        self._check()
        return len(self._log.entries)

    @overload
    def __getitem__(self, position: int) -> Entry: ...
    @overload
    def __getitem__(self, position: slice) -> list[Entry]: ...
    def __getitem__(self, position: int | slice) -> Entry | list[Entry]:
        """By position in the list of entries, not by index; also what is not yet written."""
        self._check()
        return self._log.entries[position]

    @property
    def first_index(self) -> int:
        self._check()
        return self._log.entries[0][1] if self._log.entries else 0

    @property
    def last_index(self) -> int:
        self._check()
        return self._log.entries[-1][1] if self._log.entries else 0

    @property
    def last_term(self) -> int:
        self._check()
        return self._log.entries[-1][2] if self._log.entries else 0

    def append(self, command: bytes, index: int, term: int) -> None:
        """Add an entry; its index must be the one behind the last (any, after `reset([])`)."""
        self._check()
        try:
            self._log.append(command, index, term)
        except Malformed as error:  # not `_invariants`: this is the hot path
            raise FailStop(f"the journal was asked for the impossible: {error}") from error
        self._buffer += journal_format.append_change(command, index, term)
        self._buffered_highest = max(self._buffered_highest, index)

    def truncate_from(self, index: int) -> None:
        """Remove the entries from `index` on (a leader has others there)."""
        self._check()
        if self._log.entries and index <= self._log.entries[-1][1]:
            with _invariants():
                self._log.truncate_from(index)
            self._buffer += journal_format.truncate_change(index)

    def compact_to(self, index: int) -> None:
        """Drop the entries below `index` (a durable snapshot covers them); that of `index` stays.

        Writes, and begins a new segment, so that the next sync may remove the old ones. If the
        old ones of the compaction before still wait for a sync, nobody syncs, and it is done here.
        """
        self._check()
        if not self._log.entries or index <= self._log.entries[0][1]:
            return
        with _invariants():
            self._log.start_at(index)
        self._buffer += journal_format.start_change(index)
        self._write_group()
        if self._segments.removal_waits and not self._segments.sync_is_running:
            self._segments.begin_sync()()
            self._segments.after_sync()
        self._segments.roll(self._log)

    def reset(self, entries: Sequence[Entry]) -> None:
        """Replace the whole log in one step (a snapshot was installed), and write it."""
        self.write()
        self._log.clear()
        self._buffer += journal_format.clear_change()
        for entry in entries:
            self.append(*entry)
        self._write_group()  # not `write`: the entries must be in the segment left behind here
        self._segments.roll(self._log, replaced=True)

    # --- term and vote

    @property
    def term(self) -> int:
        self._check()
        return self._log.term

    @property
    def vote(self) -> str | None:
        """The node voted for in `term`, or None."""
        self._check()
        return self._log.vote

    def set_vote(self, term: int, vote: str | None) -> None:
        """Enter `term`, or vote in it. A lower term, or a second vote in a term, is a FailStop."""
        self._check()
        if (term, vote) != (self._log.term, self._log.vote):
            with _invariants():
                self._log.set_vote(term, vote)
            self._buffer += journal_format.vote_change(term, vote)

    @property
    def commit_hint(self) -> int:
        """The commit index as last known, never beyond the log's end; safety needs it not."""
        return min(self._log.commit_hint, self.last_index)

    @commit_hint.setter
    def commit_hint(self, index: int) -> None:
        """Written along with the next change."""
        self._check()
        self._log.commit_hint = index

    # --- to the disk

    def write(self) -> None:
        """Hand everything buffered to the operating system, as one group."""
        self._write_group()
        if self._segments.size >= self._segment_bytes:
            self._segments.roll(self._log)

    def _write_group(self) -> None:
        self._check()
        if not self._buffer:
            return
        if self._log.commit_hint != self._written_hint:
            self._written_hint = self._log.commit_hint
            self._buffer += journal_format.commit_hint_change(self._written_hint)
        self._segments.write(bytes(self._buffer), self._buffered_highest)
        self._buffer.clear()
        self._buffered_highest = 0

    @property
    def dirty(self) -> bool:
        """Is there anything that would not survive a power loss, and that `start_sync` would sync?

        Without sync: does the removal of old segments wait for a sync?
        """
        self._check()
        if not self._sync_on:
            return self._segments.removal_waits
        return bool(self._buffer) or self._segments.unsynced or self._segments.removal_waits

    def start_sync(self) -> Callable[[], None] | None:
        """Write, and give the job that makes it durable (None if `dirty` is false).

        The job blocks: run it in a thread, then call `after_sync`. Everything written before this
        call is on stable storage when the job returns. If it raises, the journal has failed.
        """
        self.write()
        return self._segments.begin_sync() if self.dirty else None

    def after_sync(self) -> None:
        """On the loop, when the job is over. Raises DiskFailed if it failed."""
        self._check()
        self._segments.after_sync()

    def close(self) -> None:
        """Write, sync (also where the journal runs without), close; waits for a running job."""
        self._segments.close(last_changes=self.write)

    @property
    def failed(self) -> str | None:
        """Why the journal cannot be used any more, or None."""
        return self._segments.failed

    @property
    def writes(self) -> int:
        """How many records were written since the journal was opened."""
        return self._segments.writes

    @property
    def syncs(self) -> int:
        """How many syncs were finished since then."""
        return self._segments.syncs

    @property
    def bytes(self) -> int:
        """How many bytes its files have."""
        return self._segments.total_size

    def _check(self) -> None:
        if self._segments.failed is not None:
            raise DiskFailed("use", self._directory, self._segments.failed)


@contextmanager
def _invariants() -> Iterator[None]:
    """A change that no correct Raft asks for stops the node."""
    try:
        yield
    except Malformed as error:
        raise FailStop(f"the journal was asked for the impossible: {error}") from error
