"""More flaws of the library as it comes, each shown; the list is docs/pysyncobj.md.

Like test_stock_fails.py: a test here passes because the library fails, and would fail if the flaw
were mended in it.
"""

from __future__ import annotations

import gc
import logging
import pickle
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
import pytest
from pysyncobj import FAIL_REASON
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.pipe_notifier import PipeNotifier
from pysyncobj.tcp_connection import TcpConnection

from tests.pysyncobj_flaws.stock import LEADER, StockWorld

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
"""The library leaves files to the collector."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.collect()


class NoPoller:
    def subscribe(self, *_: object) -> None: ...
    def unsubscribe(self, *_: object) -> None: ...


def test_s10_stock_without_a_dump_file_what_is_compacted_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = StockWorld(monkeypatch, "A", journalFile=f"{tmp_path}/{{}}.journal")
    world.stand("A")
    node = world.nodes["A"]
    for number in range(10):
        node.put(number)
    for _ in range(3):
        world.tick("A")
    node.forceLogCompaction()
    for _ in range(3):
        world.tick("A")
    assert len(node.lines) == 10
    node.private("raftLog")._destroy()
    again = world.boot("A")
    world.stand("A")
    for _ in range(3):
        world.tick("A")
    assert again.lines == []
    again.private("raftLog")._destroy()


def test_s12_stock_restarts_with_the_members_of_its_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"journalFile": f"{tmp_path}/{{}}.journal"}
    world = StockWorld(monkeypatch, "LAB", dynamicMembershipChange=True, **files)
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    leader.addNodeToCluster(Node("C"))
    world.pass_rounds()
    follower = world.nodes["A"]
    assert {node.id for node in follower.otherNodes} == {"L", "B", "C"}
    for node in world.nodes.values():
        node.private("raftLog")._destroy()
    again = world.boot("A")
    assert {node.id for node in again.otherNodes} == {"L", "B"}
    again.private("raftLog")._destroy()


def test_s15_stock_a_write_that_fails_leaves_log_and_disk_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(f"{tmp_path}/journal")
    journal.add(b"x", 1, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(journal._FileJournal__journalFile, "write", full)
        with pytest.raises(OSError, match="No space"):
            journal.add(b"y", 2, 1)
    assert [entry[1] for entry in journal[:]] == [1, 2]
    journal._destroy()
    again = FileJournal(f"{tmp_path}/journal")
    assert [entry[1] for entry in again[:]] == [1]
    again._destroy()


def test_s16_stock_a_journal_ends_at_four_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(f"{tmp_path}/journal")
    file = journal._FileJournal__journalFile
    with monkeypatch.context() as large:
        large.setattr(file, "write", lambda *_: None)
        large.setattr(journal, "_FileJournal__currentOffset", (1 << 32) - 8)
        with pytest.raises(struct.error):
            journal.add(b"x", 1, 1)
    assert len(journal) == 1, "in memory, and in no file"
    journal._destroy()


def test_s18_stock_two_may_write_one_journal(tmp_path: Path) -> None:
    one, other = FileJournal(f"{tmp_path}/journal"), FileJournal(f"{tmp_path}/journal")
    one.add(b"one", 1, 1)
    one.add(b"one more", 2, 1)
    other.add(b"other", 1, 2)
    one._destroy()
    other._destroy()
    again = FileJournal(f"{tmp_path}/journal")
    assert [entry[0] for entry in again[:]] == [b"other"]
    again._destroy()


_executed: list[str] = []


def execute(what: str) -> None:
    _executed.append(what)


class Executed:
    """A pickle of it calls `execute` when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return execute, ("anything",)


def test_d_stock_runs_what_is_sent_to_its_port() -> None:
    connection = TcpConnection(NoPoller())
    body = zlib.compress(pickle.dumps(Executed()))
    connection._TcpConnection__readBuffer = struct.pack("i", len(body)) + body
    _executed.clear()
    connection._TcpConnection__processParseMessage()
    assert _executed == ["anything"]


def test_d_stock_obeys_a_leader_that_is_no_member(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    leader.put("acknowledged")
    world.pass_rounds()
    entry = (b"\x01", 3, 99)
    message = {
        "type": "append_entries",
        "term": 99,
        "commit_index": 3,
        "prevLogIdx": 2,
        "prevLogTerm": world.nodes["A"].log[1][1],
        "entries": [entry],
    }
    world.links.clear()
    world.hear("stranger", "A", message)
    assert world.nodes["A"].log[-1] == (3, 99), "the committed entries are overwritten"
    assert world.nodes["A"].private("raftLeader").id == "stranger"


def test_l4_stock_a_forwarded_command_is_never_answered_when_the_connection_breaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    world.elect("L", "A", "B")
    world.pass_rounds()
    told: list[Any] = []
    follower = world.nodes["A"]
    follower.put("forwarded", callback=lambda *answer: told.append(answer))
    world.tick("A")
    assert [message["type"] for message in world.drop("A", "L")] == ["apply_command"]
    follower.port._onNodeDisconnected(Node("L"))
    follower.port._onNodeConnected(Node("L"))
    for _ in range(50):
        world.pass_rounds(rounds=1)
    assert told == []


def test_l4_stock_an_answer_to_an_earlier_life_answers_a_new_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    world.nodes["A"].put("old", callback=lambda *_: None)
    world.tick("A")
    world.deliver("A", "L")
    again = world.boot("A")  # its requests are numbered from 1 again
    for _ in range(3):
        world.tick("L")
        world.deliver("L", "B")
        world.deliver("B", "L")
    answers = [m for m in world.drop("L", "A") if m["type"] == "apply_command_response"]
    heartbeat = {"type": "append_entries", "term": 1, "commit_index": 1}
    world.hear("L", "A", heartbeat | {"prevLogIdx": 1, "prevLogTerm": 0, "entries": []})
    told: list[Any] = []
    again.put("new", callback=lambda *answer: told.append(answer))
    world.tick("A")
    world.drop("A", "L")
    world.hear("L", "A", answers[0])
    world.hear(
        "L",
        "A",
        heartbeat
        | {
            "prevLogIdx": 1,
            "prevLogTerm": 0,
            "entries": leader.private("raftLog")[1:],
            "commit_index": answers[0]["log_idx"],
        },
    )
    again.doTick(0)
    assert [error for _, error in told] == [FAIL_REASON.SUCCESS]
    assert "new" not in leader.lines


def test_l6_stock_floods_a_follower_while_it_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    for number in range(5):
        leader.put(number)
    world.pass_rounds("L", "B")
    leader.forceLogCompaction()
    world.tick("L")
    world.tick("L")
    world.drop("L", "A"), world.drop("A", "L")
    leader.private("raftNextIndex")[Node("A")] = 2
    monkeypatch.setattr(
        leader.private("serializer"), "getTransmissionData", lambda _: (b"x", False, False)
    )
    started = world.now

    def passes() -> float:
        world.now += 1e-5
        return world.now

    monkeypatch.setattr(library, "monotonicTime", passes)
    leader._SyncObj__sendAppendEntries()
    assert len(world.link("L", "A")) > 1_000, "in one call, with nothing answered"
    assert world.now - started > leader.private("conf").appendEntriesPeriod


def test_l8_stock_a_leader_asks_at_a_place_that_it_does_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    world.drop("L", "A")
    behind = {"type": "next_node_idx", "next_node_idx": 40, "reset": True, "success": False}
    world.hear("A", "L", behind)
    world.tick("L")
    asked = world.link("L", "A")[-1]
    assert (asked["prevLogIdx"], asked["prevLogTerm"]) == (None, None)
    assert leader.log[-1][0] < 39


def test_l9_stock_some_sizes_of_entries_never_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = []
    for size in (131_000, 131_040, 131_100):
        world = StockWorld(monkeypatch, "LAB", appendEntriesBatchSizeBytes=1 << 16)
        leader = world.elect("L", "A", "B")
        world.pass_rounds()
        leader._applyCommand(b"x" * size, None, library._COMMAND_TYPE.NO_OP)
        world.tick("L")
        world.tick("L")
        try:
            world.deliver("L", "A")
        except (EOFError, pickle.UnpicklingError, struct.error):
            failed.append(size)
    assert failed == [131_040]


def test_l10_stock_a_full_pipe_fails_a_command_that_was_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "A", appendEntriesUseBatch=False)
    node = world.nodes["A"]
    pipe = PipeNotifier(NoPoller())
    monkeypatch.setattr(node, "_SyncObj__pipeNotifier", pipe)
    with suppress(BlockingIOError):
        while True:
            pipe.notify()
    with pytest.raises(BlockingIOError):
        node.put("refused, says the caller")
    world.stand("A")
    for _ in range(3):
        world.tick("A")
    assert node.lines == ["refused, says the caller"]


def test_fault_6_stock_a_dump_that_ends_after_an_install_empties_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    for number in range(10):
        leader.put(number)
    world.pass_rounds()
    follower = world.nodes["A"]
    follower.private("serializer").checkSerializing = lambda: (library.SERIALIZER_STATE.SUCCESS, 9)
    log = follower.private("raftLog")
    last = log[-1]
    log.clear()  # as `__loadDumpFile` leaves it: two entries, of a snapshot much further on
    log.add(last[0], 30, 1)
    log.add(last[0], 31, 1)
    follower.private("serializer").checkSerializing = lambda: (library.SERIALIZER_STATE.SUCCESS, 35)
    follower._SyncObj__tryLogCompaction()
    assert len(log) == 0
    with pytest.raises(IndexError):
        follower.doTick(0)
    assert leader.private("raftState") == LEADER
