"""By which directory a node is known: the first for ever, through every crash."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cluster.errors import Damaged, DiskFailed
from cluster.storage.fellows import Fellows
from tests.memory_disk import MemoryDisk, PowerCut

PATH = Path("/fellows")


def fellows(disk: MemoryDisk) -> Fellows:
    return Fellows(PATH, disk, b"mine")


def test_the_first_directory_of_a_node_is_the_one_it_is_known_by() -> None:
    disk = MemoryDisk()
    ours = fellows(disk)
    assert not ours.knows("n2")
    assert not ours.is_another("n2", b"2")
    ours.learn("n2", b"2")
    ours.learn("n3", b"3")
    ours.learn("n2", b"another")
    for known in (ours, fellows(disk.after_power_loss(random.Random(1)))):
        assert known.knows("n2")
        assert known.knows("n3")
        assert not known.knows("n4")
        assert not known.is_another("n2", b"2")
        assert known.is_another("n2", b"another")
        assert known.is_another("n3", b"2")


def test_a_crash_while_one_is_learned_loses_nothing_that_was_known() -> None:
    whole = MemoryDisk()
    fellows(whole).learn("n2", b"2")
    before = whole.operations
    fellows(whole).learn("n3", b"3")
    for stop_at in range(before + 1, whole.operations + 1):
        disk = MemoryDisk()
        ours = fellows(disk)
        ours.learn("n2", b"2")
        disk.stop_at = stop_at
        with pytest.raises(PowerCut):
            ours.learn("n3", b"3")
        assert not ours.knows("n3"), "it counts only when it is durable"
        for seed in range(20):
            again = fellows(disk.after_power_loss(random.Random(seed)))
            assert again.is_another("n2", b"another")
            again.learn("n3", b"3")
            assert again.knows("n3")


def test_a_disk_that_fails_is_told_and_nobody_is_known() -> None:
    disk = MemoryDisk()
    ours = fellows(disk)
    disk.fail_at = 1
    with pytest.raises(DiskFailed):
        ours.learn("n2", b"2")
    assert not ours.knows("n2")


def test_every_flipped_bit_and_every_cut_of_the_file_is_noticed() -> None:
    disk = MemoryDisk()
    fellows(disk).learn("n2", b"0123456789abcdef")
    content = disk.files[PATH].now
    whole = bytes(content)
    for bit in range(8 * len(whole)):
        content[:] = whole
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Damaged, match="fellows is damaged"):
            fellows(disk)
    for size in range(len(whole)):
        content[:] = whole[:size]
        with pytest.raises(Damaged, match="fellows is damaged"):
            fellows(disk)
