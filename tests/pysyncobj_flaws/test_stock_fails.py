"""The library as it comes does what our tests forbid: without this they would prove nothing.

Each test here is the twin of one in `test_safety.py` or `test_liveness.py`, and asserts the flaw.
A test that fails here says that the library was mended: then see whether an override can go.
"""

from __future__ import annotations

import gc
import logging
import pickle
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
import pytest
from pysyncobj.journal import FileJournal
from pysyncobj.node import Node
from pysyncobj.tcp_server import SERVER_STATE, TcpServer

from tests.pysyncobj_flaws.stock import LEADER, StockWorld

# The library leaves its files open; that is not what is tested here.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    gc.collect()


Acknowledged = list[tuple[Any, int]]


def note(told: Acknowledged) -> Any:
    return lambda result, error: told.append((result, error))


def successes(told: Acknowledged) -> list[Any]:
    return [result for result, error in told if error == 0]


def test_s1_stock_a_restart_drops_what_follows_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"journalFile": f"{tmp_path}/{{}}.journal", "fullDumpFile": f"{tmp_path}/{{}}.dump"}
    world = StockWorld(monkeypatch, "A", **files)
    world.stand("A")
    node = world.nodes["A"]
    for number in range(10):
        node.put(number)
    for _ in range(3):
        world.tick("A")
    with monkeypatch.context() as killed_before_the_cut:
        killed_before_the_cut.setattr(library.SyncObj, "_SyncObj__deleteEntriesTo", lambda *_: None)
        node.forceLogCompaction()
        world.tick("A")
        for number in range(10, 15):
            node.put(number)
        for _ in range(3):
            world.tick("A")
    assert len(node.lines) == 15
    node.private("raftLog")._destroy()
    again = world.boot("A")
    world.stand("A")
    for _ in range(3):
        world.tick("A")
    assert again.lines == list(range(10))


def test_s2_stock_a_kill_in_compaction_loses_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = FileJournal(f"{tmp_path}/journal")
    for index in range(1, 21):
        journal.add(b"x", index, 1)
    add = journal.add
    added: list[Any] = []

    def killed(*entry: Any) -> None:
        if len(added) == 3:
            raise SystemExit
        added.append(entry)
        add(*entry)

    monkeypatch.setattr(journal, "add", killed)
    with pytest.raises(SystemExit):
        journal.deleteEntriesTo(10)
    monkeypatch.undo()
    journal._destroy()
    again = FileJournal(f"{tmp_path}/journal")
    assert again[-1][1] == 13
    again._destroy()


def test_s3_stock_a_piece_of_a_snapshot_commits_the_followers_own_tail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "FLB", logCompactionBatchSize=50)
    follower = world.elect("F", "L", "B")
    world.pass_rounds()
    told: Acknowledged = []
    follower.put("never committed", callback=note(told))
    world.tick("F")
    world.tick("F")
    world.drop("F", "L"), world.drop("F", "B")
    leader = world.elect("L", "B")
    world.drop("L", "F")
    for number in range(20):
        leader.put(number)
    for _ in range(5):
        world.tick("L", "B")
        world.deliver("L", "B")
        world.deliver("B", "L")
        world.drop("L", "F")
    leader.forceLogCompaction()
    world.tick("L")
    world.tick("L")
    world.drop("L", "F"), world.drop("F", "L")
    world.deliver("L", "B")
    world.deliver("B", "L")
    world.tick("L")
    world.deliver("L", "F")
    world.deliver("F", "L")
    world.tick("L")
    world.deliver("L", "F", 1)
    follower.doTick(0)
    assert successes(told) == ["never committed"]
    assert "never committed" not in leader.lines


def test_s4_stock_a_late_append_removes_acknowledged_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    leader.put("first")
    world.tick("L")
    world.tick("L")
    world.drop("L", "B")
    late = next(message for message in world.link("L", "A") if message.get("entries"))
    world.deliver("L", "A")
    world.deliver("A", "L")
    told: Acknowledged = []
    for number in range(5):
        leader.put(number, callback=note(told))
    for _ in range(4):
        world.tick("L")
        world.deliver("L", "A")
        world.deliver("A", "L")
        world.drop("L", "B")
    assert successes(told) == [0, 1, 2, 3, 4]
    before = len(world.nodes["A"].log)
    world.hear("L", "A", late)
    assert len(world.nodes["A"].log) == before - 5


def test_s5_stock_an_answer_of_an_older_term_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.drop("L", "A"), world.drop("L", "B")
    leader.put("on no other node")
    world.tick("L")
    world.tick("L")
    answer = {"type": "next_node_idx", "next_node_idx": 4, "reset": False, "success": True}
    world.hear("A", "L", answer)  # given in a leadership that is long over
    world.tick("L")
    assert leader.lines == ["on no other node"]


def test_s6_stock_an_older_snapshot_rolls_the_follower_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    for number in range(10):
        leader.put(number)
    world.pass_rounds()
    leader.forceLogCompaction()
    world.tick("L")
    world.tick("L")
    world.pass_rounds()
    for number in range(5):
        leader.put(f"later {number}")
    world.pass_rounds("L", "A")
    assert len(world.nodes["A"].lines) == 15
    reset = {"type": "next_node_idx", "next_node_idx": 3, "reset": True, "success": False}
    world.hear("A", "L", reset)
    world.tick("L")
    snapshots = sum("serialized" in message for message in world.link("L", "A"))
    world.deliver("L", "A", snapshots)
    assert len(world.nodes["A"].lines) == 10


def test_s7_stock_a_snapshot_that_cannot_be_read_is_acknowledged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    damaged = {
        "type": "append_entries",
        "term": 1,
        "commit_index": 50,
        "serialized": (b"damaged", True, True),
    }
    world.hear("L", "A", damaged)
    answer = world.link("A", "L")[-1]
    assert answer["success"] is True
    assert world.nodes["A"].lines == []


def test_s8_stock_a_callback_that_raises_applies_the_entry_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "A")
    world.stand("A")

    def raises(*_: object) -> None:
        raise RuntimeError("the caller has gone")

    node = world.nodes["A"]
    node.put("once", callback=raises)
    for _ in range(3):
        try:
            world.tick("A")
        except RuntimeError:
            continue
    assert node.lines == ["once", "once"]


def test_s9_stock_a_lost_meta_file_is_a_vote_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = StockWorld(monkeypatch, "ABC", journalFile=f"{tmp_path}/{{}}.journal")
    world.stand("A")
    world.deliver("A", "B")
    assert world.nodes["B"].private("votedForNodeId") == "A"
    world.nodes["B"].private("raftLog")._destroy()
    Path(f"{tmp_path}/B.journal.meta").write_bytes(b"")
    assert world.boot("B").private("votedForNodeId") is None


def test_s11_stock_takes_four_changes_of_members_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "LAB", dynamicMembershipChange=True)
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    for name in "CDEF":
        leader.addNodeToCluster(Node(name))
    world.tick("L")
    assert len(leader.otherNodes) == 6


def test_s13_stock_counts_a_voter_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "ABCDE")
    world.stand("A")
    world.deliver("A", "B")
    vote = world.link("B", "A")[0]
    world.hear("B", "A", vote)
    world.hear("B", "A", vote)
    assert world.nodes["A"].private("raftState") == LEADER


def test_s14_stock_an_unknown_code_version_shifts_what_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    leader._applyCommand(pickle.dumps(7), None, library._COMMAND_TYPE.VERSION)
    for number in range(3):
        leader.put(number)
    world.pass_rounds()
    assert leader.lines.count(2) > 1


def test_l1_stock_a_node_that_was_away_deposes_a_living_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.pass_rounds()
    world.stand("A")
    world.deliver("A", "L")
    assert not leader._isLeader()


def test_l2_stock_a_leader_without_followers_leads_on_for_thirty_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = StockWorld(monkeypatch, "LAB")
    leader = world.elect("L", "A", "B")
    world.now += 29
    world.tick("L")
    assert leader._isLeader()


def test_l3_stock_a_command_that_raises_is_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "A")
    world.stand("A")
    node = world.nodes["A"]
    node._applyCommand(b"\x00" + pickle.dumps((node._methodToID["put_v0"], ())), None)
    node.put("behind it")
    world.tick("A")
    for _ in range(5):
        with pytest.raises(TypeError):
            world.tick("A")
    assert node.lines == []


def test_l5_stock_one_failed_accept_unbinds_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poller:
        def subscribe(self, *_: object) -> None: ...
        def unsubscribe(self, *_: object) -> None: ...

    server = TcpServer(Poller(), "127.0.0.1", 0, onNewConnection=lambda _: None)
    server.bind()

    class NoMore:
        def accept(self) -> None:
            raise OSError(24, "Too many open files")

        def close(self) -> None: ...

    listener = server._TcpServer__socket
    monkeypatch.setattr(server, "_TcpServer__socket", NoMore())
    server._TcpServer__onNewConnection(None, 1)
    assert server._TcpServer__state == SERVER_STATE.UNBINDED
    assert isinstance(listener, socket.socket)
    listener.close()


def test_l7_stock_goes_back_one_index_in_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    world = StockWorld(monkeypatch, "LAB")
    entries = [(b"\x01", index, 1) for index in range(2, 12)]
    append = {
        "type": "append_entries",
        "term": 1,
        "commit_index": 1,
        "prevLogIdx": 1,
        "prevLogTerm": 0,
        "entries": entries,
    }
    world.hear("L", "A", append)
    world.drop("A", "L")
    world.hear("B", "A", append | {"term": 3, "prevLogIdx": 11, "prevLogTerm": 2, "entries": []})
    assert world.link("A", "B")[-1]["next_node_idx"] == 11  # the next try will be 10, then 9, ...
