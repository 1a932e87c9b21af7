"""A journal can be looked into and verified, by a person and beside a running node, untouched."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cluster.cli.main import main
from cluster.errors import StorageError
from cluster.raft.entries import COMMANDS, MEMBERS, NOTHING, encode_group
from cluster.raft.members import encode_members
from cluster.storage import journal_recovery
from cluster.storage.directory import Identity, open_directory
from cluster.storage.disk import PosixDisk
from cluster.storage.fellows import Fellows
from cluster.storage.journal import Journal
from cluster.storage.journal_inspection import NotADirectory, inspect
from cluster.storage.journal_words import Unreadable, words_of, words_of_entry
from cluster.storage.snapshots import SnapshotMeta, SnapshotStore
from coordinator.commands import (
    KINDS,
    Acknowledge,
    Begin,
    Close,
    Command,
    Decide,
    Enlist,
    Epoch,
    Forget,
    Refuse,
    Resolve,
    encode,
)
from coordinator.facts import Branch, Branches, Effect, Mode
from participants.contract import Vote

N1 = Identity("c", "n1", ("n1", "n2", "n3"))
STOCK = Branch("1", "stock", "http://s", "http://s/p", "http://s/c", "http://s/r", True)
DECIDED = Decide(2, 5, "t-1", (Vote.YES, Vote.READ_ONLY), (None, None), None)
COMMANDS_IN_WORDS: dict[str, Command] = {
    "epoch 2, led by n1": Epoch(2, 5, "n1"),
    "begin t-1 (one-shot), branches: stock": Begin(
        2, 5, "t-1", "f", Mode.ONE_SHOT, Branches((STOCK,)), (b"{}",), 9, b"{}"
    ),
    "enlist in t-1: stock": Enlist(2, 5, "t-1", STOCK, b"{}"),
    "close t-1": Close(2, 5, "t-1"),
    "decide t-1, votes: yes, read only": DECIDED,
    "refuse t-1: a participant asked before it was begun": Refuse(2, 5, "t-1"),
    "acknowledge t-1, branches: 1, 3": Acknowledge(2, 5, "t-1", 0b101),
    "resolve t-1: aborted by ann: stuck": Resolve(2, 5, "t-1", None, None, "ann", "stuck"),
    "resolve t-1, branch 2: committed, says ann: seen": Resolve(
        2, 5, "t-1", "2", Effect.COMMITTED, "ann", "seen"
    ),
    "forget what was finished before 1970-01-01T00:00:01.500Z": Forget(2, 5, 1_500),
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run_command(*arguments: object) -> tuple[int, str, str]:
        code = main(["journal", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def open_journal(home: Path, **options: Any) -> Journal:
    return Journal.open(
        home / "journal", cluster="c", node="n1", disk=PosixDisk(), segment_bytes=400, **options
    )


def sync(journal: Journal) -> None:
    job = journal.start_sync()
    assert job is not None
    job()
    journal.after_sync()


def directory_of_a_node(home: Path) -> Path:
    """Several segments behind a snapshot, a vote, and entries of every kind."""
    disk = PosixDisk()
    open_directory(home, N1, bootstrap=True, disk=disk, random=Random(1)).close()
    journal = open_journal(home)
    journal.append(NOTHING, 1, 0)
    journal.append(MEMBERS + encode_members(("n1", "n2")), 2, 1)
    journal.set_vote(2, "n2")
    for index, command in enumerate(COMMANDS_IN_WORDS.values(), 3):
        journal.append(encode_group(2, [encode(command), encode(DECIDED)]), index, 2)
        journal.commit_hint = index - 1
        sync(journal)
    previous, last = journal[2:4]
    meta = SnapshotMeta(last, previous, ("n1", "n2"))
    SnapshotStore(home / "snapshots", disk=disk, cluster="c").write(meta, [b"state", b"more"])
    journal.compact_to(4)
    sync(journal)
    journal.close()
    return home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return directory_of_a_node(tmp_path / "n1")


def bytes_of(home: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file()}


def flip(path: Path, offset: int) -> None:
    blob = bytearray(path.read_bytes())
    blob[offset] ^= 0x10
    path.write_bytes(blob)


def starts(home: Path) -> bool:
    """Whether a node starts on a copy of the directory."""
    copy = home.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(home, copy)
    try:
        open_directory(copy, N1, bootstrap=False, disk=PosixDisk(), random=Random(1)).close()
        open_journal(copy).close()
        SnapshotStore(copy / "snapshots", disk=PosixDisk(), cluster="c").load(lambda _: None)
    except StorageError:
        return False
    return True


# --- words


@pytest.mark.parametrize("words", COMMANDS_IN_WORDS)
def test_every_command_is_told_in_words(words: str) -> None:
    assert words_of(COMMANDS_IN_WORDS[words]) == words


def test_no_command_is_without_words() -> None:
    assert {type(command) for command in COMMANDS_IN_WORDS.values()} == set(KINDS.values())


def test_an_entry_that_this_program_does_not_know_is_unreadable() -> None:
    newer = encode_group(1, [b"\x94\x63\x01\x00\x00"])
    for entry in (b"", b"\x09", COMMANDS + b"\xc1", MEMBERS + b"\x01", newer):
        with pytest.raises(Unreadable):
            words_of_entry(entry)


# --- inspect


def test_inspect_tells_what_the_directory_holds(home: Path, run: Run) -> None:
    before = bytes_of(home)
    code, out, err = run("inspect", home, "--entries")
    assert (code, err) == (0, "")
    assert out.startswith(f"node n1 of cluster c, in {home}\n")
    assert "log       entries 4 to 12, the last of term 2\n" in out
    assert "term      2, voted for n2; 11 was known to be committed\n" in out
    assert "up to entry 12\n" in out
    assert "snapshot  to entry 4 of term 2, " in out
    assert "voters n1, n2" in out
    assert "running" not in out
    for words in list(COMMANDS_IN_WORDS)[1:]:
        assert words in out
    assert "begin t-1" in out
    assert bytes_of(home) == before


def test_inspect_for_machines(home: Path, run: Run) -> None:
    code, out, _ = run("inspect", home, "--entries", "--json")
    shown = json.loads(out)
    assert code == 0
    assert (shown["node"], shown["cluster"], shown["running"]) == ("n1", "c", False)
    assert (shown["first_index"], shown["last_index"]) == (4, 12)
    assert (shown["term"], shown["vote"], shown["watermark"]["last_index"]) == (2, "n2", 12)
    assert [entry["index"] for entry in shown["entries"]] == list(range(4, 13))
    assert shown["entries"][1]["says"] == [
        "enlist in t-1: stock",
        "decide t-1, votes: yes, read only",
    ]
    segments = shown["segments"]
    assert len(segments) > 2
    assert all(s["bytes"] == (home / "journal" / s["file"]).stat().st_size for s in segments)
    assert shown["snapshot"]["last_index"] == 4
    assert shown["damage"] == []
    assert "entries" not in json.loads(run("inspect", home, "--json")[1])


def test_a_running_node_is_neither_hindered_nor_passed_over(home: Path, run: Run) -> None:
    held = open_directory(home, N1, bootstrap=False, disk=PosixDisk(), random=Random(1))
    journal = open_journal(home)
    try:
        journal.append(NOTHING, 13, 2)
        journal.write()  # and not synced
        code, out, _ = run("inspect", home)
        assert code == 0
        assert "the node is running" in out
        assert "entries 4 to 13" in out
        assert "up to entry 12\n" in out
        assert run("verify", home)[0] == 0
        journal.append(NOTHING, 14, 2)
        sync(journal)
    finally:
        journal.close()
        held.close()
    assert "the node is running" not in run("inspect", home)[1]
    open_directory(home, N1, bootstrap=False, disk=PosixDisk(), random=Random(1)).close()


# --- verify


def test_verify_of_a_whole_directory(home: Path, run: Run) -> None:
    before = bytes_of(home)
    code, out, err = run("verify", home)
    assert (code, err) == (0, "")
    assert f"{home} is whole: " in out
    assert "9 entries" in out
    assert bytes_of(home) == before
    assert json.loads(run("verify", home, "--json")[1])["damage"] == []


def test_verify_finds_every_flipped_bit_that_keeps_a_node_from_starting(home: Path) -> None:
    """And calls nothing damaged on which a node starts."""
    found_some = 0
    for path in (
        home / "identity",
        home / "snapshots" / "snapshot",
        *sorted((home / "journal").glob("segment-*")),
    ):
        size = path.stat().st_size
        for offset in range(0, size, 7):
            flip(path, offset)
            found = inspect(home, verify=True)
            assert bool(found.findings) is not starts(home), (path.name, offset)
            for finding in found.findings:
                assert finding.path == path
                assert finding.offset <= offset
                assert finding.what
                found_some += 1
            flip(path, offset)
    assert found_some > 100
    assert inspect(home, verify=True).findings == []


def test_damage_is_told_with_file_place_meaning_and_what_to_do(home: Path, run: Run) -> None:
    path = sorted((home / "journal").glob("segment-*"))[-2]
    flip(path, path.stat().st_size - 3)
    before = bytes_of(home)
    for command in ("verify", "inspect"):
        code, out, _ = run(command, home)
        assert code == 1
        assert f"{path} is damaged at byte " in out
        assert "promised" in out
        assert "Keep the directory aside" in out
        assert "must not come back under its old id" in out
    code, out, _ = run("verify", home, "--json")
    assert code == 1
    assert json.loads(out)["damage"][0]["file"] == str(path)
    assert bytes_of(home) == before


def test_damage_to_what_is_kept_of_the_other_nodes_is_told(home: Path, run: Run) -> None:
    path = home / "fellows"
    Fellows(path, PosixDisk(), b"").learn("n2", b"0123456789abcdef")
    assert inspect(home, verify=True).findings == []
    flip(path, path.stat().st_size - 3)
    code, out, _ = run("verify", home)
    assert code == 1
    assert f"{path} is damaged at byte 0" in out
    assert "must not come back under its old id" in out


def test_a_torn_tail_behind_the_last_sync_is_told_and_is_no_damage(home: Path, run: Run) -> None:
    path = sorted((home / "journal").glob("segment-*"))[-1]
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    code, out, _ = run("verify", home)
    assert code == 0
    assert f"byte {len(whole)}: the record there is not whole" in out
    assert "the next start cuts it away" in out
    assert starts(home)
    assert path.read_bytes() == whole + whole[:20]


def test_a_cut_that_makes_older_segments_needed_again_is_no_damage(home: Path) -> None:
    """
    1. The log is compacted: the group that says so, and a new segment that names the older ones it
       needs, none. They are removed when both are synced.
    2. The power fails before that. The new segment is there, the group is not.
    """
    before = [segment for segment in inspect(home).segments if segment.groups]
    older = sorted((home / "journal").glob("segment-*"))
    journal = open_journal(home)
    size = older[-1].stat().st_size
    journal.compact_to(journal.last_index)
    os.truncate(older[-1], size)
    found = inspect(home, verify=True)
    assert found.findings == []
    assert found.tear is not None
    assert found.tear.position == (len(older), size)
    assert [segment for segment in found.segments if segment.groups] == before
    assert starts(home)
    journal.close()


def test_a_lost_watermark_is_told(home: Path, run: Run) -> None:
    (home / "journal" / "watermark").unlink()
    code, out, _ = run("verify", home)
    assert code == 0
    assert "watermark says nothing" in out


@pytest.mark.parametrize("gone", ["journal", "journal/segment-*", "snapshots/snapshot"])
def test_what_is_missing_is_damage(home: Path, run: Run, gone: str) -> None:
    for path in home.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, out, _ = run("verify", home)
    assert code == 1
    assert "missing" in out


def test_a_missing_segment_is_damage(home: Path, run: Run) -> None:
    path = sorted((home / "journal").glob("segment-*"))[1]
    path.unlink()
    code, out, _ = run("verify", home)
    assert code == 1
    assert f"{path} is damaged at byte 0: the segment is missing" in out


def test_an_entry_of_a_newer_program_is_found(home: Path, run: Run) -> None:
    journal = open_journal(home)
    journal.append(b"\x09 from the future", 13, 2)
    sync(journal)
    journal.close()
    code, out, _ = run("verify", home)
    assert code == 1
    assert "entry 13 is whole, but this program cannot read it" in out
    assert "Start the program that wrote it" in out
    assert "cannot be read" in run("inspect", home, "--entries")[1]


# --- mistakes


def test_what_is_no_data_directory_is_a_mistake(home: Path, tmp_path: Path, run: Run) -> None:
    for path in (tmp_path / "nowhere", tmp_path, home / "journal"):
        code, out, err = run("verify", path)
        assert (code, out) == (2, "")
        assert err.startswith(f"assent: {path} is not the data directory of a node")
        assert err.count("\n") == 1
    with pytest.raises(NotADirectory):
        inspect(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["identity", "journal/watermark", "journal/segment-*"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(home: Path, run: Run, name: str) -> None:
    lock, path = home / "LOCK", max(home.glob(name))
    for each in (lock, path):
        each.unlink()
        os.mkfifo(each)
    code, out, err = run("verify", home)
    assert (code, out) == (2, "")
    assert err == f"assent: cannot open {path}: it is a pipe\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("identity", "its checksum does not fit"),
        ("journal/watermark", "is whole"),
        ("journal/segment-*", "no node writes more into one file"),
    ],
)
def test_of_a_sparse_file_no_more_is_read_than_a_node_writes(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, said: str
) -> None:
    read: list[int] = []
    real = os.pread

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        read.append(size)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", spy)
    monkeypatch.setattr(journal_recovery, "MOST_SEGMENT_BYTES", 1 << 20)
    os.truncate(max(home.glob(name)), 3 << 20)
    code, out, _ = run("verify", home)
    assert said in out
    assert max(read) <= (1 << 20) + 1
    assert (code == 0) == starts(home)


def test_a_file_that_this_program_may_not_read_says_nothing_of_the_node(
    home: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "")

    monkeypatch.setattr(os, "open", refuse)
    code, out, err = run("inspect", home)
    assert (code, out) == (2, "")
    assert err == f"assent: cannot open {home / 'identity'}: Too many open files\n"


def test_a_journal_of_another_node_is_a_mistake_of_who_moved_it(
    home: Path, tmp_path: Path, run: Run
) -> None:
    other = tmp_path / "n2"
    open_directory(
        other, N1._replace(node="n2"), bootstrap=True, disk=PosixDisk(), random=Random(1)
    ).close()
    shutil.copy(other / "identity", home / "identity")
    code, _, err = run("verify", home)
    assert code == 2
    assert "belongs to node n1 of cluster c, not to node n2" in err
