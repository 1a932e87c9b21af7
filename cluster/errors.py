"""What can be wrong with a node's storage, and how it ends.

StorageError
├── Damaged          bytes that were promised are not as they were written: it refuses to start
├── Foreign          the directory belongs to another node, cluster, program or format version
├── InUse            another process holds the directory
├── NoDirectory      the directory cannot be made or locked: the node never began
├── DiskFailed       the operating system refused an operation (full, failing): a clean stop
├── NotReadable      the same, for who only looks into a directory
└── NotBootstrapped  an empty directory, and nobody said that this is a new cluster

FailStop             an invariant is broken: this node must send no more messages
└── TakenAway        a file was deleted or moved under the node

Every message says what happened, to which file, and what to do next.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

IS_LOST = (
    "a node that has forgotten what it promised must not come back under its old id; the others go"
    " on without it, and this version cannot put a new one in its place"
)
"""What is to be done where a node's directory cannot be used any more."""


class StorageError(Exception):
    """The node's storage cannot be used; the message says what to do."""


class Damaged(StorageError):
    """A file does not hold what was written to it, in a place where that cannot be repaired."""

    def __init__(self, path: Path, offset: int, what: str) -> None:
        super().__init__(
            f"{path} is damaged at byte {offset}: {what}. Nothing was changed. "
            f"Keep this directory aside: {IS_LOST}"
        )
        self.path = path
        self.offset = offset
        self.what = what


class Foreign(StorageError):
    """The directory was not written by this node of this cluster in this format."""


class InUse(StorageError):
    """Another process holds the directory's lock."""


_REMEDIES: Final = {
    errno.EMFILE: "allow it more open files (ulimit -n)",
    errno.ENFILE: "allow this machine more open files",
    errno.EACCES: "let it read and write there",
    errno.EPERM: "let it read and write there",
    errno.EROFS: "let it write there",
}
"""Where it is not the disk that refuses."""


class DiskFailed(StorageError):
    """An operation on a file failed; nothing that was reported as durable is lost."""

    def __init__(self, operation: str, path: Path, reason: str, remedy: str | None = None) -> None:
        super().__init__(
            f"cannot {operation} {path}: {reason}. The node stops with what was durable intact; "
            f"{remedy or 'free or replace the disk'} and start it again"
        )
        self.operation = operation
        self.path = path
        self.reason = reason

    @classmethod
    def by(cls, error: OSError, operation: str, path: Path) -> DiskFailed:
        """What the operating system refused."""
        number = error.errno or 0
        return cls(operation, path, os.strerror(number), _REMEDIES.get(number))


class NotReadable(StorageError):
    """What was to be looked into cannot be read; nothing is known of it."""

    def __init__(self, refused: DiskFailed) -> None:
        super().__init__(f"cannot {refused.operation} {refused.path}: {refused.reason}")


class NoDirectory(StorageError):
    """The operating system refuses the directory itself; nothing was read or written."""

    def __init__(self, path: Path, refused: DiskFailed) -> None:
        super().__init__(
            f"cannot {refused.operation} {refused.path}: {refused.reason}. "
            f"Give the node a data directory that it may write, or leave to write in {path}"
        )


class NotBootstrapped(StorageError):
    """An empty directory: a node that forgot its votes must not come back under its old id."""


class FailStop(Exception):
    """An invariant is broken: this node must not send another message."""


class TakenAway(FailStop):
    """Somebody deleted or moved a file under the node: no start would find what was synced."""


def in_words(error: BaseException) -> str:
    """What an error says, or is: memory that is used up, for example, says nothing."""
    return str(error) or type(error).__name__
