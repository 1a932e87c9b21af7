"""A file that is one checksummed record, made or replaced in one durable step.

The new one is written and synced beside it, as `NAME.new`, which stays there if the process ends
meanwhile, and is renamed.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Final

from cluster.errors import Damaged
from cluster.storage.disk import Disk, read_file
from cluster.storage.records import OVERHEAD, decode_record, encode_record

ASIDE: Final = ".new"

_MOST_BYTES: Final = 64 << 10
"""Of such a file: nine nodes' ids and births take less than one."""


def read_small_file(path: Path, number: int, disk: Disk) -> bytes:
    """What was put into the file under the same number. Raises Damaged, DiskFailed."""
    blob = read_file(disk, path, _MOST_BYTES)
    body = decode_record(blob, number, 0)
    if body is None or len(blob) != len(body) + OVERHEAD:
        raise Damaged(path, 0, "its checksum does not fit")
    return body


def put_small_file(path: Path, number: int, body: bytes, disk: Disk) -> None:
    """`number` tells files of different kinds apart. Raises DiskFailed."""
    aside = path.with_name(path.name + ASIDE)
    if disk.exists(aside):
        disk.unlink(aside)
    with closing(disk.create(aside)) as file:
        file.write(0, encode_record(number, 0, body))
        file.sync()
    disk.rename(aside, path)
    disk.sync_directory(path.parent)
