"""Journals on a disk in memory, and the states that they went through."""

from __future__ import annotations

import random
from pathlib import Path

from cluster.storage.journal import Entry, Journal
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
        history.states.append(unwritten(history.journal))
    return disk, history


def unwritten(journal: Journal) -> State:
    """The state of a journal that has failed, with what was perhaps on its way to the disk."""
    log = journal._log
    return tuple(log.entries), log.term, log.vote


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


def flipped(disk: MemoryDisk, path: Path, bit: int) -> MemoryDisk:
    other = disk.after_kill()
    other.files[path].now[bit // 8] ^= 1 << (bit % 8)
    return other
