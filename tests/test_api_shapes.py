"""Reading what clients ask, and showing transactions: pure shapes, field by field."""

from __future__ import annotations

import itertools
import json
from random import Random
from typing import Any

import pytest

from coordinator import api_errors, api_fields, api_shapes, api_show, errors
from coordinator.api_errors import CODES, ApiError
from coordinator.api_shapes import (
    MAX_AHEAD_MS,
    Submission,
    read_resolve,
    read_submission,
    require_not_ahead,
)
from coordinator.facts import Branch, Branches, Effect, Mode, Outcome, Resolution, Transaction
from coordinator.live import Progress
from coordinator.log import FateUnknown, NotLeader
from coordinator.participant_connection import target_of
from coordinator.plan import Wait
from coordinator.settings import Limits, Timings
from participants.contract import Vote, encode_json, fingerprint
from tests.builders import uuid7

NOW_MS = 1_750_000_000_000
EXPLICIT = {"prepare": "http://h/p", "commit": "http://h/c?x=1", "rollback": "http://h/r"}


def read(value: Any, **limits: int) -> Submission:
    made = itertools.count(1)
    return read_submission(
        value,
        limits=Limits(**limits),
        timings=Timings(),
        make_id=lambda: f"made-{next(made)}",
        traceparent="trace",
    )


def one(**participant: Any) -> dict[str, Any]:
    return {"participants": [participant]}


def refused(value: Any, field: str, status: int = 400, **limits: int) -> str:
    """The message with which a body is refused for this field."""
    with pytest.raises(ApiError) as caught:
        read(value, **limits)
    assert caught.value.status == status, caught.value.message
    if status == 400:
        assert caught.value.details == {"field": field}
        assert caught.value.message.startswith(field)
    return caught.value.message


# --- reading --------------------------------------------------------------------------------------


def test_a_participant_that_was_read_before_is_judged_as_if_for_the_first_time() -> None:
    good = {"name": "a", "url": "http://h"}
    bad: list[tuple[Any, str]] = [
        ({"name": "\n", "url": "http://h"}, ".name"),
        ({"name": None, "url": "http://h"}, ".name"),
        ({"name": "a" * 201, "url": "http://h"}, ".name"),
        ({"name": "a", "url": "http://h?x=1"}, ".url"),
        ({"name": "a", "url": "ftp://h"}, ".url"),
        ({"name": "a", "url": "http://h/" + "x" * 2_000}, ".url"),
        ({"name": "b", "url": "http://h", "pay": 1}, ".pay"),
        ({"name": "b", "url": "http://h", "commit": "http://h/c"}, ".commit"),
    ]
    for _ in range(2):
        plan = read({"participants": [good, {"url": "http://h"}]}).plan
        assert [branch.name for branch in plan.branches] == ["a", "h"]
        for participant, field in bad:
            refused({"participants": [participant]}, f"participants[0]{field}")
            refused({"participants": [good, participant]}, f"participants[1]{field}")


def test_what_is_too_long_is_not_remembered() -> None:
    """Else a client could fill the memory of the node with URLs of a megabyte each."""
    remembered = (api_shapes._remembered_place, api_fields._problem_of_url)
    read(one(name="a", url="http://h"))
    before = [function.cache_info().currsize for function in remembered]
    for number in range(5):
        long = f"http://h/{number}" + "x" * 2_000
        refused(one(name="a", url=long), "participants[0].url")
        refused(one(url=long), "participants[0].url")
        refused(one(**{**EXPLICIT, "prepare": long}), "participants[0].prepare")
    assert [function.cache_info().currsize for function in remembered] == before


def test_the_least_body_has_the_defaults() -> None:
    plan, wait, named = read(one(url="http://127.0.0.1:9002/stock/"))
    assert (plan.id, named, wait) == ("made-1", False, Wait.DECISION)
    assert (plan.mode, plan.timeout_ms, plan.metadata) == (Mode.ONE_SHOT, 10_000, b"{}")
    assert plan.traceparent == "trace"
    branch = plan.branches[0]
    assert branch.name == "127.0.0.1:9002/stock"
    assert branch.url == "http://127.0.0.1:9002/stock"
    assert branch.prepare_url == "http://127.0.0.1:9002/stock/prepare"
    assert branch.commit_url == "http://127.0.0.1:9002/stock/commit"
    assert branch.rollback_url == "http://127.0.0.1:9002/stock/rollback"
    assert plan.payloads == (b"null",)


def test_everything_that_is_given_is_taken() -> None:
    body = {
        "id": "my.id:1_2-3",
        "mode": "one_shot",
        "participants": [
            {"name": "stock é", "url": "https://[::1]:9002", "payload": {"b": [1, "é"], "a": None}},
            {"name": "mail", **EXPLICIT},
            EXPLICIT,
        ],
        "timeout_ms": 100,
        "wait": "completion",
        "metadata": {"z": 1, "a": "é"},
    }
    plan, wait, named = read(body)
    assert (plan.id, named, wait, plan.timeout_ms) == ("my.id:1_2-3", True, Wait.COMPLETION, 100)
    assert plan.metadata == b'{"a":"\\u00e9","z":1}'
    assert plan.payloads[0] == b'{"a":null,"b":[1,"\\u00e9"]}'
    assert plan.branches[1].url is None
    assert plan.branches[1].commit_url == "http://h/c?x=1"
    assert [b.name for b in plan.branches] == ["stock é", "mail", "h/p"]


def test_the_fingerprint_is_of_participants_and_payloads_not_of_times_and_labels() -> None:
    body = one(url="http://h", payload={"a": 1, "b": 2})
    plan = read(body).plan
    expected = fingerprint(
        "one_shot", [("h", "http://h/prepare", "http://h/commit", "http://h/rollback",
                      encode_json({"b": 2, "a": 1}))]
    )  # fmt: skip
    assert plan.fingerprint == expected
    same = {**body, "timeout_ms": 500, "wait": "none", "metadata": {"a": 1}, "id": "x"}
    assert read(same).plan.fingerprint == expected
    for other in (
        one(url="http://h", payload={"a": 1, "b": 3}),
        one(url="http://h", payload={"a": 1, "b": 2}, name="other"),
        one(url="http://other", payload={"a": 1, "b": 2}, name="h"),
    ):
        assert read(other).plan.fingerprint != expected


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("body", []),
        ("body", None),
        ("partcipants", {"partcipants": []}),
        ("transactions", {**one(url="http://h"), "transactions": []}),
        ("participants", {}),
        ("participants", {"participants": []}),
        ("participants", {"participants": {"url": "http://h"}}),
        ("participants[0]", {"participants": ["http://h"]}),
        ("participants[1]", {"participants": [{"url": "http://h"}, None]}),
        ("participants[0].url", one()),
        ("participants[0].urll", one(urll="http://h")),
        ("participants[0].name", one(url="http://h", name="")),
        ("participants[0].name", one(url="http://h", name=" ")),
        ("participants[0].name", one(url="http://h", name="a\nb")),
        ("participants[0].name", one(url="http://h", name="\ud800")),
        ("participants[0].name", one(url="http://h", name="x" * 201)),
        ("participants[0].name", one(url="http://h", name=None)),
        ("participants[0].payload", one(url="http://h", payload=float("inf"))),
        ("participants[0].prepare", one(url="http://h", **EXPLICIT)),
        ("participants[0].commit", one(prepare="http://h/p", rollback="http://h/r")),
        ("participants[0].rollback", one(prepare="http://h/p", commit="http://h/c")),
        ("participants[0].prepare", one(commit="http://h/c", rollback="http://h/r")),
        ("participants[0].url", one(url="http://h?x=1")),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": 99}),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": 3_600_001}),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": True}),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": 1000.0}),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": "1000"}),
        ("timeout_ms", {**one(url="http://h"), "timeout_ms": None}),
        ("wait", {**one(url="http://h"), "wait": "Decision"}),
        ("wait", {**one(url="http://h"), "wait": None}),
        ("mode", {**one(url="http://h"), "mode": "two_shot"}),
        ("metadata", {**one(url="http://h"), "metadata": []}),
        ("metadata", {**one(url="http://h"), "metadata": None}),
        ("metadata", {**one(url="http://h"), "metadata": {"a": "x" * 4_096}}),
        ("id", {**one(url="http://h"), "id": None}),
        ("id", {**one(url="http://h"), "id": ""}),
        ("id", {**one(url="http://h"), "id": "x" * 65}),
        ("id", {**one(url="http://h"), "id": "a b"}),
        ("id", {**one(url="http://h"), "id": "a\n"}),
        ("id", {**one(url="http://h"), "id": "."}),
        ("id", {**one(url="http://h"), "id": ".."}),
        ("id", {**one(url="http://h"), "id": 5}),
    ],
)
def test_what_is_not_as_it_must_be_is_refused_by_its_path(field: str, body: Any) -> None:
    refused(body, field)


def test_limits_are_those_of_the_settings() -> None:
    body = {"participants": [{"url": f"http://h{i}"} for i in range(4)]}
    assert "at most 3" in refused(body, "participants", branches=3)
    assert len(read(body, branches=4).plan.branches) == 4
    heavy = one(url="http://h", payload="x" * 1_000)
    refused(heavy, "", 413, body_bytes=1_000)
    read(heavy, body_bytes=1_004)  # two quotes, and the metadata's braces


def test_true_is_no_number_even_where_1_is_one() -> None:
    def timeout(value: Any) -> int:
        return read_submission(
            {**one(url="http://h"), "timeout_ms": value},
            limits=Limits(),
            timings=Timings(min_timeout_ms=1),
            make_id=lambda: "made",
        ).plan.timeout_ms

    assert timeout(1) == 1
    with pytest.raises(ApiError):
        timeout(True)


def test_a_name_that_comes_twice_is_asked_for() -> None:
    same = {"url": "http://h:1/a"}
    message = refused({"participants": [same, {"url": "http://g"}, same]}, "participants[2].name")
    assert "give each one a name" in message
    read({"participants": [same, {**same, "name": "other"}]})


def test_an_interactive_transaction_has_no_participants_yet_and_more_time() -> None:
    open_ = read({"mode": "interactive", "id": "t", "metadata": {"a": 1}}).plan
    assert (open_.mode, open_.branches, open_.payloads) == (Mode.INTERACTIVE, (), ())
    assert (open_.timeout_ms, open_.metadata) == (60_000, b'{"a":1}')
    assert read({"mode": "interactive", "id": "t", "timeout_ms": 500}).plan.fingerprint == (
        open_.fingerprint
    )
    assert read({"mode": "interactive", "id": "u"}).plan.fingerprint != open_.fingerprint
    refused({"mode": "interactive", "participants": []}, "participants")
    refused({"mode": "interactive", "wait": "decision"}, "wait")


def test_an_id_from_the_future_is_refused() -> None:
    random = Random(1)
    with pytest.raises(ApiError, match="5 minutes") as caught:
        not_ahead(uuid7(NOW_MS + MAX_AHEAD_MS + 1, random))
    assert caught.value.details == {"field": "id"}
    for fine in (uuid7(NOW_MS + MAX_AHEAD_MS, random), uuid7(0, random), "no-time"):
        not_ahead(fine)


def test_a_node_whose_clock_may_be_wrong_refuses_no_id_for_good() -> None:
    ahead = uuid7(NOW_MS + MAX_AHEAD_MS + 1, Random(1))
    with pytest.raises(ApiError) as caught:
        not_ahead(ahead, settled=False)
    assert (caught.value.status, caught.value.code) == (503, "clock_unsettled")
    assert caught.value.headers["Retry-After"]
    not_ahead(ahead, settled=False, known=True)


def not_ahead(id: str, *, settled: bool = True, known: bool = False) -> None:
    require_not_ahead(
        id, now_ms=lambda: NOW_MS, is_known=lambda _: known, is_settled=lambda: settled
    )


BAD_URLS = [
    "", "x", "h:80", "//h", "/path", "ftp://h", "file:///etc/passwd", "http:", "http://", "http:///p",
    "http://user@h", "http://user:pw@h", "http://h#f", "http://h/#", "http://h:0", "http://h:",
    "http://h:65536", "http://h:x", "http://h:-1", "http://[::1", "http://[x]", "http://[::1%25lo]",
    "http://h h", "http://h\n", "http://h\x00", "http://é", "http://h/é", "http://\ud800", "http://h<>",
    "http://h\\g", "javascript:alert(1)", "http://" + "h" * 2_000, "HTTP//h", "http://?x", "http://%41",
    "http://a..b", "http://.a", f"http://{'a' * 64}.example", "http://[::1]h", "http://h[::1]:80",
]  # fmt: skip
GOOD_URLS = [
    "http://h", "HTTP://H", "https://a.b-c.example:8443/x/y", "http://127.0.0.1:9002",
    "http://[::1]:9002/p", "http://under_score/p%20q", "http://h/a;b=c,d",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD_URLS)
def test_urls_that_cannot_be_called(url: str) -> None:
    refused(one(url=url), "participants[0].url")
    refused(one(**{**EXPLICIT, "commit": url}), "participants[0].commit")


@pytest.mark.parametrize("url", GOOD_URLS)
def test_urls_that_can_be_called_are_called(url: str) -> None:
    plan = read(one(url=url)).plan
    assert target_of(plan.branches[0].prepare_url).origin.host


def test_a_payload_is_nested_no_deeper_than_every_participant_can_read() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for level in range(depth):
            value = [value] if level % 2 else {"a": value}
        return value

    read(one(url="http://h", payload=nested(100)))
    body = {"participants": [{"url": "http://h"}, {"url": "http://i", "payload": nested(101)}]}
    assert "100 deep" in refused(body, "participants[1].payload")
    read(one(url="http://h", payload=[[[], "[{" * 200] for _ in range(200)]))


def depth_of(value: Any) -> int:
    """By walking over it."""
    if not isinstance(value, dict | list):
        return 0
    parts = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth_of, parts), default=0)


def any_value(chance: Random, room: int) -> Any:
    kind = chance.randrange(4) if room else 0
    if kind == 0:
        return chance.choice((1, None, "", "".join(chance.choices('[]{}"\\,:ax\n\u00e9', k=4))))
    parts = [any_value(chance, room - 1) for _ in range(chance.randrange(3))]
    return parts if kind < 3 else {str(any_value(chance, 0)): part for part in parts}


def test_depth_is_that_of_containers_whatever_stands_in_texts() -> None:
    values = [1, [], {"a": [1, {}]}, ["]", [[]]], "[[[", ["\\", ['\\"']], {"[": '"'}, [[], [[[]]]]]
    values += [any_value(Random(seed), 6) for seed in range(2_000)]
    for value in values:
        depth = depth_of(value)
        encoded = encode_json(value)
        assert not api_fields.is_deeper(encoded, depth)
        for less in range(depth):
            assert api_fields.is_deeper(encoded, less)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"\xef\xbb\xbf{}", b"NaN", b"[Infinity]", b'{"a":1,"a":1}', b"{}x",
     b"[" * 100_000, b"9" * 5_000, '"a"'.encode("utf-16")],
)  # fmt: skip
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        api_fields.decode_json(body)
    assert (caught.value.status, caught.value.code) == (400, "malformed_json")


def test_an_integer_that_is_too_long_is_told_without_advice_about_python() -> None:
    with pytest.raises(ApiError, match="4300 digits") as caught:
        api_fields.decode_json(b"9" * 5_000)
    assert "sys." not in caught.value.message


# --- what an operator asks ------------------------------------------------------------------------

WHY = {"actor": "ada", "reason": "why"}


def test_a_resolve_is_for_the_whole_or_for_a_branch() -> None:
    assert read_resolve({"outcome": "abort", **WHY}).outcome is Outcome.ABORT
    asked = read_resolve({"branch_id": "2", "effect": "rolled_back", **WHY})
    assert (asked.outcome, asked.branch_id, asked.effect) == (None, "2", Effect.ROLLED_BACK)
    assert (asked.actor, asked.reason) == ("ada", "why")


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("outcome", WHY),
        ("outcome", {"outcome": "aborted", **WHY}),
        ("outcome", {"outcome": None, **WHY}),
        ("branch_id", {"outcome": "abort", "branch_id": "1", **WHY}),
        ("effect", {"outcome": "abort", "effect": "unknown", **WHY}),
        ("effect", {"branch_id": "1", **WHY}),
        ("effect", {"branch_id": "1", "effect": "lost", **WHY}),
        ("branch_id", {"branch_id": 1, "effect": "unknown", **WHY}),
        ("actor", {"outcome": "abort", "reason": "why"}),
        ("reason", {"outcome": "abort", "actor": "ada"}),
        ("reason", {"outcome": "abort", "actor": "ada", "reason": "x" * 1_001}),
        ("actor", {"outcome": "abort", "actor": "\ud800", "reason": "why"}),
        ("force", {"outcome": "abort", "force": True, **WHY}),
    ],
)
def test_a_resolve_that_is_not_as_it_must_be(field: str, body: Any) -> None:
    with pytest.raises(ApiError) as caught:
        read_resolve(body)
    assert caught.value.details == {"field": field}


# --- showing --------------------------------------------------------------------------------------

A = Branch("1", "a", "http://a", "http://a/prepare", "http://a/commit", "http://a/rollback", True)
B = Branch("2", "b", None, "http://b/p", "http://b/c", "http://b/r", False)
BRANCHES = Branches((A, B))
UNDECIDED = Transaction(
    "t-1",
    1,
    "ab" * 32,
    Mode.ONE_SHOT,
    BRANCHES,
    (b"1", b"2"),
    b'{"k":"v"}',
    NOW_MS,
    NOW_MS + 10_001,
    True,
)


def show(transaction: Transaction, progress: tuple[Progress, ...] | None = None) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(api_show.show(transaction, progress))
    return shown


def test_an_undecided_transaction_shows_what_the_leader_heard() -> None:
    progress = (Progress(Vote.YES, None, 1, None), Progress(None, None, 2, "refused"))
    shown = show(UNDECIDED, progress)
    assert shown == {
        "id": "t-1",
        "state": "preparing",
        "outcome": None,
        "reason": None,
        "mode": "one_shot",
        "created_at": "2025-06-15T15:06:40.000Z",
        "expires_at": "2025-06-15T15:06:50.001Z",
        "decided_at": None,
        "finished_at": None,
        "branches": [
            {"branch_id": "1", "name": "a", "url": "http://a", "vote": "yes", "reason": None,
             "state": "prepared", "attempts": 1, "last_error": None},
            {"branch_id": "2", "name": "b", "url": None, "prepare": "http://b/p",
             "commit": "http://b/c", "rollback": "http://b/r", "vote": None, "reason": None,
             "state": "preparing", "attempts": 2, "last_error": "refused"},
        ],
        "history": [],
        "metadata": {"k": "v"},
    }  # fmt: skip
    assert [b["state"] for b in show(UNDECIDED)["branches"]] == ["preparing", "preparing"]


def test_a_decided_transaction_shows_the_record_not_what_was_heard() -> None:
    aborted = UNDECIDED._replace(
        outcome=Outcome.ABORT,
        reason="b: out of stock",
        votes=(Vote.UNKNOWN, Vote.NO),
        vote_reasons=(None, "out of stock"),
        decided_ms=NOW_MS + 7,
    )
    heard = (Progress(Vote.YES, None, 3, "timed out"), Progress(Vote.NO, None, 1, None))
    shown = show(aborted, heard)
    assert (shown["state"], shown["outcome"]) == ("aborting", "aborted")
    assert shown["decided_at"] == "2025-06-15T15:06:40.007Z"
    first, second = shown["branches"]
    assert (first["vote"], first["state"]) == (None, "rolling_back")
    assert (first["attempts"], first["last_error"]) == (3, "timed out")
    assert (second["vote"], second["reason"], second["state"]) == (
        "no",
        "out of stock",
        "not_prepared",
    )


def test_what_was_done_by_hand_is_the_history() -> None:
    resolved = UNDECIDED._replace(
        outcome=Outcome.COMMIT,
        votes=(Vote.YES, Vote.READ_ONLY),
        vote_reasons=(None, None),
        decided_ms=NOW_MS,
        finished_ms=NOW_MS + 1,
        resolutions=(Resolution("1", Effect.COMMITTED, "ada", "by hand", NOW_MS + 1),),
    )
    shown = show(resolved)
    assert (shown["state"], shown["outcome"]) == ("committed", "committed")
    assert [b["state"] for b in shown["branches"]] == ["resolved", "read_only"]
    assert shown["history"] == [
        {
            "branch_id": "1",
            "effect": "committed",
            "actor": "ada",
            "reason": "by hand",
            "at": "2025-06-15T15:06:40.001Z",
        }
    ]
    forced = resolved._replace(resolutions=(Resolution(None, None, "ada", "stuck", NOW_MS),))
    assert show(forced)["history"][0]["effect"] is None


def test_a_refused_id_is_aborted_only_if_it_carries_its_time() -> None:
    refusal = UNDECIDED._replace(
        fingerprint="",
        branches=Branches(),
        outcome=Outcome.ABORT,
        reason="refused",
        decided_ms=NOW_MS,
        finished_ms=NOW_MS,
    )
    shown = show(refusal)
    assert (shown["state"], shown["outcome"]) == ("refused", None)
    shown = show(refusal._replace(id=uuid7(NOW_MS, Random(1))))
    assert (shown["state"], shown["outcome"]) == ("aborted", "aborted")
    assert shown["expires_at"] is None


# --- errors ---------------------------------------------------------------------------------------


def test_every_refusal_of_the_coordinator_has_a_code() -> None:
    kinds = errors.CoordinatorError.__subclasses__()
    assert len(kinds) >= 6
    codes = {api_errors.refusal(kind("what", id="t-1")).code for kind in kinds}
    assert len(codes) == len(kinds)
    assert codes <= set(CODES)


def test_an_unnamed_request_is_never_told_that_nothing_happened() -> None:
    for error in (NotLeader("x"), FateUnknown("x")):
        shown = api_errors.log_refusal(error, "t-1", named=False)
        assert (shown.code, shown.details) == ("outcome_unknown", {"id": "t-1"})
    assert api_errors.log_refusal(NotLeader("x"), "t-1").code == "no_leader"


def test_the_codes_table_says_each_code_s_status() -> None:
    assert api_errors.no_leader().status == int(CODES["no_leader"][:3])
    assert api_errors.outcome_unknown("x").status == int(CODES["outcome_unknown"][:3])
    assert api_errors.bad_field("x", "y").status == int(CODES["bad_request"][:3])
    for kind in errors.CoordinatorError.__subclasses__():
        shown = api_errors.refusal(kind("what"))
        assert shown.status == int(CODES[shown.code][:3])
