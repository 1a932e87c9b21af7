"""The API's calls: outcomes, waiting, batches, leadership, reads, an operator's calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from random import Random
from typing import Any

import aiohttp
import pytest
from multidict import CIMultiDict

from coordinator import api_transactions, errors, ids
from coordinator.admission import WaitingLine
from coordinator.api import Check
from coordinator.api_requests import Request
from coordinator.api_shapes import MAX_AHEAD_MS, read_submission
from coordinator.commands import Epoch, encode
from coordinator.log import FateUnknown, NotApplied, NotLeader, Overloaded
from coordinator.settings import Limits, Timings
from tests.api_rig import (
    Closed,
    ScriptedDriver,
    answered,
    api_node,
    error_of,
    now_ms,
    run,
)
from tests.builders import begin, uuid7

PATH = "/v1/transactions"


def new_id() -> str:
    return uuid7(now_ms(), Random())


# --- one transaction ------------------------------------------------------------------------------


def test_a_transaction_commits_and_is_shown_as_it_stands() -> None:
    async def test() -> None:
        async with api_node() as node:
            body = node.body("yes", "read_only", id="t-1", wait="completion", metadata={"a": "b"})
            status, answer = await node.post(PATH, body)
            assert status == 200
            assert (answer["state"], answer["outcome"]) == ("committed", "committed")
            assert [b["vote"] for b in answer["branches"]] == ["yes", "read_only"]
            assert [b["state"] for b in answer["branches"]] == ["committed", "read_only"]
            assert answer["metadata"] == {"a": "b"}
            assert answer["finished_at"].endswith("Z")
            assert await node.get(f"{PATH}/t-1") == (200, answer)

    run(test())


def told(decision: str, transaction_id: str) -> dict[str, str]:
    """The answer to an inquiry about branch 1."""
    return {"decision": decision, "id": transaction_id, "branch_id": "1"}


def test_an_abort_is_an_answer() -> None:
    async def test() -> None:
        async with api_node() as node:
            status, answer = await node.post(PATH, node.body("yes", "no"))
            assert (status, answer["outcome"]) == (200, "aborted")
            assert "out of stock" in answer["reason"]

    run(test())


def test_the_same_id_is_the_same_transaction_and_other_content_a_conflict() -> None:
    async def test() -> None:
        async with api_node() as node:
            first = await node.post(PATH, node.body("yes", id="t-1", wait="completion"))
            again = await node.post(
                PATH, node.body("yes", id="t-1", wait="completion", timeout_ms=500)
            )
            assert first == again
            assert len([c for c in node.services.calls if c[1] == "prepare"]) == 1
            status, answer = await node.post(PATH, node.body("no", id="t-1"))
            assert status == 409
            assert error_of(answer)["code"] == "transaction_id_conflict"

    run(test())


def test_wait_none_answers_202_at_once() -> None:
    async def test() -> None:
        async with api_node() as node:
            status, answer = await node.post(PATH, node.body("slow", id="t-1", wait="none"))
            assert (status, answer["state"], answer["outcome"]) == (202, "preparing", None)
            node.services.go_on()
            status, answer = await node.get(f"{PATH}/t-1?wait_ms=30000")
            assert (status, answer["state"]) == (200, "committed")

    run(test())


def test_a_wait_that_runs_out_answers_202_with_the_present_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_transactions, "WAIT_MARGIN_MS", 200)

    async def test() -> None:
        async with api_node() as node:
            # The branch never acknowledges, so that completion never comes.
            body = node.body("down", id="t-1", wait="completion", timeout_ms=100)
            status, answer = await node.post(PATH, body)
            assert (status, answer["state"], answer["outcome"]) == (202, "committing", "committed")
            assert answer["branches"][0]["attempts"] >= 1
            assert "503" in answer["branches"][0]["last_error"]
            status, answer = await node.get(f"{PATH}/t-1?wait_ms=1")
            assert (status, answer["state"]) == (200, "committing")
            status, answer = await node.get(PATH)
            assert answer["backlog"] == {f"{node.services.url}/down": 1}
            assert answer["oldest_in_doubt_ms"] >= 0

    run(test())


def test_a_client_that_goes_away_does_not_end_its_transaction() -> None:
    async def test() -> None:
        async with api_node() as node:
            asking = asyncio.create_task(node.post(PATH, node.body("slow", id="t-1")))
            await node.services.until_called("slow", "prepare")
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert asking.cancelled()
            node.services.go_on()
            status, answer = await node.get(f"{PATH}/t-1?wait_ms=30000")
            assert (status, answer["outcome"]) == (200, "committed")

    run(test())


def test_curl_s_content_type_passes_but_not_from_a_browser_s_page() -> None:
    async def test() -> None:
        async with api_node() as node:
            body = json.dumps(node.body()).encode()
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            status, _, _ = await node.request("POST", PATH, body=body, headers=form)
            assert status == 200
            form["Origin"] = "http://evil.example"
            status, answer, _ = await node.request("POST", PATH, body=body, headers=form)
            assert status == 415
            assert error_of(answer)["code"] == "unsupported_media_type"

    run(test())


FROM_A_PAGE = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},  # another port of this host
]
NOT_FROM_ANOTHER_SITE: list[dict[str, str]] = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize(
    ("path", "passes"),
    [
        (PATH, 200),
        (PATH + "/t-1/resolve", 404),
        (PATH + "/t-1/retry", 404),
        ("/v1/cluster/leader", 409),
    ],
)
def test_a_page_may_change_something_only_with_what_a_browser_asks_about(
    path: str, passes: int
) -> None:
    """A body without a type is sent to any site; one that is called JSON is not."""

    async def test() -> None:
        async with api_node() as node:
            resolve = {"outcome": "abort", "actor": "ada", "reason": "test"}
            value = {PATH: node.body(), PATH + "/t-1/resolve": resolve}.get(path, {})

            async def asked(headers: Mapping[str, str]) -> int:
                body = json.dumps(value).encode()
                request = Request("POST", path, "", CIMultiDict(headers), body)
                return (await answered(node.api.respond(request))).status

            for headers in NOT_FROM_ANOTHER_SITE:
                assert await asked(headers) == passes
            for headers in FROM_A_PAGE:
                assert await asked(headers) == 415
                assert await asked({**headers, "Content-Type": "text/plain"}) == 415
                assert await asked({**headers, "Content-Type": "application/json"}) == passes

    run(test())


MOZILLA = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
BROWSERS = [
    *FROM_A_PAGE,
    # An image in a page, asked for at a host that is not trusted: no word of where it stands.
    {"User-Agent": MOZILLA, "Accept-Language": "en", "Accept": "image/avif,image/webp,*/*"},
]
PROGRAMS = [
    *NOT_FROM_ANOTHER_SITE,
    {"User-Agent": "curl/8.5.0"},
    {"User-Agent": f"{MOZILLA} WindowsPowerShell/5.1"},
    {"User-Agent": "node", "Accept-Language": "*", "Sec-Fetch-Mode": "cors"},
]


def test_a_browser_may_not_inquire_for_an_inquiry_may_refuse_an_id_for_ever() -> None:
    async def test() -> None:
        async with api_node() as node:
            path = f"{PATH}/t-1/decision?branch_id=1&fingerprint=ab"
            for headers in BROWSERS:
                status, answer, _ = await node.request("GET", path, headers=headers)
                assert (status, error_of(answer)["code"]) == (403, "cross_site")
                assert node.machine.get("t-1") is None
            for headers in PROGRAMS:
                status, answer, _ = await node.request("GET", path, headers=headers)
                assert (status, answer) == (200, told("abort", "t-1"))

    run(test())


# --- batches --------------------------------------------------------------------------------------


def test_a_batch_answers_each_element_in_order() -> None:
    async def test() -> None:
        async with api_node() as node:
            elements = [
                node.body("yes", id="a"),
                node.body("no", id="b"),
                {"participants": []},
                node.body("yes", id="a"),  # the same transaction again
                node.body("yes", "no", id="a"),  # another one under its id
                node.body("yes", mode="interactive"),
                "x",
                node.body("yes", id="a b"),
            ]
            status, answer = await node.post(PATH, {"transactions": elements})
            answers = answer["transactions"]
            assert status == 200
            assert [a.get("outcome") for a in answers[:2]] == ["committed", "aborted"]
            assert answers[3]["id"] == "a"
            assert answers[3]["outcome"] == "committed"
            prepared = [c for c in node.services.calls if c == ("yes", "prepare", "a")]
            assert len(prepared) == 1
            codes = [error_of(answers[i])["code"] for i in (2, 4, 5, 6, 7)]
            assert codes == [
                "bad_request",
                "transaction_id_conflict",
                "interactive_not_supported",
                "bad_request",
                "bad_request",
            ]
            assert error_of(answers[7])["details"] == {"field": "id"}

    run(test())


def test_an_element_whose_wait_runs_out_is_shown_as_it_is_or_said_to_be_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_transactions, "WAIT_MARGIN_MS", 1)

    async def test() -> None:
        driver = ScriptedDriver()  # which never answers
        short = Timings(min_timeout_ms=1)
        async with api_node(scripted=driver, timings=short) as node:
            elements = [node.body(id=one, timeout_ms=1) for one in ("t-1", "t-2")]
            known = read_submission(elements[1], limits=Limits(), timings=short, make_id=str).plan
            node.machine.apply(encode(Epoch(1, 1, "n1")))
            node.machine.apply(encode(begin("t-2", fingerprint=known.fingerprint, epoch=1)))
            status, answer = await node.post(PATH, {"transactions": elements})
            first, second = answer["transactions"]
            assert (status, error_of(first)["code"]) == (200, "outcome_unknown")
            assert (second["id"], second["state"]) == ("t-2", "preparing")
            assert all(future.cancelled() for future in driver.futures)

    run(test())


def test_a_batch_has_a_limit_of_its_own_and_a_single_transaction_another() -> None:
    async def test() -> None:
        limits = Limits(body_bytes=2_000, batch_body_bytes=6_000, batch_size=3)
        async with api_node(limits=limits) as node:
            heavy = {"participants": [node.service(payload="x" * 1_500)]}
            status, answer = await node.post(PATH, {"transactions": [heavy, heavy]})
            assert status == 200
            assert [a["outcome"] for a in answer["transactions"]] == ["committed"] * 2
            too_heavy = {"participants": [node.service(payload="x" * 2_500)]}
            status, answer = await node.post(PATH, {"transactions": [heavy, too_heavy]})
            assert status == 200
            assert error_of(answer["transactions"][1])["code"] == "body_too_large"
            for body in (too_heavy, {"transactions": [heavy] * 5}):
                status, answer = await node.post(PATH, body)
                assert status == 413
                assert error_of(answer)["code"] == "body_too_large"
            status, answer = await node.post(PATH, {"transactions": [node.body()] * 4})
            assert (status, error_of(answer)["details"]) == (400, {"field": "transactions"})
            await node.passes()

    run(test())


def test_a_body_without_a_length_is_measured_while_it_comes() -> None:
    async def test() -> None:
        async with api_node(limits=Limits(body_bytes=2_000, batch_body_bytes=4_000)) as node:

            async def pieces() -> Any:
                for _ in range(100):
                    yield b" " * 1_000

            async with node.session.post(node.url + PATH, data=pieces()) as response:
                answer = await response.json()
            assert response.status == 413
            assert error_of(answer)["code"] == "body_too_large"
            await node.passes()

    run(test())


# --- leadership -----------------------------------------------------------------------------------

LEADERS_CALLS = [
    ("POST", PATH),
    ("GET", PATH + "?limit=3"),
    ("GET", PATH + "/t-1?wait_ms=5"),
    ("GET", PATH + "/t-1/decision?branch_id=1&fingerprint=ab"),
    ("POST", PATH + "/t-1/resolve"),
    ("POST", PATH + "/t-1/retry"),
    ("POST", PATH + "/t-1/commit"),
    ("POST", PATH + "/t-1/rollback"),
    ("POST", PATH + "/t-1/branches"),
    ("POST", "/v1/cluster/leader"),
]


@pytest.mark.parametrize(("method", "path"), LEADERS_CALLS)
def test_a_follower_sends_to_the_leader_it_heard_of(method: str, path: str) -> None:
    async def test() -> None:
        async with api_node() as node:
            node.log.follow("n2")
            status, answer, headers = await node.request(method, path)
            assert status == 307
            assert headers["Location"] == "http://127.0.0.1:8102" + path
            assert error_of(answer)["code"] == "not_leader"
            for leader in (None, "n1", "a-node-without-a-known-address"):
                node.log.follow(leader)
                status, answer, headers = await node.request(method, path)
                assert (status, headers["Retry-After"]) == (503, "1")
                assert error_of(answer)["code"] == "no_leader"

    run(test())


def test_a_redirect_keeps_path_and_query_as_they_came() -> None:
    async def test() -> None:
        async with api_node() as node:
            node.log.follow("n2")
            path = PATH + "?participant=http%3A%2F%2Fa%2fb%20c&state=preparing"
            _, _, headers = await node.request("GET", path)
            assert headers["Location"] == "http://127.0.0.1:8102" + path

    run(test())


def test_a_redirected_body_leaves_the_connection_in_use() -> None:
    async def test() -> None:
        async with api_node() as node:
            host, port = node.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps({"participants": [node.service(payload="x" * 500_000)]}).encode()
            for leader, expected in (("n2", b"307"), (None, b"503"), ("n1", b"200")):
                node.log.follow(leader)
                if leader == "n1":
                    node.log.lead(now_ms())
                head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.split(b" ")[1] == expected
                length = next(
                    int(line.split(b":")[1])
                    for line in answer.lower().split(b"\r\n")
                    if line.startswith(b"content-length")
                )
                await reader.readexactly(length)
            writer.close()
            await writer.wait_closed()

    run(test())


def test_expect_100_continue_is_answered_and_other_expectations_are_not() -> None:
    async def test() -> None:
        async with api_node() as node:
            async with node.session.post(
                node.url + PATH, json=node.body(), expect100=True
            ) as response:
                assert response.status == 200
            status, answer, _ = await node.request(
                "POST", PATH, body=b"{}", headers={"Expect": "the unexpected"}
            )
            assert status == 417
            assert error_of(answer)["code"] == "expectation_failed"

    run(test())


def test_a_client_that_follows_redirects_reaches_the_leader() -> None:
    async def test() -> None:
        async with api_node() as leader, api_node() as follower:
            follower.log.follow("n2")
            follower.apis["n2"] = leader.url
            async with aiohttp.ClientSession() as session:
                url = follower.url + PATH
                async with session.post(url, json=leader.body("yes", id="t-1")) as response:
                    assert response.status == 200
                    assert len(response.history) == 1
                    assert (await response.json())["outcome"] == "committed"

    run(test())


def test_a_request_without_an_id_is_never_redirected_once_it_has_one() -> None:
    """It would be followed by a body without an id, and the work would run twice."""

    async def test() -> None:
        for error in (NotLeader("gone"), FateUnknown("gone"), NotApplied("gone")):
            driver = ScriptedDriver()
            async with api_node(scripted=driver) as node:
                node.log.leader = "n2"  # heard of while this node still thinks that it leads
                driver.outcome = lambda _plan, error=error: error  # type: ignore[misc]
                status, answer, headers = await node.request(
                    "POST", PATH, body=json.dumps(node.body()).encode()
                )
                assert (status, headers["Retry-After"]) == (503, "1")
                shown = error_of(answer)
                assert shown["code"] == "outcome_unknown"
                made = driver.submitted[0][0].id
                assert shown["details"] == {"id": made}
                assert ids.time_of(made) is not None

    run(test())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotLeader("gone"), "no_leader"),
        (FateUnknown("gone"), "outcome_unknown"),
        (NotApplied("gone"), "outcome_unknown"),
    ],
)
def test_a_request_with_an_id_goes_on_to_the_new_leader_or_learns_that_it_is_unknown(
    error: Exception, code: str
) -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: error
        async with api_node(scripted=driver) as node:
            body = json.dumps(node.body(id="t-1")).encode()
            node.log.leader = "n2"
            status, answer, headers = await node.request("POST", PATH, body=body)
            assert (status, headers["Location"]) == (307, "http://127.0.0.1:8102" + PATH)
            node.log.leader = None
            status, answer, headers = await node.request("POST", PATH, body=body)
            assert (status, headers["Retry-After"]) == (503, "1")
            assert error_of(answer)["code"] == code

    run(test())


def test_leadership_lost_while_the_body_comes_still_redirects_for_no_id_is_made_yet() -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        async with api_node(scripted=driver) as node:
            host, port = node.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            body = json.dumps(node.body()).encode()
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body))
            # The node has read the head, and led then.
            assert b"100" in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0)
            node.log.follow("n2")
            writer.write(body)
            assert b" 307 " in await reader.readuntil(b"\r\n\r\n")
            assert driver.submitted == []
            writer.close()

    run(test())


def test_in_a_batch_each_element_learns_by_itself_that_it_is_unknown() -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda plan: FateUnknown("x") if plan.id == "t-2" else NotLeader("x")
        async with api_node(scripted=driver) as node:
            node.log.leader = "n2"
            elements = [node.body(id="t-1"), node.body(id="t-2"), node.body()]
            status, answer = await node.post(PATH, {"transactions": elements})
            assert status == 200
            errors = [error_of(a) for a in answer["transactions"]]
            assert [e["code"] for e in errors] == [
                "no_leader",
                "outcome_unknown",
                "outcome_unknown",
            ]
            assert errors[2]["details"] == {"id": driver.submitted[2][0].id}

    run(test())


def test_leadership_lost_under_way_ends_the_wait() -> None:
    async def test() -> None:
        async with api_node() as node:
            asking = asyncio.create_task(node.post(PATH, node.body("slow")))
            await node.services.until_called("slow", "prepare")
            node.log.stop_leading()
            status, answer = await asking
            assert (status, error_of(answer)["code"]) == (503, "outcome_unknown")

    run(test())


@pytest.mark.parametrize(("leader", "status"), [("n2", 307), (None, 503)])
def test_leadership_lost_while_a_read_waits_sends_it_on(leader: str | None, status: int) -> None:
    async def test() -> None:
        driver = ScriptedDriver()  # whose waiting never ends by itself
        async with api_node(scripted=driver) as node:
            await node.begin(node.body("slow", id="t-1"))
            asking = asyncio.create_task(node.get(f"{PATH}/t-1?wait_ms=60000"))
            await driver.asked.wait()
            node.log.leader = leader
            driver.futures[0].set_exception(FateUnknown("leadership ended"))
            assert (await asking)[0] == status

    run(test())


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.AtCapacity("full"), 429, "at_capacity"),
        (Overloaded("full"), 429, "overloaded"),
        (errors.Draining("stopping"), 503, "draining"),
        (errors.Expired("old", id="t-1"), 410, "transaction_id_expired"),
        (errors.Conflict("other", id="t-1"), 409, "transaction_id_conflict"),
    ],
)
def test_what_is_refused_has_its_status(error: Exception, status: int, code: str) -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: error
        async with api_node(scripted=driver) as node:
            body = json.dumps(node.body()).encode()
            answered, answer, headers = await node.request("POST", PATH, body=body)
            assert (answered, error_of(answer)["code"]) == (status, code)
            assert headers.get("Retry-After") == ("1" if status in (429, 503) else None)

    run(test())


def test_a_wait_that_runs_out_before_anything_is_known_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_transactions, "WAIT_MARGIN_MS", 1)

    async def test() -> None:
        driver = ScriptedDriver()  # which never answers
        async with api_node(scripted=driver, timings=Timings(min_timeout_ms=1)) as node:
            status, answer = await node.post(PATH, node.body(id="t-1", timeout_ms=1))
            assert (status, error_of(answer)["code"]) == (503, "outcome_unknown")
            assert driver.futures[0].cancelled()  # nobody waits for it any more

    run(test())


def test_a_wait_that_runs_out_never_shows_what_another_asked_for_under_that_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(api_transactions, "WAIT_MARGIN_MS", 1)

    async def test() -> None:
        async with api_node(scripted=ScriptedDriver(), timings=Timings(min_timeout_ms=1)) as node:
            node.machine.apply(encode(Epoch(1, 1, "n1")))
            node.machine.apply(encode(begin("t-1", fingerprint="another", epoch=1)))
            assert node.machine.get("t-1") is not None
            status, answer = await node.post(PATH, node.body(id="t-1", timeout_ms=1))
            assert (status, error_of(answer)["code"]) == (503, "outcome_unknown")

    run(test())


def test_a_get_waits_no_longer_than_proxies_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_transactions, "MAX_WAIT_MS", 1)

    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("down", id="t-1"))
            status, answer = await node.get(f"{PATH}/t-1?wait_ms=600000")
            assert (status, answer["state"]) == (200, "committing")

    run(test())


def test_a_defect_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        driver = ScriptedDriver()
        driver.outcome = lambda _plan: ZeroDivisionError("the secret of the house")
        async with api_node(scripted=driver) as node:
            status, answer, headers = await node.request(
                "POST", PATH, body=json.dumps(node.body()).encode()
            )
            assert (status, headers["Content-Type"]) == (500, "application/json")
            assert error_of(answer)["code"] == "internal_error"
            assert "secret" not in json.dumps(answer)

    run(test())
    assert "the secret of the house" in caplog.text
    assert "Traceback" in caplog.text


# --- reading --------------------------------------------------------------------------------------


def test_a_current_read_waits_for_a_barrier_and_a_stale_one_does_not() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body(id="t-1", wait="completion"))
            before = node.log.barriers
            _, current = await node.get(f"{PATH}/t-1")
            await node.get(f"{PATH}/t-1?wait_ms=5")
            await node.get(PATH)
            assert node.log.barriers == before + 3
            node.log.follow("n2")
            status, stale = await node.get(f"{PATH}/t-1?stale=true")
            assert status == 200
            assert stale == {**current, "stale": True}
            status, page = await node.get(f"{PATH}?stale=true")
            assert (status, page["stale"], len(page["transactions"])) == (200, True, 1)
            assert node.log.barriers == before + 3

    run(test())


@pytest.mark.parametrize("error", [NotLeader("x"), FateUnknown("x"), NotApplied("x")])
def test_a_read_without_its_barrier_is_no_answer(error: Any) -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body(id="t-1", wait="completion"))
            node.log.barrier_error = error
            inquiry = f"{PATH}/t-1/decision?branch_id=1&fingerprint=a"
            for path in (PATH, f"{PATH}/t-1", f"{PATH}/t-1?wait_ms=5", inquiry):
                status, answer = await node.get(path)
                assert (status, error_of(answer)["code"]) == (503, "no_leader")
            status, answer = await node.post(f"{PATH}/t-1/retry", {})
            assert (status, error_of(answer)["code"]) == (503, "no_leader")
            node.log.barrier_error = Overloaded("x")
            status, answer = await node.get(f"{PATH}/t-1")
            assert (status, error_of(answer)["code"]) == (503, "overloaded")

    run(test())


def test_an_unknown_id_is_unknown_not_aborted() -> None:
    async def test() -> None:
        async with api_node() as node:
            for path in ("/t-9", "/t-9?stale=true", "/t-9?wait_ms=10"):
                status, answer = await node.get(PATH + path)
                assert (status, error_of(answer)["code"]) == (404, "unknown_transaction")
            for path in ("/t-9/commit", "/t-9/rollback", "/t-9/branches", "/t-9/retry"):
                status, answer, _ = await node.request("POST", PATH + path)
                assert (status, error_of(answer)["code"]) == (404, "unknown_transaction")

    run(test())


def test_the_list_is_paged_filtered_and_newest_first() -> None:
    async def test() -> None:
        async with api_node() as node:
            for number in range(5):
                kind = "no" if number == 2 else "yes"
                await node.post(PATH, node.body(kind, id=f"t-{number}", wait="completion"))
            seen: list[str] = []
            path = f"{PATH}?limit=2"
            for _ in range(5):
                status, page = await node.get(path)
                assert status == 200
                seen += [t["id"] for t in page["transactions"]]
                if page["next_after"] is None:
                    break
                path = f"{PATH}?limit=2&after={page['next_after']}"
            assert seen == ["t-4", "t-3", "t-2", "t-1", "t-0"]
            _, page = await node.get(f"{PATH}?state=aborted,aborting")
            assert [t["id"] for t in page["transactions"]] == ["t-2"]
            _, page = await node.get(f"{PATH}?participant={node.services.url}/yes")
            assert len(page["transactions"]) == 4
            _, page = await node.get(f"{PATH}?older_than_ms=3600000")
            assert page["transactions"] == []
            assert page["backlog"] == {}

    run(test())


def test_a_page_ends_where_it_is_large_enough_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with api_node() as node:
            for number in range(5):
                await node.post(PATH, node.body("yes", id=f"t-{number}", wait="completion"))
            _, page = await node.get(PATH)
            one = len(json.dumps(page["transactions"][0], separators=(",", ":")))
            monkeypatch.setattr(api_transactions, "PAGE_CHARS", one + 1)
            found, path = [], PATH
            while True:
                _, page = await node.get(path)
                found.append([t["id"] for t in page["transactions"]])
                if page["next_after"] is None:
                    break
                path = f"{PATH}?after={page['next_after']}"
            assert found == [["t-4", "t-3"], ["t-2", "t-1"], ["t-0"]]

    run(test())


def test_the_list_shows_what_was_begun_by_a_clock_that_is_ahead() -> None:
    async def test() -> None:
        async with api_node() as node:
            node.machine.apply(encode(Epoch(1, 1, "n1")))
            node.machine.apply(encode(begin("t-1", epoch=1, now_ms=now_ms() + 60_000)))
            _, page = await node.get(f"{PATH}?stale=true")
            assert [t["id"] for t in page["transactions"]] == ["t-1"]
            _, page = await node.get(f"{PATH}?stale=true&older_than_ms=1")
            assert page["transactions"] == []

    run(test())


def test_a_list_without_a_limit_keeps_to_the_page_size_that_is_set() -> None:
    async def test() -> None:
        async with api_node(limits=Limits(page_size=2)) as node:
            for number in range(3):
                await node.post(PATH, node.body("yes", id=f"t-{number}", wait="completion"))
            _, page = await node.get(PATH)
            assert [t["id"] for t in page["transactions"]] == ["t-2", "t-1"]
            assert page["next_after"] is not None

    run(test())


def test_an_id_far_ahead_is_refused_unless_it_has_begun() -> None:
    """As for a leader whose clock is behind the one under which the client's first call began."""

    async def test() -> None:
        async with api_node() as node:
            ahead = uuid7(now_ms() + 2 * MAX_AHEAD_MS, Random())
            body = node.body("yes", id=ahead)
            for sent in (body, {"transactions": [body]}):
                status, answer = await node.post(PATH, sent)
                if "transactions" in answer:
                    status, answer = 400, answer["transactions"][0]
                assert (status, error_of(answer)["details"]) == (400, {"field": "id"})
            assert node.machine.get(ahead) is None
            await node.begin(body)
            status, answer = await node.post(PATH, body)
            assert (status, answer["outcome"]) == (200, "committed")

    run(test())


def test_an_id_far_ahead_of_a_clock_that_may_be_wrong_is_to_be_asked_again() -> None:
    async def test() -> None:
        async with api_node() as node:
            node.clock_is_settled = False
            ahead = uuid7(now_ms() + 2 * MAX_AHEAD_MS, Random())
            body = node.body("yes", id=ahead)
            status, answer = await node.post(PATH, body)
            assert (status, error_of(answer)["code"]) == (503, "clock_unsettled")
            status, answer = await node.post(PATH, {"transactions": [body]})
            assert error_of(answer["transactions"][0])["code"] == "clock_unsettled"
            status, answer = await node.get(f"{PATH}/{ahead}/decision?branch_id=1&fingerprint=ab")
            assert (status, error_of(answer)["code"]) == (503, "clock_unsettled")
            assert node.machine.get(ahead) is None

    run(test())


def test_an_inquiry_of_an_unknown_id_far_ahead_is_refused_and_leaves_nothing_behind() -> None:
    async def test() -> None:
        async with api_node() as node:
            ahead = uuid7(now_ms() + 2 * MAX_AHEAD_MS, Random())
            status, answer = await node.get(f"{PATH}/{ahead}/decision?branch_id=1&fingerprint=ab")
            assert (status, error_of(answer)["details"]) == (400, {"field": "id"})
            assert node.machine.get(ahead) is None

    run(test())


def test_a_refused_id_with_its_time_is_aborted_and_one_without_is_refused() -> None:
    async def test() -> None:
        async with api_node() as node:
            timed = new_id()
            for transaction_id in (timed, "no-time"):
                path = f"{PATH}/{transaction_id}/decision?branch_id=1&fingerprint=ab"
                assert await node.get(path) == (200, told("abort", transaction_id))
            status, answer = await node.post(PATH, node.body(id=timed))
            assert (status, answer["state"], answer["outcome"]) == (200, "aborted", "aborted")
            assert answer["reason"]
            status, answer = await node.post(PATH, node.body(id="no-time"))
            assert (status, answer["state"], answer["outcome"]) == (200, "refused", None)
            assert not node.services.calls  # nothing of it ever ran
            for state, listed in (("refused", "no-time"), ("aborted", timed)):
                status, page = await node.get(f"{PATH}?state={state}")
                assert status == 200
                shown = [(one["id"], one["state"]) for one in page["transactions"]]
                assert shown == [(listed, state)]

    run(test())


def test_a_branch_in_doubt_learns_the_decision() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("down", id="t-1"))
            transaction = node.machine.get("t-1")
            assert transaction is not None
            path = f"{PATH}/t-1/decision?branch_id=1&fingerprint="
            answer = await node.get(path + transaction.fingerprint)
            assert answer == (200, told("commit", "t-1"))
            assert await node.get(path + "another") == (200, told("abort", "t-1"))

    run(test())


# --- an operator's calls --------------------------------------------------------------------------


def test_an_operator_ends_a_branch_by_hand_and_it_is_told_for_ever() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("down", id="t-1"))
            why = {"actor": "ada", "reason": "booked by hand"}
            status, answer = await node.post(
                f"{PATH}/t-1/resolve", {"branch_id": "1", "effect": "committed", **why}
            )
            assert (status, answer["state"]) == (200, "committed")
            assert answer["branches"][0]["state"] == "resolved"
            entry = answer["history"][0]
            assert entry.pop("at").endswith("Z")
            assert entry == {"branch_id": "1", "effect": "committed", **why}

    run(test())


def test_an_operator_aborts_what_is_undecided_and_cannot_commit_it() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("slow", id="t-1", wait="none"))
            why = {"actor": "ada", "reason": "stuck"}
            path = f"{PATH}/t-1/resolve"
            for asked in ({"outcome": "commit"}, {"branch_id": "1", "effect": "committed"}):
                status, answer = await node.post(path, {**asked, **why})
                assert (status, error_of(answer)["code"]) == (409, "not_allowed")
            status, answer = await node.post(path, {"outcome": "abort", **why})
            assert (status, answer["outcome"]) == (200, "aborted")
            status, answer = await node.post(f"{PATH}/t-9/resolve", {"outcome": "commit", **why})
            assert (status, error_of(answer)["code"]) == (404, "unknown_transaction")

    run(test())


def test_retry_answers_with_the_transaction() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("down", id="t-1"))
            for body in (b"", b"{}"):
                status, answer, _ = await node.request("POST", f"{PATH}/t-1/retry", body=body)
                assert (status, answer["id"]) == (200, "t-1")

    run(test())


def test_a_one_shot_transaction_is_not_interactive() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body(id="t-1"))
            for call in ("commit", "rollback", "branches"):
                status, answer, _ = await node.request("POST", f"{PATH}/t-1/{call}")
                assert (status, error_of(answer)["code"]) == (409, "not_interactive")

    run(test())


# --- the node -------------------------------------------------------------------------------------


def test_the_node_says_how_it_is() -> None:
    async def test() -> None:
        async with api_node() as node:
            assert await node.get("/healthz") == (200, {"status": "ok"})
            assert (await node.get("/v1/cluster"))[1]["self"] == "n1"
            ready = {"ready": True, "checks": {"leader": {"ok": True, "detail": "n1 leads"}}}
            assert await node.get("/readyz") == (200, ready)
            node.checks["disk"] = Check(False, "full")
            status, answer = await node.get("/readyz")
            assert (status, answer["ready"]) == (503, False)
            assert answer["checks"]["disk"] == {"ok": False, "detail": "full"}
            assert answer["error"]["details"] == {"failing": ["disk"]}

    run(test())


def test_metrics_are_served_and_count_what_happened() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("yes", "no", wait="completion"))
            async with node.session.get(node.url + "/metrics") as response:
                text = await response.text()
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain")
            assert "assent_transactions_begun_total 1.0" in text
            assert 'assent_transactions_decided_total{outcome="abort"} 1.0' in text
            assert 'assent_calls_total{operation="prepare",result="no"} 1.0' in text
            assert "assent_leading 1.0" in text
            assert "assent_journal_syncs_total 5.0" in text

    run(test())


def test_only_what_begins_is_refused_for_load() -> None:
    async def test() -> None:
        limits = Limits(unfinished=1, unfinished_per_participant=1)
        async with api_node(limits=limits) as node:
            status, _ = await node.post(PATH, node.body("down", id="t-1"))
            assert status == 200
            status, answer = await node.post(PATH, node.body("yes", id="t-2"))
            assert (status, error_of(answer)["code"]) == (429, "at_capacity")
            status, answer = await node.post(PATH, node.body("down", id="t-1"))
            assert (status, answer["outcome"]) == (200, "committed")
            status, answer = await node.get(f"{PATH}/t-1")
            assert status == 200

    run(test())


def test_while_too_many_wait_to_begin_only_repeats_are_let_in() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body("yes", id="t-1"))
            node.driver.line = WaitingLine(Closed())
            for body in (node.body("yes", id="t-2"), node.body("yes"), {"id": "\ud800"}):
                raw = json.dumps(body).encode()
                status, answer, headers = await node.request("POST", PATH, body=raw)
                assert (status, error_of(answer)["code"]) == (429, "at_capacity")
                assert headers["Retry-After"] == "1"
            assert node.machine.get("t-2") is None
            status, answer = await node.post(PATH, node.body("yes", id="t-1"))
            assert (status, answer["outcome"]) == (200, "committed")
            assert (await node.get(f"{PATH}/t-1"))[0] == 200
            async with node.session.get(node.url + "/metrics") as response:
                text = await response.text()
            assert "assent_transactions_turned_away_total 3.0" in text

    run(test())


def test_a_node_that_drains_begins_nothing_new() -> None:
    async def test() -> None:
        async with api_node() as node:
            await node.post(PATH, node.body(id="t-1"))
            node.driver.drain()
            status, answer, headers = await node.request(
                "POST", PATH, body=json.dumps(node.body()).encode()
            )
            assert (status, headers["Retry-After"]) == (503, "1")
            assert error_of(answer)["code"] == "draining"
            status, answer = await node.post(PATH, node.body(id="t-1"))
            assert (status, answer["outcome"]) == (200, "committed")

    run(test())


def test_unknown_paths_and_wrong_methods_have_the_one_shape() -> None:
    async def test() -> None:
        async with api_node() as node:
            status, answer = await node.get("/v2/whatever")
            assert (status, error_of(answer)["code"]) == (404, "not_found")
            status, answer, headers = await node.request("DELETE", PATH)
            assert (status, error_of(answer)["code"]) == (405, "method_not_allowed")
            assert headers["Allow"] == "GET, HEAD, POST"

    run(test())
