"""The journal keeps what it was given, through every crash, and never believes what is damaged."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.disk import PosixDisk
from cluster.errors import Damaged, DiskFailed, FailStop, Foreign, StorageError
from cluster.journal import Entry, Journal
from cluster.journal_format import decode_body, encode_header
from cluster.journal_recovery import segment_numbers, segment_path
from cluster.records import OVERHEAD, decode_record, encode_record
from tests.memory_disk import MemoryDisk, PowerCut

HOME = Path("/journal")

State = tuple[tuple[Entry, ...], int, str | None]


def open_journal(
    disk: MemoryDisk, *, node: str = "n1", segment_bytes: int = 16 << 20, sync: bool = True
) -> Journal:
    return Journal.open(
        HOME, cluster="c", node=node, disk=disk, segment_bytes=segment_bytes, sync=sync
    )


def sync(journal: Journal) -> None:
    job = journal.start_sync()
    if job is not None:
        job()
        journal.after_sync()


def state_of(journal: Journal) -> State:
    return tuple(journal[:]), journal.term, journal.vote


def append(journal: Journal, count: int, term: int = 1, size: int = 10) -> None:
    for _ in range(count):
        index = journal.last_index + 1
        journal.append(b"%d." % index + b"x" * size, index, term)


def change_something(journal: Journal, draw: random.Random) -> None:
    """One change that Raft might ask for."""
    choice = draw.random()
    if choice < 0.6 or len(journal) < 3:
        journal.append(draw.randbytes(draw.randrange(90)), journal.last_index + 1, journal.term)
    elif choice < 0.72:
        journal.set_vote(journal.term + 1, draw.choice([None, "n1", "n2"]))
    elif choice < 0.82:
        journal.truncate_from(journal.last_index - draw.randrange(2))
    elif choice < 0.9:
        journal.commit_hint = journal.last_index
    elif choice < 0.96:
        journal.compact_to(draw.randint(journal.first_index, journal.last_index))
    else:
        index = journal.last_index + draw.randint(-2, 9)
        term = journal.term
        journal.reset([(b"previous", index - 1, term), (b"last", index, term)])


class History:
    """The states that a journal went through, so that a crash can be judged."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.states = [state_of(journal)]
        """The states that one group or another ended with, and perhaps some between."""
        self.written = self.durable = 0
        """Positions in `states` of the last one that was surely written, and surely synced."""

    def run(self, draw: random.Random, steps: int) -> None:
        for _ in range(steps):
            for _ in range(draw.randint(1, 3)):
                change_something(self.journal, draw)
                self.states.append(state_of(self.journal))
            if draw.random() < 0.7:
                self.journal.write()
                self.written = len(self.states) - 1
            if draw.random() < 0.5:
                reached = len(self.states)
                sync(self.journal)
                self.written = self.durable = reached - 1

    def accepts_after_kill(self, found: State) -> bool:
        return found in self.states[self.written :]

    def accepts_after_power_loss(self, found: State) -> bool:
        return found in self.states[self.durable :]


def crashed_history(seed: int, stop_at: int, *, sync: bool = True) -> tuple[MemoryDisk, History]:
    """A seeded history on a disk that stops at a given operation (0: never)."""
    disk = MemoryDisk()
    history = History(open_journal(disk, segment_bytes=700, sync=sync))
    disk.stop_at = disk.operations + stop_at if stop_at else 0
    try:
        history.run(random.Random(seed), 40)
    except PowerCut:
        # What was under way may be there: the step's last state is not in the list yet.
        history.states.append((tuple(history.journal._log.entries), *_term_and_vote(history)))
    return disk, history


def _term_and_vote(history: History) -> tuple[int, str | None]:
    log = history.journal._log
    return log.term, log.vote


# --- the plain things


def test_what_was_written_is_there_after_a_restart() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk)
    journal.set_vote(3, "n2")
    append(journal, 10, term=3)
    journal.truncate_from(9)
    journal.append(b"other", 9, 3)
    journal.commit_hint = 8
    journal.compact_to(4)
    before = state_of(journal)
    journal.close()

    journal = open_journal(disk)
    assert state_of(journal) == before
    assert (journal.first_index, journal.last_index, journal.last_term) == (4, 9, 3)
    assert (journal.term, journal.vote, journal.commit_hint) == (3, "n2", 8)
    assert journal[-1] == (b"other", 9, 3)
    assert [entry[1] for entry in journal[1:3]] == [5, 6]
    assert len(journal) == 6


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


def test_a_journal_that_nobody_syncs_still_removes_what_it_compacted() -> None:
    disk = MemoryDisk()
    journal = open_journal(disk, sync=False)
    for _ in range(20):
        append(journal, 10)
        journal.compact_to(journal.last_index - 1)
    assert len(segment_numbers(HOME, disk)) <= 4
    journal.close()
    assert len(open_journal(disk)) == 2


def test_writes_syncs_and_bytes_are_counted() -> None:
    journal = open_journal(MemoryDisk())
    writes, size = journal.writes, journal.bytes
    append(journal, 3)
    sync(journal)
    assert (journal.writes - writes, journal.syncs) == (1, 1)
    assert journal.bytes - size > 3 * 10


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


# --- crashes


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
            history.states.append((tuple(journal._log.entries), *_term_and_vote(history)))
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
        other = _flipped(disk, segment_path(HOME, 1), bit)
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
                "import sys; from pathlib import Path; from tests.test_journal import "
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


# --- disks that fail


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
        history.states.append((tuple(journal._log.entries), *_term_and_vote(history)))
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


def test_after_a_failed_sync_nothing_is_believed_that_the_disk_may_not_have() -> None:
    disk = FailsAt("sync")
    journal = open_journal(disk)
    append(journal, 3)
    sync(journal)
    append(journal, 3)
    disk.armed = True
    job = journal.start_sync()
    assert job is not None
    with pytest.raises(DiskFailed, match="Input/output error"):
        job()
    with pytest.raises(DiskFailed):
        journal.after_sync()
    journal.close()
    assert len(open_journal(disk.after_kill())) == 3


# --- damage


def journal_of_4_kb() -> tuple[MemoryDisk, list[State]]:
    """Two segments of records of every kind, and the states between its groups."""
    disk = MemoryDisk()
    draw = random.Random(11)
    journal = open_journal(disk, segment_bytes=1500)
    states = [state_of(journal)]
    while journal.bytes < 3400:
        journal.append(draw.randbytes(draw.randrange(150)), journal.last_index + 1, journal.term)
        if draw.random() < 0.3:
            journal.set_vote(journal.term + 1, draw.choice([None, "n1"]))
        if draw.random() < 0.2:
            journal.truncate_from(journal.last_index)
        journal.commit_hint = journal.last_index
        sync(journal)
        states.append(state_of(journal))
    return disk, states


def _flipped(disk: MemoryDisk, path: Path, bit: int) -> MemoryDisk:
    other = disk.after_kill()
    other.files[path].now[bit // 8] ^= 1 << (bit % 8)
    return other


def test_s9_no_flipped_bit_in_what_was_synced_is_believed_or_cut() -> None:
    disk, states = journal_of_4_kb()
    assert len(segment_numbers(HOME, disk)) > 1
    flips = 0
    for number in segment_numbers(HOME, disk):
        content = disk.files[segment_path(HOME, number)].now
        for bit in range(len(content) * 8):
            content[bit // 8] ^= 1 << (bit % 8)
            operations = disk.operations
            with pytest.raises(Damaged, match="remove the node from the cluster"):
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
            assert state_of(open_journal(_flipped(disk, path, bit))) == states[-1]


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
        found = state_of(open_journal(_flipped(disk, path, bit)))
        assert len(found[0]) == len(states[0][0]) - 1 + len(survivors) - 1, bit
        assert found[0] == states[-1][0][: len(found[0])]


def test_without_the_watermark_file_the_marks_in_the_groups_guard_all_but_the_last_sync() -> None:
    disk, states = journal_of_4_kb()
    del disk.files[HOME / "watermark"]
    path = segment_path(HOME, segment_numbers(HOME, disk)[-1])
    refused = 0
    for position in range(len(disk.files[path].now)):
        try:
            found = state_of(open_journal(_flipped(disk, path, position * 8)))
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
