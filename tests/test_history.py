"""The checker of histories notices every kind of violation."""

from __future__ import annotations

import pytest

from tests.history import History

Told = dict[str, list[str]]
Effects = dict[str, list[tuple[str, str]]]


def history(told: Told, effects: Effects) -> History:
    made = History(["a", "b"])
    for id, outcomes in told.items():
        made.begun(id)
        for outcome in outcomes:
            made.told(id, outcome)
    for service, ended in effects.items():
        made.effects(service, ended)
    return made


def test_a_sound_history_has_no_violations() -> None:
    told = {"t1": ["committed", "committed"], "t2": ["aborted"], "t3": [], "t4": []}
    both = [("t1", "committed"), ("t3", "committed")]
    sound = history(told, {"a": [*both, ("t2", "rolled_back")], "b": both})
    assert sound.violations() == []
    assert (sound.ids("committed"), sound.ids("aborted")) == (["t1"], ["t2"])


@pytest.mark.parametrize(
    ("told", "effects", "what"),
    [
        ({"t": ["committed", "aborted"]}, {"a": [], "b": []}, "told committed and aborted"),
        ({"t": ["committed"]}, {"a": [("t", "committed")], "b": []}, "and not everywhere"),
        ({"t": ["committed"]}, {"a": [], "b": []}, "0 at a, 0 at b"),
        ({"t": ["aborted"]}, {"a": [("t", "committed")], "b": []}, "somewhere committed"),
        ({"t": []}, {"a": [("t", "committed")], "b": [("t", "rolled_back")]}, "not at others"),
        ({}, {"a": [("t", "committed")], "b": []}, "nobody asked for it"),
        ({"t": ["committed"]}, {"a": [("t", "committed")]}, "effects of b were not read"),
        (
            {"t": ["committed"]},
            {"a": [("t", "committed")] * 2, "b": [("t", "committed")]},
            "more than once",
        ),
    ],
)
def test_every_violation_is_noticed(told: Told, effects: Effects, what: str) -> None:
    found = history(told, effects).violations()
    assert any(what in line for line in found), found


def test_what_is_not_an_outcome_is_refused() -> None:
    with pytest.raises(AssertionError, match="not an outcome"):
        history({}, {}).told("t", None)
