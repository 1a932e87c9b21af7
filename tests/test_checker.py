"""The checker of histories: a sound history passes, and each broken invariant is noticed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.checker import EXPIRED, BadHistory, check, main
from tests.histories import (
    COMMITTED,
    FINISHED,
    NO_END,
    RUN,
    Event,
    at,
    effect,
    end,
    event,
    fail,
    invariants,
    invoke,
    nonsense,
    ok,
    promise,
    without,
)
from tests.recording import Recording


def test_a_sound_history_has_no_violations() -> None:
    assert check([*COMMITTED, *end()]) == []


def test_a_branch_that_has_committed_is_over_to_whoever_asks_about_it() -> None:
    """Its part is done: what is prepared there now is a ghost, and "abort" is the answer."""
    asked = [
        invoke(9, "decision", participant="p1", work="w"),
        ok(9, "decision", outcome=None, decision="abort"),
    ]
    assert check([*COMMITTED, *asked, *end()]) == []


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param([invoke(2), fail(2)], id="somebody else asks for the same"),
        pytest.param([fail(error="transaction_id_expired")], id="what may have run before"),
        pytest.param([fail(), invoke(2)], id="it is asked for again"),
    ],
)
def test_what_was_refused_may_be_done_where_others_ask_for_it(refused: list[Event]) -> None:
    assert check([*COMMITTED[:3], *refused, *without("ok")[3:], *end()]) == []


def test_what_the_checker_does_not_know_it_passes_over() -> None:
    assert check([NO_END, event("weather", wind=7)]) == []


def test_an_incomplete_history_is_not_blamed_for_what_it_lacks() -> None:
    assert check([event("applied", node="n1", start=1, index=9, digest=1)]) == []


def said_by_hand(effect_of: str) -> list[Event]:
    """An operator says of p1's branch what became of it, and is answered that it is kept."""
    asked = {"participant": "p1", "branch": "1", "effect": effect_of}
    return [invoke(7, "resolve", **asked), ok(7, "resolve", kept=True)]


def by_hand(kept: dict[str, str]) -> list[Event]:
    outcomes, said = {"t": "committed"}, {"t": kept}
    return [event("node_end", node="n1", digest="d", outcomes=outcomes, by_hand=said)]


BROKEN: dict[str, list[tuple[str, list[Event]]]] = {
    "I1": [
        ("a split", [*COMMITTED, effect("p2", "rolled_back")]),
        ("half of it is missing", [*without("effect", participant="p2"), *end()]),
        (
            "they are told to commit, and none of them does",
            [e for e in [*without("ok"), *end()] if e.get("effect") != "committed"],
        ),
        (
            "told aborted, done all the same",
            [
                RUN,
                invoke(),
                *promise("p1"),
                *promise("p2"),
                ok(outcome="aborted", state="aborted"),
                effect("p1", "committed"),
                *end(),
            ],
        ),
    ],
    "I2": [("no vote of p2", without("vote", participant="p2"))],
    "I3": [
        (
            "an operator says otherwise",
            [*COMMITTED, invoke(2, "resolve"), ok(2, "resolve", outcome="aborted")],
        ),
        (
            "a read says otherwise",
            [*COMMITTED, invoke(2, "get"), ok(2, "get", outcome="aborted", state="aborted")],
        ),
        ("a call says otherwise", [*COMMITTED, at("p2", "rollback")]),
        (
            "an answer contradicts itself",
            [*COMMITTED, invoke(2, "get"), ok(2, "get", branches={"p1": "rolled_back"})],
        ),
        ("refused, then done all the same", [*COMMITTED[:3], fail(), *without("ok")[3:]]),
        ("done, then refused", [*without("ok"), fail()]),
    ],
    "I4": [
        (
            "a node comes back without what it had",
            [*COMMITTED, event("recovered", node="n2", start=2, last=0)],
        ),
        (
            "applied, and most nodes do not have it",
            [*COMMITTED, event("applied", node="n1", start=1, index=2, digest=8, synced_on=1)],
        ),
        ("told to be finished, and it is not done", [*COMMITTED[:-2], *FINISHED]),
        (
            "of a branch too much is told",
            [*COMMITTED[:-2], invoke(2, "get"), ok(2, "get", branches={"p2": "committed"})],
        ),
        (
            "nobody knows it any more",
            [*COMMITTED, *end()[:2], event("node_end", node="n1", digest="d", outcomes={})],
        ),
        ("an operator's word is lost", [*COMMITTED, *said_by_hand("committed"), *by_hand({})]),
        (
            "an operator's word is another one's",
            [*COMMITTED, *said_by_hand("committed"), *by_hand({"1": "unknown"})],
        ),
        (
            "refused as too old, and it is young",
            [{**RUN, "kept_s": 5.0}, *COMMITTED[1:], invoke(2), fail(2, error=EXPIRED)],
        ),
        (
            "a node knows it otherwise",
            [*COMMITTED, event("node_end", node="n1", digest="d", outcomes={"t": "aborted"})],
        ),
    ],
    "I5": [
        ("in doubt for ever", [*COMMITTED, *end(in_doubt=["t/1"])]),
        ("it does not end", [*COMMITTED, event("unsettled", what=["n1 is down"])]),
        ("nobody had it in hand", [*COMMITTED, event("lost", node="n1", transactions=2)]),
    ],
    "I6": [
        (
            "refused as unknown, then committed",
            [
                RUN,
                invoke(9, "decision", participant="p1", work="w"),
                ok(9, "decision", outcome=None, decision="abort"),
                *COMMITTED[1:],
            ],
        ),
        (
            "asked about while it is begun, told abort, then committed",
            [
                *COMMITTED[:-3],
                invoke(9, "decision", participant="p1", work="w"),
                ok(9, "decision", outcome=None, decision="abort"),
                *COMMITTED[-3:],
            ],
        ),
    ],
    "I7": [
        ("twice", [*COMMITTED, effect("p1", "committed", held=False)]),
        ("of what it did not hold", [*COMMITTED[:-3], effect("p1", "committed", held=False)]),
        (
            "a second vote of who is plain",
            [
                {**RUN, "participants": {"p1": "plain"}},
                invoke(),
                at("p1", "prepare", again=True),
                at("p1", "prepare", again=False),
                at("p1", "prepare", again=False),
            ],
        ),
    ],
    "I8": [
        (
            "prepared after its rollback",
            [RUN, invoke(), effect("p1", "rolled_back", held=False), effect("p1", "prepared")],
        )
    ],
    "I9": [("a lock of nobody", [*COMMITTED, *end(held=["held a"])])],
    "I10": [
        (
            "a client sees it go back",
            [*COMMITTED, invoke(2, "get"), ok(2, "get", outcome=None, state="preparing")],
        )
    ],
    "I11": [
        (
            "a participant was called, and a client reads the past",
            [
                RUN,
                invoke(),
                *promise("p1"),
                *promise("p2"),
                at("p1", "commit"),
                invoke(2, "get", client="c2"),
                ok(2, "get", client="c2", outcome=None, state="preparing"),
            ],
        ),
        (
            "another client reads the past",
            [
                *COMMITTED,
                invoke(2, "get", client="c2"),
                ok(2, "get", client="c2", outcome=None, state="preparing"),
            ],
        ),
    ],
    "I12": [
        (
            "two bodies are done",
            [
                *COMMITTED,
                invoke(2, participants={"p1": ["a", 7, "yes"]}, work="v"),
                ok(2),
            ],
        ),
        (
            "two bodies have effects",
            [
                RUN,
                invoke(),
                invoke(2, participants={"p2": ["a", 7, "yes"]}, work="v"),
                *promise("p1"),
                effect("p1", "committed"),
                at("p2", "vote", vote="yes"),
                effect("p2", "prepared", amount=7, work="v"),
                effect("p2", "committed", amount=7, work="v"),
                *end(),
            ],
        ),
    ],
    "I13": [
        ("money is lost", [*COMMITTED, *end(balances={"a": 95})]),
        ("an overdraft", [*COMMITTED, *end(balances={"a": -5}, opening=-10)]),
    ],
    "I14": [
        (
            "a node that lost its directory applies what comes",
            [
                RUN,
                event("fault", kind="wipe", target="n2"),
                event("applied", node="n2", start=2, index=1, digest=7),
            ],
        ),
        (
            "a node that lost its directory leads",
            [RUN, event("fault", kind="wipe", target="n2"), event("leader", node="n2", term=3)],
        ),
        ("two leaders", [*COMMITTED, event("leader", node="n2", term=1)]),
        (
            "what was committed is so no more",
            [RUN, event("uncommitted", node="n2", index=4, before=5)],
        ),
        (
            "another entry",
            [*COMMITTED, event("applied", node="n2", start=2, index=1, digest=8)],
        ),
        ("applied twice", [*COMMITTED, event("applied", node="n2", start=1, index=1, digest=7)]),
    ],
    "I15": [
        (
            "replicas differ",
            [
                *COMMITTED,
                *end()[:3],
                event("node_end", node="n2", digest="e", outcomes={"t": "committed"}),
            ],
        )
    ],
    "I16": [
        ("nobody asked for it", [RUN, at("p1", "prepare")]),
        ("nobody asked for it, and it is done", [RUN, effect("p1", "committed")]),
        ("another amount", [RUN, invoke(), effect("p1", "prepared", amount=6)]),
        ("another work", [RUN, invoke(), effect("p1", "prepared", work="x")]),
    ],
    "I17": [
        ("it does not serve", [RUN, event("probe", id="t", outcome=None, took_s=20.0)]),
        ("it aborts for nothing", [RUN, event("probe", id="t", outcome="aborted", took_s=0.1)]),
        ("it stops", [RUN, event("exited", host="n1", start=1, code=1, why="FailStop")]),
    ],
    "I18": [
        ("a crash", [RUN, event("unhandled", message="task", error="KeyError()")]),
        ("nonsense is swallowed", [NO_END, nonsense(status=200)]),
        ("nonsense breaks it", [NO_END, nonsense(status=500)]),
        ("nonsense kills it", [NO_END, nonsense(status=None, alive=False)]),
    ],
}


@pytest.mark.parametrize(
    ("invariant", "history"),
    [
        pytest.param(invariant, history, id=f"{invariant}: {what}")
        for invariant, cases in BROKEN.items()
        for what, history in cases
    ],
)
def test_a_broken_invariant_is_noticed(invariant: str, history: list[Event]) -> None:
    assert invariant in invariants(history)


def test_every_invariant_is_broken_once() -> None:
    assert list(BROKEN) == [f"I{number}" for number in range(1, 19)]


def test_a_node_may_stop_when_its_disk_is_full() -> None:
    full = event("fault", kind="full disk", target="n1")
    stopped = event("exited", host="n1", start=1, code=1, why="DiskFailed")
    assert check([NO_END, full, stopped]) == []
    assert invariants([NO_END, stopped, full]) == {"I17"}
    assert invariants([NO_END, full, {**stopped, "code": 70}]) == {"I17"}, "that is no way to stop"


def test_a_new_leader_may_abort_what_was_under_way_when_it_came() -> None:
    """Of plain participants it cannot know who has prepared (PROTOCOL, section 4)."""
    led = event("leader", node="n2", term=2)
    probe = {**event("probe", id="t", outcome="aborted"), "at": led["at"] + 3.0, "took_s": 3.1}
    assert check([NO_END, led, probe]) == []
    assert check([NO_END, led, {**probe, "took_s": 2.9}]) != []


def test_who_leads_when_all_is_well_goes_on() -> None:
    settled, elected = event("settled", after_s=1.0), event("leader", node="n2", term=2)
    assert invariants([*COMMITTED, settled, elected, *end()]) == {"I17"}
    struck = event("fault", kind="clock of tomorrow", target="leader")
    assert check([*COMMITTED, settled, struck, elected, *end()]) == []


def test_who_forgets_may_answer_unknown() -> None:
    ask = [invoke(2, "get"), ok(2, "get", outcome=None, state="unknown")]
    history = [*COMMITTED, *ask, *end()]
    assert invariants(history) == {"I10"}
    forgetful = {**RUN, "forgets": True, "kept_s": 5.0}
    later = [{**e, "at": e["at"] + 5.0} for e in [*ask, *end()]]
    assert check([forgetful, *COMMITTED[1:], *later]) == []
    assert {v.invariant for v in check([forgetful, *history[1:]])} == {"I10"}, "it is young"


def test_what_is_old_may_be_refused_as_too_old() -> None:
    asked = [invoke(2), {**fail(2, error=EXPIRED), "at": 6.0}]
    assert check([{**NO_END, "kept_s": 5.0}, *COMMITTED[1:], *asked]) == []


def test_an_operators_word_that_is_kept_is_no_violation() -> None:
    whole = end()
    whole[-1:] = by_hand({"1": "committed"})
    assert check([*COMMITTED, *said_by_hand("committed"), *whole]) == []


def test_a_read_that_began_before_may_answer_the_past() -> None:
    ask = invoke(2, "get", client="c2")
    past = ok(2, "get", client="c2", outcome=None, state="preparing")
    assert check([*COMMITTED[:3], ask, *COMMITTED[3:], past, *end()]) == []
    assert invariants([*COMMITTED, ask, past, *end()]) == {"I11"}


def test_what_an_operator_is_answered_is_current_too() -> None:
    past = [invoke(2, "retry", client="c2"), ok(2, "retry", client="c2", outcome=None, state="x")]
    assert invariants([*COMMITTED, *past, *end()]) == {"I11"}


def test_what_an_answer_shows_of_branches_agrees_with_what_they_have_done() -> None:
    shown = {"p1": "committed", "p2": "committing"}
    told = [invoke(2, "get"), ok(2, "get", branches=shown)]
    assert check([*COMMITTED[:-2], *told, *COMMITTED[-2:], *end()]) == []


def test_a_ghost_that_is_rolled_back_is_no_split() -> None:
    forgetful = {**NO_END, "participants": {"p1": "forgetful", "p2": "sdk"}}
    ghost = [effect("p1", "prepared"), effect("p1", "rolled_back")]
    assert check([forgetful, *COMMITTED[1:], *ghost]) == []
    assert invariants([*COMMITTED, *ghost, *end()]) == {"I8"}


def test_another_body_of_the_id_may_be_rolled_back() -> None:
    """Its prepare left before it was refused: the branch finds out by inquiry."""
    other = invoke(2, participants={"p1": ["b", 1, "yes"], "p2": ["b", -1, "yes"]}, work="v")
    left = {"work": "v", "account": "b", "amount": 1}
    branch = [effect("p1", "prepared", **left), effect("p1", "rolled_back", **left)]
    for one in branch:
        one["branch"] = "2"
    assert check([*COMMITTED, other, *branch, *end()]) == []


def test_an_event_without_its_fields_is_named() -> None:
    with pytest.raises(BadHistory, match="event 2"):
        check([RUN, {"event": "effect", "at": 1.0, "id": "t"}])


# --- histories of real processes ------------------------------------------------------------------

Told = dict[str, list[str]]
Effects = dict[str, list[tuple[str, str]]]
BOTH = [("t", "committed")]


def recorded(told: Told, effects: Effects, path: Path | None = None) -> Recording:
    made = Recording(["a", "b"], path)
    for id, outcomes in told.items():
        made.begun(id)
        for outcome in outcomes:
            made.told(id, outcome)
    for service, ended in effects.items():
        made.effects(service, ended)
    made.node("n1", {id: outcomes[0] for id, outcomes in told.items() if outcomes})
    return made


def test_a_sound_recording_has_no_violations() -> None:
    told = {"t1": ["committed", "committed"], "t2": ["aborted"], "t3": [], "t4": []}
    both = [("t1", "committed"), ("t3", "committed")]
    sound = recorded(told, {"a": [*both, ("t2", "rolled_back")], "b": both})
    assert sound.violations() == []
    assert (sound.ids("committed"), sound.ids("aborted")) == (["t1"], ["t2"])


@pytest.mark.parametrize(
    ("told", "effects", "what"),
    [
        ({"t": ["committed", "aborted"]}, {"a": [], "b": []}, "I3 .* aborted, .* said committed"),
        ({"t": ["committed"]}, {"a": BOTH, "b": []}, "I1 .* no effect at b"),
        ({"t": ["committed"]}, {"a": [], "b": []}, "I1 .* no effect at a"),
        ({"t": ["aborted"]}, {"a": BOTH, "b": []}, "I1 .* said aborted, a committed"),
        ({"t": []}, {"a": BOTH, "b": [("t", "rolled_back")]}, "I1 .* rolled back at b"),
        ({"t": []}, {"a": BOTH, "b": []}, "I1 .* no effect at b"),
        ({}, {"a": BOTH, "b": []}, "I16 .* nobody began it"),
        ({"t": ["committed"]}, {"a": BOTH}, "I1 .* b: what it did was not read"),
        ({"t": ["committed"]}, {"a": BOTH * 2, "b": BOTH}, "I7 .* commits twice"),
    ],
)
def test_every_violation_of_a_recording_is_noticed(told: Told, effects: Effects, what: str) -> None:
    found = "\n".join(recorded(told, effects).violations())
    assert re.search(what, found), found


def test_what_is_not_an_outcome_is_refused() -> None:
    with pytest.raises(AssertionError, match="not an outcome"):
        recorded({}, {}).told("t", None)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_checks_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    recorded({"t": ["committed"]}, {"a": BOTH, "b": BOTH}, path)
    assert main([str(path)]) == 0
    assert "0 violations" in capsys.readouterr().out
    with path.open("a") as file:
        file.write(json.dumps(event("node_end", node="n2", outcomes={"t": "aborted"})) + "\n")
    assert main([str(path)]) == 1
    assert "I4" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", '{"event": "ok", "at": 1}\n'])
def test_what_is_no_history_is_not_called_sound(tmp_path: Path, text: str) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    assert main([str(path)]) == main([str(tmp_path / "nothing")]) == main([]) == 2


def test_a_node_that_lost_its_directory_may_come_up_empty_and_stop() -> None:
    stopped = event("exited", host="n2", start=2, code=2, why="Foreign: n1 knows n2")
    empty = event("recovered", node="n2", start=2, last=0)
    wiped = event("fault", kind="wipe", target="n2")
    assert invariants([*COMMITTED, *end(), wiped, empty, stopped]) == set()
    assert invariants([*COMMITTED, *end(), empty, stopped]) == {"I4", "I17"}


def test_a_sound_history_of_many_kinds_of_events_has_no_violations() -> None:
    """Each of these is near to what is violated above."""
    plain = {**RUN, "participants": {"p1": "plain", "p2": "sdk"}}
    again = [at("p1", "prepare", again=True), at("p1", "prepare", again=False)]
    asks = invoke(2, "decision", participant="p1", work="w")
    pending = ok(2, "decision", outcome=None, decision="pending")
    late_no = at("p2", "vote", vote="no")
    stale = [
        invoke(3, "get", client="c2", stale=True),
        ok(3, "get", client="c2", outcome=None, state="preparing"),
    ]
    whole = [event("recovered", node="n2", start=2, last=1), nonsense(status=400)]
    begun = COMMITTED[1:3] + again + COMMITTED[4:9]
    history = [plain, *begun, asks, pending, late_no, *COMMITTED[9:], *stale, *whole, *end()]
    assert check(history) == []


def test_what_was_asked_for_with_two_bodies_is_not_looked_for_without_its_own() -> None:
    other = [
        invoke(2, participants={"p1": ["b", 1, "yes"]}, work="v"),
        fail(2, error="transaction_id_conflict"),
    ]
    asked = [invoke(3, "get"), ok(3, "get", state="committed")]
    assert check([NO_END, *COMMITTED[1:-2], *other, *asked]) == []


def test_what_is_told_before_the_effects_are_read_is_not_held_against_them() -> None:
    unordered = {**RUN, "ordered": False}
    told = [ok(state="committed"), *COMMITTED[-4:]]
    assert check([unordered, *COMMITTED[1:9], *told, *end()]) == []
    assert invariants([RUN, *COMMITTED[1:9], *told, *end()]) == {"I4"}
