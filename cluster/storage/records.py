"""Checksummed records that know their place: the unit of the journal's and the snapshots' files.

    record = magic (4 bytes) | length of the body (u32) | checksum (u32) | body

The checksum is a CRC-32 over the file's number, the record's offset, the length and the body. So
a flipped bit anywhere in a record is noticed, and so is a good record in the wrong place (a
misdirected write, a piece of another file). Because a record proves itself wherever it starts,
one that stands behind damage can be found.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAGIC = b"\xa5\x5aR1"
OVERHEAD = 12
"""Bytes of a record that are not its body."""

_HEAD = struct.Struct("<4sII")
_PLACE = struct.Struct("<QQI")


def encode_record(number: int, offset: int, body: bytes) -> bytes:
    """The record with this body for `offset` of the file with this number."""
    return _HEAD.pack(MAGIC, len(body), _checksum(number, offset, body)) + body


def decode_record(blob: bytes, number: int, offset: int, start: int = 0) -> bytes | None:
    """The body of the record at `offset` of a file of which `blob` holds the bytes from `start` on.

    None if there is no complete and undamaged record.
    """
    position = offset - start
    if position + OVERHEAD > len(blob):
        return None
    magic, length, checksum = _HEAD.unpack_from(blob, position)
    begins = position + OVERHEAD
    if magic != MAGIC or begins + length > len(blob):  # before anything of it is copied
        return None
    body = blob[begins : begins + length]
    return body if checksum == _checksum(number, offset, body) else None


def body_length(head: bytes) -> int | None:
    """The length that the first `OVERHEAD` bytes of a record claim, or None if they are none."""
    if len(head) < OVERHEAD or not head.startswith(MAGIC):
        return None
    length: int = _HEAD.unpack_from(head)[1]
    return length


def find_records(blob: bytes, number: int, offset: int) -> Iterator[tuple[int, bytes]]:
    """Every undamaged record at or behind `offset`, as (offset, body), whatever lies between."""
    while (offset := blob.find(MAGIC, offset)) >= 0:
        body = decode_record(blob, number, offset)
        if body is None:
            offset += 1
        else:
            yield offset, body
            offset += OVERHEAD + len(body)


def _checksum(number: int, offset: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(_PLACE.pack(number, offset, len(body))))
