"""The shapes of messages and answers: what is written is read back, what is wrong is refused."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import Any

import pytest

from coordinator import ids
from participants import canonical, contract, messages
from participants.branch import End
from participants.contract import (
    PLAIN,
    Acknowledged,
    BadMessage,
    Declaration,
    EndAnswer,
    Failed,
    Operation,
    PrepareAnswer,
    Vote,
    Voted,
    Working,
    encode_json,
    fingerprint,
    read_declaration,
    read_end_answer,
    read_prepare_answer,
)


@pytest.mark.parametrize(
    "declaration",
    [
        Declaration(repeatable_prepare=True, inquiry=True),
        Declaration(repeatable_prepare=True, inquiry=True, batch_path="/seats/batch"),
        Declaration(inquiry=True),
        PLAIN,
    ],
)
def test_a_declaration_is_read_as_it_was_written(declaration: Declaration) -> None:
    assert read_declaration(declaration.header()) == declaration


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", "2; repeatable-prepare; inquiry", "yes", "1", ";;"),
        *("1; batch=elsewhere", "1; batch=/a b", "1; batch=/\udcff", "1; batch=/\x01"),
    ],
)
def test_what_is_not_understood_is_a_plain_participant(header: str | None) -> None:
    assert read_declaration(header) == PLAIN


def test_a_declaration_says_no_more_than_there_is() -> None:
    assert Declaration(repeatable_prepare=True, inquiry=True).header() == (
        "1; repeatable-prepare; inquiry"
    )


def test_a_time_is_written_in_utc_to_the_millisecond() -> None:
    assert contract.rfc3339(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"


def test_one_promise_of_two_is_still_plain() -> None:
    assert Declaration(repeatable_prepare=True).is_plain
    assert Declaration(inquiry=True).is_plain
    assert not Declaration(repeatable_prepare=True, inquiry=True).is_plain


def test_a_prepare_is_read_as_it_was_written() -> None:
    payload = {"sku": "A-1", "quantity": 2, "note": 'quotes " and ümlauts'}
    body = contract.prepare_body(
        "t1",
        "1",
        encode_json(payload),
        "abc",
        "2026-01-02T03:04:05.678Z",
        encode_json(["http://127.0.0.1:8101"]),
    )
    prepare = messages.read_prepare(json.loads(body))
    assert prepare.transaction_id == "t1"
    assert prepare.branch_id == "1"
    assert prepare.payload == payload
    assert prepare.fingerprint == "abc"
    assert prepare.expires_at == "2026-01-02T03:04:05.678Z"
    assert prepare.coordinators == ("http://127.0.0.1:8101",)
    assert not prepare.interactive


def test_an_interactive_prepare_says_so_and_nothing_else_is_one() -> None:
    when = "2026-01-02T03:04:05.678Z"
    body = contract.prepare_body("t1", "1", b"null", "abc", when, b"[]", interactive=True)
    prepare = messages.read_prepare(json.loads(body))
    assert (prepare.interactive, prepare.payload) == (True, None)
    assert not messages.read_prepare(GOOD | {"interactive": False}).interactive


@pytest.mark.parametrize("id_", ["t", "a.b_c:d-9", "x" * 64, "...", ".a"])
def test_a_transactions_id_is_read_as_the_coordinator_takes_it(id_: str) -> None:
    assert ids.is_valid_id(id_)
    assert messages.read_transaction_id(id_) == id_


@pytest.mark.parametrize("id_", ["", ".", "..", "x" * 65, "a/b", "a b", "ä", "a\n", None, 7])
def test_what_the_coordinator_takes_for_no_id_is_none(id_: Any) -> None:
    assert not ids.is_valid_id(id_)
    with pytest.raises(BadMessage, match="1 to 64 characters"):
        messages.read_transaction_id(id_)


def test_an_end_is_read_as_it_was_written() -> None:
    assert messages.read_end(json.loads(contract.end_body("t1", "2"))) == ("t1", "2")


GOOD: dict[str, Any] = {
    "transaction_id": "t1",
    "branch_id": "1",
    "payload": None,
    "fingerprint": "f",
    "expires_at": "2026-01-02T03:04:05.678Z",
    "coordinators": [],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("transaction_id", None),
        ("transaction_id", ""),
        ("transaction_id", 7),
        ("transaction_id", "x" * 257),
        ("transaction_id", "\ud800"),
        ("transaction_id", "a\nb"),
        ("branch_id", ["1"]),
        ("fingerprint", True),
        ("expires_at", "tomorrow"),
        ("expires_at", "2026-01-02T03:04:05"),
        ("expires_at", 1_800_000_000),
        ("coordinators", "http://127.0.0.1"),
        ("coordinators", [1]),
        ("coordinators", [["http://127.0.0.1"]]),
        ("interactive", None),
        ("interactive", 1),
        ("interactive", "true"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(BadMessage, match=f"^{field}"):
        messages.read_prepare(GOOD | {field: value})


@pytest.mark.parametrize("message", [None, 1, "x", [], [GOOD]])
def test_a_message_must_be_an_object(message: Any) -> None:
    with pytest.raises(BadMessage, match="object"):
        messages.read_prepare(message)
    with pytest.raises(BadMessage, match="object"):
        messages.read_end(message)


def test_times_are_read_to_the_millisecond_wherever_they_were_written() -> None:
    assert messages.read_time_ms("1970-01-01T00:00:01.234Z") == 1234
    assert messages.read_time_ms("1970-01-01T02:00:01.234+02:00") == 1234


def test_a_short_answer_is_read_for_each_branch_though_it_is_decoded_once() -> None:
    body, whole = b'{"transaction_id":"a"}', b'{"transaction_id":"a","vote":"yes"}'
    for _ in range(2):
        assert read_end_answer(Operation.COMMIT, 200, body, ("a", "1")) == Acknowledged()
        assert read_prepare_answer(200, whole, ("a", "1")) == Voted(Vote.YES)
        for read in (
            read_end_answer(Operation.COMMIT, 200, body, ("b", "1")),
            read_prepare_answer(200, whole, ("b", "1")),
        ):
            assert isinstance(read, Failed)
            assert read.what == "answered for another transaction: 'a'"


def test_what_was_encoded_is_decoded_anew_each_time() -> None:
    encoded = encode_json({"a": [1, "\ud800é"]})
    first, second = messages.decode_payload(encoded), messages.decode_payload(encoded)
    assert first == second == {"a": [1, "\ud800é"]}
    first["a"].append(2)
    assert second == {"a": [1, "\ud800é"]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("-inf")]])
def test_what_json_cannot_say_is_refused(value: Any) -> None:
    with pytest.raises(BadMessage):
        encode_json(value)


def test_json_that_is_too_deep_is_refused() -> None:
    value: Any = None
    for _ in range(100_000):
        value = [value]
    with pytest.raises(BadMessage):
        encode_json(value)
    while value is not None:  # taken apart by hand: the collector would go as deep
        (value,) = value


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"true", Voted(Vote.YES)),
        (200, b"false", Voted(Vote.NO, "the participant answered false")),
        (200, b'{"vote":"yes"}', Voted(Vote.YES)),
        (200, b'{"vote":"yes","transaction_id":"t1"}', Voted(Vote.YES)),
        (200, b'{"vote":"yes","transaction_id":"t1","branch_id":"1"}', Voted(Vote.YES)),
        (200, b'{"vote":"yes","branch_id":"Main Street"}', Voted(Vote.YES)),
        (200, b'{"vote":"no"}', Voted(Vote.NO, "no reason given")),
        (200, b'{"vote":"no","reason":"sold out"}', Voted(Vote.NO, "sold out")),
        (200, b'{"vote":"no","reason":""}', Voted(Vote.NO, "no reason given")),
        (200, b'{"vote":"no","reason":5}', Voted(Vote.NO, "no reason given")),
        (200, b'{"vote":"yes","reason":["none"]}', Voted(Vote.YES)),
        (200, b'{"vote":"read_only"}', Voted(Vote.READ_ONLY)),
        (409, b'{"reason":"busy"}', Voted(Vote.NO, "busy")),
        (409, b"<html>", Voted(Vote.NO, "the participant answered 409")),
        (425, b"", Working()),
        (202, b'{"vote":"yes"}', Working()),
    ],
)
def test_answers_to_a_prepare_that_count(status: int, body: bytes, expected: Any) -> None:
    assert read_prepare_answer(status, body, ("t1", "1")) == expected


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"<html><h1>It works!</h1></html>"),
        (200, b'{"vote":"maybe"}'),
        (200, b'{"vote":"unknown"}'),
        (200, b'{"vote":["yes"]}'),
        (200, b'{"vote":"ye'),
        (200, b"1"),
        (200, b'"yes"'),
        (200, b"[" * 100_000),
        (201, b"true"),
        (204, b""),
        (307, b"true"),
        (404, b"true"),
        (500, b'{"vote":"yes"}'),
        (200, b'{"vote":"yes","transaction_id":"another"}'),
        (200, b'{"vote":"yes","transaction_id":null}'),
        (200, b'{"vote":"yes","transaction_id":"t1","branch_id":"2"}'),
        (409, b'{"reason":"no","transaction_id":"another"}'),
        (425, b'{"transaction_id":"another"}'),
    ],
)
def test_answers_to_a_prepare_that_are_failures(status: int, body: bytes) -> None:
    assert isinstance(read_prepare_answer(status, body, ("t1", "1")), Failed)


@pytest.mark.parametrize(
    ("status", "body", "answered"),
    [
        (500, b"it broke", True),
        (404, b"", True),
        (200, b"<html>", True),
        (502, b"bad gateway", False),
        (503, b"", False),
        (504, b"", False),
        (200, b'{"vote":"yes","transaction_id":"another"}', False),
        (200, b'{"vote":"yes","transaction_id":"t1","branch_id":"2"}', False),
    ],
)
def test_only_the_participants_own_answer_tells_that_a_prepare_is_under_way_no_more(
    status: int, body: bytes, answered: bool
) -> None:
    """Behind a proxy that gave up it may go on, and reserve what no rollback will free."""
    answer = read_prepare_answer(status, body, ("t1", "1"))
    assert isinstance(answer, Failed)
    assert (answer.answered, answer.arrived, answer.broken) == (answered, True, False)


def test_what_is_told_of_a_useless_answer_is_short_and_text() -> None:
    answer = read_prepare_answer(500, b"\xff" * 100_000, ("t1", "1"))
    assert isinstance(answer, Failed)
    assert len(answer.what) < 200
    assert read_prepare_answer(500, b"", ("t1", "1")) == Failed(
        "answered 500: an empty body", answered=True
    )


def test_retry_after_is_in_seconds_and_bounded() -> None:
    for said, heard in (
        ("2", Working(2_000)),
        ("0000002", Working(2_000)),
        ("9" * 8_000, Working(3_600_000)),
        *((none, Working()) for none in ("soon", "", "-1", "²")),
    ):
        assert read_prepare_answer(425, b"", ("t1", "1"), {"Retry-After": said}) == heard


@pytest.mark.parametrize(
    ("operation", "status", "body", "acknowledged"),
    [
        (Operation.COMMIT, 200, b"", True),
        (Operation.COMMIT, 204, b"", True),
        (Operation.COMMIT, 299, b"", True),
        (Operation.COMMIT, 300, b"", False),
        (Operation.COMMIT, 200, b"<html>", True),
        (Operation.COMMIT, 404, b"", False),
        (Operation.COMMIT, 409, b"", False),
        (Operation.COMMIT, 307, b"", False),
        (Operation.COMMIT, 503, b"", False),
        (Operation.COMMIT, 200, b'{"transaction_id":"another"}', False),
        (Operation.COMMIT, 200, b'{"transaction_id":"t1","branch_id":"2"}', False),
        (Operation.COMMIT, 200, b'{"branch_id":"Main Street"}', True),
        (Operation.COMMIT, 200, b'{"answers":[]}', True),
        (Operation.ROLLBACK, 200, b"", True),
        (Operation.ROLLBACK, 404, b"", True),
        (Operation.ROLLBACK, 404, b'{"transaction_id":"another"}', False),
        (Operation.ROLLBACK, 500, b"", False),
    ],
)
def test_answers_to_an_end(
    operation: Operation, status: int, body: bytes, acknowledged: bool
) -> None:
    answer = read_end_answer(operation, status, body, ("t1", "1"))
    assert (answer == Acknowledged()) is acknowledged


def test_what_answers_a_batch_acknowledges_no_end_of_who_may_be_sent_batches() -> None:
    body = b'{"answers":["committed t2/1"]}'
    read = partial(read_end_answer, Operation.COMMIT, 200, branch=("t1", "1"), declared=True)
    assert isinstance(read(body), Failed)
    assert read(b'{"state":"committed"}') == read(b"") == Acknowledged()


def test_a_reason_is_cut_and_fit_to_be_kept() -> None:
    body = json.dumps({"vote": "no", "reason": "\ud800" + "x" * 10_000}).encode()
    answer = read_prepare_answer(200, body, ("t1", "1"))
    assert isinstance(answer, Voted)
    assert answer.reason is not None
    assert len(answer.reason.encode()) <= contract.MAX_REASON_CHARS * 4


PARTICIPANT = ("inventory", "http://a/prepare", "http://a/commit", "http://a/rollback")


def digest(payload: Any, mode: str = "one_shot", name: str = "inventory") -> str:
    return contract.fingerprint(mode, [(name, *PARTICIPANT[1:], encode_json(payload))])


def test_the_fingerprint_is_of_the_content_not_of_its_encoding() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": 1}, mode="interactive")
    assert digest({"a": 1}) != digest({"a": 1}, name="other")


def test_the_fingerprint_is_made_as_the_protocol_s_page_says() -> None:
    url, payload = "http://127.0.0.1:9", b'{"a":"\\u00e9","b":1.5}'
    written = (
        b'["one_shot"]'
        b'["stock","http://127.0.0.1:9/prepare","http://127.0.0.1:9/commit",'
        b'"http://127.0.0.1:9/rollback",22]' + payload
    )
    participant = (
        "stock",
        f"{url}/prepare",
        f"{url}/commit",
        f"{url}/rollback",
        encode_json({"b": 1.5, "a": "é"}),
    )
    assert fingerprint("one_shot", [participant]) == hashlib.sha256(written).hexdigest()


def test_the_fingerprint_knows_the_order_and_the_bounds_of_participants() -> None:
    one = (*PARTICIPANT, b"1")
    two = ("second", *PARTICIPANT[1:], b"2")
    assert contract.fingerprint("m", [one, two]) != contract.fingerprint("m", [two, one])
    assert contract.fingerprint("m", [one]) != contract.fingerprint("m", [one, one])


# --- batches --------------------------------------------------------------------------------------

ASKED = [(Operation.PREPARE, "t1", "1"), (Operation.COMMIT, "t2", "1")]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_batch_is_read_as_it_was_written() -> None:
    end = contract.end_body("t2", "1")
    prepare = encode_json(GOOD)
    body = contract.batch_body([(Operation.PREPARE, prepare, TRACE), (Operation.COMMIT, end, None)])
    first, second = messages.read_batch(json.loads(body))
    assert (first["traceparent"], "traceparent" in second) == (TRACE, False)
    prepared = messages.read_batch_message(first)
    assert prepared == messages.read_prepare(GOOD)._replace(traceparent=TRACE)
    assert messages.read_batch_message(second) == messages.EndBranch("t2", "1", End.COMMIT)


def test_a_traceparent_is_carried_if_it_is_one() -> None:
    assert contract.read_traceparent(TRACE) == TRACE
    for bad in (None, "", "x", 7, [TRACE], TRACE + "\n", TRACE.upper(), TRACE[:-1]):
        assert contract.read_traceparent(bad) is None
        message = GOOD | {"operation": "prepare", "traceparent": bad}
        assert messages.read_batch_message(message).traceparent is None


def test_each_answer_of_a_batch_is_its_messages_own() -> None:
    body = {
        "answers": [
            {"status": 200, "body": {"vote": "yes", "transaction_id": "t1", "branch_id": "1"}},
            {"status": 503, "body": {"transaction_id": "t2", "branch_id": "1"}},
        ]
    }
    answers = contract.read_batch_answers(200, json.dumps(body).encode(), ASKED)
    assert isinstance(answers, list)
    first, second = answers
    assert first == Voted(Vote.YES)
    assert isinstance(second, Failed)


PREPARE, COMMIT, ROLLBACK = Operation.PREPARE, Operation.COMMIT, Operation.ROLLBACK


@pytest.mark.parametrize(
    ("operation", "status", "body", "meant"),
    [
        (PREPARE, 200, True, Voted(Vote.YES)),
        (PREPARE, 200, ["yes"], None),
        (PREPARE, 200, None, None),
        (PREPARE, 202, {}, Working()),
        (PREPARE, 425, {}, Working()),
        (PREPARE, 409, {"reason": "busy"}, Voted(Vote.NO, "busy")),
        (COMMIT, 200, {"branch_id": "1"}, Acknowledged()),
        (COMMIT, 200, None, Acknowledged()),
        (COMMIT, 202, ["later"], Acknowledged()),
        (COMMIT, 404, {}, None),
        (COMMIT, 409, {}, None),
        (COMMIT, 200, {"branch_id": "2"}, None),
        (ROLLBACK, 404, {}, Acknowledged()),
        (ROLLBACK, 503, {}, None),
    ],
)
def test_an_answer_of_a_batch_means_what_it_would_mean_alone(
    operation: Operation, status: int, body: Any, meant: Any
) -> None:
    """None: a failure."""
    text = json.dumps({"answers": [{"status": status, "body": body}]}).encode()
    answers = contract.read_batch_answers(200, text, [(operation, "t1", "1")])
    assert isinstance(answers, list)
    if meant is None:
        assert isinstance(answers[0], Failed)
    else:
        assert answers == [meant]


@pytest.mark.parametrize("operation", Operation)
def test_the_words_of_an_error_are_told_of_a_lone_message_as_of_one_in_a_batch(
    operation: Operation,
) -> None:
    error = {"code": "store_unavailable", "message": "the disk is full; ask again" + " x" * 500}
    body = {"transaction_id": "t" * 64, "branch_id": "1", "error": error}
    branch = ("t" * 64, "1")
    alone = (
        read_prepare_answer(503, json.dumps(body).encode(), branch)
        if operation is PREPARE
        else read_end_answer(operation, 503, json.dumps(body).encode(), branch)
    )
    batch = json.dumps({"answers": [{"status": 503, "body": body}]}).encode()
    assert contract.read_batch_answers(200, batch, [(operation, *branch)]) == [alone]
    assert isinstance(alone, Failed)
    assert alone.what.startswith("answered 503: 'the disk is full; ask again")
    assert len(alone.what) < 300


@pytest.mark.parametrize("error", [None, "x", {}, {"message": None}, {"message": ""}])
def test_where_there_are_no_words_the_beginning_of_the_body_is_told(error: Any) -> None:
    answer = read_prepare_answer(500, json.dumps({"error": error}).encode(), ("t1", "1"))
    assert isinstance(answer, Failed)
    assert "error" in answer.what


MEANT = {
    (PREPARE, "yes"): Voted(Vote.YES),
    (PREPARE, "read_only"): Voted(Vote.READ_ONLY),
    (COMMIT, "committed"): Acknowledged(),
    (ROLLBACK, "rolled_back"): Acknowledged(),
}


@pytest.mark.parametrize("operation", Operation)
@pytest.mark.parametrize(
    "word", ["yes", "read_only", "committed", "rolled_back", "no", "absent", "prepared", "", "YES"]
)
def test_a_word_means_something_only_in_answer_to_its_own_message(
    operation: Operation, word: str
) -> None:
    def read(text: str) -> PrepareAnswer | EndAnswer:
        body = json.dumps({"answers": [text]}).encode()
        answers = contract.read_batch_answers(200, body, [(operation, "t1", "1")])
        assert isinstance(answers, list)
        return answers[0]

    meant = MEANT.get((operation, word))
    if meant is None:
        assert isinstance(read(f"{word} t1/1"), Failed)
    else:
        assert read(f"{word} t1/1") == meant
    for branch in ("", " ", " t1", " t1/", " t1/2", " t2/1", "  t1/1", " t1/1 ", " t1/1/1"):
        assert isinstance(read(f"{word}{branch}"), Failed)


@pytest.mark.parametrize(
    "answers",
    [
        [],
        ["yes t1/1"],
        ["yes t2/1", "committed t1/1"],
        ["yes", "committed"],
        [{"status": 200, "body": {"vote": "yes"}}],
        [{"status": 200, "body": {"vote": "yes"}}] * 3,
        [None, None],
        [{"status": True, "body": {"vote": "yes"}}] * 2,
        [{"status": "200", "body": {"vote": "yes"}}] * 2,
        [{"status": 500, "body": {"vote": "yes"}}] * 2,
        [{"status": 200, "body": {"vote": "yes", "transaction_id": "another"}}] * 2,
        [{"status": 200, "body": {"vote": "yes", "branch_id": "2"}}] * 2,
        {"0": {"status": 200}},
        None,
    ],
)
def test_answers_of_a_batch_that_are_failures_of_all(answers: Any) -> None:
    body = json.dumps({"answers": answers}).encode()
    read = contract.read_batch_answers(200, body, ASKED)
    each = [read] if isinstance(read, Failed) else read
    assert {type(answer) for answer in each} == {Failed}


@pytest.mark.parametrize("status", [207, 404, 500])
def test_a_batch_call_that_fails_is_a_failure_of_each(status: int) -> None:
    body = json.dumps({"answers": [{"status": 200, "body": {"vote": "yes"}}] * 2}).encode()
    assert isinstance(contract.read_batch_answers(status, body, ASKED), Failed)


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -1, 10**30, 0.1, -1e300, "", "\u00e9\u2028\x00\"\\/", "\ud800", [], {},
        {"b": [1, {"z": None, "a": [True]}], "a": {"\u00e9": "x"}, "": ""}, [[], [{}], "x"],
    ],
)  # fmt: skip
def test_the_one_form_of_json_is_that_of_the_standard_library(value: Any) -> None:
    expected = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert encode_json(value) == expected.encode("ascii")
    assert canonical._ENCODER.encode(value) == expected  # where there is no encoder in C


def test_a_circle_is_no_json() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(BadMessage):
        encode_json(circle)
