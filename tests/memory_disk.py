"""A disk in memory that forgets what was not synced, fills up, and stops at any operation.

`MemoryDisk` counts the operations that change something. From the one numbered `stop_at` on it
raises `PowerCut` (a write is done to a part first), at `fail_at` and ever after `DiskFailed`.
`after_kill` is the disk that a new process finds after kill -9; `after_power_loss` has any part
of what was not synced, drawn from a seed. `open_files` are those that nobody has closed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import DiskFailed, InUse
from cluster.storage.disk import File

_SECTOR = 64
"""Writes are torn at multiples of this; smaller than life, so that small files tear, too."""


class PowerCut(BaseException):
    """The process does not get any further."""


@dataclass(eq=False)
class _Content:
    now: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes written) or (size, None) for a cut."""
    locked: bool = False


class MemoryDisk:
    """`cluster.storage.disk.Disk`."""

    def __init__(self) -> None:
        self.files: dict[Path, _Content] = {}
        self.directories: set[Path] = {Path("/")}
        self._durable_names: dict[Path, _Content] = {}
        self._pending_names: list[tuple[Path, _Content | None, Path | None]] = []
        """(name, content or None for a removal, the name it had before a rename)."""
        self.open_files: set[MemoryFile] = set()
        self.operations = 0
        self.stop_at = self.fail_at = 0

    # --- what a crash leaves

    def after_kill(self) -> MemoryDisk:
        """Everything that was written, and no locks. What was not synced still is not."""
        copies: dict[_Content, _Content] = {}

        def copy(content: _Content) -> _Content:
            if content not in copies:
                pending = list(content.pending)
                copies[content] = _Content(bytearray(content.now), content.durable, pending)
            return copies[content]

        other = MemoryDisk()
        other.directories = set(self.directories)
        other.files = {path: copy(content) for path, content in self.files.items()}
        other._durable_names = {path: copy(c) for path, c in self._durable_names.items()}
        other._pending_names = [
            (path, None if content is None else copy(content), before)
            for path, content, before in self._pending_names
        ]
        return other

    def after_power_loss(self, draw: random.Random) -> MemoryDisk:
        """What was synced, a beginning of the changes of names, and any parts of other writes."""
        names = dict(self._durable_names)
        for path, content, before in self._pending_names[
            : draw.randint(0, len(self._pending_names))
        ]:
            if before is not None:
                names.pop(before, None)
            names.pop(path, None)
            if content is not None:
                names[path] = content
        other = MemoryDisk()
        other.directories = set(self.directories)
        for path, content in names.items():
            kept = _some_of(content, draw)
            other.files[path] = _Content(bytearray(kept), kept)
        other._durable_names = dict(other.files)
        return other

    # --- Disk

    def exists(self, path: Path) -> bool:
        return path in self.files or path in self.directories

    def names(self, directory: Path) -> list[str]:
        return sorted(
            path.name for path in [*self.files, *self.directories] if path.parent == directory
        )

    def make_directory(self, path: Path) -> None:
        self.step("make", path)
        self.directories.add(path)

    def sync_directory(self, path: Path) -> None:
        self.step("sync", path)
        self._durable_names = dict(self.files)
        self._pending_names = []

    def create(self, path: Path) -> File:
        self.step("create", path)
        if path in self.files:
            raise DiskFailed("create", path, "it exists")
        self._name(path, _Content())
        return MemoryFile(self, path, self.files[path])

    def open(self, path: Path) -> File:
        if path not in self.files:
            raise DiskFailed("open", path, "there is none")
        return MemoryFile(self, path, self.files[path])

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename", source)
        self._name(target, self.files.pop(source), source)

    def unlink(self, path: Path) -> None:
        self.step("remove", path)
        if path not in self.files:
            raise DiskFailed("remove", path, "there is none")
        del self.files[path]
        self._pending_names.append((path, None, None))

    def lock(self, path: Path) -> File:
        if path not in self.files:
            self.step("lock", path)
            self._name(path, _Content())
        content = self.files[path]
        if content.locked:
            raise InUse(f"{path.parent} is in use")
        content.locked = True
        return MemoryFile(self, path, content)

    def _name(self, path: Path, content: _Content, before: Path | None = None) -> None:
        self.files[path] = content
        self._pending_names.append((path, content, before))

    def step(self, operation: str, path: Path) -> None:
        """One operation that changes something begins."""
        self.operations += 1
        if 0 < self.stop_at <= self.operations:
            raise PowerCut
        if 0 < self.fail_at <= self.operations:
            raise DiskFailed(operation, path, "No space left on device")


class MemoryFile:
    """`cluster.storage.disk.File`."""

    def __init__(self, disk: MemoryDisk, path: Path, content: _Content) -> None:
        self._disk = disk
        self._path = path
        self._content = content
        disk.open_files.add(self)

    def read(self, offset: int, size: int) -> bytes:
        self._check()
        return bytes(self._content.now[offset : offset + size])

    def write(self, offset: int, piece: bytes) -> None:
        self._check()
        try:
            self._disk.step("write", self._path)
        except (PowerCut, DiskFailed):
            self._write(offset, piece[: len(piece) // 2])
            raise
        self._write(offset, piece)

    def _write(self, offset: int, piece: bytes) -> None:
        _change(self._content.now, offset, piece)
        self._content.pending.append((offset, piece))

    def truncate(self, size: int) -> None:
        self._check()
        self._disk.step("truncate", self._path)
        _change(self._content.now, size, None)
        self._content.pending.append((size, None))

    def sync(self) -> None:
        self._check()
        self._disk.step("sync", self._path)
        durable = bytearray(self._content.durable)
        for offset, piece in self._content.pending:
            _change(durable, offset, piece)
        self._content.durable = bytes(durable)
        self._content.pending = []

    def size(self) -> int:
        return len(self._content.now)

    def close(self) -> None:
        self._check()
        self._disk.open_files.remove(self)
        self._content.locked = False

    def _check(self) -> None:
        """The number of a closed file is soon another's."""
        assert self in self._disk.open_files, f"{self._path} is closed"


def _change(content: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        del content[offset:]
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(piece)] = piece


def _some_of(content: _Content, draw: random.Random) -> bytes:
    """The synced bytes with any of the sectors that were written since."""
    result = bytearray(content.durable)
    for offset, piece in content.pending:
        if piece is None:
            if draw.random() < 0.5:
                _change(result, offset, None)
            continue
        how_much = draw.choice([0.0, 0.5, 0.9, 1.0])
        for start in range(0, len(piece), _SECTOR):
            if draw.random() < how_much:
                _change(result, offset + start, piece[start : start + _SECTOR])
    return bytes(result)
