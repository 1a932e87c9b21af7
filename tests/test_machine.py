"""coordinator/machine.py: the same log gives the same bytes, whatever happens to the node (I9).

Random commands, thousands of them from a seed, go into machines that are snapshotted and restored
at random points; what is derived is held against what is derived anew; the invariants I2, I3 and I6
are looked at after every command.
"""

from __future__ import annotations

import itertools
from random import Random

import pytest

from coordinator import machine as machine_module
from coordinator import records as records_module
from coordinator.commands import Command, Decide, Epoch, Forget, Refuse, encode
from coordinator.facts import Outcome, State, Transaction, outstanding, state_of
from coordinator.indexes import SMALL_BYTES
from coordinator.machine import CHUNK_TRANSACTIONS, Forgot, Machine
from coordinator.moves import MOVES, Refusal
from participants.contract import Vote
from tests.builders import (
    BEGAN_MS,
    EPOCH,
    RandomCommands,
    acknowledge,
    applied,
    begin,
    branch,
    decide,
    led_machine,
    record,
    resolve,
    restore,
    snapshot,
    uuid7,
)

SEEDS = range(8)
YES = Vote.YES


def derived(machine: Machine) -> tuple[object, ...]:
    """All that a machine keeps so that it need not search."""
    table = machine._finished
    timeline = table._timeline
    times = [(second, list(timeline._keys[second])) for second in timeline._seconds]
    by_id = {key: record for shard in table._shards for key, record in shard.items()}
    payloads = machine.payloads()
    held = machine.backlog(), payloads.bytes, payloads.bytes_for, machine.remembered_bytes
    return list(machine._unfinished), held, times, by_id, len(table)


def derived_anew(machine: Machine) -> tuple[object, ...]:
    again = Machine()
    restore(again, snapshot(machine))
    return derived(again)


# --- what is held of payloads ---------------------------------------------------------------------


def test_payloads_are_counted_until_the_decision_and_by_participant_if_they_are_large() -> None:
    machine = led_machine()
    for transaction_id, payloads in (("s", (b"1", b"22")), ("l", (b"1", bytes(SMALL_BYTES)))):
        applied(machine, begin(transaction_id)._replace(payloads=payloads))
    held = machine.payloads()
    assert held.bytes == 3 + 1 + SMALL_BYTES
    assert sorted(held.bytes_for.values()) == [1, SMALL_BYTES]
    for transaction_id in ("s", "l"):
        applied(machine, decide((YES, YES), transaction_id))
    assert held.bytes == 0
    assert not held.bytes_for


# --- determinism ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_restored_at_random_points_comes_to_the_same_bytes(seed: int) -> None:
    commands, random = RandomCommands(seed), Random(seed)
    steady, restored = Machine(), Machine()
    for _ in range(3_000):
        packed = encode(commands())
        assert steady.apply(packed) == restored.apply(packed), seed
        if random.random() < 0.01:
            another = Machine()
            another.step(Epoch(99, 1, "what was there before must not shine through"))
            another.step(begin("old", epoch=99))
            restore(another, snapshot(restored))
            restored = another
    assert snapshot(steady) == snapshot(restored)
    assert derived(steady) == derived(restored)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_derived_is_what_would_be_derived_anew(seed: int) -> None:
    commands, machine = RandomCommands(seed), Machine()
    for count in range(2_000):
        machine.step(commands())
        if count % 20 == 0:
            assert derived(machine) == derived_anew(machine), (seed, count)
    assert derived(machine) == derived_anew(machine)


class Watched:
    """A machine, and what must stay true of it from one command to the next."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self.expired: set[str] = set()
        self.seen: set[str] = set()
        self.kinds: set[str] = set()

    def run(self, commands: RandomCommands, count: int) -> None:
        for _ in range(count):
            self.step(commands())

    def step(self, command: Command) -> None:
        machine = self.machine
        horizon_ms, epoch = machine.horizon_ms, machine.epoch
        result = machine.apply(encode(command))  # never raises
        self.kinds.add(result.name if isinstance(result, Refusal) else type(result).__name__)
        assert machine.horizon_ms >= horizon_ms
        assert machine.epoch >= epoch
        if not isinstance(command, Epoch | Forget):
            self.look_at(command.id, machine.get(command.id))
        if isinstance(command, Forget):
            for transaction_id in self.seen:
                if machine.is_expired(transaction_id):
                    self.expired.add(transaction_id)

    def look_at(self, transaction_id: str, transaction: Transaction | None) -> None:
        self.seen.add(transaction_id)
        assert transaction_id not in self.expired or transaction is None, "it ran again (I6)"
        if transaction is None or transaction.outcome is None:
            return
        key = (transaction_id, transaction.sequence)
        assert self.outcomes.setdefault(key, transaction.outcome) is transaction.outcome, "I2"
        if transaction.outcome is Outcome.COMMIT:
            assert len(transaction.votes) == len(transaction.branches), "I3"
            assert set(transaction.votes) <= {Vote.YES, Vote.READ_ONLY}, "I3"
        if transaction.finished_ms is not None:
            assert not outstanding(transaction)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_command_in_any_state_raises_or_breaks_an_invariant(seed: int) -> None:
    commands, watched = RandomCommands(seed, ids=8), Watched()
    watched.run(commands, 4_000)
    assert Outcome.COMMIT in watched.outcomes.values()
    assert Outcome.ABORT in watched.outcomes.values()
    met = {"Applied", "Forgot", "EpochInForce", *(refusal.name for refusal in Refusal)}
    assert watched.kinds == met, "the stream of commands is too tame to prove anything"


def test_the_watch_notices_a_machine_that_commits_without_every_vote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(records_module, "everyone_can_commit", lambda votes, _count: bool(votes))
    commands, watched = RandomCommands(0), Watched()
    with pytest.raises(AssertionError, match="I3"):
        watched.run(commands, 2_000)


def test_the_watch_notices_a_machine_that_runs_an_expired_id_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Machine, "_lies_before_horizon", lambda _machine, _id: False)
    watched = Watched()
    old = uuid7(BEGAN_MS, Random(1))
    watched.step(Epoch(EPOCH, 1, "n1"))
    watched.step(begin(old))
    watched.expired.add(old)
    with pytest.raises(AssertionError, match="I6"):
        watched.step(begin(old))


def test_the_first_epoch_is_the_founding_for_ever_also_through_a_snapshot() -> None:
    machine = Machine()
    assert machine.founding == ""
    machine.step(Epoch(3, 1_700_000_000_000, "n2"))
    machine.step(Epoch(4, 1_700_000_000_001, "n1"))
    assert machine.founding == "n2-1700000000000"
    another = Machine()
    another.step(Epoch(9, 1, "n3"))
    restore(another, snapshot(machine))
    assert another.founding == "n2-1700000000000"


def test_a_machine_that_would_change_an_outcome_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = {kind: dict(cells) for kind, cells in MOVES.items()}
    phases = MOVES[Decide]
    decides = next(move for move in phases.values() if move.name == "DECIDE")
    moves[Decide] = dict.fromkeys(phases, decides)
    machine = led_machine(begin(), decide((YES, YES)))
    monkeypatch.setattr(machine_module, "MOVES", moves)
    with pytest.raises(AssertionError):
        machine.step(decide((Vote.NO, Vote.NO)))


# --- what is counted ------------------------------------------------------------------------------


def test_the_backlog_counts_the_branches_that_a_participant_has_work_for() -> None:
    machine = led_machine(begin("a", of=3), begin("b", of=1))
    one, two, three = (f"http://participant-{n}" for n in (1, 2, 3))
    assert machine.backlog() == {one: 2, two: 1, three: 1}
    machine.step(decide((YES, Vote.NO, YES), "a"))
    assert machine.backlog() == {one: 2, three: 1}
    machine.step(acknowledge(0b001, "a"))
    assert machine.backlog() == {one: 1, three: 1}
    machine.step(resolve("3", "a"))
    assert machine.backlog() == {one: 1}
    assert (machine.unfinished_count, machine.remembered_count) == (1, 1)


def test_the_unfinished_come_in_the_order_in_which_they_began_also_after_a_restore() -> None:
    machine = led_machine(*(begin(f"t{n}") for n in (5, 3, 9, 1)), decide((YES, YES), "t5"))
    machine.step(acknowledge(0b11, "t3"))  # undecided: refused
    machine.step(resolve(None, "t9"))
    again = Machine()
    restore(again, snapshot(machine))
    order = ["t5", "t3", "t9", "t1"]
    assert [t.id for t in machine.unfinished()] == [t.id for t in again.unfinished()] == order


def test_of_the_unfinished_all_come_back_however_many_chunks_they_fill() -> None:
    count = 2 * CHUNK_TRANSACTIONS + 1
    machine = led_machine(*(begin(f"t{n}") for n in range(count)))
    chunks = snapshot(machine)
    assert len(chunks) == 1 + 3, "the header, two full chunks and the rest"
    again = Machine()
    restore(again, chunks)
    assert list(again.unfinished()) == list(machine.unfinished())


# --- forgetting -----------------------------------------------------------------------------------


def forget(horizon_ms: int) -> Forget:
    return Forget(EPOCH, BEGAN_MS, horizon_ms)


def finished(*ids: str, at_ms: int = BEGAN_MS + 10) -> tuple[Command, ...]:
    no = (Vote.NO, Vote.UNSENT)
    return tuple(c for i in ids for c in (begin(i), decide(no, i, now_ms=at_ms)))


def test_what_finished_before_the_horizon_is_forgotten_and_nothing_else() -> None:
    machine = led_machine(*finished("a", "b", at_ms=500), *finished("c", at_ms=501), begin("d"))
    assert machine.step(forget(501)) == Forgot(501, 2)
    assert [machine.get(i) is None for i in "abcd"] == [True, True, False, False]
    assert machine.step(forget(501)) == Forgot(501, 0)


def test_the_horizon_never_moves_back() -> None:
    machine = led_machine(forget(1_000), *finished("a", at_ms=500))
    assert machine.step(forget(400)) == Forgot(1_000, 1)
    assert machine.horizon_ms == 1_000


def test_an_id_is_remembered_until_both_its_end_and_its_time_lie_before_the_horizon() -> None:
    ahead = uuid7(9_000, Random(1))
    machine = led_machine(*finished(ahead, at_ms=500))
    assert machine.step(forget(9_000)) == Forgot(9_000, 0)
    assert not machine.is_expired(ahead)
    assert machine.step(forget(9_001)) == Forgot(9_001, 1)
    assert machine.is_expired(ahead)


def test_an_expired_id_is_refused_for_ever_whatever_comes() -> None:
    old = uuid7(500, Random(1))
    machine = led_machine(*finished(old, at_ms=500), forget(501))
    for _ in range(2):
        before = snapshot(machine)
        assert machine.step(begin(old)) is Refusal.EXPIRED
        assert machine.step(Refuse(EPOCH, 1, old)) is Refusal.EXPIRED
        assert machine.get(old) is None
        assert snapshot(machine) == before
        again = Machine()
        restore(again, before)
        machine = again
        machine.step(Epoch(EPOCH + 1, 1, "n2"))
        machine.step(Epoch(EPOCH, 1, "n2"))
        machine.epoch = EPOCH  # so that the commands above are of the epoch again


def test_an_id_of_the_very_time_of_the_horizon_is_not_expired() -> None:
    machine = led_machine(forget(501))
    assert applied(machine, begin(uuid7(501, Random(1)))).outcome is None
    assert machine.step(begin(uuid7(500, Random(1)))) is Refusal.EXPIRED


def test_an_id_without_a_time_may_be_begun_again_once_it_is_forgotten() -> None:
    machine = led_machine(*finished("a", at_ms=500), forget(501))
    assert not machine.is_expired("a")
    assert applied(machine, begin("a")).outcome is None


def test_refusals_go_with_the_horizon() -> None:
    machine = led_machine(Refuse(EPOCH, 500, "a"), forget(500))
    assert record(machine, "a").is_refusal
    assert machine.step(forget(501)) == Forgot(501, 1)


def test_what_is_unfinished_or_was_resolved_by_hand_is_never_forgotten() -> None:
    by_hand = (begin("hand"), decide((YES, YES), "hand"), resolve("1", "hand"))
    whole = (begin("whole"), resolve(None, "whole"), acknowledge(0b11, "whole"))
    machine = led_machine(*by_hand, acknowledge(0b10, "hand"), *whole, begin("under way"))
    assert record(machine, "hand").finished_ms is not None
    assert record(machine, "whole").finished_ms is not None
    assert machine.step(forget(1 << 47)) == Forgot(1 << 47, 0)
    again = Machine()
    restore(again, snapshot(machine))
    assert again.step(forget(1 << 47)) == Forgot(1 << 47, 0)
    assert len(again.page().transactions) == 3


def test_forgetting_goes_in_bounded_steps() -> None:
    machine = led_machine(*(c for n in range(100) for c in finished(f"t{n}", at_ms=1_000 + n)))
    steps = []
    while horizon_ms := machine.horizon_that_forgets(30):
        result = machine.step(forget(horizon_ms))
        assert isinstance(result, Forgot)
        steps.append(result.forgotten)
    assert steps == [30, 30, 30, 10]
    assert machine.horizon_that_forgets(30) == machine.remembered_count == 0


def test_the_horizon_that_forgets_nothing_is_zero() -> None:
    machine = led_machine(*finished("a"))
    assert machine.horizon_that_forgets(0) == 0
    assert led_machine(begin()).horizon_that_forgets(5) == 0


# --- listing --------------------------------------------------------------------------------------


def pages(machine: Machine, limit: int, **filters: object) -> list[list[str]]:
    """Every page, as ids."""
    found: list[list[str]] = []
    after: str | None = None
    for _ in range(1_000):
        page = machine.page(limit=limit, after=after, **filters)  # type: ignore[arg-type]
        found.append([t.id for t in page.transactions])
        after = page.next_after
        if after is None:
            return found
    raise AssertionError("the list does not end")


def flat(found: list[list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(found))


def test_a_list_is_newest_first_and_its_pages_join_without_gap_or_repeat() -> None:
    machine = led_machine(*(begin(f"t{n}") for n in range(25)))
    found = pages(machine, 10)
    assert [len(page) for page in found] == [10, 10, 5]
    assert flat(found) == [f"t{n}" for n in reversed(range(25))]


def test_a_page_stays_where_it_is_while_new_transactions_begin_and_old_ones_end() -> None:
    machine = led_machine(*(begin(f"t{n}") for n in range(20)))
    first = machine.page(limit=10)
    for number in range(20, 40):
        machine.step(begin(f"t{number}"))
    machine.step(decide((Vote.NO, Vote.UNSENT), "t5"))
    second = machine.page(limit=10, after=first.next_after)
    assert [t.id for t in second.transactions] == [f"t{n}" for n in reversed(range(10))]


def test_a_list_can_be_narrowed_by_state_participant_and_age() -> None:
    machine = led_machine(
        begin("a", of=1, now_ms=100),
        begin("b", of=(branch(2),), now_ms=200),
        begin("c", of=2, now_ms=300),
        decide((YES, YES), "c"),
        *finished("d"),
    )
    assert flat(pages(machine, 1, states=frozenset((State.PREPARING,)))) == ["b", "a"]
    assert flat(pages(machine, 1, states=frozenset((State.COMMITTING, State.ABORTED)))) == [
        "d",
        "c",
    ]
    assert flat(pages(machine, 1, participant="service-2")) == ["d", "c", "b"]
    for url in ("http://participant-1", "http://participant-1/"):
        assert flat(pages(machine, 1, participant=url)) == ["d", "c", "a"]
    assert flat(pages(machine, 1, created_before_ms=300)) == ["b", "a"]


def test_one_page_looks_at_a_bounded_number_of_records_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_module, "PAGE_SCAN", 10)
    machine = led_machine(begin("rare", of=(branch(9),)), *(begin(f"t{n}") for n in range(45)))
    found = pages(machine, 5, participant="service-9")
    assert flat(found) == ["rare"]
    assert len(found) >= 45 * 3 // 12


def test_a_page_of_huge_transactions_is_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at is counted in branches: a record of 256 takes as long as a hundred."""
    monkeypatch.setattr(machine_module, "PAGE_SCAN", 100)
    machine = led_machine(*(begin(f"t{n}", of=24) for n in range(10)))
    found = pages(machine, 10)
    assert [len(page) for page in found] == [4, 4, 2]
    assert flat(found) == [f"t{n}" for n in reversed(range(10))]


def test_a_page_of_the_largest_size_of_usual_transactions_is_whole() -> None:
    machine = led_machine(*(begin(f"t{n}", of=3) for n in range(1_000)))
    assert len(machine.page(limit=1_000).transactions) == 1_000


def test_the_unfinished_beyond_one_scan_are_all_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "PAGE_SCAN", 10)
    machine = led_machine(*(begin(f"t{n}") for n in range(45)))
    listed = flat(pages(machine, 4, states=frozenset((State.PREPARING,))))
    assert listed == [f"t{n}" for n in reversed(range(45))]


def test_records_left_behind_by_forgetting_are_listed_after_a_long_gap() -> None:
    machine = led_machine(begin("first"), begin("second"))
    for number in range(1_000):
        machine.step(Refuse(EPOCH, 500, f"r{number}"))
    machine.step(begin("last"))
    machine.step(forget(501))
    assert flat(pages(machine, 1)) == ["last", "second", "first"]
    again = Machine()
    restore(again, snapshot(machine))
    assert flat(pages(again, 1)) == ["last", "second", "first"]


@pytest.mark.parametrize("after", ["0", "", "-1", "x", "²", "٣", "9" * 5_000])
def test_a_cursor_that_nobody_gave_out_is_no_error(after: str) -> None:
    machine = led_machine(begin())
    assert len(machine.page(after=after).transactions) == (0 if after == "0" else 1)


def test_states_of_the_list_are_the_derived_ones() -> None:
    machine = led_machine(begin())
    assert state_of(record(machine)) is State.PREPARING
    assert state_of(applied(machine, decide((YES, YES)))) is State.COMMITTING
    assert state_of(applied(machine, acknowledge(0b11))) is State.COMMITTED
