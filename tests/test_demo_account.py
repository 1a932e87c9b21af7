"""The demo's account: it holds when the figures agree, and notices each one that does not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from cluster.local.demo_account import Account, Report

EFFECTS = {"a": "committed", "c": "committed"}


def sound(**changes: Any) -> Account:
    """Three orders: two committed, one of them found out later; one aborted."""
    account = Account(
        told={"a": "committed", "b": "aborted", "c": "committed"},
        quantity={"a": 1, "b": 2, "c": 2},
        reasons={"out of stock": 1},
        effects={name: dict(EFFECTS) for name in ("profile", "inventory", "activity")},
        stock_taken=3,
        log_entries=2,
        orders_counted=2,
        prepared_now=0,
        unfinished_now=0,
        old_leader="n1",
        new_leader="n2",
        killed_pid=7,
        leader_was_dead=True,
        next_commit_s=0.8,
        nodes_asked=3,
        disagreements=[],
    )
    return dataclasses.replace(account, **changes)


def held(account: Account) -> bool:
    return Report(account.figures(), account.checks()).held


def test_figures_that_agree_hold() -> None:
    assert held(sound())
    figures = sound().figures()
    assert (figures["committed"], figures["aborted"]) == (2, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"stock_taken": 4},
        {"log_entries": 1},
        {"orders_counted": 3},
        {"prepared_now": 1},
        {"unfinished_now": 1},
        {"new_leader": "n1"},
        {"new_leader": ""},
        {"leader_was_dead": False},
        {"next_commit_s": None},
        {"disagreements": ["n3 says None of a"]},
        {"failures": ["a: refused"]},
        {"told": {"a": "committed", "b": "aborted", "c": None}, "found": {"c": "committed"}},
        {"told": {"a": "committed", "c": "committed"}},
        {"effects": {"profile": {"a": "committed"}}},
        {"effects": {"profile": EFFECTS | {"b": "committed"}}},
        {"effects": {"profile": EFFECTS | {"stranger": "committed"}}},
        {"effects": {"profile": EFFECTS | {"a": "rolled_back"}}},
    ],
)
def test_whatever_does_not_agree_is_noticed(changes: dict[str, Any]) -> None:
    assert not held(sound(**changes))


def test_an_account_of_nothing_does_not_hold() -> None:
    assert not any(
        check.held for check in Account().checks() if check.claim != "no client call failed"
    )


def test_a_branch_that_was_rolled_back_agrees_with_an_abort() -> None:
    assert held(sound(effects={"profile": EFFECTS | {"b": "rolled_back"}}))
