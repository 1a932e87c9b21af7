"""The checker of histories: a sound history passes, and each broken invariant is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from tests.checker import check

Event = dict[str, Any]

RUN: Event = {
    "event": "run",
    "at": 0.0,
    "source": "by hand",
    "participants": {"p1": "sdk", "p2": "sdk"},
    "nodes": ["n1", "n2"],
    "forgets": False,
    "complete": True,
}


def event(name: str, **fields: Any) -> Event:
    return {"event": name, "at": 1.0, **fields}


def invoke(op: int = 1, call: str = "submit", **fields: Any) -> Event:
    body: Event = {"client": "c1", "op": op, "call": call, "id": "t"}
    if call == "submit":
        body |= {"participants": {"p1": ["a", 5, "yes"], "p2": ["a", -5, "yes"]}, "work": "w"}
    return event("invoke", **(body | fields))


def ok(op: int = 1, call: str = "submit", **fields: Any) -> Event:
    body = {"client": "c1", "op": op, "call": call, "id": "t"}
    return event("ok", **(body | {"outcome": "committed", "state": "committed"} | fields))


def at(participant: str, name: str, **fields: Any) -> Event:
    return event(name, participant=participant, id="t", branch="1", **fields)


def effect(participant: str, what: str, **fields: Any) -> Event:
    amount = 5 if participant == "p1" else -5
    body: Event = {"effect": what, "held": what != "prepared"}
    return at(
        participant, "effect", **(body | {"account": "a", "amount": amount, "work": "w"} | fields)
    )


def promise(participant: str) -> list[Event]:
    return [
        at(participant, "prepare"),
        effect(participant, "prepared"),
        at(participant, "vote", vote="yes"),
    ]


def end(**fields: Any) -> list[Event]:
    balances = {"p1": {"a": 105}, "p2": {"a": 95}}
    ends = [
        event(
            "participant_end",
            participant=name,
            **({"in_doubt": [], "held": [], "balances": balances[name], "opening": 100} | fields),
        )
        for name in ("p1", "p2")
    ]
    for node in ("n1", "n2"):
        ends.append(event("node_end", node=node, digest="d", outcomes={"t": "committed"}))
    return ends


COMMITTED = [
    RUN,
    event("leader", node="n1", term=1),
    invoke(),
    *promise("p1"),
    *promise("p2"),
    event("applied", node="n1", start=1, index=1, digest=7),
    event("applied", node="n2", start=1, index=1, digest=7),
    ok(),
    at("p1", "commit"),
    effect("p1", "committed"),
    at("p2", "commit"),
    effect("p2", "committed"),
]
"""A transaction as it should be, up to its end."""


def invariants(history: list[Event]) -> set[str]:
    return {violation.invariant for violation in check(history)}


def test_a_sound_history_has_no_violations() -> None:
    assert check([*COMMITTED, *end()]) == []


def test_what_the_checker_does_not_know_it_passes_over() -> None:
    assert check([RUN, event("weather", wind=7)]) == []


def test_an_incomplete_history_is_not_blamed_for_what_it_lacks() -> None:
    assert check([event("applied", node="n1", start=1, index=9, digest=1)]) == []


def without(name: str, **fields: Any) -> list[Event]:
    """`COMMITTED` without the events that have these fields."""
    wanted = {"event": name, **fields}
    return [e for e in COMMITTED if any(e.get(k) != v for k, v in wanted.items())]


BROKEN: dict[str, list[tuple[str, list[Event]]]] = {
    "I1": [
        ("a split", [*COMMITTED, effect("p2", "rolled_back")]),
        ("half of it is missing", [*without("effect", participant="p2"), *end()]),
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
            "a read says otherwise",
            [*COMMITTED, invoke(2, "get"), ok(2, "get", outcome="aborted", state="aborted")],
        ),
        ("a call says otherwise", [*COMMITTED, at("p2", "rollback")]),
    ],
    "I4": [
        (
            "nobody knows it any more",
            [*COMMITTED, *end()[:2], event("node_end", node="n1", digest="d", outcomes={})],
        ),
        (
            "a node knows it otherwise",
            [*COMMITTED, event("node_end", node="n1", digest="d", outcomes={"t": "aborted"})],
        ),
    ],
    "I5": [
        ("in doubt for ever", [*COMMITTED, *end(in_doubt=["t/1"])]),
        ("it does not end", [*COMMITTED, event("unsettled", what=["n1 is down"])]),
    ],
    "I6": [
        (
            "refused as unknown, then committed",
            [
                RUN,
                invoke(9, "decision"),
                ok(9, "decision", outcome="aborted", state="aborted"),
                *COMMITTED[1:],
            ],
        )
    ],
    "I7": [
        ("twice", [*COMMITTED, effect("p1", "committed", held=False)]),
        ("of what it did not hold", [*COMMITTED[:-3], effect("p1", "committed", held=False)]),
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
            "another client reads the past",
            [
                *COMMITTED,
                invoke(2, "get", client="c2"),
                ok(2, "get", client="c2", outcome=None, state="preparing"),
            ],
        )
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
        ("two leaders", [*COMMITTED, event("leader", node="n2", term=1)]),
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
        ("another amount", [RUN, invoke(), effect("p1", "prepared", amount=6)]),
        ("another work", [RUN, invoke(), effect("p1", "prepared", work="x")]),
    ],
    "I17": [
        ("it does not serve", [RUN, event("probe", id="t", outcome=None, took_s=20.0)]),
        ("it stops", [RUN, event("exited", host="n1", start=1, code=1, why="FailStop")]),
    ],
    "I18": [
        ("a crash", [RUN, event("unhandled", message="task", error="KeyError()")]),
        ("nonsense is swallowed", [RUN, event("bad_input", status=200, alive=True)]),
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
    assert check([RUN, full, stopped]) == []
    assert invariants([RUN, stopped, full]) == {"I17"}


def test_who_forgets_may_answer_unknown() -> None:
    history = [*COMMITTED, invoke(2, "get"), ok(2, "get", outcome=None, state="unknown")]
    assert invariants(history) == {"I10"}
    assert check([{**RUN, "forgets": True}, *history[1:]]) == []
