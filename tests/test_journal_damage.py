"""Damage is cut where nothing was promised, refused everywhere else, and never believed."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from cluster.errors import Damaged, Foreign, StorageError
from cluster.storage.journal import Journal
from cluster.storage.journal_format import (
    Header,
    append_change,
    decode_body,
    encode_group,
    encode_header,
    start_change,
    truncate_change,
    vote_change,
)
from cluster.storage.journal_recovery import segment_numbers, segment_path, survey
from cluster.storage.records import decode_record, encode_record
from cluster.storage.watermark import Watermark, read_watermark
from tests.journal_histories import (
    HOME,
    State,
    append,
    crashed_history,
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


def header_of(disk: MemoryDisk, number: int) -> Header:
    body = decode_record(bytes(disk.files[segment_path(HOME, number)].now), number, 0)
    assert body is not None
    header = decode_body(body)
    assert isinstance(header, Header)
    return header


def group(changes: bytes) -> bytes:
    return encode_group(changes, (1, 0), without_sync=False)


def change(kind: bytes, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(4, "little") + kind + payload


@pytest.mark.parametrize(
    "body",
    [
        b"?",
        b"?" + group(append_change(b"", 4, 1))[1:],
        b"G",
        b"H\xc1",
        b"H\x90",
        b"H\x80",
        encode_header(Header(1, "c", "n1", 1, 1, 0, (0, 0), False, None, None, 0, None, 0)),
        group(b"\x00"),
        group(change(b"R")[:-1]),
        group(change(b"C", bytes(8))[:-1]),
        group(change(b"Z")),
        group(change(b"A", bytes(15))),
        group(change(b"T", bytes(7))),
        group(change(b"C", bytes(9))),
        group(change(b"V", bytes(8) + b"\x01\xff")),
        group(append_change(b"cut", 4, 1)[:-1]),
        group(append_change(b"", 9, 1)),
        group(append_change(b"", 3, 1)),
        group(truncate_change(5)),
        group(change(b"R") + start_change(2)),
        group(change(b"R") + truncate_change(1)),
        group(start_change(0)),
        group(start_change(4)),
        group(vote_change(1, None)),
        group(vote_change(2, "n2")),
    ],
)
def test_a_whole_record_that_no_journal_writes_is_refused_and_not_cut(body: bytes) -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 3)
    journal.set_vote(2, "n1")
    journal.close()
    content = disk.files[segment_path(HOME, 1)].now
    content += encode_record(1, len(content), body)
    operations = disk.operations
    with pytest.raises(Damaged):
        open_journal(disk)
    assert disk.operations == operations


def test_a_segment_begins_with_a_header_that_can_be_read() -> None:
    for body in (group(b""), b"H\x90", b"?"):
        disk = MemoryDisk()
        open_journal(disk).close()
        disk.files[segment_path(HOME, 1)].now[:] = encode_record(1, 0, body)
        with pytest.raises(Damaged):
            open_journal(disk)


@pytest.mark.parametrize(
    "false",
    [
        {"start": 0},
        {"next_index": 40},
        {"term": 9},
        {"vote": "n3"},
        {"previous_end": 100},
    ],
)
def test_a_segment_that_does_not_continue_the_one_before_is_refused(false: dict[str, Any]) -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=500)
    journal.set_vote(2, "n1")
    while len(segment_numbers(HOME, disk)) < 2:
        append(journal, 1, term=2)
        sync(journal)
    journal.close()
    open_journal(disk).close()
    told = dataclasses.replace(header_of(disk, 2), **false)
    disk.files[segment_path(HOME, 2)].now[:] = encode_record(2, 0, encode_header(told))
    with pytest.raises(Damaged):
        open_journal(disk)


def test_a_journal_whose_first_entries_are_in_no_segment_is_refused() -> None:
    disk = MemoryDisk()
    open_journal(disk).close()
    content = disk.files[segment_path(HOME, 1)].now
    told = dataclasses.replace(header_of(disk, 1), start=1, next_index=4)
    content[:] = encode_record(1, 0, encode_header(told))
    with pytest.raises(Damaged, match="this entry is missing"):
        open_journal(disk)


def look(disk: MemoryDisk) -> State:
    """What is found without opening the journal."""
    log, _ = survey(
        HOME,
        cluster="c",
        node="n1",
        disk=disk,
        watermark=read_watermark(HOME / "watermark", disk)[1],
        new_pass=lambda: lambda *_: None,
    )
    return tuple(log.entries), log.term, log.vote


@pytest.mark.parametrize("seed", range(4))
def test_a_look_at_it_finds_what_a_start_finds_after_a_power_loss(seed: int) -> None:
    """Also where a new segment is there, and not what was to make an older one superfluous."""
    whole, _ = crashed_history(seed, 0)
    draw = random.Random(seed)
    for stop_at in range(1 + seed % 2, whole.operations, 2):
        disk = crashed_history(seed, stop_at)[0].after_power_loss(draw)
        assert look(disk) == state_of(open_journal(disk)), stop_at


def test_a_look_at_it_refuses_what_a_start_refuses_once_it_has_cut_a_tear() -> None:
    disk = MemoryDisk()
    open_journal(disk).close()
    content = disk.files[segment_path(HOME, 1)].now
    told = dataclasses.replace(header_of(disk, 1), start=1, next_index=4)
    content[:] = encode_record(1, 0, encode_header(told)) + b"half a record"
    with pytest.raises(Damaged, match="this entry is missing"):
        look(disk)


@pytest.mark.parametrize("header", ["missing", "torn"])
def test_a_journal_whose_first_segment_is_gone_is_not_begun_anew(header: str) -> None:
    """Also where no mark tells that it was synced."""
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=300)
    while segment_numbers(HOME, disk)[-1] < 3:
        append(journal, 1)
        journal.write()
    journal.compact_to(journal.last_index)
    oldest, newest = header_of(disk, 4).oldest, 4
    assert 1 < oldest < newest
    for number in range(1, oldest + (header == "missing")):
        del disk.files[segment_path(HOME, number)]
    del disk.files[HOME / "watermark"]
    if header == "torn":
        del disk.files[segment_path(HOME, oldest)].now[20:]
    operations = disk.operations
    with pytest.raises(Damaged, match="nothing stands before it"):
        open_journal(disk)
    assert disk.operations == operations


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
