"""Reading a journal back, and telling what a crash may leave from what it may not.

Every group that is found whole is applied, in order. The first place where no whole group stands,
and which is not the end, is a tear. What lies behind a tear is given up (cut away, and said so in
the log) only if nothing of it can have been promised to anybody; else the journal is refused as
`Damaged`, unchanged:

- the watermark file, or the mark inside any good record wherever it stands, says that the place
  of the tear or something behind it was synced: refused;
- a good record behind the tear was written while the journal ran without sync: refused. Without
  sync all that was written counts as promised (it survives kill -9), and kill -9 leaves nothing
  behind a tear;
- otherwise the tear lies in what was written after the last sync. A power loss may have kept any
  part of that, also later parts without earlier ones. It is cut at the tear.

What can be told apart, of a single damage (bit rot, lost or misdirected write, cut file):
- after a clean stop, and after kill -9: everything up to the last finished sync is known to have
  been synced, and damage there is refused. Exception: killed between a sync and the write of the
  watermark that follows it, the last group counts as not synced;
- after a power loss: everything up to the last sync but one, by the mark in the last group, and
  up to the last sync if the watermark's page reached the disk. If it did not, damage to the last
  synced group looks like a torn write and is cut;
- without sync: damage in front of a good group is refused; damage to the very last group, or a
  file cut between two groups behind the watermark, looks like a write that never happened;
- both a slot of the watermark and the group that it guards damaged: as after a power loss.

An unreadable file (EIO) is `DiskFailed`. Whole segments that are missing count as a tear at their
start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import Damaged, Foreign
from cluster.storage.disk import Disk, read_file
from cluster.storage.journal_format import (
    Group,
    Header,
    Log,
    Malformed,
    OtherFormat,
    Position,
    apply_changes,
    decode_body,
    decode_changes,
)
from cluster.storage.records import OVERHEAD, body_length, decode_record, find_records

_logger = logging.getLogger(__name__)

_PREFIX, _SUFFIX = "segment-", ".log"

MOST_SEGMENT_BYTES = 256 << 20
"""A node leaves a segment behind at 16 MiB, and its last group is at most what one step hears, some
64 MiB. What is larger, a sparse file perhaps, is not a node's, and may not fit into memory."""


@dataclass(slots=True)
class Segment:
    """A segment that was read: its number, its size, and the highest index appended in it."""

    number: int
    size: int
    highest: int


@dataclass(slots=True)
class Recovered:
    """What a journal's directory holds. `stale` are numbers of segments no longer needed."""

    log: Log
    segments: list[Segment]
    stale: list[int]


class Tear(Exception):
    """No whole record where one must begin."""

    def __init__(self, number: int, offset: int, what: str) -> None:
        super().__init__(what)
        self.position: Position = (number, offset)


Seen = Callable[[int, int, int, Header | Group], None]
"""Told of each whole record that was read and applied: segment, offset, size, what it holds."""


def segment_path(directory: Path, number: int) -> Path:
    """The file of a segment."""
    return directory / f"{_PREFIX}{number:012d}{_SUFFIX}"


def segment_numbers(directory: Path, disk: Disk) -> list[int]:
    """The numbers of the segments in a directory, ascending."""
    return sorted(
        int(name[len(_PREFIX) : -len(_SUFFIX)])
        for name in disk.names(directory)
        if name.startswith(_PREFIX)
        and name.endswith(_SUFFIX)
        and name[len(_PREFIX) : -len(_SUFFIX)].isdecimal()
    )


def recover(
    directory: Path, *, cluster: str, node: str, disk: Disk, watermark: Position
) -> Recovered | None:
    """Read a journal, cutting what a crash left behind the last sync; None if there is no journal
    yet.

    Raises Damaged, Foreign, DiskFailed. Idempotent: a crash in the middle of a cut is cut again.
    """
    while numbers := segment_numbers(directory, disk):
        reading = _Reading(directory, cluster, node, disk, watermark)
        try:
            return reading.run(numbers)
        except Tear as tear:
            reading.refuse_if_promised(tear, numbers)
            _cut(directory, disk, numbers, tear)
    if watermark > (0, 0):
        raise Damaged(segment_path(directory, watermark[0]), 0, "all segments are missing")
    return None


def survey(
    directory: Path,
    *,
    cluster: str,
    node: str,
    disk: Disk,
    watermark: Position,
    new_pass: Callable[[], Seen],
) -> tuple[Log, Tear | None]:
    """What `recover` would find: the log, and the tear at which it would cut. Changes nothing.

    Like `recover` it reads anew what a cut would leave: without the newest segment an older one
    may be needed. `new_pass` gives who is told of what a pass finds whole; the last one counts.
    Raises what `recover` raises.
    """
    numbers = segment_numbers(directory, disk)
    if not numbers:
        raise Damaged(segment_path(directory, max(1, watermark[0])), 0, "all segments are missing")
    last: Tear | None = None
    while True:
        end = None if last is None else last.position
        reading = _Reading(directory, cluster, node, disk, watermark, new_pass(), end)
        try:
            return reading.run(numbers).log, last
        except Tear as tear:
            reading.refuse_if_promised(tear, numbers)
            numbers, last = [n for n in numbers if n <= _last_kept(tear)], tear


class _Reading:
    """One pass over the segments."""

    def __init__(
        self,
        directory: Path,
        cluster: str,
        node: str,
        disk: Disk,
        watermark: Position,
        seen: Seen = lambda *_: None,
        end: Position | None = None,
    ) -> None:
        """As if nothing stood at or behind `end`."""
        self._directory = directory
        self._owner = (cluster, node)
        self._disk = disk
        self._mark = watermark
        self._seen = seen
        self._end = end
        self.log = Log()
        self._segments: list[Segment] = []

    def run(self, numbers: list[int]) -> Recovered:
        """Apply everything; raises Tear at the first place that is not whole."""
        oldest = self._find_oldest(numbers)
        for number in range(oldest, numbers[-1] + 1):
            if number not in numbers:
                raise Tear(number, 0, "the segment is missing")
            self._read_segment(number)
        end = (self._segments[-1].number, self._segments[-1].size)
        if self._mark > end:
            number, offset = self._mark
            what = (
                f"it was synced up to byte {offset}, but it ends in segment {end[0]}, byte {end[1]}"
            )
            raise self._damaged(number, end[1] if end[0] == number else 0, what)
        self.refuse_if_incomplete()
        stale = [number for number in numbers if number < oldest]
        return Recovered(self.log, self._segments, stale)

    def refuse_if_promised(self, tear: Tear, numbers: list[int]) -> None:
        """Raise Damaged if anything at or behind the tear may have been promised."""
        torn, offset = tear.position
        if tear.position <= (numbers[0], 0):
            raise self._damaged(torn, offset, f"{tear}, and nothing stands before it")
        for number in numbers:
            if number < torn:
                continue
            blob = self._bytes_of(number)
            for found, body in find_records(blob, number, offset if number == torn else 0):
                record = self._decode(body, number, found)
                self._mark = max(self._mark, record.mark)
                if record.without_sync:
                    what = f"{tear}, but what was written later, without sync, is there"
                    raise self._damaged(torn, offset, what)
        if self._mark > tear.position:
            synced = f"byte {self._mark[1]} of segment {self._mark[0]}"
            raise self._damaged(torn, offset, f"{tear}, but all was synced up to {synced}")

    def refuse_if_incomplete(self) -> None:
        """Raise Damaged if entries at the log's start were in segments that are not there."""
        if not self.log.whole:
            what = f"the log starts at {self.log.start}, this entry is missing"
            raise self._damaged(self._segments[0].number if self._segments else 1, 0, what)

    def _find_oldest(self, numbers: list[int]) -> int:
        """What the newest header that can be read says of the oldest segment needed."""
        for number in reversed(numbers):
            with closing(self._disk.open(segment_path(self._directory, number))) as file:
                length = body_length(file.read(0, OVERHEAD)) or 0
                blob = file.read(0, OVERHEAD + min(length, file.size(), MOST_SEGMENT_BYTES))
            body = decode_record(blob, number, 0)
            if body is not None:
                return self._own_header(body, number).oldest
        raise self._damaged(numbers[0], 0, "no segment has a readable header")

    def _read_segment(self, number: int) -> None:
        blob = self._bytes_of(number)
        body = decode_record(blob, number, 0)
        if body is None:
            raise Tear(number, 0, "the segment's header is not whole")
        header = self._own_header(body, number)
        self._continue(header)
        segment = Segment(number, OVERHEAD + len(body), 0)
        self._seen(number, 0, segment.size, header)
        while segment.size < len(blob):
            body = decode_record(blob, number, segment.size)
            if body is None:
                raise Tear(number, segment.size, "the record there is not whole")
            self._apply(body, segment)
            segment.size += OVERHEAD + len(body)
        self._segments.append(segment)

    def _bytes_of(self, number: int) -> bytes:
        path = segment_path(self._directory, number)
        blob = read_file(self._disk, path, MOST_SEGMENT_BYTES + 1)
        if len(blob) > MOST_SEGMENT_BYTES:
            raise self._damaged(number, MOST_SEGMENT_BYTES, "no node writes more into one file")
        return blob[: self._end[1]] if self._end is not None and self._end[0] == number else blob

    def _continue(self, header: Header) -> None:
        """Go on from one segment to the next, or begin with the first."""
        self._mark = max(self._mark, header.mark)
        if not self._segments:
            self.log.continue_from(header)
            return
        before = self._segments[-1]
        if before.size < header.previous_end:
            raise Tear(before.number, before.size, "the end of the segment is missing")
        if before.size > header.previous_end or not self.log.agrees_with(header):
            raise self._damaged(header.number, 0, "it does not continue the segment before")

    def _apply(self, body: bytes, segment: Segment) -> None:
        record = self._decode(body, segment.number, segment.size)
        if isinstance(record, Header):
            raise self._damaged(segment.number, segment.size, "a header in the middle")
        self._mark = max(self._mark, record.mark)
        try:
            highest = apply_changes(self.log, decode_changes(record.changes))
        except Malformed as error:
            raise self._damaged(segment.number, segment.size, str(error)) from error
        segment.highest = max(segment.highest, highest)
        self._seen(segment.number, segment.size, OVERHEAD + len(body), record)

    def _own_header(self, body: bytes, number: int) -> Header:
        header = self._decode(body, number, 0)
        if not isinstance(header, Header):
            raise self._damaged(number, 0, "it does not begin with a header")
        if (header.cluster, header.node) != self._owner:
            cluster, node = self._owner
            raise Foreign(
                f"{segment_path(self._directory, number)} belongs to node {header.node} of "
                f"cluster {header.cluster}, not to node {node} of cluster {cluster}: give each "
                "node its own directory"
            )
        return header

    def _decode(self, body: bytes, number: int, offset: int) -> Header | Group:
        try:
            return decode_body(body)
        except OtherFormat as error:
            path = segment_path(self._directory, number)
            raise Foreign(f"{path} has {error}: start the program that wrote it") from error
        except Malformed as error:
            raise self._damaged(number, offset, str(error)) from error

    def _damaged(self, number: int, offset: int, what: str) -> Damaged:
        return Damaged(segment_path(self._directory, number), offset, what)


def _last_kept(tear: Tear) -> int:
    """The last segment of which a cut leaves anything."""
    torn, offset = tear.position
    return torn if offset > 0 else torn - 1


def _cut(directory: Path, disk: Disk, numbers: list[int], tear: Tear) -> None:
    """Remove everything at and behind the tear, the newest first.

    Nothing is synced here: a crash on the way leaves a tear in the same place, and opening the
    journal syncs what is left, names and bytes, before anyone builds on it.
    """
    torn, offset = tear.position
    kept = _last_kept(tear)
    for number in reversed([number for number in numbers if number > kept]):
        _logger.warning("%s: removed: %s", segment_path(directory, number), tear)
        disk.unlink(segment_path(directory, number))
    if offset > 0:
        path = segment_path(directory, torn)
        with closing(disk.open(path)) as file:
            _logger.warning(
                "%s: %s; cut at byte %d, %d bytes behind it were never synced",
                path,
                tear,
                offset,
                file.size() - offset,
            )
            file.truncate(offset)
