"""PosixDisk does what the Disk protocol says, and says what failed and where."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import DiskFailed, InUse, StorageError
from cluster.storage.disk import Disk, File, PosixDisk, read_file
from tests.memory_disk import MemoryDisk

DISK: Disk = PosixDisk()


def make(path: Path, content: bytes = b"") -> File:
    file = DISK.create(path)
    file.write(0, content)
    return file


def test_bytes_are_read_where_they_were_written(tmp_path: Path) -> None:
    file = make(tmp_path / "f", b"0123456789")
    file.write(3, b"abc")
    file.write(12, b"z")
    assert file.size() == 13
    assert file.read(2, 5) == b"2abc6"
    assert file.read(9, 100) == b"9\0\0z"
    assert file.read(13, 1) == b""
    file.truncate(4)
    file.sync()
    file.close()
    assert read_file(DISK, tmp_path / "f", 100) == b"012a"
    assert read_file(DISK, tmp_path / "f", 3) == b"012"


def test_names_are_made_renamed_removed_and_listed_in_order(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert not DISK.exists(home)
    DISK.make_directory(home)
    DISK.make_directory(home)
    for name in ("b", "a", "c"):
        make(home / name, name.encode()).close()
    DISK.rename(home / "a", home / "c")
    DISK.unlink(home / "b")
    DISK.sync_directory(home)
    assert DISK.names(home) == ["c"]
    assert read_file(DISK, home / "c", 100) == b"a"
    assert DISK.exists(home / "c")


def test_a_sync_asks_the_kernel_for_this_very_file_or_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No test can cut the power: without these calls nothing else here would fail."""
    synced: list[tuple[str, int]] = []
    descriptors: list[int] = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def spy(descriptor: int, name: str = name, real: Callable[[int], None] = real) -> None:
            synced.append((name, os.fstat(descriptor).st_ino))
            descriptors.append(descriptor)
            real(descriptor)

        monkeypatch.setattr(os, name, spy)
    file = make(tmp_path / "f", b"x")
    file.sync()
    DISK.sync_directory(tmp_path)
    file.close()
    inodes = [(tmp_path / "f").stat().st_ino, tmp_path.stat().st_ino]
    assert synced == list(zip(["fdatasync", "fsync"], inodes, strict=True))
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_what_the_system_took_only_in_part_is_written_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, piece, at: real(fd, piece[:3], at))
    file = make(tmp_path / "f", b"....")
    file.write(2, b"0123456789")
    file.close()
    assert read_file(DISK, tmp_path / "f", 100) == b"..0123456789"


def test_what_the_system_gave_only_in_part_is_read_to_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(tmp_path / "f", b"0123456789")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, min(size, 3), at))
    assert file.read(1, 8) == b"12345678"
    assert file.read(4, 100) == b"456789"
    file.close()


def test_an_open_file_outlives_its_name(tmp_path: Path) -> None:
    file = make(tmp_path / "old", b"old")
    make(tmp_path / "new", b"new").close()
    DISK.rename(tmp_path / "new", tmp_path / "old")
    assert file.read(0, 9) == b"old"
    file.close()


def test_what_is_made_is_for_its_owner_only(tmp_path: Path) -> None:
    make(tmp_path / "f").close()
    DISK.lock(tmp_path / "LOCK").close()
    DISK.make_directory(tmp_path / "d")
    for name in ("f", "LOCK", "d"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "operation", ["create", "open", "remove", "list", "sync", "make", "rename", "lock"]
)
def test_every_failure_is_a_disk_failure_that_names_operation_and_file(
    tmp_path: Path, operation: str
) -> None:
    path = tmp_path / "missing" / "f"
    calls: dict[str, Callable[[Path], object]] = {
        "create": DISK.create,
        "open": DISK.open,
        "remove": DISK.unlink,
        "list": DISK.names,
        "sync": DISK.sync_directory,
        "make": DISK.make_directory,
        "rename": lambda path: DISK.rename(path, path),
        "lock": DISK.lock,
    }
    with pytest.raises(DiskFailed, match=f"cannot {operation} .*missing.*No such file") as failure:
        calls[operation](path)
    assert isinstance(failure.value, StorageError)
    assert failure.value.path == path


def test_what_cannot_be_looked_for_is_not_taken_for_missing(tmp_path: Path) -> None:
    with pytest.raises(DiskFailed, match=r"cannot examine .*File name too long"):
        DISK.exists(tmp_path / ("x" * 300))


@pytest.mark.parametrize("operation", ["read", "write", "truncate", "sync", "examine", "close"])
def test_every_failure_of_an_open_file_is_a_disk_failure_too(
    tmp_path: Path, operation: str
) -> None:
    file = make(tmp_path / "f")
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: file.read(0, 1),
        "write": lambda: file.write(0, b"x"),
        "truncate": lambda: file.truncate(0),
        "sync": file.sync,
        "examine": file.size,
        "close": file.close,
    }
    file.close()
    with pytest.raises(DiskFailed, match=f"cannot {operation} .*Bad file descriptor") as failure:
        calls[operation]()
    assert failure.value.path == tmp_path / "f"


def test_a_file_that_was_read_whole_is_closed_again() -> None:
    disk = MemoryDisk()
    disk.create(Path("/f")).close()
    assert read_file(disk, Path("/f"), 100) == b""
    assert not disk.open_files


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free or replace the disk and"),
        (errno.EMFILE, "allow it more open files (ulimit -n) and"),
        (errno.EACCES, "let it read and write there and"),
        (errno.EROFS, "let it write there and"),
    ],
)
def test_what_is_to_be_done_depends_on_what_was_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, "")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DiskFailed, match=re.escape(f"{os.strerror(number)}. The node")) as failure:
        DISK.open(tmp_path / "f")
    assert remedy in str(failure.value)


def test_a_pipe_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f")
    with pytest.raises(DiskFailed, match=r"it is a pipe. .* put the file back there"):
        DISK.open(tmp_path / "f")


def test_create_never_opens_what_exists(tmp_path: Path) -> None:
    make(tmp_path / "f", b"precious").close()
    with pytest.raises(DiskFailed, match="exists"):
        DISK.create(tmp_path / "f")
    assert read_file(DISK, tmp_path / "f", 100) == b"precious"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_s15_a_full_disk_is_an_error_and_not_a_signal() -> None:
    file = DISK.open(Path("/dev/full"))
    with pytest.raises(DiskFailed, match="No space left on device"):
        file.write(0, b"x")
    file.close()


def test_s18_a_second_lock_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    lock = DISK.lock(tmp_path / "LOCK")
    with pytest.raises(InUse, match="another process"):
        DISK.lock(tmp_path / "LOCK")
    lock.close()
    DISK.lock(tmp_path / "LOCK").close()


@pytest.mark.parametrize(
    ("code", "kind", "what"),
    [
        (errno.ENOLCK, DiskFailed, r"cannot lock .*LOCK.*No locks available"),
        (errno.EWOULDBLOCK, InUse, "another process"),
    ],
)
def test_a_file_system_that_cannot_lock_is_a_disk_failure_and_not_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], what: str
) -> None:
    """As a network file system without a lock server. In either case what was opened is closed."""
    opened: list[int] = []

    def cannot(descriptor: int, _: int) -> None:
        opened.append(descriptor)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", cannot)
    with pytest.raises(kind, match=what):
        DISK.lock(tmp_path / "LOCK")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_s18_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from cluster.storage.disk import PosixDisk\n"
            "lock = PosixDisk().lock(Path(sys.argv[1])); print('held', flush=True); input()",
            str(tmp_path / "LOCK"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InUse):
            DISK.lock(tmp_path / "LOCK")
        child.kill()
    DISK.lock(tmp_path / "LOCK").close()
