"""A kill loses nothing written, a power loss nothing synced; a failing disk is a clean stop."""

from __future__ import annotations

import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import Damaged, DiskFailed
from cluster.storage.disk import PosixDisk
from cluster.storage.journal import Journal
from cluster.storage.journal_recovery import segment_numbers, segment_path
from cluster.storage.records import OVERHEAD, decode_record
from cluster.storage.snapshots import SnapshotStore
from cluster.storage.watermark import read_watermark
from tests.journal_histories import (
    HOME,
    History,
    append,
    change_something,
    crashed_history,
    flipped,
    open_journal,
    state_of,
    sync,
    unwritten,
)
from tests.memory_disk import MemoryDisk, PowerCut


def test_s15_every_cut_of_the_file_reopens_to_a_prefix_and_can_be_appended_to() -> None:
    disk = MemoryDisk()
    history = History(open_journal(disk))
    draw = random.Random(7)
    while len(history.states) < 120:
        change_something(history.journal, draw)
        history.journal.write()
        history.states.append(state_of(history.journal))
    number = segment_numbers(HOME, disk)[-1]
    path = segment_path(HOME, number)
    whole = bytes(disk.files[path].now)
    header = decode_record(whole, number, 0)
    assert header is not None
    for cut in range(OVERHEAD + len(header), len(whole) + 1):
        other = disk.after_kill()
        del other.files[path].now[cut:]
        journal = open_journal(other)
        assert state_of(journal) in history.states, cut
        append(journal, 1, term=journal.term)
        before = state_of(journal)
        journal.close()
        assert state_of(open_journal(other)) == before


@pytest.mark.parametrize("seed", range(6))
def test_s2_a_kill_between_any_two_operations_loses_nothing_that_was_written(seed: int) -> None:
    whole, _ = crashed_history(seed, 0)
    for stop_at in range(1, whole.operations, 3):
        disk, history = crashed_history(seed, stop_at)
        assert history.accepts_after_kill(state_of(open_journal(disk.after_kill()))), stop_at


@pytest.mark.parametrize("seed", range(6))
def test_s9_a_power_loss_at_any_operation_loses_nothing_that_was_synced(seed: int) -> None:
    whole, _ = crashed_history(seed, 0)
    draw = random.Random(seed)
    for stop_at in range(1 + seed % 3, whole.operations, 3):
        disk, history = crashed_history(seed, stop_at)
        disk = disk.after_power_loss(draw)
        # A second power loss, in the middle of the repair.
        disk.stop_at = draw.randint(1, 8)
        try:
            open_journal(disk)
        except PowerCut:
            disk = disk.after_power_loss(draw)
        disk.stop_at = 0
        journal = open_journal(disk)
        found = state_of(journal)
        assert history.accepts_after_power_loss(found), stop_at
        journal.close()
        assert state_of(open_journal(disk)) == found


@pytest.mark.parametrize("seed", range(4))
def test_without_sync_a_kill_loses_nothing_and_a_power_loss_is_never_silent(seed: int) -> None:
    whole, _ = crashed_history(seed, 0, sync=False)
    draw = random.Random(seed)
    for stop_at in range(1, whole.operations, 5):
        disk, history = crashed_history(seed, stop_at, sync=False)
        assert history.accepts_after_kill(state_of(open_journal(disk.after_kill()))), stop_at
        try:
            journal = open_journal(disk.after_power_loss(draw))
        except Damaged:
            continue
        assert state_of(journal) in history.states


@pytest.mark.parametrize("seed", range(60))
def test_many_lives_with_and_without_sync_kills_power_losses_and_crashes_while_opening(
    seed: int,
) -> None:
    draw = random.Random(seed)
    disk = MemoryDisk()
    expected = [state_of(open_journal(disk))]
    for _ in range(6):
        sync_on = draw.random() < 0.7
        segment_bytes = draw.choice([300, 700, 5000])
        if draw.random() < 0.3:
            disk.stop_at = disk.operations + draw.randint(1, 12)
            try:
                open_journal(disk)
            except PowerCut:
                # What a power loss takes here counts as never written, unless it was expected.
                disk = disk.after_kill()
        disk.stop_at = 0
        journal = open_journal(disk, segment_bytes=segment_bytes, sync=sync_on)
        assert state_of(journal) in expected
        # What was found is durable, whatever it was before.
        found = state_of(open_journal(disk.after_power_loss(draw)))
        assert found == state_of(journal)

        history = History(journal)
        disk.stop_at = disk.operations + draw.randint(1, 120)
        try:
            history.run(draw, 40)
            if draw.random() < 0.5:
                journal.close()
                history.written = history.durable = len(history.states) - 1
        except PowerCut:
            history.states.append(unwritten(journal))
        if sync_on and draw.random() < 0.6:
            disk = disk.after_power_loss(draw)
            expected = history.states[history.durable :]
        else:
            disk = disk.after_kill()
            expected = history.states[history.written :]


def test_without_sync_damage_in_front_of_a_good_group_is_refused() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, sync=False)
    ends = []
    for _ in range(3):
        append(journal, 1)
        journal.write()
        ends.append(len(disk.files[segment_path(HOME, 1)].now))
    for bit in range(ends[0] * 8, ends[2] * 8):
        other = flipped(disk, segment_path(HOME, 1), bit)
        if bit < ends[1] * 8:
            with pytest.raises(Damaged, match="written later"):
                open_journal(other)
        else:
            assert len(open_journal(other)) == 2, "the last group looks like a torn write"


def test_without_sync_the_watermark_stays_where_the_last_sync_was() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, sync=False)
    synced = bytes(disk.files[HOME / "watermark"].now)
    append(journal, 5)
    sync(journal)
    assert not journal.dirty
    assert bytes(disk.files[HOME / "watermark"].now) == synced
    # Opened with sync, what was found is synced before anyone builds on it.
    disk = disk.after_kill()
    open_journal(disk)
    assert bytes(disk.files[HOME / "watermark"].now) != synced
    assert len(open_journal(disk.after_power_loss(random.Random(1)))) == 5


def test_written_with_sync_and_opened_without_the_synced_part_stays_guarded() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 5)
    journal.close()
    append(open_journal(disk, sync=False), 5)
    path = segment_path(HOME, 1)
    disk.files[path].now[-1] ^= 1
    with pytest.raises(Damaged):
        open_journal(disk, sync=False)


def _compact_and_append_for_ever(directory: Path) -> None:
    """The child of the test below."""
    journal = Journal.open(
        directory, cluster="c", node="n1", disk=PosixDisk(), segment_bytes=20_000
    )
    journal.set_vote(7, "n2")
    while True:
        append(journal, 40, term=7, size=50)
        journal.compact_to(max(1, journal.last_index - 60))
        append(journal, 10, term=7, size=50)
        sync(journal)
        print(journal.first_index, journal.last_index, flush=True)


def test_s2_kill_9_while_compacting_loses_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    draw = random.Random(2)
    reached = 0
    for _ in range(12):
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from pathlib import Path; from tests.test_journal_crashes import "
                "_compact_and_append_for_ever as run; run(Path(sys.argv[1]))",
                str(directory),
            ],
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        for _ in range(draw.randint(1, 12)):
            reached = int(child.stdout.readline().split()[1])
        select.select([], [], [], draw.random() * 0.005)  # any moment of a round will do
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        if len(rest) > 1:
            reached = int(rest[-2].split()[1])

        journal = Journal.open(directory, cluster="c", node="n1", disk=PosixDisk())
        assert journal.last_index >= reached
        assert len(journal) >= 11
        assert journal[0][1] == journal.first_index
        assert (journal.term, journal.vote) == (7, "n2")
        journal.close()
    assert reached > 12 * 40


@pytest.mark.parametrize("seed", range(3))
def test_s15_a_disk_that_fails_at_any_operation_is_a_clean_stop(seed: int) -> None:
    whole, _ = crashed_history(seed, 0)
    for fail_at in range(1, whole.operations, 2):
        disk = MemoryDisk()
        try:
            disk.fail_at = fail_at
            journal = open_journal(disk, segment_bytes=700)
        except DiskFailed:
            disk.fail_at = 0
            assert len(open_journal(disk.after_kill())) == 0
            continue
        history = History(journal)
        with pytest.raises(DiskFailed, match="No space left"):
            history.run(random.Random(seed), 1000)
        assert journal.failed
        history.states.append(unwritten(journal))
        for use in (journal.write, journal.start_sync, journal.__len__):
            with pytest.raises(DiskFailed):
                use()
        with pytest.raises(DiskFailed):
            journal.append(b"", 1, 1)
        with pytest.raises(DiskFailed):
            _ = journal[0]
        journal.close()
        disk.fail_at = 0
        found = state_of(open_journal(disk.after_kill()))
        assert history.accepts_after_power_loss(found), fail_at


class FailsAt(MemoryDisk):
    """A disk on which one kind of operation fails, once it is armed."""

    def __init__(self, operation: str) -> None:
        super().__init__()
        self.armed = False
        self._failing = operation

    def step(self, operation: str, path: Path) -> None:
        if self.armed and operation == self._failing:
            raise DiskFailed(operation, path, "Input/output error")
        super().step(operation, path)


@pytest.mark.parametrize("truncate_fails", [False, True])
def test_s15_a_write_that_fails_half_way_is_cut_off_at_once_or_by_the_restart(
    truncate_fails: bool,
) -> None:
    disk = FailsAt("write")
    journal = open_journal(disk)
    append(journal, 2)
    journal.write()
    content = disk.files[segment_path(HOME, 1)].now
    size = len(content)
    append(journal, 2)
    disk.armed = True
    if truncate_fails:
        disk.fail_at = disk.operations + 1
    with pytest.raises(DiskFailed):
        journal.write()
    assert (len(content) > size) == truncate_fails
    disk.armed, disk.fail_at = False, 0
    assert len(open_journal(disk)) == 2


class LosesWhatItFailsToSync(FailsAt):
    """Its system takes for written what a sync has failed to write."""

    def __init__(self) -> None:
        super().__init__("sync")

    def step(self, operation: str, path: Path) -> None:
        try:
            super().step(operation, path)
        except DiskFailed:
            for content in self.files.values():
                content.pending.clear()
            raise


@pytest.mark.parametrize("segment_bytes", [700, 1 << 20])
@pytest.mark.parametrize("fails_at_the_start", [False, True])
def test_after_a_failed_sync_nothing_is_promised_that_the_disk_may_not_have(
    segment_bytes: int, fails_at_the_start: bool
) -> None:
    disk = LosesWhatItFailsToSync()
    journal = open_journal(disk, segment_bytes=segment_bytes)
    append(journal, 3)
    sync(journal)
    for _ in range(20):
        append(journal, 3)
        journal.write()
    disk.armed = not fails_at_the_start
    job = journal.start_sync()
    assert job is not None
    if not fails_at_the_start:
        with pytest.raises(DiskFailed, match="Input/output error"):
            job()
        with pytest.raises(DiskFailed):
            journal.after_sync()
        journal.close()
    else:
        disk.armed = True
        with pytest.raises(DiskFailed, match="Input/output error"):
            open_journal(disk, segment_bytes=segment_bytes)
    disk.armed = False
    promised = state_of(open_journal(disk, segment_bytes=segment_bytes))
    for seed in range(20):
        assert state_of(open_journal(disk.after_power_loss(random.Random(seed)))) == promised


def test_a_failed_sync_takes_nothing_back_where_nothing_is_promised_to_be_synced() -> None:
    """Without sync all that was written counts: it survives kill -9."""
    disk = FailsAt("sync")
    journal = open_journal(disk, sync=False)
    append(journal, 3)
    disk.armed = True
    with pytest.raises(DiskFailed):
        journal.close()
    assert len(open_journal(disk.after_kill())) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda journal: journal.write(),
        lambda journal: journal.start_sync(),
        lambda journal: journal.append(b"", 5, 1),
        lambda journal: journal.truncate_from(1),
        lambda journal: journal.compact_to(2),
        lambda journal: journal.reset([]),
        lambda journal: journal.set_vote(9, None),
        lambda journal: journal.last_index,
        lambda journal: journal[:],
        lambda journal: journal.vote,
        lambda journal: journal.dirty,
    ],
)
def test_after_a_failure_nothing_is_written_and_every_call_says_so(
    call: Callable[[Journal], object],
) -> None:
    disk = FailsAt("sync")
    journal = open_journal(disk)
    append(journal, 3)
    job = journal.start_sync()
    assert job is not None
    append(journal, 1)  # meanwhile, and not written yet
    disk.armed = True
    with pytest.raises(DiskFailed):
        job()
    disk.armed = False
    operations = disk.operations
    with pytest.raises(DiskFailed, match="it could not sync"):
        call(journal)
    assert disk.operations == operations


@pytest.mark.parametrize("seed", range(8))
def test_s9_closing_before_the_job_of_a_sync_ran_syncs_the_segments_left_behind_too(
    seed: int,
) -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=300)
    while len(segment_numbers(HOME, disk)) < 3:
        append(journal, 2)
        journal.write()
    append(journal, 2)
    job = journal.start_sync()
    assert job is not None
    expected = state_of(journal)
    journal.close()
    assert state_of(open_journal(disk.after_power_loss(random.Random(seed)))) == expected


@pytest.mark.parametrize("seed", range(8))
def test_s9_after_a_clean_stop_or_an_opening_the_watermark_is_exact_also_after_a_power_loss(
    seed: int,
) -> None:
    def exact(disk: MemoryDisk) -> bool:
        lost = disk.after_power_loss(random.Random(seed))
        end = (1, len(disk.files[segment_path(HOME, 1)].now))
        return read_watermark(HOME / "watermark", lost)[1] == end

    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 3)
    journal.write()
    killed = disk.after_kill()
    journal.close()
    assert exact(disk)
    open_journal(killed)
    assert exact(killed)


class NotesDirectories(MemoryDisk):
    def __init__(self) -> None:
        super().__init__()
        self.synced: list[Path] = []

    def sync_directory(self, path: Path) -> None:
        super().sync_directory(path)
        self.synced.append(path)


def test_a_directory_that_is_made_is_durable_in_its_parent() -> None:
    for begin in (open_journal, lambda disk: SnapshotStore(HOME, disk=disk)):
        disk = NotesDirectories()
        begin(disk)
        assert HOME.parent in disk.synced
        disk.synced.clear()
        begin(disk)
        assert HOME.parent not in disk.synced, "it was there"


def test_files_of_other_names_are_none_of_the_journals() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    append(journal, 1)
    journal.close()
    for name in ("segment-000000000002.old", "segment-2x.log", "other-000000000002.log"):
        disk.create(HOME / name).write(0, b"x" * 100)
    assert len(open_journal(disk)) == 1


def test_of_a_log_that_was_replaced_as_a_whole_no_older_segment_is_kept() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, segment_bytes=300)
    while len(segment_numbers(HOME, disk)) < 3:
        append(journal, 2)
        journal.write()
    journal.reset([(b"", 3, 1), (b"", 4, 1)])
    sync(journal)
    assert segment_numbers(HOME, disk) == [3, 4], "the one that the new log is in, and the next"
    assert [index for _, index, _ in open_journal(disk.after_kill())[:]] == [3, 4]
