"""The journal keeps what it was given, and does nothing that no correct Raft asks for."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import DiskFailed, FailStop
from cluster.storage.disk import PosixDisk, read_file
from cluster.storage.journal import Journal
from cluster.storage.journal_recovery import segment_numbers, segment_path
from tests.journal_histories import (
    HOME,
    append,
    open_journal,
    state_of,
    sync,
)
from tests.memory_disk import MemoryDisk, PowerCut


def test_what_was_written_is_there_after_a_restart() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    journal.set_vote(3, "n2")
    append(journal, 10, term=3)
    journal.truncate_from(9)
    journal.append(b"other", 9, 4)
    journal.commit_hint = 8
    journal.compact_to(4)
    before = state_of(journal)
    journal.close()

    journal = open_journal(disk)
    assert state_of(journal) == before
    assert (journal.first_index, journal.last_index, journal.last_term) == (4, 9, 4)
    assert (journal.term, journal.vote, journal.commit_hint) == (3, "n2", 8)
    assert journal[-1] == (b"other", 9, 4)
    assert [entry[1] for entry in journal[1:3]] == [5, 6]
    assert len(journal) == 6


def test_the_vote_outlives_the_segment_in_which_it_was_given() -> None:
    """A node that forgot it could vote twice in a term."""
    disk = MemoryDisk()
    journal = open_journal(disk)
    journal.set_vote(3, "n2")
    append(journal, 5, term=3)
    journal.compact_to(2)
    append(journal, 5, term=3)
    journal.commit_hint = 9
    journal.compact_to(8)
    sync(journal)
    assert segment_numbers(HOME, disk) == [2, 3], "what held the vote was removed"
    journal.close()
    journal = open_journal(disk)
    assert (journal.term, journal.vote, journal.commit_hint) == (3, "n2", 9)


def test_an_empty_journal_has_index_and_term_zero() -> None:
    journal = open_journal(MemoryDisk())
    assert (len(journal), journal.first_index, journal.last_index, journal.last_term) == (
        0,
        0,
        0,
        0,
    )
    assert (journal.term, journal.vote, journal.commit_hint, journal.dirty) == (0, None, 0, False)


def test_reset_replaces_the_whole_log_and_keeps_term_and_vote() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    journal.set_vote(2, "n3")
    append(journal, 5, term=2)
    sync(journal)
    journal.reset([(b"p", 90, 2), (b"l", 91, 2)])
    sync(journal)
    assert len(segment_numbers(HOME, disk)) == 2, "what is replaced was removed"
    append(journal, 1, term=2)
    before = state_of(journal)
    journal.close()
    assert state_of(open_journal(disk)) == before
    assert before[0][0] == (b"p", 90, 2)


def test_after_a_reset_to_nothing_the_log_may_begin_anywhere() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 5)
    journal.reset([])
    journal.append(b"far", 1000, 1)
    journal.close()
    assert open_journal(disk)[:] == [(b"far", 1000, 1)]


@pytest.mark.parametrize(
    "change",
    [
        lambda journal: journal.append(b"gap", 7, 2),
        lambda journal: journal.append(b"again", 5, 2),
        lambda journal: journal.compact_to(9),
        lambda journal: journal.set_vote(1, None),
        lambda journal: journal.set_vote(2, "n2"),
        lambda journal: journal.set_vote(2, None),
    ],
    ids=["gap", "repeat", "compact beyond the end", "older term", "second vote", "vote taken back"],
)
def test_what_no_correct_raft_asks_for_is_a_fail_stop_and_changes_nothing(
    change: Callable[[Journal], None],
) -> None:
    journal = open_journal(MemoryDisk())
    journal.set_vote(2, "n1")
    append(journal, 5, term=2)
    before = state_of(journal)
    with pytest.raises(FailStop):
        change(journal)
    assert state_of(journal) == before


def test_nothing_is_synced_in_a_file_that_is_gone() -> None:
    """It was, where no start would find it: a node went on to acknowledge what it had not."""
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 5)
    sync(journal)
    append(journal, 1)
    path = segment_path(HOME, 1)
    disk.rename(path, path.with_name("elsewhere"))
    job = journal.start_sync()
    assert job is not None
    with pytest.raises(FailStop, match=r"segment-000000000001\.log was deleted or moved"):
        job()
    with pytest.raises(DiskFailed):
        append(journal, 1)


def test_old_segments_are_removed_only_by_a_sync_after_the_compaction() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    append(journal, 60)
    journal.write()
    append(journal, 60)
    sync(journal)
    before = segment_numbers(HOME, disk)
    journal.compact_to(100)
    assert set(before) < set(segment_numbers(HOME, disk))
    sync(journal)
    assert segment_numbers(HOME, disk)[0] > before[0]
    assert journal.dirty is False


def test_after_a_restart_no_segment_is_removed_whose_entries_are_needed() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    for _ in range(6):
        append(journal, 10)
        journal.write()
    journal.close()
    journal = open_journal(disk, segment_bytes=200)
    before = segment_numbers(HOME, disk)
    journal.compact_to(35)
    sync(journal)
    left = state_of(journal)
    assert segment_numbers(HOME, disk)[0] > before[0]
    journal.close()
    assert state_of(open_journal(disk)) == left


def test_segments_that_a_crash_left_there_are_removed_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    for _ in range(5):
        append(journal, 20)
        journal.write()
    journal.compact_to(99)
    with monkeypatch.context() as crash:
        crash.setattr(disk, "unlink", cut)
        with pytest.raises(PowerCut):
            sync(journal)
    disk = disk.after_kill()
    assert segment_numbers(HOME, disk)[0] == 1
    again = open_journal(disk, segment_bytes=200)
    assert (again.first_index, again.last_index) == (99, 100)
    assert len(segment_numbers(HOME, disk)) <= 3


def cut(_: Path) -> None:
    raise PowerCut


def test_files_of_segments_are_closed_when_they_are_synced() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    running = len(disk.open_files)
    assert running == 2, "the segment that grows, and the watermark"
    for _ in range(5):
        append(journal, 20)
        journal.write()
    assert len(disk.open_files) > running
    sync(journal)
    assert len(disk.open_files) == running
    append(journal, 20)
    journal.write()
    journal.close()
    assert not disk.open_files
    again = open_journal(disk, segment_bytes=200)
    assert len(segment_numbers(HOME, disk)) > 3
    assert len(disk.open_files) == running
    append(again, 20)
    again.write()
    assert again.start_sync() is not None, "and the job never runs"
    again.close()
    assert not disk.open_files
    disk = MemoryDisk()
    killed = open_journal(disk, segment_bytes=200)
    for _ in range(5):
        append(killed, 20)
        killed.write()
    disk = disk.after_kill()
    assert not disk.open_files
    again = open_journal(disk, segment_bytes=200)
    assert len(disk.open_files) == running, "what is written again is closed again"
    again.close()


@pytest.mark.parametrize("later", [0, 3])
def test_close_syncs_what_came_before_and_after_a_sync_that_never_ran(later: int) -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    for _ in range(3):
        append(journal, 20)
        journal.write()
    assert journal.start_sync() is not None
    for _ in range(later):
        append(journal, 20)
        journal.write()
    before = state_of(journal)
    journal.close()
    for seed in range(5):
        after = disk.after_power_loss(random.Random(seed))
        assert state_of(open_journal(after)) == before


def test_a_sync_that_fails_leaves_no_file_open() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=200)
    for _ in range(5):
        append(journal, 20)
        journal.write()
    disk.fail_at = disk.operations + 2
    with pytest.raises(DiskFailed):
        sync(journal)
    journal.close()
    assert not disk.open_files


def test_a_journal_that_cannot_be_opened_leaves_no_file_open() -> None:
    for before in (0, 40):
        for fails in range(1, 40):
            disk = MemoryDisk()
            if before:
                journal = open_journal(disk, segment_bytes=200)
                append(journal, before)
                journal.close()
            disk.fail_at = disk.operations + fails
            try:
                open_journal(disk)
            except DiskFailed:
                assert not disk.open_files
            else:
                break
        else:
            raise AssertionError("it was never opened")


def test_a_journal_that_nobody_syncs_still_removes_what_it_compacted() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, sync=False)
    for _ in range(20):
        append(journal, 10)
        journal.compact_to(journal.last_index - 1)
    assert len(segment_numbers(HOME, disk)) <= 4
    journal.close()
    assert len(open_journal(disk)) == 2


def test_writes_and_syncs_are_counted() -> None:
    journal = open_journal(MemoryDisk())
    writes = journal.writes
    append(journal, 3)
    sync(journal)
    assert (journal.writes - writes, journal.syncs) == (1, 1)


def test_its_size_is_that_of_the_files_which_are_there() -> None:
    """One that only grew would show a full disk long before there was one."""
    disk = MemoryDisk()

    def on_disk() -> int:
        return sum(
            len(read_file(disk, HOME / name, 1 << 20))
            for name in disk.names(HOME)
            if name.startswith("segment-")
        )

    journal = open_journal(disk, segment_bytes=200)
    for _ in range(6):
        append(journal, 10)
        journal.write()
        assert journal.bytes == on_disk()
    full = journal.bytes
    journal.compact_to(45)
    sync(journal)
    assert journal.bytes == on_disk() < full
    journal.reset([(b"c", 99, 1), (b"c", 100, 1)])
    sync(journal)
    append(journal, 30)
    journal.write()
    assert journal.bytes == on_disk()
    journal.close()
    assert open_journal(disk).bytes == on_disk()


def test_a_sync_covers_what_was_written_before_it_began_and_not_what_came_later() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 3)
    job = journal.start_sync()
    assert job is not None
    append(journal, 1)
    journal.write()
    job()
    journal.after_sync()
    assert journal.dirty
    sync(journal)
    assert not journal.dirty
    assert journal.start_sync() is None


def test_the_job_runs_in_another_thread_and_close_waits_for_nothing_that_never_ran() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 3)
    job = journal.start_sync()
    assert job is not None
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    journal.after_sync()
    append(journal, 3)
    late = journal.start_sync()
    assert late is not None
    journal.close()
    journal.close()
    late()
    with pytest.raises(DiskFailed, match="closed"):
        journal.append(b"", 7, 1)
    assert len(open_journal(disk.after_power_loss(random.Random(1)))) == 6


def test_a_long_journal_is_read_back_quickly(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "j", cluster="c", node="n1", disk=PosixDisk(), sync=False)
    for index in range(1, 20_001):
        journal.append(b"x" * 200, index, 1)
        journal.write()
    journal.close()
    started = os.times().user
    journal = Journal.open(tmp_path / "j", cluster="c", node="n1", disk=PosixDisk())
    assert os.times().user - started < 3
    assert len(journal) == 20_000
    journal.compact_to(19_990)
    assert len(journal) == 11
    journal.close()
