"""The core: the library is the one it was written for, and random histories break nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from pysyncobj import SyncObj

from cluster.errors import Damaged, FailStop
from cluster.raft import core as raft_core
from cluster.raft import snapshots as raft_snapshots
from cluster.raft.core import check_library
from cluster.raft.entries import MEMBERS, decode_group, encode_group
from cluster.raft.members import Configurations, decode_members, encode_members, is_one_change
from cluster.raft.proposals import ProposalLimits, Proposals
from cluster.raft.state import CoreLimits, Role
from cluster.raft.wire import (
    Append,
    AppendReply,
    PreVote,
    PreVoteReply,
    RequestVote,
    SnapshotReply,
    VoteReply,
)
from cluster.storage.disk import PosixDisk
from cluster.storage.journal import Journal
from coordinator.log import FateUnknown, NotApplied, NotLeader, Overloaded
from tests.ledger import LedgerRestoring
from tests.raft_world import TIMINGS, Node, World, append, lagging, piece

PROJECT = Path(__file__).parent.parent


# --- the library


def test_the_library_is_the_one_the_overrides_were_written_for() -> None:
    check_library()


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft_core, "VERSION", "0.3.18")
    with pytest.raises(FailStop, match=r"pysyncobj 0\.3\.18 is installed"):
        check_library()


def test_a_changed_method_of_the_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(self: object) -> None:
        """Not what it was."""

    monkeypatch.setattr(SyncObj, "_SyncObj__onBecomeLeader", changed)
    with pytest.raises(FailStop, match="onBecomeLeader was changed"):
        World(tmp_path, "A")


def test_a_missing_method_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(SyncObj, "_SyncObj__applyLogEntries")
    with pytest.raises(FailStop, match="has no _SyncObj__applyLogEntries"):
        check_library()


def test_every_override_is_checked_and_says_what_it_mends() -> None:
    overrides = [name for name in vars(raft_core.RaftCore) if name.startswith("_SyncObj__")]
    assert len(overrides) >= 7
    for name in overrides:
        assert name in raft_core._SOURCES, name
        assert vars(raft_core.RaftCore)[name].__doc__, name


def test_only_one_file_knows_the_library() -> None:
    knowing = []
    for package in ("participants", "coordinator", "cluster"):
        for file in sorted((PROJECT / package).glob("**/*.py")):
            lines = file.read_text(encoding="utf-8").splitlines()
            imports = [line for line in lines if line.lstrip().startswith(("import ", "from "))]
            if any("pysyncobj" in line for line in imports):
                knowing.append(file.relative_to(PROJECT).as_posix())
    assert knowing == ["cluster/raft/core.py"]


def test_every_test_that_an_override_names_exists() -> None:
    named: set[str] = set()
    for file in sorted((PROJECT / "cluster" / "raft").glob("*.py")):
        words = file.read_text(encoding="utf-8").split()
        named |= {word for word in words if word.startswith("test_")}
    tests = "\n".join(
        file.read_text(encoding="utf-8") for file in sorted((PROJECT / "tests").glob("**/*.py"))
    )
    assert named
    assert [name for name in sorted(named) if f"def {name}(" not in tests] == []


# --- entries and members


def test_a_group_comes_back_as_it_went() -> None:
    assert decode_group(encode_group(7, [b"a", b"", b"c" * 70_000])) == (
        7,
        [b"a", b"", b"c" * 70_000],
    )


@pytest.mark.parametrize(
    "entry", [b"\x00", b"\x00\x01", b"\x00\x93\x02\x01\x90", b"\x00\x93\x01\xc0\x90"]
)
def test_a_group_that_was_never_written_stops_the_node(entry: bytes) -> None:
    with pytest.raises(FailStop):
        decode_group(entry)


def test_members_come_back_and_nothing_else_does() -> None:
    assert decode_members(encode_members(("n2", "n1"))) == ("n1", "n2")
    for body in (b"\x92\x02\x91\xa1a", b"\x92\x01\x90", b"\x92\x01\x91\x01", b"\x01"):
        with pytest.raises(ValueError, match="members"):
            decode_members(body)


def test_configurations_follow_the_log_both_ways() -> None:
    known = Configurations(("a", "b"), 10)
    known.add(12, ("a", "b", "c"))
    known.add(15, ("a", "c"))
    assert (known.latest, known.latest_index) == (("a", "c"), 15)
    assert [known.at(index) for index in (10, 11, 12, 14, 15, 99)] == [
        *[("a", "b")] * 2,
        *[("a", "b", "c")] * 2,
        *[("a", "c")] * 2,
    ]
    known.truncate_from(13)
    assert known.latest_index == 12
    known.truncate_from(1)
    assert known.latest == ("a", "b")


def test_one_change_is_one_voter() -> None:
    assert is_one_change(("a", "b"), ("a",))
    assert is_one_change(("a", "b"), ("a", "b", "c"))
    assert not is_one_change(("a", "b"), ("a", "c"))
    assert not is_one_change(("a", "b"), ("b", "a"))


# --- proposals and barriers


def test_a_group_takes_what_waits_and_the_next_one_gathers_meanwhile() -> None:
    proposals = Proposals(ProposalLimits(group_commands=3, group_bytes=100))
    told: list[tuple[int, object]] = []
    for number in range(5):
        proposals.add(b"x", lambda result, number=number: told.append((number, result)))  # type: ignore[misc]
    group = proposals.next_group(0.0)
    assert group is not None
    assert len(group[0]) == 3
    proposals.entered(7, 1, group[1])
    assert proposals.next_group(0.0) is None
    for done, result in proposals.applied(7, 1, ["a", "b", "c"]):
        done(result)
    assert told == [(0, "a"), (1, "b"), (2, "c")]
    second = proposals.next_group(0.0)
    assert second is not None
    proposals.entered(8, 1, second[1])
    assert {type(error) for _, error in proposals.applied(8, 2, [])} == {NotApplied}
    assert proposals.is_idle


def test_a_patient_command_goes_with_the_next_that_is_not_or_when_its_time_has_come() -> None:
    proposals = Proposals(ProposalLimits())
    proposals.add(b"patient", print, leave_by_s=7.0)
    assert proposals.next_group(6.9) is None
    proposals.add(b"urgent", print)
    proposals.add(b"patient too", print, leave_by_s=8.0)
    group = proposals.next_group(6.9)
    assert group is not None
    assert group[0] == [b"patient", b"urgent", b"patient too"]
    proposals.entered(1, 1, group[1])
    proposals.applied(1, 1, [None] * 3)
    proposals.add(b"left alone", print, leave_by_s=9.0)
    proposals.add(b"with less patience", print, leave_by_s=8.0)
    assert proposals.next_group(7.9) is None, "the patience of those that have left"
    assert proposals.leave_by_s == 8.0
    alone = proposals.next_group(8.0)
    assert alone is not None
    assert alone[0] == [b"left alone", b"with less patience"]
    assert proposals.next_group(9.0) is None, "nothing waits"


def test_what_a_full_group_leaves_behind_is_not_held_up_by_patience() -> None:
    proposals = Proposals(ProposalLimits(group_commands=1))
    proposals.add(b"urgent", print)
    proposals.add(b"patient", print, leave_by_s=7.0)
    proposals.add(b"urgent", print)
    for index in range(3):
        group = proposals.next_group(0.0)
        assert group is not None
        proposals.entered(index, 1, group[1])
        proposals.applied(index, 1, [None])


def test_a_group_is_bounded_in_bytes_but_takes_at_least_one() -> None:
    proposals = Proposals(ProposalLimits(group_bytes=10, command_bytes=50))
    for size in (50, 4, 4, 4, 4):
        proposals.add(b"x" * size, print)
    sizes = []
    for index in range(3):
        group = proposals.next_group(0.0)
        assert group is not None
        sizes.append([len(command) for command in group[0]])
        proposals.entered(index, 1, group[1])
        proposals.applied(index, 1, [None] * len(group[1]))
    assert sizes == [[50], [4, 4, 4], [4]]


@pytest.mark.parametrize(
    ("limits", "taken", "refused", "said"),
    [
        (ProposalLimits(waiting_bytes=10), 8, 3, "1 commands wait already"),
        (ProposalLimits(waiting_commands=1), 8, 1, "1 commands wait already"),
        (ProposalLimits(command_bytes=8), 8, 9, "a command of 9 bytes; 8 are allowed"),
    ],
)
def test_what_waits_is_bounded(limits: ProposalLimits, taken: int, refused: int, said: str) -> None:
    proposals = Proposals(limits)
    assert proposals.takes(taken)
    proposals.add(b"x" * taken, print)
    assert not proposals.takes(refused)
    with pytest.raises(Overloaded, match=said):
        proposals.add(b"x" * refused, print)


def test_an_entry_before_that_of_a_group_says_nothing_of_it() -> None:
    proposals = Proposals(ProposalLimits())
    proposals.entered(7, 2, [print])
    assert proposals.applied(6, 2, ["of another"]) == []
    assert proposals.applied(7, 2, ["its own"]) == [(print, "its own")]


def test_of_an_entry_that_a_snapshot_applied_nobody_knows_the_result() -> None:
    """It was not refused: whoever takes it for that may do it again."""
    proposals = Proposals(ProposalLimits())
    proposals.entered(7, 2, [print])
    ((_, error),) = proposals.applied(9, 2, ["of another"])
    assert isinstance(error, FateUnknown)


def test_there_is_room_again_when_what_waited_has_gone_or_failed() -> None:
    proposals = Proposals(ProposalLimits(waiting_bytes=10))
    for index in range(3):
        proposals.add(b"x" * 8, print)
        group = proposals.next_group(0.0)
        assert group is not None
        proposals.entered(index, 1, group[1])
        proposals.applied(index, 1, [None])
    for _ in range(3):
        proposals.add(b"x" * 8, print)
        proposals.fail(waiting=NotLeader(), under_way=FateUnknown())


def test_failing_tells_what_waits_from_what_is_under_way() -> None:
    proposals = Proposals(ProposalLimits(group_commands=1))
    proposals.add(b"x", print)
    proposals.add(b"y", print)
    group = proposals.next_group(0.0)
    assert group is not None
    proposals.entered(3, 1, group[1])
    told = proposals.fail(waiting=NotLeader(), under_way=FateUnknown())
    assert [type(error) for _, error in told] == [FateUnknown, NotLeader]
    assert proposals.is_idle
    assert proposals.next_group(0.0) is None


# --- one core


def test_who_is_no_member_any_more_does_not_stand_for_election(tmp_path: Path) -> None:
    world = World(tmp_path)
    node = world.nodes["C"]
    core = node.core
    for left, asks in ((("A", "B", "C"), True), (("A", "B"), False)):
        core.append_entry(MEMBERS + encode_members(left), core.journal.last_index + 1, 1)
        core.set_deadline(0.0)
        node.step()
        asked = world.drop("C", "A") + world.drop("C", "B")
        assert any(isinstance(message, PreVote) for message in asked) == asks
        world.now += 5


def test_each_waits_another_time_before_it_stands_for_election(tmp_path: Path) -> None:
    """Who all wait equally long all stand at once, and nobody is elected."""
    core = World(tmp_path).nodes["A"].core
    waits_s = []
    for _ in range(200):
        core.draw_deadline()
        waits_s.append(core.deadline - core.now())
    least_s, most_s = TIMINGS.election_min_ms / 1000, TIMINGS.election_max_ms / 1000
    assert least_s <= min(waits_s) < least_s + 0.05
    assert most_s - 0.05 < max(waits_s) <= most_s


def test_only_the_election_that_the_leader_asked_for_is_free_of_its_lease(tmp_path: Path) -> None:
    core = World(tmp_path).nodes["A"].core
    for after in (Role.CANDIDATE, Role.FOLLOWER, Role.LEADER):
        core.set_role(Role.FOLLOWER)
        core.standing_for_transfer = True
        core.set_role(Role.CANDIDATE)
        assert core.standing_for_transfer
        core.set_role(after)
        assert not core.standing_for_transfer


def test_a_round_is_confirmed_by_a_quorum_only(tmp_path: Path) -> None:
    world = World(tmp_path, "ABCDE")
    leader = world.elect("A", "B", "C")
    leader.step()
    leader.core.speak()
    number, term = leader.core.round, leader.core.term
    leader.hear("B", AppendReply(term, number, 1, True, 2))
    leader.hear("C", AppendReply(term, number - 1, 1, True, 2))
    leader.hear("D", AppendReply(term - 1, number, 1, True, 2))
    assert not leader.core.round_confirmed(number)
    leader.hear("D", AppendReply(term, number, 1, False, 2))
    assert leader.core.round_confirmed(number), "a refusal of this term confirms it as well"
    leader.core.step_down(term + 1)
    assert not leader.core.round_confirmed(number)


def test_what_replaces_a_conflict_is_not_durable_because_the_old_was(tmp_path: Path) -> None:
    world = World(tmp_path, "LAB")
    follower = world.nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1), (4, 1)], 1))
    follower.step()
    assert follower.core.durable_index == 4
    follower.hear("B", append(2, (2, 1), [(3, 2), (4, 2)], 4))
    assert follower.core.durable_index == 2
    follower.core.tick()
    assert follower.core.applied == 2, "committed by others, and not yet durable here"
    follower.write()
    follower.core.tick()
    assert follower.core.applied == 4


def test_what_stands_before_a_conflict_is_no_more_durable_than_it_was(tmp_path: Path) -> None:
    follower = World(tmp_path, "LAB").nodes["A"]
    follower.hear("L", append(1, (1, 0), [(at, 1) for at in range(2, 6)], 1))
    follower.hear("B", append(2, (4, 1), [(5, 2)], 4))
    follower.core.sync_ended()
    assert follower.core.durable_index == 1
    follower.core.tick()
    assert follower.core.applied == 1


def test_a_sync_of_what_was_replaced_meanwhile_makes_nothing_durable(tmp_path: Path) -> None:
    follower = World(tmp_path, "LAB").nodes["A"]
    follower.hear("L", append(1, (1, 0), [(2, 1), (3, 1), (4, 1)], 1))
    follower.core.sync_started()
    follower.hear("B", append(2, (2, 1), [(3, 2), (4, 2)], 1))
    follower.core.sync_ended()
    assert follower.core.durable_index == 2


def test_a_sync_of_what_a_snapshot_replaced_meanwhile_makes_nothing_durable(
    tmp_path: Path,
) -> None:
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    follower.jobs_run_at_once = False
    while not follower.jobs:
        world.pass_rounds("L", "B", rounds=1)
    last, term = follower.log[-1]
    behind = [(index, term) for index in range(last + 1, 60)]
    follower.hear("L", append(leader.core.term, (last, term), behind, follower.core.commit))
    follower.core.sync_started()
    follower.run_jobs()
    assert follower.core.snapshot_index == leader.core.snapshot_index
    follower.core.sync_ended()
    assert follower.core.durable_index < leader.core.snapshot_index


def test_a_vote_of_an_older_term_than_the_logs_is_none_in_that_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    journal = Journal.open(tmp_path / "A" / "journal", cluster="test", node="A", disk=PosixDisk())
    for index, term in ((1, 0), (2, 5)):
        journal.append(b"\x01", index, term)
    journal.set_vote(3, "B")
    journal.close()
    core = World(tmp_path, "AB").nodes["A"].core
    assert (core.term, core.vote) == (5, None)


def test_no_vote_for_a_log_that_lacks_entries(tmp_path: Path) -> None:
    """Raft, section 5.4.1: by the last term first, then by length."""
    world = World(tmp_path, "ABC")
    voter = world.nodes["A"]
    voter.hear("B", append(3, (1, 0), [(2, 3), (3, 3)], 1))
    voter.step()
    world.now += 5
    for term, (index, last_term, granted) in enumerate(
        [(2, 3, False), (99, 2, False), (3, 3, True), (2, 4, True), (4, 3, True)], start=10
    ):
        voter.hold()
        voter.hear("C", RequestVote(term, index, last_term, False))
        assert voter.step()[-1] == VoteReply(term, granted), (index, last_term)
        assert voter.core.vote == ("C" if granted else None), "a refusal is no vote either"
        voter.hold()
        voter.hear("C", PreVote(term + 1, index, last_term))
        assert voter.step()[-1] == PreVoteReply(term, term + 1, granted), (index, last_term)


def test_a_step_follows_at_once_when_there_is_more_to_do_and_only_then(tmp_path: Path) -> None:
    """Else what is committed would wait for a heartbeat, or the loop would spin until it is."""
    world = World(tmp_path)
    leader = world.elect("A", "B", "C")
    world.pass_rounds()
    term = leader.core.term
    for answered_first in (True, False):
        leader.put("line")
        last = leader.journal.last_index
        answer = AppendReply(term, leader.core.round, 1, True, last + 1)
        leader.journal.write()
        leader.core.sync_started()
        if answered_first:
            leader.hear("B", answer)
        assert leader.core.sync_ended() == answered_first
        assert not leader.core.sync_ended(), "nothing more is durable"
        assert not leader.core.is_behind
        leader.hear("B", answer)
        leader.core.tick()
        assert leader.core.applied == last
    follower = world.nodes["C"]
    last = follower.journal.last_index
    follower.hear("A", append(term, (last, term), [(last + 1, term)], last + 1))
    assert not follower.core.is_behind, "committed, and not durable here"
    follower.core.sync_started()
    assert not follower.core.sync_ended(), "it commits nothing itself"
    assert follower.core.is_behind


def test_where_the_log_begins_behind_what_is_durable_nothing_counts(tmp_path: Path) -> None:
    _, leader = lagging(tmp_path)
    first = leader.journal.first_index
    leader.core.durable_index = first - 2
    assert leader.core._SyncObj__getEntries(first, 100) == []
    leader.core.durable_index = first
    assert len(leader.core._SyncObj__getEntries(first, 100)) == 1


def test_what_is_applied_at_once_is_bounded(tmp_path: Path) -> None:
    world = World(tmp_path, "A", limits=CoreLimits(apply_portion=10))
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    for number in range(100):
        node.put(str(number))
    node.write()
    node.core.tick()
    assert len(node.lines) < 10
    steps = 0
    while node.core.is_behind:
        node.core.tick()
        steps += 1
    assert len(node.lines) == 100
    assert steps >= 9


def test_a_snapshot_is_taken_for_many_bytes_too(tmp_path: Path) -> None:
    world = World(tmp_path, "A", limits=CoreLimits(snapshot_bytes=10_000, kept_bytes=0))
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    for _ in range(12):
        node.put("x" * 1000)
        for _ in range(3):
            node.step()
    assert node.core.snapshot_index > 0
    assert node.journal.first_index > 1


def test_snapshots_are_as_many_entries_apart_as_the_settings_say(tmp_path: Path) -> None:
    world = World(tmp_path, "A", limits=CoreLimits(kept_bytes=0), snapshot_every=10)
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    taken = [1]
    while len(taken) < 4:  # later ones wait for half of the state's size
        node.put("x" * 100)
        node.step()
        if node.core.snapshot_index > taken[-1]:
            taken.append(node.core.snapshot_index)
    apart = [after - before for before, after in pairwise(taken)]
    assert all(10 <= entries <= 12 for entries in apart), apart


def test_a_large_state_is_not_written_again_before_half_as_much_has_come(tmp_path: Path) -> None:
    world = World(tmp_path, "A", limits=CoreLimits(kept_bytes=0), snapshot_every=10)
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()

    def snapshots_of(lines: int, size: int) -> list[int]:
        """Bytes of entries that had come since the snapshot before, for each that is taken."""
        sizes, since, before = [], 0, node.core.snapshot_index
        for _ in range(lines):
            node.put("x" * size)
            since += size
            for _ in range(3):
                node.step()
            if node.core.snapshot_index > before:
                sizes.append(since)
                since, before = 0, node.core.snapshot_index
        return sizes

    snapshots_of(10, 10_000)
    state = node.store.size
    assert state > 100_000
    _, *sizes = snapshots_of(200, 1_000)  # before the first one some had come already
    assert sizes
    assert all(state // 2 <= size < node.store.size for size in sizes), sizes


def test_a_start_never_has_more_of_the_log_to_read_than_that(tmp_path: Path) -> None:
    limits = CoreLimits(kept_bytes=0, log_bytes=5_000)
    world = World(tmp_path, "A", limits=limits, snapshot_every=10)
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    for number in range(40):
        node.put("x" * (10_000 if number < 10 else 1_000))
        for _ in range(3):
            node.step()
        most = 12_000  # ten entries; half of the state is 50,000
        assert node.core.bytes_since_snapshot <= most or number < 22
    assert node.store.size > 100_000


def test_entries_behind_a_snapshot_are_kept_for_followers_that_lag_a_little(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, "A", limits=CoreLimits(kept_bytes=200), snapshot_every=20)
    node = world.nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    for number in range(60):
        node.put(str(number))
        for _ in range(3):
            node.step()
    kept = node.core.snapshot_index - node.journal.first_index
    assert 3 <= kept <= 20


@pytest.mark.parametrize(
    ("kept_bytes", "every", "kept"), [(0, 100, 0), (450, 100, 3), (1 << 20, 20, 10)]
)
def test_what_is_kept_is_bounded_in_bytes_and_in_entries(
    tmp_path: Path, kept_bytes: int, every: int, kept: int
) -> None:
    limits = CoreLimits(kept_bytes=kept_bytes)
    node = World(tmp_path, "A", limits=limits, snapshot_every=every).nodes["A"]
    node.core.set_deadline(0.0)
    node.step()
    for _ in range(15):
        node.put("x" * 120)
    node.step()
    node.step()
    node.core.forceLogCompaction()
    for _ in range(3):
        node.step()
    before_the_last = node.core.snapshot_index - 1  # Raft needs that one in any case
    assert before_the_last - node.journal.first_index == kept


def test_a_log_that_is_short_is_kept_from_its_start(tmp_path: Path) -> None:
    limits = CoreLimits(kept_bytes=1 << 20)
    node = World(tmp_path, "A", limits=limits, snapshot_every=100).nodes["A"]
    node.core.set_deadline(0.0)
    for _ in range(3):
        node.step()
    node.core.forceLogCompaction()
    for _ in range(3):
        node.step()
    assert node.core.snapshot_index > 0
    assert node.journal.first_index == 1


# --- random histories


def simulate(directory: Path, seed: int, steps: int) -> World:
    """Loss, reconnection, pauses, kill -9 with restart, snapshots: then heal and compare.

    Steps are drawn; links keep their order, as TCP does, and lose all they hold when they break.
    """
    drawn = random.Random(seed)
    limits = CoreLimits(append_bytes=300, kept_bytes=drawn.choice((0, 200)), piece_bytes=200)
    world = World(directory, "ABC", seed=seed, limits=limits, segment_bytes=4000)
    cut: set[tuple[str, str]] = set()
    count = 0
    for node in world.nodes.values():
        node.core.draw_deadline()

    def reset(sender: str, receiver: str) -> None:
        world.drop(sender, receiver)

    for _ in range(steps):
        world.now += drawn.choice((0.001, 0.005, 0.02))
        name = drawn.choice(world.names)
        node = world.nodes[name]
        node.jobs_run_at_once = drawn.random() < 0.5
        chance = drawn.random()
        if chance < 0.45:
            links = sorted(pair for pair, link in world.links.items() if link)
            if links:
                sender, receiver = drawn.choice(links)
                world.deliver(sender, receiver, 1)
                if drawn.random() < 0.7:
                    world.nodes[receiver].step()
        elif chance < 0.78:
            node.step()
        elif chance < 0.95:
            if node.core.role is Role.LEADER:
                count += 1
                node.put(f"line {count}")
        elif chance < 0.96:
            reset(*drawn.sample(world.names, 2))
        elif chance < 0.97:
            pair = tuple(drawn.sample(world.names, 2))
            sender, receiver = pair
            if (sender, receiver) in cut:
                cut.discard((sender, receiver))
                world.nodes[sender].core.connected(receiver)
            elif len(cut) < 2:
                cut.add((sender, receiver))
                world.nodes[sender].core.disconnected(receiver)
                reset(sender, receiver)
        elif chance < 0.98:
            world.crash(name)
            world.boot(name).core.draw_deadline()
            for sender, receiver in sorted(cut):
                world.nodes[sender].core.disconnected(receiver)
        elif chance < 0.99:
            node.core.forceLogCompaction()
        for sender, receiver in sorted(cut):
            reset(sender, receiver)
    heal(world, cut)
    return world


def heal(world: World, cut: set[tuple[str, str]]) -> None:
    for sender, receiver in sorted(cut):
        world.nodes[sender].core.connected(receiver)
    for node in world.nodes.values():
        node.jobs_run_at_once = True
    for rounds in range(3000):
        world.now += 0.01
        for node in world.nodes.values():
            node.step()
        for sender, receiver in sorted(world.links):
            world.deliver(sender, receiver)
        logs = [node.log[-1] for node in world.nodes.values()]
        applied = {node.core.applied for node in world.nodes.values()}
        if rounds > 200 and len(set(logs)) == 1 and applied == {logs[0][0]}:
            return


@pytest.mark.parametrize("seed", range(6))
def test_random_histories_lose_nothing_and_agree(tmp_path: Path, seed: int) -> None:
    world = simulate(tmp_path, seed, 3000)
    lines = [node.lines for node in world.nodes.values()]
    assert lines[0] == lines[1] == lines[2], f"seed {seed}"
    assert set(world.acknowledged) <= set(lines[0]), f"seed {seed}"
    assert len(lines[0]) == len(set(lines[0])), f"seed {seed}"
    assert len(world.acknowledged) > 20, f"seed {seed}: little happened"
    assert sum(node.core.role is Role.LEADER for node in world.nodes.values()) == 1


def test_a_snapshot_is_made_into_a_state_beside_the_present_one(tmp_path: Path) -> None:
    world, leader, follower = installing(tmp_path)
    assert follower.lines == []
    assert follower.core.commit == 1
    follower.run_jobs()
    assert not follower.core.installing
    assert follower.lines
    assert follower.core.commit == follower.core.applied == leader.core.snapshot_index
    world.pass_rounds(rounds=5)
    assert follower.lines == leader.lines


@pytest.mark.parametrize("step", ["feed", "finish"])
def test_a_snapshot_that_is_no_state_stops_the_node_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not a ledger")

    monkeypatch.setattr(LedgerRestoring, step, refuse)
    _, _, follower = installing(tmp_path)
    with pytest.raises(FailStop, match="cannot be restored: not a ledger"):
        follower.run_jobs()
    assert follower.lines == []
    assert follower.core.commit == 1
    assert not follower.store.exists


def test_a_sync_under_way_makes_nothing_durable_that_follows_an_installed_snapshot(
    tmp_path: Path,
) -> None:
    """The tail that the snapshot contradicts is longer than it, and a thread syncs that tail."""
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    follower.jobs_run_at_once = False
    old_term, contradicted = leader.core.term - 1, range(2, 101)
    follower.hear("A", append(old_term, (1, 0), [(at, old_term) for at in contradicted], 1))
    while not follower.core.installing:
        world.pass_rounds("L", "B", rounds=1)
    assert follower.journal.last_index == 100
    follower.core.sync_started()
    follower.run_jobs()
    last = follower.journal.last_index
    assert last == leader.core.commit < 100
    term = leader.core.term
    follower.hear("L", append(term, (last, term), [(last + 1, term)], last, number=100))
    follower.core.sync_ended()
    assert follower.core.durable_index <= last, "the new entry was not in that sync"
    follower.write()
    assert follower.core.durable_index == last + 1


def test_what_is_being_installed_is_neither_begun_twice_nor_given_up_for_another(
    tmp_path: Path,
) -> None:
    """A thread reads that file. The other snapshot is asked for when the thread is done."""
    _, leader, follower = installing(tmp_path)
    index, term = leader.core.snapshot_index, leader.core.term
    follower.hear("L", piece(term, index, term))
    follower.hear("A", piece(term + 1, index + 1, term + 1))
    assert len(follower.jobs) == 1
    follower.step()
    held = [each for each in follower.world.link("B", "A") if isinstance(each, SnapshotReply)]
    assert [each.offset for each in held] == [0]
    follower.run_jobs()
    assert follower.core.snapshot_index == index
    assert follower.lines == leader.lines


def test_what_was_half_received_is_given_up_when_the_log_has_come_as_far(tmp_path: Path) -> None:
    """Its leader is gone, and the next one has entries: else the file stays, however large."""
    follower = World(tmp_path, "LAB").nodes["B"]
    follower.hear("L", piece(1, 3, 1))
    assert follower.core.receiving is not None
    follower.hear("A", append(2, (1, 0), [(2, 2)], 2))
    assert follower.core.receiving is not None, "it may still be of use"
    follower.hear("A", append(2, (2, 2), [(3, 2)], 3))
    assert follower.core.receiving is None
    assert not list((tmp_path / "B" / "snapshots").iterdir())


def test_a_start_finishes_what_a_crash_interrupted_between_snapshot_and_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, leader, follower = installing(tmp_path)
    with monkeypatch.context() as crash:
        crash.setattr(raft_snapshots, "reconcile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            follower.run_jobs()
    world.crash("B")
    again = world.boot("B")
    index = leader.core.snapshot_index
    assert again.core.applied == again.core.commit == again.journal.last_index == index
    assert again.lines == leader.lines


def test_a_leader_whose_snapshot_is_damaged_stops_and_does_not_ship_it_for_ever(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world, _ = lagging(tmp_path)
    file = tmp_path / "L" / "snapshots" / "snapshot"
    whole = bytearray(file.read_bytes())
    whole[-3] ^= 1
    file.write_bytes(whole)
    with pytest.raises(Damaged, match=re.escape(f"{file} is damaged")):
        world.pass_rounds("L", "B", rounds=40)
    assert "B: a snapshot came damaged and is asked for again: byte " in caplog.text
    assert "Keep this directory aside" not in caplog.text, "B's directory is as it was"


def test_who_lost_a_whole_snapshot_that_is_no_damage_gets_it_again(tmp_path: Path) -> None:
    """It was restarted when it had all of it."""
    world, leader, follower = installing(tmp_path)
    follower.core.receiving = None
    follower.core.installing = False
    follower.jobs.clear()
    follower.jobs_run_at_once = True
    world.pass_rounds("L", "B", rounds=40)
    assert follower.lines == leader.lines


def test_a_snapshot_is_not_begun_again_while_who_has_all_of_it_installs_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That may take seconds, and the leader would read all of its file again in each of them."""
    caplog.set_level("INFO")
    world, leader, follower = installing(tmp_path)
    world.pass_rounds("L", "B", rounds=40)
    assert follower.core.installing
    assert caplog.text.count("L: ships its snapshot") == 1
    follower.jobs_run_at_once = True
    world.pass_rounds("L", "B", rounds=4)
    assert follower.lines == leader.lines


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_who_stands_for_election_meanwhile_installs_nothing(tmp_path: Path) -> None:
    """It may lead when the thread is done, and a leader's log is nobody's to replace."""
    _, _, follower = installing(tmp_path)
    follower.core.set_role(Role.CANDIDATE)
    follower.run_jobs()
    assert not follower.core.installing
    assert follower.core.commit == 1
    assert not follower.store.exists


def installing(tmp_path: Path) -> tuple[World, Node, Node]:
    """B has received all of L's snapshot, and what is to be done with it waits in `jobs`."""
    world, leader = lagging(tmp_path)
    follower = world.nodes["B"]
    follower.jobs_run_at_once = False
    for _ in range(4):
        world.pass_rounds("L", "B", rounds=1)
    assert follower.core.installing
    return world, leader, follower


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting(tmp_path: Path) -> None:
    """Raft paper, section 5.4.2 and figure 8: on most replicas, and yet it may be overwritten."""
    world = World(tmp_path, "ABC")
    world.elect("A", "C").put("early")
    world.nodes["A"].step()
    early = world.nodes["A"].journal.last_index
    world.crash("A")
    rival = world.elect("B", "C")
    world.crash("B")
    world.boot("A")
    leader = world.elect("A", "C")
    assert leader.core.term > rival.core.term
    own = leader.journal.last_index
    assert own > early, "it begins with an entry of its own term"
    replied = AppendReply(leader.core.term, leader.core.round, 1, True, early + 1)
    leader.hear("C", replied)
    leader.step()
    assert leader.core.match_index("C") == early
    assert leader.core.commit < early
    assert leader.lines == []
    leader.hear("C", AppendReply(leader.core.term, leader.core.round, 1, True, own + 1))
    leader.step()
    assert leader.core.commit == own
    assert leader.lines == ["early"]


def test_a_leadership_counts_nobody_for_what_was_acknowledged_to_an_earlier_one(
    tmp_path: Path,
) -> None:
    """What a follower had then, another leader may have replaced since."""
    world = World(tmp_path)
    leader = world.elect("A", "B", "C")
    leader.put("early")
    world.pass_rounds()
    assert leader.core.match_index("B") == leader.journal.last_index
    world.elect("B", "A", "C")
    world.elect("A", "B", "C")
    assert leader.core.role is Role.LEADER
    assert leader.core.match_index("B") == leader.core.match_index("C") == 0


def test_a_follower_that_lost_what_it_acknowledged_gets_it_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would stay behind for as long as this leader leads."""
    world = World(tmp_path)
    leader = world.elect("A", "B", "C")
    for number in range(5):
        leader.put(f"line {number}")
        world.pass_rounds("A", "B", "C")
    last = leader.journal.last_index
    assert leader.core.match_index("B") == last
    world.drop("A", "B")
    refusal = AppendReply(leader.core.term, leader.core.round, 0, False, last - 1)
    leader.hear("B", refusal)
    leader.step()
    assert leader.core.match_index("B") == last - 2, "it counts no more for what it lost"
    assert "its disk lost what was synced" in caplog.text
    sent = [m for m in world.link("A", "B") if isinstance(m, Append) and m.entries]
    assert [entry[1] for entry in sent[0].entries] == [last - 1, last]
    world.pass_rounds("A", "B", "C")
    assert leader.core.match_index("B") == last


# --- clocks


def test_a_follower_knows_its_leaders_clock(tmp_path: Path) -> None:
    """Its own readiness says whether the two agree, and it may lead next."""
    follower = World(tmp_path, "LAB").nodes["A"]
    follower.hear("L", append(1, (1, 0), [], 1))
    assert follower.core.clock_offsets_ms == {"L": 0}


def test_the_clock_of_a_silent_peer_goes_on(tmp_path: Path) -> None:
    """As it was when it was heard, it would agree with a clock that was set a day ahead since then:
    with one of three nodes down the leader's would be in the middle, and sound.
    """
    world = World(tmp_path)
    clocks = dict.fromkeys(world.nodes, 0)

    def clock(name: str) -> Callable[[], int]:
        return lambda: clocks[name] + int(world.now * 1_000)

    for name, node in world.nodes.items():
        node.core.now_ms = clock(name)
    leader = world.elect("A", "B", "C")
    world.pass_rounds()
    assert all(abs(offset) < 1_000 for offset in leader.core.clock_offsets_ms.values())
    world.crash("C")
    clocks["A"] = 86_400_000
    assert all(offset < -86_000_000 for offset in leader.core.clock_offsets_ms.values())
    world.pass_rounds("A", "B")
    assert all(offset < -86_000_000 for offset in leader.core.clock_offsets_ms.values())
    assert set(leader.core.clock_offsets_ms) == {"B", "C"}
