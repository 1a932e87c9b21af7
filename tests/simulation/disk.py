"""A disk that a process can die on at any operation, that loses power, fills up and rots.

`SimDisk` is the `cluster.storage.disk.Disk` of one machine for the whole run. Every operation that
changes something first asks `before`, which may raise: the process then got no further (of a write
any beginning is there). What a crash leaves:

- `kill`: everything that was written; no locks.
- `lose_power`: of every directory the names up to some point after its last sync; of every file
  the synced bytes, with any sectors of what was written since.

A sync that fails loses what it was to make durable: it is read as long as the machine runs, and no
later sync brings it to the disk, as the system takes those pages for written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from cluster.errors import DiskFailed, InUse
from cluster.storage.disk import File

SECTOR = 512


class _Content:
    __slots__ = ("durable", "locked", "now", "pending")

    def __init__(self) -> None:
        self.now = bytearray()
        self.durable = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []
        """(offset, bytes) of a write, (size, None) of a cut, in order, since the last sync."""
        self.locked = False

    def put(self, offset: int, piece: bytes) -> None:
        """A write that the disk has taken and not made durable yet."""
        _change(self.now, offset, piece)
        self.pending.append((offset, piece))


def _nothing(_operation: str, _path: Path) -> None:
    pass


def _ignore(_: str) -> None:
    pass


class SimDisk:
    """See the top of the file."""

    def __init__(self) -> None:
        self.before: Callable[[str, Path], None] = _nothing
        self.operations = 0
        self.generation = 0
        """Counts crashes: files opened before one are dead."""
        self.wrong: Callable[[Path, int, bytes], str | None] | None = None
        """Gets the next write instead of the disk; says what it did, or None: the disk has it."""
        self.wronged: Callable[[str], None] = _ignore
        """Told what `wrong` said."""
        self.is_unreadable = False
        """What is asked for does not come."""
        self.opened: dict[SimFile, Path] = {}
        """Files that a program has open."""
        self._files: dict[Path, _Content] = {}
        self._directories: dict[Path, None] = {Path("/"): None}
        self._durable_names: dict[Path, _Content] = {}
        self._pending_names: list[tuple[Path, _Content | None, Path | None]] = []
        """(name, content or None of a removal, the name before a rename)."""

    # --- crashes and decay

    def kill(self) -> None:
        """The process is gone."""
        self.generation += 1
        self.opened.clear()
        for content in self._files.values():
            content.locked = False

    def lose_power(self, draw: Random) -> None:
        """The machine is gone, and with it what the disk had not taken."""
        self.generation += 1
        self.opened.clear()
        names = dict(self._durable_names)
        for directory in dict.fromkeys(path.parent for path, _, _ in self._pending_names):
            renamed = [each for each in self._pending_names if each[0].parent == directory]
            for each in renamed[: draw.randint(0, len(renamed))]:
                _rename(names, *each)
        self._files = names
        self._durable_names = dict(names)
        self._pending_names = []
        for content in names.values():
            for change in content.pending:
                _apply_torn(content.durable, change, draw)
            content.now = bytearray(content.durable)
            content.pending = []
            content.locked = False

    def rot(self, draw: Random) -> str:
        """Flip one bit somewhere; says where. "" if there is nothing yet."""
        paths = [path for path, content in self._files.items() if content.now]
        if not paths:
            return ""
        path = draw.choice(paths)
        content = self._files[path]
        at = draw.randrange(len(content.now))
        bit = 1 << draw.randrange(8)
        content.now[at] ^= bit
        if at < len(content.durable):
            content.durable[at] ^= bit
        return f"{path}: bit {bit} of byte {at} of {len(content.now)}"

    def lose_next_write(self) -> None:
        """The next write is said to be done, and is not."""
        self.wrong = lambda path, offset, piece: f"{path}: {len(piece)} bytes at {offset} are lost"

    def misdirect_next_write(self, draw: Random) -> None:
        """The next write lands elsewhere: in another file, or in another place of the same.

        Not in the watermark, nor the watermark's own: with that and what it guards gone at once,
        nothing can tell.
        """

        def misdirect(path: Path, offset: int, piece: bytes) -> str | None:
            others = [
                other
                for other, content in self._files.items()
                if len(content.now) > SECTOR and other.name != "watermark"
            ]
            if not others or path.name == "watermark":
                return None
            other = draw.choice(others)
            content = self._files[other]
            at = draw.randrange(len(content.now) // SECTOR) * SECTOR
            if (other, at) == (path, offset):
                return None
            content.put(at, piece)
            return f"{path}: {len(piece)} bytes for {offset} went to {other}, {at}"

        self.wrong = misdirect

    # --- Disk

    def exists(self, path: Path) -> bool:
        return path in self._files or path in self._directories

    def names(self, directory: Path) -> list[str]:
        everything = [*self._files, *self._directories]
        return sorted(path.name for path in everything if path.parent == directory != path)

    def make_directory(self, path: Path) -> None:
        self._step("make", path)
        self._directories[path] = None

    def sync_directory(self, path: Path) -> None:
        self._step("sync", path)
        for change in self._pending_names:
            if change[0].parent == path:
                _rename(self._durable_names, *change)
        self._pending_names = [each for each in self._pending_names if each[0].parent != path]

    def create(self, path: Path) -> File:
        self._step("create", path)
        if path in self._files:
            raise DiskFailed("create", path, "it exists")
        self._name(path, _Content(), None)
        return SimFile(self, path, self._files[path])

    def open(self, path: Path) -> File:
        if path not in self._files:
            raise DiskFailed("open", path, "there is none")
        return SimFile(self, path, self._files[path])

    def rename(self, source: Path, target: Path) -> None:
        self._step("rename", source)
        self._name(target, self._files.pop(source), source)

    def unlink(self, path: Path) -> None:
        self._step("remove", path)
        if path not in self._files:
            raise DiskFailed("remove", path, "there is none")
        del self._files[path]
        self._pending_names.append((path, None, None))

    def lock(self, path: Path) -> File:
        if path not in self._files:
            self._step("lock", path)
            self._name(path, _Content(), None)
        content = self._files[path]
        if content.locked:
            raise InUse(f"{path.parent} is in use")
        content.locked = True
        return SimFile(self, path, content)

    def _name(self, path: Path, content: _Content, before: Path | None) -> None:
        self._files[path] = content
        self._pending_names.append((path, content, before))

    def _step(self, operation: str, path: Path) -> None:
        self.operations += 1
        self.before(operation, path)


class SimFile:
    """`cluster.storage.disk.File`."""

    def __init__(self, disk: SimDisk, path: Path, content: _Content) -> None:
        self._disk = disk
        self._path = path
        self._content = content
        self._generation = disk.generation
        disk.opened[self] = path

    def read(self, offset: int, size: int) -> bytes:
        if self._disk.is_unreadable:
            raise DiskFailed("read", self._path, "Input/output error")
        return bytes(self._content.now[offset : offset + size])

    def write(self, offset: int, piece: bytes) -> None:
        try:
            self._disk._step("write", self._path)
        except BaseException:
            if self._generation == self._disk.generation:  # a full disk takes a part
                self._write(offset, piece[: len(piece) // 2])
            raise
        self._write(offset, piece)

    def _write(self, offset: int, piece: bytes) -> None:
        disk = self._disk
        if disk.wrong is not None:
            done = disk.wrong(self._path, offset, piece)
            if done is not None:
                disk.wrong = None
                disk.wronged(done)
                return
        self._content.put(offset, piece)

    def truncate(self, size: int) -> None:
        self._disk._step("truncate", self._path)
        _change(self._content.now, size, None)
        self._content.pending.append((size, None))

    def sync(self) -> None:
        content = self._content
        try:
            self._disk._step("sync", self._path)
        except DiskFailed:
            content.pending = [change for change in content.pending if change[1] is None]
            raise
        for offset, piece in content.pending:
            _change(content.durable, offset, piece)
        content.pending = []

    def size(self) -> int:
        return len(self._content.now)

    def close(self) -> None:
        if self._generation == self._disk.generation:
            self._content.locked = False
            self._disk.opened.pop(self, None)


def _rename(
    names: dict[Path, _Content], path: Path, content: _Content | None, before: Path | None
) -> None:
    if before is not None:
        names.pop(before, None)
    names.pop(path, None)
    if content is not None:
        names[path] = content


def _change(content: bytearray, offset: int, piece: bytes | None) -> None:
    if piece is None:
        del content[offset:]
        return
    if offset > len(content):
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(piece)] = piece


def _apply_torn(content: bytearray, change: tuple[int, bytes | None], draw: Random) -> None:
    """Any part of a change that was under way, sector by sector."""
    offset, piece = change
    if piece is None:
        if draw.random() < 0.5:
            _change(content, offset, None)
        return
    share = draw.choice((0.0, 0.5, 0.9, 1.0))
    at = 0
    while at < len(piece):
        end = min(len(piece), at + SECTOR - (offset + at) % SECTOR)
        if draw.random() < share:
            _change(content, offset + at, piece[at:end])
        at = end
