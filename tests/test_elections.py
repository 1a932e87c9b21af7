"""Who stands for election when, as far as `cluster/raft/elections.py` says more than the paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.raft.state import Role
from cluster.raft.wire import PreVote, PreVoteReply, RequestVote
from tests.pysyncobj_flaws.test_safety import led
from tests.raft_world import TIMINGS, Node, World, append

HEARTBEAT_S = TIMINGS.heartbeat_ms / 1000


def asks(node: Node) -> list[PreVote]:
    """Its election timeout is over: what it asks the others."""
    node.core.set_deadline(0.0)
    return [message for message in node.step() if isinstance(message, PreVote)]


def test_nobody_stands_unasked_whose_time_is_over_in_the_middle_of_a_tick(tmp_path: Path) -> None:
    """The library looks at the clock itself: a moment after it was too early to ask the others."""
    world = World(tmp_path, "ABC")
    node = world.nodes["A"]
    looks = 0

    def now() -> float:
        nonlocal looks
        looks += 1
        return world.now + looks

    node.core.now = now
    for looks_before in range(12):
        world.now += 100
        looks = 0
        node.core.set_deadline(world.now + looks_before + 0.5)
        assert not any(isinstance(message, RequestVote) for message in node.step())
        assert node.core.role is Role.FOLLOWER


# --- a leader whose connections have ended


def test_who_is_out_of_touch_with_the_leader_asks_within_two_heartbeats(tmp_path: Path) -> None:
    world, _ = led(tmp_path)
    follower = world.nodes["A"]
    world.pass_rounds(rounds=1)
    follower.core.draw_deadline()
    follower.core.out_of_touch("L")
    soon = follower.core.deadline - world.now
    assert HEARTBEAT_S <= soon <= 2 * HEARTBEAT_S < TIMINGS.election_min_ms / 1000


def test_an_election_that_is_due_sooner_is_not_put_off(tmp_path: Path) -> None:
    world, _ = led(tmp_path)
    follower = world.nodes["A"]
    follower.core.set_deadline(world.now + 0.01)
    follower.core.out_of_touch("L")
    assert follower.core.deadline == world.now + 0.01


def test_to_be_out_of_touch_with_another_follower_means_nothing(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    follower = world.nodes["A"]
    world.pass_rounds(rounds=1)
    before = follower.core.deadline
    follower.core.out_of_touch("B")
    leader.core.out_of_touch("B")
    assert follower.core.deadline == before
    assert follower.core.leader_is_alive()
    assert leader.core.role is Role.LEADER


def test_two_who_are_out_of_touch_elect_at_once_and_one_alone_does_not(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    a, b = world.nodes["A"], world.nodes["B"]
    world.pass_rounds(rounds=1)
    term = leader.core.term
    a.core.out_of_touch("L")
    assert asks(a)
    world.deliver("A", "B")
    assert b.step() == [PreVoteReply(term, term + 1, False)], "it hears the leader"
    world.drop("B", "A")
    b.core.out_of_touch("L")
    assert asks(a)
    world.deliver("A", "B")
    assert PreVoteReply(term, term + 1, True) in b.step()
    world.deliver("B", "A")
    assert RequestVote(term + 1, a.journal.last_index, a.journal.last_term, False) in a.step()
    world.deliver("A", "B")
    b.step()
    world.deliver("B", "A")
    assert a.core.role is Role.LEADER


def test_a_leader_that_is_heard_again_prevents_the_election(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    follower, term = world.nodes["A"], leader.core.term
    follower.core.out_of_touch("L")
    assert not follower.core.leader_is_alive()
    follower.hear("L", append(term, (1, 0), [], 1))
    assert follower.core.leader_is_alive()
    assert follower.core.deadline >= world.now + TIMINGS.election_min_ms / 1000


def test_who_has_just_started_asks_within_two_heartbeats_of_its_first_connection(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, "ABC")
    started = world.nodes["A"].core
    started.connected("B")
    assert HEARTBEAT_S <= started.deadline - world.now <= 2 * HEARTBEAT_S
    world.now += HEARTBEAT_S
    before = started.deadline
    started.connected("C")
    assert started.deadline <= before, "a second one does not put it off"


def test_a_connection_says_nothing_to_who_follows_or_leads(tmp_path: Path) -> None:
    world, leader = led(tmp_path)
    follower = world.nodes["A"]
    world.pass_rounds(rounds=1)
    before = follower.core.deadline, leader.core.deadline
    follower.core.connected("B")
    leader.core.connected("B")
    assert (follower.core.deadline, leader.core.deadline) == before


# --- two that ask at the same time


@pytest.mark.parametrize("first", ["A", "B"])
def test_of_two_that_ask_at_once_the_later_name_stands_and_gets_the_vote(
    tmp_path: Path, first: str
) -> None:
    """In whichever order they hear of each other; else each would vote for itself."""
    world = World(tmp_path, "ABC")  # C is down
    for name in "AB":
        asks(world.nodes[name])
    for _ in range(4):
        for name in (first, "B" if first == "A" else "A"):
            other = "B" if name == "A" else "A"
            world.deliver(name, other)
            world.nodes[other].step()
    assert world.nodes["B"].core.role is Role.LEADER
    assert world.nodes["A"].core.term == world.nodes["B"].core.term == 1
    assert world.nodes["A"].core.elections == 0


def test_the_longer_log_goes_first_whatever_the_names(tmp_path: Path) -> None:
    world = World(tmp_path, "ABC")
    a, b = world.nodes["A"], world.nodes["B"]
    a.core.append_entry(b"", 2, 0)
    asks(a), asks(b)
    world.deliver("A", "B")
    assert b.core.pre_votes is None
    world.deliver("B", "A")
    assert a.core.pre_votes == {"A"}, "one whose log is shorter is refused, and no reason to stop"


def test_who_has_won_its_pre_votes_gives_way_to_nobody(tmp_path: Path) -> None:
    world = World(tmp_path, "ABC")
    a, b = world.nodes["A"], world.nodes["B"]
    asks(a)
    world.deliver("A", "B")
    b.step()
    asks(b)
    world.deliver("B", "A")  # its pre-vote, and its own wish behind it
    sent = a.step()
    assert PreVoteReply(0, 1, False) in sent
    assert any(isinstance(message, RequestVote) for message in sent)
    world.deliver("A", "B")
    b.step()
    world.deliver("B", "A")
    assert a.core.role is Role.LEADER


def test_a_wish_that_was_heard_by_nobody_keeps_nobody_from_standing(tmp_path: Path) -> None:
    """Of a replica that speaks and is not heard the others must not wait for."""
    world = World(tmp_path, "ABC")
    a, b = world.nodes["A"], world.nodes["B"]
    asks(b)
    world.drop("B", "A")
    asks(a)
    world.deliver("A", "B")
    assert PreVoteReply(0, 1, True) in b.step()
