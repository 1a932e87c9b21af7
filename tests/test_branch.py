"""The branch table: every cell, against PROTOCOL, section 4, written down here once more."""

from __future__ import annotations

import pytest

from participants.branch import (
    AFTER_VOTE,
    ENDED,
    TABLE,
    Action,
    Answer,
    Branch,
    DoPrepare,
    DoWork,
    End,
    Message,
    Row,
    State,
    after,
    cell_of,
    row_of,
)
from participants.contract import Vote

MINE, OTHER = "mine", "other"

# What a cell says: action, answer, state after. The states are in the order of `State`.
EXPECTED = """
                     | absent                      | active                          | prepared                      | committed                         | rolled_back
WORK                 | work done active            | work done active                | nothing refused prepared      | nothing refused committed         | nothing refused rolled_back
WORK_LOST            | nothing refused absent      | nothing refused active          | nothing refused prepared      | nothing refused committed         | nothing refused rolled_back
PREPARE              | prepare ? absent            | nothing refused active          | nothing yes prepared          | nothing no committed              | nothing no rolled_back
PREPARE_OTHER        | nothing refused absent      | nothing refused active          | nothing no prepared           | nothing no committed              | nothing no rolled_back
PREPARE_LATE         | nothing no absent           | nothing refused active          | nothing yes prepared          | nothing no committed              | nothing no rolled_back
PREPARE_INTERACTIVE  | nothing no absent           | check ? active                  | nothing yes prepared          | nothing no committed              | nothing no rolled_back
PREPARE_LOST         | nothing refused absent      | rollback no rolled_back         | nothing refused prepared      | nothing refused committed         | nothing refused rolled_back
COMMIT               | nothing unknown_branch absent | nothing not_prepared active   | commit done committed         | nothing done committed            | nothing already_rolled_back rolled_back
ROLLBACK             | nothing done rolled_back    | rollback done rolled_back       | rollback done rolled_back     | nothing already_committed committed | nothing done rolled_back
ANSWERED_COMMIT      | nothing - absent            | nothing - active                | commit - committed            | nothing - committed               | nothing - rolled_back
ANSWERED_ABORT       | nothing - absent            | rollback - rolled_back          | rollback - rolled_back        | nothing - committed               | nothing - rolled_back
"""  # noqa: E501


def expected_cells() -> list[tuple[Row, State, str, str, str]]:
    _, header, *lines = EXPECTED.splitlines()
    states = [State(name.strip()) for name in header.split("|")[1:]]
    cells = []
    for line in lines:
        name, *columns = line.split("|")
        for state, column in zip(states, columns, strict=True):
            action, answer, then = column.split()
            cells.append((Row[name.strip()], state, action, answer, then))
    return cells


def message_of(row: Row) -> Message:
    """A message that lands in the row, when the branch is one of `branch_in`."""
    match row:
        case Row.WORK:
            return DoWork(incarnation=1)
        case Row.WORK_LOST:
            return DoWork(incarnation=2)
        case Row.PREPARE:
            return DoPrepare(MINE)
        case Row.PREPARE_OTHER:
            return DoPrepare(OTHER)
        case Row.PREPARE_LATE:
            return DoPrepare(MINE, late=True)
        case Row.PREPARE_INTERACTIVE:
            return DoPrepare(MINE, incarnation=1)
        case Row.PREPARE_LOST:
            return DoPrepare(MINE, incarnation=2)
        case _:
            return End[row.name]


def branch_in(state: State) -> Branch | None:
    match state:
        case State.ABSENT:
            return None
        case State.ACTIVE:
            return Branch(state, incarnation=1)
        case _:
            return Branch(state, MINE)


@pytest.mark.parametrize("cell", expected_cells(), ids=lambda cell: f"{cell[0].name}-{cell[1]}")
def test_every_cell_does_what_the_protocol_says(cell: tuple[Row, State, str, str, str]) -> None:
    row, state, action, answer, then = cell
    before, message = branch_in(state), message_of(row)
    if row_of(before, message) is not row:  # such a branch makes another row of this message
        known = TABLE[row][state]
        assert (known.action, known.answer) == (Action.NOTHING, Answer.REFUSED)
        return
    what = cell_of(before, message)
    assert what.action.value == action
    assert (what.answer.value if what.answer else "?-"[answer == "-"]) == answer
    kept = after(before, message, what)
    assert (State.ABSENT if kept is None else kept.state).value == then


def test_the_protocols_table_and_the_codes_have_the_same_cells() -> None:
    written = {(row, state) for row, state, *_ in expected_cells()}
    assert written == {(row, state) for row in Row for state in State}
    assert {(row, state) for row, cells in TABLE.items() for state in cells} == written


@pytest.mark.parametrize(
    ("vote", "answer", "kept"),
    [
        (Vote.YES, Answer.YES, Branch(State.PREPARED, MINE)),
        (Vote.NO, Answer.NO, None),
        (Vote.READ_ONLY, Answer.READ_ONLY, None),
    ],
)
def test_a_one_shot_branch_is_kept_only_on_yes(
    vote: Vote, answer: Answer, kept: Branch | None
) -> None:
    voted = cell_of(None, DoPrepare(MINE)).voted(vote)
    assert (voted.answer, after(None, DoPrepare(MINE), voted)) == (answer, kept)
    assert voted.action is (Action.NOTHING if vote is Vote.YES else Action.DISCARD)


@pytest.mark.parametrize("vote", [Vote.NO, Vote.READ_ONLY])
def test_an_interactive_branch_lets_go_unless_it_votes_yes(vote: Vote) -> None:
    active, message = Branch(State.ACTIVE, incarnation=1), DoPrepare(MINE, incarnation=1)
    voted = cell_of(active, message).voted(vote)
    assert voted.action is Action.ROLLBACK
    assert after(active, message, voted) == Branch(State.ROLLED_BACK, MINE, incarnation=1)


def test_an_interactive_branch_that_votes_yes_is_prepared() -> None:
    active, message = Branch(State.ACTIVE, incarnation=1), DoPrepare(MINE, incarnation=1)
    voted = cell_of(active, message).voted(Vote.YES)
    assert after(active, message, voted) == Branch(State.PREPARED, MINE, incarnation=1)


def test_interactive_work_is_known_by_the_process_that_did_it() -> None:
    began = DoWork(incarnation=1)
    active = after(None, began, cell_of(None, began))
    assert active == Branch(State.ACTIVE, incarnation=1)
    assert after(active, began, cell_of(active, began)) == active


def test_work_that_a_crash_lost_is_neither_gone_on_with_nor_promised() -> None:
    """Else half of it would commit."""
    active = Branch(State.ACTIVE, incarnation=1)
    for message in (DoWork(incarnation=2), DoPrepare(MINE, incarnation=2)):
        what = cell_of(active, message)
        assert what.answer in (Answer.REFUSED, Answer.NO)
        assert what.action is not Action.WORK
        kept = after(active, message, what)
        assert kept is not None
        assert kept.state is not State.PREPARED


def test_a_promise_outlives_the_process_that_gave_it() -> None:
    prepared = Branch(State.PREPARED, MINE, incarnation=1)
    asked_again = DoPrepare(MINE, incarnation=2)
    assert cell_of(prepared, asked_again).answer is Answer.YES
    assert after(prepared, asked_again, cell_of(prepared, asked_again)) == prepared


def test_the_promise_of_another_request_is_not_interactive_works() -> None:
    """A client that lost its first try uses the id again, for a transaction that it ends itself."""
    first_try = Branch(State.PREPARED, MINE)
    asked = DoPrepare(OTHER, incarnation=1)
    assert row_of(first_try, asked) is Row.PREPARE_OTHER
    assert cell_of(first_try, asked).answer is Answer.NO


def test_a_vote_is_asked_for_only_where_the_table_asks() -> None:
    assert cell_of(None, DoPrepare(MINE)).voted(Vote.YES).to is State.PREPARED
    settled = cell_of(Branch(State.PREPARED, MINE), DoPrepare(MINE))
    with pytest.raises(KeyError):
        settled.voted(Vote.NO)


def every_message() -> list[Message]:
    return [message_of(row) for row in Row] + [DoPrepare(OTHER, late=True)]


def test_nothing_leads_out_of_a_tombstone() -> None:
    assert set(ENDED) == {State.COMMITTED, State.ROLLED_BACK}
    for state in ENDED:
        for fingerprint in (MINE, None):  # None: an empty rollback, or an interactive branch
            tombstone = Branch(state, fingerprint)
            for message in every_message():
                what = cell_of(tombstone, message)
                assert after(tombstone, message, what) == tombstone
                assert what.action is Action.NOTHING


def test_a_tombstone_bars_every_prepare() -> None:
    for state in ENDED:
        for fingerprint in (MINE, None):
            for message in every_message():
                if isinstance(message, DoPrepare) and message.incarnation is None:
                    assert cell_of(Branch(state, fingerprint), message).answer is Answer.NO


def test_only_a_decision_ends_a_prepared_branch() -> None:
    prepared = Branch(State.PREPARED, MINE)
    for message in every_message():
        kept = after(prepared, message, cell_of(prepared, message))
        if not isinstance(message, End):
            assert kept == prepared, f"{message} must not end a prepared branch"


def test_work_becomes_real_only_from_prepared() -> None:
    for state in State:
        for row in Row:
            commits = TABLE[row][state].action is Action.COMMIT
            assert not commits or state is State.PREPARED


def test_the_fingerprint_is_kept_with_the_tombstone() -> None:
    prepared = Branch(State.PREPARED, MINE)
    ended = after(prepared, End.COMMIT, cell_of(prepared, End.COMMIT))
    assert ended == Branch(State.COMMITTED, MINE)


def test_every_vote_has_a_cell() -> None:
    for cells in AFTER_VOTE.values():
        assert set(cells) == {Vote.YES, Vote.NO, Vote.READ_ONLY}
