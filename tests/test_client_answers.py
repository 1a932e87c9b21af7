"""Answers of any shape: read as they are meant, or refused as BadAnswer that names the field."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest

from cluster.client import BadAnswer, ClientError, Conflict, OutcomeUnknown, Unavailable
from cluster.client.answers import read_cluster, read_error, read_page, read_transaction

BRANCH = {
    "branch_id": "1",
    "name": "stock",
    "url": "http://h",
    "vote": "no",
    "reason": "none left",
    "state": "rolled_back",
    "attempts": 2,
    "last_error": "answered 500",
}
TRANSACTION = {
    "id": "t",
    "state": "aborted",
    "outcome": "aborted",
    "reason": "stock: none left",
    "created_at": "2026-01-01T00:00:00.000Z",
    "expires_at": "2026-01-01T00:01:00.000Z",
    "decided_at": "2026-01-01T00:00:00.001Z",
    "finished_at": "2026-01-01T00:00:00.002Z",
    "branches": [BRANCH],
    "metadata": {"a": "b"},
    "history": [{"branch_id": None, "effect": None, "actor": "ada", "reason": "r", "at": "noon"}],
}
PAGE = {"transactions": [TRANSACTION], "next_after": "7", "backlog": {"stock": 3}}
NODE = {
    "id": "n1",
    "api": "http://h:1",
    "raft": "h:2",
    "role": "leader",
    "alive": True,
    "match_index": 4,
    "lag": 0,
}
CLUSTER = {"cluster": "c", "self": "n1", "leader": "n1", "term": 3, "nodes": [NODE]}

Read = Callable[[Any], Any]

SHAPES: dict[str, tuple[Read, dict[str, Any], Callable[[dict[str, Any]], Any]]] = {
    "transaction": (read_transaction, TRANSACTION, lambda changed: changed),
    "branch": (read_transaction, BRANCH, lambda changed: TRANSACTION | {"branches": [changed]}),
    "page": (read_page, PAGE, lambda changed: changed),
    "backlog": (read_page, {"stock": 3}, lambda changed: PAGE | {"backlog": changed}),
    "cluster": (read_cluster, CLUSTER, lambda changed: changed),
    "node": (read_cluster, NODE, lambda changed: CLUSTER | {"nodes": [changed]}),
}
"""What reads it, a shape of which every field is given, and the whole answer around one."""

FIELDS = [(shape, name) for shape, (_, fields, _) in SHAPES.items() for name in fields]
NEEDED = {"id", "state", "branch_id", "name", "transactions", "cluster", "self", "nodes", "api"}


@pytest.mark.parametrize(("shape", "name"), FIELDS)
def test_a_field_of_another_type_is_a_bad_answer_that_names_it(shape: str, name: str) -> None:
    read, fields, around = SHAPES[shape]
    read(around(fields))
    for wrong in (1.5, True, 7, "x", [1], {"a": 1}):
        if type(wrong) is not type(fields[name]):
            with pytest.raises(BadAnswer, match=rf"\b{re.escape(name)}\b"):
                read(around(fields | {name: wrong}))


@pytest.mark.parametrize(("shape", "name"), FIELDS)
def test_a_field_that_is_absent_is_missed_only_where_nothing_can_be_told_without_it(
    shape: str, name: str
) -> None:
    read, fields, around = SHAPES[shape]
    for answer in ({key: fields[key] for key in fields if key != name}, fields | {name: None}):
        if name in NEEDED:
            with pytest.raises(BadAnswer, match=f"without {name}"):
                read(around(answer))
        else:
            read(around(answer))


def test_an_outcome_that_is_neither_of_the_two_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match="'perhaps' as outcome"):
        read_transaction(TRANSACTION | {"outcome": "perhaps"})


@pytest.mark.parametrize("answer", [None, [], "x", 7])
def test_what_is_no_object_is_a_bad_answer(answer: Any) -> None:
    for read in (read_transaction, read_page, read_cluster):
        with pytest.raises(BadAnswer):
            read(answer)
    for name in ("branches", "history"):
        with pytest.raises(BadAnswer):
            read_transaction(TRANSACTION | {name: [answer]})


@pytest.mark.parametrize(
    "error",
    [
        OutcomeUnknown("order-17", "no answer", for_good=True),
        Conflict(409, "transaction_id_conflict", "other content", {"id": "order-17"}),
        Unavailable("no answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_can_be_handed_to_another_process(error: ClientError) -> None:
    for anew in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(anew) is type(error)
        assert str(anew) == str(error)
        assert vars(anew) == vars(error)


@pytest.mark.parametrize("answer", [None, "<html>", {"detail": "Not Found"}, {"error": "x"}])
def test_an_error_that_is_no_nodes_is_told_as_such(answer: Any) -> None:
    refused = read_error(404, answer)
    assert refused.code == "http_404"
    assert "perhaps another program listens there" in str(refused)
