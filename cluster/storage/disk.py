"""The file operations that the durable parts of a node stand on.

Rules:
- the journal, the snapshots and the data directory touch the file system only through a `Disk`,
  so that a simulated one can crash between any two operations, drop what was not synced, fill up
  or rot;
- every failure is a `DiskFailed` (a lock that is held: `InUse`); nothing else is raised;
- a `File` has no position of its own: every read and write says where.

What is durable when: the bytes and the size of a file after its `sync`; the name of a file (made,
renamed, removed) after `sync_directory` of its directory. A process that is killed loses nothing
that was written.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from cluster.errors import DiskFailed, InUse


class File(Protocol):
    """One open file. `write` and `sync` may be called from different threads."""

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""

    def write(self, offset: int, piece: bytes) -> None:
        """Write all of `piece` at `offset`; after a failure any part of it may be there."""

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes."""

    def sync(self) -> None:
        """Return once every byte written before the call is on stable storage."""

    def size(self) -> int:
        """The size in bytes."""

    def close(self) -> None:
        """Close the file, and give up its lock if it holds one."""


class Disk(Protocol):
    """The operations on names. Each blocks."""

    def exists(self, path: Path) -> bool:
        """Is there a file or a directory of this name?"""

    def names(self, directory: Path) -> list[str]:
        """The names in a directory, sorted."""

    def make_directory(self, path: Path) -> None:
        """Make one directory; its parent exists, it may exist itself."""

    def sync_directory(self, path: Path) -> None:
        """Return once every name made, renamed or removed in the directory is on stable storage."""

    def create(self, path: Path) -> File:
        """A new, empty file, open for reading and writing; fails if the name exists."""

    def open(self, path: Path) -> File:
        """An existing file, open for reading and writing."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name in one step; a file that had this name is replaced."""

    def unlink(self, path: Path) -> None:
        """Remove a file's name; who has it open keeps it."""

    def lock(self, path: Path) -> File:
        """Open a file (made if missing) with an exclusive lock, or raise `InUse` at once.

        The lock ends with `close` or with the process.
        """


def read_file(disk: Disk, path: Path, most: int) -> bytes:
    """What is in a file, its first `most` bytes at most: a sparse one may be larger than memory."""
    with closing(disk.open(path)) as file:
        return file.read(0, min(most, file.size()))


class PosixFile:
    """`File` on a file descriptor."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def read(self, offset: int, size: int) -> bytes:
        pieces = []
        with _failures("read", self._path):
            while size > 0 and (piece := os.pread(self._descriptor, size, offset)):
                pieces.append(piece)
                offset += len(piece)
                size -= len(piece)
        return b"".join(pieces)

    def write(self, offset: int, piece: bytes) -> None:
        with _failures("write", self._path):
            written = os.pwrite(self._descriptor, piece, offset)
            while written < len(piece):  # a nearly full disk takes a part; the next call says why
                written += os.pwrite(self._descriptor, piece[written:], offset + written)

    def truncate(self, size: int) -> None:
        with _failures("truncate", self._path):
            os.ftruncate(self._descriptor, size)

    def sync(self) -> None:
        with _failures("sync", self._path):
            os.fdatasync(self._descriptor)

    def size(self) -> int:
        with _failures("examine", self._path):
            return os.fstat(self._descriptor).st_size

    def close(self) -> None:
        with _failures("close", self._path):
            os.close(self._descriptor)


class PosixDisk:
    """`Disk` on the operating system's files."""

    def exists(self, path: Path) -> bool:
        with _failures("examine", path):
            return path.exists()

    def names(self, directory: Path) -> list[str]:
        with _failures("list", directory):
            return sorted(os.listdir(directory))

    def make_directory(self, path: Path) -> None:
        with _failures("make", path):
            path.mkdir(mode=0o700, exist_ok=True)

    def sync_directory(self, path: Path) -> None:
        with _failures("sync", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def create(self, path: Path) -> File:
        return self._open(path, os.O_CREAT | os.O_EXCL, "create")

    def open(self, path: Path) -> File:
        return self._open(path, 0, "open")

    def rename(self, source: Path, target: Path) -> None:
        with _failures("rename", source):
            os.rename(source, target)

    def unlink(self, path: Path) -> None:
        with _failures("remove", path):
            os.unlink(path)

    def lock(self, path: Path) -> File:
        with _failures("lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise InUse(
                    f"{path.parent} is in use by another process: stop that one first, "
                    "or give this node a directory of its own"
                ) from None
            except OSError:
                os.close(descriptor)
                raise
        return PosixFile(path, descriptor)

    @staticmethod
    def _open(path: Path, flags: int, operation: str) -> File:
        return open_file(path, os.O_RDWR | flags, operation)


def open_file(path: Path, flags: int, operation: str = "open") -> PosixFile:
    """No pipe: who opens one to read waits for somebody to write into it."""
    with _failures(operation, path):
        descriptor = os.open(path, os.O_CLOEXEC | os.O_NONBLOCK | flags, 0o600)
    if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DiskFailed(operation, path, "it is a pipe", "put the file back there")
    return PosixFile(path, descriptor)


@contextmanager
def _failures(operation: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFailed.by(error, operation, path) from error
