"""Damage is cut where nothing was promised, refused everywhere else, and never believed."""

from __future__ import annotations

import random

import pytest

from cluster.errors import Damaged, Foreign, StorageError
from cluster.storage.journal import Journal
from cluster.storage.journal_format import decode_body, encode_header
from cluster.storage.journal_recovery import segment_numbers, segment_path
from cluster.storage.records import decode_record, encode_record
from cluster.storage.watermark import Watermark, read_watermark
from tests.journal_histories import (
    HOME,
    append,
    flipped,
    journal_of_4_kb,
    open_journal,
    state_of,
    sync,
)
from tests.memory_disk import MemoryDisk


def test_s9_no_flipped_bit_in_what_was_synced_is_believed_or_cut() -> None:
    disk, states = journal_of_4_kb()
    assert len(segment_numbers(HOME, disk)) > 1
    flips = 0
    for number in segment_numbers(HOME, disk):
        content = disk.files[segment_path(HOME, number)].now
        for bit in range(len(content) * 8):
            content[bit // 8] ^= 1 << (bit % 8)
            operations = disk.operations
            with pytest.raises(Damaged, match="Keep this directory aside"):
                open_journal(disk)
            assert disk.operations == operations, "a journal that is refused is not touched"
            content[bit // 8] ^= 1 << (bit % 8)
            flips += 1
    assert flips > 3400 * 8
    assert state_of(open_journal(disk)) == states[-1], "the flips were taken back"


def test_no_flipped_bit_in_the_watermark_changes_what_is_read() -> None:
    disk, states = journal_of_4_kb()
    path = HOME / "watermark"
    for bit in range(len(disk.files[path].now) * 8):
        if disk.files[path].now[bit // 8] or bit % 8 == 0:  # of the gap one bit a byte is enough
            assert state_of(open_journal(flipped(disk, path, bit))) == states[-1]


def test_a_torn_write_of_the_watermark_leaves_the_place_before_it() -> None:
    disk, _ = journal_of_4_kb()
    path = HOME / "watermark"
    watermark = Watermark.open(path, disk)
    for position in ((7, 100), (7, 2_000), (8, 50)):
        before, (_, place) = bytes(disk.files[path].now), read_watermark(path, disk)
        watermark.advance(position)
        after = bytes(disk.files[path].now)
        places = []
        for written in range(len(after)):
            disk.files[path].now[:] = after[:written] + before[written:]
            places.append(read_watermark(path, disk)[1])
        disk.files[path].now[:] = after
        assert list(dict.fromkeys(places)) == [place, position]


def test_a_flipped_bit_behind_the_last_sync_is_cut_at_the_group_before() -> None:
    disk, _ = journal_of_4_kb()
    journal = open_journal(disk)
    path = segment_path(HOME, segment_numbers(HOME, disk)[-1])
    synced = len(disk.files[path].now)
    states, ends = [], []
    for _ in range(4):
        append(journal, 1, term=journal.term)
        states.append(state_of(journal))
        ends.append(len(disk.files[path].now))
        journal.write()
    for bit in range(synced * 8, len(disk.files[path].now) * 8):
        survivors = [
            s for s, end in zip([None, *states], [*ends, 1 << 30], strict=True) if end <= bit // 8
        ]
        found = state_of(open_journal(flipped(disk, path, bit)))
        assert len(found[0]) == len(states[0][0]) - 1 + len(survivors) - 1, bit
        assert found[0] == states[-1][0][: len(found[0])]


def test_without_the_watermark_file_the_marks_in_the_groups_guard_all_but_the_last_sync() -> None:
    disk, states = journal_of_4_kb()
    del disk.files[HOME / "watermark"]
    path = segment_path(HOME, segment_numbers(HOME, disk)[-1])
    refused = 0
    for position in range(len(disk.files[path].now)):
        try:
            found = state_of(open_journal(flipped(disk, path, position * 8)))
        except Damaged:
            refused += 1
        else:
            assert found == states[-2], "only the last group looks like a torn write"
    assert refused > len(disk.files[path].now) // 2


@pytest.mark.parametrize("lost", ["first", "last", "all"])
def test_a_missing_segment_is_refused(lost: str) -> None:
    disk, _ = journal_of_4_kb()
    numbers = segment_numbers(HOME, disk)
    for number in {"first": numbers[:1], "last": numbers[-1:], "all": numbers}[lost]:
        del disk.files[segment_path(HOME, number)]
    with pytest.raises(Damaged):
        open_journal(disk)


def test_a_cut_of_what_was_synced_is_refused_even_between_two_groups() -> None:
    disk, _ = journal_of_4_kb()
    for number in segment_numbers(HOME, disk):
        size = len(disk.files[segment_path(HOME, number)].now)
        for cut in range(size):
            other = disk.after_kill()
            del other.files[segment_path(HOME, number)].now[cut:]
            with pytest.raises(Damaged):
                open_journal(other)


def test_a_good_record_in_the_wrong_place_is_not_believed() -> None:
    """A misdirected write: the bytes of one group over those of another of the same length."""
    disk = MemoryDisk()
    journal = open_journal(disk)
    ends = []
    for _ in range(3):
        append(journal, 1)
        sync(journal)
        ends.append(len(disk.files[segment_path(HOME, 1)].now))
    content = disk.files[segment_path(HOME, 1)].now
    assert ends[2] - ends[1] == ends[1] - ends[0]
    content[ends[0] : ends[1]] = content[ends[1] : ends[2]]
    with pytest.raises(Damaged):
        open_journal(disk)


def test_s18_the_journal_of_another_node_or_cluster_is_refused() -> None:
    disk = MemoryDisk()
    open_journal(disk).close()
    with pytest.raises(Foreign, match="belongs to node n1"):
        open_journal(disk, node="n2")
    with pytest.raises(Foreign, match="of cluster c"):
        Journal.open(HOME, cluster="d", node="n1", disk=disk)


def test_another_format_version_is_refused_as_foreign_not_as_damaged() -> None:
    disk = MemoryDisk()
    open_journal(disk).close()
    content = disk.files[segment_path(HOME, 1)]
    body = decode_record(bytes(content.now), 1, 0)
    assert body is not None
    header = decode_body(body)
    newer = body.replace(b"\xa6format\x01", b"\xa6format\x02")
    assert newer != body
    content.now[:] = encode_record(1, 0, newer)
    with pytest.raises(Foreign, match="format 2"):
        open_journal(disk)
    assert encode_header(header) == body  # type: ignore[arg-type]


def test_random_bytes_never_get_past_the_checks() -> None:
    disk, states = journal_of_4_kb()
    draw = random.Random(5)
    for _ in range(300):
        other = disk.after_kill()
        path = draw.choice(sorted(other.files))
        content = other.files[path].now
        start = draw.randrange(len(content))
        content[start : start + draw.randrange(600)] = draw.randbytes(draw.randrange(600))
        try:
            found = state_of(open_journal(other))
        except StorageError:
            continue
        assert found == states[-1]
