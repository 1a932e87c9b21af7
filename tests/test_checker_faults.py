"""The checker, of what operators do by hand, of submits without an id, of disks that fail."""

from __future__ import annotations

import pytest

from tests.checker import check
from tests.histories import (
    COMMITTED,
    FINISHED,
    NO_END,
    Event,
    at,
    effect,
    end,
    event,
    invariants,
    invoke,
    ok,
    promise,
)

# --- branches that somebody ends by hand ----------------------------------------------------------

BY_HAND = {"by_hand": True}
P1_ONLY = [*COMMITTED[:-2], effect("p2", "rolled_back", **BY_HAND)]
"""Somebody undid p2 in the middle of a commit."""


def ended(p2: int, **by_hand: str) -> list[Event]:
    """The end, with this balance of p2, and what the nodes were told of which branch."""
    ends = end()
    ends[1]["balances"] = {"a": p2}
    for node in ends[2:]:
        node["by_hand"] = {"t": by_hand} if by_hand else {}
    return ends


def resolve(op: int = 5, *, branch: str = "2", kept: bool = True) -> list[Event]:
    said = {"participant": "p2", "branch": branch, "effect": "rolled_back"}
    return [invoke(op, "resolve", **said), ok(op, "resolve", kept=kept)]


def test_who_ends_a_branch_by_hand_answers_for_it() -> None:
    history = [*P1_ONLY, *resolve(), *FINISHED, *ended(100, **{"2": "rolled_back"})]
    assert check(history) == []


def test_by_hand_is_what_it_says_and_no_more() -> None:
    """The same without the word: a split, and money that is lost."""
    split = [*COMMITTED[:-2], effect("p2", "rolled_back"), *ended(100)]
    assert invariants(split) == {"I1", "I13"}


def test_what_is_ended_by_hand_excuses_no_other_branch() -> None:
    silent = [each for each in P1_ONLY if each.get("effect") != "committed"]
    ends = [*resolve(), *FINISHED, *ended(100, **{"2": "rolled_back"})]
    ends[4]["balances"] = {"a": 100}
    found = {(violation.invariant, violation.text) for violation in check([*silent, *ends])}
    assert found == {
        ("I4", "told to be finished, and p1 has not committed"),
        ("I1", "committed, and has no effect at p1"),
    }


def test_a_branch_of_which_somebody_says_that_it_is_over_may_end_later() -> None:
    """And must: it inquires."""
    said = [*COMMITTED[:-2], *resolve(), *FINISHED]
    assert check([*said, effect("p2", "committed"), *ended(95, **{"2": "rolled_back"})]) == []
    never = [*said, *ended(100, **{"2": "rolled_back"})]
    assert {v.text for v in check(never) if v.invariant == "I1"} == {
        "committed, and has no effect at p2"
    }


@pytest.mark.parametrize("kept", [True, False])
def test_what_an_operator_was_told_to_be_taken_down_is_kept(kept: bool) -> None:
    history = [*COMMITTED, *resolve(kept=kept), *ended(95)]
    assert invariants(history) == ({"I4"} if kept else set())


def test_what_is_done_twice_by_hand_is_done_twice() -> None:
    assert "I7" in invariants([*COMMITTED, effect("p2", "committed", **BY_HAND)])


# --- submits without an id ------------------------------------------------------------------------

NAMELESS = [COMMITTED[0], COMMITTED[1], invoke(id=None)]
DONE = [*promise("p1"), *promise("p2"), *COMMITTED[-4:]]


def test_what_was_asked_for_without_an_id_is_known_by_its_answer() -> None:
    assert check([*NAMELESS, ok(), *DONE, *end()]) == []


@pytest.mark.parametrize("answer", [[], [event("info", client="c1", op=1, call="submit", id=None)]])
def test_what_was_not_answered_may_run_once(answer: list[Event]) -> None:
    assert check([*NAMELESS, *answer, *DONE, *end()]) == []
    assert check([*NAMELESS, *answer, at("p1", "rollback"), *ended_without_effect()]) == []


def ended_without_effect() -> list[Event]:
    ends = ended(100)
    ends[0]["balances"] = {"a": 100}
    for node in ends[2:]:
        node["outcomes"] = {"t": "aborted"}
    return ends


def test_what_was_asked_for_once_runs_once() -> None:
    again = [{**effect("p1", "prepared"), "id": "u"}]
    found = [v for v in check([*NAMELESS, *DONE, *again]) if v.invariant == "I12"]
    assert [v.text for v in found] == ["w was asked for once, without an id, and is t, too"]


def test_more_ids_than_were_asked_for_are_invented() -> None:
    strays = [event("rollback", participant="p1", id=id, branch="1") for id in ("t", "u")]
    assert invariants([*NAMELESS, *strays, *ended_without_effect()]) == {"I16", "I4"}


def test_what_was_refused_without_an_id_does_not_run() -> None:
    refused = event("fail", client="c1", op=1, call="submit", id=None, error="bad_request")
    assert "I16" in invariants([*NAMELESS, refused, *DONE])
    assert "I3" in invariants([*NAMELESS, *DONE, refused])


# --- disks whose syncs fail -----------------------------------------------------------------------

FAILING = event("fault", kind="failing syncs", target="n1")


@pytest.mark.parametrize(
    ("why", "code", "is_right"),
    [
        ("DiskFailed: cannot sync /node/journal: Input/output error", 2, True),
        (
            "FailStop: a snapshot cannot be written: cannot sync /node/s: Input/output error",
            2,
            True,
        ),
        ("DiskFailed: cannot sync /node/journal: Input/output error", 70, False),
        ("Damaged: /node/journal is damaged at byte 7", 2, False),
    ],
)
def test_a_node_whose_syncs_fail_stops_for_that_alone(why: str, code: int, is_right: bool) -> None:
    stopped = event("exited", host="n1", start=1, code=code, why=why)
    assert invariants([NO_END, FAILING, stopped]) == (set() if is_right else {"I17"})
    assert invariants([NO_END, stopped]) == {"I17"}


def test_only_a_disk_whose_syncs_fail_excuses_a_sync_that_failed() -> None:
    cut_off = event("fault", kind="isolate", target="n1")
    why = "DiskFailed: cannot sync /node/journal: Input/output error"
    stopped = event("exited", host="n1", start=1, code=2, why=why)
    assert invariants([NO_END, cut_off, stopped]) == {"I17"}
