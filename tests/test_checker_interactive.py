"""The checker of histories, of interactive transactions: what is sound passes, what is broken is
noticed.
"""

from __future__ import annotations

import pytest

from tests.checker import check
from tests.histories import RUN, Event, at, effect, end, event, invariants, invoke, ok, promise

PLAIN: Event = {**RUN, "participants": {"p1": "plain", "p2": "plain"}}
ASKED = {"p1": ["a", 5, "yes"], "p2": ["a", -5, "yes"]}


def opened() -> list[Event]:
    told = ok(1, "open", outcome=None, state="active")
    return [invoke(1, "open", work="w"), told]


def enlist(op: int, participant: str, **fields: object) -> Event:
    asked = {"participant": participant, "asked": ASKED[participant], "work": "w"}
    return invoke(op, "enlist", **(asked | fields))


def enlisted(op: int, participant: str, branch: str, **fields: object) -> Event:
    told = {"outcome": None, "state": "active", "participant": participant, "branch": branch}
    return ok(op, "enlist", **(told | fields))


def refused(op: int, call: str, error: str = "not_allowed") -> Event:
    fields = {"client": "c1", "op": op, "call": call, "id": "t", "error": error}
    return event("fail", **fields)


def of(number: str, events: list[Event]) -> list[Event]:
    return [{**each, "branch": number} for each in events]


FILLED = [
    PLAIN,
    *opened(),
    enlist(2, "p1"),
    enlisted(2, "p1", "1"),
    enlist(3, "p2"),
    enlisted(3, "p2", "2"),
]
PREPARED = [
    *FILLED,
    invoke(4, "commit", work="w"),
    *promise("p1"),
    *of("2", promise("p2")),
]
COMMITTED = [
    *PREPARED,
    ok(4, "commit"),
    at("p1", "commit"),
    effect("p1", "committed"),
    *of("2", [at("p2", "commit"), effect("p2", "committed")]),
]
ROLLED_BACK = [
    *FILLED,
    invoke(4, "rollback", work="w"),
    at("p1", "rollback"),
    *of("2", [at("p2", "rollback")]),
    ok(4, "rollback", outcome="aborted", state="aborted"),
]


def ended(outcome: str, vote: str = "yes", **record: list[str]) -> list[Event]:
    """The end; `record`: what the nodes have, by branch (`b1`, `b2`)."""
    kept = {"b1": ["p1", vote], "b2": ["p2", vote]} | record
    enlisted = {"t": {name[1:]: branch for name, branch in kept.items()}}
    committed = outcome == "committed"
    balances = [{"a": 105}, {"a": 95}] if committed else [{"a": 100}, {"a": 100}]
    ends = end()
    for each in ends:
        if each["event"] == "node_end":
            each |= {"outcomes": {"t": outcome}, "enlisted": enlisted}
        else:
            each["balances"] = balances[each["participant"] == "p2"]
    return ends


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([*COMMITTED, *ended("committed")], id="committed"),
        pytest.param([*ROLLED_BACK, *ended("aborted", "unsent")], id="rolled back"),
        pytest.param(
            [*ROLLED_BACK, enlist(5, "p1"), refused(5, "enlist"), *ended("aborted", "unsent")],
            id="enlisted too late, and refused",
        ),
        pytest.param(
            [*FILLED, enlist(5, "p1"), enlisted(5, "p1", "1"), *COMMITTED[7:], *ended("committed")],
            id="enlisted twice",
        ),
        pytest.param(
            [
                *ROLLED_BACK,
                invoke(5, "commit"),
                ok(5, "commit", outcome="aborted", state="aborted"),
                *ended("aborted", "unsent"),
            ],
            id="a commit that comes too late",
        ),
    ],
)
def test_a_sound_history_has_no_violations(history: list[Event]) -> None:
    assert check(history) == []


BROKEN: list[tuple[str, str, list[Event]]] = [
    ("I16", "asked to prepare, open", [*FILLED, *promise("p1")]),
    ("I16", "committed, open", [*FILLED, at("p1", "commit")]),
    (
        "I16",
        "told committed, and only a rollback was asked for",
        [*FILLED, invoke(4, "rollback"), ok(4, "rollback")],
    ),
    (
        "I16",
        "committed though the commit was refused",
        [*FILLED, invoke(4, "commit"), refused(4, "commit"), at("p1", "commit")],
    ),
    (
        "I16",
        "asked, and its enlist was refused",
        [PLAIN, *opened(), enlist(2, "p1"), refused(2, "enlist"), at("p1", "rollback")],
    ),
    ("I16", "asked, and nobody enlisted it", [PLAIN, *opened(), at("p1", "rollback")]),
    (
        "I16",
        "on record, and nobody enlisted it",
        [*COMMITTED, *ended("committed", b3=["p3", "read_only"])],
    ),
    (
        "I16",
        "other work than it was enlisted for",
        [*FILLED, invoke(4, "commit"), effect("p1", "prepared", amount=6)],
    ),
    ("I12", "two of one number", [*FILLED, enlist(4, "p2"), enlisted(4, "p2", "1")]),
    ("I12", "two numbers of one", [*FILLED, enlist(4, "p1"), enlisted(4, "p1", "3")]),
    (
        "I12",
        "other work under its name is taken",
        [*FILLED, enlist(4, "p1", asked=["b", 5, "yes"]), enlisted(4, "p1", "1")],
    ),
    (
        "I12",
        "the answer is another one's",
        [*FILLED, enlist(4, "p1"), enlisted(4, "p2", "1")],
    ),
    (
        "I10",
        "enlisted, and it is closed",
        [*FILLED, enlist(4, "p1"), enlisted(4, "p1", "1", state="preparing")],
    ),
    (
        "I10",
        "enlisted after it has ended",
        [*ROLLED_BACK, enlist(5, "p1"), enlisted(5, "p1", "1")],
    ),
    (
        "I11",
        "enlisted after a prepare has come",
        [*PREPARED, enlist(5, "p1"), enlisted(5, "p1", "1")],
    ),
    (
        "I10",
        "unknown to whoever wants to end it",
        [*FILLED, invoke(4, "commit"), refused(4, "commit", "unknown_transaction")],
    ),
    (
        "I4",
        "what was rolled back commits",
        [
            *FILLED,
            invoke(4, "rollback"),
            ok(4, "rollback", outcome=None, state="refused"),
            invoke(5, "commit"),
            ok(5, "commit"),
        ],
    ),
    (
        "I4",
        "a rollback is answered that is only proposed",
        [*FILLED, invoke(4, "rollback"), ok(4, "rollback", outcome=None, state="active")],
    ),
    (
        "I4",
        "told its number, and not on record",
        [*COMMITTED, *ended("committed", b2=["p1", "yes"])],
    ),
    (
        "I5",
        "enlisted, and told of no outcome",
        [*[e for e in ROLLED_BACK if e["event"] != "rollback"], *ended("aborted", "unsent")],
    ),
    (
        "I2",
        "enlisted by somebody who was not answered, and has not voted",
        [
            PLAIN,
            *opened(),
            enlist(2, "p1"),
            enlist(3, "p2"),
            invoke(4, "commit"),
            *promise("p1"),
            ok(4, "commit"),
            at("p1", "commit"),
            effect("p1", "committed"),
            *ended("committed"),
        ],
    ),
    (
        "I2",
        "one of those who were told to be in has not voted",
        [*FILLED, invoke(4, "commit"), *promise("p1"), effect("p1", "committed")],
    ),
    (
        "I8",
        "asked to prepare, and on record as never asked",
        [
            *PREPARED,
            at("p1", "rollback"),
            *of("2", [at("p2", "rollback")]),
            *ended("aborted", "unsent"),
        ],
    ),
]


@pytest.mark.parametrize(
    ("invariant", "history"), [pytest.param(i, h, id=what) for i, what, h in BROKEN]
)
def test_what_is_broken_is_noticed(invariant: str, history: list[Event]) -> None:
    assert invariant in invariants(history)
