"""A snapshot is complete and verified, or it is not there."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from cluster.errors import Damaged, DiskFailed, Foreign
from cluster.storage.disk import PosixDisk
from cluster.storage.records import MAGIC, encode_record
from cluster.storage.snapshots import (
    Receiving,
    SnapshotMeta,
    SnapshotStore,
    TransferKey,
    read_meta,
    verify_snapshot,
)
from tests.memory_disk import MemoryDisk, MemoryFile, PowerCut

HOME = Path("/snapshots")
KEY = TransferKey("n1", 7, 120, 3)
OTHER = TransferKey("n2", 7, 120, 3)


def meta(last: int = 120) -> SnapshotMeta:
    return SnapshotMeta((b"last", last, 3), (b"previous", last - 1, 3), ("n1", "n2", "n3"))


def chunks(count: int = 5, size: int = 300, seed: int = 0) -> list[bytes]:
    draw = random.Random(seed)
    return [draw.randbytes(size) for _ in range(count)]


def store(disk: MemoryDisk) -> SnapshotStore:
    return SnapshotStore(HOME, disk=disk, cluster="c")


def loaded(snapshots: SnapshotStore) -> tuple[SnapshotMeta, list[bytes]]:
    given: list[bytes] = []
    return snapshots.load(given.append), given


def received(receiving: Receiving) -> tuple[SnapshotMeta, list[bytes]]:
    given: list[bytes] = []
    return receiving.finish(given.append), given


def ship(source: SnapshotStore, receiving: Receiving, piece_size: int = 256) -> None:
    sending = source.send()
    offset = 0
    while offset < sending.size:
        piece = sending.read_piece(offset, piece_size)
        is_last = offset + len(piece) == sending.size
        assert receiving.add(receiving.key, offset, piece, is_last)
        offset += len(piece)
    sending.close()


def test_what_was_written_is_loaded_also_after_a_restart(tmp_path: Path) -> None:
    snapshots = SnapshotStore(tmp_path / "s", disk=PosixDisk())
    assert (snapshots.exists, snapshots.meta) == (False, None)
    assert snapshots.write(meta(), chunks())
    assert (snapshots.exists, snapshots.meta) == (True, meta())
    assert loaded(snapshots) == (meta(), chunks())
    again = SnapshotStore(tmp_path / "s", disk=PosixDisk())
    assert again.meta == meta()
    assert loaded(again) == (meta(), chunks())


def test_no_file_stays_open() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks())
    loaded(snapshots)
    store(disk)
    read_meta(HOME / "snapshot", disk, "c")
    verify_snapshot(HOME / "snapshot", disk, "c")
    assert not disk.open_files
    disk.files[HOME / "snapshot"].now[20] ^= 1
    for fails in (lambda: loaded(snapshots), snapshots.send, lambda: store(disk)):
        with pytest.raises(Damaged):
            fails()
    with pytest.raises(ZeroDivisionError):
        snapshots.write(meta(200), (bytes(1 // each) for each in (1, 0)))
    assert not disk.open_files


def test_the_size_of_the_snapshot_in_place_is_known_however_it_came_there() -> None:
    disks = written, sent = MemoryDisk(), MemoryDisk()
    source, target = map(store, disks)
    assert (source.size, target.size) == (0, 0)
    source.write(meta(), chunks())
    receiving = target.receive(KEY)
    ship(source, receiving)
    received(receiving)
    assert target.size == 0, "it is not in place yet"
    assert receiving.adopt()
    assert source.write(meta(100), chunks(count=50)) is False, "an older one"
    size = len(written.files[HOME / "snapshot"].now)
    assert len(sent.files[HOME / "snapshot"].now) == size > 1_500
    assert not written.open_files | sent.open_files
    assert [each.size for each in (source, target, store(written), store(sent))] == [size] * 4


@pytest.mark.parametrize(
    ("ends", "begins", "said"),
    [
        (None, 0, None),
        (None, 1, None),
        (None, 2, "it is missing, and the journal begins at entry 2"),
        (120, 0, None),
        (120, 120, None),
        (120, 121, "it ends at entry 120, and the journal begins at entry 121"),
    ],
)
def test_a_journal_goes_on_where_the_snapshot_ends_or_before(
    ends: int | None, begins: int, said: str | None
) -> None:
    """It keeps the entry that the snapshot ends with."""
    snapshots = store(MemoryDisk())
    if ends is not None:
        snapshots.write(meta(ends), chunks())
    if said is None:
        snapshots.check_seam(begins)
    else:
        with pytest.raises(Damaged, match=f"{HOME}/snapshot .*{said}"):
            snapshots.check_seam(begins)


def test_a_snapshot_of_nothing_is_a_snapshot() -> None:
    snapshots = store(MemoryDisk())
    assert snapshots.write(meta(), [])
    assert loaded(snapshots) == (meta(), [])


def test_the_same_state_gives_the_same_bytes() -> None:
    disks = MemoryDisk(), MemoryDisk()
    for disk in disks:
        store(disk).write(meta(), chunks())
    assert disks[0].files[HOME / "snapshot"].now == disks[1].files[HOME / "snapshot"].now


def test_s6_a_snapshot_never_replaces_a_newer_one() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(200), chunks(seed=2))
    assert snapshots.write(meta(120), chunks(seed=1)) is False
    other = store(MemoryDisk())
    other.write(meta(150), chunks(seed=3))
    receiving = snapshots.receive(KEY)
    ship(other, receiving)
    assert received(receiving)[0] == meta(150)
    assert receiving.adopt() is False
    assert loaded(snapshots) == (meta(200), chunks(seed=2))
    assert disk.names(HOME) == ["snapshot"], "nothing is left aside"
    assert not disk.open_files


def test_s9_a_crash_at_any_operation_of_a_write_leaves_the_old_or_the_new_snapshot() -> None:
    draw = random.Random(4)
    stops = 0
    while True:
        disk = MemoryDisk()
        snapshots = store(disk)
        snapshots.write(meta(100), chunks(seed=1))
        disk.stop_at = disk.operations + stops + 1
        finished = False
        try:
            snapshots.write(meta(200), chunks(seed=2))
            finished = True
        except PowerCut:
            stops += 1
        for after in (disk.after_kill(), disk.after_power_loss(draw)):
            found = loaded(store(after))
            old, new = (meta(100), chunks(seed=1)), (meta(200), chunks(seed=2))
            assert found == new if finished else found in (old, new)
            assert after.names(HOME) == ["snapshot"], "nothing is left aside"
        if finished:
            break
    assert stops > 8


def test_s15_a_full_disk_while_writing_leaves_the_old_snapshot() -> None:
    fails = 0
    while True:
        disk = MemoryDisk()
        snapshots = store(disk)
        snapshots.write(meta(100), chunks(seed=1))
        disk.fail_at = disk.operations + fails + 1
        try:
            snapshots.write(meta(200), chunks(seed=2))
            break
        except DiskFailed:
            fails += 1
        disk.fail_at = 0
        # Whether the rename got through before the last sync failed or not: whole, and writable.
        assert loaded(store(disk)) in [(meta(100), chunks(seed=1)), (meta(200), chunks(seed=2))]
        assert snapshots.write(meta(300), chunks(seed=3))
        assert loaded(snapshots) == (meta(300), chunks(seed=3))
    assert fails > 8


def test_chunks_that_fail_leave_the_old_snapshot_and_nothing_aside() -> None:
    def broken() -> Iterator[bytes]:
        yield b"one"
        raise ValueError("no more")

    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(100), chunks())
    with pytest.raises(ValueError, match="no more"):
        snapshots.write(meta(200), broken())
    assert loaded(snapshots) == (meta(100), chunks())
    assert disk.names(HOME) == ["snapshot"]


def test_s7_every_flipped_bit_and_every_cut_is_refused() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks(3, 60))
    content = disk.files[HOME / "snapshot"].now
    whole = bytes(content)
    for bit in range(len(whole) * 8):
        content[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(Damaged):
            loaded(snapshots)
        content[bit // 8] ^= 1 << (bit % 8)
    for cut in range(len(whole)):
        content[:] = whole[:cut]
        with pytest.raises(Damaged):
            loaded(snapshots)
    content[:] = whole + b"\0"
    with pytest.raises(Damaged, match="behind the end"):
        loaded(snapshots)
    content[:] = whole
    assert loaded(snapshots) == (meta(), chunks(3, 60))


def test_a_chunk_that_is_left_out_is_noticed_though_every_record_is_good() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks(3, 60))
    content = disk.files[HOME / "snapshot"].now
    record = len(encode_record(0, 0, b"C" + bytes(60)))
    end_length = len(content) - content.rindex(b"E\x92\x03") + 12
    end_body = bytes(content[-end_length + 12 :])
    offset = len(content) - end_length - record
    content[offset:] = encode_record(0, offset, end_body)
    with pytest.raises(Damaged, match="does not fit"):
        loaded(snapshots)


def test_no_more_is_read_than_there_is_whatever_a_length_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks())
    stored = disk.files[HOME / "snapshot"].now
    second = stored.index(MAGIC, 1)
    stored[second + 7] = 0xFF  # a flipped bit or more: four gigabytes
    asked: list[int] = []
    read = MemoryFile.read

    def spy(file: MemoryFile, offset: int, size: int) -> bytes:
        asked.append(size)
        return read(file, offset, size)

    monkeypatch.setattr(MemoryFile, "read", spy)
    with pytest.raises(Damaged):
        loaded(snapshots)
    assert max(asked) < len(stored)


def test_a_damaged_header_stops_the_start() -> None:
    disk = MemoryDisk()
    store(disk).write(meta(), chunks())
    disk.files[HOME / "snapshot"].now[20] ^= 1
    with pytest.raises(Damaged):
        store(disk)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"C" + bytes(60), Damaged),
        (b"M\xc1", Damaged),
        (b"M\x91\x01", Damaged),
        (b"M" + msgpack.packb({"format": 1, "cluster": "c"}), Damaged),
        (b"M" + msgpack.packb({"format": 2, "cluster": "c"}), Foreign),
    ],
)
def test_a_header_that_no_node_of_this_version_writes_is_refused(
    body: bytes, error: type[Exception]
) -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks())
    disk.files[HOME / "snapshot"].now[:] = encode_record(0, 0, body)
    for look in (lambda: loaded(snapshots), snapshots.send, lambda: store(disk)):
        with pytest.raises(error):
            look()


@pytest.mark.parametrize("stop_after", range(1, 20))
def test_s9_a_power_loss_while_a_snapshot_is_received_leaves_the_old_or_the_new_one(
    stop_after: int,
) -> None:
    source, disk = store(MemoryDisk()), MemoryDisk()
    source.write(meta(200), chunks(seed=1))
    target = store(disk)
    target.write(meta(100), chunks(seed=2))
    disk.stop_at = disk.operations + stop_after
    adopted = False
    try:
        receiving = target.receive(KEY)
        ship(source, receiving)
        received(receiving)
        adopted = receiving.adopt()
    except PowerCut:
        pass
    found = loaded(store(disk.after_power_loss(random.Random(stop_after))))
    new = meta(200), chunks(seed=1)
    assert found == new if adopted else found in (new, (meta(100), chunks(seed=2)))


@pytest.mark.parametrize("stop_after", range(1, 20))
def test_the_snapshot_that_a_start_finds_is_there_after_a_power_loss(stop_after: int) -> None:
    """
    1. A node is killed when a snapshot has its name, which is not synced yet.
    2. It is started, finds the snapshot, and its journal begins where that ends.
    3. The power fails: with the older snapshot there would be entries missing.
    """
    source, disk = store(MemoryDisk()), MemoryDisk()
    source.write(meta(200), chunks(seed=1))
    target = store(disk)
    target.write(meta(100), chunks(seed=2))
    disk.stop_at = disk.operations + stop_after
    with contextlib.suppress(PowerCut):
        receiving = target.receive(KEY)
        ship(source, receiving)
        received(receiving)
        receiving.adopt()
    disk = disk.after_kill()
    found = store(disk).meta
    for seed in range(20):
        assert store(disk.after_power_loss(random.Random(seed))).meta == found


def test_s18_the_snapshot_of_another_cluster_is_refused() -> None:
    disk = MemoryDisk()
    store(disk).write(meta(), chunks())
    with pytest.raises(Foreign, match="belongs to cluster c, not to d"):
        SnapshotStore(HOME, disk=disk, cluster="d")


def test_a_shipped_snapshot_is_the_same_there() -> None:
    source, target_disk = store(MemoryDisk()), MemoryDisk()
    source.write(meta(), chunks(9))
    target = store(target_disk)
    receiving = target.receive(KEY)
    ship(source, receiving)
    assert target.exists is False, "nothing changes before it is adopted"
    assert receiving.complete
    assert received(receiving) == (meta(), chunks(9))
    assert receiving.adopt()
    assert target.meta == meta()
    assert loaded(store(target_disk.after_power_loss(random.Random(1)))) == (meta(), chunks(9))


def test_a_transfer_keeps_its_file_when_a_newer_snapshot_takes_the_place(tmp_path: Path) -> None:
    source = SnapshotStore(tmp_path / "a", disk=PosixDisk())
    source.write(meta(100), chunks(seed=1))
    sending = source.send()
    receiving = SnapshotStore(tmp_path / "b", disk=PosixDisk()).receive(KEY)
    middle = sending.size // 2
    assert receiving.add(KEY, 0, sending.read_piece(0, middle), False)
    source.write(meta(200), chunks(seed=2))
    assert receiving.add(KEY, middle, sending.read_piece(middle, 1 << 20), True)
    sending.close()
    assert sending.meta == meta(100)
    assert received(receiving) == (meta(100), chunks(seed=1))
    receiving.discard()


def test_a_snapshot_that_is_cut_while_it_is_sent_is_damaged() -> None:
    """A piece of nothing would be sent again and again, for it brings nobody nearer to the end."""
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.write(meta(), chunks())
    sending = snapshots.send()
    assert len(sending.read_piece(0, 10**6)) == sending.size
    del disk.files[HOME / "snapshot"].now[-1:]
    with pytest.raises(Damaged, match="its end is missing"):
        sending.read_piece(0, 10**6)
    assert len(sending.read_piece(0, 10)) == 10
    sending.close()


def test_pieces_of_another_transfer_or_out_of_order_are_not_taken() -> None:
    source = store(MemoryDisk())
    source.write(meta(), chunks())
    sending = source.send()
    disk = MemoryDisk()
    receiving = store(disk).receive(KEY)
    piece = sending.read_piece(0, 100)
    assert receiving.add(KEY, 0, piece, False)
    assert not receiving.add(OTHER, 100, piece, False), "another transfer"
    assert not receiving.add(KEY, 0, piece, False), "a repeat"
    assert not receiving.add(KEY, 200, piece, False), "a gap"
    assert receiving.received == 100
    assert receiving.add(KEY, 100, sending.read_piece(100, 1 << 20), True)
    assert not receiving.add(KEY, receiving.received, b"more", True), "behind the end"
    assert received(receiving) == (meta(), chunks())


def test_s7_a_transfer_that_does_not_verify_is_given_up_and_the_old_snapshot_stays() -> None:
    disk = MemoryDisk()
    source, target = store(MemoryDisk()), store(disk)
    source.write(meta(200), chunks(seed=1))
    target.write(meta(100), chunks(seed=2))
    sending = source.send()
    receiving = target.receive(KEY)
    blob = bytearray(sending.read_piece(0, sending.size))
    blob[len(blob) // 2] ^= 1
    assert receiving.add(KEY, 0, bytes(blob), True)
    with pytest.raises(Damaged):
        received(receiving)
    assert not receiving.add(KEY, len(blob), b"", True)
    with pytest.raises(AssertionError, match="verified"):
        receiving.adopt()
    assert loaded(target) == (meta(100), chunks(seed=2))
    assert disk.names(HOME) == ["snapshot"]
    assert not disk.open_files


def test_what_a_crash_left_aside_is_removed_at_the_start() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    snapshots.receive(KEY).add(KEY, 0, b"half", False)
    disk.stop_at = disk.operations + 3
    with pytest.raises(PowerCut):
        snapshots.write(meta(), chunks())
    disk = disk.after_kill()
    assert disk.names(HOME) == ["snapshot.receiving", "snapshot.writing"]
    assert not store(disk).exists
    assert disk.names(HOME) == []


def test_a_new_transfer_replaces_the_one_before() -> None:
    disk = MemoryDisk()
    snapshots = store(disk)
    first = snapshots.receive(KEY)
    assert first.add(KEY, 0, b"half", False)
    first.discard()
    second = snapshots.receive(OTHER)
    assert not first.add(KEY, 4, b"rest", True)
    first.discard()
    assert disk.names(HOME) == ["snapshot.receiving"], "the old one does not remove the new one's"
    assert second.received == 0
