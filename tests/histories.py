"""Histories as tests write them, event by event: the parts of a transaction, and a sound whole."""

from __future__ import annotations

from typing import Any

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
    "ordered": True,
}
NO_END: Event = {**RUN, "complete": False}
"""Of a history that is cut off: what only an end shows is not looked for."""


def event(name: str, **fields: Any) -> Event:
    return {"event": name, "at": 1.0, **fields}


def invoke(op: int = 1, call: str = "submit", **fields: Any) -> Event:
    body: Event = {"client": "c1", "op": op, "call": call, "id": "t"}
    if call == "submit":
        body |= {"participants": {"p1": ["a", 5, "yes"], "p2": ["a", -5, "yes"]}, "work": "w"}
    return event("invoke", **(body | fields))


def ok(op: int = 1, call: str = "submit", **fields: Any) -> Event:
    body = {"client": "c1", "op": op, "call": call, "id": "t"}
    return event("ok", **(body | {"outcome": "committed", "state": "committing"} | fields))


def fail(op: int = 1, **fields: Any) -> Event:
    body = {"client": "c1", "op": op, "call": "submit", "id": "t"}
    return event("fail", **(body | {"error": "transaction_id_conflict"} | fields))


def nonsense(**fields: Any) -> Event:
    return event("bad_input", **({"node": "n1", "to": "GET /x", "alive": True} | fields))


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


FINISHED = [invoke(2, "get"), ok(2, "get", state="committed")]


def invariants(history: list[Event]) -> set[str]:
    return {violation.invariant for violation in check(history)}


def without(name: str, **fields: Any) -> list[Event]:
    """`COMMITTED` without the events that have these fields."""
    wanted = {"event": name, **fields}
    return [e for e in COMMITTED if any(e.get(k) != v for k, v in wanted.items())]
