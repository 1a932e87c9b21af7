"""A data directory belongs to one process at a time and to one node for ever."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import Damaged, DiskFailed, Foreign, InUse, NoDirectory, NotBootstrapped
from cluster.storage.directory import Directory, Identity, open_directory
from cluster.storage.disk import Disk, PosixDisk
from cluster.storage.fellows import BIRTH_BYTES
from cluster.storage.journal import Journal
from cluster.storage.journal_recovery import segment_path
from cluster.storage.records import decode_record, encode_record
from tests.memory_disk import MemoryDisk, PowerCut

HOME = Path("/home/n1")
N1 = Identity("c", "n1", ("n1", "n2", "n3"))
RANDOM = random.Random(1)


def start(disk: Disk, path: Path = HOME, *, node: str = "n1", bootstrap: bool = False) -> Directory:
    identity = N1._replace(node=node)
    return open_directory(path, identity, bootstrap=bootstrap, disk=disk, random=RANDOM)


def bootstrapped(disk: Disk, path: Path = HOME) -> None:
    """A directory whose node has run, and promised something."""
    directory = start(disk, path, bootstrap=True)
    journal = Journal.open(directory.journal, cluster="c", node="n1", disk=disk)
    journal.set_vote(1, "n2")
    journal.close()
    directory.close()


def test_s18_an_empty_directory_is_refused_without_bootstrap() -> None:
    disk = MemoryDisk()
    with pytest.raises(NotBootstrapped, match=r"--bootstrap.*must not come back under its old id"):
        start(disk)
    assert disk.operations == 0, "nothing was made"


def test_s18_a_wiped_directory_is_refused_under_the_old_id(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    disk = PosixDisk()
    bootstrapped(disk, path)
    start(disk, path).close()
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    with pytest.raises(NotBootstrapped, match="cannot put a new one in its place"):
        start(disk, path)


def test_bootstrap_makes_a_directory_that_opens_without_it_and_changes_nothing_later() -> None:
    disk = MemoryDisk()
    first = start(disk, bootstrap=True)
    assert first.bootstrapped
    assert len({first.journal, first.snapshots, first.fellows}) == 3
    first.close()
    files = {path: bytes(content.now) for path, content in disk.files.items()}
    for bootstrap in (False, True):
        again = start(disk, bootstrap=bootstrap)
        assert not again.bootstrapped
        assert again.birth == first.birth
        again.close()
    assert files == {path: bytes(content.now) for path, content in disk.files.items()}


def test_s18_another_nodes_or_clusters_directory_is_refused_even_with_bootstrap() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    for bootstrap in (False, True):
        with pytest.raises(Foreign, match="belongs to node n1 of cluster c, not to node n2"):
            start(disk, node="n2", bootstrap=bootstrap)
        with pytest.raises(Foreign, match="not to node n1 of cluster d"):
            open_directory(
                HOME, N1._replace(cluster="d"), bootstrap=bootstrap, disk=disk, random=RANDOM
            )
    start(disk).close()


@pytest.mark.parametrize("nodes", [("n1",), ("n1", "n2", "n4"), ("n1", "n2", "n3", "n4", "n5")])
def test_settings_that_name_other_nodes_than_the_first_are_refused(nodes: tuple[str, ...]) -> None:
    """A majority of them may know nothing of what a majority of the first ones acknowledged."""
    disk = MemoryDisk()
    bootstrapped(disk)
    for bootstrap in (False, True):
        with pytest.raises(Foreign, match=f"cluster of n1, n2, n3, .* name {', '.join(nodes)}:"):
            open_directory(
                HOME, N1._replace(nodes=nodes), bootstrap=bootstrap, disk=disk, random=RANDOM
            )
    start(disk).close()


def test_settings_may_name_the_same_nodes_in_any_order() -> None:
    assert Identity.of("c", "n1", ["n3", "n1", "n2"]) == N1


def test_a_directory_bootstrapped_once_more_has_another_birth() -> None:
    """By it the others know that it is not the one that they heard promises from."""
    births = [start(MemoryDisk(), bootstrap=True).birth for _ in range(2)]
    assert births[0] != births[1]
    assert [len(birth) for birth in births] == [BIRTH_BYTES] * 2


def test_the_directories_above_it_are_made(tmp_path: Path) -> None:
    directory = start(PosixDisk(), tmp_path / "var" / "lib" / "n1", bootstrap=True)
    assert directory.journal.is_dir()
    directory.close()


def test_a_directory_of_something_else_is_refused_and_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"precious")
    with pytest.raises(Foreign, match=r"holiday\.jpg"):
        start(PosixDisk(), tmp_path, bootstrap=True)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_the_root_of_a_fresh_volume_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    directory = start(PosixDisk(), tmp_path, bootstrap=True)
    assert directory.bootstrapped
    directory.close()


def test_s18_a_second_process_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "n1"
    bootstrapped(PosixDisk(), path)
    code = (
        "import random, sys; from pathlib import Path\n"
        "from cluster.storage.directory import Identity, open_directory\n"
        "from cluster.storage.disk import PosixDisk\n"
        "identity = Identity('c', 'n1', ('n1', 'n2', 'n3'))\n"
        "how = {'bootstrap': False, 'disk': PosixDisk(), 'random': random.Random(1)}\n"
        "held = open_directory(Path(sys.argv[1]), identity, **how)\n"
        "print('held', flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(InUse, match="in use by another process"):
            start(PosixDisk(), path)
        child.kill()
    start(PosixDisk(), path).close()


def test_the_lock_is_given_up_when_opening_fails() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    with pytest.raises(Foreign):
        start(disk, node="n2")
    start(disk).close()


def test_a_crash_at_any_operation_of_a_bootstrap_is_recovered_by_doing_it_again() -> None:
    whole = MemoryDisk()
    start(whole, bootstrap=True)
    draw = random.Random(1)
    for stop_at in range(1, whole.operations + 1):
        for power in (False, True):
            disk = MemoryDisk()
            disk.stop_at = stop_at
            with pytest.raises(PowerCut):
                start(disk, bootstrap=True)
            disk = disk.after_power_loss(draw) if power else disk.after_kill()
            if HOME / "identity" not in disk.files:
                with pytest.raises(NotBootstrapped):
                    start(disk)
                start(disk, bootstrap=True).close()
            birth = start(disk)
            birth.close()
            assert not disk.open_files
            for _ in range(20):
                again = start(disk.after_power_loss(draw))
                assert again.birth == birth.birth
                again.close()


def test_a_disk_that_fails_at_any_operation_of_a_bootstrap_leaves_it_repeatable() -> None:
    whole = MemoryDisk()
    start(whole, bootstrap=True)
    refused = []
    for fail_at in range(1, whole.operations + 1):
        disk = MemoryDisk()
        disk.fail_at = fail_at
        with pytest.raises((DiskFailed, NoDirectory)) as caught:
            start(disk, bootstrap=True)
        refused.append(caught.type)
        disk.fail_at = 0
        start(disk, bootstrap=True).close()
    began = refused.index(DiskFailed)
    assert began > 0
    assert NoDirectory not in refused[began:], "once the lock is held it is the disk that fails"


def test_a_journal_without_an_identity_is_refused_even_with_bootstrap() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    del disk.files[HOME / "identity"]
    for bootstrap in (False, True):
        with pytest.raises(Damaged, match="missing"):
            start(disk, bootstrap=bootstrap)


def test_one_entry_in_a_journal_is_more_than_an_interrupted_bootstrap_leaves() -> None:
    disk = MemoryDisk()
    directory = start(disk, bootstrap=True)
    journal = Journal.open(directory.journal, cluster="c", node="n1", disk=disk)
    journal.append(b"", 1, 0)
    journal.close()
    directory.close()
    del disk.files[HOME / "identity"]
    with pytest.raises(Damaged, match="missing"):
        start(disk, bootstrap=True)


def test_a_snapshot_without_an_identity_is_refused_even_with_bootstrap() -> None:
    disk = MemoryDisk()
    directory = start(disk, bootstrap=True)
    disk.create(directory.snapshots / "snapshot").close()
    directory.close()
    del disk.files[HOME / "identity"]
    with pytest.raises(Damaged, match="missing"):
        start(disk, bootstrap=True)


def test_an_identity_without_its_journal_is_refused() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    del disk.files[segment_path(HOME / "journal", 1)]
    with pytest.raises(Damaged, match="what this node promised"):
        start(disk)


def test_an_identity_without_the_journals_directory_is_refused(tmp_path: Path) -> None:
    disk = PosixDisk()
    bootstrapped(disk, tmp_path / "n1")
    shutil.rmtree(tmp_path / "n1" / "journal")
    with pytest.raises(Damaged, match="what this node promised"):
        start(disk, tmp_path / "n1")


def test_a_flipped_bit_in_the_identity_is_refused() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    content = disk.files[HOME / "identity"].now
    for bit in range(len(content) * 8):
        content[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Damaged):
            start(disk, bootstrap=True)
        content[bit // 8] ^= 1 << (bit % 8)
    start(disk).close()


def test_another_format_version_is_refused() -> None:
    disk = MemoryDisk()
    bootstrapped(disk)
    content = disk.files[HOME / "identity"]
    body = decode_record(bytes(content.now), 0, 0)
    assert body is not None
    newer = body.replace(b"\xa6format\x03", b"\xa6format\x04")
    assert newer != body
    content.now[:] = encode_record(0, 0, newer)
    with pytest.raises(Foreign, match="format 4"):
        start(disk)
