"""The library's flaws of liveness, each by its number, and that the core does not have it.

L5 (a failed accept) is in `tests/test_transport.py`; L4 (answers that never come) and L11 (a tick
that blocks) are properties of the replica, in `tests/test_replica.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import FailStop
from cluster.raft import wire
from cluster.raft.core import RaftCore
from cluster.raft.entries import COMMANDS, NOTHING, encode_group
from cluster.raft.state import CoreLimits, Role
from cluster.raft.wire import (
    Append,
    AppendReply,
    PreVote,
    PreVoteReply,
    RequestVote,
    SnapshotPiece,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)
from cluster.storage.snapshots import Sending
from tests.ledger import put
from tests.pysyncobj_flaws.test_safety import led
from tests.raft_world import TIMINGS, World, append, lagging, pre_vote


def test_l1_a_node_that_was_away_deposes_nobody(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    term = leader.core.term
    away = world.nodes["A"]
    for _ in range(10):
        away.core.set_deadline(0.0)
        away.step()
        assert away.core.term == term, "it asks first, and asking changes no term"
        world.deliver("A", "B")
        world.deliver("A", "L")
        world.nodes["B"].step()
        leader.step()
        assert PreVoteReply(term, term + 1, False) in world.link("B", "A")
        assert PreVoteReply(term, term + 1, False) in world.link("L", "A")
        world.drop("L", "A"), world.drop("B", "A")
        world.now += 0.05
        world.pass_rounds("L", "B", rounds=1)
        world.drop("L", "A"), world.drop("B", "A")
    assert leader.core.role is Role.LEADER


def test_l1_a_vote_of_a_huge_term_is_ignored_while_the_leader_lives(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    term = leader.core.term
    ask = RequestVote(40, 99, 39, False)
    world.nodes["A"].hear("B", ask)
    leader.hear("B", ask)
    assert world.nodes["A"].core.term == leader.core.term == term
    world.now += TIMINGS.election_min_ms / 1000 + 0.01
    world.nodes["A"].hear("B", ask)
    assert world.nodes["A"].core.term == 40, "and is not ignored for ever"


def test_l1_a_leader_that_stands_again_is_heard_by_those_who_follow_it(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    follower, term = world.nodes["A"], leader.core.term
    last = (leader.journal.last_index, leader.journal.last_term)
    follower.hear("L", RequestVote(term + 1, *last, False))
    assert follower.step() == [VoteReply(term + 1, True)]


def test_l1_who_voted_gives_the_candidate_a_whole_election_timeout(tmp_path: Path) -> None:
    voter = World(tmp_path, "LAB").nodes["A"]
    voter.core.set_deadline(voter.world.now + 0.001)
    voter.hear("B", RequestVote(7, 99, 6, False))
    assert voter.core.deadline >= voter.world.now + TIMINGS.election_min_ms / 1000


def test_a_pre_vote_counts_for_the_term_only_that_was_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path, "ABCDE")
    core = world.nodes["A"].core
    core.set_term(4, None)
    core.set_deadline(0.0)
    world.nodes["A"].step()
    for voter, asked in (("B", 4), ("C", 6)):
        world.nodes["A"].hear(voter, PreVoteReply(4, asked, True))
    world.nodes["A"].hear("D", PreVoteReply(4, 5, False))
    assert core.pre_votes == {"A"}
    world.nodes["A"].hear("B", PreVoteReply(4, 5, True))
    assert core.pre_votes == {"A", "B"}
    assert core.next_due > world.now, "not before it is a quorum"
    world.nodes["A"].hear("C", PreVoteReply(4, 5, True))
    assert core.next_due <= world.now, "then it stands at once"
    assert any(isinstance(message, RequestVote) for message in world.nodes["A"].step())


def test_a_pre_vote_that_comes_after_the_leader_was_heard_counts_for_nothing(
    tmp_path: Path,
) -> None:
    world, leader = led(tmp_path)
    follower, term = world.nodes["A"], leader.core.term
    follower.core.set_deadline(0.0)
    follower.step()
    follower.hear("L", append(term, (1, 0), [], 1))
    follower.hear("B", PreVoteReply(term, term + 1, True))
    follower.step()
    assert follower.core.term == term
    assert follower.core.next_due > world.now


def test_l1_a_request_of_no_newer_term_deposes_nobody_and_gets_no_vote(tmp_path: Path) -> None:
    """Two that stand at once would end each other's candidacy, term after term."""
    world = World(tmp_path, "ABC")
    candidate, voter = world.nodes["A"], world.nodes["B"]
    candidate.core.set_term(7, "A")
    candidate.core.set_role(Role.CANDIDATE)
    candidate.hear("C", RequestVote(7, 99, 6, False))
    assert candidate.core.role is Role.CANDIDATE
    assert candidate.step()[-1] == VoteReply(7, False)
    voter.hear("A", append(7, (1, 0), [], 1))
    voter.step()
    for transfer in (False, True):
        voter.hear("C", RequestVote(6, 99, 6, transfer))
        assert voter.core.leader == "A"
        assert voter.step() == [VoteReply(7, False)], "and hears of the newer term"
    assert voter.core.vote is None


def test_l1_an_election_follows_when_the_leader_is_gone(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    world.pass_rounds()
    world.crash("L")
    new = world.elect("A", "B")
    new.put("b")
    world.pass_rounds("A", "B")
    assert new.lines == ["a", "b"]


def test_l1_a_process_that_did_not_run_hears_first(tmp_path: Path) -> None:
    world, _ = led(tmp_path)
    follower = world.nodes["A"]
    follower.core.draw_deadline()
    world.now += 30
    follower.core.was_stalled()
    follower.step()
    assert follower.core.pre_votes is None
    assert follower.core.deadline <= world.now + TIMINGS.election_min_ms / 1000, "not for long"
    follower.hear("L", append(1, (2, 1), [], 2))
    follower.step()
    assert follower.core.deadline > world.now


def test_l2_a_leader_without_a_quorum_steps_down_in_an_election_timeout(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    for _ in range(9):
        world.now += 0.1
        leader.step()
    assert leader.core.leader == "L"
    world.now += 0.2
    leader.step()
    assert leader.core.leader is None


@pytest.mark.parametrize(
    "message",
    [
        AppendReply(9, 0, 1, False, 0),
        wire.VoteReply(9, False),
        PreVoteReply(9, 2, False),
        wire.SnapshotReply(9, 1, 1, 1, 1, 0),
    ],
    ids=lambda message: type(message).__name__,
)
def test_l2_an_answer_of_a_newer_term_ends_a_leadership(
    tmp_path: Path, message: wire.RaftMessage
) -> None:
    _, leader = led(tmp_path)
    leader.core.set_deadline(0.0)
    leader.hear("A", message)
    assert leader.core.role is Role.FOLLOWER
    assert leader.core.term == 9
    assert leader.core.deadline > leader.world.now, "others stand before it"


def test_l2_a_stale_leader_learns_of_the_newer_term(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("B", append(7, (1, 0), [], 1))
    follower.hear("L", append(3, (1, 0), [(2, 3)], 2))
    follower.step()
    assert world.link("A", "L")[-1] == AppendReply(7, 0, 1, False, 0)
    assert follower.log == [(1, 0)]


def test_l3_a_command_that_raises_stops_the_node_at_once(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("before")
    world.pass_rounds()
    epoch = leader.core.term
    leader.core.append(encode_group(epoch, [put(epoch, "poison")]))
    with pytest.raises(FailStop, match="cannot be applied"):
        world.pass_rounds()


def test_l6_a_lagging_follower_is_not_flooded(tmp_path: Path) -> None:
    world, leader = lagging(tmp_path, lines=300)
    world.now += 0.11
    leader.step()
    world.deliver("L", "B")
    world.nodes["B"].step()
    world.deliver("B", "L")  # a refusal: what B lacks is in the snapshot only
    sent = [message for message in leader.step() if isinstance(message, SnapshotPiece)]
    assert 1 <= len(sent) <= 4
    for _ in range(5):
        world.now += 0.11
        again = [message for message in leader.step() if isinstance(message, SnapshotPiece)]
        assert [message.payload for message in again] == [b""], "no answer, no more pieces"


def test_l6_a_follower_that_is_sent_a_snapshot_keeps_answering(tmp_path: Path) -> None:
    world, leader = lagging(tmp_path, lines=300)
    world.crash("A")  # without A the leader lives by the answers of B alone
    follower = world.nodes["B"]
    while follower.core.snapshot_index == 0:
        world.pass_rounds("L", "B", rounds=1)
        assert leader.core.role is Role.LEADER
    world.pass_rounds("L", "B")
    assert follower.lines == leader.lines


def test_l6_the_answers_alone_carry_a_snapshot_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many windows it fills: no piece waits for time to pass. Then its file is closed."""
    world, leader = lagging(tmp_path, lines=300)
    follower = world.nodes["B"]
    closed: list[Sending] = []

    def spy(sending: Sending) -> None:
        closed.append(sending)

    monkeypatch.setattr(Sending, "close", spy)
    world.now += 0.11
    leader.step()
    pieces = 0
    while not follower.core.snapshot_index:
        assert world.link("L", "B"), "nothing is on its way"
        world.deliver("L", "B")
        follower.step()
        world.deliver("B", "L")
        pieces += sum(isinstance(message, SnapshotPiece) for message in leader.step())
    assert pieces > 3 * 4
    assert len(closed) == 1
    monkeypatch.undo()
    closed[0].close()


@pytest.mark.parametrize("end", ["the peer is gone", "another leads", "the node stops"])
def test_a_snapshot_is_shipped_no_longer_than_it_is_of_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """An open file of a snapshot that was replaced keeps its place on the disk."""
    _, leader = lagging(tmp_path)
    leader.core.set_next_index("B", 2)
    leader.core.speak()
    closed: list[Sending] = []
    close = Sending.close

    def spy(sending: Sending) -> None:
        closed.append(sending)
        close(sending)

    monkeypatch.setattr(Sending, "close", spy)
    assert list(leader.core.shipments) == ["B"]
    if end == "the peer is gone":
        leader.core.disconnected("B")
        leader.core.speak()
    elif end == "another leads":
        leader.hear("A", append(leader.core.term + 1, (1, 0), [], 1))
    else:
        leader.core.close()
    assert not leader.core.shipments
    assert len(closed) == 1


def test_an_answer_about_another_snapshot_moves_nothing(tmp_path: Path) -> None:
    _, leader = lagging(tmp_path)
    term, index = leader.core.term, leader.core.snapshot_index
    late = SnapshotReply(term, leader.core.round, 1, index, term, 10**6)
    leader.hear("B", late)
    assert not leader.core.shipments, "of one that is not under way"
    leader.core.set_next_index("B", 2)
    leader.core.speak()
    for other in ((term, index - 1, term), (term, index, term - 1), (term - 1, index, term)):
        leader.hear("B", SnapshotReply(other[0], leader.core.round, 1, *other[1:], 10**6))
    assert leader.core.shipments["B"].acknowledged == 0
    leader.hear("B", late)
    assert leader.core.shipments["B"].acknowledged == leader.core.shipments["B"].sending.size


def test_pieces_that_were_lost_are_sent_again_after_a_while_and_not_before(
    tmp_path: Path,
) -> None:
    world, leader = lagging(tmp_path, lines=300)
    leader.core.set_next_index("B", 2)
    leader.core.speak()
    term, index = leader.core.term, leader.core.snapshot_index

    def pieces_after(held: int, seconds: float) -> list[int]:
        leader.release()
        world.now += seconds
        leader.hear("B", SnapshotReply(term, leader.core.round, 1, index, term, held))
        return [each.offset for each in leader.release() if isinstance(each, SnapshotPiece)]

    assert pieces_after(0, 0.9) == []
    assert pieces_after(200, 0.2) == [800]
    assert pieces_after(200, 0.9) == []
    assert pieces_after(200, 0.2) == [200, 400, 600, 800]
    assert pieces_after(200, 0.2) == []


def test_l6_what_is_sent_at_once_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB", limits=CoreLimits(append_bytes=1000))
    leader = world.elect("L", "A")
    world.drop("L", "B")
    for number in range(200):
        leader.put(f"{number} " + "x" * 200)
    sent = [message for message in leader.step() if isinstance(message, Append)]
    assert len(sent) <= 2 * 4
    assert all(sum(len(e[0]) for e in message.entries) < 1300 for message in sent)
    world.pass_rounds(rounds=60)
    assert len(world.nodes["B"].lines) == 200


def test_l6_the_answers_alone_carry_entries_to_their_end(tmp_path: Path) -> None:
    """However many messages they fill: what a round has no room for waits for no heartbeat."""
    world = World(tmp_path, "LAB", limits=CoreLimits(append_bytes=100))
    leader = world.elect("L", "A")
    world.drop("L", "B")
    for number in range(50):
        leader.put(f"{number} " + "x" * 100)
    last, follower = leader.journal.last_index, world.nodes["B"]
    world.now += 0.11
    leader.step()
    while follower.journal.last_index < last:
        assert world.link("L", "B"), "nothing is on its way"
        world.deliver("L", "B")
        follower.step()
        world.deliver("B", "L")
        leader.step()


def test_l6_a_message_has_no_more_entries_than_its_reader_takes(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    leader = world.elect("L", "A")
    for _ in range(wire.MAX_ENTRIES + 10):
        leader.core.append(NOTHING)
    sent = leader.step()
    world.now += 0.11
    sent += leader.step()
    assert max(len(each.entries) for each in sent if isinstance(each, Append)) == wire.MAX_ENTRIES


def test_l6_answers_to_heartbeats_beget_no_heartbeats(tmp_path: Path) -> None:
    """To peers that lag and have room for nothing else: two of them would double each round."""
    world = World(tmp_path, "LAB", limits=CoreLimits(append_bytes=100, backlog_bytes=1000))
    leader = world.elect("L", "A")
    for number in range(50):
        leader.put(f"{number} " + "x" * 100)
    leader.backlog = 1000
    world.now += 0.11
    sent = 0
    for _ in range(10):
        sent += len(leader.step())
        for peer in "AB":
            world.deliver("L", peer)
            world.nodes[peer].step()
            world.deliver(peer, "L")
    assert 2 <= sent <= 4
    leader.backlog = 0
    world.pass_rounds(rounds=30)
    assert all(len(world.nodes[peer].lines) == 50 for peer in "AB")


def test_l7_a_whole_conflicting_term_is_skipped_at_once(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1)], 1))
    follower.hear("L", append(2, (2, 1), [(index, 2) for index in range(3, 60)], 1))
    follower.step()
    world.drop("A", "L")
    follower.hear("B", append(4, (59, 3), [], 1, number=5))
    follower.step()
    assert world.link("A", "B")[-1] == AppendReply(4, 5, 1, False, 3)


def test_l8_a_follower_whose_log_is_longer_is_met_at_the_leaders_end(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    last = leader.journal.last_index
    follower = world.nodes["A"]
    follower.hear("B", append(9, (last, 1), [(last + n, 9) for n in range(1, 30)], last))
    follower.step()
    world.elect("L", "B")  # its term is newer once A's answers are heard
    for _ in range(20):
        world.pass_rounds(rounds=1)
        if leader.core.role is not Role.LEADER:
            break
    assert leader.core.term >= 9
    world.crash("A")
    world.boot("A").hold()
    new = world.elect("A", "L")
    world.pass_rounds()
    new.put("met")
    world.pass_rounds()
    assert all(node.lines == ["met"] for node in world.nodes.values())


@pytest.mark.parametrize("hint", [0, 1, 2, 3, 10**6])
def test_l8_a_refusal_is_met_within_the_log_whatever_it_names(tmp_path: Path, hint: int) -> None:
    """Behind the first entry, which every log begins with, and not behind the last."""
    _, leader = led(tmp_path)
    term, last = leader.core.term, leader.journal.last_index
    leader.core.set_match_index("A", 0)
    leader.hear("A", AppendReply(term, leader.core.round, 1, False, hint))
    sent = next(message for message in leader.step() if isinstance(message, Append))
    previous = sent.previous_index
    assert previous == max(1, min(hint - 1, last))
    assert sent.previous_term == leader.journal[previous - 1][2]


def test_fault_8_refusals_of_what_was_sent_before_are_old_news(tmp_path: Path) -> None:
    """Each heartbeat on a slow link is refused; only the first refusal may send all again."""
    world, leader = led(tmp_path)
    for number in range(50):
        leader.put(str(number))
    leader.step()
    world.drop("L", "A")  # the batch is lost; what follows does not meet A's log
    world.drop("A", "L")
    for _ in range(5):
        world.now += 0.11
        leader.step()
    world.deliver("L", "A")
    world.nodes["A"].step()
    refusals = [m for m in world.link("A", "L") if isinstance(m, AppendReply) and not m.matched]
    assert len(refusals) == 5
    world.deliver("A", "L")
    sent = [message for message in leader.step() if isinstance(message, Append) and message.entries]
    assert len([message for message in sent if len(message.entries) >= 50]) == 1
    world.pass_rounds()
    assert world.nodes["A"].lines == leader.lines


@pytest.mark.parametrize("size", [65_535, 65_536, 131_014, 131_040, 131_072, 1 << 20, 3 << 20])
def test_l9_an_entry_of_any_size_arrives(tmp_path: Path, size: int) -> None:
    world, leader = led(tmp_path)
    leader.put("x" * size)
    leader.put("behind it")
    world.pass_rounds()
    assert [len(line) for line in world.nodes["A"].lines] == [size, 9]


def test_l10_nothing_goes_through_the_librarys_queue_or_pipe(tmp_path: Path) -> None:
    _, leader = led(tmp_path)
    leader.core._applyCommand(COMMANDS + b"stock", None)
    leader.step()
    assert not any(b"stock" in command for command, _, _ in leader.journal[:])
    assert not hasattr(leader.core, "_SyncObj__pipeNotifier")
    assert leader.core._SyncObj__thread is None


def test_the_successor_of_a_transfer_is_elected_though_the_leader_lives(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    world.pass_rounds()
    assert leader.core.hand_over("A")
    leader.step()
    world.deliver("L", "A")
    world.nodes["A"].step()
    ask = next(m for m in world.link("A", "B") if isinstance(m, RequestVote))
    assert ask.transfer
    world.pass_rounds(rounds=3)
    assert world.nodes["A"].core.role is Role.LEADER
    assert leader.core.role is Role.FOLLOWER


def test_a_transfer_does_not_need_every_node(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    world.crash("B")
    world.pass_rounds()
    assert leader.core.hand_over("A")
    leader.step()
    world.deliver("L", "A")
    world.nodes["A"].step()
    world.pass_rounds(rounds=3)
    assert world.nodes["A"].core.role is Role.LEADER


@pytest.mark.parametrize("later", [0, 1])
def test_a_transfer_is_over_when_somebody_leads_a_newer_term(tmp_path: Path, later: int) -> None:
    """From then on a leader that is heard puts elections off, as it always does."""
    world, leader = led(tmp_path)
    successor, term = world.nodes["A"], leader.core.term
    successor.hear("L", TimeoutNow(term))
    successor.hear("LB"[later], append(term + later, (1, 0), [], 1))
    assert successor.core.transferring == successor.core.standing_for_transfer == (later == 0)
    assert (successor.core.deadline > world.now) == (later == 1)


def test_a_transfer_is_over_when_another_is_voted_for(tmp_path: Path) -> None:
    """The leader asks A, whose disk is slow, and then B. A reads what both say in one step, and
    votes for B; did the old leader's wish live on, A would depose B in spite of its heartbeats.
    """
    world, leader = led(tmp_path)
    core, term = world.nodes["A"].core, leader.core.term
    last = leader.journal
    world.nodes["A"].hear("L", TimeoutNow(term))
    world.nodes["A"].hear("B", RequestVote(term + 1, last.last_index, last.last_term, True))
    assert core.vote == "B"
    assert not core.transferring
    assert not core.standing_for_transfer
    world.now += 5
    world.nodes["A"].hear("B", append(term + 1, (1, 0), [], 1))
    assert core.deadline > world.now


def test_only_the_leader_may_ask_for_a_transfer(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    term = leader.core.term
    for sender, asked in (("B", term), ("L", term - 1), ("L", term + 1)):
        world.nodes["A"].hear(sender, TimeoutNow(asked))
    assert not world.nodes["A"].core.transferring


def test_a_transfer_to_one_that_lacks_entries_is_refused(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    leader.put("a")
    assert not leader.core.hand_over("A")
    assert not leader.core.hand_over("X")
    assert not any(isinstance(message, TimeoutNow) for message in leader.step())
    world.nodes["A"].core.disconnected("L")
    assert not world.nodes["A"].core.hand_over("L")


def test_a_pre_vote_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    world.nodes["A"].hear("B", pre_vote(99))
    assert world.nodes["A"].step() == [PreVoteReply(0, 99, True)]
    assert world.nodes["A"].core.term == 0
    assert world.nodes["A"].core.vote is None


def test_pre_votes_of_another_term_are_none(tmp_path: Path) -> None:
    """Who would have won an election of that term asks again before it stands in a later one."""
    world, leader = led(tmp_path)
    node, core, term = world.nodes["A"], world.nodes["A"].core, leader.core.term
    last = leader.journal
    world.now += 5
    core.set_deadline(0.0)
    node.step()
    node.hear("B", PreVoteReply(term, term + 1, True))
    node.hear("B", RequestVote(term + 1, last.last_index, last.last_term, False))
    assert core.vote == "B"
    world.now += 5
    sent = node.step()
    assert [type(message) for message in sent] == [VoteReply, PreVote, PreVote]
    assert (core.role, core.term) == (Role.FOLLOWER, term + 1)


def test_a_node_that_reaches_nobody_does_not_spin(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    core: RaftCore = world.nodes["A"].core
    for peer in "LB":
        core.disconnected(peer)
    core.set_deadline(0.0)
    world.nodes["A"].step()
    assert core.next_due > world.now
    core.set_leader("L")
    core.on_timeout_now("L", TimeoutNow(0))
    world.nodes["A"].step()
    assert core.next_due > world.now
    assert not core.transferring, "it has failed"
    core.pre_votes = {"A", "B"}
    core.set_deadline(0.0)
    for _ in range(2):
        world.nodes["A"].step()
    assert core.next_due > world.now, "elected by nobody it can reach, it asks again later"
