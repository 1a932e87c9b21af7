"""How far the journal was synced: a file of two slots, so that one of them is always good.

After each sync the position reached is written to the slot that was not written last. The file is
not synced for that: what it says is true whenever it reaches the disk, because it was written
after the sync that it tells of. After kill -9 it is exact; after a power loss it may be too low,
never too high. A slot that is torn or rotten is not counted, and a missing file says that nothing
was synced: the marks inside the journal are a second, independent witness.
"""

from __future__ import annotations

import struct
from pathlib import Path

from cluster.storage.disk import Disk, File, read_file
from cluster.storage.journal_format import NOWHERE, Position
from cluster.storage.records import decode_record, encode_record

_SLOT_BYTES = 512
"""A sector each: a torn write damages one slot only."""

_SLOT = struct.Struct("<QQQ")


class Watermark:
    """The open file."""

    def __init__(self, file: File, sequence: int) -> None:
        self._file = file
        self._sequence = sequence

    @classmethod
    def open(cls, path: Path, disk: Disk) -> Watermark:
        """Open the file, made if it is missing (the caller syncs the directory)."""
        sequence, _ = read_watermark(path, disk)
        file = disk.open(path) if disk.exists(path) else disk.create(path)
        return cls(file, sequence)

    def advance(self, position: Position) -> None:
        """Everything before `position` is on stable storage."""
        self._sequence += 1
        slot = self._sequence % 2
        body = _SLOT.pack(self._sequence, *position)
        self._file.write(slot * _SLOT_BYTES, encode_record(slot, slot * _SLOT_BYTES, body))

    def sync(self) -> None:
        """Make the watermark itself durable."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_watermark(path: Path, disk: Disk) -> tuple[int, Position]:
    """(sequence, position) of the newest good slot; (0, NOWHERE) if there is none."""
    blob = read_file(disk, path, 2 * _SLOT_BYTES) if disk.exists(path) else b""
    newest = (0, NOWHERE)
    for slot in range(2):
        body = decode_record(blob, slot, slot * _SLOT_BYTES)
        if body is not None and len(body) == _SLOT.size:
            sequence, segment, offset = _SLOT.unpack(body)
            newest = max(newest, (sequence, (segment, offset)))
    return newest
