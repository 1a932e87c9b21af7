"""The library's flaws of safety, each by its number, and that the core does not have it.

What the stock library does in the same situation is in `test_stock_fails.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from cluster.errors import Damaged, DiskFailed, FailStop, InUse
from cluster.raft import wire
from cluster.raft.entries import COMMANDS, MEMBERS, encode_group
from cluster.raft.members import decode_members, encode_members
from cluster.raft.state import CoreLimits, Role
from cluster.raft.wire import AppendReply, RequestVote, SnapshotReply, VoteReply
from cluster.storage.directory import Directory, Identity, open_directory
from cluster.storage.disk import PosixDisk
from cluster.storage.journal import Journal
from tests.ledger import put
from tests.raft_world import Node, World, append, lagging, piece


def led(tmp_path: Path, names: str = "LAB", **options: object) -> tuple[World, Node]:
    """A world whose first node leads, everybody in step."""
    world = World(tmp_path, names, **options)
    leader = world.elect(names[0], *names[1:])
    world.pass_rounds()
    return world, leader


def test_s1_a_restart_keeps_what_follows_the_snapshot(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    for number in range(10):
        leader.put(str(number))
    world.pass_rounds()
    leader.jobs_run_at_once = False
    leader.core.forceLogCompaction()
    world.pass_rounds()
    assert leader.core.taking
    for number in range(10, 15):
        leader.put(str(number))
    world.pass_rounds()
    leader.run_jobs()  # the snapshot is in place, the journal is not cut yet
    assert leader.store.exists
    first = leader.journal.first_index
    world.crash("L")
    again = world.boot("L")
    assert again.journal.first_index == first == 1
    assert again.core.applied == 13
    world.elect("A", "L", "B")
    world.pass_rounds()
    assert again.lines == [str(number) for number in range(15)]


def test_s1_a_journal_that_does_not_meet_its_snapshot_is_refused(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    for number in range(10):
        leader.put(str(number))
    world.pass_rounds()
    leader.core.forceLogCompaction()
    leader.step()
    leader.step()
    assert leader.journal.first_index > 1
    world.crash("L")
    snapshot = tmp_path / "L" / "snapshots" / "snapshot"
    snapshot.unlink()
    with pytest.raises(Damaged, match=f"{snapshot} .*: it is missing, and the journal begins at"):
        world.boot("L")


def test_s2_compaction_never_leaves_less_than_it_keeps(tmp_path: Path) -> None:
    """The journal as a killed process leaves it, after each of its writes."""
    journal = Journal.open(tmp_path / "j", cluster="c", node="n", disk=PosixDisk(), sync=False)
    for index in range(1, 21):
        journal.append(b"\x01", index, 1)
    journal.write()
    journal.compact_to(11)  # what it has to write is written, the old segment is still there
    again = Journal.open(tmp_path / "j", cluster="c", node="n", disk=PosixDisk(), sync=False)
    assert [index for _, index, _ in again[:]] == list(range(11, 21))
    again.close()
    journal.close()


def test_s3_a_piece_of_a_snapshot_commits_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, "FLB")
    follower = world.nodes["F"]
    follower.hear("B", append(1, (1, 0), [(2, 1), (3, 1)], 1))
    follower.hear("L", piece(term=2, index=40, entry_term=2))
    follower.step()
    assert follower.core.commit == follower.core.applied == 1
    assert follower.log == [(1, 0), (2, 1), (3, 1)]


def test_s3_a_heartbeat_commits_no_more_than_was_compared(tmp_path: Path) -> None:
    world = World(tmp_path, "FLB")
    follower = world.nodes["F"]
    follower.hear("B", append(1, (1, 0), [(2, 1), (3, 1), (4, 1)], 1))
    follower.hear("L", append(2, (2, 1), [], 50))
    assert follower.core.commit == 2


def test_a_commit_index_never_goes_back(tmp_path: Path) -> None:
    """A new leader may know less; what is below is never cut, nor replaced by a snapshot."""
    follower = World(tmp_path, "FLB").nodes["F"]
    follower.hear("B", append(1, (1, 0), [(2, 1), (3, 1)], 3))
    follower.hear("L", append(2, (3, 1), [(4, 2)], 2))
    assert follower.core.commit == 3


def test_s4_a_late_append_removes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    late = append(1, (1, 0), [(2, 1)], 1)
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1)], 1))
    follower.hear("L", append(1, (3, 1), [(4, 1), (5, 1), (6, 1)], 3))
    follower.step()
    world.drop("A", "L")
    follower.hear("L", late)
    follower.step()
    assert follower.log[-1] == (6, 1)
    reply = world.link("A", "L")[-1]
    assert isinstance(reply, AppendReply)
    assert reply.matched
    assert reply.next_index == 4, "it claims what it compared or committed, and no more"


def test_s4_a_shorter_resend_removes_nothing_and_a_conflict_does(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1), (4, 1), (5, 1)], 3))
    follower.hear("L", append(1, (3, 1), [(4, 1)], 3))
    assert follower.log[-1] == (5, 1)
    follower.hear("B", append(2, (4, 1), [(5, 2)], 4))
    assert follower.log[-1] == (5, 2)


def test_s4_a_leader_that_contradicts_a_committed_entry_stops_the_node(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1), (4, 1)], 4))
    with pytest.raises(FailStop, match="contradicts entry 4"):
        follower.hear("B", append(2, (3, 1), [(4, 2)], 4))
    with pytest.raises(FailStop, match="contradicts entry 3"):
        follower.hear("B", append(3, (3, 2), [], 4))


def test_s5_an_answer_of_an_older_term_counts_for_nothing(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    world.elect("A", "B", "L")
    world.elect("L", "A", "B")
    world.pass_rounds()
    commit, term = leader.core.commit, leader.core.term
    leader.put("on no other node")
    leader.step()
    last = leader.journal.last_index
    leader.hear("A", AppendReply(term - 2, leader.core.round, 1, True, last + 1))
    leader.step()
    assert leader.core.commit == commit
    leader.hear("A", AppendReply(term, leader.core.round, 1, True, last + 1))
    leader.step()
    assert leader.core.commit == last


def test_s5_a_refusal_acknowledges_nothing(tmp_path: Path) -> None:
    """Where it says that the leader must go on, it has compared nothing yet."""
    _, leader = led(tmp_path)
    before = leader.core.match_index("A")
    for number in range(5):
        leader.put(str(number))
    leader.step()
    last = leader.journal.last_index
    leader.hear("A", AppendReply(leader.core.term, leader.core.round, 1, False, last))
    assert leader.core.match_index("A") == before < last - 1
    leader.step()
    assert leader.core.commit == before


def test_s5_an_answer_beyond_the_log_counts_for_nothing(tmp_path: Path) -> None:
    _, leader = led(tmp_path)
    before = leader.core.match_index("A")
    leader.hear("A", AppendReply(leader.core.term, leader.core.round, 1, True, 10**6))
    assert leader.core.match_index("A") == before


def test_s6_an_older_snapshot_is_not_installed(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1), (4, 1)], 3))
    follower.step()
    world.drop("A", "B")
    follower.hear("B", piece(term=2, index=3, entry_term=1))
    follower.step()
    assert follower.log[-1] == (4, 1)
    reply = world.link("A", "B")[-1]
    assert reply == AppendReply(2, 1, 1, True, 4)


def test_an_installed_snapshot_is_acknowledged_to_its_end_and_no_further(tmp_path: Path) -> None:
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    index = leader.core.snapshot_index
    said: list[wire.RaftMessage] = []
    while not follower.core.snapshot_index:
        world.now += 0.11
        leader.step()
        world.deliver("L", "B")
        said = follower.step()
        world.deliver("B", "L")
    assert follower.log[-1] == (index, 1)
    assert said[-1] == AppendReply(leader.core.term, 0, 1, True, index + 1)
    assert leader.core.match_index("B") == index
    leader.put("behind it")
    world.pass_rounds("L", "B")
    assert follower.lines == leader.lines
    assert not leader.core.shipments


def test_who_lacks_the_first_entry_that_is_kept_gets_the_snapshot(tmp_path: Path) -> None:
    """That entry says nothing of the one before it, so the logs could not be compared there."""
    world, leader = lagging(tmp_path)
    first, term = leader.journal.first_index, leader.core.term
    follower = world.nodes["B"]
    follower.hear("L", append(term, (1, 0), [(at, term) for at in range(2, first)], 1))
    follower.step()
    world.drop("B", "L")
    leader.core.set_next_index("B", first)
    world.now += 0.11
    sent = leader.step()
    assert any(isinstance(message, wire.SnapshotPiece) for message in sent)


def test_s6_a_snapshot_that_is_overtaken_while_it_is_verified_is_not_installed(
    tmp_path: Path,
) -> None:
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    follower.jobs_run_at_once = False
    for _ in range(4):
        world.pass_rounds("L", "B", rounds=1)
    assert follower.core.installing
    index = leader.core.snapshot_index
    entries = [(at, term) for at, term in [*FIRST, *((n, 1) for n in range(2, index + 2))]]
    follower.core.journal.reset([(b"\x01", at, term) for at, term in entries])
    follower.core.set_commit(index + 1)
    follower.run_jobs()
    assert not follower.core.installing
    assert not follower.store.exists
    assert follower.log[0] == (1, 0)


FIRST = [(1, 0)]


def test_s7_a_snapshot_that_comes_damaged_is_neither_installed_nor_acknowledged(
    tmp_path: Path,
) -> None:
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    for _ in range(40):
        world.now += 0.11
        leader.step()
        link = world.link("L", "B")
        while link:
            message = link.popleft()
            if isinstance(message, wire.SnapshotPiece) and message.payload:
                flipped = bytes([message.payload[0] ^ 1]) + message.payload[1:]
                message = wire.SnapshotPiece(
                    message.term, message.round, 1, message.index, message.entry_term,
                    message.offset, message.last, flipped,
                )  # fmt: skip
            follower.hear("L", message)
        follower.step()
        answers = list(world.link("B", "L"))
        assert not any(isinstance(answer, AppendReply) and answer.matched for answer in answers)
        world.deliver("B", "L")
    assert follower.core.commit == 1
    assert not follower.store.exists
    world.pass_rounds(rounds=40)
    assert follower.lines == leader.lines, "and it is asked for again"


def test_s7_a_snapshot_of_our_own_that_is_damaged_is_no_start(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    world.pass_rounds()
    leader.core.forceLogCompaction()
    leader.step()
    leader.step()
    world.crash("L")
    file = tmp_path / "L" / "snapshots" / "snapshot"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(Exception, match="damaged"):
        world.boot("L")


def test_s8_an_entry_is_applied_once(tmp_path: Path) -> None:
    """Nobody's callback runs within the apply loop; what the hook raises ends the replica."""
    world, leader = led(tmp_path)
    applied: list[int] = []

    def raises(index: int, term: int, results: list[object]) -> None:
        del term, results
        applied.append(index)
        raise RuntimeError("a hook fails")

    leader.put("before")
    world.pass_rounds()
    leader.core.on_applied = raises
    leader.put("once")
    leader.step()
    for other in "AB":
        world.deliver("L", other)
        world.nodes[other].step()
        world.deliver(other, "L")
    with pytest.raises(RuntimeError):
        leader.step()
    assert leader.lines == ["before", "once"]
    assert len(applied) == 1


def test_s9_a_vote_survives_a_restart_and_is_not_given_twice(tmp_path: Path) -> None:
    world = World(tmp_path, "ABC")
    ask = RequestVote(term=5, last_index=9, last_term=4, transfer=False)
    world.nodes["B"].hear("A", ask)
    assert world.nodes["B"].step() == [VoteReply(5, True)]
    world.crash("B")
    again = world.boot("B")
    assert (again.core.term, again.core.vote) == (5, "A")
    again.hear("C", ask)
    assert again.step() == [VoteReply(5, False)]
    again.hear("A", ask)
    assert again.step() == [VoteReply(5, True)]


def test_s9_a_commit_index_beyond_the_log_is_not_believed(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    world.nodes["L"].journal.commit_hint = 50
    world.nodes["L"].core.set_term(1, None)
    world.nodes["L"].write()
    world.crash("L")
    leader = world.boot("L")
    assert leader.core.commit == 1
    world.elect("L", "A")
    leader.put("on no other node")
    leader.step()
    leader.step()
    assert leader.lines == []


def test_a_follower_too_applies_at_its_start_what_it_knew_to_be_committed(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1)], 3))
    follower.hear("L", append(1, (3, 1), [(4, 1)], 3))
    follower.step()
    world.crash("A")
    again = world.boot("A")
    again.step()
    assert again.core.applied == 3


def test_s10_what_is_compacted_away_is_in_the_snapshot_after_a_restart(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    for number in range(20):
        leader.put(str(number))
    world.pass_rounds()
    leader.core.forceLogCompaction()
    world.pass_rounds()
    assert leader.journal.first_index > 10
    world.crash("L")
    again = world.boot("L")
    assert again.lines == [str(number) for number in range(20)]


def test_s11_one_change_of_members_at_a_time(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    assert not leader.core.propose_members(("L",)), "two at once"
    assert not leader.core.propose_members(("A", "B")), "not the leader itself"
    assert leader.core.propose_members(("A", "B", "C", "L"))
    assert not leader.core.propose_members(("A", "B", "C", "D", "L")), "the first is not applied"
    assert "C" in leader.core.peers
    world.pass_rounds()
    assert leader.core.propose_members(("A", "B", "L"))


def test_s11_a_new_leader_applies_an_entry_of_its_own_before_a_change(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    leader = world.elect("L", "A")
    assert leader.core.applied < leader.journal.last_index
    assert not leader.core.propose_members(("A", "B", "C", "L"))


def test_s12_the_latest_configuration_in_the_log_counts(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    term, last = leader.core.term, leader.journal.last_index
    follower = world.nodes["A"]
    change = (MEMBERS + encode_members(("A", "B", "C", "L")), last + 1, term)
    message = wire.Append(term, 99, 1, last, last, term, (change,))
    follower.hear("L", message)
    assert "C" in follower.core.peers, "appended, not applied"
    follower.step()
    world.crash("A")
    follower = world.boot("A")
    assert "C" in follower.core.peers, "after a restart, too"
    follower.hear("B", append(term + 1, (last, term), [(last + 1, term + 1)], last))
    assert follower.core.peers == ("B", "L"), "and taken back with the entry"


def test_s12_a_snapshot_holds_the_members_of_its_own_time(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    world.pass_rounds()
    assert leader.core.propose_members(("A", "B", "C", "L"))
    leader.core.forceLogCompaction()
    leader.step()
    meta = leader.store.meta
    assert meta is not None
    assert meta.members == ("A", "B", "L")
    assert meta.last[1] < leader.core.configurations.latest_index
    assert decode_members(leader.journal[-1][0][1:]) == ("A", "B", "C", "L")
    world.pass_rounds()
    leader.core.forceLogCompaction()
    leader.step()
    assert leader.store.meta is not None
    assert leader.store.meta.members == ("A", "B", "C", "L"), "once the change is applied"


def test_s12_an_installed_snapshot_says_who_votes(tmp_path: Path) -> None:
    world = World(tmp_path, "LABCD", limits=CoreLimits(kept_bytes=0))
    leader = world.elect("L", "A", "C")
    world.pass_rounds("L", "A", "C")
    assert leader.core.propose_members(("A", "B", "C", "L"))
    leader.put("a")
    world.pass_rounds("L", "A", "C")
    leader.put("b")
    world.pass_rounds("L", "A", "C")
    leader.core.forceLogCompaction()
    world.pass_rounds("L", "A", "C")
    assert leader.journal.first_index > leader.core.configurations.latest_index
    world.drop("L", "B")
    assert "D" in world.nodes["B"].core.peers
    world.pass_rounds("L", "B")
    assert world.nodes["B"].core.snapshot_index == leader.core.snapshot_index
    assert world.nodes["B"].core.peers == ("A", "C", "L")


def test_s13_a_voter_counts_once(tmp_path: Path) -> None:
    world = World(tmp_path, "ABCDE")
    candidate = world.nodes["A"]
    candidate.core.set_term(1, "A")
    candidate.core.set_role(Role.CANDIDATE)
    for _ in range(3):
        candidate.hear("B", VoteReply(1, True))
    assert len(candidate.core.votes) == 2
    assert candidate.core.leader is None
    candidate.hear("C", VoteReply(1, True))
    assert candidate.core.leader == "A"


def test_s13_a_vote_counts_in_its_own_term_only(tmp_path: Path) -> None:
    """In the next one its voter may have voted for somebody else."""
    world = World(tmp_path, "ABCDE")
    candidate = world.nodes["A"]
    for term in (1, 2, 3):
        candidate.core.set_term(term, "A")
        candidate.core.set_role(Role.CANDIDATE)
        assert candidate.core.votes == {"A"}
        candidate.hear("BCD"[term - 1], VoteReply(term, True))
        candidate.hear("E", VoteReply(term - 1, True))
        assert len(candidate.core.votes) == 2
        assert candidate.core.leader is None


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (b"\x03\x80\x04K\x07.", "of kind"),
        (b"\x09", "of kind"),
        (COMMANDS + b"\x93\x02\x01\x90", "cannot be read"),
        (COMMANDS + b"\xc1", "cannot be read"),
        (encode_group(77, []), "of epoch 77"),
    ],
    ids=["code version", "unknown kind", "unknown version", "not msgpack", "another epoch"],
)
def test_s14_an_unknown_kind_of_entry_stops_the_node(
    tmp_path: Path, entry: bytes, said: str
) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", wire.Append(1, 1, 1, 2, 1, 0, ((entry, 2, 1),)))
    follower.write()
    with pytest.raises(FailStop, match=said):
        follower.step()
    assert follower.core.applied == 1


def test_s15_a_full_disk_is_an_error_and_nothing_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    follower.hear("L", append(1, (1, 0), [(2, 1)], 1))
    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(DiskFailed, match="No space left"):
            follower.step()
    assert not world.link("A", "L")
    with pytest.raises(DiskFailed):
        follower.step()


def test_s17_a_snapshot_is_taken_without_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise AssertionError("a fork keeps the sockets of its parent open")

    monkeypatch.setattr(os, "fork", fork)
    world, leader = led(tmp_path, snapshot_every=5)
    for number in range(10):
        leader.put(str(number))
        world.pass_rounds(rounds=2)
    assert leader.core.snapshot_index > 0
    assert leader.journal.first_index > 1


def test_s18_two_processes_do_not_share_a_directory(tmp_path: Path) -> None:
    def open_it() -> Directory:
        identity = Identity("test", "n1", ("n1", "n2", "n3"))
        return open_directory(
            tmp_path / "n1", identity, disk=PosixDisk(), bootstrap=True, random=Random(1)
        )

    held = open_it()
    with pytest.raises(InUse):
        open_it()
    held.close()
    open_it().close()


def test_a_snapshot_of_our_own_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    """Ours was begun before the leader's was installed, and is ready after it (fault 6)."""
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    follower.hear("A", append(1, (1, 0), [(2, 1), (3, 1)], 3))
    follower.step()
    follower.jobs_run_at_once = False
    follower.core.forceLogCompaction()
    follower.step()
    assert follower.core.taking
    own = follower.jobs.popleft()
    for _ in range(30):
        world.pass_rounds("L", "B", rounds=1)
        follower.run_jobs()
    assert follower.lines == leader.lines
    installed = follower.core.snapshot_index
    own()
    world.pass_rounds()
    assert follower.store.meta is not None
    assert follower.store.meta.last[1] == installed
    assert follower.journal.last_index == leader.journal.last_index
    world.crash("B")
    assert world.boot("B").lines == leader.lines


def test_a_leader_does_not_count_itself_for_what_is_not_synced(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    leader.core.tick()
    leader.core.speak()
    leader.release()
    for message in list(world.link("L", "A")):
        world.nodes["A"].hear("L", message)
    world.nodes["A"].step()
    world.deliver("A", "L")
    assert leader.core.match_index("A") == leader.journal.last_index
    leader.core.tick()
    assert leader.core.commit < leader.journal.last_index, "A has it, but here it is not synced"
    leader.write()
    leader.core.tick()
    assert leader.core.commit == leader.journal.last_index


def test_a_cluster_of_one_does_not_commit_what_is_not_synced(tmp_path: Path) -> None:
    world = World(tmp_path, "A")
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.core.tick()
    assert node.core.role is Role.LEADER
    assert node.core.commit == 1
    node.write()
    node.core.tick()
    assert node.core.commit == 2


def test_d_a_node_that_is_no_member_is_not_listened_to(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("X", append(99, (1, 0), [(2, 99)], 2))
    follower.hear("X", RequestVote(99, 99, 99, True))
    assert follower.step() == []
    assert follower.core.term == 0
    assert follower.log == [(1, 0)]


def test_d_nothing_that_travels_or_is_stored_is_a_pickle(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    world.pass_rounds()
    stored = b"".join(file.read_bytes() for file in sorted((tmp_path / "L").rglob("*.*")))
    assert put(leader.core.term, "a") in stored
    assert b"\x80\x04\x95" not in stored
    with pytest.raises(wire.BadFrame):
        list(wire.Frames().feed(b"\x80\x04\x95\x00\x00\x00\x00"))


def test_two_leaders_of_one_term_stop_the_node(tmp_path: Path) -> None:
    _, leader = led(tmp_path)
    with pytest.raises(FailStop, match="leads term"):
        leader.hear("A", append(leader.core.term, (1, 0), [], 1))


def test_pieces_of_two_snapshots_never_mix(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", piece(1, 40, 1, b"aaaa"))
    follower.step()
    assert world.link("A", "L")[-1] == SnapshotReply(1, 1, 1, 40, 1, 4)
    other = wire.SnapshotPiece(2, 1, 1, 40, 1, 4, True, b"bbbb")
    follower.hear("B", other)
    follower.step()
    assert world.link("A", "B")[-1] == SnapshotReply(2, 1, 1, 40, 1, 0)
    assert not follower.core.installing


def test_a_transfer_that_was_broken_off_keeps_no_other_away(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", piece(1, 40, 1, b"aaaa"))
    broken_off = follower.core.receiving
    assert broken_off is not None
    follower.hear("B", piece(2, 41, 1, b"bbb"))
    follower.step()
    assert world.link("A", "B")[-1] == SnapshotReply(2, 1, 1, 41, 1, 3)
    assert not broken_off.add(broken_off.key, 4, b"aaaa", False), "its file is closed"
