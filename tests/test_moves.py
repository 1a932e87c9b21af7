"""coordinator/moves.py: every cell of PROTOCOL section 2, written down here a second time.

For each phase there is a machine in that phase, for each command one that fits it. A cell says
whether the state changes, stays, or refuses; whatever does not change leaves the very same bytes.
"""

from __future__ import annotations

import typing

import pytest

from coordinator.commands import (
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
)
from coordinator.facts import (
    Effect,
    Mode,
    Outcome,
    branch_state,
    everyone_can_commit,
    outstanding,
)
from coordinator.machine import Applied, Machine
from coordinator.moves import MOVES, Phase, Refusal, phase_of
from participants.contract import Vote
from tests.builders import (
    BEGAN_MS,
    EPOCH,
    PAYLOAD,
    acknowledge,
    applied,
    begin,
    branch,
    decide,
    led_machine,
    record,
    resolve,
    snapshot,
)

YES, NO, READ_ONLY = Vote.YES, Vote.NO, Vote.READ_ONLY
UNSENT, UNKNOWN = Vote.UNSENT, Vote.UNKNOWN

OLD_ID = "00000000-0001-7000-8000-000000000000"  # its time is 1 ms after 1970


def machine_in(phase: Phase) -> tuple[Machine, str]:
    """A machine in which the id that is given with it stands in the phase."""
    match phase:
        case Phase.ABSENT:
            return led_machine(), "t"
        case Phase.EXPIRED:
            return led_machine(Forget(EPOCH, BEGAN_MS, BEGAN_MS)), OLD_ID
        case Phase.REFUSED:
            return led_machine(Refuse(EPOCH, BEGAN_MS, "t")), "t"
        case Phase.OPEN:
            return led_machine(begin(mode=Mode.INTERACTIVE)), "t"
        case Phase.UNDECIDED:
            return led_machine(begin()), "t"
        case Phase.COMMITTING:
            return led_machine(begin(), decide((YES, YES))), "t"
        case Phase.ABORTING:
            return led_machine(begin(), decide((YES, UNKNOWN))), "t"
        case Phase.FINISHED:
            return led_machine(begin(), decide((YES, YES)), acknowledge(0b11)), "t"


COMMANDS: dict[str, Command] = {
    "begin": begin(),
    "begin other": begin(fingerprint="f2"),
    "enlist": Enlist(EPOCH, BEGAN_MS, "t", branch(3), PAYLOAD),
    "enlist again": Enlist(EPOCH, BEGAN_MS, "t", branch(1), PAYLOAD),
    "close": Close(EPOCH, BEGAN_MS, "t"),
    "decide": decide((YES, YES)),
    "refuse": Refuse(EPOCH, BEGAN_MS, "t"),
    "acknowledge": acknowledge(0b01),
    "resolve": resolve(),
    "resolve branch": resolve("1"),
    "resolve stranger": resolve("9"),
}

CHANGES, STAYS = "changes", "stays"
_UNKNOWN, _EXPIRED, _CONFLICT = Refusal.UNKNOWN, Refusal.EXPIRED, Refusal.CONFLICT
_CLOSED, _UNDECIDED = Refusal.CLOSED, Refusal.UNDECIDED
_STRANGER, _OVER = Refusal.NO_SUCH_BRANCH, Refusal.BRANCH_FINISHED

Cell = str | Refusal
# In the order of Phase: absent, expired, refused, open, undecided, committing, aborting, finished.
LAW: dict[str, tuple[Cell, ...]] = {
    "begin": (CHANGES, _EXPIRED, STAYS, STAYS, STAYS, STAYS, STAYS, STAYS),
    "begin other": (CHANGES, _EXPIRED, STAYS, *(_CONFLICT,) * 5),
    "enlist": (_UNKNOWN, _UNKNOWN, _CLOSED, CHANGES, *(_CLOSED,) * 4),
    "enlist again": (_UNKNOWN, _UNKNOWN, _CLOSED, STAYS, *(_CLOSED,) * 4),
    "close": (_UNKNOWN, _UNKNOWN, STAYS, CHANGES, STAYS, STAYS, STAYS, STAYS),
    "decide": (_UNKNOWN, _UNKNOWN, STAYS, CHANGES, CHANGES, STAYS, STAYS, STAYS),
    "refuse": (CHANGES, _EXPIRED, *(STAYS,) * 6),
    "acknowledge": (_UNKNOWN, _UNKNOWN, STAYS, *(_UNDECIDED,) * 2, CHANGES, CHANGES, STAYS),
    "resolve": (_UNKNOWN, _UNKNOWN, STAYS, CHANGES, CHANGES, STAYS, STAYS, STAYS),
    "resolve branch": (_UNKNOWN, _UNKNOWN, _STRANGER, *(_UNDECIDED,) * 2, CHANGES, CHANGES, _OVER),
    "resolve stranger": (_UNKNOWN, _UNKNOWN, _STRANGER, *(_UNDECIDED,) * 2, *(_STRANGER,) * 3),
}
CELLS = [
    pytest.param(phase, name, cell, id=f"{name}, {phase.value}")
    for name, cells in LAW.items()
    for phase, cell in zip(Phase, cells, strict=True)
]


def test_the_table_has_a_cell_for_every_command_and_phase() -> None:
    about_a_transaction = set(typing.get_args(Command)) - {Epoch, Forget}
    assert set(MOVES) == about_a_transaction
    assert {type(command) for command in COMMANDS.values()} == about_a_transaction
    for cells in MOVES.values():
        assert set(cells) == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_each_machine_is_in_the_phase_that_it_stands_for(phase: Phase) -> None:
    machine, transaction_id = machine_in(phase)
    expired = machine.is_expired(transaction_id)
    assert phase_of(machine.get(transaction_id), expired=expired) is phase


@pytest.mark.parametrize(("phase", "name", "cell"), CELLS)
def test_a_cell_does_what_the_protocol_says(phase: Phase, name: str, cell: Cell) -> None:
    machine, transaction_id = machine_in(phase)
    before = snapshot(machine)
    standing = machine.get(transaction_id)
    result = machine.step(_about(COMMANDS[name], transaction_id))
    if cell == CHANGES:
        assert isinstance(result, Applied)
        assert result.changed
        assert result.transaction == machine.get(transaction_id) != standing
        assert snapshot(machine) != before
        return
    assert snapshot(machine) == before
    if cell == STAYS:
        assert result == Applied(record(machine), changed=False)
    else:
        assert result is cell


@pytest.mark.parametrize(("phase", "name", "cell"), CELLS)
def test_a_command_applied_twice_is_a_command_applied_once(
    phase: Phase, name: str, cell: Cell
) -> None:
    machine, transaction_id = machine_in(phase)
    command = _about(COMMANDS[name], transaction_id)
    machine.step(command)
    once = snapshot(machine)
    again = machine.step(command)
    assert snapshot(machine) == once
    if cell in (CHANGES, STAYS):
        assert again == Applied(record(machine, transaction_id), changed=False)
    else:
        assert again is cell


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1])
@pytest.mark.parametrize(("phase", "name", "_cell"), CELLS)
def test_a_command_of_another_epoch_is_refused_and_changes_nothing(
    phase: Phase, name: str, _cell: Cell, epoch: int
) -> None:
    machine, transaction_id = machine_in(phase)
    before = snapshot(machine)
    command = _about(COMMANDS[name], transaction_id)._replace(epoch=epoch)
    assert machine.step(command) is Refusal.STALE_EPOCH
    assert snapshot(machine) == before


def test_forget_of_another_epoch_is_refused_and_the_horizon_stays() -> None:
    machine, _ = machine_in(Phase.FINISHED)
    before = snapshot(machine)
    assert machine.step(Forget(EPOCH - 1, BEGAN_MS, 1 << 47)) is Refusal.STALE_EPOCH
    assert snapshot(machine) == before


def test_an_epoch_only_grows() -> None:
    machine = led_machine()
    for epoch in (EPOCH, EPOCH - 1):
        before = snapshot(machine)
        machine.step(Epoch(epoch, 0, "another"))
        assert snapshot(machine) == before
    machine.step(Epoch(EPOCH + 5, 0, "another"))
    assert (machine.epoch, machine.leader) == (EPOCH + 5, "another")


def _about(command: Command, transaction_id: str) -> Command:
    assert isinstance(command, Begin | Enlist | Close | Decide | Refuse | Acknowledge | Resolve)
    return command._replace(id=transaction_id)


# --- what the changing cells do -------------------------------------------------------------------


def test_begin_records_one_shot_closed_and_interactive_open() -> None:
    assert applied(led_machine(), begin()).closed
    assert not applied(led_machine(), begin(mode=Mode.INTERACTIVE)).closed


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        ((YES, YES), Outcome.COMMIT),
        ((YES, READ_ONLY), Outcome.COMMIT),
        ((READ_ONLY, READ_ONLY), Outcome.COMMIT),
        ((YES, NO), Outcome.ABORT),
        ((YES, UNKNOWN), Outcome.ABORT),
        ((YES, UNSENT), Outcome.ABORT),
        ((YES,), Outcome.ABORT),
        ((), Outcome.ABORT),
    ],
)
def test_only_the_votes_of_every_branch_of_the_record_commit(
    votes: tuple[Vote, ...], outcome: Outcome
) -> None:
    decided = applied(led_machine(begin()), decide(votes, reason="why"))
    assert decided.outcome is outcome
    assert decided.reason == (None if outcome is Outcome.COMMIT else "why")


def test_votes_for_more_branches_than_recorded_do_not_replace_missing_ones() -> None:
    decided = applied(led_machine(begin(of=2)), decide((NO, YES, YES)))
    assert decided.outcome is Outcome.ABORT
    assert len(decided.votes) == 2


def test_a_missing_vote_is_no_vote() -> None:
    assert everyone_can_commit((YES, YES), 2)
    assert not everyone_can_commit((YES,), 2)
    assert not everyone_can_commit((YES, YES, YES), 2)


def test_an_open_transaction_cannot_be_committed_before_it_is_closed() -> None:
    machine = led_machine(begin(mode=Mode.INTERACTIVE))
    assert applied(machine, decide((YES, YES))).outcome is Outcome.ABORT
    closed = led_machine(begin(mode=Mode.INTERACTIVE), Close(EPOCH, BEGAN_MS, "t"))
    assert applied(closed, decide((YES, YES))).outcome is Outcome.COMMIT


def test_the_first_decision_wins() -> None:
    machine = led_machine(begin(), decide((YES, UNKNOWN), reason="first"))
    again = applied(machine, decide((YES, YES), reason="second"))
    assert (again.outcome, again.reason) == (Outcome.ABORT, "first")
    machine = led_machine(begin(), decide((YES, YES)))
    for late in (decide((NO, NO)), resolve()):
        assert applied(machine, late).outcome is Outcome.COMMIT


def test_phase_two_goes_to_yes_and_unknown_and_when_interactive_to_all_but_read_only() -> None:
    votes = (YES, NO, READ_ONLY, UNSENT, UNKNOWN)
    one_shot = applied(led_machine(begin(of=5)), decide(votes))
    assert outstanding(one_shot) == 0b10001
    interactive = applied(led_machine(begin(of=5, mode=Mode.INTERACTIVE)), decide(votes))
    assert outstanding(interactive) == 0b11011


def test_a_transaction_is_finished_when_the_last_branch_of_phase_two_has_acknowledged() -> None:
    machine = led_machine(begin(of=3), decide((YES, READ_ONLY, YES)))
    assert applied(machine, acknowledge(0b001)).finished_ms is None
    assert applied(machine, acknowledge(0b010)).acknowledged == 0b001, "has no part in phase two"
    finished = applied(machine, acknowledge(0b100, now_ms=5_000_000))
    assert (finished.finished_ms, outstanding(finished)) == (5_000_000, 0)


def test_where_phase_two_has_nobody_to_reach_the_decision_finishes() -> None:
    for votes in ((READ_ONLY, READ_ONLY), (NO, UNSENT)):
        decided = applied(led_machine(begin()), decide(votes, now_ms=77))
        assert (decided.decided_ms, decided.finished_ms) == (77, 77)


def test_a_refused_id_is_an_abort_without_branches_and_a_later_begin_returns_it() -> None:
    machine = led_machine(Refuse(EPOCH, BEGAN_MS, "t"))
    begun = applied(machine, begin())
    assert begun.is_refusal
    assert (begun.outcome, begun.branches) == (Outcome.ABORT, ())
    assert begun.finished_ms is not None


def test_refuse_that_loses_the_race_against_begin_returns_the_living_transaction() -> None:
    machine = led_machine(begin())
    assert applied(machine, Refuse(EPOCH, BEGAN_MS, "t")).outcome is None


def test_a_name_enlisted_again_with_another_url_is_a_conflict() -> None:
    machine = led_machine(begin(mode=Mode.INTERACTIVE))
    before = snapshot(machine)
    other = branch(1)._replace(url="http://elsewhere")
    assert machine.step(Enlist(EPOCH, BEGAN_MS, "t", other, PAYLOAD)) is Refusal.CONFLICT
    assert snapshot(machine) == before


def test_many_enlists_under_way_at_once_get_numbers_of_their_own() -> None:
    machine = led_machine(begin(of=0, mode=Mode.INTERACTIVE))
    for name in ("a", "b", "c"):
        same_number = branch(1)._replace(name=name)
        applied(machine, Enlist(EPOCH, BEGAN_MS, "t", same_number, PAYLOAD))
    assert [b.branch_id for b in record(machine).branches] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "other",
    [
        Enlist(
            EPOCH, BEGAN_MS, "t", branch(1, plain=True)._replace(prepare_url="http://x"), PAYLOAD
        ),
        Enlist(EPOCH, BEGAN_MS, "t", branch(1)._replace(commit_url="http://x"), PAYLOAD),
        Enlist(EPOCH, BEGAN_MS, "t", branch(1), b"7"),
    ],
)
def test_a_name_enlisted_again_with_anything_else_is_a_conflict(other: Enlist) -> None:
    machine = led_machine(begin(mode=Mode.INTERACTIVE))
    before = snapshot(machine)
    assert machine.step(other) is Refusal.CONFLICT
    assert snapshot(machine) == before
    repeated = other._replace(branch=branch(1)._replace(repeatable=False), payload=PAYLOAD)
    assert applied(machine, repeated) == record(machine), "what it declares since is no matter"


def test_what_is_aborted_by_hand_while_it_is_open_was_never_asked() -> None:
    machine = led_machine(begin(mode=Mode.INTERACTIVE))
    assert applied(machine, resolve()).votes == (Vote.UNSENT, Vote.UNSENT)


def test_an_abort_by_hand_sends_everybody_a_rollback_and_is_kept_in_the_history() -> None:
    aborted = applied(led_machine(begin()), resolve())
    assert (aborted.outcome, outstanding(aborted)) == (Outcome.ABORT, 0b11)
    assert aborted.resolutions[0].actor == "ann"
    assert "ann" in (aborted.reason or "")


def test_a_branch_ended_by_hand_is_waited_for_no_more_and_the_outcome_stays() -> None:
    machine = led_machine(begin(), decide((YES, YES)), acknowledge(0b01))
    resolved = applied(machine, resolve("2", effect=Effect.ROLLED_BACK))
    assert resolved.outcome is Outcome.COMMIT
    assert resolved.finished_ms == BEGAN_MS + 30
    assert resolved.acknowledged == 0b01, "nobody acknowledged in its place"
    assert branch_state(resolved, 1).value == "resolved"


def test_a_branch_is_ended_by_hand_only_once_and_not_after_it_acknowledged() -> None:
    machine = led_machine(begin(of=3), decide((YES, YES, YES)), acknowledge(0b001), resolve("2"))
    before = snapshot(machine)
    assert not isinstance(machine.step(resolve("2", actor="bob")), Refusal)
    assert machine.step(resolve("1")) is Refusal.BRANCH_FINISHED
    assert snapshot(machine) == before


def test_a_decided_transaction_keeps_no_payloads() -> None:
    machine = led_machine(begin(of=1))
    assert record(machine).payloads == (PAYLOAD,)
    assert applied(machine, decide((YES,))).payloads == ()
    assert record(machine).payloads == ()
