"""The API without HTTP: requests in, answers out, at once where nothing is waited for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coordinator import api_transactions
from coordinator.api_requests import Answer, Request, read_query
from coordinator.settings import Limits
from tests.api_rig import ScriptedDriver, answered, api_node, error_of, run

PATH = "/v1/transactions"
LIMITS = Limits(body_bytes=1_000, batch_body_bytes=2_000)


def post(value: Any, path: str = PATH, **headers: str) -> Request:
    return Request("POST", path, "", headers, json.dumps(value).encode())


def get(path: str, query: str = "") -> Request:
    return Request("GET", path, query, {})


def code_of(answer: Answer | int) -> str:
    assert isinstance(answer, Answer)
    assert answer.content_type == "application/json"
    code: str = error_of(json.loads(answer.body))["code"]
    return code


def test_what_waits_for_nothing_is_answered_at_once() -> None:
    async def test() -> None:
        async with api_node(limits=LIMITS) as node:
            for request, status in (
                (get("/healthz"), 200),
                (get("/nowhere"), 404),
                (Request("PUT", PATH, "", {}), 405),
                (post({}), 400),
                (post(node.body(payload="x" * 3_000)), 413),
                (Request("POST", PATH, "", {"Content-Type": "text/plain"}, b"{}"), 415),
                (Request("POST", PATH, "", {"Content-Type": "none"}, b"{}"), 415),
            ):
                answer = node.api.respond(request)
                assert isinstance(answer, Answer), request
                assert answer.status == status
            node.log.follow("n2")
            answer = node.api.respond(post(node.body()))
            assert isinstance(answer, Answer)
            assert answer.headers["Location"] == "http://127.0.0.1:8102" + PATH

    run(test())


def test_what_waits_is_answered_later_its_failures_too() -> None:
    async def test() -> None:
        async with api_node() as node:
            answer = await answered(node.api.respond(post(node.body(id="t-1"))))
            assert (answer.status, json.loads(answer.body)["outcome"]) == (200, "committed")
            answer = await answered(node.api.respond(get(f"{PATH}/t-9")))
            assert (answer.status, code_of(answer)) == (404, "unknown_transaction")

    run(test())


def test_a_defect_while_it_waits_is_an_answer_too(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _: ZeroDivisionError("the secret of the house")
        async with api_node(scripted=driver) as node:
            answer = await answered(node.api.respond(post(node.body())))
            assert (answer.status, code_of(answer)) == (500, "internal_error")

    run(test())
    assert "the secret of the house" in caplog.text


def test_before_the_body_comes_it_is_said_whether_any_of_it_is_needed() -> None:
    async def test() -> None:
        async with api_node(limits=LIMITS) as node:
            head = Request("POST", PATH, "", {})
            assert node.api.admit(head) == 2_000
            assert node.api.admit(head._replace(path=f"{PATH}/t-1/resolve")) == 1_000
            assert node.api.admit(head._replace(path=f"{PATH}/t-1/commit")) == 1_000
            assert node.api.admit(get("/healthz")) == 0
            assert code_of(node.api.admit(head._replace(query="wait=none"))) == "bad_request"
            assert code_of(node.api.admit(get("/nowhere"))) == "not_found"
            node.log.follow("n2")
            assert code_of(node.api.admit(head)) == "not_leader"
            assert node.api.admit(get("/healthz")) == 0

    run(test())


def test_leadership_is_asked_for_again_when_the_body_is_there() -> None:
    """An id made by a node that does not lead any more would be told with a 307, and made anew."""

    async def test() -> None:
        driver = ScriptedDriver()
        async with api_node(scripted=driver) as node:
            request = post(node.body())
            assert isinstance(node.api.admit(request._replace(body=b"")), int)
            node.log.follow("n2")
            assert code_of(await answered(node.api.respond(request))) == "not_leader"
            assert driver.submitted == []

    run(test())


@pytest.mark.parametrize(
    "path",
    ["/v1/tr%61nsactions/t%2D1", "/v1/transactions/t-1", "/%76%31/transactions/%74-1"],
)
def test_a_path_is_the_same_however_it_is_encoded(path: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            await answered(node.api.respond(post(node.body(id="t-1"))))
            answer = await answered(node.api.respond(get(path)))
            assert json.loads(answer.body)["id"] == "t-1"

    run(test())


@pytest.mark.parametrize(
    "path",
    ["", "*", "/", "/v1", PATH + "/", PATH + "//", PATH + "//decision", PATH + "/t-1/",
     PATH + "/t-1/no", PATH + "/t-1/decision/", PATH + "/t-1/decision/x", "/v1/transactionsx",
     "v1/transactions", "//v1/transactions", "/{id}", PATH + "/t-1/{id}"],
)  # fmt: skip
def test_other_paths_lead_nowhere(path: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            answer = await answered(node.api.respond(get(path)))
            assert (answer.status, code_of(answer)) == (404, "not_found")

    run(test())


def test_a_query_is_read_as_forms_are() -> None:
    names = ("a", "b")
    request = get(PATH, "a=1%2B1+%C3%A9&b=")
    assert read_query(request, names) == {"a": "1+1 é", "b": ""}
    assert read_query(get(PATH, ""), names) == {}


def test_the_participants_text_is_remembered_and_still_each_transaction_s_own() -> None:
    async def test() -> None:
        async with api_node() as node:

            async def shown(transaction_id: str, *kinds: str) -> list[tuple[str, str, str]]:
                body = node.body(*kinds, id=transaction_id, wait="completion")
                answer = await answered(node.api.respond(post(body)))
                shown = json.loads(answer.body)
                assert shown["id"] == transaction_id
                return [
                    (b["url"].rsplit("/", 1)[1], b["vote"], b["state"]) for b in shown["branches"]
                ]

            committed = [("yes", "yes", "committed"), ("read_only", "read_only", "read_only")]
            for number in range(2):
                assert await shown(f"c-{number}", "yes", "read_only") == committed
                assert await shown(f"r-{number}", "read_only", "yes") == committed[::-1]
                found = await shown(f"a-{number}", "yes", "no")
                assert found[0][2] == "rolled_back"
                assert found[1] == ("no", "no", "not_prepared")

    run(test())


def test_a_wait_that_runs_out_is_given_up_without_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_transactions, "WAIT_MARGIN_MS", 1)

    async def test() -> None:
        async with api_node() as node:
            asked = post(node.body("slow", id="t-1", timeout_ms=100, wait="completion"))
            answer = await answered(node.api.respond(asked))
            assert answer.status == 202

    run(test())
